"""Conversations that others watch: what they see, what they miss, and that who speaks does not notice."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.processes import until
from tests.support.serving import (
    RunningServer,
    Talk,
    active,
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
    seconds,
    serve,
    spoken,
    times_and_emotions,
)
from tests.support.watching import Viewer, finals_seen, heard, kind_of, results_seen

Code = grpc.StatusCode
ALL = pb.AnalysisFeatures(
    interim_results=True, interim_interval=seconds(0.2), enable_voice_activity_events=True
)  # that a client can ask for


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(model="stub?slots=16") as running:
        yield running
        log = running.log.read_text()
        for word in ("failed", "error=", "Traceback", "never retrieved", "never awaited", "watchers"):
            assert word not in log, log


def utterance(number: int) -> list[pb.StreamingAnalyzeRequest]:
    return chunks(encode(spoken(0.8, seed=number)))


async def complete(stub: Stub, conversation_id: str) -> None:
    await stub.CompleteConversation(pb.CompleteConversationRequest(conversation_id=conversation_id))


# ---- what is seen


async def test_it_sees_what_every_participant_is_sent(stub: Stub) -> None:
    async with Viewer(stub, "dinner") as viewer:
        assert not viewer.started.HasField("conversation"), "nobody has spoken"
        people = {
            name: [
                config(conversation_id="dinner", participant_id=name, turn_id=f"{name}-1", features=ALL),
                *utterance(number),
                end_of_turn(f"{name}-2"),
                *utterance(number + 10),
            ]
            for number, name in enumerate(("ann", "bob"))
        }
        sent = dict(zip(people, await asyncio.gather(*(converse(stub, r) for r in people.values())), strict=True))
        await complete(stub, "dinner")
        seen = await viewer.ended()
    for name, responses in sent.items():
        check_stream(responses)
        events = heard(seen, name)
        # A turn's result is told once the store knows that the turn has it; what is said meanwhile comes first.
        assert sorted(events, key=lambda e: e.sequence_number) == responses
        turns = {r.turn_id for r in seen if r.participant_id == name}
        assert turns == {f"{name}-1", f"{name}-2"}
        for response in (r for r in seen if r.participant_id == name):
            event = getattr(response.event, kind_of(response))
            assert getattr(event, "turn_id", response.turn_id) == response.turn_id
    assert [kind_of(seen[0]), kind_of(seen[-1])] == ["watch_started", "watch_ended"]
    assert (seen[-1].watch_ended.reason, seen[-1].watch_ended.conversation.state) == (
        "COMPLETED",
        pb.Conversation.STATE_COMPLETED,
    )
    assert not any(r.past for r in seen)
    assert {r.participant_id for r in seen[1:-1]} == {"ann", "bob"}
    assert b"audio_content" not in b"".join(r.SerializeToString() for r in seen)


async def test_who_speaks_gets_the_same_with_watchers_and_without(stub: Stub) -> None:
    requests = [*utterance(1), *utterance(2)]
    alone = await converse(stub, [config(conversation_id="alone", turn_id="t", features=ALL), *requests])
    viewers = [Viewer(stub, "crowd") for _ in range(8)]
    for viewer in viewers:
        await viewer.__aenter__()
    watched = await converse(stub, [config(conversation_id="crowd", turn_id="t", features=ALL), *requests])
    await complete(stub, "crowd")
    for viewer in viewers:
        assert finals_seen(await viewer.ended()) == [u.utterance_id for u in finals(watched)]
        await viewer.__aexit__()
    assert times_and_emotions(watched) == times_and_emotions(alone)
    assert of_kind(watched, "turn_result") == of_kind(alone, "turn_result")


async def test_recordings_of_one_request_are_seen_too(stub: Stub) -> None:
    async with Viewer(stub, "recording") as viewer:
        request = pb.AnalyzeRequest(
            config=config(conversation_id="recording", turn_id="t").streaming_config,
            audio_content=encode(spoken(0.8)),
        )
        answer = await stub.Analyze(request)
        await viewer.until("stream_ended")
    assert finals_seen(viewer.responses) == [u.utterance_id for u in answer.utterances]
    assert results_seen(viewer.responses) == [("user", "t")]


# ---- past and live


async def test_past_and_live_join_without_gap_or_double(stub: Stub) -> None:
    """However the moment falls at which a watch begins."""
    viewers: list[Viewer] = []

    async def look() -> None:
        while True:
            viewers.append(viewer := Viewer(stub, "joined", include_past=True))
            await viewer.__aenter__()
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    requests = [r for number in range(5) for r in (*utterance(number), end_of_turn(f"t{number + 1}"))]
    async with Talk(stub) as talk:
        await talk.start(conversation_id="joined", turn_id="t0")
        for request in requests:
            await talk.send(request)
            await asyncio.sleep(0.002)
        responses = await talk.finish()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    viewers = [viewer for viewer in viewers if viewer.responses]
    await complete(stub, "joined")
    said = [u.utterance_id for u in finals(responses)]
    ended = [("user", turn.turn_id) for turn in of_kind(responses, "turn_result")]
    assert (len(said), len(ended)) == (5, 5)
    late = 0
    for viewer in viewers:
        seen = await viewer.ended()
        await viewer.__aexit__()
        assert finals_seen(seen) == said
        assert results_seen(seen) == ended
        count = viewer.started.past_response_count
        assert [r.past for r in seen[1 : 1 + count]] == [True] * count
        late += count > 0
    assert late, "some came after the first final"


async def test_the_past_is_what_the_store_holds(stub: Stub) -> None:
    responses = await converse(
        stub, [config(conversation_id="past", turn_id="t1"), *utterance(1), *utterance(2), end_of_turn("t2")]
    )
    known = (await stub.GetConversation(pb.GetConversationRequest(conversation_id="past"))).conversation
    async with Viewer(stub, "past", include_past=True) as viewer, Viewer(stub, "past") as from_now:
        await complete(stub, "past")
        seen = await viewer.ended()
        assert [kind_of(r) for r in await from_now.ended()] == ["watch_started", "watch_ended"]
        assert from_now.started.conversation == known
    assert viewer.started.conversation == known
    assert [kind_of(r) for r in seen] == [
        "watch_started",
        "utterance_result",
        "utterance_result",
        "turn_result",
        "personality_update",
        "watch_ended",
    ]
    for stored, final in zip(heard(seen, "user"), finals(responses), strict=False):
        for field in ("personality", "condition"):  # are not kept
            final.ClearField(field)
        assert stored.utterance_result == final
    (turn,) = (r.turn_result for r in heard(seen, "user") if r.HasField("turn_result"))
    (told,) = of_kind(responses, "turn_result")
    told.ClearField("personality")
    told.ClearField("end_reason")
    assert turn == told
    (update,) = (r.personality_update for r in heard(seen, "user") if r.HasField("personality_update"))
    assert update == of_kind(responses, "personality_update")[-1]


async def test_a_stream_that_is_resumed_gives_no_final_twice(stub: Stub) -> None:
    async with Viewer(stub, "resumed") as viewer:
        async with Talk(stub) as talk:
            await talk.start(conversation_id="resumed", turn_id="t", features=ALL)
            await talk.send(*utterance(1), *utterance(2))
            await talk.until("utterance_result", is_final=True)
            await talk.until("utterance_result", is_final=True)
        first = talk.responses
        # The client says that nothing arrived.
        resume = config(conversation_id="resumed", turn_id="t", resume_turn=True, features=ALL)
        again = await converse(stub, [resume, *utterance(1), *utterance(2), *utterance(3)])
        await complete(stub, "resumed")
        seen = await viewer.ended()
    assert [u.utterance_id for u in finals(first)] == [u.utterance_id for u in finals(again)][:2]
    assert finals_seen(seen) == [u.utterance_id for u in finals(again)]
    assert results_seen(seen) == [("user", "t")]
    assert [kind_of(r) for r in seen].count("stream_started") == 2
    of = [r.event.utterance_result for r in seen if kind_of(r) == "utterance_result"]
    last = {u.utterance_id: number for number, u in enumerate(of) if u.is_final}
    assert all(number <= last[u.utterance_id] for number, u in enumerate(of)), "no interim after its final"


async def test_a_turn_begun_anew_is_seen_anew(stub: Stub) -> None:
    async with Viewer(stub, "anew") as viewer:
        async with Talk(stub) as talk:
            await talk.start(conversation_id="anew", turn_id="t")
            await talk.send(*utterance(1))
            await talk.until("utterance_result", is_final=True)
        again = await converse(stub, [config(conversation_id="anew", turn_id="t"), *utterance(1)])
        await complete(stub, "anew")
        seen = await viewer.ended()
    assert finals_seen(seen) == [u.utterance_id for u in finals(again)] * 2


# ---- how it begins and ends


async def test_an_unknown_conversation_is_waited_for_unless_it_must_exist(stub: Stub) -> None:
    must = pb.WatchConversationRequest(conversation_id="nobody", require_existing_conversation=True)
    problem = await problem_of(_read(stub, must))
    assert (problem.code, problem.reason) == (Code.NOT_FOUND, "CONVERSATION_NOT_FOUND")
    async with Viewer(stub, "later") as viewer:
        responses = await converse(stub, [config(conversation_id="later"), *utterance(1)])
        await viewer.until("stream_ended")
        assert heard(viewer.responses, "user")[0].stream_started == responses[0].stream_started
        async with Viewer(stub, "later", require_existing_conversation=True) as other:
            assert other.started.HasField("conversation")


async def test_bad_requests(stub: Stub, server: RunningServer) -> None:
    for bad in ("", "a b", "x" * 65):
        problem = await problem_of(_read(stub, pb.WatchConversationRequest(conversation_id=bad)))
        assert (problem.code, problem.reason, problem.field) == (
            Code.INVALID_ARGUMENT,
            "INVALID_ID",
            "conversation_id",
        )
    async with grpc.aio.insecure_channel(server.target) as channel:
        call = channel.stream_stream("/kibun.v1.SpeechAnalysisService/WatchConversation")
        for messages, reason in (([], "EMPTY_REQUEST"), ([b"\xff\xff\xff\xff"], "MALFORMED_MESSAGE")):
            assert (await problem_of(call(iter(messages)).read())).reason == reason


async def test_it_ends_when_the_conversation_is_deleted(stub: Stub) -> None:
    async with Viewer(stub, "erased") as viewer, Talk(stub) as talk:
        await talk.start(conversation_id="erased")
        await stub.DeleteConversation(pb.DeleteConversationRequest(conversation_id="erased"))
        seen = await viewer.ended()
        assert (await problem_of(talk.rest())).reason == "CONVERSATION_DELETED"
    assert (kind_of(seen[-1]), seen[-1].watch_ended.reason) == ("watch_ended", "DELETED")
    assert not seen[-1].watch_ended.HasField("conversation")


async def test_it_ends_at_once_where_the_conversation_is_completed(stub: Stub) -> None:
    responses = await converse(stub, [config(conversation_id="over"), *utterance(1)])
    await complete(stub, "over")
    async with Viewer(stub, "over", include_past=True) as viewer:
        seen = await viewer.ended()
    assert finals_seen(seen) == [u.utterance_id for u in finals(responses)]
    assert kind_of(seen[-1]) == "watch_ended"


async def test_a_server_that_stops_hands_its_watchers_on(tmp_path: Path) -> None:
    """It waits for streams, not for watchers, who see them to their end."""
    with serve("--grace", "600") as server:
        async with connect(server) as stub, Viewer(stub, "idle") as idle, Viewer(stub, "busy") as busy:
            async with Talk(stub) as talk:
                await talk.start(conversation_id="busy", turn_id="t")
                server.terminate()
                await talk.until("stream_warning", reason="GOING_AWAY")
                await talk.send(*utterance(1))
                responses = await talk.finish()
            for viewer in (idle, busy):
                problem = await problem_of(viewer.ended())
                assert (problem.code, problem.reason) == (Code.UNAVAILABLE, "DRAINING")
                assert problem.retry_s
            assert finals_seen(busy.responses) == [u.utterance_id for u in finals(responses)]
            assert results_seen(busy.responses) == [("user", "t")]
        assert server.wait(60) == 0


async def test_watchers_that_leave_are_forgotten(stub: Stub) -> None:
    for _ in range(300):  # more than may be open at a time
        async with Viewer(stub, "visited"):
            pass
    assert await active(stub) == 0


SMALL = {"grpc.http2.bdp_probe": 0, "grpc.use_local_subchannel_pool": 1}  # 64 kB, then the server waits


async def crowd(stub: Stub, turns: int) -> list[str]:
    """Eight people have that many turns each, most of them without a word. Returns the ids of all finals."""
    said: list[str] = []

    async def speak(who: str) -> None:
        for number in range(turns):
            say = config(conversation_id="crowd", participant_id=who, turn_id=f"{number}", features=ALL)
            responses = await converse(stub, [say, *(utterance(number) if number % 30 == 0 else [])])
            check_stream(responses)
            said.extend(u.utterance_id for u in finals(responses))

    await asyncio.gather(*(speak(f"p{number}") for number in range(8)))
    return said


async def test_who_never_reads_holds_nobody_up_and_finds_every_final_once() -> None:
    with serve("--slow-reader-timeout", "120", model="stub?slots=16") as server:
        async with connect(server) as stub, connect(server, **SMALL) as other:
            call = other.WatchConversation(pb.WatchConversationRequest(conversation_id="crowd"))
            assert kind_of(await call.read()) == "watch_started"
            said = await crowd(stub, turns=70)
            assert len(said) == 24
            await complete(stub, "crowd")
            seen = []
            while (response := await call.read()) is not grpc.aio.EOF:
                seen.append(response)
    assert any(r.watch_gap.reason == "SLOW_WATCHER" for r in seen)
    assert sorted(finals_seen(seen)) == sorted(said)
    assert len(set(results_seen(seen))) == len(results_seen(seen)) == 8 * 70
    assert seen[-1].watch_ended.reason == "COMPLETED"


async def test_who_reads_nothing_for_too_long_is_hung_up_on() -> None:
    with serve("--slow-reader-timeout", "0.5", model="stub?slots=16") as server:
        async with connect(server) as stub, connect(server, **SMALL) as other:
            call = other.WatchConversation(pb.WatchConversationRequest(conversation_id="crowd"))
            assert kind_of(await call.read()) == "watch_started"
            await crowd(stub, turns=70)
            await until(lambda: b"code=RESOURCE_EXHAUSTED" in server.log.read_bytes())
            problem = await problem_of(_rest(call))
            assert (problem.code, problem.reason) == (Code.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")
            assert problem.retry_s


async def _rest(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
    if await call.code() is not Code.OK:
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )


# ---- whose conversation it is


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    tokens = tmp_path_factory.mktemp("watch") / "tokens"
    digests = {name: hashlib.sha256(f"{name}-token".encode()).hexdigest() for name in ("acme", "umbrella", "old")}
    tokens.write_text(f"acme {digests['acme']} streams=2\numbrella {digests['umbrella']}\n")
    with serve("--token-file", str(tokens)) as running:
        yield running


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-token"}


async def test_another_tenants_conversation_is_as_unknown(guarded: RunningServer) -> None:
    async with connect(guarded) as stub, Viewer(stub, "ours", metadata=bearer("umbrella")) as stranger:
        async with Viewer(stub, "ours", metadata=bearer("acme")) as viewer:
            await converse(stub, [config(conversation_id="ours"), *utterance(1)], metadata=bearer("acme"))
            await viewer.until("stream_ended")
        must = pb.WatchConversationRequest(conversation_id="ours", require_existing_conversation=True)
        problem = await problem_of(_read(stub, must, bearer("umbrella")))
        assert (problem.code, problem.reason) == (Code.NOT_FOUND, "CONVERSATION_NOT_FOUND")
        async with Viewer(stub, "ours", metadata=bearer("umbrella"), include_past=True) as other:
            assert not other.started.HasField("conversation")
        assert len(stranger.responses) == 1
        assert (await problem_of(_read(stub, must))).code is Code.UNAUTHENTICATED


async def test_a_tenant_may_have_as_many_watches_as_streams_and_those_beside_them(guarded: RunningServer) -> None:
    async with connect(guarded) as stub:
        async with Viewer(stub, "a", metadata=bearer("acme")), Viewer(stub, "b", metadata=bearer("acme")):
            problem = await problem_of(_read(stub, pb.WatchConversationRequest(conversation_id="c"), bearer("acme")))
            assert (problem.code, problem.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_WATCH_LIMIT")
            assert problem.retry_s
            assert problem.quota
            check_stream(await converse(stub, [config(), *utterance(1)], metadata=bearer("acme")))
            async with Viewer(stub, "a", metadata=bearer("umbrella")):
                pass
        async with Viewer(stub, "c", metadata=bearer("acme")):
            pass


async def _read(stub: Stub, request: pb.WatchConversationRequest, metadata: dict[str, str] | None = None) -> None:
    async for _ in stub.WatchConversation(request, metadata=tuple((metadata or {}).items())):
        pass
