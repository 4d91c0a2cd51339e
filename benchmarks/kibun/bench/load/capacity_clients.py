"""Clients that push utterances for a given time: `python -m kibun.bench.load.capacity_clients`.

Over several connections, as several fronts share connections out. Messages are serialised before the clock runs.
"""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import grpc.aio

from kibun.bench.load.generator import METHOD
from kibun.bench.support import material
from kibun.bench.support.child import answer, cpu_seconds
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.v1 import speech_analysis_pb2 as pb

AHEAD = 2  # turns of a stream that are sent before the first of them is answered
WARM_UP_S = 1.5  # of pushing before the window that is measured

_AUDIO = pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=SAMPLE_RATE_HZ)
_END_OF_TURN = pb.StreamingAnalyzeRequest(end_of_turn=pb.EndOfTurn()).SerializeToString()


@dataclass
class Pushed:
    """What was answered within the window, and who used how much CPU in it."""

    finals: int = 0
    seconds: float = 0.0
    client_cpu_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)  # by process id, as JSON has it
    counting: bool = False


async def push(
    target: str, connections: int, utterance_s: float, seconds: float, pids: Sequence[int]
) -> dict[str, Any]:
    """One stream per connection with turns of one utterance, as fast as they are answered. pids: whose CPU is asked."""
    pushed = Pushed()
    (pcm,) = material.utterances(1, utterance_s, utterance_s)
    messages = [_message(pcm[at : at + material.CHUNK]) for at in range(0, len(pcm), material.CHUNK)]
    over = asyncio.Event()
    async with AsyncExitStack() as stack:
        calls = [await _stream(stack, target, f"c{number}") for number in range(connections)]
        pushing = asyncio.gather(*(_push(call, [*messages, _END_OF_TURN], over, pushed) for call in calls))
        await asyncio.sleep(WARM_UP_S)
        before, own, begin = {pid: cpu_seconds(pid) for pid in pids}, time.process_time(), time.perf_counter()
        pushed.counting = True
        await asyncio.sleep(seconds)
        pushed.counting = False
        pushed.seconds = time.perf_counter() - begin
        pushed.client_cpu_s = time.process_time() - own
        pushed.cpu_s = {str(pid): cpu_seconds(pid) - before[pid] for pid in pids}
        over.set()
        await pushing
    return asdict(pushed)


async def spread(target: str, connections: int, metrics: str) -> dict[str, Any]:
    """Opens a stream on each of so many connections; how many of them each front got, by its number."""
    async with AsyncExitStack() as stack:
        for number in range(connections):
            await _stream(stack, target, f"s{number}")
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(metrics).read().decode())
        found = re.findall(r'^kibun_open_streams\{front="(\d+)"\} (\S+)$', page, re.MULTILINE)
        return {front: round(float(streams)) for front, streams in found}


async def _stream(stack: AsyncExitStack, target: str, conversation: str) -> Any:
    """An open stream over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
    # No deserialiser for requests: they are bytes already.
    call = channel.stream_stream(METHOD, response_deserializer=pb.StreamingAnalyzeResponse.FromString)()
    config = pb.StreamingAnalyzeConfig(audio_config=_AUDIO, conversation_id=conversation)
    await call.write(pb.StreamingAnalyzeRequest(streaming_config=config).SerializeToString())
    await call.read()  # StreamStarted
    return call


async def _push(call: Any, turn: list[bytes], over: asyncio.Event, pushed: Pushed) -> None:
    ahead = asyncio.Semaphore(AHEAD)

    async def send() -> None:
        while await ahead.acquire() and not over.is_set():
            for message in turn:
                await call.write(message)
        await call.done_writing()

    sending = asyncio.create_task(send())
    while (reply := await call.read()) is not grpc.aio.EOF:
        if reply.HasField("utterance_result") and reply.utterance_result.is_final:
            pushed.finals += pushed.counting
        elif reply.HasField("turn_result"):
            ahead.release()
    await sending


def _message(samples: Any) -> bytes:
    serialised: bytes = pb.StreamingAnalyzeRequest(audio_content=samples.astype("<i2").tobytes()).SerializeToString()
    return serialised


def _handle(what: str, **details: Any) -> dict[str, Any]:
    actions: dict[str, Any] = {"push": push, "spread": spread}
    found: dict[str, Any] = asyncio.run(actions[what](**details))
    return found


if __name__ == "__main__":
    answer(_handle)
