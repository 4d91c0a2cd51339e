"""How long `kibun serve` takes from the command until it serves, by stage, beside a Python that only imports torch.

Servers of all models and that Python take turns, after one round that is not counted: so files are in the page cache.
Stages are told by the server's log lines. The server and its worker import at the same time, and checksums are taken
while the worker imports; what limits the start is the worker.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kibun.bench.support.bare import base_size, describe
from kibun.bench.support.report import Report
from kibun.client.server_process import ServerProcess
from kibun.models.types import Precision
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = "base size, random"
TORCH = "Python that imports torch"
ROUNDS, QUICK_ROUNDS = 5, 2

# The event that ends a stage, by its beginning; the stages follow each other.
STAGES: Mapping[str, str] = {
    "imports": "modules are imported",
    "weights": "models are loaded",
    "warm-up": "models have answered",
    "hand-over": "serving on ",
}


class StageError(Exception):
    """A server did not tell when its stages end."""


@dataclass(frozen=True)
class Starts:
    """Starts of one model: seconds of each stage in each round."""

    name: str
    stages: tuple[dict[str, float], ...]

    @property
    def serving_after_s(self) -> tuple[float, ...]:
        """Seconds from the command until the server serves, in each round."""
        return tuple(sum(stages.values()) for stages in self.stages)


def measure(*, precision: Precision = "auto", quick: bool = False) -> Report:
    """Start servers of demo-tiny and of a bundle of HuBERT-base's size in turns.

    Raises ServerStartError, StageError.
    """
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="kibun-") as folder:
        base_size(folder)
        bundles = {"demo-tiny": "demo-tiny", BASE: folder}
        stages: dict[str, list[dict[str, float]]] = {name: [] for name in bundles}
        torch_s: list[float] = []
        for number in range(1 + (QUICK_ROUNDS if quick else ROUNDS)):
            took_s, each = _import_torch(), {name: _start(bundle, precision) for name, bundle in bundles.items()}
            if number:
                torch_s.append(took_s)
                for name, one in each.items():
                    stages[name].append(one)
    return make_report([Starts(name, tuple(each)) for name, each in stages.items()], torch_s, machine)


def _import_torch() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True)
    return time.perf_counter() - begin


def _start(bundle: str, precision: Precision) -> dict[str, float]:
    arguments = ["--allow-untrained", "--precision", precision, "--log-level", "INFO", "--log-format", "json"]
    server = ServerProcess(bundle, arguments)
    begin = time.time()
    with server:
        log = server.stderr
    return read_stages(begin, log)


def read_stages(begin: float, log: str) -> dict[str, float]:
    """Seconds of each stage of a server that was started at `begin` (seconds since 1970), from its log in JSON."""
    lines = [json.loads(line) for line in log.splitlines()]
    stages = {}
    for stage, event in STAGES.items():
        times = [line["time"] for line in lines if line["event"].startswith(event)]
        if not times:
            raise StageError(f"the server's log has no line {event!r}")
        end = datetime.fromisoformat(times[0]).timestamp()
        stages[stage], begin = end - begin, end
    return stages


def make_report(models: Sequence[Starts], torch_s: Sequence[float], machine: dict[str, Any]) -> Report:
    """Tables, payload and figure; torch_s: of each round."""
    payload = {
        "serving_after_s": {one.name: statistics.median(one.serving_after_s) for one in models},
        "over_torch": {one.name: _over(one, torch_s) for one in models},
        "stages_s": {one.name: _medians(one) for one in models},
        "import_torch_s": statistics.median(torch_s),
        "rounds": len(torch_s),
        "machine": machine,
    }
    rows = [
        Row(
            one.name,
            (
                Cell(statistics.median(one.serving_after_s)),
                *map(Cell, _medians(one).values()),
                Cell(_over(one, torch_s)),
            ),
        )
        for one in models
    ]
    columns = ("model", "command to SERVING, s", *STAGES, "over importing torch")
    notes = (
        f"{TORCH}: {statistics.median(torch_s):.2f} s. Medians of {len(torch_s)} rounds; files in the page cache.",
    )
    return Report(payload, (Table("Start-up", columns, tuple(rows), notes, digits=2),), lambda: draw(models, torch_s))


def _medians(starts: Starts) -> dict[str, float]:
    return {stage: statistics.median(each[stage] for each in starts.stages) for stage in STAGES}


def _over(starts: Starts, torch_s: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(starts.serving_after_s, torch_s, strict=True))


def draw(models: Sequence[Starts], torch_s: Sequence[float]) -> Figure:
    """Stages of each model, one after the other, below the time that importing torch takes."""
    from kibun.training.evaluation.plots import COLOURS, canvas, legend_beside

    drawn, axes = canvas((7.2, 2.8))
    left = dict.fromkeys((one.name for one in models), 0.0)
    for number, stage in enumerate(STAGES):
        widths = [_medians(one)[stage] for one in models]
        axes.barh(list(left), widths, left=list(left.values()), color=COLOURS[number], label=stage)
        left = {name: at + width for (name, at), width in zip(left.items(), widths, strict=True)}
    axes.barh([TORCH], [statistics.median(torch_s)], color="grey")
    axes.set_xlabel("seconds since the command")
    axes.set_title("From the command to a server that serves", loc="left")
    legend_beside(axes)
    return drawn
