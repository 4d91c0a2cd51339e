"""What an open stream costs the server's own process; the model's process is not counted.

Measured is `kibun serve` with a stub for a model: receiving, decoding, resampling, voice activity detection,
segmentation, handing utterances to the worker, and answering. Clients stream in real time in messages of
100 ms, each over its own connection. A gRPC server with an empty handler is under the same load at the same time:
the least that receiving costs in Python. Linux only (/proc).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from kibun.bench.load import front_servers
from kibun.bench.load.front_clients import CHUNK_S
from kibun.bench.load.front_servers import SAMPLE_S, STUB_LOADER
from kibun.bench.load.generator import METHOD
from kibun.bench.support import machine
from kibun.bench.support.child import Child, cpu_seconds
from kibun.bench.support.report import Report
from kibun.bench.support.stub_model import VECTOR_SIZE
from kibun.client.server_process import ServerProcess
from kibun.models.types import SAMPLE_RATE_HZ, Utterance
from kibun.server.inference.backend import Job
from kibun.server.inference.worker_pool import LocalBackend
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES_HZ = (8_000, SAMPLE_RATE_HZ, 48_000)
BOUND = 0.009  # cores per stream while someone speaks
UTTERANCE_S = 10.0


@dataclass(frozen=True)
class Cost:
    """Of streams at one rate. Shares: cores per stream, that is CPU seconds per second and stream."""

    rate_hz: int
    core_share: float
    us_per_chunk: float
    empty_us_per_chunk: float
    ratio_to_empty: float
    finals: int
    client_late_p99_ms: float


@dataclass(frozen=True)
class Handover:
    """Of one utterance to the worker and its answer back; milliseconds, medians over rounds."""

    wall_ms: float
    server_cpu_ms: float
    worker_cpu_ms: float


def measure(*, quick: bool, streams: int | None = None, seconds: float | None = None) -> Report:
    """streams: to each of two servers at once; seconds: of each window."""
    streams = streams or (16 if quick else 30)
    seconds = seconds or (4.0 if quick else 15.0)
    with Child("kibun.bench.load.front_clients") as clients:
        with (
            ServerProcess("stub", ["--loader", STUB_LOADER]) as server,
            Child(front_servers.__name__, "empty") as empty,
        ):
            costs = [_cost(clients, server, empty, rate, streams, seconds) for rate in RATES_HZ]
        with Child(front_servers.__name__, "sampled") as sampled:
            lags = _lags(clients, sampled, streams, seconds)
    handover = asyncio.run(measure_handover(rounds=40 if quick else 200))
    return make_report(costs, lags, handover, streams, seconds)


def _cost(clients: Child, server: ServerProcess, empty: Child, rate_hz: int, streams: int, seconds: float) -> Cost:
    servers = {
        "kibun": {"target": server.target, "method": METHOD, "pid": server.pid},
        "empty": {"target": empty.ask("target")["target"], "method": front_servers.METHOD, "pid": empty.pid},
    }
    traffic = clients.ask("talk", servers=servers, rate_hz=rate_hz, streams=streams, seconds=seconds)
    share, empty_share = (traffic[name]["cpu_s"] / (streams * seconds) for name in ("kibun", "empty"))
    return Cost(
        rate_hz=rate_hz,
        core_share=share,
        us_per_chunk=1e6 * CHUNK_S * share,
        empty_us_per_chunk=1e6 * CHUNK_S * empty_share,
        ratio_to_empty=share / empty_share,
        finals=traffic["kibun"]["finals"],
        client_late_p99_ms=traffic["kibun"]["late_p99_ms"],
    )


# ---- the event loop


def _lags(clients: Child, sampled: Child, streams: int, seconds: float) -> dict[str, dict[str, float]]:
    """Lateness of the server's event loop, idle and under all streams at 16 kHz; milliseconds."""
    target = sampled.ask("target")["target"]
    sampled.ask("lag")  # those of starting up
    time.sleep(min(seconds, 3.0))
    idle = sampled.ask("lag")["ms"]
    servers = {"kibun": {"target": target, "method": METHOD, "pid": sampled.pid}}
    clients.ask("talk", servers=servers, rate_hz=SAMPLE_RATE_HZ, streams=2 * streams, seconds=seconds)
    loaded = sampled.ask("lag")["ms"]
    return {"idle": _percentiles(idle), "loaded": _percentiles(loaded)}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 99)} | {"max": max(values)}


# ---- handing over


async def measure_handover(rounds: int) -> Handover:
    """An utterance of ten seconds to a worker and back."""
    backend = LocalBackend(["stub"], loader=STUB_LOADER)
    audio = np.random.default_rng(0).normal(0, 0.1, round(UTTERANCE_S * SAMPLE_RATE_HZ)).astype(np.float32)
    job = Job("stub", Utterance(audio, np.zeros((8, VECTOR_SIZE), np.float16)))
    wall: list[float] = []
    own: list[float] = []
    try:
        await backend.start()
        (pid,) = backend.pids
        await backend.infer([job])  # the first touches the pages
        worker_s = -cpu_seconds(pid)
        for _ in range(rounds):
            begin, cpu = time.perf_counter(), time.process_time()
            await backend.infer([job])
            wall.append(1000 * (time.perf_counter() - begin))
            own.append(1000 * (time.process_time() - cpu))
        worker_s += cpu_seconds(pid)
    finally:
        await backend.close()
    return Handover(statistics.median(wall), statistics.median(own), 1000 * worker_s / rounds)


# ---- report


def make_report(
    costs: Sequence[Cost],
    lags: dict[str, dict[str, float]],
    handover: Handover,
    streams: int,
    seconds: float,
) -> Report:
    main = next(cost for cost in costs if cost.rate_hz == SAMPLE_RATE_HZ)
    payload = {
        "machine": machine.describe(),
        "streams": streams,
        "seconds": seconds,
        "core_share_per_stream": main.core_share,
        "us_per_chunk": main.us_per_chunk,
        "empty_us_per_chunk": main.empty_us_per_chunk,
        "ratio_to_empty": main.ratio_to_empty,
        "rates": [asdict(cost) for cost in costs],
        "loop_lag_ms": lags["loaded"],
        "loop_lag_idle_ms": lags["idle"],
        "handover": asdict(handover),
    }
    tables = (_cost_table(costs, streams, seconds), _lag_table(lags, streams), _handover_table(handover))
    return Report(payload, tables, lambda: draw(costs))


def _cost_table(costs: Sequence[Cost], streams: int, seconds: float) -> Table:
    rows = []
    for cost in costs:
        figures = (100 * cost.core_share, cost.us_per_chunk, cost.empty_us_per_chunk, cost.ratio_to_empty)
        rest = (cost.finals, cost.client_late_p99_ms)
        rows.append(Row(f"{cost.rate_hz / 1000:g} kHz", tuple(map(Cell, (*figures, *rest)))))
    notes = (
        f"{streams} streams of LINEAR16 in messages of 100 ms for {seconds:g} s, a connection each, 1 s of speech and"
        f" 0.8 s of silence in turn, voice activity events on; the bound is {100 * BOUND:g} % of a core per stream",
        "empty handler: a gRPC server in Python that reads and discards the same messages, at the same time",
        "CPU of the server's process, its model's not counted; it serves without one",
    )
    columns = ("audio at", "% of a core", "µs per message", "empty handler, µs", "ratio", "finals", "clients late, ms")
    return Table("CPU of the front per open stream", columns, tuple(rows), notes)


def _lag_table(lags: dict[str, dict[str, float]], streams: int) -> Table:
    labels = {"idle": "no streams", "loaded": f"{2 * streams} streams"}
    rows = tuple(
        Row(labels[name], tuple(Cell(lag[key]) for key in ("p50", "p99", "max"))) for name, lag in lags.items()
    )
    notes = (
        f"how much later than asked a task that sleeps {1000 * SAMPLE_S:g} ms in the server's event loop goes on;"
        " timers there are good to 1 ms",
    )
    return Table("Lateness of the event loop, ms", ("", "p50", "p99", "max"), rows, notes)


def _handover_table(handover: Handover) -> Table:
    row = Row(f"{UTTERANCE_S:g} s of audio", tuple(map(Cell, asdict(handover).values())))
    notes = ("to a worker that reads the audio once, and its answer; one utterance at a time",)
    columns = ("", "ms until answered", "server's CPU, ms", "worker's CPU, ms")
    return Table("Handing an utterance to the worker", columns, (row,), notes)


def draw(costs: Sequence[Cost]) -> Figure:
    """CPU per stream by sample rate: what receiving costs in any case, and what is kibun's own."""
    from kibun.training.evaluation.plots import COLOURS, canvas

    drawn, axes = canvas((9.0, 4.4))
    places = np.arange(len(costs))
    empty = np.array([cost.empty_us_per_chunk for cost in costs])
    whole = np.array([cost.us_per_chunk for cost in costs])
    axes.bar(places, empty, 0.55, color=COLOURS[0], edgecolor="black", label="gRPC with an empty handler")
    own = np.maximum(whole - empty, 0)
    label = "decoding, detection, segments, results"
    axes.bar(places, own, 0.55, bottom=empty, color=COLOURS[1], edgecolor="black", hatch="//", label=label)
    bound = 1e6 * CHUNK_S * BOUND
    axes.axhline(bound, color="black", linestyle="--", linewidth=1.2, label=f"{100 * BOUND:g} % of a core")
    axes.set_xticks(places, [f"{cost.rate_hz / 1000:g} kHz" for cost in costs])
    axes.set(xlabel="sample rate of the stream", ylabel="CPU per message of 100 ms (µs)")
    axes.set_ylim(0, 1.1 * max(bound, float(whole.max())))
    axes.set_title("What an open stream costs the server", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=11)
    return drawn
