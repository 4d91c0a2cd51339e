"""Real servers on a real Redis that is killed, started again, frozen and slowed, with streams going through."""

import asyncio
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from kibun.bench.faults.servers import free_port
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.damaged_hashes import KINDS
from tests.support.redis_server import OwnRedis, RedisProxy, command, own_redis
from tests.support.serving import (
    RunningServer,
    Talk,
    check_stream,
    chunks,
    config,
    connect,
    converse,
    encode,
    environment,
    finals,
    of_kind,
    problem_of,
    samples,
    seconds,
    serve,
    spoken,
)
from tests.support.serving import command as serve_command

pytest.importorskip("redis", reason="needs the extra redis")

RECALLING = "kibun.bench.support.stub_model:load_recalling"  # another model of the name "stub"
PROMPT_S = 8.0  # a final with one answer of the store overdue, on a machine with other things to do


def utterance(number: int) -> list[pb.StreamingAnalyzeRequest]:
    return chunks(encode(spoken(0.8, seed=number)))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    with own_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(redis: OwnRedis) -> Iterator[RedisProxy]:
    with RedisProxy(redis.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def servers(redis: OwnRedis, proxy: RedisProxy) -> Iterator[list[RunningServer]]:
    """Two of them, on one Redis; the second goes through the proxy."""
    with ExitStack() as stack:
        urls = (f"redis://default:Zx8-hush@127.0.0.1:{redis.port}", f"redis://127.0.0.1:{proxy.port}")
        running = [stack.enter_context(serve("--store", url)) for url in urls]
        yield running
        redis.freeze()  # it must not keep servers from stopping
        for server in running:
            assert server.process.poll() is None
            server.terminate()
            assert server.wait(20) == 0
            log = server.log.read_text()
            for word in ("failed", "Traceback", "never retrieved", "never awaited", "hush"):
                assert word not in log, log


@pytest.fixture
async def stubs(servers: list[RunningServer], redis: OwnRedis) -> AsyncIterator[list[Stub]]:
    """One to each. Redis is up and empty when a test begins."""
    await command(redis.url, "FLUSHALL")
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(server)) for server in servers]


async def get(stub: Stub, conversation_id: str) -> pb.Conversation:
    """Once the store is back."""
    async with asyncio.timeout(20):
        while True:
            try:
                request = pb.GetConversationRequest(conversation_id=conversation_id)
                response: pb.GetConversationResponse = await stub.GetConversation(request)
                return response.conversation
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


async def delete(stub: Stub, conversation_id: str) -> None:
    await get(stub, conversation_id)  # the store is there
    await stub.DeleteConversation(pb.DeleteConversationRequest(conversation_id=conversation_id))


def count(conversation: pb.Conversation) -> int:
    return sum(p.utterance_count for p in conversation.participants)


@dataclass
class Dialogue:
    """One stream that says something and waits for its final."""

    talk: Talk
    said: int = 0
    slowest_s: float = 0.0
    outages: float = -1  # known once it is finished; each was reported, and its end

    async def say(self) -> None:
        self.said += 1
        begin = time.monotonic()
        await self.talk.send(*utterance(self.said))
        await self.talk.until("utterance_result", is_final=True)
        self.slowest_s = max(self.slowest_s, time.monotonic() - begin)

    async def finish(self) -> list[pb.StreamingAnalyzeResponse]:
        responses = await self.talk.finish()
        check_stream(responses)
        assert len(finals(responses)) == self.said
        notices = [w.reason for w in of_kind(responses, "stream_warning") if w.reason.startswith("STORE")]
        assert set(notices[::2]) <= {"STORE_UNAVAILABLE"}
        assert set(notices[1::2]) <= {"STORE_RECOVERED"}
        self.outages = len(notices) / 2
        return responses

    def check_outage_is_over(self) -> None:
        """There was one; a busy machine may add others."""
        assert self.outages >= 1
        assert self.outages % 1 == 0


@asynccontextmanager
async def dialogue(stub: Stub, **fields: Any) -> AsyncIterator[Dialogue]:
    fields = {"conversation_id": "c", "participant_id": "p", "turn_id": "t", **fields}
    async with Talk(stub) as talk:
        await talk.start(**fields)
        yield Dialogue(talk)


# ---- an outage


@pytest.mark.usefixtures("eager_finals")
async def test_redis_killed_and_started_again_empty(stubs: list[Stub], redis: OwnRedis) -> None:
    async with dialogue(stubs[0]) as d:
        await d.say()
        assert count(await get(stubs[1], "c")) == 1
        redis.kill()
        try:
            await d.say()
            await d.say()
        finally:
            redis.start()
        assert count(await get(stubs[0], "c")) == 3
        await d.say()
        await d.finish()
    d.check_outage_is_over()
    for stub in stubs:
        assert count(await get(stub, "c")) == 4


@pytest.mark.usefixtures("eager_finals")
async def test_redis_frozen(stubs: list[Stub], redis: OwnRedis) -> None:
    async with dialogue(stubs[0]) as d:
        await d.say()
        redis.freeze()
        try:
            await d.say()
            await d.say()
        finally:
            redis.thaw()
        await get(stubs[0], "c")
        await d.say()
        await d.finish()
    d.check_outage_is_over()
    assert count(await get(stubs[1], "c")) == 4


async def test_what_may_be_done_in_an_outage(stubs: list[Stub], redis: OwnRedis) -> None:
    async with dialogue(stubs[1], conversation_id="outage") as d:
        await d.say()
        await d.finish()
    redis.freeze()
    try:
        async with dialogue(
            stubs[0], conversation_id="outage", turn_id="u"
        ) as d:  # begins in the outage, in a conversation of another server
            await d.say()
            responses = await d.finish()
        started = of_kind(responses, "stream_started")[0]
        assert (started.conversation_created, d.outages) == (True, 0.5)
        problems = [
            await problem_of(stubs[0].GetConversation(pb.GetConversationRequest(conversation_id="c"))),
            await problem_of(stubs[0].CompleteConversation(pb.CompleteConversationRequest(conversation_id="c"))),
            await problem_of(stubs[0].DeleteConversation(pb.DeleteConversationRequest(conversation_id="d"))),
            await problem_of(converse(stubs[0], [config(conversation_id="x", require_existing_conversation=True)])),
        ]
        for problem in problems:
            assert (problem.code, problem.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert problem.retry_s
    finally:
        redis.thaw()
    for stub in stubs:
        await get(stub, "outage")
    assert count(await get(stubs[1], "outage")) == 2, "the stream had ended when the store came back"


@pytest.mark.usefixtures("eager_finals")
async def test_slow_redis(stubs: list[Stub], proxy: RedisProxy) -> None:
    """Finals wait for two slow answers, and then no more until Redis is fast again."""
    stub = stubs[1]
    async with dialogue(stub) as d:
        await d.say()
        proxy.delay_s = 0.4
        for _ in range(3):
            await d.say()
        asked = proxy.commands
        await d.say()
        assert proxy.commands == asked, "nothing but probes"
        proxy.delay_s = 0.0
        await get(stub, "c")
        await d.say()
        await d.finish()
        d.check_outage_is_over()
        assert count(await get(stub, "c")) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("eager_finals")
@pytest.mark.parametrize("seed", range(4))
async def test_redis_fails_at_random_moments(tmp_path: Path, seed: int) -> None:
    """Eight streams on two servers; whatever happens to a Redis that keeps its data, in the end it has every final."""
    chance = random.Random(seed)

    async def talk(stub: Stub, number: int) -> list[str]:
        async with dialogue(stub, conversation_id=f"c{number % 4}", participant_id=f"p{number}") as d:
            for _ in range(20):
                await d.say()
            responses = await d.finish()
        assert d.slowest_s < PROMPT_S
        return [u.utterance_id for u in finals(responses)]

    async def trouble(redis: OwnRedis) -> None:
        while True:
            await asyncio.sleep(chance.uniform(0, 1.5))
            if chance.random() < 0.5:
                redis.freeze()
                await asyncio.sleep(chance.uniform(0, 2.5))
                redis.thaw()
            else:
                redis.kill()
                await asyncio.sleep(chance.uniform(0, 1.5))
                redis.start()

    async with AsyncExitStack() as stack:
        redis = stack.enter_context(own_redis(tmp_path, "--appendonly", "yes", "--appendfsync", "always"))
        servers = [stack.enter_context(serve("--store", redis.url)) for _ in range(2)]
        stubs = [await stack.enter_async_context(connect(server)) for server in servers]
        troubling = asyncio.create_task(trouble(redis))
        try:
            utterance_ids = await asyncio.gather(*(talk(stubs[number % 2], number) for number in range(8)))
        finally:
            troubling.cancel()
            await asyncio.gather(troubling, return_exceptions=True)
            redis.kill()
            redis.start()
        async with asyncio.timeout(20):  # what streams had left to say when they ended comes by itself
            for number, ids in enumerate(utterance_ids):
                assert len(ids) == len(set(ids)) == 20
                for stub in stubs:
                    while await utterances(stub, f"c{number % 4}", f"p{number}") < 20:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                    assert await utterances(stub, f"c{number % 4}", f"p{number}") == 20


async def utterances(stub: Stub, conversation_id: str, participant_id: str) -> int:
    try:
        found = await get(stub, conversation_id)
    except grpc.aio.AioRpcError:  # not found, yet
        return 0
    return sum(p.utterance_count for p in found.participants if p.participant_id == participant_id)


# ---- an outage that ends with a server that is killed: only the client has what it was told


@pytest.mark.usefixtures("eager_finals")
async def test_a_client_hands_over_the_finals_that_nobody_else_has(stubs: list[Stub], redis: OwnRedis) -> None:
    """Another participant keeps the conversation. With the finals, the result is complete; without, it says so."""
    audio = np.concatenate([spoken(0.8, seed=n) for n in range(3)])
    ids: dict[str, Any] = {"conversation_id": "c", "participant_id": "p", "turn_id": "t"}
    async with dialogue(stubs[0], participant_id="q") as d:
        await d.say()
        await d.finish()
    with serve("--store", redis.url) as doomed:
        async with connect(doomed) as stub, Talk(stub) as talk:
            await talk.send(config(**ids))
            await talk.until("stream_started")
            redis.freeze()
            try:
                await talk.send(*chunks(encode(audio))[:40])
                for _ in range(2):
                    await talk.until("utterance_result", is_final=True)
                doomed.process.kill()
                doomed.wait()
            finally:
                redis.thaw()
    had = finals(talk.responses)
    assert len(had) == 2
    await get(stubs[1], "c")
    cut = samples(had[-1].end_offset)
    again: dict[str, Any] = {
        **ids,
        "resume_turn": True,
        "audio_start_offset": had[-1].end_offset,
        "resume_after": had[-1].end_reason,
    }
    short = [
        pb.UtteranceResult(
            **{n: getattr(u, n) for n in ("start_offset", "end_offset", "analyzed_duration", "emotion", "end_reason")}
        )
        for u in had
    ]
    ways: dict[str, tuple[dict[str, Any], str, int]] = {  # what a client hands over, what it is told, what is missing
        "nothing": ({}, "AUDIO_MISSING", 1),
        "how many there were": ({"resume_final_count": 2}, "UTTERANCES_MISSING", 2),
        "the last": ({"resume_finals": had[1:], "resume_final_count": 2}, "UTTERANCES_RESTORED", 1),
        "all as received": ({"resume_finals": had}, "UTTERANCES_RESTORED", 0),
        "all once more": ({"resume_finals": short, "resume_final_count": 2}, "", 0),
    }
    for way, (fields, reason, missing) in ways.items():
        heard = await converse(stubs[1], [config(**again, **fields), *chunks(encode(audio[cut:]))])
        said = [*had, *finals(heard)]
        warnings = {w.reason: w for w in of_kind(heard, "stream_warning")}
        assert (reason in warnings) == bool(reason), way
        assert ("UTTERANCES_MISSING" in warnings) == (missing > 0 and reason != "AUDIO_MISSING"), way
        assert "NO_SPEECH" not in warnings, way
        (result,) = of_kind(heard, "turn_result")
        (ended,) = of_kind(heard, "stream_ended")
        person = next(p for p in ended.conversation.participants if p.participant_id == "p")
        known = said if not missing else said[2:] if way != "the last" else said[1:]
        assert (result.utterance_count, result.missing_utterance_count) == (len(known), missing), way
        assert result.HasField("missing_before") == bool(missing), way
        assert (person.utterance_count, person.missing_utterance_count) == (len(known), missing), way
        speech = [samples(u.analyzed_duration) for u in known]
        assert samples(result.speech_duration) == samples(person.speech_duration) == sum(speech), way
        arousal = sum(u.emotion.arousal * n for u, n in zip(known, speech, strict=True)) / sum(speech)
        assert result.emotion.arousal == pytest.approx(arousal, abs=1e-6), way
        assert result.emotion == person.mean_emotion, way
        assert result.start_offset == known[0].start_offset, way
        revisions = [u.revision for u in of_kind(heard, "personality_update")]
        assert revisions == sorted(revisions)
        if way.startswith("all"):
            assert revisions[0] > 2, "after those of the lost server"
            assert result.personality.utterance_count == 1, "features went with the server"
        assert "resume_finals" not in str(of_kind(heard, "stream_started")[0].effective_config)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"resume_final_count": -1}, "resume_final_count"),
        ({"resume_finals": [pb.UtteranceResult()] * 1025}, "resume_finals"),
        ({"resume_finals": [pb.UtteranceResult(end_offset=seconds(2))]}, "resume_finals[0]"),
        ({"resume_finals": [pb.UtteranceResult(start_offset=seconds(1), end_offset=seconds(1))]}, "resume_finals[0]"),
        ({"resume_finals": [pb.UtteranceResult(end_offset=seconds(1))] * 2}, "resume_finals[1]"),
        (
            {"resume_finals": [pb.UtteranceResult(end_offset=seconds(1), analyzed_duration=seconds(1.5))]},
            "resume_finals[0]",
        ),
        (
            {"resume_finals": [pb.UtteranceResult(end_offset=seconds(1), emotion=pb.EmotionEstimate(valence=9))]},
            "resume_finals[0].emotion",
        ),
        ({"resume_finals": [pb.UtteranceResult(end_offset=seconds(-1))]}, "resume_finals[0].end_offset"),
        (
            {"resume_finals": [pb.UtteranceResult(end_offset=seconds(1), end_reason=9)]},  # type: ignore[arg-type]
            "resume_finals[0].end_reason",
        ),
    ],
)
async def test_what_is_handed_over_is_checked(stubs: list[Stub], fields: dict[str, Any], field: str) -> None:
    again: dict[str, Any] = {"turn_id": "t", "resume_turn": True, "audio_start_offset": seconds(1.5)}
    problem = await problem_of(converse(stubs[0], [config(**again, **fields)]))
    assert (problem.code, problem.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


# ---- several servers


def estimates(responses: list[pb.StreamingAnalyzeResponse]) -> list[Any]:
    """Everything that was estimated, in order."""
    estimated: list[Any] = []
    for response in responses:
        kind = response.WhichOneof("streaming_response")
        if kind in ("personality_update", "turn_result") or (
            kind == "utterance_result" and response.utterance_result.is_final
        ):
            estimated.append(getattr(response, str(kind)).SerializeToString(deterministic=True))
    return estimated


@pytest.mark.usefixtures("eager_finals")
async def test_a_stream_resumes_on_another_server_as_if_undisturbed(stubs: list[Stub]) -> None:
    audio = np.concatenate([spoken(0.8, seed=n) for n in range(4)])
    whole = await converse(
        stubs[0], [config(conversation_id="a", participant_id="p", turn_id="t"), *chunks(encode(audio))]
    )
    undisturbed = finals(whole)
    assert len(undisturbed) == 4
    cut = samples(undisturbed[1].end_offset)

    async with Talk(stubs[0]) as talk:
        await talk.send(config(conversation_id="b", participant_id="p", turn_id="t"), *chunks(encode(audio))[:40])
        for final in undisturbed[:2]:
            await talk.until("utterance_result", is_final=True, utterance_id=final.utterance_id)
        await talk.until("personality_update")
    first = [r for r in talk.responses if r.WhichOneof("streaming_response") != "turn_result"]
    assert count(await get(stubs[1], "b")) == 2
    rest = await converse(
        stubs[1],
        [
            config(
                conversation_id="b",
                participant_id="p",
                turn_id="t",
                audio_start_offset=seconds(cut / 16_000),
                require_existing_conversation=True,
            ),
            *chunks(encode(audio[cut:])),
        ],
    )
    assert of_kind(rest, "stream_started")[0].prior_utterance_count == 2
    assert estimates(first) + estimates(rest) == estimates(whole)
    for stub in stubs:
        found = await get(stub, "b")
        assert count(found) == 4
        again = await get(stub, "a")
        assert found.participants[0].personality == again.participants[0].personality


@pytest.mark.parametrize("kind", ["traits beyond their scale", "changed at infinity", "an empty vector", "a string"])
async def test_a_conversation_that_another_program_damaged(stubs: list[Stub], redis: OwnRedis, kind: str) -> None:
    """It is lost; its client is told so once, and goes on."""
    audio = chunks(encode(np.concatenate([spoken(0.8, seed=n) for n in range(2)])))
    await converse(stubs[0], [config(conversation_id="c", participant_id="p", turn_id="t"), *audio])
    (key,) = cast(list[bytes], await command(redis.url, "KEYS", "*"))
    if kind == "a string":
        await command(redis.url, "SET", key, "x")
    else:
        fields = {k.decode(): v for k, v in cast(dict[bytes, bytes], await command(redis.url, "HGETALL", key)).items()}
        KINDS[kind](fields)
        await command(redis.url, "HSET", key, *(part for pair in fields.items() for part in pair))
    for number, created in enumerate((True, False)):
        heard = await converse(
            stubs[1], [config(conversation_id="c", participant_id="p", turn_id=f"u{number}"), *audio]
        )
        check_stream(heard)
        assert of_kind(heard, "stream_started")[0].conversation_created == created
        assert [w.reason for w in of_kind(heard, "stream_warning")] == ["CONVERSATION_DAMAGED"] * created
        assert len(finals(heard)) == 2
    assert count(await get(stubs[0], "c")) == 4


async def test_a_bundle_rebuilt_under_its_old_name(stubs: list[Stub], redis: OwnRedis) -> None:
    """A server whose model of the same name has vectors of another size goes on with the conversation, and says so."""
    ids: dict[str, Any] = {"conversation_id": "c", "participant_id": "p"}
    audio = chunks(encode(np.concatenate([spoken(0.8, seed=n) for n in range(2)])))

    def told(responses: list[pb.StreamingAnalyzeResponse]) -> list[tuple[str, str]]:
        found = of_kind(responses, "stream_warning")
        return [(w.reason, w.metadata["utterance_count"]) for w in found if w.reason == "MODEL_CHANGED"]

    first = await converse(stubs[0], [config(**ids, turn_id="t0"), *audio])
    assert told(first) == []
    with serve("--store", redis.url, "--loader", RECALLING) as rebuilt:
        async with connect(rebuilt) as stub:
            turns = [await converse(stub, [config(**ids, turn_id=f"t{n}"), *audio]) for n in (1, 2)]
            shown = await get(stub, "c")
    assert [told(turn) for turn in turns] == [[("MODEL_CHANGED", "2")], []], "once"
    for number, turn in enumerate(turns):
        assert len(finals(turn)) == 2
        evidence = [u.personality.utterance_count for u in of_kind(turn, "personality_update")]
        assert evidence == [1 + 2 * number, 2 + 2 * number], "its own utterances alone"
        assert of_kind(turn, "turn_result")[0].personality.utterance_count == evidence[-1]
    assert (count(shown), shown.participants[0].personality.utterance_count) == (6, 4)
    back = await converse(stubs[1], [config(**ids, turn_id="t3"), *audio])
    assert told(back) == [("MODEL_CHANGED", "4")]
    assert [u.personality.utterance_count for u in of_kind(back, "personality_update")] == [3, 4]


async def test_a_conversation_deleted_elsewhere_ends_its_streams(stubs: list[Stub], redis: OwnRedis) -> None:
    async with dialogue(stubs[0]) as d:
        await d.say()
        await delete(stubs[1], "c")
        await d.talk.send(*utterance(2))
        problem = await problem_of(d.talk.rest())
    assert (problem.code, problem.reason) == (grpc.StatusCode.ABORTED, "CONVERSATION_DELETED")
    for stub in stubs:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetConversation(pb.GetConversationRequest(conversation_id="c"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_streams_dropped_before_a_word_leave_nothing(stubs: list[Stub], redis: OwnRedis) -> None:
    for number in range(20):
        async with dialogue(stubs[number % 2], conversation_id=f"c{number}"):
            pass
    async with asyncio.timeout(20):
        while await command(redis.url, "DBSIZE"):  # noqa: ASYNC110 (another process does it)
            await asyncio.sleep(0.02)


async def test_there_is_no_audio_in_redis(stubs: list[Stub], redis: OwnRedis) -> None:
    async with dialogue(stubs[0]) as d:
        for _ in range(3):
            await d.say()
        await d.finish()
    payload = b"".join(r.audio_content for n in (1, 2, 3) for r in utterance(n))
    keys = await command(redis.url, "KEYS", "*")
    assert isinstance(keys, list)
    assert len(keys) == 1
    fields = await command(redis.url, "HGETALL", keys[0])
    assert isinstance(fields, dict)
    assert set(fields) == {b"head", *(f"r/p/{n}".encode() for n in range(3)), b"t/p/0"}
    assert sum(map(len, fields.values())) < 1_500
    for value in fields.values():
        assert not any(value[i : i + 16] in payload for i in range(0, len(value) - 16))


# ---- the start


def test_a_store_that_cannot_be_reached() -> None:
    variables = {**environment(), "KIBUN_STORE": f"redis://u:Zx8-hush@127.0.0.1:{free_port()}"}
    done = subprocess.run(serve_command("--port", "0"), env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--store: no Redis or Valkey answers at redis://127.0.0.1:" in done.stderr
    assert "hush" not in done.stderr
