"""`kibun bench serve`: a real server beside the bare encoder loop, its latency under load, start-up and memory.

Three processes take turns or share the machine: the server (a front, and a worker that computes), the bare loop
(`bare`), and the clients (`load`). Bare and served take turns, never at the same time. Clients and front take their CPU
from the worker's cores: what each used is reported, so that the ratio can be explained.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kibun.bench.support import material
from kibun.bench.support.child import Child, children, cpu_seconds, peak_mb
from kibun.bench.support.report import Report
from kibun.client.server_process import ServerProcess
from kibun.models.types import SAMPLE_RATE_HZ, Precision
from kibun.training.evaluation.metrics import quantile_interval
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = "base size, random"
TINY = "demo-tiny"
CALM = 0.6
LOADS = (0.2, CALM, 0.9)
OVERLOAD = 3.0
LATENCY_BOUND = 2.0  # of the p95 at 60 % load, for what is admitted under overload
# Counted, not measured: one HuBERT-base per second of audio, times trunk and three tails against one whole encoder.
GFLOP_PER_AUDIO_S = 14.3 * 1.57


class MeasurementError(Exception):
    """What was measured is not what was meant to be measured."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    utterances: int
    longest_s: float  # the shortest has 0.8 s
    rounds: int  # of bare and served in turn
    phase_s: float  # that bare or served takes, roughly; a whole number of passes over the utterances, at least one
    load_s: float  # in which the utterances of 60 % load or of overload end; half of it for the other loads
    starts: int


FULL = Effort(utterances=10, longest_s=8.5, rounds=5, phase_s=8.0, load_s=40.0, starts=2)
QUICK = Effort(utterances=6, longest_s=2.0, rounds=3, phase_s=3.0, load_s=4.0, starts=1)


@dataclass(frozen=True)
class Throughput:
    """Bare and served over the same utterances: medians over rounds. CPU in seconds per second of audio."""

    audio_s: float  # of one round
    utterances: int
    threads: int
    streams: int  # admitted, of four for each thread
    bare: float  # audio seconds per second
    served: float
    served_over_bare: float
    rounds: tuple[float, ...]  # served over bare
    bare_cpu: float
    worker_cpu: float
    front_cpu: float
    client_cpu: float
    cpu_ratio: float  # bare CPU over that of worker, front and clients: the ratio to expect with all cores busy
    max_diff: float  # of valence and arousal, utterances without a history

    @property
    def per_core(self) -> float:
        """Audio seconds per core second of the bare loop."""
        return self.bare / self.threads


@dataclass(frozen=True)
class Latency:
    """What one load brought. Milliseconds; None: nothing to take it from."""

    load: float  # of the capacity
    offered: int  # utterances
    finals: int
    refused: int
    lost: int  # admitted, and no final came
    p50: float | None
    p95: float | None
    p99: float | None
    # 95 % intervals of p50, p95, p99; None: an end that so few finals do not tell.
    intervals: tuple[tuple[float | None, float | None], ...]
    refusal_p50: float | None
    refusal_max: float | None
    client_late_p99: float | None  # how late the clients themselves were
    reasons: dict[str, int]  # of refusals
    without_retry_info: int
    lost_reasons: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """Start-up and memory of one server."""

    serving_after_s: float  # from the command until it serves, median
    front_mb: float  # peak, after all that was measured
    worker_mb: float


@dataclass(frozen=True)
class ServeFigures:
    """All of one model."""

    name: str
    device: str
    precision: str  # and why
    longest_s: float  # of the utterances
    start: Start
    throughput: Throughput
    latencies: tuple[Latency, ...]  # LOADS and OVERLOAD, or none


def measure(
    model: str | None = None,
    *,
    precision: Precision = "auto",
    target_delay_s: float | None = None,
    quick: bool = False,
    seconds: float | None = None,
) -> Report:
    """Measure a bundle, and, unless quick, demo-tiny's start and throughput beside it.

    model: path or name; None: HuBERT-base's size with three tails and random weights.
    precision: as of `kibun serve`, for the bare loop too. target_delay_s: its --target-delay, None: its default.
    seconds: in which the utterances of 60 % load or overload end, half of it for the others; None: 40, quick 4.
    Raises ChildError, ServerStartError or MeasurementError.
    """
    plan = QUICK if quick else FULL
    plan = replace(plan, load_s=seconds or plan.load_s)
    utterances = material.utterances(plan.utterances, 0.8, plan.longest_s)
    with tempfile.TemporaryDirectory() as temporary:
        stored, bundle = Path(temporary) / "material.npz", Path(temporary) / "base"
        material.write(stored, utterances)
        with Child("kibun.bench.support.bare", str(stored)) as bare:
            machine = bare.ask("describe")
            if model is None:
                bare.ask("base_size", folder=str(bundle))
            bench = _Bench(
                plan, precision, target_delay_s, [len(pcm) / SAMPLE_RATE_HZ for pcm in utterances], stored, bare
            )
            main = bench.model(model or BASE, model or str(bundle), latency=True)
            beside = [] if quick or model == TINY else [bench.model(TINY, TINY, latency=False)]
    return make_report([main, *beside], machine, counted=model is None)


class _Bench:
    """The plan, the utterances and the bare loop, for one model after the other."""

    def __init__(
        self,
        plan: Effort,
        precision: Precision,
        target_delay_s: float | None,
        lengths_s: Sequence[float],
        stored: Path,
        bare: Child,
    ) -> None:
        self._plan = plan
        self._precision = precision
        self._target_delay_s = target_delay_s
        self._lengths_s = lengths_s
        self._stored = stored
        self._bare = bare

    def model(self, name: str, bundle: str, *, latency: bool) -> ServeFigures:
        loaded = self._bare.ask("load", model=bundle, precision=self._precision)
        server, serving_after_s = self._started(bundle)
        with server, Child("kibun.bench.load.generator", server.target, str(self._stored)) as clients:
            throughput = self._throughput(server, clients, loaded["threads"])
            latencies = self._latencies(clients, throughput.served) if latency else ()
            workers = children(server.pid)
            start = Start(serving_after_s, peak_mb(server.pid), sum(map(peak_mb, workers)))
        return ServeFigures(
            name, loaded["device"], loaded["precision"], max(self._lengths_s), start, throughput, latencies
        )

    def _started(self, bundle: str) -> tuple[ServerProcess, float]:
        """A server that serves, and the median time that took."""
        seconds = []
        while True:
            # Its generated voices are whole utterances to this detector.
            arguments = ["--allow-untrained", "--precision", self._precision, "--vad", "webrtc"]
            if self._target_delay_s is not None:
                arguments += ["--target-delay", str(self._target_delay_s)]
            server = ServerProcess(bundle, arguments)
            begin = time.perf_counter()
            server.start()
            seconds.append(time.perf_counter() - begin)
            if len(seconds) == self._plan.starts:
                return server, statistics.median(seconds)
            server.stop()

    # ---- throughput

    def _throughput(self, server: ServerProcess, clients: Child, threads: int) -> Throughput:
        order = self._order(threads)
        streams = 4 * threads  # some are queued while others push
        clients.ask("push", order=order[:threads], streams=threads)  # not counted: memory, kernels
        audio_s = sum(self._lengths_s[index] for index in order)
        processes = {"front": [server.pid], "worker": children(server.pid), "client": [clients.pid]}
        rounds: list[dict[str, float]] = []
        max_diff = 0.0
        for _ in range(self._plan.rounds):
            bare = self._bare.ask("run", order=order)
            before = _cpu(processes)
            served = clients.ask("push", order=order, streams=streams)
            used = {name: seconds - before[name] for name, seconds in _cpu(processes).items()}
            self._check_whole(order, served["finals"])
            max_diff = max(max_diff, difference(bare["estimates"], served["first_turns"]))
            times = {"bare_s": bare["seconds"], "served_s": served["seconds"], "bare": bare["cpu_s"]}
            times["streams"] = served["streams"]
            rounds.append(times | used)
        median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        ratios = tuple(one["bare_s"] / one["served_s"] for one in rounds)
        return Throughput(
            audio_s=audio_s,
            utterances=len(order),
            threads=threads,
            streams=round(median["streams"]),
            bare=audio_s / median["bare_s"],
            served=audio_s / median["served_s"],
            served_over_bare=statistics.median(ratios),
            rounds=ratios,
            bare_cpu=median["bare"] / audio_s,
            worker_cpu=median["worker"] / audio_s,
            front_cpu=median["front"] / audio_s,
            client_cpu=median["client"] / audio_s,
            cpu_ratio=median["bare"] / (median["worker"] + median["front"] + median["client"]),
            max_diff=max_diff,
        )

    def _order(self, threads: int) -> list[int]:
        """As many passes over the utterances as fill a phase, in random order, short ones last: all end together."""
        by_length = sorted(range(len(self._lengths_s)), key=lambda index: self._lengths_s[index])
        probe = [by_length[len(by_length) // 2]] * (2 * threads)
        speed = sum(self._lengths_s[index] for index in probe) / self._bare.ask("run", order=probe)["seconds"]
        passes = max(1, round(self._plan.phase_s * speed / sum(self._lengths_s)))
        every = sorted(by_length * passes, key=lambda index: self._lengths_s[index])
        short = min(len(every) // 2, 4 * threads)
        shuffled = np.random.default_rng(0).permutation(every[short:])
        return [*map(int, shuffled), *reversed(every[:short])]

    def _check_whole(self, order: Sequence[int], finals: Sequence[tuple[int, int]]) -> None:
        """The server must have analysed what the bare loop did, to the sample."""
        wanted = sorted((index, round(self._lengths_s[index] * SAMPLE_RATE_HZ)) for index in order)
        if sorted(map(tuple, finals)) != wanted:
            raise MeasurementError(
                "the server analysed other stretches than it was sent: its voice activity detection cut an utterance;"
                " the two throughputs cannot be compared"
            )

    # ---- latency

    def _latencies(self, clients: Child, capacity: float) -> tuple[Latency, ...]:
        """Of each load, one after the other. capacity: audio seconds per second that load 1 stands for."""
        found = []
        for load in (*LOADS, OVERLOAD):
            seconds = self._plan.load_s if load in (CALM, OVERLOAD) else self._plan.load_s / 2
            arrivals = schedule(self._lengths_s, load * capacity, seconds, seed=round(100 * load))
            found.append(latency(load, len(arrivals), clients.ask("speak", arrivals=arrivals)))
        return tuple(found)


def schedule(lengths_s: Sequence[float], audio_s_per_s: float, seconds: float, *, seed: int) -> list[tuple[int, float]]:
    """(utterance, second at which it begins, the first at 0); the ends are a Poisson process `seconds` long.

    The audio comes to what was asked for, as near as whole utterances allow (at least one): given how many there are,
    the times of a Poisson process are independent and uniform. Utterances are drawn at random.
    """
    random = np.random.default_rng(seed)
    missing, drawn = audio_s_per_s * seconds, list[int]()
    while not drawn or missing > 0:
        drawn.append(int(random.integers(len(lengths_s))))
        missing -= lengths_s[drawn[-1]]
    if len(drawn) > 1 and -missing > lengths_s[drawn[-1]] / 2:
        drawn.pop()
    ends = random.uniform(0.0, seconds, len(drawn))
    begins = [float(end) - lengths_s[index] for index, end in zip(drawn, ends, strict=True)]
    arrivals = [(index, begin - min(begins)) for index, begin in zip(drawn, begins, strict=True)]
    return sorted(arrivals, key=lambda arrival: arrival[1])


def latency(load: float, offered: int, replies: dict[str, Any]) -> Latency:
    final_ms, refusal_ms = replies["final_ms"], replies["refusal_ms"]
    return Latency(
        load=load,
        offered=offered,
        finals=len(final_ms),
        refused=len(refusal_ms),
        lost=len(replies["lost"]),
        p50=_percentile(final_ms, 50),
        p95=_percentile(final_ms, 95),
        p99=_percentile(final_ms, 99),
        intervals=tuple(quantile_interval(final_ms, share) for share in (0.5, 0.95, 0.99)),
        refusal_p50=_percentile(refusal_ms, 50),
        refusal_max=_percentile(refusal_ms, 100),
        client_late_p99=_percentile(replies["late_ms"], 99),
        reasons=replies["refusals"],
        without_retry_info=replies["without_retry_info"],
        lost_reasons=tuple(sorted(set(replies["lost"]))),
    )


def _percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None


def _cpu(processes: dict[str, list[int]]) -> dict[str, float]:
    return {name: sum(map(cpu_seconds, pids)) for name, pids in processes.items()}


def difference(bare: dict[str, Any], served: dict[str, Any]) -> float:
    """Largest difference between estimates of the same utterances."""
    pairs = [(a, b) for index, values in served.items() for a, b in zip(bare[index], values, strict=True)]
    return max((abs(a - b) for a, b in pairs if a is not None), default=0.0)


# ---- report


def make_report(models: Sequence[ServeFigures], machine: dict[str, Any], *, counted: bool) -> Report:
    main = models[0]
    latency_of = {latency.load: latency for latency in main.latencies}
    calm, over = latency_of[CALM], latency_of[OVERLOAD]
    ratio = over.p95 / calm.p95 if over.p95 is not None and calm.p95 is not None else None
    rows = {one.name: asdict(one.throughput) | {"audio_s_per_core_s": one.throughput.per_core} for one in models}
    if counted:
        rows[main.name] |= _limit(main.throughput, machine)
    payload = {
        "machine": machine,
        "model": main.name,
        "device": main.device,
        "precision": main.precision,
        "served_over_bare": main.throughput.served_over_bare,
        "cpu_ratio": main.throughput.cpu_ratio,
        "final_latency_ms": {"p50": calm.p50, "p95": calm.p95, "p99": calm.p99},
        "refused": over.refused / over.offered,
        "refused_count": over.refused,
        "finals_lost": sum(latency.lost for latency in main.latencies),
        "overload": {"p95": over.p95, "ratio_to_60": ratio, "refusal_ms": over.refusal_max},
        "throughput": rows,
        "by_load": [asdict(latency) for latency in main.latencies],
        "start": {one.name: asdict(one.start) for one in models},
    }
    tables = (
        _throughput_table(models, machine, counted=counted),
        _cpu_table(models),
        _latency_table(main, ratio),
        _start_table(models),
    )
    return Report(payload, tables, lambda: draw(main))


def _limit(throughput: Throughput, machine: dict[str, Any]) -> dict[str, float]:
    """How far the arithmetic is from the machine's own limit."""
    gflops = throughput.per_core * GFLOP_PER_AUDIO_S
    peaks = {name: machine[f"gemm_tflops_{name}"] for name in ("fp32", "bf16")}
    shares = {f"share_of_gemm_{name}": gflops / (1000 * peak) for name, peak in peaks.items() if peak is not None}
    return {"gflops_per_core": gflops} | shares


def _bf16(machine: dict[str, Any]) -> str:
    if machine["bf16_left_out"] is not None:
        return f"bf16 not measured: {machine['bf16_left_out']}"
    return f"{1000 * machine['gemm_tflops_bf16']:.0f} bf16"


def _throughput_table(models: Sequence[ServeFigures], machine: dict[str, Any], *, counted: bool) -> Table:
    rows = []
    for one in models:
        found = one.throughput
        limit = _limit(found, machine) if counted and one is models[0] else {}
        cells: list[float | None] = [found.bare, found.served, found.served_over_bare, found.per_core]
        cells += [limit.get("gflops_per_core"), limit.get("share_of_gemm_fp32"), limit.get("share_of_gemm_bf16")]
        rows.append(Row(one.name, (*map(Cell, cells), Cell(f"{found.max_diff:.1e}"))))
    main = models[0].throughput
    notes = (
        f"{main.threads} inference threads, {main.streams} streams, {main.utterances} utterances of"
        f" {main.audio_s:.0f} s in all, {len(main.rounds)} rounds in turn; the target is a ratio of at least 0.95",
        *(f"{one.name}, by round: {', '.join(f'{r:.2f}' for r in one.throughput.rounds)}" for one in models),
        *(f"{one.name} on {one.device}: {one.precision}" for one in models),
        f"GFLOP/s: {GFLOP_PER_AUDIO_S:.1f} GFLOP per second of audio are counted (one HuBERT-base 14.3, trunk and three"
        " tails 1.57 of it), the time is measured",
        f"one thread's largest matrix product: {1000 * machine['gemm_tflops_fp32']:.0f} GFLOP/s fp32, {_bf16(machine)}",
        "difference: largest of valence and arousal between bare and served",
    )
    columns = ("audio seconds per second", "bare", "served", "served / bare", "bare, per core", "GFLOP/s per core")
    return Table(
        "Served against bare", (*columns, "of fp32 product", "of bf16 product", "difference"), tuple(rows), notes
    )


def _cpu_table(models: Sequence[ServeFigures]) -> Table:
    rows = []
    for one in models:
        found = one.throughput
        served = found.worker_cpu + found.front_cpu + found.client_cpu
        cpu = (found.bare_cpu, found.worker_cpu, found.front_cpu, found.client_cpu)
        cells = [Cell(1000 * seconds) for seconds in cpu]
        rows.append(Row(one.name, (*cells, Cell(found.cpu_ratio), Cell(served * found.served))))
    notes = (
        "clients and server share the machine's cores: the worker cannot have what front and clients take; bare / all"
        " served is the throughput ratio to expect with every core busy, whatever else runs on the machine",
    )
    columns = ("ms of CPU per second of audio", "bare", "worker", "front", "clients", "bare / all served", "cores busy")
    return Table("Where the CPU goes while pushing", columns, tuple(rows), notes)


def _latency_table(main: ServeFigures, ratio: float | None) -> Table:
    rows = []
    calm = next(latency.p95 for latency in main.latencies if latency.load == CALM)
    for one in main.latencies:
        counts = (one.offered, one.finals, one.refused, one.lost)
        relative = one.p95 / calm if one.p95 is not None and calm is not None else None
        times = (one.p50, one.p95, one.p99, relative, one.refusal_max, one.client_late_p99)
        rows.append(Row(f"{one.load:.0%}", tuple(map(Cell, (*counts, *times)))))
    over = main.latencies[-1]
    notes = [
        f"load: audio offered, of the {main.throughput.served:.1f} s per second served above; sent in real time,"
        " a stream each, their ends a Poisson process independent of the server",
        "latency: from when end_of_turn was due, the clients' own lateness included, to the final's arrival, ms",
        f"at the bare loop's speed the longest utterance, {main.longest_s:.1f} s, takes"
        f" {1000 * main.longest_s / main.throughput.per_core:.0f} ms on its thread",
    ]
    if ratio is not None:
        notes.append(
            f"under overload the p95 of what was admitted is {ratio:.2f} of that at 60 %; bound {LATENCY_BOUND:g}"
        )
    if over.reasons:
        reasons = ", ".join(f"{reason} {count}" for reason, count in over.reasons.items())
        notes.append(f"refused under overload: {reasons}; without RetryInfo {over.without_retry_info}")
    if lost := {reason for latency in main.latencies for reason in latency.lost_reasons}:
        notes.append(f"lost: {', '.join(sorted(lost))}")
    columns = ("load", "offered", "finals", "refused", "lost", "p50", "p95", "p99", "p95 / p95 at 60 %")
    return Table(
        f"Final latency of {main.name}", (*columns, "slowest refusal", "clients late, p99"), tuple(rows), tuple(notes)
    )


def _start_table(models: Sequence[ServeFigures]) -> Table:
    rows = tuple(
        Row(one.name, tuple(map(Cell, (one.start.serving_after_s, one.start.front_mb, one.start.worker_mb))))
        for one in models
    )
    columns = ("model", "command to SERVING, s", "front, peak MB", "worker, peak MB")
    return Table("Start-up and memory", columns, rows, digits=1)


def draw(main: ServeFigures) -> Figure:
    """Percentiles of the final latency against the load, with the bound under overload."""
    from matplotlib.ticker import LogLocator

    from kibun.training.evaluation.plots import COLOURS, MARKERS, canvas, draw_intervals, legend_beside

    drawn, axes = canvas((7.2, 4.8))
    places = np.arange(len(main.latencies))
    for number, name in enumerate(("p50", "p95", "p99")):
        values = [getattr(latency, name) for latency in main.latencies]
        heights = [math.nan if value is None else value for value in values]
        look: Any = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 8, "linewidth": 1.6}
        beside = places + 0.07 * (number - 1)
        axes.plot(beside, heights, label=name, **look)
        draw_intervals(
            axes, beside, heights, [latency.intervals[number] for latency in main.latencies], COLOURS[number]
        )
    calm = next(latency.p95 for latency in main.latencies if latency.load == CALM)
    if calm is not None:
        label = f"{LATENCY_BOUND:g} × p95 at 60 %"
        axes.axhline(LATENCY_BOUND * calm, color="black", linestyle="--", linewidth=1.2, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xticks(places, [_tick(latency) for latency in main.latencies])
    axes.set(xlabel="offered load, share of the measured capacity", ylabel="ms from the end of a turn to its final")
    axes.set_title(f"How late finals come, by load ({main.name})", loc="left")
    legend_beside(axes, title="with 95 % intervals;\ndotted: beyond the latest")
    return drawn


def _tick(latency: Latency) -> str:
    refused = f"{latency.refused / latency.offered:.0%} refused" if latency.refused else "all admitted"
    return f"{latency.load:.0%}\n{refused}"
