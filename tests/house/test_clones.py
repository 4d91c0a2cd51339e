"""Neither kibun nor its tests depend on the name of the folder that they lie in."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT

# What looks at paths, starts processes, or reads files beside its own.
SELECTION = (
    "tests/house/test_layout.py",
    "tests/house/test_supply_chain.py",
    "tests/fuzz",
    "tests/client/test_main.py",
    "tests/client/commands/test_commands.py",
    "tests/server/observability/test_logs.py",
    "tests/server/inference/test_worker.py",
    "tests/contract/test_errors.py",
    "tests/training/runs/test_run.py",
    "tests/bench/faults/test_runs.py",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["kibun", "a b", "気分"])
def test_a_clone_passes_wherever_it_lies(tmp_path: Path, name: str) -> None:
    clone = tmp_path / name
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    folders = tomllib.loads((clone / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["dev-mode-dirs"]
    # Comes before the folders of an editable installation.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(clone / folder) for folder in folders)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout.strip()

    rooms = run("-c", "import kibun.client as a, kibun.server as b; print(a.__file__, b.__file__, sep='\\n')")
    assert all(Path(path).is_relative_to(clone) for path in rooms.splitlines()), "it is the clone that is tested"
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *SELECTION)
