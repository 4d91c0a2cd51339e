"""The heads of the simulation as a figure: what each reaches in every world, and over worlds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kibun.training.evaluation.plots import COLOURS, canvas, in_style, legend_below
from kibun.training.simulation.tables import HEADS

CONFIDENCE = 0.95


@in_style
def draw(payload: Mapping[str, Any]) -> Figure:
    """CCC of valence by head: a dot per world (or per seed, where there is one world), mean, interval and ceiling.

    payload: of `summarise`. The interval is Student's t over worlds (or seeds); a single one has none.
    """
    worlds = payload["worlds"]
    figures = payload["pooled"] if len(worlds) > 1 else worlds[0]
    unit = "world" if len(worlds) > 1 else "seed"
    shown = [head for head in HEADS if head[1] in figures]
    drawn, axes = canvas((9.6, 1.9 + 0.42 * len(shown)))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    count = len(figures["baseline"]["values"])
    for place, (_, name, limit) in enumerate(shown):
        first = place == 0
        values = figures[name]["values"]
        beside = place + 0.24 * (np.linspace(-1, 1, count) if count > 1 else np.zeros(1))
        axes.plot(values, beside, "o", color=COLOURS[4], markersize=5, label=f"one {unit}" if first else None)
        ceiling = figures[f"ceilings.{limit}"]["mean"]
        label = "the best that is possible with what the head is told" if first else None
        axes.plot([ceiling] * 2, [place - 0.36, place + 0.36], color=COLOURS[5], linewidth=2.4, label=label)
        low, high = interval(values)
        mean = figures[name]["mean"]
        label = f"mean of {count} {unit}s with its {CONFIDENCE:.0%} interval" if count > 1 else f"the only {unit}"
        axes.errorbar(
            [mean],
            [place],
            xerr=None if count < 2 else [[mean - low], [high - mean]],
            fmt="D",
            color="black",
            markersize=6,
            capsize=4,
            label=label if first else None,
        )
    axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("agreement of valence with the truth on new speakers (CCC; 1: perfect, 0: none)")
    axes.set_title("What knowing a speaker's traits adds to valence, on simulated speech", loc="left")
    legend_below(drawn, columns=1)
    return drawn


def interval(values: list[float]) -> tuple[float, float]:
    """Of the mean, by Student's t; (nan, nan) for a single value."""
    from scipy.stats import t as student

    if len(values) < 2:
        return (float("nan"), float("nan"))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    reach = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error)
    return (float(np.mean(values)) - reach, float(np.mean(values)) + reach)
