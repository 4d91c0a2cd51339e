"""`kibun bench admission`: how many streams are refused, and how long finals take, by how long finals may wait.

Simulated: the real queue and admission in virtual time in front of machines of known speed (`simulation`). Nothing
depends on the machine that this runs on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kibun.bench.load.simulation import MEAN_S, Machine, People, Turnout, simulate
from kibun.bench.support.report import Report
from kibun.server.inference.admission import target_delay_s
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CALM, BUSY, FLOOD = 0.6, 0.9, 3.0
RAMP_S = 15.0
REFUSED_CALM, REFUSED_BUSY, SLOWDOWN = 0.05, 0.15, 2.0  # what is wanted at most


@dataclass(frozen=True)
class Extent:
    """How much is simulated."""

    seeds: int
    slots: tuple[int, ...]  # of the machines along the frontier
    targets_s: tuple[float, ...]
    finals: int  # that a machine could answer while people come, …
    shortest_s: float = 30.0  # … but at least so long, after RAMP_S


FULL = Extent(seeds=20, slots=(1, 2, 4, 16), targets_s=(0.1, 0.3, 0.7, 1.5, 3.0), finals=400)
QUICK = Extent(seeds=3, slots=(1, 2), targets_s=(0.3, 1.5), finals=300)

CORES = (0.1, 0.03)  # seconds per second of audio, and per batch, of the frontier's slots
OTHERS: dict[str, Callable[[], Machine]] = {
    "2 fast cores (0.025, 0.025)": lambda: Machine(0.025, 0.025, slots=2),
    "2 slow cores (0.4, 0.05)": lambda: Machine(0.4, 0.05, slots=2),
    "a GPU (0.01, 0.1)": lambda: Machine(0.01, 0.1, slots=2, batch_s=60.0),
}
CROWDS = {  # with how they come
    "one utterance each": People(CALM, 0.0),
    "silent for 0 to 10 s before": People(CALM, 0.0, pause_s=5.0),
    "conversations of 8 turns": People(CALM, 0.0, turns=8.0),
}


@dataclass(frozen=True)
class Point:
    """A machine with a target delay, under one kind of crowd. Means over seeds; seconds."""

    target_s: float
    refused_calm: float  # share of the new streams, the first minutes of a server included
    refused_busy: float
    refused_flood: float
    p95_calm: float  # of finals, from submitted to answered
    p95_busy: float
    p95_flood: float
    slowdown: float  # p95 in a flood over that in calm
    slowdown_sd: float  # over seeds
    turns_refused: float  # of running conversations in a flood, at their first try
    turns_lost: float  # and when tried again after a second
    lost: int  # admitted streams without a final

    @property
    def meets(self) -> bool:
        refused = self.refused_calm <= REFUSED_CALM and self.refused_busy <= REFUSED_BUSY
        return refused and self.slowdown <= SLOWDOWN and not self.lost


def measure(*, quick: bool = False) -> Report:
    """Simulate the frontier and the defaults. About a quarter of an hour; with quick half a minute."""
    plan = QUICK if quick else FULL
    frontier = {slots: _frontier(slots, plan) for slots in plan.slots}
    machines = {f"{_cores(slots)} {CORES}": _machine(slots) for slots in plan.slots} | ({} if quick else OTHERS)
    return make_report(plan, frontier, {name: _defaults(make, plan) for name, make in machines.items()})


def _cores(slots: int) -> str:
    return f"{slots} core{'s' if slots > 1 else ''}"


def _machine(slots: int) -> Callable[[], Machine]:
    return lambda: Machine(*CORES, slots=slots)


def _frontier(slots: int, plan: Extent) -> list[Point]:
    """By rising target."""
    make = _machine(slots)
    return [_point(make, target_s, CROWDS["one utterance each"], plan) for target_s in plan.targets_s]


def _defaults(make: Callable[[], Machine], plan: Extent) -> dict[str, Point]:
    """Without a target, by crowd."""
    return {name: _point(make, None, crowd, plan) for name, crowd in CROWDS.items()}


def _point(make: Callable[[], Machine], target_s: float | None, crowd: People, plan: Extent) -> Point:
    """target_s: None for the default."""
    machine = make()
    seconds = RAMP_S + max(plan.shortest_s, plan.finals * MEAN_S / machine.speech_rate)
    crowd = replace(crowd, seconds=seconds, ramp_s=RAMP_S)
    calm, busy, flood = (
        [simulate(make(), replace(crowd, load=load), target_delay_s=target_s, seed=seed) for seed in range(plan.seeds)]
        for load in (CALM, BUSY, FLOOD)
    )
    slowdowns = [over.p95 / usual.p95 for usual, over in zip(calm, flood, strict=True)]
    turns = max(sum(seen.turns for seen in flood), 1)
    return Point(
        target_s=target_delay_s(machine.final_takes_s, machine.slots) if target_s is None else target_s,
        refused_calm=_mean(calm, lambda seen: seen.refused_share),
        refused_busy=_mean(busy, lambda seen: seen.refused_share),
        refused_flood=_mean(flood, lambda seen: seen.refused_share),
        p95_calm=_mean(calm, lambda seen: seen.p95),
        p95_busy=_mean(busy, lambda seen: seen.p95),
        p95_flood=_mean(flood, lambda seen: seen.p95),
        slowdown=statistics.fmean(slowdowns),
        slowdown_sd=statistics.stdev(slowdowns),
        turns_refused=sum(seen.turns_refused for seen in flood) / turns,
        turns_lost=sum(seen.turns_lost for seen in flood) / turns,
        lost=sum(seen.lost for seen in (*calm, *busy, *flood)),
    )


def _mean(runs: Sequence[Turnout], value: Callable[[Turnout], float]) -> float:
    return statistics.fmean(map(value, runs))


# ---- report


def make_report(plan: Extent, frontier: dict[int, list[Point]], defaults: dict[str, dict[str, Point]]) -> Report:
    crowd = next(iter(CROWDS))
    payload = {
        "seeds": plan.seeds,
        "frontier": {str(slots): [asdict(point) for point in points] for slots, points in frontier.items()},
        "defaults": {name: {c: asdict(point) for c, point in by.items()} for name, by in defaults.items()},
        "meets": {name: by[crowd].meets for name, by in defaults.items()},
        "finals_lost": sum(point.lost for by in defaults.values() for point in by.values())
        + sum(point.lost for points in frontier.values() for point in points),
    }
    knees = {slots: by[crowd] for slots, by in zip(frontier, defaults.values(), strict=False)}
    tables = (_frontier_table(plan, frontier), _defaults_table(plan, defaults))
    return Report(payload, tables, lambda: draw(frontier, knees))


_COLUMNS = ("target, s", "refused at 60 %", "at 90 %", "at 300 %", "p95 at 60 %, s", "at 90 %", "at 300 %")


def _cells(point: Point) -> tuple[Cell, ...]:
    shares = (point.refused_calm, point.refused_busy, point.refused_flood)
    times = (point.p95_calm, point.p95_busy, point.p95_flood)
    slowdown = Cell(point.slowdown, point.slowdown_sd)
    return (Cell(point.target_s), *(Cell(f"{share:.1%}") for share in shares), *map(Cell, times), slowdown)


def _frontier_table(plan: Extent, frontier: dict[int, list[Point]]) -> Table:
    rows = [Row(_cores(slots), _cells(point)) for slots, points in frontier.items() for point in points]
    notes = (
        f"means over {plan.seeds} seeds; utterances of 0.8 to 15 s, {MEAN_S:.1f} s on average, a stream each;"
        f" a core takes {CORES[0]} s for a second of audio and {CORES[1]} s for a batch",
        f"wanted at most: {REFUSED_CALM:.0%} refused at 60 %, {REFUSED_BUSY:.0%} at 90 %, a ratio of {SLOWDOWN:g}",
    )
    return Table("Refusals against latency", ("machine", *_COLUMNS, "p95, 300 % / 60 %"), tuple(rows), notes)


def _defaults_table(plan: Extent, defaults: dict[str, dict[str, Point]]) -> Table:
    rows = []
    for name, by_crowd in defaults.items():
        for crowd, point in by_crowd.items():
            turns = CROWDS[crowd].turns > 1
            refused = (point.turns_refused, point.turns_lost) if turns else (None, None)
            cells = [Cell(None if share is None else f"{share:.1%}") for share in refused]
            rows.append(Row(f"{name}, {crowd}", (*_cells(point), *cells, Cell(point.lost))))
    notes = (
        "refused: of new streams, those of a server's first minute included, when it does not know its streams yet",
        "next turns: of conversations that were admitted, in the flood; again: after one second",
    )
    columns = ("machine, crowd", *_COLUMNS, "p95, 300 % / 60 %", "next turns refused", "again", "finals lost")
    return Table("Without --target-delay", columns, tuple(rows), notes)


def draw(frontier: dict[int, list[Point]], knees: dict[int, Point]) -> Figure:
    """Refusals at 60 % (dashed) and 90 % against the p95 in a flood over that in calm; the defaults are filled."""
    from kibun.training.evaluation.plots import COLOURS, MARKERS, canvas, draw_intervals, legend_beside

    drawn, axes = canvas((9.6, 5.0))
    for number, (slots, points) in enumerate(frontier.items()):
        look: Any = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 7, "linewidth": 1.6}
        slowdowns = [point.slowdown for point in points]
        hollow: Any = {"markerfacecolor": "white"}
        label = _cores(slots)
        axes.plot(slowdowns, [100 * point.refused_busy for point in points], label=label, **look, **hollow)
        axes.plot(slowdowns, [100 * point.refused_calm for point in points], linestyle="--", **look, **hollow)
        ends = [(point.slowdown - point.slowdown_sd, point.slowdown + point.slowdown_sd) for point in points]
        busy = [100 * point.refused_busy for point in points]
        draw_intervals(axes, busy, slowdowns, ends, COLOURS[number], lying=True)
        knee = knees[slots]
        look |= {"markersize": 12, "markeredgecolor": "black", "linestyle": "none"}
        axes.plot([knee.slowdown] * 2, [100 * knee.refused_busy, 100 * knee.refused_calm], **look)
    for limit, text in ((REFUSED_CALM, "at most wanted at 60 % load"), (REFUSED_BUSY, "at most wanted at 90 % load")):
        axes.axhline(100 * limit, color="black", linewidth=0.8, linestyle=":")
        axes.annotate(text, (1.0, 100 * limit), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.axvline(SLOWDOWN, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="how much longer finals take in a flood: p95 at 300 % over that at 60 % load\n"
        "(bars: ± standard deviation over runs)",
        ylabel="new streams refused (%)",
    )
    axes.set_title("Refusing more streams keeps answers in time (simulated)", loc="left")
    axes.set_ylim(bottom=0)
    grey: Any = {"color": "#555555", "marker": "o", "markersize": 7}
    axes.plot([], [], **grey, markerfacecolor="white", label="at 90 % load, by bound")
    axes.plot([], [], **grey, markerfacecolor="white", linestyle="--", label="at 60 % load, by bound")
    axes.plot([], [], color="#555555", marker="o", linestyle="none", markersize=12, label="the default bound")
    legend_beside(axes)
    return drawn
