"""What is encoded beside the finals, of recordings of real conversations: counted, on the server's own parts.

A session with the real segmenter, turn tracker and batcher hears each recording in messages of 100 ms; only the model
is a stub that answers at once, and the clock is the audio's. So nothing depends on the machine, and nothing is saved
because a job was still queued when somebody went on: a real server encodes this much or less.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kibun.bench.support.stub_model import ConstantModel
from kibun.client.audio_file import AudioFile
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.vad import VadName, make_vad
from kibun.server.conversation.store import MemoryStore
from kibun.server.inference.backend import Job, ModelInfo, Outcomes
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.cost import CostModel
from kibun.server.session.events import Audio, Limits, Request, StreamOptions, UtteranceResult
from kibun.server.session.open_streams import OpenStreams
from kibun.server.session.session import Dependencies, Session

MESSAGE_MS = 100
_ROUNDS = 50  # of the event loop after a message, in which all that it brings about is done
# Seconds that a machine is said to need for a second of audio: one that is never busy, and one that is with one stream.
IDLE_COST, BUSY_COST = 1e-4, 10.0


class RecordingError(ValueError):
    """No recordings to hear; the message names the fix."""


@dataclass(frozen=True)
class Recording:
    """float32 samples (n,) of one channel, at its own rate."""

    name: str
    rate_hz: int
    audio: np.ndarray[tuple[int], np.dtype[np.float32]]


@dataclass(frozen=True)
class UtteranceWork:
    """What was encoded for one utterance, seconds of audio in order of time; the last is what its final rests on."""

    final_s: float
    encoded_s: tuple[float, ...]
    early: bool  # the last was encoded before the end of the utterance was decided


@dataclass(frozen=True)
class Work:
    """Of several recordings."""

    by_recording: tuple[tuple[UtteranceWork, ...], ...]
    unfinished: int  # encodings of sound that then was no utterance's

    @property
    def utterances(self) -> tuple[UtteranceWork, ...]:
        return tuple(utterance for recording in self.by_recording for utterance in recording)

    @property
    def mean_factor(self) -> float:
        """All encodings over all finals."""
        return _factor(self.utterances)

    @property
    def worst_factor(self) -> float:
        """The most of any recording: what is encoded beside finals is bounded over a stream."""
        return max(_factor(recording) for recording in self.by_recording if recording)

    @property
    def eager(self) -> int:
        """Encodings in a silence, without interims: all but those that waited for the end."""
        return sum(len(u.encoded_s) - (not u.early) for u in self.utterances) + self.unfinished

    @property
    def wasted(self) -> int:
        """Of them, those after which somebody went on."""
        return sum(len(u.encoded_s) - 1 for u in self.utterances) + self.unfinished


def _factor(utterances: Sequence[UtteranceWork]) -> float:
    return sum(sum(u.encoded_s) for u in utterances) / sum(u.final_s for u in utterances)


def read(folder: Path) -> list[Recording]:
    """Every recording of a folder that libsndfile reads.

    Raises RecordingError if there is none, AudioFileError for one that is damaged.
    """
    if not folder.is_dir():
        raise RecordingError(f"{folder} is no folder; name one that holds recordings of conversations")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".flac", ".wav", ".ogg", ".mp3")]
    if not paths:
        raise RecordingError(f"{folder} holds no .flac, .wav, .ogg or .mp3 file")
    recordings = []
    for path in paths:
        file = AudioFile(path)
        audio = np.concatenate([_as_float(piece) for piece in file.chunks()])
        recordings.append(Recording(path.stem, file.sample_rate_hz, audio))
    return recordings


def _as_float(piece: np.ndarray[tuple[int], np.dtype[np.int16 | np.float32]]) -> np.ndarray:
    return piece.astype(np.float32) / 32768 if piece.dtype == np.int16 else piece


def count(
    recordings: Sequence[Recording], *, eager: bool, interims: bool, vad: VadName = "silero", cost: float = IDLE_COST
) -> Work:
    """What sessions encode that hear the recordings, one after the other.

    cost: IDLE_COST, or BUSY_COST: then all but finals must be skipped. Raises RecordingError without any speech.
    """
    heard = [asyncio.run(_Hearing(vad, cost).hear(one, eager=eager, interims=interims)) for one in recordings]
    if not any(utterances for utterances, _ in heard):
        raise RecordingError("there is no speech in any of the recordings")
    return Work(tuple(utterances for utterances, _ in heard), sum(unfinished for _, unfinished in heard))


class _FixedCost(CostModel):
    """Learns nothing from the stub, which takes no time."""

    def observe(self, audio_s: float, took_s: float) -> None:
        """Nothing."""


class _Stub:
    """A backend that answers at once, and remembers when it was given how much audio."""

    slots = 2
    batch_s = 0.0
    costs: Sequence[tuple[float, float]] = ()

    def __init__(self, hearing: _Hearing) -> None:
        self._model = ConstantModel("stub")
        self._hearing = hearing
        self.jobs: list[tuple[float, float]] = []  # when, seconds of audio

    async def infer(self, jobs: Sequence[Job]) -> Outcomes:
        self.jobs += [(self._hearing.now_s, job.utterance.seconds) for job in jobs]
        return Outcomes(self._model.analyze([job.utterance for job in jobs]))

    async def start(self) -> tuple[ModelInfo, ...]:
        return (self._model.info,)

    def ready(self) -> bool:
        return True

    def down_s(self) -> float:
        return 0.0

    async def drain(self) -> None:
        """Nothing is ever in flight."""

    async def close(self) -> None:
        """Nothing to stop."""


class _Hearing:
    """One stream at a time; its clock is the audio's."""

    def __init__(self, vad: VadName, cost: float) -> None:
        self.now_s = 0.0
        self._vad: VadName = vad
        self._backend = _Stub(self)
        self._analyzer = Batcher(self._backend, clock=lambda: self.now_s, cost=_FixedCost(cost))

    async def hear(self, recording: Recording, *, eager: bool, interims: bool) -> tuple[tuple[UtteranceWork, ...], int]:
        """Its utterances, and how many encodings were of sound that then was no utterance's."""
        (model,) = await self._backend.start()
        options = StreamOptions(
            *("", "conversation", "participant", "turn", model.name),
            AudioFormat("float32", recording.rate_hz),
            EndpointingOptions(),
            eager=eager,
            interims=interims,
        )
        dependencies = Dependencies(
            analyzer=self._analyzer,
            store=MemoryStore(),
            open_streams=OpenStreams(),
            make_vad=lambda aggressiveness: make_vad(self._vad, aggressiveness),
            new_turn_id=lambda: "another turn",
            limits=Limits(),
            clock=lambda: self.now_s,
        )
        session = Session("benchmark", options, model, dependencies)
        jobs, utterances = self._backend.jobs, []
        with self._analyzer.stream("benchmark"):
            async with aclosing(session.run(self._requests(recording))) as replies:
                async for reply in replies:
                    event = reply.event
                    if isinstance(event, UtteranceResult) and event.is_final and event.analyzed:
                        encoded = tuple(seconds for _, seconds in jobs)
                        early = jobs[-1][0] < self.now_s
                        utterances.append(UtteranceWork(event.analyzed / SAMPLE_RATE_HZ, encoded, early))
                        jobs.clear()
        return tuple(utterances), len(jobs)

    async def _requests(self, recording: Recording) -> AsyncIterator[Request]:
        size = recording.rate_hz * MESSAGE_MS // 1000
        for at in range(0, len(recording.audio), size):
            self.now_s += size / recording.rate_hz
            yield Audio(recording.audio[at : at + size].astype("<f4").tobytes())
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
        self.now_s += MESSAGE_MS / 1000
