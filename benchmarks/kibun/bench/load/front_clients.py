"""Clients that stream in real time, in a separate process: `python -m kibun.bench.load.front_clients`.

Every stream has its own connection, as in use. Messages are serialised before the clock runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import grpc
import grpc.aio
import numpy as np

from kibun.bench.support.child import answer, cpu_seconds
from kibun.bench.support.speech_like import lay_out
from kibun.v1 import speech_analysis_pb2 as pb

CHUNK_S = 0.1
_Parts: TypeAlias = tuple[tuple[Literal["silence", "speech"], float], ...]
SPEECH: _Parts = (("speech", 1.0), ("silence", 0.8))  # again and again
NO_SPEECH: _Parts = (("silence", 9.0),)
WARM_UP_S = 1.0  # of each stream before the window that is measured


@dataclass
class Traffic:
    """What one server did: CPU of its process within the window; finals and the client's own lateness overall."""

    cpu_s: float = 0.0
    finals: int = 0
    late_p99_ms: float = 0.0


async def talk(
    servers: dict[str, dict[str, Any]],
    rate_hz: int,
    streams: int,
    seconds: float,
    message_ms: int = round(1000 * CHUNK_S),
    speaks: bool = True,
    after_s: float = WARM_UP_S,
) -> dict[str, dict[str, Any]]:
    """`streams` to each server at the same time. servers: name to target, method and pid.

    after_s: of each stream, before the window that is measured.
    """
    loop = asyncio.get_running_loop()
    traffic = {name: Traffic() for name in servers}
    late_ms: dict[str, list[float]] = {name: [] for name in servers}
    parts, message_s = SPEECH if speaks else NO_SPEECH, message_ms / 1000
    audio = _messages(parts, rate_hz, message_s)
    talks = [
        (name, _Talk(server, traffic[name], late_ms[name])) for _ in range(streams) for name, server in servers.items()
    ]
    await asyncio.gather(*(talk.open(rate_hz) for _, talk in talks))
    begin = loop.time() + 0.5
    end = begin + after_s + seconds
    # Not in step: each stream starts at its own time within the first message, the servers' in turn.
    starts = np.linspace(0, message_s, len(talks), endpoint=False)
    talking = asyncio.gather(
        *(
            talk.run(audio, message_s, begin + start, end + message_s)
            for (_, talk), start in zip(talks, starts, strict=True)
        )
    )
    for at, sign in ((begin + after_s, -1), (end, 1)):
        await asyncio.sleep(at - loop.time())
        for name, server in servers.items():
            traffic[name].cpu_s += sign * cpu_seconds(server["pid"])
    await talking
    for name, values in late_ms.items():
        traffic[name].late_p99_ms = float(np.percentile(values, 99))
    return {name: asdict(value) for name, value in traffic.items()}


@dataclass
class _Talk:
    """One stream."""

    server: dict[str, Any]
    traffic: Traffic
    late_ms: list[float]
    _channel: Any = None
    _call: Any = None
    _reading: Any = None

    async def open(self, rate_hz: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # its own connection
        self._channel = grpc.aio.insecure_channel(self.server["target"], options=options)
        method = self._channel.stream_stream(
            self.server["method"], response_deserializer=pb.StreamingAnalyzeResponse.FromString
        )
        self._call = method()
        await self._call.write(_config(rate_hz))
        self._reading = asyncio.create_task(self._read())

    async def run(self, audio: list[bytes], message_s: float, begin: float, end: float) -> None:
        loop = asyncio.get_running_loop()
        due, number = begin, 0
        while due < end:
            await asyncio.sleep(due - loop.time())
            self.late_ms.append(1000 * (loop.time() - due))
            await self._call.write(audio[number % len(audio)])
            number, due = number + 1, due + message_s
        await self._call.done_writing()
        await self._reading
        await self._channel.close()

    async def _read(self) -> None:
        while (reply := await self._call.read()) is not grpc.aio.EOF:
            self.traffic.finals += reply.HasField("utterance_result")


def _config(rate_hz: int) -> bytes:
    config = pb.StreamingAnalyzeConfig(
        audio_config=pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=rate_hz),
        features=pb.AnalysisFeatures(enable_voice_activity_events=True),
    )
    return pb.StreamingAnalyzeRequest(streaming_config=config).SerializeToString()


def _messages(parts: _Parts, rate_hz: int, message_s: float) -> list[bytes]:
    pcm = np.round(32767 * lay_out(list(parts), rate=rate_hz, seed=0).audio).astype("<i2").tobytes()
    size = 2 * round(message_s * rate_hz)
    chunks = [pcm[at : at + size] for at in range(0, len(pcm), size)]
    return [pb.StreamingAnalyzeRequest(audio_content=chunk).SerializeToString() for chunk in chunks]


def _handle(what: str, **details: Any) -> dict[str, Any]:
    return asyncio.run(talk(**details))


if __name__ == "__main__":
    answer(_handle)
