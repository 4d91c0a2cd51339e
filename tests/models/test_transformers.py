"""`from transformers import HubertModel` works where kibun is installed, before kibun is imported and after.

transformers imports torchaudio wherever it is installed, and fails if that does. Each case needs a fresh interpreter.
"""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import ROOT

PLAIN = "from transformers import HubertModel; "
KIBUN = "import kibun.models.bundle; "
PRINT = "from importlib.util import find_spec; print(HubertModel.__name__, find_spec('torchaudio') is not None)"
BROKEN = {
    "__init__.py": "from . import functional, _extension\n",
    "functional.py": "",
    "_extension.py": "raise OSError('libcudart.so.13: cannot open shared object file')\n",
}
# What runs, and the files of torchaudio; None: it is not installed.
CASES: dict[str, tuple[str, dict[str, str] | None]] = {
    "plain": (PLAIN + PRINT, None),
    "before": (PLAIN + KIBUN + PRINT, None),
    "after": (KIBUN + PLAIN + PRINT, None),
    "broken, plain": (PLAIN + PRINT, BROKEN),
    "broken, after": (KIBUN + PLAIN + PRINT, BROKEN),
    "working, after": (KIBUN + PLAIN + PRINT, {"__init__.py": ""}),
}
Finished = subprocess.CompletedProcess[str]


def run(code: str, files: dict[str, str] | None, folder: Path) -> Finished:
    """Run code in a fresh interpreter where torchaudio has these files."""
    for name, text in (files or {}).items():
        path = folder / "torchaudio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    setup = "sys.modules['torchaudio'] = None" if files is None else f"sys.path[:0] = [{str(folder)!r}]"
    command = [sys.executable, "-c", f"import sys; {setup}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """All cases, two at a time: they import torch."""
    folder = tmp_path_factory.mktemp("torchaudio")
    with ThreadPoolExecutor(2) as pool:
        running = {name: pool.submit(run, *case, folder / name) for name, case in CASES.items()}
    return {name: future.result() for name, future in running.items()}


def test_nothing_that_kibun_requires_brings_torchaudio() -> None:
    """With every extra, down to what the required packages require: so it is in no environment that kibun made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(each for extra in extras for each in extra)]
    seen = set[str]()
    while wanted:
        name = re.split(r"[^A-Za-z0-9._-]", wanted.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in seen or name == "kibun":
            continue
        seen.add(name)
        with suppress(importlib.metadata.PackageNotFoundError):  # an extra that is not installed here
            requires = importlib.metadata.requires(name) or []
            wanted += [each for each in requires if "extra ==" not in each]  # kibun asks for no extra of others
    assert {"torch", "transformers", "soxr", "tokenizers"} <= seen
    assert "torchaudio" not in seen


@pytest.mark.parametrize("case", ["plain", "before", "after"])
def test_transformers_imports_where_kibun_is_installed(finished: dict[str, Finished], case: str) -> None:
    assert (finished[case].returncode, finished[case].stdout) == (0, "HubertModel False\n"), finished[case].stderr


def test_the_trap_is_real(finished: dict[str, Finished]) -> None:
    result = finished["broken, plain"]
    assert result.returncode != 0, "transformers no longer needs this care: drop _leave_out_broken_torchaudio"
    assert "libcudart.so.13" in result.stderr


def test_after_kibun_a_torchaudio_that_others_brought_breaks_nothing(finished: dict[str, Finished]) -> None:
    for case, there in (("broken, after", False), ("working, after", True)):
        expected = (0, f"HubertModel {there}\n")
        assert (finished[case].returncode, finished[case].stdout) == expected, finished[case].stderr
