"""What is installed of kibun, and the command that installs more of it. Imports nothing but the standard library."""

import json
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

EXTRA_OF = {
    "typer": "cli",
    "rich": "cli",
    "soundfile": "cli",
    "sounddevice": "mic",
    "starlette": "console",
    "uvicorn": "console",
    "websockets": "console",
    "pandas": "analyze",
    "pyarrow": "analyze",
    "pympi": "analyze",
    "grpc_reflection": "server",
    "prometheus_client": "server",
    "redis": "redis",
    "safetensors": "server",
    "soxr": "cli",
    "torch": "server",
    "transformers": "server",
    "webrtcvad": "server",
    "onnxruntime": "server",
    "silero_vad": "server",
    "accelerate": "train",
    "jiwer": "train",
    "matplotlib": "train",
    "scipy": "train",
    "statsmodels": "train",
    "tensorboard": "tensorboard",
}
"""Import name -> the extra that installs it, for packages that are imported only while a command runs."""

_INCLUDES = {
    "mic": ("cli",),
    "console": ("cli",),
    "analyze": ("cli",),
    "server": ("cli",),
    "train": ("server", "cli"),
    "tensorboard": ("train", "server", "cli"),
}


def is_installed(extra: str) -> bool:
    """Whether all packages of an extra are there; none is imported."""
    extras = (extra, *_INCLUDES.get(extra, ()))
    return all(is_there(name) for name, needed in EXTRA_OF.items() if needed in extras)


def install_command(extra: str) -> str:
    """The command for a shell that adds an extra to this installation: in the clone that it was made from, or by name.

    What is installed already satisfies the name, so that its extras can be had without an index that knows kibun.
    """
    pip = "pip" if _pip_is_ours() else f"{shlex.quote(sys.executable)} -m pip"
    clone, editable = _clone()
    if clone is None:
        return f"{pip} install 'kibun[{extra}]'"
    there = "" if clone == Path.cwd() else f"cd {shlex.quote(str(clone))} && "
    return f"{there}{pip} install -c constraints.txt {'-e ' if editable else ''}'.[{extra}]'"


def is_there(name: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # of an import that something blocks
        return False


def _pip_is_ours() -> bool:
    """Whether `pip` in a shell installs for this Python."""
    pip = shutil.which("pip")
    return pip is not None and Path(pip).parent == Path(sys.executable).parent


def _clone() -> tuple[Path | None, bool]:
    """The clone that kibun was installed from or runs in, and whether its sources themselves are what runs."""
    here = Path(__file__).resolve().parents[3]
    if _is_clone(here):
        return here, True
    try:
        origin = json.loads(distribution("kibun").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None, False
    address = urlsplit(origin.get("url", ""))
    folder = Path(unquote(address.path))
    return (folder, False) if address.scheme == "file" and _is_clone(folder) else (None, False)


def _is_clone(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "constraints.txt").is_file()
