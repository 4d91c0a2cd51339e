"""Programs as a user writes them, in docs/sdk.md: they are typed for them, and they run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kibun.client.server_process import ServerProcess
from tests.support import ROOT

PROGRAM, BASELINE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text(), re.DOTALL)


def test_it_is_typed_strictly_and_what_is_wrong_in_it_is_found(tmp_path: Path) -> None:
    wrong = PROGRAM.replace("timeout_s=10.0", 'timeout_s="10"').replace("print(event.start_s", "print(event.start")
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(wrong + "\nClient('h:1').conversation().turn(sample_rate_hz='16000')\n")
    # Without the settings of this repository.
    (tmp_path / "baseline.py").write_text(BASELINE)
    files = ["right.py", "wrong.py", "baseline.py"]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 3, done.stdout + done.stderr
    assert all(line.startswith("wrong.py") for line in errors)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "program.py").write_text(PROGRAM)
    with ServerProcess("stub", ["--loader", "tests.support.stub_model:load"]) as server:
        command = [sys.executable, str(tmp_path / "program.py"), server.target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("client_end_of_turn\n", 0), done.stderr


def test_the_baseline_runs_and_is_none_at_first(tmp_path: Path) -> None:
    more = 'for _ in range(3):\n    relative = baseline.add("table-4/guest", Emotion(valence=3.0, arousal=2.4))\n'
    (tmp_path / "baseline.py").write_text(f"{BASELINE}{more}print(relative and relative.utterance_count)\n")
    done = subprocess.run([sys.executable, str(tmp_path / "baseline.py")], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr
