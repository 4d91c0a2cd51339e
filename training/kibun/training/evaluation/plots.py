"""The paper's figures. Each function returns a matplotlib Figure; `save` writes it as png, svg or pdf.

Figures are made without pyplot: no window, no state shared between them, no display needed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import EMOTION_SCALE, EMOTIONS, TRAIT_SCALE, TRAITS
from kibun.training.evaluation.metrics import ccc, rmse
from kibun.training.evaluation.predictions import PROFILE_FIELDS, Prediction, PredictionsError, pairs_of, units_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

FORMATS = ("png", "svg", "pdf")
_SCALE = {**dict.fromkeys(EMOTIONS, EMOTION_SCALE), **dict.fromkeys(TRAITS, TRAIT_SCALE)}

# Okabe & Ito 2008: distinguishable with any colour vision; lines also differ in marker and dash.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v")
_ROUND = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "kibun",  # the same names inside in every run
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
}


@dataclasses.dataclass(frozen=True)
class IntervalBar:
    """A bar: its label, the group that gives its colour, its length and its interval (low, high)."""

    label: str
    group: str
    value: float
    interval: tuple[float, float]


class PlotError(ValueError):
    """A figure cannot be drawn; the message names the input, what is allowed, and the fix."""


def in_style(draw: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """Decorate a function to draw its whole figure in STYLE: text takes its size when it is created."""

    @functools.wraps(draw)
    def styled(*arguments: P.args, **options: P.kwargs) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return styled


def check_path(path: Path) -> None:
    """Raise PlotError for a suffix that is none of FORMATS, before any work is done."""
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise PlotError(
            f"{path}: cannot be written as {path.suffix or 'a file without suffix'!r}; end it in"
            f" {', '.join('.' + name for name in FORMATS)}"
        )


def save(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix, creating its folder. The same input gives the same bytes."""
    import matplotlib

    check_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dates: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=200, metadata=dates.get(path.suffix.lower()))


@in_style
def hexbin(predictions: Sequence[Prediction], figure: str, field: str | None = None, title: str = "") -> "Figure":
    """Figures 2 and 4: density of predictions against the truth, with regression line, diagonal, and CCC in the title.

    figure, field: as for `pairs_of`. Both axes have the same scale, so that the diagonal is perfect agreement.
    """
    from matplotlib.figure import Figure

    predicted, truth, _ = pairs_of(units_of(predictions, field), figure, field)
    units = "conversations" if field in PROFILE_FIELDS else "utterances"
    low, high = _SCALE[figure]
    low, high = min(low, truth.min(), predicted.min()), max(high, truth.max(), predicted.max())
    margin = 0.03 * (high - low)
    limits = (low - margin, high + margin)
    drawn = Figure(figsize=(7.0, 6.0))
    axes, beside = drawn.add_axes((0.11, 0.11, 0.7, 0.8167)), drawn.add_axes((0.84, 0.11, 0.03, 0.8167))  # a square
    bins = axes.hexbin(
        truth, predicted, gridsize=28, extent=(*limits, *limits), mincnt=1, cmap="viridis", bins="log", linewidths=0.2
    )
    axes.plot(limits, limits, color="white", linewidth=3)
    axes.plot(limits, limits, color="black", linestyle="--", linewidth=1.5, label="predicted = true")
    if truth.std() > 0:
        slope, offset = np.polyfit(truth, predicted, 1)
        ends = np.array([truth.min(), truth.max()])
        axes.plot(ends, slope * ends + offset, color="white", linewidth=5)
        axes.plot(ends, slope * ends + offset, color=COLOURS[5], linewidth=2.5, label=f"regression, slope {slope:.2f}")
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"true {figure}", ylabel=f"predicted {figure}")
    heading = f"{title or figure}: CCC {ccc(predicted, truth):.3f}, {truth.size} {units}"
    axes.set_title(heading, loc="left")
    axes.legend(loc="upper left", frameon=False, fontsize=11)
    most = max(2, int(np.asarray(bins.get_array()).max()))
    bins.set_clim(1, most)
    drawn.colorbar(bins, cax=beside, label=f"{units} (log scale)", ticks=[n for n in _ROUND if n <= most], format="%d")
    beside.minorticks_off()
    return drawn


@in_style
def multitask(results: Mapping[str, Any], where: str = "results") -> "Figure":
    """Figure 3: CCC of single-task models beside the multi-task model's, with the sd over seeds as error bars.

    results: {"single": {"valence": {"mean", "sd"}, …}, "multitask": {the same names}}; names: valence, arousal and the
    traits, any of them; sd may be null. Raises PlotError for anything else.
    """
    heights, errors, names = _bars(results, where)
    drawn, axes = canvas((1.6 + 1.45 * len(names), 4.6))
    width = 0.38
    for index, (label, kind) in enumerate((("one model per task", "single"), ("one model for all", "multitask"))):
        places = np.arange(len(names)) + (index - 0.5) * width
        axes.bar(
            places,
            heights[kind],
            width * 0.94,
            yerr=errors[kind],
            capsize=4,
            color=COLOURS[index],
            edgecolor="black",
            hatch=("", "//")[index],
            label=label,
        )
        for place, height, error in zip(places, heights[kind], errors[kind], strict=True):
            above = height + error if height >= 0 else 0.0
            axes.annotate(
                f"{height:.2f}".replace("-", "−"),
                (place, above),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(np.arange(len(names)), names)
    axes.set_ylabel("CCC")
    axes.set_title("Single task and multi-task", loc="left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.16 * (high - low))
    axes.legend(loc="upper right", frameon=False, ncols=2, fontsize=11)
    return drawn


@in_style
def interval_bars(panels: Mapping[str, Sequence[IntervalBar]], title: str) -> "Figure":
    """Lying bars with 95 % intervals, one panel for each name, side by side with the same labels.

    Raises PlotError without panels or bars, and where panels differ in their labels.
    """
    from matplotlib.figure import Figure

    bars = list(panels.values())
    if not bars or not bars[0] or any([bar.label for bar in some] != [bar.label for bar in bars[0]] for some in bars):
        raise PlotError(f"{title}: needs one panel or more, each with the same labels")
    groups = list(dict.fromkeys(bar.group for bar in bars[0]))
    drawn = Figure(figsize=(3.6 + 4.2 * len(panels), 1.6 + 0.3 * len(bars[0])), layout="constrained")
    drawn.suptitle(title, x=0.01, ha="left", fontsize=13)
    all_axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, some) in zip(all_axes, panels.items(), strict=True):
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        for index, group in enumerate(groups):
            places = [place for place, bar in enumerate(some) if bar.group == group]
            mine = [some[place] for place in places]
            around = [[bar.value - bar.interval[0] for bar in mine], [bar.interval[1] - bar.value for bar in mine]]
            look: Any = {"color": COLOURS[index % len(COLOURS)], "edgecolor": "black", "linewidth": 0.8, "capsize": 3}
            axes.barh(places, [bar.value for bar in mine], 0.75, xerr=np.abs(around), label=group, **look)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(some)), [bar.label for bar in some], fontsize=9)
        axes.set_ylim(-0.7, len(some) - 0.3)
        axes.set_xlabel(f"CCC of {name}")
    all_axes[0].invert_yaxis()
    drawn.legend(
        *all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=10
    )
    return drawn


@in_style
def error_by_count(
    errors: Sequence[tuple[int, Sequence[float]]], title: str, measured: Mapping[int, int] | None = None
) -> "Figure":
    """Error of each trait against the number of utterances that it is estimated from.

    errors: (count, RMSE of each trait in the order of TRAITS), counts rising. measured: conversations behind each
    count, where known; they are written along the top, because high counts have few. Raises PlotError without errors.
    """
    if not errors:
        raise PlotError(f"{title}: has no error by number of utterances; evaluate the model on held-out speakers first")
    counts = [count for count, _ in errors]
    table = np.array([values for _, values in errors], dtype=np.float64)  # (counts, 5)
    ticks = _ticks(counts)
    drawn, axes = canvas((7.2, 4.8))
    for index, trait in enumerate(TRAITS):
        look: Any = {"color": COLOURS[index], "marker": MARKERS[index], "linewidth": 1.6, "markersize": 7}
        axes.plot(counts, table[:, index], **look, markevery=[counts.index(tick) for tick in ticks], label=trait)
    axes.plot(counts, table.mean(axis=1), color="black", linestyle="--", linewidth=2.2, label="mean of the five")
    axes.set(xlabel="utterances so far", ylabel="root mean square error (scale 1 to 7)")
    axes.set_ylim(0, float(table.max()) * 1.12)
    axes.set_xticks(ticks)
    axes.set_title(title, loc="left")
    if measured:
        top = axes.secondary_xaxis("top")
        top.set_xticks(ticks, [str(measured[count]) for count in ticks])
        top.set_xlabel("conversations measured", fontsize=10)
        top.tick_params(labelsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=11)
    return drawn


@in_style
def curves(log: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """What a run lost in training and reached on dev, evaluation by evaluation; a line marks the one that was kept.

    log: lines of a run's log.jsonl: {"step": 12, "epoch": 1.0 or absent, "loss": {part: value}, "dev": {"score": value,
    figure: value}}. Losses have a logarithmic axis where they are positive. The word error rate is left out.

    Raises PlotError where there is no evaluation, or a line has no such fields.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    if not log:
        raise PlotError(f"{title}: has no evaluation yet: train it further")
    for number, line in enumerate(log, 1):
        parts = [line.get("loss"), line.get("dev")]
        values = [line.get("step"), *(value for part in parts if isinstance(part, Mapping) for value in part.values())]
        known = all(isinstance(part, Mapping) for part in parts) and "score" in line["dev"]
        if not known or not all(isinstance(value, int | float) and np.isfinite(value) for value in values):
            raise PlotError(f"{title}: evaluation {number} is not one of a run: {str(line)[:100]}")
    by_epoch = all("epoch" in line for line in log)
    x = [float(line["epoch" if by_epoch else "step"]) for line in log]
    drawn, losses = canvas((8.6, 7.0))
    losses.remove()
    losses, reached = drawn.subplots(2, 1, sharex=True)
    score = [float(line["dev"]["score"]) for line in log]
    best = int(np.argmax(score))
    figures = [name for name in log[-1]["dev"] if name not in ("score", "wer")]
    chooses = [name for name in figures if [line["dev"].get(name) for line in log] == score]
    for axes, part, names in ((losses, "loss", list(log[-1]["loss"])), (reached, "dev", figures)):
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        for index, name in enumerate(names):
            y = [float(line[part].get(name, np.nan)) for line in log]
            look: Any = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
            label = {"loss": "all together", "ctc": "CTC"}.get(name, name)
            label += " (chooses)" if part == "dev" and name in chooses else ""
            axes.plot(x, y, linewidth=1.6, markersize=4, label=label, **look)
        axes.axvline(x[best], color="#888888", linestyle=":", linewidth=1.2)
    if not chooses:
        reached.plot(x, score, color="black", linestyle="--", linewidth=2.2, label="score (chooses)")
    if all(value > 0 for line in log for value in line["loss"].values()):
        losses.set_yscale("log")
        losses.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())
    losses.set_ylabel("training loss")
    losses.set_title(f"{title}: kept is step {log[best]['step']} (dotted)", loc="left")
    reached.set(xlabel="epoch" if by_epoch else "step", ylabel="CCC on dev")
    for axes in (losses, reached):
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=11)
    return drawn


def measured_errors(predictions: Sequence[Prediction]) -> tuple[list[tuple[int, list[float]]], dict[int, int]]:
    """(errors, conversations measured) for `error_by_count`, from the causal traits of a predictions file.

    Raises PredictionsError where no labelled utterance has causal traits and a count.
    """
    by_count: dict[int, list[tuple[Sequence[float], Sequence[float]]]] = {}
    for prediction in predictions:
        estimate = prediction.predicted
        if prediction.traits is not None and estimate.causal_traits is not None and estimate.heard is not None:
            by_count.setdefault(estimate.heard, []).append((estimate.causal_traits, prediction.traits))
    if not by_count:
        raise PredictionsError(
            "no utterance with true traits has 'causal_traits' and 'heard': predict with a model of setting 3"
        )
    errors = []
    for count in sorted(by_count):
        pairs: NDArray[np.float64] = np.array(by_count[count])  # (conversations, 2, 5)
        errors.append((count, [rmse(pairs[:, 0, index], pairs[:, 1, index]) for index in range(len(TRAITS))]))
    return errors, {count: len(pairs) for count, pairs in by_count.items()}


def canvas(size_inches: tuple[float, float]) -> tuple["Figure", Any]:
    """A figure with one pair of axes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size_inches, layout="constrained")
    axes = drawn.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    return drawn, axes


def legend_beside(axes: Any, **options: Any) -> None:
    """The legend to the right of the axes, where no data are."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=11, **options)


def legend_below(figure: "Figure", *, columns: int, **options: Any) -> None:
    """The legend of a figure of `canvas` below its axes, where no data are."""
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=11, **options)


def draw_intervals(
    axes: Any,
    places: Iterable[float],
    values: Iterable[float],
    ends: Iterable[tuple[float | None, float | None]],
    color: str,
    *,
    lying: bool = False,
) -> None:
    """Thin bars from end to end, with caps; dotted and without one towards an end that is None, beyond what was seen.

    places, values: x and y of the points, or y and x if lying; NaN is left out, and what has no end at all. ends: as of
    `quantile_interval`.
    """
    look: Any = {"color": color, "marker": "|" if lying else "_", "linewidth": 1.2, "markersize": 9, "zorder": 2.5}
    for place, value, (low, high) in zip(places, values, ends, strict=True):
        if np.isnan(value) or (low is None and high is None):
            continue
        for end, beyond in ((low, value / 1.3), (high, value * 1.3)):
            along, across = [value, beyond if end is None else end], [place, place]
            line = {"linestyle": ":", "markevery": []} if end is None else {"linestyle": "-", "markevery": [1]}
            axes.plot(*((along, across) if lying else (across, along)), **look, **line)


def _ticks(counts: Sequence[int]) -> list[int]:
    """The counts to label on the axis: all of up to 12; of more, the first and every multiple of 5, 10, 20 …"""
    if len(counts) <= 12:
        return list(counts)
    step = next(step for step in (5, 10, 20, 50, 100, counts[-1]) if counts[-1] / step <= 12)
    return [count for count in counts if count == counts[0] or count % step == 0]


def _bars(results: Mapping[str, Any], where: str) -> tuple[dict[str, list[float]], dict[str, list[float]], list[str]]:
    """(means, sds) by kind, and the names, emotions first. Raises PlotError, naming the entry that is wrong."""
    kinds = ("single", "multitask")
    for kind in kinds:
        if not isinstance(results, Mapping) or not isinstance(results.get(kind), Mapping) or not results[kind]:
            raise PlotError(f'{where}: needs an object "{kind}" of {{"valence": {{"mean": 0.7, "sd": 0.01}}, …}}')
    if set(results["single"]) != set(results["multitask"]):
        odd = ", ".join(sorted(set(results["single"]) ^ set(results["multitask"])))
        raise PlotError(f"{where}: {odd}: in one of single and multitask only; give both the same names")
    known = (*EMOTIONS, *TRAITS)
    if unknown := sorted(set(results["single"]) - set(known)):
        raise PlotError(f"{where}: {', '.join(unknown)}: no such figure; known are {', '.join(known)}")
    names = [name for name in known if name in results["single"]]
    heights = {
        kind: [_figure(results[kind][name], "mean", f"{where}: {kind}.{name}") for name in names] for kind in kinds
    }
    errors = {kind: [_figure(results[kind][name], "sd", f"{where}: {kind}.{name}") for name in names] for kind in kinds}
    return heights, errors, names


def _figure(entry: Any, key: str, where: str) -> float:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if value is None and key == "sd" and isinstance(entry, Mapping):
        return 0.0  # one seed: no bar
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not np.isfinite(value)
        or (key == "sd" and value < 0)
    ):
        raise PlotError(f'{where}: must be {{"mean": number, "sd": number from 0, or null}}, is {entry!r}')
    return float(value)
