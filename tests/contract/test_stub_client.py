"""A client that knows nothing but the .proto resumes a turn again and again: it gets what an undisturbed one gets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from random import Random

import numpy as np
import pytest

from kibun.bench.faults.proxy import Proxy
from kibun.bench.faults.stub_client import ResumePoint, StubTurn
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.serving import (
    RATE_HZ,
    RunningServer,
    Talk,
    chunks,
    config,
    connect,
    converse,
    encode,
    finals,
    of_kind,
    samples,
    seconds,
    serve,
    sound,
)

CUTS = 25
RECALLING = "kibun.bench.support.stub_model:load_recalling"  # estimates show what was lost, doubled or reordered


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--loader", RECALLING) as server:
        yield server


def dialogue() -> np.ndarray:
    """Long silences, in which audio is settled, and an utterance that is cut at its longest."""
    return sound(
        ("silence", 0.4), ("speech", 1.2), ("silence", 11.3), ("speech", 1.0), ("silence", 0.9), ("speech", 5.0),
        ("silence", 12.0), ("speech", 0.8), ("silence", 0.7), ("speech", 1.5), ("silence", 10.5), ("speech", 1.1),
    )  # fmt: skip


class Line:
    """Speaks `audio` through a proxy, which breaks the connection at `cuts`, in samples."""

    def __init__(self, audio: bytes, proxy: Proxy | None = None, cuts: list[int] | None = None) -> None:
        self._audio = audio
        self._proxy = proxy
        self._cuts = cuts or []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        at = 0
        for cut in self._cuts:
            yield self._audio[2 * at : 2 * cut]
            at = cut
            await asyncio.sleep(0.04)
            assert self._proxy is not None
            self._proxy.reset()
            await asyncio.sleep(0.04)
        yield self._audio[2 * at :]


async def speak(
    server: RunningServer,
    name: str,
    audio: np.ndarray,
    resume_point: ResumePoint,
    cuts: list[int],
    rate: int = RATE_HZ,
) -> tuple[StubTurn, list[pb.StreamingAnalyzeResponse]]:
    """One turn of conversation `name`, cut at these samples."""
    fields = {"max_utterance_duration": seconds(3)}
    first = config(conversation_id=name, turn_id="t", endpointing_config=fields, rate=rate).streaming_config
    async with Proxy(server.port) as proxy:
        line = Line(encode(audio), proxy, cuts)
        through = RunningServer(server.process, proxy.port, server.log)
        async with connect(through, **{"grpc.initial_reconnect_backoff_ms": 50}) as stub:
            turn = StubTurn(stub, first, resume_point)
            async with asyncio.timeout(120):
                return turn, [response async for response in turn.responses(aiter(line))]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("resume_point", ["final", "settled"])
async def test_a_turn_that_is_resumed_is_as_if_nothing_had_happened(
    server: RunningServer, resume_point: ResumePoint, seed: int
) -> None:
    audio = dialogue()
    _, whole = await speak(server, f"whole-{resume_point}-{seed}", audio, resume_point, [])
    cuts = sorted(Random(seed).sample(range(1, len(audio)), CUTS))
    turn, resumed = await speak(server, f"resumed-{resume_point}-{seed}", audio, resume_point, cuts)

    assert turn.streams > CUTS / 2
    assert of_kind(resumed, "stream_progress"), "audio was settled"
    assert finals(resumed) == finals(whole)
    assert of_kind(resumed, "turn_result") == of_kind(whole, "turn_result")
    assert not of_kind(resumed, "stream_warning")
    (ended,), (undisturbed,) = of_kind(resumed, "stream_ended"), of_kind(whole, "stream_ended")
    assert ended.conversation.participants == undisturbed.conversation.participants
    last = of_kind(resumed, "stream_started")[-1].effective_config
    assert samples(last.audio_start_offset) + samples(ended.audio_received) == len(audio), (
        "every sample is accounted for"
    )


async def lost(stub: Stub, name: str, audio: np.ndarray) -> list[pb.StreamingAnalyzeResponse]:
    """A stream of this audio, all of which the server has heard when the client goes away."""
    async with Talk(stub) as talk:
        await talk.send(config(conversation_id=name, turn_id="t", audio_start_offset=BASE), *chunks(encode(audio)))
        await talk.until("stream_progress")
        await talk.until("utterance_result", is_final=True)
        return talk.responses


BASE = seconds(100)  # on the turn's clock, where it begins


async def test_a_resume_point_that_is_too_late_is_noticed(server: RunningServer) -> None:
    """As set by a client that takes it for what was sent; the points that the contract names are silent."""
    audio = sound(("silence", 11.0), ("speech", 1.0), ("silence", 0.8), ("speech", 1.0))  # the last one is open
    async with connect(server) as stub:
        for number in range(4):
            responses = await lost(stub, f"late-{number}", audio)
            (final,), (progress,) = finals(responses), of_kind(responses, "stream_progress")
            sent = samples(BASE) + len(audio)
            offset = [sent, samples(final.end_offset), samples(progress.settled_offset), samples(BASE)][number]
            again = config(
                conversation_id=f"late-{number}",
                turn_id="t",
                resume_turn=True,
                audio_start_offset=seconds(offset / RATE_HZ),
            )
            for repeated in range(2):
                resumed = await converse(stub, [again, *chunks(encode(audio[offset - samples(BASE) :]))])
                warnings = [w for w in of_kind(resumed, "stream_warning") if w.reason == "AUDIO_MISSING"]
                assert len(warnings) == (number == repeated == 0), "told once"
                for warning in warnings:
                    assert warning.metadata == {
                        "turn_id": "t",
                        "settled_s": f"{samples(final.end_offset) / RATE_HZ:.4f}",
                        "start_s": f"{sent / RATE_HZ:.4f}",
                    }
