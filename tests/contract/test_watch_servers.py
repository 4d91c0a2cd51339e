"""Watchers on one server, speakers on another: they share a Redis, which may be away."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import grpc
import pytest

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.redis_server import OwnRedis, command, own_redis
from tests.support.serving import (
    RunningServer,
    Talk,
    check_stream,
    chunks,
    config,
    connect,
    converse,
    encode,
    end_of_turn,
    finals,
    of_kind,
    problem_of,
    samples,
    seconds,
    serve,
    spoken,
)
from tests.support.watching import Viewer, finals_seen, heard, kind_of, results_seen

pytest.importorskip("redis", reason="needs the extra redis")

ALL = pb.AnalysisFeatures(interim_results=True, interim_interval=seconds(0.2), enable_voice_activity_events=True)
OWN_CONNECTION = {"grpc.use_local_subchannel_pool": 1}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    with own_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def servers(redis: OwnRedis) -> Iterator[list[RunningServer]]:
    """Two of them, on one Redis."""
    with ExitStack() as stack:
        running = [stack.enter_context(serve("--store", redis.url, model="stub?slots=16")) for _ in range(2)]
        yield running
        for server in running:
            log = server.log.read_text()
            for word in ("failed", "error=", "Traceback", "never retrieved", "never awaited", "any more"):
                assert word not in log, log


@pytest.fixture
async def stubs(servers: list[RunningServer], redis: OwnRedis) -> AsyncIterator[list[Stub]]:
    """One to each. Redis is empty when a test begins."""
    await command(redis.url, "FLUSHALL")
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(server)) for server in servers]


def utterance(number: int) -> list[pb.StreamingAnalyzeRequest]:
    return chunks(encode(spoken(0.8, seed=number)))


async def complete(stub: Stub, conversation_id: str) -> None:
    """Once the store is back."""
    request = pb.CompleteConversationRequest(conversation_id=conversation_id)
    for _ in range(400):
        try:
            await stub.CompleteConversation(request)
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.05)
    raise AssertionError("the store did not come back")


async def until_heard(viewer: Viewer, stub: Stub, conversation_id: str) -> None:
    """Returns once what is said there arrives here as it is said: that server knows that it is watched."""
    for number in range(400):
        if any(r.participant_id == "probe" and not r.past for r in viewer.responses):
            return
        await converse(stub, [config(conversation_id=conversation_id, participant_id="probe", turn_id=f"{number}")])
        await asyncio.sleep(0.05)
    raise AssertionError("nothing arrives")


async def test_what_is_said_on_another_server_is_seen_as_it_is(stubs: list[Stub]) -> None:
    here, there = stubs
    async with Viewer(here, "dinner") as viewer:
        await until_heard(viewer, there, "dinner")
        requests = [*utterance(1), end_of_turn("t2"), *utterance(2)]
        say = config(conversation_id="dinner", turn_id="t1", features=ALL)
        responses = await converse(there, [say, *requests])
        check_stream(responses)
        await viewer.until("stream_ended", participant_id="user")
        await complete(here, "dinner")
        seen = await viewer.ended()
    assert sorted(heard(seen, "user"), key=lambda event: event.sequence_number) == responses
    assert not viewer.gaps
    assert not any(r.past for r in seen if r.participant_id == "user")


async def test_a_watch_that_begins_at_any_moment_has_each_final_once(stubs: list[Stub]) -> None:
    here, there = stubs
    viewers: list[Viewer] = []

    async def look() -> None:
        while True:
            viewers.append(viewer := Viewer(here, "joined", include_past=True))
            await viewer.__aenter__()
            if len(viewers) % 3 == 0:  # so that the server also stops and begins to listen again
                await asyncio.gather(*(v.__aexit__() for v in viewers[-3:-1]))
            await asyncio.sleep(0.03)

    async with Talk(there) as talk:
        await talk.start(conversation_id="joined", turn_id="t0")
        looking = asyncio.create_task(look())
        for number in range(6):
            await talk.send(*utterance(number), end_of_turn(f"t{number + 1}"))
            await talk.until("turn_result", turn_id=f"t{number}")
        responses = await talk.finish()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    await complete(there, "joined")
    said = [u.utterance_id for u in finals(responses)]
    ended = [("user", turn.turn_id) for turn in of_kind(responses, "turn_result")]
    assert (len(said), len(ended)) == (6, 6)
    watched = 0
    for viewer in viewers:
        if viewer.responses and not viewer.call.cancelled():
            seen = await viewer.ended()
            await viewer.__aexit__()
            assert sorted(finals_seen(seen)) == sorted(said)
            assert sorted(results_seen(seen)) == sorted(ended)
            watched += 1
    assert watched > 1


async def test_a_conversation_that_ends_elsewhere_ends_the_watch(stubs: list[Stub]) -> None:
    here, there = stubs
    async with Viewer(here, "erased") as viewer:
        await converse(here, [config(conversation_id="erased"), *utterance(1)])
        await there.DeleteConversation(pb.DeleteConversationRequest(conversation_id="erased"))
        assert (await viewer.ended())[-1].watch_ended.reason == "DELETED"


async def test_a_turn_that_a_killed_server_had_goes_on_elsewhere_with_each_final_once(
    redis: OwnRedis, stubs: list[Stub]
) -> None:
    here, _ = stubs
    async with Viewer(here, "moved") as viewer:
        with serve("--store", redis.url) as doomed:
            async with connect(doomed) as stub, Talk(stub) as talk:
                await talk.start(conversation_id="moved", turn_id="t")
                await talk.send(*utterance(1), *utterance(2))
                first = [await talk.until("utterance_result", is_final=True) for _ in range(2)]
                doomed.process.kill()
        resume = config(
            conversation_id="moved",
            turn_id="t",
            resume_turn=True,
            audio_start_offset=first[0].end_offset,
            resume_after=first[0].end_reason,
            resume_final_count=1,
        )
        spoken_on = b"".join(r.audio_content for number in (1, 2, 3) for r in utterance(number))
        again = await converse(here, [resume, *chunks(spoken_on[2 * samples(first[0].end_offset) :])])
        await complete(here, "moved")
        seen = await viewer.ended()
    said = [u.utterance_id for u in (first[0], *finals(again))]
    assert len(said) == 3
    assert said[1] == first[1].utterance_id
    assert finals_seen(seen) == said
    assert results_seen(seen) == [("user", "t")]


async def test_messages_that_do_not_arrive_are_told_and_finals_are_read(redis: OwnRedis, stubs: list[Stub]) -> None:
    here, there = stubs
    async with Viewer(here, "cut") as viewer, Viewer(there, "cut") as local, Talk(there) as talk:
        await talk.start(conversation_id="cut", turn_id="t")
        for number in range(3):
            await talk.send(*utterance(number))
            await talk.until("utterance_result", is_final=True)
            await command(redis.url, "CLIENT", "KILL", "TYPE", "pubsub")
            await viewer.until("watch_gap")
        await talk.finish()
        said = [u.utterance_id for u in finals(talk.responses)]
        await viewer.when(lambda: viewer.gaps[-1] == "OTHER_SERVERS_BACK")
        await viewer.when(lambda: finals_seen(viewer.responses) == said)
        await complete(there, "cut")
        seen = await viewer.ended()
        assert finals_seen(await local.ended()) == said, "of its own server nothing is missing"
    assert finals_seen(seen) == said
    assert results_seen(seen) == [("user", "t")]
    assert {"OTHER_SERVERS_LOST", "OTHER_SERVERS_BACK"} <= set(viewer.gaps)


async def test_redis_may_be_away_meanwhile(redis: OwnRedis, stubs: list[Stub]) -> None:
    here, there = stubs
    async with Viewer(here, "outage") as viewer, Viewer(there, "outage") as local, Talk(there) as talk:
        await talk.start(conversation_id="outage", turn_id="t")
        await talk.send(*utterance(0))
        await talk.until("utterance_result", is_final=True)
        redis.kill()
        await viewer.until("watch_gap")
        await talk.send(*utterance(1))
        final = await talk.until("utterance_result", is_final=True)
        await local.when(lambda: final.utterance_id in finals_seen(local.responses))
        watching = pb.WatchConversationRequest(conversation_id="outage")
        assert (await problem_of(_read(here, watching))).reason == "STORE_UNAVAILABLE"
        redis.start()
        await talk.send(*utterance(2))
        await talk.finish()
        said = [u.utterance_id for u in finals(talk.responses)]
        await viewer.when(lambda: viewer.gaps[-1] == "OTHER_SERVERS_BACK")
        await viewer.when(lambda: finals_seen(viewer.responses) == said)
        await complete(there, "outage")
        seen = await viewer.ended()
    assert finals_seen(seen) == said
    assert results_seen(seen) == [("user", "t")]


async def test_nothing_is_published_where_nobody_watches(redis: OwnRedis, stubs: list[Stub]) -> None:
    here, there = stubs
    from redis.asyncio import Redis

    async with Viewer(here, "watched") as viewer, Redis.from_url(redis.url) as client, client.pubsub() as ears:
        await until_heard(viewer, there, "watched")
        await ears.psubscribe("kibun:watch:*")
        for name in ("alone", "watched"):
            await converse(there, [config(conversation_id=name, features=ALL), *utterance(1)])
        await viewer.until("stream_ended", participant_id="user")
        channels = set()
        while (message := await ears.get_message(timeout=0.2)) is not None:
            channels |= {message["channel"]} if message["type"] == "pmessage" else set()
    assert channels == {b"kibun:watch:{/watched}"}


async def test_without_permission_a_watch_says_that_it_hears_its_own_server_only(redis: OwnRedis) -> None:
    rights = "on >hush ~kibun:* resetchannels +ping +hmget +hexists +eval +evalsha +hset +hdel +del +pexpire"
    await command(redis.url, "ACL", "SETUSER", "narrow", *rights.split())
    with serve("--store", f"redis://narrow:hush@127.0.0.1:{redis.port}") as server:
        async with connect(server) as stub, Viewer(stub, "narrow") as viewer:
            assert (await viewer.until("watch_gap")).watch_gap.reason == "OTHER_SERVERS_LOST"
            responses = await converse(stub, [config(conversation_id="narrow"), *utterance(1)])
            await complete(stub, "narrow")
            assert finals_seen(await viewer.ended()) == [u.utterance_id for u in finals(responses)]


async def test_fronts_of_one_server_hear_each_other(redis: OwnRedis) -> None:
    await command(redis.url, "FLUSHALL")
    with serve("--fronts", "2", "--store", redis.url) as server:
        async with AsyncExitStack() as stack:
            stubs = [await stack.enter_async_context(connect(server, **OWN_CONNECTION)) for _ in range(8)]
            viewers = [await stack.enter_async_context(Viewer(stub, "shared")) for stub in stubs]
            responses = await converse(stubs[0], [config(conversation_id="shared", turn_id="t"), *utterance(1)])
            await complete(stubs[0], "shared")
            for viewer in viewers:
                seen = await viewer.ended()
                assert finals_seen(seen) == [u.utterance_id for u in finals(responses)]
                assert kind_of(seen[-1]) == "watch_ended"


async def _read(stub: Stub, request: Any) -> None:
    async for _ in stub.WatchConversation(request):
        pass
