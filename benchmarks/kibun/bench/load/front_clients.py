"""Clients that stream in real time, in a separate process: `python -m kibun.bench.load.front_clients`.

Every stream has its own connection, as in use. Messages are serialised before the clock runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, Literal

import grpc
import grpc.aio
import numpy as np

from kibun.bench.support.child import answer, cpu_seconds
from kibun.bench.support.speech_like import lay_out
from kibun.v1 import speech_analysis_pb2 as pb

CHUNK_S = 0.1
PARTS: tuple[tuple[Literal["silence", "speech"], float], ...] = (("speech", 1.0), ("silence", 0.8))  # again and again
WARM_UP_S = 1.0  # of talk before the window that is measured


@dataclass
class Traffic:
    """What one server did: CPU of its process within the window; finals and the client's own lateness overall."""

    cpu_s: float = 0.0
    finals: int = 0
    late_p99_ms: float = 0.0


async def talk(
    servers: dict[str, dict[str, Any]], rate_hz: int, streams: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """`streams` to each server at the same time. servers: name to target, method and pid."""
    loop = asyncio.get_running_loop()
    begin = loop.time() + 0.5 + 0.02 * streams * len(servers)
    end = begin + WARM_UP_S + seconds
    traffic = {name: Traffic() for name in servers}
    late_ms: dict[str, list[float]] = {name: [] for name in servers}
    # Not in step: each stream starts at its own time within the first 100 ms, the servers' in turn.
    starts = np.linspace(0, CHUNK_S, streams * len(servers), endpoint=False).reshape(streams, len(servers))
    audio = _messages(rate_hz)
    talks = [
        _Talk(server, traffic[name], late_ms[name]).run(rate_hz, audio, begin + start, end + CHUNK_S)
        for row in starts
        for (name, server), start in zip(servers.items(), row, strict=True)
    ]
    talking = asyncio.gather(*talks)
    for at, sign in ((begin + WARM_UP_S, -1), (end, 1)):
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

    async def run(self, rate_hz: int, audio: list[bytes], begin: float, end: float) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # its own connection
        async with grpc.aio.insecure_channel(self.server["target"], options=options) as channel:
            method = channel.stream_stream(
                self.server["method"], response_deserializer=pb.StreamingAnalyzeResponse.FromString
            )
            call = method()
            await call.write(_config(rate_hz))
            reading = asyncio.create_task(self._read(call))
            await self._send(call, audio, begin, end)
            await reading

    async def _send(self, call: Any, audio: list[bytes], begin: float, end: float) -> None:
        loop = asyncio.get_running_loop()
        due, number = begin, 0
        while due < end:
            await asyncio.sleep(due - loop.time())
            self.late_ms.append(1000 * (loop.time() - due))
            await call.write(audio[number % len(audio)])
            number, due = number + 1, due + CHUNK_S
        await call.done_writing()

    async def _read(self, call: Any) -> None:
        while (reply := await call.read()) is not grpc.aio.EOF:
            self.traffic.finals += reply.HasField("utterance_result")


def _config(rate_hz: int) -> bytes:
    config = pb.StreamingAnalyzeConfig(
        audio_config=pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=rate_hz),
        features=pb.AnalysisFeatures(enable_voice_activity_events=True),
    )
    return pb.StreamingAnalyzeRequest(streaming_config=config).SerializeToString()


def _messages(rate_hz: int) -> list[bytes]:
    pcm = np.round(32767 * lay_out(list(PARTS), rate=rate_hz, seed=0).audio).astype("<i2").tobytes()
    size = 2 * round(CHUNK_S * rate_hz)
    chunks = [pcm[at : at + size] for at in range(0, len(pcm), size)]
    return [pb.StreamingAnalyzeRequest(audio_content=chunk).SerializeToString() for chunk in chunks]


def _handle(what: str, **details: Any) -> dict[str, Any]:
    return asyncio.run(talk(**details))


if __name__ == "__main__":
    answer(_handle)
