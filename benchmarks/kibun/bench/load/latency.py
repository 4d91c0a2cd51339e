"""`kibun bench latency`: how late a final is, with and without the analysis that begins in the silence before it.

The server, and the clients that speak to it in real time, are processes of their own. Eager and plain streams take
turns on one server with the same utterances. What eager work costs is counted on recordings of conversations
(`early_work`), as synthetic voices do not pause the way people do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kibun.bench.load import early_work
from kibun.bench.load.latency_clients import END_OF_TURN_S, How, make_talk
from kibun.bench.load.serve import BASE, TINY, MeasurementError, schedule
from kibun.bench.support import machine, material
from kibun.bench.support.child import Child
from kibun.bench.support.report import Report
from kibun.client.server_process import ServerProcess
from kibun.models.types import SAMPLE_RATE_HZ, Precision
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.training.evaluation.metrics import quantile_interval
from kibun.training.evaluation.report_table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALONE = "1 stream"
LOADS = (0.2, 0.6)
UP_TO_S = 2.0  # longer utterances take longer to encode than the silence lasts: the headline is of these
TARGET_MS = 5.0  # beyond the decision
LIMIT = 3.0  # all encodings over the final
MODES = {"eager": True, "plain": False}


@dataclass(frozen=True)
class LatencyEffort:
    """How much is measured."""

    utterances: int
    longest_s: float  # of speech; the shortest has 0.8 s
    rounds: int  # of a stream with all utterances, eager and plain in turn
    rounds_end_of_turn: int
    load_s: float  # in which the utterances of a load end


FULL = LatencyEffort(utterances=5, longest_s=5.0, rounds=3, rounds_end_of_turn=1, load_s=20.0)
QUICK = LatencyEffort(utterances=2, longest_s=2.0, rounds=1, rounds_end_of_turn=0, load_s=2.5)


@dataclass(frozen=True)
class TimedFinal:
    """One final as its client saw it. Times in milliseconds."""

    utterance: int
    audio_s: float  # that the model was given
    beyond_ms: float  # the message that brought the decision was sent → the final is here
    speech_ms: float | None  # last sample of the speech → the final is here
    key: tuple[int, ...]  # what it is a final of; the same in every mode and round
    bits: str  # digest of what was estimated


@dataclass(frozen=True)
class Phase:
    """Finals of one load, one way to end utterances and one mode."""

    model: str
    load: str
    how: How
    mode: str
    offered: int
    refused: int
    lost: int
    late_p99: float
    finals: tuple[TimedFinal, ...]

    def beyond(self, up_to_s: float | None = None, lengths_s: Sequence[float] = ()) -> dict[str, float | None]:
        """p50 and p95 beyond the decision, of utterances with at most so much speech."""
        return _p50_p95(
            final.beyond_ms for final in self.finals if up_to_s is None or lengths_s[final.utterance] <= up_to_s + 1e-6
        )

    def after_speech(self) -> dict[str, float | None]:
        """p50 and p95 after the last sample of speech."""
        return _p50_p95(final.speech_ms for final in self.finals if final.speech_ms is not None)


@dataclass(frozen=True)
class Moments:
    """Of the median utterance up to UP_TO_S, ms after its last sample of speech, as the timeline shows them."""

    complete: float  # the message came that completes its audio
    decided: float  # the message came that ends it
    final: dict[str, float]  # by mode: the final was there, median
    interval: dict[str, tuple[float | None, float | None]]  # 95 % of that median; None: so few finals do not tell
    encoding: float  # how long the encoding takes: from the decision to the final, where nothing was begun before


@dataclass(frozen=True)
class ModelFigures:
    """All of one model."""

    name: str
    precision: str
    capacity: float | None  # audio seconds per second, that load 1 stands for; None: no loads were measured
    phases: tuple[Phase, ...]
    moments: Moments

    def phase(self, load: str, how: How, mode: str) -> Phase:
        (found,) = (p for p in self.phases if (p.load, p.how, p.mode) == (load, how, mode))
        return found

    @property
    def identical(self) -> bool:
        """Whether eager and plain finals of the same utterances have the same bits, and there are some."""
        bits: dict[tuple[object, ...], set[str]] = {}
        modes: dict[tuple[object, ...], set[str]] = {}
        for phase in self.phases:
            for final in phase.finals:
                key = (phase.how, *final.key)
                bits.setdefault(key, set()).add(final.bits)
                modes.setdefault(key, set()).add(phase.mode)
        compared = [key for key, seen in modes.items() if len(seen) == len(MODES)]
        return bool(compared) and all(len(values) == 1 for values in bits.values())


def measure(
    model: str | None = None,
    *,
    precision: Precision = "auto",
    quick: bool = False,
    seconds: float | None = None,
    recordings: Path | None = None,
) -> Report:
    """Measure a bundle, or demo-tiny and HuBERT-base's size with random weights.

    seconds: in which the utterances of each load end; None: 20, quick 2.5. recordings: of conversations, to
    count what is encoded in vain; None: that is not known.
    Raises ChildError, ServerStartError, MeasurementError, RecordingError or AudioFileError.
    """
    plan = QUICK if quick else FULL
    plan = replace(plan, load_s=seconds or plan.load_s)
    heard = early_work.read(recordings) if recordings else None  # before minutes are spent
    utterances = material.utterances(plan.utterances, 0.8, plan.longest_s)
    lengths_s = [len(pcm) / SAMPLE_RATE_HZ for pcm in utterances]
    with tempfile.TemporaryDirectory() as temporary:
        stored, bundle = Path(temporary) / "material.npz", Path(temporary) / "base"
        material.write(stored, utterances)
        bench = _Bench(plan, precision, utterances, stored)
        if model is None:
            with Child("kibun.bench.support.bare", str(stored)) as bare:
                bare.ask("base_size", folder=str(bundle))
            found = [bench.model(TINY, TINY, loads=False), bench.model(BASE, str(bundle), loads=True)]
        else:
            found = [bench.model(model, model, loads=True)]
    counted = {name: _count(heard, interims=on) for name, on in INTERIMS.items()} if heard else None
    busy = early_work.count(heard, eager=True, interims=False, cost=early_work.BUSY_COST) if heard else None
    return make_report(found, lengths_s, machine.describe(), counted, busy)


INTERIMS = {"without interims": False, "with interims": True}


def _count(recordings: Sequence[early_work.Recording], *, interims: bool) -> early_work.Work:
    return early_work.count(recordings, eager=True, interims=interims)


class _Bench:
    """The plan and the utterances, for one model after the other."""

    def __init__(
        self, plan: LatencyEffort, precision: Precision, utterances: Sequence[material.Pcm], stored: Path
    ) -> None:
        self._plan = plan
        self._precision = precision
        self._utterances = utterances
        self._stored = stored

    def model(self, name: str, bundle: str, *, loads: bool) -> ModelFigures:
        with (
            ServerProcess(bundle, ["--allow-untrained", "--precision", self._precision]) as server,
            Child("kibun.bench.load.latency_clients", server.target, str(self._stored)) as clients,
        ):
            phases = [*self._alone(name, clients, "silence", self._plan.rounds)]
            phases += self._alone(name, clients, "end_of_turn", self._plan.rounds_end_of_turn)
            capacity = self._capacity(server) if loads else None
            if capacity is not None:
                phases += [phase for load in LOADS for phase in self._loaded(name, clients, load, capacity)]
            precision = _precision(server.stderr)
        return ModelFigures(name, precision, capacity, tuple(phases), self._moments(phases))

    def _alone(self, name: str, clients: Child, how: How, rounds: int) -> list[Phase]:
        """One stream with all utterances, one after the other, eager and plain in turn."""
        replies: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
        for number in range(rounds):
            for mode in MODES if number % 2 == 0 else reversed(MODES):
                replies[mode].append(self._speak(clients, [(range(len(self._utterances)), 0.0)], mode, how))
        return [_phase(name, ALONE, how, mode, replies[mode], alone=True) for mode in MODES if rounds]

    def _loaded(self, name: str, clients: Child, load: float, capacity: float) -> list[Phase]:
        """Streams of one utterance each, whose ends are a Poisson process; the same for eager and plain."""
        analysed_s = [self._analysed_s(index) for index in range(len(self._utterances))]
        arrivals = schedule(analysed_s, load * capacity, self._plan.load_s, seed=round(100 * load))
        talks = [([index], begins_s) for index, begins_s in arrivals]
        return [
            _phase(name, f"{load:.0%}", "silence", mode, [self._speak(clients, talks, mode, "silence")], alone=False)
            for mode in MODES
        ]

    def _speak(
        self, clients: Child, talks: Iterable[tuple[Iterable[int], float]], mode: str, how: How
    ) -> dict[str, Any]:
        listed = [(list(indices), begins_s) for indices, begins_s in talks]
        replies = clients.ask("talk", talks=listed, eager=MODES[mode], how=how)
        if replies["unexpected"]:
            raise MeasurementError("the server found other utterances than its own segmenter finds in the same audio")
        if not replies["finals"]:
            raise MeasurementError(f"no final came: {', '.join(set(replies['lost'])) or 'every stream was refused'}")
        return replies

    def _capacity(self, server: ServerProcess) -> float:
        """Seconds of audio that the server analyses per second while its queue never runs empty."""
        order = [index for index in reversed(range(len(self._utterances))) for _ in range(3)]
        with Child("kibun.bench.load.generator", server.target, str(self._stored)) as clients:
            clients.ask("push", order=order[:1], streams=1)
            served = clients.ask("push", order=order, streams=8)
        return float(sum(samples for _, samples in served["finals"]) / SAMPLE_RATE_HZ / served["seconds"])

    def _analysed_s(self, index: int) -> float:
        """Audio of an utterance's final: speech, pre-roll and hang-over."""
        talk = make_talk(self._utterances, [index], "silence", "silero")
        return sum(end - start for start, end in talk.known) / SAMPLE_RATE_HZ

    def _moments(self, phases: Sequence[Phase]) -> Moments:
        """Of the longest utterance up to UP_TO_S."""
        lengths = [len(pcm) / SAMPLE_RATE_HZ for pcm in self._utterances]
        index = max((i for i, s in enumerate(lengths) if s <= UP_TO_S + 1e-6), key=lambda i: lengths[i])
        talk = make_talk(self._utterances, [index], "silence", "silero")
        ((_, end), known) = list(talk.known.items())[-1]
        complete = next(due for due in talk.due if due >= end)
        finals: dict[str, float] = {}
        intervals: dict[str, tuple[float | None, float | None]] = {}
        encoding = 0.0
        decided: list[float] = []
        for phase in phases:
            if phase.load == ALONE and phase.how == "silence":
                these = [final for final in phase.finals if final.utterance == index and final.speech_ms is not None]
                late = [final.speech_ms for final in these if final.speech_ms is not None]
                finals[phase.mode] = float(np.median(late))
                intervals[phase.mode] = quantile_interval(late, 0.5)
                decided += [late_ms - final.beyond_ms for late_ms, final in zip(late, these, strict=True)]
                if phase.mode == "plain":
                    encoding = float(np.median([final.beyond_ms for final in these]))
        # Which message decides depends on how an utterance lies in its stream: as measured, like the finals.
        decided_ms = float(np.median(decided))
        return Moments(
            decided_ms - (talk.due[known.decided_by] - complete) / 16,
            decided_ms,
            finals,
            intervals,
            encoding,
        )


def _phase(model: str, load: str, how: How, mode: str, replies: Sequence[dict[str, Any]], *, alone: bool) -> Phase:
    finals = tuple(
        TimedFinal(
            heard["utterance"],
            heard["audio_s"],
            heard["beyond_ms"],
            heard["speech_ms"],
            # On a stream of several utterances each rests on those before it.
            (-1 if alone else heard["utterance"], *heard["span"]),
            heard["bits"],
        )
        for reply in replies
        for heard in reply["finals"]
    )
    late = [late_ms for reply in replies for late_ms in reply["late_ms"]]
    return Phase(
        *(model, load, how, mode),
        offered=sum(reply["offered"] for reply in replies),
        refused=sum(reply["refused"] for reply in replies),
        lost=sum(len(reply["lost"]) for reply in replies),
        late_p99=float(np.percentile(late, 99)),
        finals=finals,
    )


def _precision(stderr: str) -> str:
    """What the server said of it; "" where it said nothing."""
    return next((line.partition(" runs in ")[2] for line in stderr.splitlines() if " runs in " in line), "")


def _p50_p95(values: Iterable[float]) -> dict[str, float | None]:
    listed = list(values)
    if not listed:
        return {"p50": None, "p95": None}
    return {"p50": round(float(np.median(listed)), 2), "p95": round(float(np.percentile(listed, 95)), 2)}


# ---- report


def make_report(
    models: Sequence[ModelFigures],
    lengths_s: Sequence[float],
    described: dict[str, Any],
    counted: dict[str, early_work.Work] | None,
    busy: early_work.Work | None,
) -> Report:
    first = models[0]
    work = _work(counted, busy)
    payload: dict[str, Any] = {
        "machine": described,
        "model": first.name,
        "beyond_endpoint_ms": _beyond(first, lengths_s),
        "identical": all(one.identical for one in models),
        **work,
        "up_to_s": UP_TO_S,
        "models": {
            one.name: {
                "precision": one.precision,
                "capacity": one.capacity,
                "beyond_endpoint_ms": _beyond(one, lengths_s),
                "identical": one.identical,
                "timeline_ms": asdict(one.moments),
                "by_load": [_row(phase, lengths_s) for phase in one.phases],
                "by_length": _by_length(one, lengths_s),
            }
            for one in models
        },
    }
    tables = (
        *(_phases_table(one) for one in models),
        *(_lengths_table(one, lengths_s) for one in models),
        _work_table(counted, busy, work),
    )
    return Report(payload, tables, lambda: draw(models))


def _beyond(model: ModelFigures, lengths_s: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """Of one stream whose utterances end in silence, up to UP_TO_S of speech."""
    return {mode: model.phase(ALONE, "silence", mode).beyond(UP_TO_S, lengths_s) for mode in MODES}


def _row(phase: Phase, lengths_s: Sequence[float]) -> dict[str, Any]:
    return {
        "load": phase.load,
        "ended_by": phase.how,
        "mode": phase.mode,
        "offered": phase.offered,
        "finals": len(phase.finals),
        "refused": phase.refused,
        "lost": phase.lost,
        "beyond_endpoint_ms": phase.beyond(),
        "after_speech_ms": phase.after_speech(),
        "at_once_share": _at_once(phase),
        "client_late_p99_ms": round(phase.late_p99, 2),
    }


def _at_once(phase: Phase) -> float | None:
    """Share of finals that were there within the target."""
    within = [final.beyond_ms <= TARGET_MS for final in phase.finals]
    return round(float(np.mean(within)), 3) if within else None


def _by_length(model: ModelFigures, lengths_s: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for index, length_s in enumerate(lengths_s):
        row: dict[str, Any] = {"speech_s": round(length_s, 2)}
        for mode in MODES:
            finals = [final for final in model.phase(ALONE, "silence", mode).finals if final.utterance == index]
            row["analyzed_s"] = round(sum({final.audio_s for final in finals}), 3)
            row[mode] = _p50_p95(final.beyond_ms for final in finals)
            row[f"{mode}_after_speech_ms"] = _p50_p95(f.speech_ms for f in finals if f.speech_ms is not None)
        rows.append(row)
    return rows


def _work(counted: dict[str, early_work.Work] | None, busy: early_work.Work | None) -> dict[str, Any]:
    if counted is None or busy is None:
        reason = "no recordings of conversations were named: --recordings FOLDER"
        return {"wasted_share": None, "encoding_factor": None, "not_counted": reason}
    alone = counted["without interims"]
    return {
        "wasted_share": round(alone.wasted / alone.eager, 4) if alone.eager else None,
        "encoding_factor": {
            name: {"mean": round(work.mean_factor, 3), "worst": round(work.worst_factor, 3)}
            for name, work in counted.items()
        },
        "counted": {
            "utterances": len(alone.utterances),
            "eager": alone.eager,
            "wasted": alone.wasted,
            "finals_ahead": sum(utterance.early for utterance in alone.utterances),
            "eager_when_busy": busy.eager,
        },
    }


def _phases_table(model: ModelFigures) -> Table:
    rows = []
    for phase in model.phases:
        beyond, after = phase.beyond(), phase.after_speech()
        ended = "silence" if phase.how == "silence" else "end_of_turn"
        times = (beyond["p50"], beyond["p95"], after["p50"], after["p95"], phase.late_p99)
        cells = (ended, phase.mode, phase.offered, len(phase.finals), phase.refused, phase.lost, *times)
        rows.append(Row(phase.load, tuple(map(Cell, cells))))
    silence_ms = EndpointingOptions().utterance_end_silence_ms
    notes = [
        f"silence: {silence_ms} ms of it end an utterance; end_of_turn: the client sends it"
        f" {1000 * END_OF_TURN_S:.0f} ms after the last sample",
        "beyond: from sending the message that decides the end to the final, ms; after speech: from the last sample",
        f"finals with the same bits, eager and plain: {'yes' if model.identical else 'NO'}",
    ]
    if model.precision:
        notes.append(f"{model.name}: {model.precision}")
    if model.capacity is not None:
        notes.append(f"load: of {model.capacity:.1f} s of audio per second; refused: streams that were not admitted")
    columns = ("load", "ended by", "mode", "offered", "finals", "refused", "lost")
    times_of = ("beyond p50", "p95", "after speech p50", "p95 ", "clients late, p99")
    return Table(f"Finals of {model.name}", (*columns, *times_of), tuple(rows), tuple(notes), digits=1)


def _lengths_table(model: ModelFigures, lengths_s: Sequence[float]) -> Table:
    rows = []
    for row in _by_length(model, lengths_s):
        times = [row[mode]["p50"] for mode in MODES] + [row[f"{mode}_after_speech_ms"]["p50"] for mode in MODES]
        rows.append(Row(f"{row['speech_s']:.1f} s", tuple(map(Cell, (row["analyzed_s"], *times)))))
    columns = ("speech", "analysed s", "beyond: eager", "plain", "after speech: eager", "plain ")
    return Table(f"By length, one stream, medians, {model.name}", columns, tuple(rows), digits=1)


def _work_table(
    counted: dict[str, early_work.Work] | None, busy: early_work.Work | None, work: dict[str, Any]
) -> Table:
    columns = ("", "encodings / finals, mean", "worst", "finals ahead", "eager", "wasted")
    title = "What is encoded beside finals, recorded conversations"
    if counted is None or busy is None:
        return Table(title, columns, (), (work["not_counted"],))
    rows = []
    for name, one in counted.items():
        ahead = sum(utterance.early for utterance in one.utterances)
        of_eager = (one.eager, one.wasted) if name == "without interims" else (None, None)
        rows.append(Row(name, tuple(map(Cell, (one.mean_factor, one.worst_factor, ahead, *of_eager)))))
    rows.append(
        Row("busy, without interims", tuple(map(Cell, (busy.mean_factor, busy.worst_factor, 0, busy.eager, 0))))
    )
    notes = (
        f"{len(counted['without interims'].utterances)} utterances; factors in audio; they must stay below {LIMIT:g}",
        "finals ahead: begun before the end was decided; wasted: begun, and somebody went on",
    )
    return Table(title, columns, tuple(rows), notes)


def draw(models: Sequence[ModelFigures]) -> Figure:
    """What happens after the last sample of speech, eager above plain, of each model: medians as measured."""
    from matplotlib.patches import Patch

    from kibun.training.evaluation.plots import COLOURS, canvas, draw_intervals, legend_below

    drawn, axes = canvas((8.4, 2.1 + 0.9 * len(models)))
    waiting, encoding = "#d9d9d9", COLOURS[0]
    places: list[float] = []
    labels: list[str] = []
    latest = 0.0
    for number, model in enumerate(reversed(models)):
        moments = model.moments
        for row, mode in enumerate(("plain", "eager")):
            y = 2.6 * number + row
            places.append(y)
            labels.append(f"{model.name}, {mode}")
            final, begin = moments.final[mode], moments.complete if mode == "eager" else moments.decided
            end = min(begin + moments.encoding, final)
            axes.barh(y, moments.decided, height=0.62, color=waiting)
            axes.barh(y, max(end - begin, 2), left=begin, height=0.3, color=encoding)
            axes.plot([final], [y], marker="D", markersize=8, color=COLOURS[5], zorder=3)
            draw_intervals(axes, [y], [final], [moments.interval[mode]], "black", lying=True)
            place = (max(final, moments.interval[mode][1] or final, moments.decided), y)
            axes.annotate(f"{final:.0f} ms", place, xytext=(9, -4), textcoords="offset points", fontsize=11)
            latest = max(latest, final, end)
        axes.plot([moments.complete] * 2, [2.6 * number - 0.5, 2.6 * number + 1.5], color="black", linestyle=":")
        axes.plot([moments.decided] * 2, [2.6 * number - 0.5, 2.6 * number + 1.5], color="black", linestyle="--")
    axes.set_yticks(places, labels)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="ms after the last sample of speech", xlim=(0, 1.16 * latest))
    axes.set_title("From the last sample of speech to the final: what the time goes to", loc="left")
    handles = [
        Patch(color=waiting, label="silence until the end is decided (dashed)"),
        Patch(color=encoding, label="encoding; eager: from when the audio is complete (dotted)"),
        axes.plot(
            [], [], marker="D", linestyle="", color=COLOURS[5], label="the final is there (median, 95 % interval)"
        )[0],
    ]
    legend_below(drawn, columns=1, handles=handles)
    return drawn
