"""What an open stream costs the server's own process; the model's process is not counted.

Measured is `kibun serve` with a stub for a model: receiving, decoding, resampling, voice activity detection,
segmentation, handing utterances to the worker, and answering. Clients stream in real time, each over its own
connection. Under the same load at the same time are a server with each detector, and a gRPC server with an empty
handler: the least that receiving costs in Python. Linux only (/proc).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from kibun.bench.load import front_servers
from kibun.bench.load.front_clients import WARM_UP_S
from kibun.bench.load.front_servers import SAMPLE_S, STUB_LOADER
from kibun.bench.load.generator import METHOD
from kibun.bench.support import machine
from kibun.bench.support.child import Child, cpu_seconds
from kibun.bench.support.report import Report
from kibun.bench.support.stub_model import VECTOR_SIZE
from kibun.client.server_process import ServerProcess
from kibun.models.types import SAMPLE_RATE_HZ, Utterance
from kibun.server.audio.vad import VadName
from kibun.server.inference.backend import Job
from kibun.server.inference.worker_pool import LocalBackend
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES_HZ = (8_000, SAMPLE_RATE_HZ, 48_000)
BOUND, QUIET_BOUND = 0.009, 0.005  # cores per stream while someone speaks, and while nobody does
UTTERANCE_S = 10.0
SETTLED_S = 50.0  # of audio after which a stream's declaration is checked no more
VADS: tuple[VadName, ...] = get_args(VadName)
DEFAULT_VAD: VadName = "silero"


@dataclass(frozen=True)
class Load:
    """What every stream sends. after_s: of the stream, before the window that is measured."""

    rate_hz: int = SAMPLE_RATE_HZ
    message_ms: int = 100
    speaks: bool = True
    after_s: float = WARM_UP_S

    @property
    def label(self) -> str:
        what = "" if self.speaks else ", nobody speaks"
        return f"{self.rate_hz / 1000:g} kHz{what}{f', after {self.after_s:g} s' if self.after_s > WARM_UP_S else ''}"


QUICK_LOADS = (*(Load(rate) for rate in RATES_HZ), Load(speaks=False), Load(message_ms=20))
LOADS = (*QUICK_LOADS, Load(message_ms=40), Load(after_s=SETTLED_S), Load(speaks=False, after_s=SETTLED_S))


@dataclass(frozen=True)
class Cost:
    """Of streams with one detector. Shares: cores per stream, that is CPU seconds per second and stream.

    Of a chunk: of one message.
    """

    load: Load
    vad: VadName
    core_share: float
    empty_core_share: float
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
    """streams: to each of three servers at once, fewer of short messages; seconds: of each window."""
    streams = streams or (16 if quick else 30)
    seconds = seconds or (4.0 if quick else 15.0)
    with Child("kibun.bench.load.front_clients") as clients:
        with ExitStack() as stack, Child(front_servers.__name__, "empty") as empty:
            servers = {
                vad: stack.enter_context(ServerProcess("stub", ["--loader", STUB_LOADER, "--vad", vad])) for vad in VADS
            }
            loads = QUICK_LOADS if quick else LOADS
            costs = [cost for load in loads for cost in _costs(clients, servers, empty, load, streams, seconds)]
        with Child(front_servers.__name__, "sampled") as sampled:
            lags = _lags(clients, sampled, streams, seconds)
    handover = asyncio.run(measure_handover(rounds=40 if quick else 200))
    return make_report(costs, lags, handover, streams, seconds)


def _costs(
    clients: Child,
    servers: Mapping[VadName, ServerProcess],
    empty: Child,
    load: Load,
    streams: int,
    seconds: float,
) -> list[Cost]:
    streams = max(streams * load.message_ms // 100, 1)  # as many messages
    targets = {vad: {"target": server.target, "method": METHOD, "pid": server.pid} for vad, server in servers.items()}
    least = {"target": empty.ask("target")["target"], "method": front_servers.METHOD, "pid": empty.pid}
    sent = asdict(load)
    traffic = clients.ask("talk", servers={**targets, "empty": least}, streams=streams, seconds=seconds, **sent)
    shares = {name: values["cpu_s"] / (streams * seconds) for name, values in traffic.items()}
    return [
        Cost(
            load=load,
            vad=vad,
            core_share=shares[vad],
            empty_core_share=shares["empty"],
            us_per_chunk=1000 * load.message_ms * shares[vad],
            empty_us_per_chunk=1000 * load.message_ms * shares["empty"],
            ratio_to_empty=shares[vad] / shares["empty"],
            finals=traffic[vad]["finals"],
            client_late_p99_ms=traffic[vad]["late_p99_ms"],
        )
        for vad in servers
    ]


# ---- the event loop


def _lags(clients: Child, sampled: Child, streams: int, seconds: float) -> dict[str, dict[str, float]]:
    """Lateness of the server's event loop, idle and under all streams at 16 kHz; milliseconds."""
    target = sampled.ask("target")["target"]
    sampled.ask("lag")  # those of starting up
    time.sleep(min(seconds, 3.0))
    idle = sampled.ask("lag")["ms"]
    servers = {"kibun": {"target": target, "method": METHOD, "pid": sampled.pid}}
    clients.ask("talk", servers=servers, streams=2 * streams, seconds=seconds, **asdict(Load()))
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
    default = [cost for cost in costs if cost.vad == DEFAULT_VAD]
    main = next(cost for cost in default if cost.load == Load())
    payload = {
        "machine": machine.describe(),
        "streams": streams,
        "seconds": seconds,
        "core_share_per_stream": main.core_share,
        "empty_core_share_per_stream": main.empty_core_share,
        "us_per_chunk": main.us_per_chunk,
        "empty_us_per_chunk": main.empty_us_per_chunk,
        "ratio_to_empty": main.ratio_to_empty,
        "nobody_speaks_core_share": next(cost.core_share for cost in default if cost.load == Load(speaks=False)),
        "rates": [_flat(cost) for cost in default if cost.load == Load(cost.load.rate_hz)],
        "costs": [_flat(cost) for cost in costs],
        "loop_lag_ms": lags["loaded"],
        "loop_lag_idle_ms": lags["idle"],
        "handover": asdict(handover),
    }
    tables = (_cost_table(costs, streams, seconds), _lag_table(lags, streams), _handover_table(handover))
    return Report(payload, tables, lambda: draw(costs))


def _flat(cost: Cost) -> dict[str, object]:
    values = asdict(cost)
    return {**values.pop("load"), **values}


def _by_load(costs: Sequence[Cost]) -> dict[Load, dict[VadName, Cost]]:
    found: dict[Load, dict[VadName, Cost]] = {}
    for cost in costs:
        found.setdefault(cost.load, {})[cost.vad] = cost
    return found


def _cost_table(costs: Sequence[Cost], streams: int, seconds: float) -> Table:
    rows = []
    for load, by_vad in _by_load(costs).items():
        main = by_vad[DEFAULT_VAD]
        shares = (*(100 * by_vad[vad].core_share for vad in VADS), 100 * main.empty_core_share, main.ratio_to_empty)
        rest = (main.us_per_chunk, main.empty_us_per_chunk, main.finals, main.client_late_p99_ms)
        rows.append(Row(load.label, tuple(map(Cell, (load.message_ms, *shares, *rest)))))
    notes = (
        f"{streams} streams of LINEAR16 to each server for {seconds:g} s, fewer of short messages, a connection each,"
        " 1 s of speech and 0.8 s of silence in turn, voice activity events on; from the first second on, when what was"
        f" declared is checked, or after {SETTLED_S:g} s, when it is not any more",
        f"the bounds are {100 * BOUND:g} % of a core per stream, and {100 * QUIET_BOUND:g} % while nobody speaks",
        "empty handler: a gRPC server in Python that reads and discards the same messages, at the same time; the ratio"
        f" to it and the times per message are those with {DEFAULT_VAD}",
        "CPU of the server's process, its model's not counted; it serves without one",
    )
    columns = ("audio at", "messages of, ms", *(f"{vad}, % of a core" for vad in VADS), "empty handler, %", "ratio")
    rest_columns = ("µs per message", "empty, µs", "finals", "clients late, ms")
    return Table("CPU of the front per open stream", (*columns, *rest_columns), tuple(rows), notes)


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
    """CPU per stream: what receiving costs in any case, and what is kibun's own."""
    from kibun.training.evaluation.plots import COLOURS, canvas, legend_beside

    drawn, axes = canvas((11.0, 4.8))
    loads = _by_load(costs)
    width = 0.38
    for number, vad in enumerate(VADS):
        places = np.arange(len(loads)) + (number - 0.5) * width
        empty = np.array([100 * by_vad[vad].empty_core_share for by_vad in loads.values()])
        whole = np.array([100 * by_vad[vad].core_share for by_vad in loads.values()])
        label = "gRPC with an empty handler" if not number else None
        axes.bar(places, empty, width, color=COLOURS[0], edgecolor="black", label=label)
        label = f"kibun's own, {vad}"
        own = np.maximum(whole - empty, 0)
        style = {"color": COLOURS[1 + number], "edgecolor": "black", "hatch": ("//", "..")[number]}
        axes.bar(places, own, width, bottom=empty, label=label, **style)
    axes.axhline(100 * BOUND, color="black", linestyle="--", linewidth=1.2, label="bound while someone speaks")
    axes.axhline(100 * QUIET_BOUND, color="black", linestyle=":", linewidth=1.2, label="bound while nobody speaks")
    labels = [f"{load.label.replace(', ', chr(10))}\n{load.message_ms} ms" for load in loads]
    axes.set_xticks(np.arange(len(loads)), labels)
    axes.set(xlabel="audio of the stream, and its messages", ylabel="% of a core per stream")
    axes.set_title("What an open stream costs the server", loc="left")
    legend_beside(axes)
    return drawn
