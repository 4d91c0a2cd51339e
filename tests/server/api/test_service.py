"""The service in this process, behind a real socket: what it leaves behind, and admission."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from kibun.server.api.auth import Authenticator
from kibun.server.api.service import ServiceLimits, SpeechAnalysis
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation.store import MemoryStore
from kibun.server.inference.backend import ModelInfo
from kibun.server.serving import GRPC_OPTIONS
from kibun.server.session import events
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.processes import until
from tests.support.scripted import MODEL, FakeAnalyzer, LoudnessVad
from tests.support.serving import (
    Talk,
    chunks,
    config,
    converse,
    encode,
    end_of_turn,
    finals,
    of_kind,
    problem,
    problem_of,
    refused,
    spoken,
)

SPEECH = chunks(encode(spoken(0.8)))
SMALL_WINDOW = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 16_384}


@dataclass
class Running:
    service: SpeechAnalysis
    analyzer: FakeAnalyzer
    store: MemoryStore
    stub: Stub


@asynccontextmanager
async def running(
    *, models: tuple[ModelInfo, ...] = (MODEL,), options: dict[str, int] | None = None, **limits: Any
) -> AsyncIterator[Running]:
    analyzer, store = FakeAnalyzer(), MemoryStore()
    served = SpeechAnalysis(
        analyzer=analyzer,
        store=store,
        make_vad=lambda _: LoudnessVad(),
        endpointing=EndpointingOptions(),
        authenticator=Authenticator(),
        limits=ServiceLimits(**limits),
        stream_limits=events.Limits(),
    )
    server = grpc.aio.server(interceptors=[served.gate], options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((served.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    served.serve(models)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=list((options or {}).items())) as channel:
            yield Running(served, analyzer, store, Stub(channel))
    finally:
        await server.stop(None)


def of_sessions_and_handlers(tasks: set[Any]) -> list[str]:
    """Names of the coroutines that gRPC's own accept loop is not."""
    names = [task.get_coro().__qualname__ for task in tasks]
    return [name for name in names if "_request_call" not in name]


async def nothing_left(before: set[Any], within_s: float = 1.0) -> None:
    for _ in range(round(within_s / 0.01)):
        if not of_sessions_and_handlers(asyncio.all_tasks() - before):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(of_sessions_and_handlers(asyncio.all_tasks() - before))


@pytest.mark.parametrize("reached", ["stream_started", "speech_event"])
async def test_a_cancelled_stream_leaves_no_task(reached: str) -> None:
    async with running() as world:
        world.analyzer.before = lambda job, final: asyncio.Event().wait()
        before = asyncio.all_tasks()
        for _ in range(20):
            async with Talk(world.stub) as talk:
                await talk.send(config(features=pb.AnalysisFeatures(interim_results=True)), *SPEECH)
                await talk.until(reached)
        await nothing_left(before)
        assert world.service.active_streams == 0
        assert len(world.service._open_streams) == 0
        assert world.analyzer.running == 0


async def test_of_a_client_that_never_reads_only_its_status_remains() -> None:
    """That one waits behind what was not read: in gRPC, which has no way to reset a call, not in a session."""
    async with running(options=SMALL_WINDOW, slow_reader_timeout_s=0.3) as world, Talk(world.stub) as talk:
        await talk.send(config(), *[end_of_turn() for _ in range(2500)])
        await until(lambda: not world.service.active_streams)
        await asyncio.sleep(0.05)
        tasks = [str(getattr(task.get_coro(), "__qualname__", task)) for task in asyncio.all_tasks()]
        assert len(world.service._open_streams) == 0
        assert not [name for name in tasks if "Session" in name or "Queue" in name], tasks
        assert (await problem_of(talk.rest())).reason == "SLOW_CONSUMER", "should it read after all"


async def test_no_admission_while_the_analyzer_has_no_room() -> None:
    async with running() as world, Talk(world.stub) as open_before:
        await open_before.start()
        world.analyzer.room = "none"
        refusal = await refused(world.stub)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refusal.retry_s
        assert refusal.quota
        await open_before.send(*SPEECH)
        assert len(finals(await open_before.finish())) == 1, "who was admitted is served"


async def test_the_last_room_is_for_the_next_turn_of_a_running_conversation() -> None:
    async with running() as world:
        await converse(world.stub, [config(conversation_id="c", turn_id="t1"), *SPEECH])
        world.analyzer.room = "running"
        assert (await problem_of(converse(world.stub, [config()]))).reason == "OVERLOADED"
        next_turn = [config(conversation_id="c", turn_id="t2"), *SPEECH]
        assert len(finals(await converse(world.stub, next_turn))) == 1
        recording = pb.AnalyzeRequest(config=config().streaming_config, audio_content=encode(spoken(0.8)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stub.Analyze(recording)
        assert problem(caught.value).reason == "OVERLOADED"
        recording.config.conversation_id = "c"
        assert len((await world.stub.Analyze(recording)).utterances) == 1


async def test_an_event_loop_that_stays_late_takes_no_further_stream() -> None:
    async with running() as world, Talk(world.stub) as open_before:
        await open_before.start()
        telemetry = world.service._telemetry
        for late_s in (0.0, 0.4, 0.4):
            telemetry.loop_was_late(late_s)
        await converse(world.stub, [config(conversation_id="c", turn_id="t1"), *SPEECH])  # now and then is no matter
        telemetry.loop_was_late(0.4)
        assert (await problem_of(converse(world.stub, [config(turn_id="t0")]))).reason == "OVERLOADED"
        next_turn = [config(conversation_id="c", turn_id="t2"), *SPEECH]
        assert len(finals(await converse(world.stub, next_turn))) == 1
        for late_s in (2.0, 0.9, 0.8):
            telemetry.loop_was_late(late_s)
        assert (
            await problem_of(converse(world.stub, [config(conversation_id="c", turn_id="t3")]))
        ).reason == "OVERLOADED"
        await open_before.send(*SPEECH)
        assert len(finals(await open_before.finish())) == 1, "who was admitted is served"
        await converse(world.stub, [config(turn_id="t4"), *SPEECH])  # without streams, something else makes it late


async def test_a_stream_takes_room_while_it_is_open() -> None:
    async with running() as world:
        async with Talk(world.stub) as talk:
            started = await talk.start()
            assert world.analyzer.open == {started.request_id}
            await talk.finish()
        assert not world.analyzer.open
        assert (await problem_of(converse(world.stub, [config(model="none")]))).reason
        assert not world.analyzer.open


async def test_a_bug_is_internal_with_an_opaque_id(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise KeyError("/etc/secret")

    async with running() as world:
        world.analyzer.before = fail
        # In one message: a client that is still writing when the stream ends may not see the status, see `refused`.
        speech = pb.StreamingAnalyzeRequest(audio_content=encode(spoken(0.8)))
        refusal = await refused(world.stub, config(), speech)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert refusal.request_id in refusal.message
        assert refusal.request_id in {getattr(record, "request_id", None) for record in caplog.records}
        request = pb.AnalyzeRequest(config=config().streaming_config, audio_content=encode(spoken(0.8)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stub.Analyze(request)
        assert problem(caught.value).reason == "INTERNAL"


async def test_a_stream_whose_config_comes_after_the_drain_began_is_refused() -> None:
    async with running() as world, Talk(world.stub) as talk:
        while not world.service.active_streams:  # noqa: ASYNC110 (there is no event for the start of the call)
            await asyncio.sleep(0.01)
        world.service.drain()
        await talk.send(config())
        refusal = await problem_of(talk.rest())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_the_longest_utterance_is_no_longer_than_the_model_takes() -> None:
    async with running(models=(ModelInfo("fake", "1", 2, max_samples=5 * 16_000),)) as world:
        async with Talk(world.stub) as talk:
            started = await talk.start()
        assert started.effective_config.endpointing_config.max_utterance_duration.seconds == 5


# ---- several streams of one participant


async def test_what_was_heard_on_another_stream_counts_in_the_result_of_a_turn_without_speech() -> None:
    async with running() as world, Talk(world.stub) as silent:
        await silent.start(conversation_id="c", turn_id="t1")
        spoken_turn = await converse(world.stub, [config(conversation_id="c", turn_id="t2"), *SPEECH])
        (result,) = of_kind(await silent.finish(), "turn_result")
        assert result.utterance_count == 0
        assert result.personality == of_kind(spoken_turn, "turn_result")[0].personality


async def test_a_turn_that_another_stream_has_finished_cannot_come_next() -> None:
    async with running() as world, Talk(world.stub) as talk:
        await talk.start(conversation_id="c", turn_id="t1")
        await converse(world.stub, [config(conversation_id="c", turn_id="t2"), *SPEECH])
        await talk.send(end_of_turn("t2"))
        assert (await problem_of(talk.rest())).reason == "TURN_FINISHED"
