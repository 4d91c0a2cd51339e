"""Whether a server holds its load for as long as it takes, and whether anything of a stream stays behind in memory.

Measured is `kibun serve` with a stub for a model, in a separate process, under real-time streams; then
streams that are opened and dropped. The same count is made of a server that leaks on purpose: a measurement that does
not find that leak proves nothing. Linux only (/proc).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kibun.bench.load import soak_clients
from kibun.bench.load.front_servers import STUB_LOADER
from kibun.bench.load.soak_clients import CLIENTS_TOKEN, PROBE_TOKEN
from kibun.bench.support import machine
from kibun.bench.support.child import Child, cpu_seconds
from kibun.bench.support.report import Report
from kibun.client.server_process import ServerProcess
from kibun.training.evaluation.metrics import quantile_interval
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROL_LEAK = 4096  # bytes that the control keeps per stream
BOUND = 200  # bytes that a dropped stream may leave …
NOISE = 2**21  # … beside these, which come and go with the allocator's arenas, of all of them together
SAMPLE_S = 1.0
START_S = 30.0


class SoakError(Exception):
    """The measurement itself went wrong."""


@dataclass(frozen=True)
class Sample:
    """Of the server's process."""

    at_s: float
    rss_mb: float  # 2^20 bytes
    cpu_s: float


def measure(*, quick: bool, streams: int | None = None, seconds: float | None = None) -> Report:
    """streams: at a time; seconds: of talk."""
    streams = streams or (20 if quick else 200)
    seconds = seconds or (15.0 if quick else 600.0)
    dropped = 2000 if quick else 10_000
    turn_s = 3.7 if quick else 29.6
    options = ["--loader", STUB_LOADER, "--max-streams", str(4 * streams + 100)]
    with Child(soak_clients.__name__) as clients, tempfile.TemporaryDirectory() as folder:
        with ServerProcess("stub", [*options, "--token-file", str(write_tokens(Path(folder)))]) as server:
            learned = clients.ask("learn", target=server.target, turn_s=turn_s)
            if not learned["as_segmented"]:
                raise SoakError(f"a turn alone is not answered as it is segmented: {learned}")
            with _sampled(server.pid) as samples:
                tally = clients.ask("talk", target=server.target, streams=streams, seconds=seconds)
            left = bytes_per_stream(clients, server.target, server.pid, dropped)
        with leaking_server() as (target, pid):
            control = bytes_per_stream(clients, target, pid, dropped)
    return make_report(tally, samples, left, control, streams=streams, seconds=seconds, dropped=dropped)


def write_tokens(folder: Path) -> Path:
    """A token file for the clients, and one stream for the prober."""
    path = folder / "tokens"
    lines = ((CLIENTS_TOKEN, "clients", ""), (PROBE_TOKEN, "probe", "streams=1"))
    path.write_text("".join(f"{name} {sha256(token.encode()).hexdigest()} {limit}\n" for token, name, limit in lines))
    return path


@contextmanager
def _sampled(pid: int) -> Iterator[list[Sample]]:
    """Samples of the process, for as long as the context lasts."""
    samples: list[Sample] = []
    over, begin = threading.Event(), time.monotonic()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            samples.append(Sample(time.monotonic() - begin, _rss_bytes(pid) / 2**20, cpu_seconds(pid)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


@contextmanager
def leaking_server() -> Iterator[tuple[str, int]]:
    """The server that leaks: its address and process id."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "kibun.bench.load.soak_server", str(CONTROL_LEAK), str(port_file)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_S
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SoakError("the leaking server did not start")
                time.sleep(0.05)
            yield f"127.0.0.1:{port_file.read_text().strip()}", process.pid
        finally:
            process.kill()
            process.wait()


def bytes_per_stream(clients: Child, target: str, pid: int, streams: int) -> float:
    """What a stream that is opened and dropped leaves, once as many have filled every cache and pool."""
    clients.ask("drop", target=target, streams=streams)
    before = _rss_bytes(pid)
    refused = clients.ask("drop", target=target, streams=streams)["refused"]
    if refused:
        raise SoakError(f"{refused} of {streams} streams were refused")
    return (_rss_bytes(pid) - before) / streams


def _rss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


# ---- report


def make_report(
    tally: dict[str, Any],
    samples: Sequence[Sample],
    left: float,
    control: float,
    *,
    streams: int,
    seconds: float,
    dropped: int,
) -> Report:
    second_half = samples[len(samples) // 2 :]
    growth = _slope([s.at_s for s in second_half], [s.rss_mb for s in second_half])
    cores = (samples[-1].cpu_s - samples[0].cpu_s) / (samples[-1].at_s - samples[0].at_s)
    payload = {
        "machine": machine.describe(),
        "streams": streams,
        "seconds": seconds,
        **{name: tally[name] for name in ("turns", "finals", "lost", "doubled", "unaccounted", "failures")},
        "final_latency_ms": _percentiles(tally["final_ms"]),
        "clients_late_ms": _percentiles(tally["late_ms"]),
        "health_ms": _percentiles(tally["health_ms"]),
        "refusal_ms": _percentiles(tally["refusal_ms"]),
        "cores": cores,
        "rss_mb": {"start": samples[0].rss_mb, "end": samples[-1].rss_mb, "growth_per_hour": 3600 * growth},
        "dropped_streams": dropped,
        "bytes_per_dropped_stream": left,
        "control_bytes_per_dropped_stream": control,
        "bound_bytes": BOUND + NOISE / dropped,
        "control_found": control > CONTROL_LEAK / 2,
        "ok": not (tally["lost"] or tally["doubled"] or tally["unaccounted"] or tally["failures"])
        and left <= BOUND + NOISE / dropped < CONTROL_LEAK / 2 < control,
    }
    return Report(payload, (_load_table(payload), _memory_table(payload)), lambda: draw(tally["final_ms"], samples))


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)} | {"max": max(values)}


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else 0.0


def _load_table(payload: dict[str, Any]) -> Table:
    rows = tuple(
        Row(label, tuple(Cell(payload[key].get(name)) for name in ("p50", "p95", "p99", "max")))
        for label, key in (
            ("final, ms after it could be known", "final_latency_ms"),
            ("clients' messages late, ms", "clients_late_ms"),
            ("health check, ms", "health_ms"),
            ("refusal of a stream too many, ms", "refusal_ms"),
        )
    )
    failures = ", ".join(f"{reason} {count}" for reason, count in payload["failures"].items()) or "none"
    notes = (
        f"{payload['streams']} streams of LINEAR16 in messages of 100 ms for {payload['seconds']:g} s, a connection and"
        f" a conversation each: {payload['turns']} turns, {payload['finals']} finals",
        f"finals lost {payload['lost']}, doubled {payload['doubled']}; turns with samples unaccounted for"
        f" {payload['unaccounted']}; turns that failed: {failures}",
        f"{payload['cores']:.2f} cores for the server's process; its model is a stub, not counted",
    )
    return Table("Load probe", ("", "p50", "p95", "p99", "max"), rows, notes)


def _memory_table(payload: dict[str, Any]) -> Table:
    rows = (
        Row("kibun serve", (Cell(payload["bytes_per_dropped_stream"]),)),
        Row(f"the same, leaking {CONTROL_LEAK} bytes a stream", (Cell(payload["control_bytes_per_dropped_stream"]),)),
    )
    rss = payload["rss_mb"]
    notes = (
        f"{payload['dropped_streams']} streams opened and cancelled, after as many before; the bound is {BOUND} bytes",
        f"under load: {rss['start']:.0f} MB at its start, {rss['end']:.0f} at its end,"
        f" {rss['growth_per_hour']:+.1f} MB an hour over the second half",
    )
    return Table("Memory that a dropped stream leaves", ("server", "bytes"), rows, notes)


def draw(final_ms: Sequence[float], samples: Sequence[Sample]) -> Figure:
    """How late finals were, and the server's memory over time."""
    from matplotlib.ticker import LogLocator

    from kibun.training.evaluation.plots import COLOURS, canvas, draw_intervals

    drawn, axes = canvas((9.0, 4.4))
    axes.remove()
    left, right = drawn.subplots(1, 2)
    shares = np.linspace(0, 100, 400)
    left.plot(np.percentile(final_ms, shares), shares, color=COLOURS[0])
    for share in (50, 95, 99):
        at, ends = float(np.percentile(final_ms, share)), quantile_interval(final_ms, share / 100)
        draw_intervals(left, [share], [at], [ends], "black", lying=True)
        text = f"p{share}: {at:.0f} ms"
        left.annotate(text, (at, share), xytext=(10, -10), textcoords="offset points", va="top", fontsize=10)
    left.set(xscale="log", xlabel="ms after their end could be known", ylabel="share of finals (%)", ylim=(0, 101))
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    left.set_title(f"How late {len(final_ms)} finals were", loc="left")
    right.plot([s.at_s for s in samples], [s.rss_mb for s in samples], color=COLOURS[1])
    right.set(xlabel="time (s)", ylabel="resident memory (MB)")
    right.set_ylim(bottom=0)
    right.set_title("Memory of the server", loc="left")
    return drawn
