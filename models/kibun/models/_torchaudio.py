"""Prevents a broken torchaudio from breaking transformers.

transformers imports torchaudio whenever it is installed. Wheels whose compiled extension was linked for another torch
build (e.g. a CUDA one beside CPU torch) fail on import, and then `from transformers import HubertModel` fails too.
torchaudio's pure-PyTorch parts (resampling, mel filters, masking) need no extension, so we import torchaudio first and
mark the extension unavailable where it cannot load.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, Literal, NoReturn

State = Literal["absent", "ok", "without-extension", "unusable"]

_state: State | None = None


def ensure_importable() -> State:
    """Import torchaudio without failing, whatever its state; call this before the first import of transformers.

    Returns:
        "absent": not installed. "ok": it imports. "without-extension": its compiled extension does not load, its
        pure-PyTorch parts work. "unusable": it does not import at all, and transformers will find it not installed.
    """
    global _state
    if _state is None:
        _state = _import()
    return _state


def _import() -> State:
    if importlib.util.find_spec("torchaudio") is None:
        return "absent"
    if _imports():
        return "ok"
    _forget()
    sys.modules["torchaudio._extension"] = _extension_unavailable()
    if _imports():
        return "without-extension"
    _forget()
    # A None entry makes importlib report the package as not installed, here and in transformers' own check.
    sys.modules["torchaudio"] = None  # type: ignore[assignment]
    return "unusable"


def _imports() -> bool:
    """Whether torchaudio can be imported now."""
    try:
        importlib.import_module("torchaudio")
    except Exception:  # OSError, ImportError, RuntimeError (CUDA versions differ), AttributeError: all mean "broken".
        return False
    return True


def _forget() -> None:
    """Remove half-imported modules, which a second import would find and fail at differently."""
    for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
        del sys.modules[name]


def _extension_unavailable() -> types.ModuleType:
    """A stand-in for `torchaudio._extension` with the names that torchaudio reads from it."""

    def fail_if_no_align(function: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*args: Any, **kwargs: Any) -> NoReturn:
            raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which does not load here")

        return fail

    module = types.ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    module._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    module._check_cuda_version = lambda: None  # type: ignore[attr-defined]
    module.fail_if_no_align = fail_if_no_align  # type: ignore[attr-defined]
    return module
