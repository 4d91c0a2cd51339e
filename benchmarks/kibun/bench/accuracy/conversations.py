"""How speech is found in recorded conversations whose speech people have marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from kibun.bench.support.speech_like import FloatArray
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndpointingOptions, EndReason, SpeechSegment
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import Vad

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MarkedConversation:
    """audio: (n,) at 16 kHz; speech: (n,), where anyone speaks."""

    name: str
    audio: FloatArray
    speech: Mask


def read(folder: Path) -> list[MarkedConversation]:
    """Every FLAC file at 16 kHz of the folder with an RTTM file of the same name beside it.

    Raises ValueError for another rate, and where there is none.
    """
    found = []
    for path in sorted(folder.glob("*.flac")):
        if not (reference := path.with_suffix(".rttm")).exists():
            continue
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != SAMPLE_RATE_HZ:
            raise ValueError(f"{path}: {rate} Hz: conversations must have {SAMPLE_RATE_HZ} Hz")
        speech = np.zeros(len(audio), bool)
        for line in reference.read_text().splitlines():
            if line.startswith("SPEAKER"):
                start_s, duration_s = map(float, line.split()[3:5])
                speech[round(start_s * rate) : round((start_s + duration_s) * rate)] = True
        found.append(MarkedConversation(path.stem, audio.mean(axis=1), speech))
    if not found:
        raise ValueError(f"{folder}: no FLAC file with an RTTM file beside it")
    return found


@dataclass
class ConversationScore:
    """Sums over conversations, in samples; a true utterance is speech with no gap as long as the end silence."""

    speech: int = 0
    other: int = 0
    lost: int = 0  # speech outside every utterance
    taken: int = 0  # other sound inside one, pre-roll and hang-over included
    frames_lost: int = 0  # the same by the detector's own frames
    frames_taken: int = 0
    utterances: int = 0
    true_utterances: int = 0
    decided_ms: list[float] = field(default_factory=list)  # from the end of a true utterance until it is given out

    def add(self, conversation: MarkedConversation, make: Callable[[], Vad], options: EndpointingOptions) -> None:
        audio, speech = conversation.audio, conversation.speech
        found = utterances(audio, make(), options)
        inside = _mask([(start, end) for start, end, _ in found], len(audio))
        self.speech += int(speech.sum())
        self.other += int((~speech).sum())
        self.lost += int((speech & ~inside).sum())
        self.taken += int((~speech & inside).sum())
        vad = make()
        frames = len(audio) // vad.frame_samples
        whole = frames * vad.frame_samples
        decided = np.repeat(vad.decide(audio[:whole].reshape(frames, -1)), vad.frame_samples)
        self.frames_lost += int((speech[:whole] & ~decided).sum())
        self.frames_taken += int((~speech[:whole] & decided).sum())
        truth = true_utterances(speech, options.utterance_end_silence_ms * SAMPLE_RATE_HZ // 1000)
        self.utterances += len(found)
        self.true_utterances += len(truth)
        for _, end in truth:
            given = [at for a, b, at in found if at is not None and a < end <= b]
            self.decided_ms += [(at - end) / 16 for at in given[:1]]

    def summary(self) -> dict[str, float]:
        decided = self.decided_ms or [float("nan")]
        return {
            "speech_s": round(self.speech / SAMPLE_RATE_HZ, 1),
            "other_s": round(self.other / SAMPLE_RATE_HZ, 1),
            "lost_percent": round(100 * self.lost / max(self.speech, 1), 2),
            "taken_percent": round(100 * self.taken / max(self.other, 1), 2),
            "frames_lost_percent": round(100 * self.frames_lost / max(self.speech, 1), 2),
            "frames_taken_percent": round(100 * self.frames_taken / max(self.other, 1), 2),
            "utterances": self.utterances,
            "true_utterances": self.true_utterances,
            "decided_ms_p50": round(float(np.percentile(decided, 50)), 1),
            "decided_ms_p95": round(float(np.percentile(decided, 95)), 1),
        }


def measure(
    conversations: list[MarkedConversation], makers: Mapping[str, Callable[[], Vad]], options: EndpointingOptions
) -> dict[str, dict[str, float]]:
    """Figures by detector."""
    scores = {name: ConversationScore() for name in makers}
    for conversation in conversations:
        for name, make in makers.items():
            scores[name].add(conversation, make, options)
    return {name: score.summary() for name, score in scores.items()}


def utterances(
    audio: FloatArray, vad: Vad, options: EndpointingOptions, push_samples: int = SAMPLE_RATE_HZ // 10
) -> list[tuple[int, int, int | None]]:
    """(start, end, sample at which it was given out; None if only at the end of the stream) of every utterance."""
    segmenter = Segmenter(options, vad)
    found: list[tuple[int, int, int | None]] = []
    for position in range(0, len(audio), push_samples):
        events = segmenter.push(audio[position : position + push_samples])
        found += [(e.start, e.end, segmenter.position) for e in events if isinstance(e, SpeechSegment)]
    closing = segmenter.flush(EndReason.HALF_CLOSE)
    return found + [(e.start, e.end, None) for e in closing if isinstance(e, SpeechSegment)]


def true_utterances(speech: Mask, gap: int) -> list[tuple[int, int]]:
    """Runs of speech, (start, end), merged where less than `gap` samples lie between them."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], speech, [False])).astype(np.int8))).tolist()
    merged: list[tuple[int, int]] = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if merged and start - merged[-1][1] < gap:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    assert all(a[1] < b[0] for a, b in pairwise(merged))
    return merged


def _mask(spans: list[tuple[int, int]], samples: int) -> Mask:
    mask = np.zeros(samples, bool)
    for start, end in spans:
        mask[start:end] = True
    return mask
