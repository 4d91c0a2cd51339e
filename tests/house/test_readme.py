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
from tests.support.programs import of_the_documentation

README = (ROOT / "README.md").read_text()


# What the installation of the client alone does not have.
NOT_IN_THE_CLIENT = ("soundfile", "soxr", "typer", "rich", "torch")


@pytest.mark.parametrize(("rate_hz", "channels"), [(44_100, 2), (8_000, 1)])
def test_the_first_program_runs_with_the_client_alone_at_any_rate(
    demo_server: ServerProcess, tmp_path: Path, rate_hz: int, channels: int
) -> None:
    (program,) = of_the_documentation("README.md")
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
    assert re.findall(r"<!-- demo -->.*<!-- /demo -->", README, re.DOTALL)
    emotion = re.findall(r"^ (valence|arousal) .* (\d\.\d\d), mean (\d\.\d\d)$", README, re.MULTILINE)
    traits = re.findall(r"^ (\w+) +1.*7 (\d\.\d) ± (\d\.\d\d), ", README, re.MULTILINE)
    assert (emotion, traits) == expected_figures()


def expected_figures() -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """What the demo's committed output ends with: valence and arousal, last and mean, and traits with their errors."""
    last = (ROOT / "client/kibun/client/demo/expected.jsonl").read_text().splitlines()[-1]
    emotion: list[tuple[str, ...]] = []
    traits: list[tuple[str, ...]] = []
    for participant in json.loads(last)["conversation"]["participants"]:
        for name, value in participant["last_emotion"].items():
            emotion.append((name, f"{value:.2f}", f"{participant['mean_emotion'][name]:.2f}"))
        errors = participant["personality"]["expected_error"]
        traits += [(n, f"{v:.1f}", f"{errors[n]:.2f}") for n, v in participant["personality"]["traits"].items()]
    return emotion, traits
