#!/usr/bin/env python3
"""The commands of this project, from a bare Python >= 3.11 (standard library only).

python3 dev.py demo [options of `kibun demo`]   watch a spoken dialogue being analysed
python3 dev.py test                             all that a change must pass: ruff, mypy --strict, pytest on each core
python3 dev.py test [options of pytest]         the same, with these options for pytest: `-n 2`, `--durations 20`
python3 dev.py test PATH... | -k EXPRESSION     pytest alone, on a part: a path is quickest, as -k must import all tests
python3 dev.py test --slow                      the long tests, which the others leave out
python3 dev.py format                           ruff format, and what ruff can fix

All make `.venv` beside this file and install kibun into it, once per change of pyproject.toml or constraints.txt.
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


def log(text: str) -> None:
    """Prints progress to stderr: stdout belongs to the command (`demo --json`)."""
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def make_venv() -> None:
    if PYTHON.exists():
        return
    log(f"making {VENV}")
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
    log(f"installing kibun[{extra}] (about a minute the first time, more where PyTorch must be downloaded)")
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{extra}]"]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit("dev.py: installation failed; see the error above. Then run the same command again.")
    stamp.write_text(wanted)


def run(*command: str | Path) -> int:
    # Bytecode is kept even where the environment disables it: the tests start hundreds of processes, and each
    # would compile all of kibun again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def run_tools(*tools: list[str]) -> int:
    """Runs one Python module after the other until one fails. Returns its exit code, or 0."""
    for tool in tools:
        log(" ".join(tool))
        if code := run(PYTHON, "-m", *tool):
            log(f"{tool[0]} failed")
            return code
    return 0


def demo(options: list[str]) -> int:
    install("server")
    return run(PYTHON, "-m", "kibun.client.main", "demo", *options)


def test(options: list[str]) -> int:
    install("dev")
    part = any(selects(option) for option in options)
    if not options:
        options = ["-n", str(min(4, os.cpu_count() or 1))]
    if "-n" in options and "--dist" not in options:
        options = [*options, "--dist", "worksteal"]  # neighbours stay together, and so share their module's server
    if "--slow" in options:
        options = ["-m", "slow", "--timeout=3600", *(o for o in options if o != "--slow")]
    if part:
        return run_tools(["pytest", *options])
    return run_tools(["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["pytest", *options])


def selects(option: str) -> bool:
    """Whether an option of pytest selects a part of the tests: by path, by name, or what failed last."""
    return option.startswith("-k") or option in ("--lf", "--last-failed") or (ROOT / option.split("::")[0]).exists()


def format_code(options: list[str]) -> int:
    install("dev")
    return run_tools(["ruff", "check", "--fix", *options], ["ruff", "format", *options])


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (this may well be started with an older one)
        sys.exit(f"dev.py: kibun needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    commands = {"demo": demo, "test": test, "format": format_code}
    if not arguments or arguments[0] not in commands:
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
