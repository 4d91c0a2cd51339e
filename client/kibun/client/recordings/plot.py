"""A figure of one recording: valence, arousal and traits over time, the traits with the error to expect.

Made without pyplot: no window, no state, no display needed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kibun.client.audio_file import shown
from kibun.client.errors import InputError
from kibun.client.estimates import EMOTION_MAX, EMOTION_MIN, TRAIT_MAX, TRAIT_MIN, TRAITS
from kibun.client.recordings.annotations import DIMENSIONS, targets
from kibun.client.recordings.rows import FileResult, Row, number
from kibun.client.standard_streams import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
# Okabe & Ito 2008: distinguishable with any colour vision; speakers also differ in their line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "kibun",  # the same names inside in every run
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
}


class Plots:
    """A figure per recording: `path` for the only one, else one beside the other, each with its recording's name."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"--plot {shown(path)}: end its name in {', '.join(FORMATS)}")
        if not path.parent.is_dir():
            raise InputError(f"--plot {shown(path)}: name a file in a folder that exists")
        if len(set(files)) == 1:
            self._targets = {files[0]: path}
            return
        self._targets = {
            recording: path.with_name(f"{path.stem}-{'-'.join(target.relative_to(path.parent).parts)}")
            for recording, target in targets(path.parent, path.suffix, files).items()
        }

    def write(self, result: FileResult) -> None:
        if not result.utterances:
            return
        import matplotlib

        path = self._targets[result.path]
        dates: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        with matplotlib.rc_context(_STYLE):
            draw(result).savefig(path, dpi=150, metadata=dates.get(path.suffix.lower()))

    def finish(self) -> None: ...


def draw(result: FileResult) -> "Figure":
    """Two panels for emotion, a bar per utterance, and one per trait, a step per utterance with the expected error.

    Dimensions that the model does not estimate have no panel.
    """
    from matplotlib.figure import Figure

    rows = result.utterances
    shown_ones = [name for name in DIMENSIONS if any(row[name] is not None for row in rows)] or list(DIMENSIONS[:2])
    heights = [1.0 if name in TRAITS else 1.6 for name in shown_ones]
    figure = Figure(figsize=(10, 1.7 + 1.1 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(shown_ones), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    unit_s, unit = (60, "minutes") if result.duration_s >= 300 else (1, "seconds")
    for at, speaker in enumerate(result.participants):
        style = {"color": _COLOURS[at % len(_COLOURS)], "linestyle": _LINES[at % len(_LINES)]}
        of_speaker = [row for row in rows if row["participant"] == speaker]
        for panel, name in zip(panels, shown_ones, strict=True):
            if name in TRAITS:
                _draw_trait(panel, of_speaker, name, unit_s, result.duration_s, style)
            else:
                _draw_emotion(panel, of_speaker, name, unit_s, style)
        panels[0].plot([], [], linewidth=3, label=printable(speaker), **style)
    for panel, name in zip(panels, shown_ones, strict=True):
        low, high = (TRAIT_MIN, TRAIT_MAX) if name in TRAITS else (EMOTION_MIN, EMOTION_MAX)
        panel.set(ylim=(low - 0.1, high + 0.1), yticks=(low, (low + high) / 2, high))  # bars at the ends are whole
        panel.axhline((low + high) / 2, color="0.85", linewidth=0.8, zorder=0)
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
    panels[-1].set(xlabel=unit, xlim=(0, result.duration_s / unit_s))
    _head(figure, result)
    return figure


def _head(figure: "Figure", result: FileResult) -> None:
    """Name, what is shown, and who is who: above and below the panels, where no data is."""
    row = result.rows[0]
    lines = [f"{shown(result.path.name)[:80]}, estimated by {row['model']}"]
    if row["synthetic_model"]:
        lines.append("the model learnt from generated speech: tells you nothing about real people")
    told = "emotion, 1 to 5: a bar per utterance"
    if any(row[name] is not None for row in result.utterances for name in TRAITS):
        known = any(row[f"{name}_error"] is not None for row in result.utterances for name in TRAITS)
        told += "; traits, 1 to 7: as heard so far"
        told += ", with their expected error" if known else "; their expected error is unknown"
        if any(row["no_better_than_mean"] for row in result.utterances):
            told += " (dotted: no better than guessing the mean)"
    figure.suptitle("\n".join([*lines, told]), fontsize=10, x=0.02, ha="left")
    if len(result.participants) > 1:
        figure.legend(loc="outside lower center", ncols=min(len(result.participants), 5), frameon=False)


def _draw_emotion(panel: "Axes", rows: list[Row], name: str, unit_s: int, style: dict[str, Any]) -> None:
    spoken = [row for row in rows if row[name] is not None]
    middles = [(number(row["start_s"]) + number(row["end_s"])) / 2 / unit_s for row in spoken]
    values = [number(row[name]) for row in spoken]
    panel.plot(middles, values, linewidth=0.8, alpha=0.5, **style)
    for row, value in zip(spoken, values, strict=True):
        ends = [number(row["start_s"]) / unit_s, number(row["end_s"]) / unit_s]
        panel.plot(ends, [value, value], linewidth=4, solid_capstyle="butt", color=style["color"])


def _draw_trait(
    panel: "Axes", rows: list[Row], name: str, unit_s: int, duration_s: float, style: dict[str, Any]
) -> None:
    """From the end of each utterance on, what was then known; to the end of the recording."""
    known = [row for row in rows if row[name] is not None]
    if not known:
        return
    times = [*(number(row["end_s"]) / unit_s for row in known), duration_s / unit_s]
    values = [number(row[name]) for row in known]
    values.append(values[-1])
    if all(row[f"{name}_error"] is not None for row in known):
        errors = [number(row[f"{name}_error"]) for row in known]
        errors.append(errors[-1])
        low = [value - error for value, error in zip(values, errors, strict=True)]
        high = [value + error for value, error in zip(values, errors, strict=True)]
        panel.fill_between(times, low, high, step="post", color=style["color"], alpha=0.15, linewidth=0)
    worthless = name in str(known[-1]["no_better_than_mean"] or "").split()
    panel.step(times, values, where="post", linewidth=1.6, **(style | {"linestyle": ":"} if worthless else style))
