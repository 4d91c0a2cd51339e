"""How many live streams and finals one front carries before its event loop saturates, and what two fronts add.

Measured is kibun's own server with a stub for a model that answers at once, so that nothing but the front, the way to
the worker and the clients can be the limit. Clients are separate processes. Directly: streams are added until the event
loop is late, with the front alone on a core. Counted: its CPU per stream and per final, which neither the clients nor
the number of cores change. Linux only (/proc).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kibun.bench.load import capacity_clients, capacity_server, soak_clients
from kibun.bench.load.front_servers import STUB_LOADER
from kibun.bench.load.soak import write_tokens
from kibun.bench.load.soak_clients import OPENING_S, SPOKEN
from kibun.bench.support import machine
from kibun.bench.support.child import Child, children, cpu_seconds
from kibun.bench.support.report import Report
from kibun.client.server_process import ServerProcess
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAG_MS = 50.0  # p99 of the event loop's lateness from which a front counts as saturated
MOST_STREAMS = 4096
RAMP_S = 2.0  # in which the streams of a crowd open
CONNECTIONS = 16
UTTERANCES_S = (1.0, 4.0)
COMPARED_S = 2.0  # of one front and two
SPREAD = 64  # connections whose fronts are counted
REDIS_S = 10.0


@dataclass(frozen=True)
class Crowd:
    """So many people who talk and pause in turn, at one front. Milliseconds, but core_share."""

    streams: int
    core_share: float  # cores that the front's process takes, of one
    lag_p50: float  # of the event loop
    lag_p99: float
    final_p50: float  # from when the end of an utterance could be known
    final_p99: float
    clients_late_p99: float  # the clients' own fault
    finals: int
    lost: int
    failures: dict[str, int]  # streams, by reason

    @property
    def carried(self) -> bool:
        """Whether the front still had time for it."""
        return self.lag_p99 <= LAG_MS and not self.lost and not self.failures


@dataclass(frozen=True)
class Rate:
    """Utterances of one length, pushed as fast as they are answered. CPU in milliseconds per final."""

    fronts: int
    utterance_s: float
    finals_per_s: float
    front_ms: float
    worker_ms: float
    client_ms: float
    store_ms: float
    front_cores: tuple[float, ...]  # that each front took


class CapacityError(Exception):
    """The measurement itself went wrong."""


def measure(*, quick: bool, redis: str | None = None) -> Report:
    """redis: URL of one for the comparison of one and two fronts; default: start one, if there is a redis-server."""
    levels = _levels(quick=quick)
    seconds = 3.0 if quick else 6.0
    rates = _rates(seconds)
    compared: list[list[Rate]] = []
    spread: dict[str, int] = {}
    left_out = ""
    if redis is None and shutil.which("redis-server") is None:
        left_out = "one and two fronts were not compared: they need --redis URL, or redis-server"
    else:
        with _store(redis) as (url, pid):
            compared, spread = _compare(url, pid, seconds, rounds=2 if quick else 4)
    return make_report(levels, rates, compared, spread, left_out)


# ---- live streams


def _levels(*, quick: bool) -> list[Crowd]:
    """More and more streams, until the front is saturated."""
    turn_s = sum(seconds for _, seconds in SPOKEN) * (2 if quick else 4)
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokens(Path(folder))
        with (
            Child(soak_clients.__name__) as clients,
            Child(capacity_server.__name__, str(tokens), str(MOST_STREAMS)) as server,
        ):
            target = server.ask("target")["target"]
            if not clients.ask("learn", target=target, turn_s=turn_s)["as_segmented"]:
                raise CapacityError("a turn alone is not answered as it is segmented")
            front, *others = _cores()
            pin(server.pid, [front])
            for pid in (clients.pid, *children(server.pid)):
                pin(pid, others or [front])
            levels = [_level(clients, server, target, 20 if quick else 30, turn_s)]
            expected = levels[0].streams / levels[0].core_share
            for share in (0.7, 1.2) if quick else (0.4, 0.6, 0.8, 1.0, 1.2):
                levels.append(_level(clients, server, target, round(share * expected), turn_s))
                if not levels[-1].carried:
                    break
    return levels


def _level(clients: Child, server: Child, target: str, streams: int, turn_s: float) -> Crowd:
    """One turn of each; the front is watched while all of them are open."""

    def watch() -> tuple[float, list[float]]:
        time.sleep(OPENING_S + RAMP_S)
        server.ask("lag")
        cpu, begin = cpu_seconds(server.pid), time.perf_counter()
        time.sleep(turn_s - RAMP_S)
        cores = (cpu_seconds(server.pid) - cpu) / (time.perf_counter() - begin)
        return cores, server.ask("lag")["ms"]

    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch)
        tally = clients.ask("once", target=target, streams=streams, ramp_s=RAMP_S)
        cores, lag_ms = watching.result()
    (lag_p50, lag_p99), (final_p50, final_p99), (_, late) = (
        np.percentile(values or [0.0], (50, 99)).tolist() for values in (lag_ms, tally["final_ms"], tally["late_ms"])
    )
    heard = (tally["finals"], tally["lost"], tally["failures"])
    return Crowd(streams, cores, lag_p50, lag_p99, final_p50, final_p99, late, *heard)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, cores: Sequence[int]) -> None:
    """All threads of a process, and those that they start, to these cores. Linux only."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(task.name), cores)


# ---- finals


def _rates(seconds: float) -> list[Rate]:
    """Of one front that has a core of its own."""
    with (
        Child(capacity_clients.__name__) as clients,
        ServerProcess("stub", ["--loader", STUB_LOADER, "--max-streams", str(MOST_STREAMS)]) as server,
    ):
        front, *others = _cores()
        pin(server.pid, [front])
        for pid in (clients.pid, *children(server.pid)):
            pin(pid, others or [front])
        return [_rate(clients, server, 1, utterance_s, seconds) for utterance_s in UTTERANCES_S]


def _rate(
    clients: Child, server: ServerProcess, fronts: int, utterance_s: float, seconds: float, store: int | None = None
) -> Rate:
    """store: the process id of the server's Redis, if it is ours."""
    own = [server.pid] if fronts == 1 else children(server.pid)
    workers = [worker for front in own for worker in children(front)]
    pids = [*own, *workers, *([] if store is None else [store])]
    found = clients.ask(
        "push",
        target=server.target,
        connections=CONNECTIONS,
        utterance_s=utterance_s,
        seconds=seconds,
        pids=pids,
    )
    finals: int = found["finals"]
    cpu: dict[int, float] = {int(pid): cpu_s for pid, cpu_s in found["cpu_s"].items()}
    if not finals:
        raise CapacityError("no final came within the window")

    def per_final(which: Sequence[int]) -> float:
        return 1000 * sum(cpu[pid] for pid in which) / finals

    return Rate(
        fronts,
        utterance_s,
        finals / found["seconds"],
        per_final(own),
        per_final(workers),
        1000 * found["client_cpu_s"] / finals,
        per_final(pids[len(own) + len(workers) :]),
        tuple(cpu[pid] / found["seconds"] for pid in own),
    )


# ---- one front against two


def _compare(url: str, store: int | None, seconds: float, rounds: int) -> tuple[list[list[Rate]], dict[str, int]]:
    """The rates of one front and of two, in turn, both with Redis; and the connections that each of two fronts got."""
    options = ["--loader", STUB_LOADER, "--max-streams", str(MOST_STREAMS), "--store", url]
    with (
        Child(capacity_clients.__name__) as clients,
        ServerProcess("stub", options) as one,
        ServerProcess("stub", [*options, "--fronts", "2", "--metrics-port", "0"]) as two,
    ):
        found = re.search(r"metrics on (\S+)", two.stderr)
        if found is None:
            raise CapacityError(f"no metrics: {two.stderr}")
        spread = clients.ask("spread", target=two.target, connections=SPREAD, metrics=found[1])
        servers = ((one, 1), (two, 2))
        compared = [
            [_rate(clients, server, fronts, COMPARED_S, seconds, store) for server, fronts in servers]
            for _ in range(rounds)
        ]
    return compared, spread


@contextmanager
def _store(url: str | None) -> Iterator[tuple[str, int | None]]:
    """The Redis at `url`, or one of our own and its process id."""
    if url is not None:
        yield url, None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + REDIS_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CapacityError("redis-server did not start")
                time.sleep(0.02)
            yield f"unix://{path}", process.pid
        finally:
            process.kill()
            process.wait()


# ---- report


def make_report(
    levels: Sequence[Crowd],
    rates: Sequence[Rate],
    compared: Sequence[Sequence[Rate]],
    spread: dict[str, int],
    left_out: str = "",
) -> Report:
    """levels: by rising number of streams; left_out: why there is no comparison."""
    carried = [level.streams for level in levels if level.carried]
    calm = levels[min(1, len(levels) - 1)]
    payload = {
        "machine": machine.describe(),
        "streams_carried": max(carried, default=0),
        "saturated": not levels[-1].carried,
        "core_share_per_stream": calm.core_share / calm.streams,
        "streams_per_core": round(calm.streams / calm.core_share),
        "levels": [{**asdict(level), "carried": level.carried} for level in levels],
        "finals": [asdict(rate) for rate in rates],
        "fronts": {
            "rounds": [[asdict(rate) for rate in pair] for pair in compared],
            "ratio": _ratio(compared),
            "cpu_ratio": _cpu_ratio(compared),
            "connections": spread,
            "left_out": left_out,
        },
    }
    tables = [_level_table(levels), _rate_table(rates)]
    if compared:
        tables.append(_compared_table(compared, spread))
    return Report(payload, tuple(tables), lambda: draw(levels))


def _ratio(compared: Sequence[Sequence[Rate]]) -> float | None:
    """Finals per second of two fronts over those of one, the median of the rounds."""
    if not compared:
        return None
    return float(np.median([two.finals_per_s / one.finals_per_s for one, two in compared]))


def _cpu_ratio(compared: Sequence[Sequence[Rate]]) -> float | None:
    """The same of the front's CPU per final: 1 where another front costs nothing but itself."""
    if not compared:
        return None
    return float(np.median([two.front_ms / one.front_ms for one, two in compared]))


def _level_table(levels: Sequence[Crowd]) -> Table:
    rows = []
    for level in levels:
        share = 100 * level.core_share / level.streams
        lags = (level.lag_p50, level.lag_p99, level.final_p50, level.final_p99, level.clients_late_p99)
        told = "yes" if level.carried else "no"
        cells = (level.core_share, share, *lags, level.finals, level.lost, told)
        rows.append(Row(f"{level.streams} streams", tuple(Cell(cell) for cell in cells)))
    calm = levels[min(1, len(levels) - 1)]
    notes = (
        "one front, alone on a core where there are two; in real time, LINEAR16 at 16 kHz in messages of 100 ms, a"
        f" connection each, {100 * SPOKEN[1][1] / sum(s for _, s in SPOKEN):.0f} % speech; a stub for the model",
        f"carried: the event loop's lateness stays below {LAG_MS:g} ms in 99 of 100 samples, and no final is lost",
        f"counted from {calm.streams} streams: {calm.streams / calm.core_share:.0f} streams per core",
        "finals: from when the end of the utterance could be known",
        *(f"{level.streams} streams: {_told(level.failures)}" for level in levels if level.failures),
    )
    columns = ("", "cores", "% per stream", "loop late, p50", "p99", "final, ms, p50", "p99", "clients late, p99")
    return Table("Live streams of one front", (*columns, "finals", "lost", "carried"), tuple(rows), notes)


def _told(failures: dict[str, int]) -> str:
    return ", ".join(f"{count} ended with {reason}" for reason, count in failures.items())


def _rate_table(rates: Sequence[Rate]) -> Table:
    rows = []
    for rate in rates:
        audio_s = rate.finals_per_s * rate.utterance_s
        figures = (rate.finals_per_s, audio_s, *rate.front_cores, rate.front_ms, rate.worker_ms, rate.client_ms)
        rows.append(Row(f"{rate.utterance_s:g} s each", tuple(map(Cell, figures))))
    notes = (
        f"as fast as they are answered, over {CONNECTIONS} connections of a stream each, in messages of 100 ms; the"
        " front has a core of its own where there are two, the worker and the clients share the others",
        "a core of a front gives 1000 / (front's CPU) finals per second, one of a worker 1000 / (worker's CPU)",
    )
    columns = (
        "utterances",
        "finals / s",
        "audio s / s",
        "front, cores",
        "front, ms CPU per final",
        "worker",
        "clients",
    )
    return Table("Finals of one front", columns, tuple(rows), notes)


def _compared_table(compared: Sequence[Sequence[Rate]], spread: dict[str, int]) -> Table:
    rows = []
    for number, pair in enumerate(compared, 1):
        for rate in pair:
            cores = ", ".join(f"{cores:.2f}" for cores in rate.front_cores)
            figures = (rate.finals_per_s, cores, rate.front_ms, rate.worker_ms, rate.client_ms, rate.store_ms)
            rows.append(Row(f"round {number}, --fronts {rate.fronts}", tuple(Cell(figure) for figure in figures)))
    notes = (
        f"utterances of {COMPARED_S:g} s, conversations in Redis; all processes share the machine's"
        f" {len(_cores())} cores: clients, workers and Redis take what the fronts then lack",
        f"finals per second, --fronts 2 over 1, the median of the rounds: {_ratio(compared):.2f}; the fronts' CPU per"
        f" final: {_cpu_ratio(compared):.2f}",
        f"of {sum(spread.values())} connections to two fronts, each got {' and '.join(map(str, spread.values()))}",
    )
    columns = ("", "finals / s", "cores of each front", "front, ms CPU per final", "worker", "clients", "Redis")
    return Table("One front and two", columns, tuple(rows), notes)


def draw(levels: Sequence[Crowd]) -> Figure:
    """The event loop's lateness and the front's CPU, against the number of streams."""
    from kibun.training.evaluation.plots import COLOURS, MARKERS, canvas, legend_beside

    drawn, axes = canvas((7.2, 4.8))
    streams = [level.streams for level in levels]
    look: Any = {"markersize": 8, "linewidth": 1.6}
    axes.plot(streams, [level.lag_p99 for level in levels], color=COLOURS[0], marker=MARKERS[0], label="p99", **look)
    axes.plot(streams, [level.lag_p50 for level in levels], color=COLOURS[1], marker=MARKERS[1], label="p50", **look)
    axes.axhline(LAG_MS, color="black", linestyle="--", linewidth=1.2, label=f"saturated: {LAG_MS:g} ms")
    for level in levels:
        axes.annotate(
            f"{level.core_share:.2f} cores",
            (level.streams, level.lag_p99),
            xytext=(4, 6),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set_yscale("log")
    axes.set(xlabel="live streams at one front", ylabel="how late its event loop is (ms)")
    axes.set_title("How many streams one front carries, and on how many cores", loc="left")
    legend_beside(axes)
    return drawn
