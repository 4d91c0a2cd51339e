"""Writes a bill of materials (CycloneDX 1.6, JSON) of an environment with kibun in it, and compares it with the lock.

    pip install -c constraints.txt cyclonedx-bom
    python3 -m deploy.sbom [--python /opt/kibun/bin/python] [--out sbom.json] [--strict]

cyclonedx-bom lists and validates; this adds each file's SHA-256 from deploy/requirements.txt, leaves out paths of this
machine, and reports which packages differ from the lock or declare no licence. `--strict` makes a difference an error.
For known weaknesses of what is listed: `pip-audit --strict --require-hashes --disable-pip -r deploy/requirements.txt`;
without `--strict` it skips packages that it cannot look up and still reports success.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploy.lock import LOCK, ROOT, Lock, normal, read_lock


def list_environment(python: str) -> dict[str, Any]:
    """The valid bill of materials of a Python's environment."""
    if find_spec("cyclonedx_py") is None:
        sys.exit("sbom.py: needs cyclonedx-bom: pip install -c constraints.txt cyclonedx-bom")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sbom.json"
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--validate"]
        command += ["--pyproject", str(ROOT / "pyproject.toml"), "--sv", "1.6", "--of", "JSON", "-o", str(file), python]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            sys.exit("sbom.py: cyclonedx-py failed; see its output above")
        bill: dict[str, Any] = json.loads(file.read_text())
        return bill


def complete(bill: dict[str, Any], lock: Lock) -> list[str]:
    """Adds hashes where the version is the locked one; returns what differs from the lock."""
    differs = []
    for component in bill["components"]:
        references = component.get("externalReferences", [])
        component["externalReferences"] = [r for r in references if not r["url"].startswith("file:")]
        name, version = normal(component["name"]), component["version"]
        if name not in lock:
            if name not in ("torch", "pip"):
                differs.append(f"{name} {version} is not in the lock")
        elif lock[name][0] != version:
            differs.append(f"{name} is {version}, the lock has {lock[name][0]}")
        elif len(lock[name][1]) == 1:  # one file for every machine: it is this one
            component["hashes"] = [{"alg": "SHA-256", "content": next(iter(lock[name][1]))}]
    installed = {normal(c["name"]) for c in bill["components"]}
    return differs + [f"{name} is in the lock and not installed" for name in sorted(lock.keys() - installed)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of the environment to list (default: this one)")
    parser.add_argument("--out", type=Path, default=Path("sbom.json"))
    parser.add_argument("--strict", action="store_true", help="exit 1 where anything differs from the lock")
    arguments = parser.parse_args()
    bill = list_environment(arguments.python)
    differs = complete(bill, read_lock(LOCK))
    arguments.out.write_text(json.dumps(bill, indent=2) + "\n")
    torch = next((c["version"] for c in bill["components"] if c["name"] == "torch"), "none")
    unlicensed = [c["name"] for c in bill["components"] if not c.get("licenses")]
    print(f"{arguments.out}: {len(bill['components'])} packages, torch {torch}")
    print(f"no licence declared: {', '.join(unlicensed) or 'by none'}")
    for line in differs:
        print(f"not as locked: {line}")
    return 1 if arguments.strict and differs else 0


if __name__ == "__main__":
    sys.exit(main())
