"""A torchaudio that is broken or absent must not take transformers down. Each case needs a fresh interpreter."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

USE_HUBERT = """
from kibun.models._torchaudio import ensure_importable
from kibun.models._transformers import HubertModel
assert HubertModel.__name__ == "HubertModel"
import torch
print(ensure_importable())
"""
# transformers asks find_spec whether a package is installed.
STATE = """
import importlib.util
from kibun.models._torchaudio import ensure_importable
print(ensure_importable(), importlib.util.find_spec("torchaudio") is None)
assert ensure_importable() == ensure_importable()
"""
BROKEN_EXTENSION = {
    "__init__.py": "from . import _extension\nfrom . import functional\n",
    "_extension/__init__.py": "raise OSError('libcudart.so.13: cannot open shared object file')\n",
    "functional.py": (
        "from ._extension import _IS_TORCHAUDIO_EXT_AVAILABLE, fail_if_no_align\n"
        "assert _IS_TORCHAUDIO_EXT_AVAILABLE is False\n"
        "@fail_if_no_align\n"
        "def forced_align(): return 1\n"
    ),
}
UNUSABLE = {"__init__.py": "raise RuntimeError('compiled against another version')\n"}


FORCED_ALIGN = """
import torchaudio
try: torchaudio.functional.forced_align()
except RuntimeError as error: assert "forced_align needs" in str(error)
else: raise SystemExit("no error")
"""
# What runs, and the files of torchaudio; None: it is not installed.
CASES: dict[str, tuple[str, dict[str, str] | None]] = {
    "plain transformers": ("from transformers import HubertModel", UNUSABLE),
    "broken extension": (USE_HUBERT + FORCED_ALIGN, BROKEN_EXTENSION),
    "unusable": (STATE, UNUSABLE),
    "absent": (STATE, None),
    "working": (STATE, {"__init__.py": ""}),
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
    """All cases, run at once: two of them import torch."""
    folder = tmp_path_factory.mktemp("torchaudio")
    with ThreadPoolExecutor(len(CASES)) as pool:
        running = {name: pool.submit(run, *case, folder / name) for name, case in CASES.items()}
    return {name: future.result() for name, future in running.items()}


def test_the_trap_is_real(finished: dict[str, Finished]) -> None:
    result = finished["plain transformers"]
    assert result.returncode != 0, "transformers no longer needs this care: drop _torchaudio.py"
    assert "compiled against another version" in result.stderr


@pytest.mark.parametrize(
    ("case", "output"),
    [
        pytest.param("broken extension", "without-extension", id="a broken extension leaves the rest usable"),
        pytest.param("unusable", "unusable True", id="an unusable torchaudio counts as absent"),
        pytest.param("absent", "absent True", id="an absent torchaudio is no problem"),
        pytest.param("working", "ok False", id="a working torchaudio is left alone"),
    ],
)
def test_torchaudio_never_breaks_transformers(finished: dict[str, Finished], case: str, output: str) -> None:
    result = finished[case]
    assert (result.returncode, result.stdout) == (0, f"{output}\n"), result.stderr
