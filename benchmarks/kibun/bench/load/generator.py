"""Clients that put load on a server, in a process: `python -m kibun.bench.load.generator TARGET MATERIAL.npz`.

Messages are serialised before the clock runs, so that clients take as little CPU from the server as Python allows;
what they take is reported, and so is how late they were themselves. An utterance is sent in messages of 100 ms and
ended with end_of_turn.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kibun.bench.support import material
from kibun.bench.support.child import answer
from kibun.client.errors import KibunError, ResourceExhaustedError
from kibun.client.transport import StreamCall
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.v1 import speech_analysis_pb2 as pb

AHEAD = 2  # turns of a stream that are sent before the first of them is answered
METHOD = "/kibun.v1.SpeechAnalysisService/StreamingAnalyze"

_AUDIO = pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=SAMPLE_RATE_HZ)
_CONFIG = pb.StreamingAnalyzeRequest(
    streaming_config=pb.StreamingAnalyzeConfig(audio_config=_AUDIO)
).SerializeToString()
_END_OF_TURN = pb.StreamingAnalyzeRequest(end_of_turn=pb.EndOfTurn()).SerializeToString()


@dataclass
class Replies:
    """What the clients of one run saw. Times in milliseconds."""

    finals: list[tuple[int, int]] = field(default_factory=list)  # utterance, samples analysed
    first_turns: dict[int, tuple[float, float]] = field(default_factory=dict)  # valence, arousal without a history
    final_ms: list[float] = field(default_factory=list)  # from when end_of_turn was due until the final was here
    refusal_ms: list[float] = field(default_factory=list)  # from opening a stream until it was refused
    refusals: dict[str, int] = field(default_factory=dict)  # by reason
    without_retry_info: int = 0  # of the refusals
    lost: list[str] = field(default_factory=list)  # why admitted utterances got no final
    late_ms: list[float] = field(default_factory=list)  # how late each message was sent: the clients' own fault
    streams: int = 0  # admitted to push over
    last_at: float = 0.0  # when the last final came
    seconds: float = 0.0

    def take(self, index: int, reply: Any, *, first: bool) -> None:
        """Records a final."""
        self.last_at = time.perf_counter()
        result = reply.utterance_result
        self.finals.append((index, round(result.analyzed_duration.ToTimedelta().total_seconds() * SAMPLE_RATE_HZ)))
        if first:
            self.first_turns[index] = (result.emotion.valence, result.emotion.arousal)


class Clients:
    """Streams to one server over one connection, on one event loop."""

    def __init__(self, target: str, utterances: Sequence[material.Pcm]) -> None:
        self._target = target
        self._lengths = [len(pcm) for pcm in utterances]
        self._messages = [
            [_audio(pcm[at : at + material.CHUNK]) for at in range(0, len(pcm), material.CHUNK)] for pcm in utterances
        ]

    def handle(self, what: str, **details: Any) -> dict[str, Any]:
        """Answer one question of `Child.ask`."""
        actions = {"push": self.push, "speak": self.speak}
        return asdict(asyncio.run(self._connected(actions[what], **details)))

    async def _connected(self, action: Any, **details: Any) -> Replies:
        async with grpc.aio.insecure_channel(self._target) as channel:
            # No deserialiser for requests: they are bytes already.
            self._call = channel.stream_stream(METHOD, response_deserializer=pb.StreamingAnalyzeResponse.FromString)
            replies: Replies = await action(**details)
            return replies

    # ---- as fast as the server takes it

    async def push(self, order: Sequence[int], streams: int) -> Replies:
        """Send utterances in this order over `streams` streams, or as many as are admitted, as fast as possible."""
        replies, turns = Replies(), iter(order)
        calls: list[Any] = []
        for _ in range(streams):
            call = self._call()
            try:
                await call.write(_CONFIG)
                await call.read()  # StreamStarted: opening is not what is measured here
            except grpc.aio.AioRpcError:
                if not calls:
                    raise
                break  # those that are open suffice to keep the worker busy
            calls.append(call)
        replies.streams = len(calls)
        begin = time.perf_counter()
        await asyncio.gather(*(self._push(call, turns, replies) for call in calls))
        replies.seconds = replies.last_at - begin
        return replies

    async def _push(self, call: Any, turns: Iterator[int], replies: Replies) -> None:
        ahead, sent = asyncio.Semaphore(AHEAD), deque[int]()

        async def send() -> None:
            while await ahead.acquire() and (index := next(turns, None)) is not None:
                sent.append(index)
                for message in self._messages[index]:
                    await call.write(message)
                await call.write(_END_OF_TURN)
            await call.done_writing()

        sending, first = asyncio.create_task(send()), True
        while (reply := await call.read()) is not grpc.aio.EOF:
            if reply.HasField("utterance_result"):
                replies.take(sent[0], reply, first=first)
                first = False
            elif reply.HasField("turn_result") and sent:  # a stream that came too late for work gets an empty turn
                sent.popleft()
                ahead.release()
        await sending

    # ---- in real time

    async def speak(self, arrivals: Sequence[tuple[int, float]]) -> Replies:
        """Stream utterances in real time, one stream each, independent of the others.

        arrivals: (utterance, seconds from now at which it begins).
        """
        replies, begin = Replies(), time.perf_counter() + 0.1
        await asyncio.gather(*(self._speak(index, begin + starts_s, replies) for index, starts_s in arrivals))
        replies.seconds = replies.last_at - begin
        return replies

    async def _speak(self, index: int, starts_at: float, replies: Replies) -> None:
        await _until(starts_at)
        opened_at = time.perf_counter()
        # Reads the server's status where grpc.aio puts its own over it; requests are bytes already.
        call = StreamCall(self._call(), self._target)
        sending = asyncio.create_task(self._send(call, index, starts_at, replies))
        admitted = final = False
        try:
            while (reply := await call.read()) is not None:
                admitted = True
                if reply.HasField("utterance_result"):
                    due_at = starts_at + self._lengths[index] / SAMPLE_RATE_HZ
                    replies.final_ms.append(1000 * (time.perf_counter() - due_at))
                    replies.take(index, reply, first=True)
                    final = True
            why = "the stream ended without a final"
        except KibunError as failure:
            why = failure.details.reason
            if not admitted and isinstance(failure, ResourceExhaustedError):
                replies.refusal_ms.append(1000 * (time.perf_counter() - opened_at))
                replies.refusals[why] = replies.refusals.get(why, 0) + 1
                replies.without_retry_info += failure.details.retry_after_s is None
                final = True  # none was promised
        finally:
            sending.cancel()
        if not final:
            replies.lost.append(why)

    async def _send(self, call: Any, index: int, starts_at: float, replies: Replies) -> None:
        sent = 0
        if not await call.write(_CONFIG):
            return  # refused: the reader gets the reason
        for message in self._messages[index]:
            sent = min(sent + material.CHUNK, self._lengths[index])
            due_at = starts_at + sent / SAMPLE_RATE_HZ
            await _until(due_at)
            replies.late_ms.append(1000 * (time.perf_counter() - due_at))
            if not await call.write(message):
                return
        await call.write(_END_OF_TURN)
        await call.half_close()


def _audio(samples: Any) -> bytes:
    message = pb.StreamingAnalyzeRequest(audio_content=samples.astype("<i2").tobytes())
    serialised: bytes = message.SerializeToString()
    return serialised


async def _until(due_at: float) -> None:
    await asyncio.sleep(max(0.0, due_at - time.perf_counter()))


if __name__ == "__main__":
    answer(Clients(sys.argv[1], material.read(Path(sys.argv[2]))).handle)
