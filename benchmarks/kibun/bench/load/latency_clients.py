"""Clients that speak in real time and time the answers, in a process: `…latency_clients TARGET MATERIAL.npz`.

A talk is one stream: utterances with silence after each, in messages of 100 ms. What the server must find in it, and
which message decides the end of each utterance, is known beforehand from the server's own segmenter: the sample at
which an end is decided depends on the samples alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import grpc.aio
import numpy as np

from kibun.bench.load.generator import METHOD
from kibun.bench.support import material
from kibun.bench.support.child import answer
from kibun.client.status import error_from_rpc
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import AudioDecoder, AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions, EndReason, SegmenterEvent, SpeechSegment
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import make_vad
from kibun.v1 import speech_analysis_pb2 as pb

How = Literal["silence", "end_of_turn"]
"""How utterances end: the server hears 500 ms of silence, or the client has a turn detector of its own."""

LEAD_S = 0.5  # of room tone before the first utterance
AFTER_S = 1.0  # of it after each: longer than any decision takes
END_OF_TURN_S = 0.4  # after the last sample the client's own turn detector is certain
_ROOM = 3.0  # RMS of the room tone in steps of 16 bits, -81 dBFS

Span = tuple[int, int]
"""Start and end of an utterance as the server finds it, in samples of the stream."""


@dataclass(frozen=True)
class Known:
    """An utterance that the server must find."""

    utterance: int  # which of the material
    spoken_until: int | None  # sample after the last one of the speech; None: more of this utterance follows
    decided_by: int  # number of the message that brings the decision, from 0; the end of the turn counts as one


@dataclass(frozen=True)
class Talk:
    """messages: serialised; due: sample of the stream after which each is sent."""

    messages: tuple[bytes, ...]
    due: tuple[int, ...]
    known: dict[Span, Known]


@dataclass
class HeardFinal:
    """A final that came. Times in milliseconds."""

    talk: int
    span: Span
    utterance: int
    audio_s: float  # that the model was given
    beyond_ms: float  # the message that brought the decision was sent → the final is here
    speech_ms: float | None  # last sample of the speech → the final is here; None where more of the utterance followed
    bits: str  # digest of all that was estimated


@dataclass
class TalkReplies:
    """What the clients of one run saw."""

    finals: list[HeardFinal] = field(default_factory=list)
    offered: int = 0  # utterances to find
    refused: int = 0  # of them, in streams that were turned away
    unexpected: int = 0  # finals of other stretches than expected
    interims: int = 0
    lost: list[str] = field(default_factory=list)  # why admitted utterances got no final
    late_ms: list[float] = field(default_factory=list)  # how late each message was sent: the clients' own fault
    encoded_s: float = 0.0  # audio of finals and interims


def make_talk(utterances: Sequence[material.Pcm], indices: Sequence[int], how: How, vad: str) -> Talk:
    """The stream in which these utterances are spoken, and what must be found in it."""
    room = np.random.default_rng(0)
    pieces = [_room_tone(LEAD_S, room)]
    spoken: list[Span] = []  # start, end
    for index in indices:
        begin = sum(map(len, pieces))
        pieces += [utterances[index], _room_tone(AFTER_S, room)]
        spoken.append((begin, begin + len(utterances[index])))
    pcm = np.concatenate(pieces)
    ends = [end + round(END_OF_TURN_S * SAMPLE_RATE_HZ) for _, end in spoken] if how == "end_of_turn" else []
    return _cut(pcm, ends, spoken, indices, vad)


def make_recording(pcm: material.Pcm, index: int, vad: str) -> Talk:
    """A recording as one stream that is half-closed at its end: every utterance in it belongs to `index`."""
    return _cut(pcm, [], [(0, len(pcm))], [index], vad)


def _cut(pcm: material.Pcm, ends: Sequence[int], spoken: Sequence[Span], indices: Sequence[int], vad: str) -> Talk:
    options = EndpointingOptions()
    segmenter = Segmenter(options, make_vad("webrtc" if vad == "webrtc" else "silero", options.vad_aggressiveness))
    decoder = AudioDecoder(AudioFormat("linear16", SAMPLE_RATE_HZ))
    messages: list[bytes] = []
    due: list[int] = []
    found: list[tuple[SpeechSegment, int]] = []

    def take(events: Sequence[SegmenterEvent]) -> None:
        found.extend((event, len(messages) - 1) for event in events if isinstance(event, SpeechSegment))

    waiting = list(ends)
    for at in range(0, len(pcm), material.CHUNK):
        chunk = pcm[at : at + material.CHUNK].astype("<i2").tobytes()
        messages.append(pb.StreamingAnalyzeRequest(audio_content=chunk).SerializeToString())
        due.append(min(at + material.CHUNK, len(pcm)))
        take(segmenter.push(decoder.decode(chunk)))
        if waiting and due[-1] >= waiting[0]:
            waiting.pop(0)
            messages.append(pb.StreamingAnalyzeRequest(end_of_turn=pb.EndOfTurn()).SerializeToString())
            due.append(due[-1])
            take(segmenter.flush(EndReason.CLIENT_END_OF_TURN))
    take(segmenter.flush(EndReason.HALF_CLOSE))
    owners = [_owner(segment, spoken) for segment, _ in found]
    known: dict[Span, Known] = {}
    for number, ((segment, message), owner) in enumerate(zip(found, owners, strict=True)):
        last = number + 1 == len(found) or owners[number + 1] != owner
        until = spoken[owner][1] if last else None
        known[segment.start, segment.end] = Known(indices[owner], until, message)
    return Talk(tuple(messages), tuple(due), known)


def _owner(segment: SpeechSegment, spoken: Sequence[Span]) -> int:
    """Of which of the spoken stretches a segment holds most."""
    shared = [min(segment.end, end) - max(segment.start, start) for start, end in spoken]
    return shared.index(max(shared))


def _room_tone(seconds: float, room: np.random.Generator) -> material.Pcm:
    return np.round(_ROOM * room.standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.int16)


class Talkers:
    """Streams to one server over one connection, on one event loop."""

    def __init__(self, target: str, utterances: Sequence[material.Pcm], vad: str = "silero") -> None:
        self._target = target
        self._utterances = utterances
        self._vad = vad
        self._talks: dict[tuple[tuple[int, ...], str], Talk] = {}

    def handle(self, what: str, **details: Any) -> dict[str, Any]:
        """Answer one question of `Child.ask`."""
        actions: dict[str, Any] = {"talk": self.talk, "play": self.play}
        return asdict(asyncio.run(actions[what](**details)))

    async def talk(
        self,
        talks: Sequence[tuple[Sequence[int], float]],
        eager: bool,
        how: How = "silence",
        interims: bool = False,
    ) -> TalkReplies:
        """Speaks talks in real time, a stream and a new conversation each.

        talks: utterances, and seconds from now at which the first begins.
        """
        made = [(self._talk(tuple(indices), how), begins_s - LEAD_S) for indices, begins_s in talks]
        return await self._run(made, eager=eager, interims=interims, pace=1.0)

    async def play(self, eager: bool, interims: bool, pace: float = 1.0) -> TalkReplies:
        """Streams every piece of the material as it is, all at once. pace: times faster than real time."""
        made = [(make_recording(pcm, index, self._vad), 0.0) for index, pcm in enumerate(self._utterances)]
        return await self._run(made, eager=eager, interims=interims, pace=pace)

    def _talk(self, indices: tuple[int, ...], how: How) -> Talk:
        if (indices, how) not in self._talks:
            self._talks[indices, how] = make_talk(self._utterances, indices, how, self._vad)
        return self._talks[indices, how]

    async def _run(
        self, talks: Sequence[tuple[Talk, float]], *, eager: bool, interims: bool, pace: float
    ) -> TalkReplies:
        replies = TalkReplies(offered=sum(len(talk.known) for talk, _ in talks))
        earliest = min(begins_s for _, begins_s in talks)
        begin = time.perf_counter() + 0.1 - earliest
        async with grpc.aio.insecure_channel(self._target) as channel:
            call = channel.stream_stream(METHOD, response_deserializer=pb.StreamingAnalyzeResponse.FromString)
            config = _config(eager=eager, interims=interims)
            streams = [
                _Stream(number, talk, begin + begins_s, pace, replies) for number, (talk, begins_s) in enumerate(talks)
            ]
            await asyncio.gather(*(stream.run(call, config) for stream in streams))
        return replies


class _Stream:
    """One talk, spoken to the server."""

    def __init__(self, number: int, talk: Talk, begin: float, pace: float, replies: TalkReplies) -> None:
        self._number = number
        self._talk = talk
        self._begin = begin
        self._pace = pace
        self._replies = replies
        self._sent_at: list[float] = []
        self._missing = dict(talk.known)

    async def run(self, method: Any, config: bytes) -> None:
        await _until(self._begin)
        call = method()
        sending = asyncio.create_task(self._send(call, config))
        admitted, why = False, "the stream ended without a final"
        try:
            while (reply := await call.read()) is not grpc.aio.EOF:
                admitted = True
                if reply.HasField("utterance_result"):
                    self._take(reply.utterance_result)
        except grpc.aio.AioRpcError as error:
            why = error_from_rpc(error, "").details.reason
        finally:
            sending.cancel()
        if admitted:
            self._replies.lost += [why] * len(self._missing)
        else:
            self._replies.refused += len(self._missing)

    async def _send(self, call: Any, config: bytes) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # refused: the reader gets the reason
            await call.write(config)
            for message, due in zip(self._talk.messages, self._talk.due, strict=True):
                due_at = self._begin + due / SAMPLE_RATE_HZ / self._pace
                await _until(due_at)
                self._sent_at.append(time.perf_counter())
                self._replies.late_ms.append(1000 * (self._sent_at[-1] - due_at))
                await call.write(message)
            await call.done_writing()

    def _take(self, result: Any) -> None:
        now = time.perf_counter()
        self._replies.encoded_s += _seconds(result.analyzed_duration)
        if not result.is_final:
            self._replies.interims += 1
            return
        span = (_samples(result.start_offset), _samples(result.end_offset))
        known = self._missing.pop(span, None)
        if known is None:
            self._replies.unexpected += 1
            return
        until = known.spoken_until
        spoken_at = None if until is None else self._begin + until / SAMPLE_RATE_HZ / self._pace
        self._replies.finals.append(
            HeardFinal(
                talk=self._number,
                span=span,
                utterance=known.utterance,
                audio_s=_seconds(result.analyzed_duration),
                beyond_ms=1000 * (now - self._sent_at[known.decided_by]),
                speech_ms=None if spoken_at is None else 1000 * (now - spoken_at),
                bits=digest(result),
            )
        )


def digest(result: Any) -> str:
    """Of everything in a result that was estimated or cut, and of nothing that names a conversation."""
    kept = type(result)()
    kept.CopyFrom(result)
    for name in ("utterance_id", "turn_id"):
        kept.ClearField(name)
    return hashlib.sha256(kept.SerializeToString(deterministic=True)).hexdigest()[:16]


def _config(*, eager: bool, interims: bool) -> bytes:
    config = pb.StreamingAnalyzeConfig(
        audio_config=pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=SAMPLE_RATE_HZ),
        features=pb.AnalysisFeatures(disable_eager_finals=not eager, interim_results=interims),
    )
    return pb.StreamingAnalyzeRequest(streaming_config=config).SerializeToString()


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _samples(duration: Any) -> int:
    return round(_seconds(duration) * SAMPLE_RATE_HZ)


async def _until(due_at: float) -> None:
    await asyncio.sleep(max(0.0, due_at - time.perf_counter()))


if __name__ == "__main__":
    answer(Talkers(sys.argv[1], material.read(Path(sys.argv[2])), *sys.argv[3:]).handle)
