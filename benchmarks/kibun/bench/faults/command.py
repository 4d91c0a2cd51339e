"""`kibun bench faults`: clients speak while workers, servers, networks and stores fail; nothing may be lost.

Each run is a pure function of its seed (`faults_plan`). It is done twice, with and without its faults (`faults_run`),
and what clients saw is read for broken promises (`faults_checker`).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kibun.bench.faults import plan as faults_plan
from kibun.bench.faults.checker import PROMISES
from kibun.bench.faults.plan import FaultPlan
from kibun.bench.faults.run import Outcome, Run, UndisturbedRunFailed
from kibun.bench.faults.servers import Processes, RestartableServer, StartFailed, has_redis_server
from kibun.bench.support import machine
from kibun.training.evaluation.report_table import Cell, Row, Table

COUNTED = (*PROMISES, "places_not_freed", "servers_ended")
MAX_VIOLATIONS = 100  # in the report, of all runs; all are counted
MAX_REPORTED = 10  # of one run, while it goes on
MAX_FAILED = 3  # runs that could not be done at all, when none could
AT_ONCE = 2


@dataclass(frozen=True)
class Options:
    """`only`: name of a scenario. `redis`: URL of a Redis to use; None: one is started where the program is there.
    `at_once`: runs side by side.
    """

    seed: int
    runs: int
    quick: bool = False
    only: str | None = None
    redis: str | None = None
    at_once: int = AT_ONCE


@dataclass
class Findings:
    """Of all runs so far."""

    options: Options
    left_out: dict[str, str]  # scenario, why
    outcomes: list[Outcome] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # runs that could not be done, and why
    servers_started: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every promise was kept in every run."""
        return not self.failed and not any(outcome.violations for outcome in self.outcomes)


def missing(options: Options) -> dict[str, str]:
    """Scenarios that cannot be done here, and why."""
    from kibun.server.main import serve

    if "store" not in inspect.signature(serve).parameters:
        why = "this server keeps conversations in its own memory only"
    elif options.redis is None and not has_redis_server():
        why = "no redis-server is installed here; install one, or give --redis URL"
    else:
        own = [scenario for scenario in faults_plan.SCENARIOS if scenario.ends_redis]
        why = "the Redis of --redis is not ours to kill"
        return {scenario.name: why for scenario in own} if options.redis is not None else {}
    return {scenario.name: why for scenario in faults_plan.SCENARIOS if scenario.store == "redis"}


def measure(options: Options) -> Findings:
    """Runs them all; what was found until Ctrl-C or SIGTERM where one came."""
    return asyncio.run(_measure(options))


async def _measure(options: Options) -> Findings:
    findings = Findings(options, missing(options))
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began = time.monotonic()
    with Processes() as processes:
        try:
            calm = RestartableServer(processes, "calm")
            await calm.start()
            await _all(options, findings, processes, calm)
        except asyncio.CancelledError:
            findings.interrupted = True
            task.uncancel()
        findings.servers_started = processes.servers_started
    findings.seconds = time.monotonic() - began
    return findings


async def _all(options: Options, findings: Findings, processes: Processes, calm: RestartableServer) -> None:
    """Several runs at a time: much of one is waiting for people to speak. Gives up where none can be done."""
    speech = faults_plan.pieces()
    left = iter(plans(options, findings.left_out))

    async def work() -> None:
        for plan in left:
            if len(findings.failed) >= MAX_FAILED and not findings.outcomes:
                return
            run = Run(plan, processes, speech, calm, options.redis, nonce=f"-{uuid.uuid4().hex[:8]}")
            await _one(run, plan, findings)

    async with asyncio.TaskGroup() as group:
        for _ in range(options.at_once):
            group.create_task(work())


def plans(options: Options, left_out: dict[str, str]) -> list[FaultPlan]:
    """Seed after seed, through the scenarios that can be done in turn."""
    order = [scenario for scenario in faults_plan.order() if scenario.name not in left_out]
    only = faults_plan.scenario_named(options.only) if options.only else None
    seeds = range(options.seed, options.seed + options.runs)
    return [faults_plan.make(seed, only or order[seed % len(order)], quick=options.quick) for seed in seeds]


async def _one(run: Run, plan: FaultPlan, findings: Findings) -> None:
    try:
        outcome = await run.run()
    except (StartFailed, UndisturbedRunFailed, OSError, TimeoutError) as error:
        findings.failed.append(f"seed {plan.seed}, {plan.scenario}: {error!r}")
        _report(findings.failed[-1])
        return
    findings.outcomes.append(outcome)
    summary = f"{outcome.turns} turns, {outcome.finals} finals, {outcome.reconnects} resumed, {outcome.seconds:.1f} s"
    _report(f"run {len(findings.outcomes)} of {findings.options.runs}, seed {plan.seed}, {plan.scenario}: {summary}")
    for line in outcome.server_errors[:3]:
        _report(f"  in a server's log: {line}")
    if outcome.violations:
        for violation in outcome.violations[:MAX_REPORTED]:
            _report(f"  BROKEN {violation.kind} ({violation.amount}), {violation.where}: {violation.text}"[:1000])
        if len(outcome.violations) > MAX_REPORTED:  # what one lost final does to all later estimates
            _report(f"  and {len(outcome.violations) - MAX_REPORTED} more")
        _report(f"  again: {reproduce(plan, findings.options)}")
        _report(f"  plan: {json.dumps(asdict(plan))}")


def reproduce(plan: FaultPlan, options: Options) -> str:
    """The command that does this run again."""
    quick = " --quick" if options.quick else ""
    return f"kibun bench faults --seed {plan.seed} --runs 1 --only {plan.scenario}{quick}"


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- report


def payload(findings: Findings) -> dict[str, Any]:
    """The object that --json prints."""
    outcomes, options = findings.outcomes, findings.options
    broken = [(outcome, violation) for outcome in outcomes for violation in outcome.violations]
    counts = Counter[str]()
    for _, violation in broken:
        counts[violation.kind] += violation.amount
    names = ("turns", "finals", "reconnects", "refusals", "turns_failed", "without_account", "conversations_lost")
    return {
        "runs": len(outcomes),
        **{kind: counts[kind] for kind in COUNTED},
        **{name: sum(getattr(outcome, name) for outcome in outcomes) for name in names},
        "resume_s": _percentiles([seconds for outcome in outcomes for seconds in outcome.resume_s]),
        "faults": dict(sum((outcome.faults for outcome in outcomes), Counter[str]())),
        "scenarios": dict(Counter(outcome.plan.scenario for outcome in outcomes)),
        "left_out": findings.left_out,
        "seeds": [options.seed, options.seed + options.runs - 1],
        "quick": options.quick,
        "interrupted": findings.interrupted,
        "runs_failed": findings.failed,
        "servers_started": findings.servers_started,
        "server_errors": sum(len(outcome.server_errors) for outcome in outcomes),
        "runs_with_state_compared": sum(outcome.state_compared for outcome in outcomes),
        "seconds": round(findings.seconds, 1),
        "violations": [
            {"again": reproduce(outcome.plan, options), **asdict(violation)}
            for outcome, violation in broken[:MAX_VIOLATIONS]
        ],
        "machine": machine.describe(),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(max(values), 3)}


def tables(findings: Findings) -> tuple[Table, ...]:
    """The same for people."""
    found = payload(findings)
    rows = [Row(kind.replace("_", " "), (Cell(found[kind]),)) for kind in COUNTED]
    notes = [f"{scenario} was left out: {why}" for scenario, why in findings.left_out.items()]
    notes += [f"not done: {failed}" for failed in findings.failed]
    notes += [f"again: {violation['again']}" for violation in found["violations"][:10]]
    if findings.interrupted:
        notes.append(f"interrupted after {found['runs']} of {findings.options.runs} runs")
    return (
        Table("Promises broken", ("promise", "times"), tuple(rows), tuple(notes)),
        Table(
            f"{found['runs']} runs",
            ("scenario", "runs", "turns", "finals", "resumed", "mean seconds"),
            tuple(_scenario_rows(findings.outcomes)),
            tuple(f"{kind}: {count}" for kind, count in sorted(found["faults"].items())),
            digits=1,
        ),
    )


def _scenario_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    rows = []
    for name in sorted({outcome.plan.scenario for outcome in outcomes}):
        same = [outcome for outcome in outcomes if outcome.plan.scenario == name]
        counts = (sum(getattr(one, what) for one in same) for what in ("turns", "finals", "reconnects"))
        mean_s = sum(one.seconds for one in same) / len(same)
        rows.append(Row(name, (Cell(len(same)), *map(Cell, counts), Cell(mean_s))))
    return rows


def names() -> list[str]:
    """Of all scenarios."""
    return [scenario.name for scenario in faults_plan.SCENARIOS]
