#!/usr/bin/env python3
"""The two commands of this project, from a bare Python >= 3.11 (standard library only).

python3 dev.py demo [options of `kibun demo`]    watch a spoken dialogue being analysed
python3 dev.py test [--slow] [options of pytest]  ruff, mypy --strict, pytest

Both make `.venv` beside this file and install kibun into it, once per change of pyproject.toml or
constraints.txt.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to the command (`demo --json`)."""
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def make_venv() -> None:
    if PYTHON.exists():
        return
    say(f"making {VENV}")
    try:
        venv.create(VENV, with_pip=True)
    except subprocess.CalledProcessError:
        sys.exit("dev.py: this Python cannot make virtual environments; on Debian: apt install python3-venv")


def install(extra: str) -> None:
    """Installs `kibun[extra]` in editable form unless exactly this was installed before."""
    make_venv()
    stamp = VENV / f".installed-{extra}"
    wanted = hashlib.sha256(
        b"\0".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    ).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"installing kibun[{extra}] (about a minute the first time, more where PyTorch must be downloaded)")
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{extra}]"]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit("dev.py: installation failed; the lines above say why. Once mended, run the same command again.")
    stamp.write_text(wanted)


def run(*command: str | Path) -> int:
    return subprocess.run(command, cwd=ROOT).returncode


def demo(options: list[str]) -> int:
    install("server")
    return run(PYTHON, "-m", "kibun.client.main", "demo", *options)


def test(options: list[str]) -> int:
    install("dev")
    if not options:
        # The whole suite, a file at a time on each core; with options, one process, so that a debugger works.
        options = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    if "--slow" in options:
        options = ["-m", "slow", "--timeout=3600", *(o for o in options if o != "--slow")]
    for tool in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["pytest", *options]):
        say(" ".join(tool))
        if code := run(PYTHON, "-m", *tool):
            say(f"{tool[0]} failed")
            return code
    return 0


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever starts this may well have an older one)
        sys.exit(f"dev.py: kibun needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    commands = {"demo": demo, "test": test}
    if not arguments or arguments[0] not in commands:
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
