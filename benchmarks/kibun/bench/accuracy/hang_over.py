"""What the hang-over costs and brings: speech cut off, estimates moved, and the head start of eager finals.

An utterance ends `hang_over_ms` after its last speech frame; from there on its audio is complete, and its final can be
computed while the rest of the end's silence is awaited. The shorter it is, the earlier that begins, the more often it
is in vain because somebody goes on, and the more of a fading voice is lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kibun.bench.accuracy.conversations import MarkedConversation, read, true_utterances
from kibun.bench.accuracy.voices import phrases_of, rms
from kibun.bench.support.speech_like import FloatArray
from kibun.models.bundle import KibunModel, Utterance, load_bundle
from kibun.models.types import EMOTIONS, SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndpointingOptions, EndReason, SegmenterEvent, SpeechSegment
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import Vad, make_vad
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import Item, load_manifest
from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.ranking import rank
from kibun.training.evaluation.report_table import Cell, Row, Table

HANG_OVERS_MS = (0, 50, 100, 150, 200, 250, 300)
DETECTORS: dict[str, Callable[[], Vad]] = {
    "silero": lambda: make_vad("silero", 2),
    "webrtc": lambda: make_vad("webrtc", 2),
}
_ROOM_S = 1.5  # of quiet on either side of a clip: the detector settles, and the end is awaited
_CUT_MS = 20.0  # less is not counted as cut off: two windows of the energy that says where a clip ends

Figures = dict[str, float | int | None]


@dataclass
class Ends:
    """Where utterances end, beside where speech does; and pauses, after which somebody may go on."""

    speech: int = 0  # samples
    other: int = 0
    lost: int = 0  # speech outside every utterance
    taken: int = 0  # other sound inside one
    cut_ms: list[float] = field(default_factory=list)  # speech after the end of the utterance that holds its start
    ended: int = 0  # utterances
    spoken_on: int = 0  # pauses in which an utterance looked complete, and somebody went on

    def add(
        self, samples: int, truth: Sequence[tuple[int, int]], found: Sequence[SpeechSegment], spoken_on: int
    ) -> None:
        """truth: (start, end) of stretches of speech apart by more than the silence that ends an utterance."""
        self.ended += len(found)
        self.spoken_on += spoken_on
        inside, speech = np.zeros(samples, bool), np.zeros(samples, bool)
        for segment in found:
            inside[segment.start : segment.end] = True
        for start, end in truth:
            speech[start:end] = True
            holders = [s.end for s in found if s.start < end and s.end > start]
            if holders:  # a stretch that no utterance holds is lost whatever the hang-over
                self.cut_ms.append(max(0, end - max(holders)) / 16)
        self.speech += int(speech.sum())
        self.other += int((~speech).sum())
        self.lost += int((speech & ~inside).sum())
        self.taken += int((~speech & inside).sum())

    def summary(self, hang_over_ms: int, end_silence_ms: int) -> Figures:
        cut = np.array(self.cut_ms or [0.0])
        return {
            "head_start_ms": end_silence_ms - hang_over_ms,
            "stretches": len(self.cut_ms),
            "cut_share": round(float((cut > _CUT_MS).mean()), 4),
            "cut_ms_mean": round(float(cut.mean()), 2),
            "cut_ms_p95": round(float(np.percentile(cut, 95)), 1),
            "cut_ms_max": round(float(cut.max()), 1),
            "lost_percent": round(100 * self.lost / max(self.speech, 1), 2),
            "taken_percent": round(100 * self.taken / max(self.other, 1), 2),
            "ended": self.ended,
            "spoken_on": self.spoken_on,
            "spoken_on_share": round(self.spoken_on / max(self.ended + self.spoken_on, 1), 4),
        }


def segments(audio: FloatArray, vad: Vad, options: EndpointingOptions) -> tuple[list[SpeechSegment], int]:
    """Utterances of the audio, and in how many pauses one looked complete before somebody went on."""
    segmenter = Segmenter(options, vad)
    found: list[SpeechSegment] = []
    complete = 0  # pauses after which the utterance may have ended
    before: int | None = None
    ended_so = 0  # of them, those that were its end
    for at in range(0, len(audio), vad.frame_samples):
        ends = _segments(segmenter.push(audio[at : at + vad.frame_samples]))
        ended_so += sum(segment.end == before for segment in ends)
        found += ends
        now = segmenter.complete_until
        complete += now is not None and now != before
        before = now
    last = _segments(segmenter.flush(EndReason.HALF_CLOSE))
    return found + last, complete - ended_so - sum(segment.end == before for segment in last)


def _segments(events: Sequence[SegmenterEvent]) -> list[SpeechSegment]:
    return [event for event in events if isinstance(event, SpeechSegment)]


def in_a_room(clip: FloatArray, seed: int) -> tuple[FloatArray, tuple[int, int]]:
    """A clip (n,) with quiet around it, as noisy as its own quietest part; and where its sound begins and ends there.

    The ends are where its energy rises above and falls below a threshold (`phrases_of`).
    """
    phrases = phrases_of(clip, recorded=True)
    windows = clip[: len(clip) // 160 * 160].reshape(-1, 160)
    floor = float(np.percentile(np.sqrt((windows.astype(np.float64) ** 2).mean(axis=1)), 5))
    floor = min(floor, rms(clip) / 100)  # a clip without quiet, cut at its speech, is given a quiet room
    room = round(_ROOM_S * SAMPLE_RATE_HZ)
    audio = np.random.default_rng(seed).standard_normal(len(clip) + 2 * room).astype(np.float32) * np.float32(floor)
    audio[room : room + len(clip)] = clip
    return audio, (room + phrases[0][0], room + phrases[-1][1])


def estimates(model: KibunModel, found: Sequence[SpeechSegment]) -> dict[str, float] | None:
    """Valence and arousal of a clip: of its utterances, by length. None if none is long enough."""
    nothing = np.zeros((0, model.vector_size), np.float16)
    long_enough = [segment.audio for segment in found if len(segment.audio) >= model.min_samples]
    if not long_enough:
        return None
    answers = [model.analyze([Utterance(audio, nothing)])[0] for audio in long_enough]
    lengths = [len(audio) for audio in long_enough]
    return {name: float(np.average([getattr(a, name) for a in answers], weights=lengths)) for name in EMOTIONS}


@dataclass
class _Clips:
    """Recordings of one corpus and split, with what each model estimates of them at each hang-over."""

    items: list[Item] = field(default_factory=list)
    by_model: dict[str, dict[int, list[dict[str, float] | None]]] = field(default_factory=dict)


def measure(
    folder: Path | None,
    held_out: Sequence[str],
    manifests: Sequence[Path],
    models: Sequence[str],
    per_speaker: int | None,
    hang_overs_ms: Sequence[int] = HANG_OVERS_MS,
) -> tuple[dict[str, object], list[Table]]:
    """Figures by hang-over, as JSON and as tables; what was held out stands apart.

    folder: conversations whose speech people have marked, as for `conversations.read`; held_out: names of those that
    nothing is to be chosen on. manifests: recordings of single voices with categories; their split "test" is held out.

    Raises BundleError, ManifestError, ValueError.
    """
    ends: dict[tuple[str, str], dict[int, Ends]] = {}
    for heard in read(folder) if folder else []:
        part = "held out" if heard.name in held_out else "chosen on"
        for name, make in DETECTORS.items():
            _add_conversation(ends.setdefault((f"conversations, {part}", name), {}), heard, make, hang_overs_ms)
    clips: dict[str, _Clips] = {}
    loaded = {name: load_bundle(name) for name in models}
    for model in loaded.values():
        model.train(False)
    for path in manifests:
        for number, item in enumerate(_some(load_manifest(path, require=("path", "emotion")), per_speaker)):
            part = "held out" if item.split == "test" else "chosen on"
            group = f"{item.corpus or path.stem}, {part}"
            clip, truth = in_a_room(load_audio(item.path), number)
            kept = clips.setdefault(group, _Clips())
            kept.items.append(item)
            for detector, make in DETECTORS.items():
                for hang_over_ms in hang_overs_ms:
                    found, spoken_on = segments(clip, make(), EndpointingOptions(hang_over_ms=hang_over_ms))
                    score = ends.setdefault((group, detector), {}).setdefault(hang_over_ms, Ends())
                    score.add(len(clip), [truth], found, spoken_on)
                    for name, model in loaded.items() if detector == "silero" else ():
                        kept.by_model.setdefault(name, {}).setdefault(hang_over_ms, []).append(estimates(model, found))
    silence_ms = EndpointingOptions().utterance_end_silence_ms
    ends_figures = {
        f"{group}, {detector}": {str(ms): score.summary(ms, silence_ms) for ms, score in scores.items()}
        for (group, detector), scores in ends.items()
    }
    moved = {
        f"{group}, {model}": _moved(kept.items, by_hang_over)
        for group, kept in clips.items()
        for model, by_hang_over in kept.by_model.items()
    }
    payload: dict[str, object] = {
        "options": dataclasses.asdict(EndpointingOptions()),
        "held_out": list(held_out),
        "ends": ends_figures,
        "estimates": moved,
    }
    return payload, [*_tables("Ends", ends_figures), *_tables("Estimates", moved)]


def _add_conversation(
    scores: dict[int, Ends], heard: MarkedConversation, make: Callable[[], Vad], hang_overs_ms: Sequence[int]
) -> None:
    for hang_over_ms in hang_overs_ms:
        options = EndpointingOptions(hang_over_ms=hang_over_ms)
        truth = true_utterances(heard.speech, options.utterance_end_silence_ms * SAMPLE_RATE_HZ // 1000)
        scores.setdefault(hang_over_ms, Ends()).add(len(heard.audio), truth, *segments(heard.audio, make(), options))


def _some(items: Sequence[Item], per_speaker: int | None) -> list[Item]:
    """All, or so many of each speaker, drawn at random."""
    if per_speaker is None:
        return list(items)
    speakers: dict[str, list[Item]] = {}
    for item in items:
        speakers.setdefault(item.speaker, []).append(item)
    rng = np.random.default_rng(0)
    return [theirs[row] for theirs in speakers.values() for row in sorted(rng.permutation(len(theirs))[:per_speaker])]


def _moved(
    items: Sequence[Item], by_hang_over: dict[int, list[dict[str, float] | None]]
) -> dict[str, dict[str, float | int | None]]:
    """How well each hang-over's estimates rank categories and agree with labels, and how far they are from 200 ms."""
    reference = by_hang_over.get(200) or next(iter(by_hang_over.values()))
    heard = [row for row in range(len(items)) if all(values[row] is not None for values in by_hang_over.values())]
    found: dict[str, dict[str, float | int | None]] = {}
    for hang_over_ms, values in by_hang_over.items():
        figures: dict[str, float | int | None] = {"clips": len(heard)}
        for name in EMOTIONS:
            now = np.array([(values[row] or {})[name] for row in heard])
            then = np.array([(reference[row] or {})[name] for row in heard])
            some = [items[row] for row in heard]
            ranking = rank(now, [item.emotion for item in some], [item.speaker for item in some], name)
            labels = [getattr(item, name) for item in some]
            figures[f"{name}_auc"] = round(ranking.auc, 4) if ranking else None
            figures[f"{name}_auc_low"] = round(ranking.low, 4) if ranking and ranking.low is not None else None
            figures[f"{name}_auc_high"] = round(ranking.high, 4) if ranking and ranking.high is not None else None
            figures[f"{name}_ccc"] = round(ccc(now, labels), 4) if None not in labels else None
            figures[f"{name}_moved_mean"] = round(float((now - then).mean()), 4)
            figures[f"{name}_moved_p95"] = round(float(np.percentile(np.abs(now - then), 95)), 4)
        found[str(hang_over_ms)] = figures
    return found


def _tables(title: str, groups: dict[str, dict[str, Figures]]) -> list[Table]:
    tables = []
    for group, rows in groups.items():
        columns = ("hang-over ms", *next(iter(rows.values())))
        cells = tuple(Row(ms, tuple(map(Cell, figures.values()))) for ms, figures in rows.items())
        tables.append(Table(f"{title}: {group}", columns, cells, digits=3))
    return tables
