"""A torchaudio that is broken or absent must not take transformers down. Each case needs a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

USE_HUBERT = """
from kibun.models._torchaudio import ensure_importable
from kibun.models.hubert import HubertModel
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


def install(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "torchaudio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter where torchaudio is the one in `folder`, or none at all."""
    first = (
        "import sys; sys.modules['torchaudio'] = None"
        if folder is None
        else f"import sys; sys.path[:0] = [{str(folder)!r}]"
    )
    return subprocess.run([sys.executable, "-c", f"{first}\n{code}"], capture_output=True, text=True, check=False)


def test_the_trap_is_real(tmp_path: Path) -> None:
    result = run("from transformers import HubertModel", install(tmp_path, UNUSABLE))
    assert result.returncode != 0, "transformers no longer needs this care: drop _torchaudio.py"


def test_a_broken_extension_leaves_the_rest_usable(tmp_path: Path) -> None:
    code = USE_HUBERT + (
        "import torchaudio\n"
        "try: torchaudio.functional.forced_align()\n"
        "except RuntimeError as error: assert 'forced_align needs' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    result = run(code, install(tmp_path, BROKEN_EXTENSION))
    assert (result.returncode, result.stdout) == (0, "without-extension\n"), result.stderr


def test_an_unusable_torchaudio_counts_as_absent(tmp_path: Path) -> None:
    result = run(STATE, install(tmp_path, UNUSABLE))
    assert (result.returncode, result.stdout) == (0, "unusable True\n"), result.stderr


def test_an_absent_torchaudio_is_no_problem() -> None:
    result = run(STATE)
    assert (result.returncode, result.stdout) == (0, "absent True\n"), result.stderr


def test_a_working_torchaudio_is_left_alone(tmp_path: Path) -> None:
    result = run(STATE, install(tmp_path, {"__init__.py": ""}))
    assert (result.returncode, result.stdout) == (0, "ok False\n"), result.stderr
