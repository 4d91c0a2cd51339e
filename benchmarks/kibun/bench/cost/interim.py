"""What interims cost beside the final, by schedule, and how close to the final an estimate from part of the audio is.

The cost is that of real encodings by a model of HuBERT-base's size with random weights, loaded as it is served. The
error is that of demo-tiny, which was trained on synthetic speech, on the bundled demo dialogue, which is synthetic
too: it shows how estimates converge with more audio, not how good they are.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kibun.bench.support import machine
from kibun.bench.support.bare import base_size
from kibun.bench.support.report import Report
from kibun.bench.support.speech_like import speech_like
from kibun.bench.support.timing import interleaved
from kibun.models.bundle import load_bundle
from kibun.models.types import SAMPLE_RATE_HZ, Analysis, Utterance
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.inference.worker import load_models
from kibun.server.inference.worker_protocol import LoadOptions
from kibun.server.session.turn_tracker import FIRST_INTERIM, INTERIM_RATIO
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT = 3.0  # what all encodings of an utterance may cost, in encodings of it
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PART_LENGTHS_S = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
MEAN_LENGTHS_S = np.geomspace(0.8, 15.0, 300)  # for means: as skewed as lengths in dialogue are
_ENDPOINTING = EndpointingOptions()
LONGEST_S = _ENDPOINTING.max_utterance_ms / 1000
# The end of an utterance is awaited for that long after the audio of the final; an interim may fall due meanwhile.
AFTER_S = (_ENDPOINTING.utterance_end_silence_ms - _ENDPOINTING.hang_over_ms) / 1000


@dataclass(frozen=True)
class Schedule:
    """When interims fall due, in seconds of the open utterance; `ratio` of one time to the next, 1: fixed intervals."""

    first_s: float
    ratio: float = 1.0

    @property
    def name(self) -> str:
        fixed, geometric = f"every {self.first_s:g} s", f"from {self.first_s:g} s, times {self.ratio:g}"
        return (fixed if self.ratio == 1 else geometric) + (" (default)" if self == DEFAULT else "")

    def due_s(self, length_s: float) -> list[float]:
        """Interims of an utterance whose final has `length_s` of audio."""
        until_s = min(length_s + AFTER_S, LONGEST_S)
        return [due for due in self._times() if due <= until_s + 1e-9]

    def worst_s(self, longest_s: float = LONGEST_S) -> list[float]:
        """The lengths up to `longest_s` that cost most: the last interim has just fallen due."""
        ends = [due - AFTER_S for due in self._times()]
        return [end for end in ends if 0.1 < end <= longest_s + 1e-9]

    def _times(self) -> Iterator[float]:
        due = self.first_s
        while due <= LONGEST_S:
            yield due
            due = due + self.first_s if self.ratio == 1 else due * self.ratio


DEFAULT = Schedule(FIRST_INTERIM / SAMPLE_RATE_HZ, INTERIM_RATIO)
OTHER = Schedule(1.0, 2.0)  # measured beside it
SCHEDULES = (
    Schedule(0.5),
    Schedule(1.0),
    *(Schedule(1.0, ratio) for ratio in sorted({1.5, 2.0, 2.5, 3.0, 4.0} | {DEFAULT.ratio})),
    Schedule(0.5, DEFAULT.ratio),
    Schedule(2.0, DEFAULT.ratio),
)


@dataclass(frozen=True)
class Costs:
    """Seconds that an encoding took, by seconds of audio, in each round."""

    rounds: Mapping[float, Sequence[float]]

    def measured_factor(self, schedule: Schedule, length_s: float) -> float:
        """Time of all encodings over that of the final: median over the rounds of the quotient in that round."""
        interims = [self.rounds[due] for due in schedule.due_s(length_s)]
        finals = self.rounds[length_s]
        sums = [sum(times) for times in zip(finals, *interims, strict=True)]
        return float(statistics.median(whole / final for whole, final in zip(sums, finals, strict=True)))

    @cached_property
    def line(self) -> tuple[float, float]:
        """Seconds per second of audio and seconds per encoding: least squares of the relative error of the medians."""
        lengths = np.array(list(self.rounds))
        times = np.array([statistics.median(taken) for taken in self.rounds.values()])
        slope, fixed = np.polyfit(lengths, times, 1, w=1 / times)
        return float(slope), float(fixed)

    def expected_s(self, audio_s: float) -> float:
        """Seconds of one encoding on that line."""
        per_audio_s, per_encoding_s = self.line
        return per_audio_s * audio_s + per_encoding_s

    def factor(self, schedule: Schedule, length_s: float) -> float:
        """Expected time of all encodings over that of the final."""
        final = self.expected_s(length_s)
        return (final + sum(map(self.expected_s, schedule.due_s(length_s)))) / final


@dataclass(frozen=True)
class Errors:
    """Mean absolute difference to the final, over utterances."""

    utterances: int
    valence: float  # of 1..5
    arousal: float  # of 1..5
    traits: float  # of 1..7, mean of the five


def counted_factor(schedule: Schedule, length_s: float) -> float:
    """Audio of all encodings over that of the final."""
    return (length_s + sum(schedule.due_s(length_s))) / length_s


def measure(*, quick: bool) -> Report:
    """Time the default schedule's encodings, and compare early estimates with finals."""
    costs, precision = _time(longest_s=7.0 if quick else LONGEST_S, rounds=3 if quick else 5)
    worst, other = (
        {length: costs.measured_factor(schedule, length) for length in schedule.worst_s() if length in costs.rounds}
        for schedule in (DEFAULT, OTHER)
    )
    by_share, by_seconds, spread = _errors()
    payload: dict[str, Any] = {
        "encoding_factor": max(worst.values()),
        "encoding_factor_by_s": {f"{length:g}": factor for length, factor in worst.items()},
        "encoding_factor_doubling": max(other.values()),
        "encoding_factor_counted": max(counted_factor(DEFAULT, length) for length in DEFAULT.worst_s()),
        "encoding_s": {f"{length:g}": statistics.median(times) for length, times in sorted(costs.rounds.items())},
        "seconds_per_audio_s": costs.line[0],
        "seconds_per_encoding": costs.line[1],
        "schedules": [_schedule_as_json(schedule, costs) for schedule in SCHEDULES],
        "error_by_share": {f"{share:g}": vars(error) for share, error in by_share.items()},
        "error_by_seconds": {f"{seconds:g}": vars(error) for seconds, error in by_seconds.items()},
        "error_unheard": vars(spread),
        "precision": precision,
        "machine": machine.describe(),
    }
    tables = (
        *(_worst_table(schedule, found, precision) for schedule, found in ((DEFAULT, worst), (OTHER, other))),
        _schedule_table(payload["schedules"], costs),
        _error_table("Error against the share heard", "share", by_share, spread),
        _error_table("Error against the seconds heard", "seconds", by_seconds, spread),
    )
    return Report(payload, tables, lambda: _draw(costs, by_share, spread))


# ---- cost


def _time(longest_s: float, rounds: int) -> tuple[Costs, str]:
    """And the precision that the encodings ran in."""
    lengths = {
        audio_s
        for schedule in (DEFAULT, OTHER)
        for length in schedule.worst_s(longest_s)
        for audio_s in (length, *schedule.due_s(length))
    }
    with tempfile.TemporaryDirectory() as folder:
        base_size(folder)
        (model,) = load_models(LoadOptions(loader="", models=(folder,), device="cpu", allow_untrained=True)).models
    nothing = np.empty((0, model.info.vector_size), np.float16)

    def encoding(length_s: float) -> Callable[[], object]:
        utterance = Utterance(speech_like(length_s), nothing)
        return lambda: model.analyze([utterance])

    times = interleaved({str(length): encoding(length) for length in lengths}, rounds)
    return Costs({float(length): taken for length, taken in times.items()}), model.info.precision


def _schedule_as_json(schedule: Schedule, costs: Costs) -> dict[str, Any]:
    worst = [*schedule.worst_s(), LONGEST_S]
    shares = [max(due for due in (0.0, *schedule.due_s(s)) if due <= s) / s for s in MEAN_LENGTHS_S]
    return {
        "schedule": schedule.name,
        "first_s": schedule.first_s,
        "ratio": schedule.ratio,
        "worst_counted": max(counted_factor(schedule, s) for s in worst),
        "worst": max(costs.factor(schedule, s) for s in worst),
        "mean": statistics.fmean(costs.factor(schedule, float(s)) for s in MEAN_LENGTHS_S),
        "at_10_s": costs.factor(schedule, 10.0),
        "last_heard": statistics.fmean(shares),
    }


# ---- error


def _errors() -> tuple[dict[float, Errors], dict[float, Errors], Errors]:
    """By share analysed; by seconds analysed; and of a constant estimate, the finals' mean."""
    model = load_bundle("demo-tiny")
    nothing = np.empty((0, model.vector_size), np.float16)

    def estimate(audios: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
        return np.array([_numbers(model.analyze([Utterance(audio, nothing)])[0]) for audio in audios])  # (n, 7)

    spoken = _dialogue()
    finals = estimate(spoken)
    by_share = {
        share: difference(estimate([audio[: round(share * len(audio))] for audio in spoken]), finals)
        for share in SHARES
    }
    by_seconds = {}
    for length_s in PART_LENGTHS_S:
        long = [index for index, audio in enumerate(spoken) if len(audio) >= length_s * SAMPLE_RATE_HZ]
        early = estimate([spoken[index][: round(length_s * SAMPLE_RATE_HZ)] for index in long])
        by_seconds[length_s] = difference(early, finals[long])
    return by_share, by_seconds, difference(np.broadcast_to(finals.mean(axis=0), finals.shape), finals)


def _dialogue() -> list[npt.NDArray[np.float32]]:
    """The turns of the bundled demo dialogue, (N_i,) each."""
    import soundfile

    demo = files("kibun.client.demo")
    with (demo / "dialogue.flac").open("rb") as file:
        audio, rate_hz = soundfile.read(file, dtype="float32")
    turns = json.loads((demo / "dialogue.json").read_text())
    return [audio[round(turn["start_s"] * rate_hz) : round(turn["end_s"] * rate_hz)] for turn in turns]


def _numbers(analysis: Analysis) -> list[float]:
    assert analysis.valence is not None
    assert analysis.arousal is not None
    assert analysis.utterance_traits is not None
    return [analysis.valence, analysis.arousal, *analysis.utterance_traits]


def difference(estimates: npt.NDArray[np.float64], finals: npt.NDArray[np.float64]) -> Errors:
    """Of estimates (n, 7): valence, arousal, five traits."""
    mean = np.abs(estimates - finals).mean(axis=0)
    return Errors(len(finals), float(mean[0]), float(mean[1]), float(mean[2:].mean()))


# ---- tables and figure


def _worst_table(schedule: Schedule, worst: Mapping[float, float], precision: str) -> Table:
    rows = [
        Row(f"{length:g} s", (Cell(counted_factor(schedule, length)), Cell(factor), Cell(factor / LIMIT)))
        for length, factor in worst.items()
    ]
    return Table(
        f"All encodings over one, {schedule.name}, where its last interim has just fallen due",
        ("utterance", "counted in audio", "measured", f"of the limit of {LIMIT:g}"),
        tuple(rows),
        (
            f"HuBERT-base's size with random weights, as it is served ({precision}), one thread.",
            "Medians of quotients within a round, final included.",
        ),
    )


def _schedule_table(schedules: Sequence[Mapping[str, Any]], costs: Costs) -> Table:
    names = ("worst_counted", "worst", "mean", "at_10_s", "last_heard")
    rows = [Row(entry["schedule"], tuple(Cell(entry[name]) for name in names)) for entry in schedules]
    return Table(
        "Cost of a schedule: all encodings of an utterance, final included, over one",
        ("interims", "worst, counted", "worst", "mean", "at 10 s", "heard by the last"),
        tuple(rows),
        (
            f"Worst of all lengths up to {LONGEST_S:g} s; counted in audio, the rest in time, by the straight line"
            f" through what was measured: {costs.line[0]:.3f} s per second of audio and {costs.line[1]:.3f} s each.",
            "Mean over lengths from 0.8 to 15 s, evenly spread on a log scale.",
            "Heard by the last: share of an utterance that its last interim had heard, mean over the same lengths.",
        ),
    )


def _error_table(title: str, unit: str, errors: Mapping[float, Errors], spread: Errors) -> Table:
    def row(label: str, error: Errors) -> Row:
        kinds = ("valence", "arousal", "traits")
        ratios = [getattr(error, kind) / getattr(spread, kind) for kind in kinds]
        values = (*(getattr(error, kind) for kind in kinds), statistics.fmean(ratios))
        return Row(label, (Cell(error.utterances), *map(Cell, values)))

    labels = {part: f"{part:.0%}" if unit == "share" else f"{part:g} s" for part in errors}
    return Table(
        f"{title}: mean absolute difference to the final",
        ("heard", "utterances", "valence (1 to 5)", "arousal (1 to 5)", "traits (1 to 7)", "mean ratio to unheard"),
        (*(row(labels[part], error) for part, error in errors.items()), row("unheard", spread)),
        (
            "demo-tiny, trained on synthetic speech, on the synthetic voices of the demo dialogue: how estimates"
            " converge, not how good they are.",
            "Unheard: the mean of all finals, whatever is said.",
        ),
    )


def _draw(costs: Costs, by_share: Mapping[float, Errors], spread: Errors) -> Figure:
    """Left, cost against the length of the utterance; right, error against the share analysed."""
    from matplotlib.figure import Figure

    from kibun.training.evaluation.plots import COLOURS, MARKERS

    drawn = Figure(figsize=(12.6, 5.6), layout="constrained")
    cost, error = drawn.subplots(1, 2)
    lengths = np.arange(0.5, LONGEST_S + 0.01, 0.05)
    shown = [Schedule(0.5), Schedule(1.0), *(s for s in SCHEDULES if s.first_s == 1 and s.ratio in (2.0, 4.0))]
    for index, schedule in enumerate([*(s for s in shown if s != DEFAULT), DEFAULT]):
        factors = [costs.factor(schedule, float(length)) for length in lengths]
        default = schedule == DEFAULT
        look: Any = {"color": "black" if default else COLOURS[index], "linewidth": 2.4 if default else 1.5}
        cost.plot(lengths, factors, label=schedule.name, **look)
    cost.axhline(LIMIT, color=COLOURS[5], linewidth=1.2, linestyle=":", label=f"limit: {LIMIT:g}")
    cost.set(xlabel="length of the utterance (s)", ylabel="time of all analyses over that of one", ylim=(0, 12))
    cost.set_title("What interims cost, the final included", loc="left")
    cost.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=11)
    shares = [0.0, *(100 * share for share in by_share), 100.0]
    for index, kind in enumerate(("valence", "arousal", "traits")):
        unheard = getattr(spread, kind)
        ratios = [1.0, *(getattr(errors, kind) / unheard for errors in by_share.values()), 0.0]
        look = {"color": COLOURS[index], "marker": MARKERS[index], "linewidth": 1.6, "markersize": 7}
        error.plot(shares, ratios, label=kind, **look)
    error.axvline(100 / DEFAULT.ratio, color="black", linewidth=1.2, linestyle=":", label="least heard, default")
    error.set(xlabel="share of the utterance heard (%)", ylabel="difference over that of a guess", ylim=(0, None))
    error.set_title(f"How far interims are from finals (demo-tiny, {spread.utterances} utterances)", loc="left")
    error.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=11)
    return drawn
