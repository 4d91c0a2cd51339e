#!/usr/bin/env python3
"""Writes deploy/requirements.txt: what the server image installs, every version pinned and every file by its SHA-256.

    python3 deploy/lock.py            after a change of pyproject.toml or constraints.txt
    python3 deploy/lock.py --check    only checks whether the lock still fits both (asks no index)
    python3 deploy/lock.py --torch    writes deploy/requirements-torch.txt, for this machine's Python and processor

Standard library and pip (23.1 or newer, `--pip` names another Python's) only. Files are those that pip's configured
index offers for CPython 3.11 to 3.13 on Linux, x86_64 and aarch64.

torch is locked on its own, because which build is wanted depends on the machine: the one for CPUs is on PyTorch's own
index alone, the one on PyPI needs some gigabytes of CUDA libraries. `--torch` locks whichever the configured index
gives, with all that it needs beyond requirements.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOCK = HERE / "requirements.txt"
TORCH_LOCK = HERE / "requirements-torch.txt"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = ("server", "redis", "otel")
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBCS = (
    *("manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17"),
    *("manylinux2014", "manylinux_2_12", "manylinux2010", "manylinux_2_5", "manylinux1", "linux"),
)
ON_TORCH = {"torch", "silero-vad"}  # what must be asked for without its requirements, or torch comes along
NOT_LOCKED = re.compile(r"(torch|triton|cuda-.*|nvidia-.*)$")
Lock = dict[str, tuple[str, set[str]]]  # name → version, SHA-256 of its files


def normal(name: str) -> str:
    """A project's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return normal(found.group())


def requirements() -> list[str]:
    """The server's direct requirements, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found: list[str] = []
    waiting = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    while waiting:
        line = waiting.pop(0)
        if own := re.match(r"kibun\[([^\]]+)\]", line):
            waiting += [inner for extra in own.group(1).split(",") for inner in extras[extra.strip()]]
        elif line not in found:
            found.append(line)
    return found


def read_lock(path: Path) -> Lock:
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: Lock = {}
    for line in lines:
        pin = re.match(r"([a-z0-9-]+)==(\S+)", line)
        assert pin is not None, f"{path}: not pinned: {line!r}"
        found[pin.group(1)] = pin.group(2), set(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    return found


def constraints() -> dict[str, str]:
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in pairs}


def problems(lock: Lock) -> list[str]:
    """Where the lock does not fit pyproject.toml and constraints.txt."""
    wanted = {name_of(line) for line in requirements()} - {"torch"}
    found = [f"{name} is not in it" for name in sorted(wanted - lock.keys())]
    for name, version in constraints().items():
        if name in lock and lock[name][0] != version:
            found.append(f"{name}=={lock[name][0]}, but constraints.txt has {version}")
    return found + [f"{name} has no hash" for name, (_, hashes) in lock.items() if not hashes]


# ---- asking pip


def resolve(python: str, lines: list[str], *options: str) -> list[dict[str, Any]]:
    """What pip would install for these requirements: items of its installation report."""
    with tempfile.TemporaryDirectory() as folder:
        report, wanted = Path(folder) / "report.json", Path(folder) / "wanted.txt"
        wanted.write_text("\n".join(lines))
        command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "-c", str(CONSTRAINTS)]
        command += [*options, "--report", str(report), "-r", str(wanted)]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            sys.exit(f"lock.py: pip found no solution ({' '.join(options) or 'this machine'}); see its output above")
        items: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return items


def target(version: str, machine: str) -> list[str]:
    """pip's options for another Python and processor."""
    options = ["--python-version", version, "--implementation", "cp", "--target", "unused"]
    return options + [word for glibc in GLIBCS for word in ("--platform", f"{glibc}_{machine}")]


def add(lock: Lock, items: list[dict[str, Any]]) -> None:
    for item in items:
        name, version = normal(item["metadata"]["name"]), item["metadata"]["version"]
        known, hashes = lock.setdefault(name, (version, set()))
        if known != version:
            sys.exit(f"lock.py: {name} is {known} for one Python and {version} for another: pin it in constraints.txt")
        hashes.add(sha256_of(item["download_info"]))


def sha256_of(download: dict[str, Any]) -> str:
    stated = download["archive_info"].get("hashes", {}).get("sha256")
    if stated is None:  # a file on this machine
        stated = hashlib.sha256(Path(unquote(urlparse(download["url"]).path)).read_bytes()).hexdigest()
    assert isinstance(stated, str)
    return stated


def all_but_torch(python: str) -> Lock:
    lock: Lock = {}
    on_torch = [line for line in requirements() if name_of(line) in ON_TORCH]
    plain = [line for line in requirements() if line not in on_torch]
    for version in PYTHONS:
        for machine in MACHINES:
            print(f"lock.py: CPython {version}, Linux {machine}", file=sys.stderr, flush=True)
            options = target(version, machine)
            items = resolve(python, on_torch, "--no-deps", *options)
            needed = [line for item in items for line in item["metadata"].get("requires_dist", [])]
            of_torch = [line for line in needed if "extra ==" not in line and not NOT_LOCKED.match(name_of(line))]
            add(lock, [item for item in items if not NOT_LOCKED.match(normal(item["metadata"]["name"]))])
            add(lock, resolve(python, plain + of_torch, *options))
    return lock


def torch_here(python: str) -> Lock:
    lock: Lock = {}
    known = read_lock(LOCK)
    add(lock, resolve(python, ["torch", *(f"{name}=={version}" for name, (version, _) in known.items())]))
    return {name: entry for name, entry in lock.items() if name not in known}


def write(path: Path, lock: Lock, header: str) -> None:
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    for name, (version, hashes) in sorted(lock.items()):
        lines += [" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{value}" for value in sorted(hashes))])]
    path.write_text("\n".join(lines) + "\n")
    print(f"lock.py: {path}: {len(lock)} packages", file=sys.stderr)


HEADER = f"""Made by deploy/lock.py from pyproject.toml (kibun[{",".join(EXTRAS)}]) and constraints.txt; do not edit.
Files for CPython {PYTHONS[0]} to {PYTHONS[-1]} on Linux, {" and ".join(MACHINES)}. Install with
    pip install --require-hashes --no-deps -r deploy/requirements.txt
torch is not in it: which build is wanted depends on the machine. `deploy/lock.py --torch` locks it."""
TORCH_HEADER = """Made by deploy/lock.py --torch for one kind of machine; do not edit. torch and what it needs beyond
deploy/requirements.txt. Install with
    pip install --require-hashes --no-deps -r deploy/requirements-torch.txt"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--pip", default=sys.executable, metavar="PYTHON", help="the Python whose pip is asked")
    arguments = parser.parse_args()
    if arguments.check:
        found = problems(read_lock(LOCK))
        print("\n".join(f"lock.py: {line}" for line in found), file=sys.stderr, end="\n" if found else "")
        return 1 if found else 0
    if arguments.torch:
        write(TORCH_LOCK, torch_here(arguments.pip), TORCH_HEADER)
    else:
        write(LOCK, all_but_torch(arguments.pip), HEADER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
