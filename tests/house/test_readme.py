"""What the README shows works, and what it points to is there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from kibun.bench.support.speech_like import lay_out
from kibun.client.server_process import ServerProcess
from tests.support import ROOT

README = (ROOT / "README.md").read_text()


# What the installation of the client alone does not have.
NOT_IN_THE_CLIENT = ("soundfile", "soxr", "typer", "rich", "torch")


@pytest.mark.parametrize(("rate_hz", "channels"), [(44_100, 2), (8_000, 1)])
def test_the_first_program_runs_with_the_client_alone_at_any_rate(
    demo_server: ServerProcess, tmp_path: Path, rate_hz: int, channels: int
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    audio = lay_out([("silence", 0.3), ("speech", 1.5), ("silence", 0.8)]).audio
    audio = soxr.resample(audio, 16_000, rate_hz)
    soundfile.write(tmp_path / "speech.wav", np.stack([audio] * channels, axis=1), rate_hz, subtype="PCM_16")
    assert "127.0.0.1:50051" in program
    absent = f"import sys\nsys.modules.update(dict.fromkeys({NOT_IN_THE_CLIENT}))\n"
    (tmp_path / "program.py").write_text(absent + program.replace("127.0.0.1:50051", demo_server.target))
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Emotion(valence=" in done.stdout


def test_what_it_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(links) > 5
    assert not [link for link in links if not (ROOT / link).exists()]


def test_it_names_both_commands_and_shows_the_true_output_of_the_demo() -> None:
    assert "python3 dev.py demo" in README
    assert "python3 dev.py test" in README
    # tests/client/test_demo.py holds the demo itself to the same file.
    shown = re.findall(r"^ +(\d+\.\d–\d+\.\d) +(\w+) +(\d\.\d\d) +(\d\.\d\d)", README, re.MULTILINE)
    assert shown == expected_rows()


def expected_rows() -> list[tuple[str, str, str, str]]:
    """Span, speaker, valence and arousal of every final in the demo's committed output."""
    rows = []
    for line in (ROOT / "client/kibun/client/demo/expected.jsonl").read_text().splitlines():
        result = json.loads(line).get("utterance_result", {})
        if result.get("is_final"):
            start_s, end_s = (float(result[key].rstrip("s")) for key in ("start_offset", "end_offset"))
            emotion = result["emotion"]
            speaker = result["utterance_id"].split(":")[0]
            rows.append(
                (f"{start_s:.1f}–{end_s:.1f}", speaker, f"{emotion['valence']:.2f}", f"{emotion['arousal']:.2f}")
            )
    return rows
