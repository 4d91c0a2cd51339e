"""Fuzzes every target for a while, one after the other on one core, and says what that amounted to.

    .venv/bin/python -m tests.fuzz.run --minutes 60 [--json] [--corpus FOLDER] [TARGET…]

Needs the extra `fuzz`. What breaks a promise is kept in tests/fuzz/regressions/TARGET, and the exit code is 1; fix the
cause, and leave the file there: the default tests run it from then on.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = tuple(sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")))


@dataclass
class FuzzOutcome:
    """`edges`: branches of kibun.server that the inputs reached, as libFuzzer counts them."""

    target: str
    seconds: int
    executions: int
    edges: int
    findings: list[str]


def run(target: str, seconds: int, corpus: Path) -> FuzzOutcome:
    """Raises RuntimeError where the target did not run at all."""
    kept = HERE / "regressions" / target
    folder = corpus / target
    for path in (kept, folder):
        path.mkdir(parents=True, exist_ok=True)
    before = set(kept.iterdir())
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=30", "-print_final_stats=1"]
    command = [sys.executable, "-m", f"tests.fuzz.fuzz_{target}", *options, f"-artifact_prefix={kept}/", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=HERE.parents[1])
    findings = sorted(str(path) for path in set(kept.iterdir()) - before)
    executions = re.findall(r"number_of_executed_units: *(\d+)", done.stderr)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    if done.returncode and not findings:
        raise RuntimeError(f"{target} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if findings:
        print(done.stdout[-3000:], file=sys.stderr)
    return FuzzOutcome(target, seconds, int(executions[-1]), int(edges[-1]), findings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together (default 5)")
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus", help="kept between runs (default: beside this)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    targets = arguments.targets or TARGETS
    if unknown := [t for t in targets if t not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    seconds = max(round(arguments.minutes * 60 / len(targets)), 1)
    outcomes = [run(target, seconds, arguments.corpus) for target in targets]
    if arguments.json:
        print(json.dumps({"hours": seconds * len(targets) / 3600, "targets": [asdict(o) for o in outcomes]}))
    else:
        for o in outcomes:
            print(f"{o.target:>10}: {o.executions:,} executions in {o.seconds} s, {o.edges} edges", *o.findings)
    return 1 if any(o.findings for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
