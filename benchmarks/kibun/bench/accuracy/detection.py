"""How well speech is found: VADs and the segmenter against known boundaries, in quiet, in noise, at any level.

Every detector gets every scene, one after the other within a scene, so that all share whatever else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from kibun.bench.accuracy import conversations, sounds
from kibun.bench.accuracy.voices import (
    SpeakerPhrases,
    add_noise,
    espeak_voices,
    flite_voices,
    lay_out,
    recorded_voices,
    rms,
)
from kibun.bench.support.speech_like import FloatArray, Layout
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import AudioDecoder, AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import SileroVad, Vad, WebRtcVad, make_vad
from kibun.training.evaluation.report_table import Cell, Row, Table

#: Name, speech level in dBFS (RMS), noise and its distance from the speech in dB.
CONDITIONS: tuple[tuple[str, float, str, float], ...] = (
    ("quiet", -26, "pink", 45),
    ("quiet, loud", -12, "pink", 45),
    ("quiet, -46 dBFS", -46, "pink", 45),
    ("quiet, -66 dBFS", -66, "pink", 45),
    ("white 20 dB", -26, "white", 20),
    ("white 10 dB", -26, "white", 10),
    ("pink 20 dB", -26, "pink", 20),
    ("pink 10 dB", -26, "pink", 10),
    ("pink 10 dB, loud", -14, "pink", 10),
    ("pink 10 dB, -46 dBFS", -46, "pink", 10),
    ("babble 20 dB", -26, "babble", 20),
    ("babble 10 dB", -26, "babble", 10),
)
_MERGE_SLACK_SAMPLES = 150 * 16  # a pause this much longer than the end silence must separate two utterances
_PUSH_SAMPLES = 320  # as a client that sends 20 ms chunks


Figures = dict[str, float | None]  # None: there was nothing to take a quantile of


class NeverReset:
    """A detector that keeps what it learned from utterance to utterance, to see what the resets cost."""

    def __init__(self, vad: Vad) -> None:
        self._vad = vad
        self.frame_samples = vad.frame_samples
        self.decide = vad.decide

    def reset(self) -> None:
        """Nothing: that is the point."""


def detectors(quick: bool) -> dict[str, Callable[[], Vad]]:
    """Name to maker of a fresh detector; the number is the contract's aggressiveness."""
    made: dict[str, Callable[[], Vad]] = {
        "silero 2": lambda: make_vad("silero", 2),
        "silero 1": lambda: make_vad("silero", 1),
        "webrtc 2": lambda: WebRtcVad(2),
        "webrtc 3": lambda: WebRtcVad(3),
    }
    if not quick:
        made |= {
            "silero 0": lambda: make_vad("silero", 0),
            "silero 3": lambda: make_vad("silero", 3),
            "silero .4, one threshold": lambda: SileroVad(0.4, 0.4),
            "silero 2, no resets": lambda: NeverReset(make_vad("silero", 2)),
            "webrtc 0": lambda: WebRtcVad(0),
            "webrtc 1": lambda: WebRtcVad(1),
        }
    return made


@dataclass
class DetectionScore:
    """Sums and lists over scenes; milliseconds unless named otherwise."""

    speech_samples: int = 0
    silence_samples: int = 0
    missed_samples: int = 0  # speech in frames that the VAD called silence
    false_samples: int = 0  # silence in frames that it called speech
    lost: list[float] = field(default_factory=list)  # speech outside every utterance, per phrase
    onset: list[float] = field(default_factory=list)  # utterance start - first phrase's start; positive is a cut
    offset: list[float] = field(default_factory=list)  # utterance end - last phrase's end; negative is a cut
    decision: list[float] = field(default_factory=list)  # last phrase's end until the utterance is given out
    phrases: int = 0
    missed_phrases: int = 0
    split: int = 0  # phrases in more than one utterance
    pauses: int = 0  # pauses long enough to separate utterances
    merged: int = 0  # of those, inside an utterance
    false_utterances: int = 0
    vad_seconds: float = 0.0
    front_seconds: float = 0.0

    def add_frames(self, scene: Layout, vad: Vad) -> None:
        size = vad.frame_samples
        frames = len(scene.audio) // size
        began = time.process_time()
        frames_with_speech = vad.decide(scene.audio[: frames * size].reshape(frames, size))
        self.vad_seconds += time.process_time() - began
        truth = _mask(list(scene.speech), frames * size)
        detected = np.repeat(frames_with_speech, size)
        self.speech_samples += int(truth.sum())
        self.silence_samples += int((~truth).sum())
        self.missed_samples += int((truth & ~detected).sum())
        self.false_samples += int((~truth & detected).sum())

    def add_utterances(self, scene: Layout, vad: Vad, options: EndpointingOptions) -> None:
        began = time.process_time()
        found = conversations.utterances(scene.audio, vad, options, _PUSH_SAMPLES)
        self.front_seconds += time.process_time() - began
        covered = _mask([(start, end) for start, end, _ in found], len(scene.audio))
        for start, end in scene.speech:
            self.phrases += 1
            self.lost.append(float((end - start - covered[start:end].sum()) / 16))
            self.missed_phrases += bool(covered[start:end].mean() < 0.1)
            self.split += sum(min(end, b) - max(start, a) > 50 * 16 for a, b, _ in found) > 1
        for (_, end), (start, _) in pairwise(scene.speech):
            if start - end >= options.utterance_end_silence_ms * 16 + _MERGE_SLACK_SAMPLES:
                self.pauses += 1
                self.merged += any(a < end and b > start for a, b, _ in found)
        for start, end, given in found:
            phrases = [phrase for phrase in scene.speech if phrase[0] < end and phrase[1] > start]
            if not phrases:
                self.false_utterances += 1
                continue
            self.onset.append((start - phrases[0][0]) / 16)
            self.offset.append((end - phrases[-1][1]) / 16)
            if given is not None:
                self.decision.append((given - phrases[-1][1]) / 16)

    def summary(self) -> Figures:
        """The figures of one row."""
        seconds = (self.speech_samples + self.silence_samples) / SAMPLE_RATE_HZ
        total_ms = self.speech_samples / 16
        figures: Figures = {
            "miss_percent": 100 * self.missed_samples / self.speech_samples,
            "false_alarm_percent": 100 * self.false_samples / self.silence_samples,
            "frame_error_percent": 100
            * (self.missed_samples + self.false_samples)
            / (self.speech_samples + self.silence_samples),
            "lost_percent": 100 * sum(self.lost) / total_ms,
            "worst_cut_ms": max(self.lost),
            "phrases": self.phrases,
            "missed_phrases": self.missed_phrases,
            **_quantiles("onset_ms", self.onset),
            **_quantiles("offset_ms", self.offset),
            **_quantiles("decision_ms", self.decision),
            "split": self.split,
            "merged": self.merged,
            "pauses": self.pauses,
            "false_utterances": self.false_utterances,
            "vad_cpu_ms_per_s": 1000 * self.vad_seconds / seconds,
            "front_cpu_ms_per_s": 1000 * self.front_seconds / seconds,
        }
        return {name: round(figure, 3) if figure is not None else None for name, figure in figures.items()}


def _quantiles(name: str, values: list[float]) -> Figures:
    keys = (f"{name}_p5", f"{name}_median", f"{name}_p95")
    return (
        dict(zip(keys, map(float, np.percentile(values, [5, 50, 95])), strict=True)) if values else dict.fromkeys(keys)
    )


def _mask(spans: list[tuple[int, int]], samples: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(samples, bool)
    for start, end in spans:
        mask[start:end] = True
    return mask


def scenes_of(condition: tuple[str, float, str, float], voices: list[SpeakerPhrases], seconds: float) -> list[Layout]:
    """One scene per voice; the same speech and noise for every run, level and detector."""
    _, level, kind, snr = condition
    scenes = []
    for index, voice in enumerate(voices):
        clean = lay_out(voice, seconds, np.random.default_rng(1_000 + index), level)
        others = [other for other in voices if other is not voice]
        noisy = add_noise(clean, kind, snr, np.random.default_rng(2_000 + index), others)
        scenes.append(Layout(np.clip(noisy.audio, -1, 1), noisy.speech))
    return scenes


def front_cost(voice: SpeakerPhrases, seconds: float) -> dict[str, float]:
    """CPU of decoder, VAD and segmenter together, in ms per audio second, for usual formats in 20 and 100 ms chunks."""
    cost = {}
    speech = lay_out(voice, seconds, np.random.default_rng(0)).audio
    for rate in (8_000, 16_000, 44_100, 48_000):
        source = (np.clip(soxr.resample(speech, SAMPLE_RATE_HZ, rate), -1, 1) * 32_767).astype("<i2").tobytes()
        for chunk_ms in (20, 100):
            decoder = AudioDecoder(AudioFormat("linear16", rate))
            segmenter = Segmenter(EndpointingOptions(), make_vad("silero", 2))
            size = 2 * (rate * chunk_ms // 1000)
            began = time.process_time()
            for position in range(0, len(source), size):
                segmenter.push(decoder.decode(source[position : position + size]))
            spent = time.process_time() - began
            cost[f"{rate} Hz, {chunk_ms} ms chunks"] = round(1000 * spent * SAMPLE_RATE_HZ / len(speech), 3)
    return cost


def recordings_report(paths: Sequence[Path], makers: dict[str, Callable[[], Vad]]) -> dict[str, dict[str, list[str]]]:
    """What is found in whole recordings, beside the mean level in and around each utterance."""
    report: dict[str, dict[str, list[str]]] = {}
    for path in [p for p in paths if p.is_file()]:
        data, rate = soundfile.read(path, dtype="float32", always_2d=True)
        decoder = AudioDecoder(AudioFormat("float32", rate))
        audio = np.concatenate([decoder.decode(data.mean(axis=1).astype("<f4").tobytes()), decoder.flush()])
        rows = {}
        for name, make in makers.items():
            found = conversations.utterances(audio, make(), EndpointingOptions(), _PUSH_SAMPLES)
            rows[name] = [
                f"{a / SAMPLE_RATE_HZ:.2f}-{b / SAMPLE_RATE_HZ:.2f} ({_dbfs(audio[a:b]):.0f} dB)" for a, b, _ in found
            ]
            outside = audio[~_mask([(a, b) for a, b, _ in found], len(audio))]
            rows[name].append(
                f"rest {len(outside) / SAMPLE_RATE_HZ:.2f} s" + (f" ({_dbfs(outside):.0f} dB)" if len(outside) else "")
            )
        report[path.name] = rows
    return report


def _dbfs(audio: FloatArray) -> float:
    return 20 * float(np.log10(max(rms(audio), 1e-9)))


_COLUMNS = {
    "miss %": "miss_percent",
    "false %": "false_alarm_percent",
    "lost %": "lost_percent",
    "worst ms": "worst_cut_ms",
    "onset ms": "onset_ms_median",
    "p95 ": "onset_ms_p95",
    "offset ms": "offset_ms_median",
    "p5": "offset_ms_p5",
    "decided ms": "decision_ms_median",
    "p95": "decision_ms_p95",
    "split": "split",
    "merged": "merged",
    "false utt.": "false_utterances",
    "VAD ms/s": "vad_cpu_ms_per_s",
}


def measure(
    *, quick: bool, recordings: Sequence[Path] = (), marked: Path | None = None
) -> tuple[dict[str, object], list[Table]]:
    """Every figure, as JSON and as tables.

    quick: espeak-ng only, short scenes, few detectors. recordings: files or folders of clean speech, which add real
    voices; they are cut into phrases by their energy. marked: folder of conversations whose speech people have marked.
    Raises RuntimeError without espeak-ng, ValueError for a folder without conversations; uses flite if installed.
    """
    makers = detectors(quick)
    voices = espeak_voices()
    if not quick:
        voices += flite_voices()
    voices += recorded_voices(recordings)
    conditions: dict[str, dict[str, Figures]] = {}
    for condition in CONDITIONS:
        scores = {name: DetectionScore() for name in makers}
        for scene in scenes_of(condition, voices, 12 if quick else 25):
            for name, make in makers.items():
                scores[name].add_frames(scene, make())
                scores[name].add_utterances(scene, make(), EndpointingOptions())
        conditions[condition[0]] = {name: score.summary() for name, score in scores.items()}
    cost = front_cost(voices[0], 20 if quick else 60)
    false_utterances = {
        sound: {
            name: len(conversations.utterances(scene, make(), EndpointingOptions())) for name, make in makers.items()
        }
        for sound, scene in sounds.scenes().items()
    }
    real = conversations.measure(conversations.read(marked), makers, EndpointingOptions()) if marked else {}
    found = recordings_report(recordings, makers)
    payload: dict[str, object] = {
        "options": asdict(EndpointingOptions()),
        "conversations": real,
        "conditions": conditions,
        "front_cpu": cost,
        "false_utterances": false_utterances,
        "recordings": found,
    }
    tables = [_table("Recorded conversations", tuple(next(iter(real.values()))), real)] if real else []
    tables += [_condition_table(name, rows) for name, rows in conditions.items()]
    tables.append(_table("CPU of decoder, VAD (silero 2) and segmenter", ("ms per audio second",), _column(cost)))
    tables.append(_table("Utterances made of forty sounds that are not speech", tuple(makers), false_utterances))
    tables += [
        _table(name, ("utterances",), _column({detector: ", ".join(row) for detector, row in rows.items()}))
        for name, rows in found.items()
    ]
    return payload, tables


def _condition_table(name: str, rows: Mapping[str, Figures]) -> Table:
    first = next(iter(rows.values()))
    title = f"{name} ({first['phrases']} phrases, {first['pauses']} separating pauses)"
    shown = {detector: {title: row[key] for title, key in _COLUMNS.items()} for detector, row in rows.items()}
    return _table(title, tuple(_COLUMNS), shown)


def _table(title: str, columns: tuple[str, ...], rows: Mapping[str, Mapping[str, float | str | None]]) -> Table:
    cells = [Row(label, tuple(map(Cell, row.values()))) for label, row in rows.items()]
    return Table(title, ("", *(column.strip() for column in columns)), tuple(cells))


def _column(values: Mapping[str, float | str]) -> dict[str, dict[str, float | str]]:
    return {label: {"": value} for label, value in values.items()}
