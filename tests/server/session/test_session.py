"""One stream with a scripted analyzer: order, races, failures and limits that no real model shows on demand."""

# A stream fails somewhere within its loop, so `raises` is put around loops.
# ruff: noqa: PT012

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.bench.support.encodings import linear16
from kibun.bench.support.speech_like import speech_like
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndpointingOptions, EndReason
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import C, Change, Key, MemoryStore, StreamHandle
from kibun.server.errors import Failure, Kind
from kibun.server.inference.backend import BackendError, Job, ModelInfo, Superseded
from kibun.server.session.events import (
    Audio,
    EndOfTurn,
    Limits,
    PersonalityUpdate,
    Reply,
    Request,
    SpeechEvent,
    StreamEnded,
    StreamStarted,
    StreamWarning,
    TurnResult,
    UtteranceResult,
)
from kibun.server.session.open_streams import MAX_CATCH_UP_S
from kibun.server.session.outbox import OUTBOX
from kibun.server.session.session import Session
from tests.support.scripted import FakeAnalyzer
from tests.support.session_world import (
    KEY,
    OpenSession,
    Requests,
    SessionWorld,
    events,
    feed,
    feed_queue,
    finals,
    in_blocks,
    interims,
    let_others_run,
    pcm,
    run,
    run_on,
    said,
)
from tests.support.virtual_time import in_virtual_time

# A coroutine that was made and never run shows only as a warning.
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("eager")]

SECOND = SAMPLE_RATE_HZ
E = TypeVar("E", bound=Exception)


async def run_until(failure: type[E], session: Session, requests: AsyncIterator[Request]) -> tuple[list[Reply], E]:
    """The replies up to a failure of this kind, and the failure."""
    received: list[Reply] = []
    with pytest.raises(failure) as caught:
        async with aclosing(session.run(requests)) as replies:
            async for reply in replies:
                received.append(reply)  # noqa: PERF401 (what came before the failure is kept)
    return received, caught.value


async def until_final(replies: AsyncIterator[Reply]) -> AsyncIterator[Reply]:
    """Up to the first final, which ends with it."""
    async for reply in replies:
        yield reply
        if isinstance(reply.event, UtteranceResult) and reply.event.is_final:
            return


# ---- order


async def test_speech_events_overtake_slow_finals_which_keep_their_order() -> None:
    world = SessionWorld()
    gate = asyncio.Event()
    world.analyzer.before = lambda job, final: gate.wait()
    queue: Requests = asyncio.Queue()
    received: list[Reply] = []

    async def read() -> None:
        async with aclosing(world.session(voice_activity_events=True).run(feed_queue(queue))) as replies:
            async for reply in replies:
                received.append(reply)  # noqa: PERF401 (looked at while it grows)

    reading = asyncio.create_task(read())
    for level in (0.4, 0.6):
        queue.put_nowait(Audio(said(level=level)))
    queue.put_nowait(EndOfTurn("t2"))
    await let_others_run()
    assert [e.type for e in events(received, SpeechEvent)] == [
        *("turn_start", "activity_begin", "activity_end", "activity_begin", "activity_end", "turn_end")
    ]
    assert not events(received, UtteranceResult)
    assert world.analyzer.running == 1, "the second rests on the first"
    assert received[-1].processed == 0 < received[-1].received, "nothing is answered yet"
    gate.set()
    queue.put_nowait(None)
    await reading
    first, second = finals(received)
    assert first.start < first.end <= second.start
    assert second.condition is not None
    assert second.condition.utterance_count == 2
    kinds = [type(r.event) for r in received if not isinstance(r.event, SpeechEvent)]
    assert kinds == [StreamStarted, *[UtteranceResult, PersonalityUpdate] * 2, TurnResult, StreamEnded]


async def test_processed_covers_what_needs_no_replay_and_never_falls() -> None:
    world = SessionWorld()
    audio = pcm((0, 0.5), (0.5, 0.5), (0, 0.5), (0.5, 0.3))
    chunks = [Audio(audio[i : i + 640]) for i in range(0, len(audio), 640)]
    replies = await run(world.session(voice_activity_events=True), *chunks)
    processed = [r.processed for r in replies]
    assert processed == sorted(processed)
    begin = next(r for r in replies if isinstance(r.event, SpeechEvent) and r.event.type == "activity_begin")
    assert begin.processed == finals(replies)[0].start
    assert replies[-1].processed == replies[-1].received == len(audio) // 2


async def test_a_result_that_was_sent_finishes_its_turn_even_if_the_server_stops() -> None:
    world = SessionWorld()
    received, stopping = [], Failure(Kind.UNAVAILABLE, "DRAINING", "this server is stopping")
    with pytest.raises(Failure) as caught:
        async with aclosing(world.session().run(feed([Audio(said())]))) as replies:
            async for reply in replies:
                received.append(reply)
                if isinstance(reply.event, TurnResult):
                    world.open_streams.end_all(stopping)
    assert caught.value is stopping
    assert events(received, TurnResult)
    assert (await world.conversation()).participant("p").finished_turns == ("t1",)


@in_virtual_time
async def test_a_call_that_is_cancelled_while_its_turn_is_stored_has_finished_it() -> None:
    class Slow(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.finishing, self.stored = asyncio.Event(), 0

        async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
            if self.stored == 2:  # entering, and the final: now the end of the turn
                self.finishing.set()
                await asyncio.sleep(5)
            self.stored += 1
            return await super().update(key, change, stream)

    store = Slow()
    world = SessionWorld(store=store)
    calling = asyncio.create_task(run(world.session(), Audio(said())))
    await store.finishing.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    assert calling.cancelled()
    assert (await world.conversation()).participant("p").finished_turns == ("t1",)


async def test_the_turn_counts_as_finished_only_once_its_result_was_taken() -> None:
    world = SessionWorld()
    async with aclosing(world.session().run(feed([Audio(said())]))) as replies:
        async for reply in replies:
            if isinstance(reply.event, TurnResult):
                break  # the client is gone before it was written
    assert not (await world.conversation()).participant("p").finished_turns
    again = await run(world.session(), Audio(said()))
    (ended,) = events(again, StreamEnded)
    assert ended.conversation.participant("p").finished_turns == ("t1",)
    assert len(ended.conversation.participant("p").records) == 1
    with pytest.raises(Failure) as caught:
        await run(world.session())
    assert caught.value.kind is Kind.ALREADY_EXISTS


# ---- interims


async def interims_of(world: SessionWorld, requests: list[Request]) -> list[UtteranceResult]:
    replies = await run(world.session(interims=True), *requests)
    assert len(finals(replies)) == 1
    return interims(replies)


LONG = EndpointingOptions(min_speech_ms=40, utterance_end_silence_ms=100, pre_roll_ms=40, hang_over_ms=40)


async def slow_feed(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request
        await let_others_run()


@pytest.mark.parametrize(
    ("interval", "expected"), [(None, [SECOND, 5 * SECOND // 2]), (20_000, [20_000, 40_000, 60_000])]
)
@pytest.mark.parametrize("block", [160, 1_600, 8_000])
async def test_interims_fall_due_at_exact_positions(interval: int | None, expected: list[int], block: int) -> None:
    world = SessionWorld()
    session = world.session(interims=True, interim_interval=interval, endpointing=LONG, eager=False)
    replies = await run_on(session, slow_feed(in_blocks(said(4.4), block)))
    (final,) = finals(replies)
    assert [u.end - u.start for u in interims(replies)] == expected
    assert {u.utterance_id for u in interims(replies)} == {final.utterance_id}
    assert {u.start for u in interims(replies)} == {final.start}


async def test_a_stream_that_resumes_within_a_cut_utterance_has_the_interims_of_one_that_went_on() -> None:
    whole, world = SessionWorld(), SessionWorld()
    audio = said(5.0)
    expected = events(await run_on(whole.session(interims=True), slow_feed(in_blocks(audio))), UtteranceResult)
    async with aclosing(world.session(interims=True).run(slow_feed(in_blocks(audio)))) as replies:
        first = next(iter(finals([reply async for reply in until_final(replies)])))
    assert first.reason is EndReason.MAX_DURATION
    session = world.session(interims=True, start_offset=first.end)
    resumed = events(await run_on(session, slow_feed(in_blocks(audio[2 * first.end :]))), UtteranceResult)
    spans = [(u.is_final, u.start, u.end) for u in resumed]
    assert spans == [(u.is_final, u.start, u.end) for u in expected if u.start >= first.end]
    assert not all(final for final, _, _ in spans), "no interim was due"


@pytest.mark.parametrize(("interval", "expected"), [(None, [16_000, 52_000]), (16_000, [16_000, 40_000, 64_000])])
async def test_interims_stretch_under_load(interval: int | None, expected: list[int]) -> None:
    session = SessionWorld(FakeAnalyzer(stretch=1.5)).session(
        interims=True, interim_interval=interval, endpointing=LONG
    )
    replies = await run_on(session, slow_feed(in_blocks(said(4.4))))
    assert [u.end - u.start for u in interims(replies)] == expected


@pytest.mark.parametrize("error", [Superseded(), BackendError("WORKER_FAILED", "died")])
async def test_an_interim_that_is_not_computed_is_left_out(error: Exception) -> None:
    def refuse(job: Job, final: bool) -> None:
        if not final:
            raise error

    assert not await interims_of(SessionWorld(FakeAnalyzer(refuse)), in_blocks(said(1.5)))


async def test_an_unexpected_exception_in_an_interim_ends_the_stream() -> None:
    def fail(job: Job, final: bool) -> None:
        if not final:
            raise RuntimeError("a bug")

    _, error = await run_until(
        RuntimeError, SessionWorld(FakeAnalyzer(fail)).session(interims=True), slow_feed(in_blocks(said(1.5)))
    )
    assert str(error) == "a bug"


async def test_no_interim_while_the_analyzer_is_full() -> None:
    world = SessionWorld(FakeAnalyzer(full=True))
    assert not await interims_of(world, in_blocks(said(1.5)))
    assert world.analyzer.finals == len(world.analyzer.deadlines_s) == 1


async def test_an_interim_never_follows_its_final_and_a_newer_one_replaces_it() -> None:
    world = SessionWorld()
    held: list[asyncio.Event] = []

    def hold_interims(job: Job, final: bool) -> Any:
        if final:
            return None
        held.append(asyncio.Event())
        return held[-1].wait()

    world.analyzer.before = hold_interims
    async with OpenSession(world.session(interims=True, interim_interval=8_000)) as stream:
        for block in in_blocks(pcm((0.5, 1.3))):
            stream.send(block)
            await let_others_run(10)
        assert len(held) == 2
        assert world.analyzer.running == 1, "of a stream's interims only the newest is under way"
        for event in held:
            event.set()  # answered in the same moment as the utterance ends
        stream.send(Audio(pcm((0, 0.3))), None)
        replies = await stream.rest()
    utterances = events(replies, UtteranceResult)
    assert [u.is_final for u in utterances][-1]
    assert len(finals(replies)) == 1


async def test_an_interim_answered_after_its_final_is_not_sent() -> None:
    world = SessionWorld()
    gate = asyncio.Event()
    world.analyzer.before = lambda job, final: None if final else gate.wait()
    async with OpenSession(world.session(interims=True)) as stream:
        stream.send(*in_blocks(said(1.3)))
        await stream.until(PersonalityUpdate)
        gate.set()
        await let_others_run()
        stream.send(None)
        assert not events(await stream.rest(), UtteranceResult)


async def test_an_interim_that_finds_the_outbox_full_is_not_sent() -> None:
    world = SessionWorld()
    gate = asyncio.Event()
    world.analyzer.before = lambda job, final: None if final else gate.wait()
    queue: Requests = asyncio.Queue()
    async with aclosing(world.session(interims=True).run(feed_queue(queue))) as replies:
        await anext(replies)
        for block in in_blocks(pcm((0.5, 1.3))):
            queue.put_nowait(block)
            await let_others_run()
        assert world.analyzer.running == 1
        for _ in range(OUTBOX + 1):
            world.open_streams.warn_all(StreamWarning("GOING_AWAY", "soon"))
        gate.set()
        await let_others_run()
        received = [await anext(replies), await anext(replies)]
        await let_others_run()
        queue.put_nowait(None)
        received += [reply async for reply in replies]
    assert [u.is_final for u in events(received, UtteranceResult)] == [True]
    assert len(events(received, StreamWarning)) == OUTBOX - 1, "the turn's start had its place already"


# ---- failures


@pytest.mark.parametrize("reason", ["WORKER_FAILED", "MODEL_NONFINITE", "MODEL_FAILED"])
async def test_a_failed_final_ends_the_stream_after_what_was_computed(reason: str) -> None:
    def fail_second(job: Job, final: bool) -> None:
        if world.analyzer.finals == 2:
            raise BackendError(reason, "secret")

    world = SessionWorld(FakeAnalyzer(fail_second))
    replies, error = await run_until(BackendError, world.session(), feed([Audio(said()), Audio(said()), Audio(said())]))
    assert error.reason == reason
    assert len(finals(replies)) == 1
    assert not events(replies, TurnResult)
    assert not events(replies, StreamEnded)
    assert len((await world.conversation()).participant("p").records) == 1


async def test_a_backend_that_is_stopping_asks_to_resume_elsewhere() -> None:
    def stopping(job: Job, final: bool) -> None:
        raise BackendError("UNAVAILABLE", "closed")

    _, error = await run_until(Failure, SessionWorld(FakeAnalyzer(stopping)).session(), feed([Audio(said())]))
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "DRAINING")
    assert error.retry_after_s


async def test_an_error_of_the_client_comes_after_what_was_computed_before_it() -> None:
    world = SessionWorld()

    async def requests() -> AsyncIterator[Request]:
        yield Audio(said())
        await let_others_run()
        raise Failure(Kind.INVALID_ARGUMENT, "EMPTY_REQUEST", "nothing in it")

    replies, error = await run_until(Failure, world.session(), requests())
    assert error.reason == "EMPTY_REQUEST"
    assert len(finals(replies)) == 1


async def test_bad_samples_in_the_last_bytes_are_an_audio_error() -> None:
    """The last samples are decoded only when the turn ends."""
    tail = np.array([np.nan], "<f4").tobytes()
    for last in ([], [EndOfTurn()]):
        _, error = await run_until(Failure, SessionWorld().session(encoding="float32"), feed([Audio(tail), *last]))
        assert (error.kind, error.reason) == (Kind.INVALID_ARGUMENT, "NON_FINITE_AUDIO")


@in_virtual_time
async def test_before_an_idle_timeout_all_audio_is_answered() -> None:
    world = SessionWorld()
    world.analyzer.before = lambda job, final: asyncio.sleep(0.2)
    queue: Requests = asyncio.Queue()
    queue.put_nowait(Audio(said()))
    replies, error = await run_until(Failure, world.session(Limits(idle_timeout_s=0.1)), feed_queue(queue))
    assert (error.kind, error.reason) == (Kind.DEADLINE_EXCEEDED, "IDLE_TIMEOUT")
    assert len(finals(replies)) == 1


async def test_a_stream_of_exactly_the_maximum_is_whole_and_a_little_more_is_too_much() -> None:
    limits = Limits(max_stream_s=1.0, warn_before_end_s=0.5)
    replies = await run(SessionWorld().session(limits), *in_blocks(pcm((0.5, 1.0))))
    assert events(replies, StreamEnded)
    assert [w.reason for w in events(replies, StreamWarning)] == ["STREAM_ENDS_SOON"]
    replies, error = await run_until(Failure, SessionWorld().session(limits), feed(in_blocks(pcm((0.5, 1.02)))))
    assert error.reason == "STREAM_TOO_LONG"
    (turn,) = events(replies, TurnResult)
    assert turn.reason is EndReason.MAX_DURATION
    assert (finals(replies)[0].start, finals(replies)[0].end) == (0, SECOND + 320)


# ---- a client or a backend that does not keep up


@in_virtual_time
async def test_backlog_stops_reading_and_ends_only_without_progress() -> None:
    world = SessionWorld()
    world.analyzer.before = lambda job, final: asyncio.sleep(0.06)
    limits = Limits(max_backlog_s=0.5, backlog_timeout_s=0.15)
    replies = await run(world.session(limits), *[Audio(said(0.4)) for _ in range(8)])
    assert len(finals(replies)) == 8, "slow, but it goes on"
    world.analyzer.before = lambda job, final: asyncio.Event().wait()
    _, error = await run_until(Failure, world.session(limits, turn_id="t2"), feed(Audio(said(0.4)) for _ in range(8)))
    assert (error.kind, error.reason) == (Kind.RESOURCE_EXHAUSTED, "AUDIO_BACKLOG")
    assert error.retry_after_s
    assert error.quota


async def test_a_slow_reader_misses_interims_and_no_final_and_holds_little() -> None:
    world = SessionWorld()
    taken: list[Request] = []

    async def talkative() -> AsyncIterator[Request]:
        while len(taken) < 400:
            taken.append(Audio(said(0.2)))
            yield taken[-1]
            await asyncio.sleep(0)

    limits = Limits(max_backlog_s=10)
    async with aclosing(world.session(limits, interims=True, interim_interval=3_200).run(talkative())) as replies:
        await anext(replies)
        await let_others_run(4000)
        assert len(taken) < OUTBOX + 10 / 0.2, "no more is heard than the outbox and the backlog hold"
        received = [reply async for reply in replies]
    assert len(finals(received)) == 400


@in_virtual_time
async def test_endless_ends_of_turn_are_bounded_while_nothing_can_be_answered() -> None:
    world = SessionWorld()
    world.analyzer.before = lambda job, final: asyncio.Event().wait()
    taken: list[Request] = []

    async def requests() -> AsyncIterator[Request]:
        yield Audio(said())
        while True:
            taken.append(EndOfTurn())
            yield taken[-1]

    async with aclosing(world.session().run(requests())) as replies:
        await anext(replies)
        reading = asyncio.create_task(_drop_all(replies))
        await asyncio.sleep(1)
        assert len(taken) < 400
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _drop_all(replies: AsyncIterator[Reply]) -> None:
    async for _ in replies:
        pass


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5])
@in_virtual_time
async def test_closing_early_leaves_no_task_no_stream_and_no_work(stop_after: int) -> None:
    world = SessionWorld()
    world.analyzer.before = lambda job, final: asyncio.sleep(0.01)
    before = asyncio.all_tasks()
    queue: Requests = asyncio.Queue()
    for block in in_blocks(said(1.2) + said(1.2)):
        queue.put_nowait(block)
    async with aclosing(world.session(interims=True, voice_activity_events=True).run(feed_queue(queue))) as replies:
        for _ in range(stop_after):
            await anext(replies)
    await let_others_run(3)
    assert asyncio.all_tasks() == before
    assert len(world.open_streams) == 0
    assert world.analyzer.running == 0


async def test_cancelling_the_reader_is_closing() -> None:
    world = SessionWorld()
    world.analyzer.before = lambda job, final: asyncio.Event().wait()
    before = asyncio.all_tasks()
    reading = asyncio.create_task(run(world.session(), Audio(said())))
    await let_others_run()
    assert world.analyzer.running == 1
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert asyncio.all_tasks() == before
    assert len(world.open_streams) == world.analyzer.running == 0


# ---- other streams of the conversation


async def test_what_is_excluded_from_personality_is_estimated_and_counts_for_nothing_else() -> None:
    world, plain = SessionWorld(), SessionWorld()
    for each, excluded in ((world, True), (plain, False)):
        histories: dict[int, int] = {}

        async def note(job: Job, final: bool, seen: dict[int, int] = histories) -> None:
            seen[len(job.utterance.audio)] = len(job.utterance.history)

        each.analyzer.before = note
        await run(each.session(turn_id="t1"), *in_blocks(said(level=0.3)))
        overlapped = await run(
            each.session(turn_id="t2", counts_for_traits=not excluded), *in_blocks(said(0.6, level=0.8))
        )
        later = await run(each.session(turn_id="t3"), *in_blocks(said(0.7, level=0.4)))
        (final,) = events(overlapped, UtteranceResult)
        assert final.emotion is not None
        assert final.personality is not None
        assert len(events(overlapped, PersonalityUpdate)) == (not excluded)
        (update,) = events(later, PersonalityUpdate)
        assert update.personality.utterance_count == (2 if excluded else 3)
        assert list(histories.values()) == ([0, 1, 1] if excluded else [0, 1, 2])
    participant = (await world.conversation()).participant("p")
    assert participant.utterance_count == 3, "it was said"
    assert [r.emotion is not None for r in participant.records] == [True] * 3


@in_virtual_time
async def test_a_superseded_stream_changes_nothing_any_more_even_if_it_is_not_read() -> None:
    """Its client is gone, but the server does not know yet: the session waits in a write."""
    world = SessionWorld()
    gate = asyncio.Event()
    world.analyzer.before = lambda job, final: gate.wait()
    older = world.session().run(feed([Audio(said()), Audio(said())]))
    async with aclosing(older):
        await anext(older)
        await let_others_run()
        world.analyzer.before = None
        newer = await run(world.session(), Audio(said(level=0.7)))
        assert asyncio.get_running_loop().time() == 0, "it does not wait for the older one either"
        gate.set()
        await let_others_run()
        (record,) = (await world.conversation()).participant("p").records
        assert [record.utterance_id] == [u.utterance_id for u in finals(newer)]
        with pytest.raises(Failure) as caught:
            await anext(older)
        assert (caught.value.kind, caught.value.reason) == (Kind.ABORTED, "SUPERSEDED")


async def test_a_turn_still_waiting_for_its_result_is_superseded_too() -> None:
    """The stream has gone on to t2 while t1 waits for its result: a stream that resumes t1 takes it over."""
    world = SessionWorld()
    world.analyzer.before = lambda job, final: asyncio.Event().wait()
    older = world.session().run(feed([Audio(said()), EndOfTurn("t2"), Audio(said())]))
    async with aclosing(older):
        await anext(older)
        await let_others_run()
        world.analyzer.before = None
        assert events(await run(world.session(), Audio(said())), TurnResult)
        with pytest.raises(Failure, match="newer stream"):
            while True:
                await anext(older)


async def test_opening_an_answered_turn_of_a_stream_that_goes_on_is_refused_and_ends_nothing() -> None:
    world = SessionWorld()
    async with OpenSession(world.session()) as stream:
        stream.send(Audio(said()), EndOfTurn("t2"))
        await stream.until(TurnResult)
        stream.send(Audio(said()))
        await stream.until(UtteranceResult)
        with pytest.raises(Failure, match="already has its result"):
            await run(world.session())
        stream.send(EndOfTurn("t1"))
        with pytest.raises(Failure) as caught:
            await stream.rest()
        assert caught.value.reason == "TURN_FINISHED"


async def test_a_deleted_conversation_does_not_come_back() -> None:
    world = SessionWorld()
    gate = asyncio.Event()
    world.analyzer.before = lambda job, final: gate.wait()
    session = world.session().run(feed([Audio(said())]))
    async with aclosing(session):
        await anext(session)
        await let_others_run()
        world.open_streams.end_conversation(KEY, Failure(Kind.ABORTED, "CONVERSATION_DELETED", "deleted"))
        await world.store.delete(KEY)
        gate.set()
        await let_others_run()
        with pytest.raises(Failure, match="deleted"):
            await anext(session)
    assert await world.store.get(KEY) is None


async def test_a_conversation_that_the_store_loses_goes_on_from_what_the_stream_saw_last() -> None:
    world = SessionWorld()
    async with OpenSession(world.session()) as stream:
        stream.send(Audio(said()))
        await stream.until(PersonalityUpdate)
        await world.store.delete(KEY)
        stream.send(Audio(said(level=0.7)), None)
        (update,) = events(await stream.rest(), PersonalityUpdate)
    assert update.personality.utterance_count == 2
    assert len((await world.conversation()).participant("p").records) == 2


@in_virtual_time
async def test_a_final_waits_for_the_audio_of_earlier_streams_that_is_still_on_its_way() -> None:
    """The earlier client has sent all; its messages come in with small gaps, as from a full transport."""
    world = SessionWorld()

    async def trickle() -> AsyncIterator[Request]:
        for block in in_blocks(said(0.5, level=0.9)):
            await asyncio.sleep(0.005)
            yield block

    async def later() -> list[Reply]:
        await asyncio.sleep(0.002)
        return await run(world.session(turn_id="t2"), Audio(said(level=0.3)))

    first, second = await asyncio.gather(run_on(world.session(), trickle()), later())
    conditions = [finals(replies)[0].condition for replies in (first, second)]
    assert [condition.utterance_count for condition in conditions if condition] == [1, 2]


@in_virtual_time
async def test_an_earlier_stream_that_goes_on_speaking_delays_later_ones_only_briefly() -> None:
    world = SessionWorld()

    async def live() -> AsyncIterator[Request]:
        while True:
            await asyncio.sleep(0.01)
            yield Audio(pcm((0, 0.01)))

    async with aclosing(world.session().run(live())) as replies:
        await anext(replies)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert finals(await run(world.session(turn_id="t2"), Audio(said())))
        assert loop.time() - began == pytest.approx(MAX_CATCH_UP_S)


@in_virtual_time
async def test_a_final_does_not_wait_for_an_earlier_stream_that_was_closed_before_its_turn_came() -> None:
    """It waits for a first stream; a second one, closed in the meantime, will never catch up."""
    world = SessionWorld()
    gate = asyncio.Event()
    world.analyzer.before = lambda job, final: gate.wait() if final else None
    async with OpenSession(world.session()) as first, OpenSession(world.session(turn_id="t2")) as second:
        first.send(Audio(said()))
        second.send(Audio(said()))
        third = asyncio.create_task(run(world.session(turn_id="t3"), Audio(said())))
        await let_others_run(300)
        await second.__aexit__()
        gate.set()
        async with asyncio.timeout(60):
            assert finals(await third)


# ---- the wall clock


@pytest.mark.parametrize(
    ("rate", "true_hz", "expected"),
    [(16_000, 48_000, 48_000), (48_000, 16_000, 16_000), (16_000, 16_000, None), (16_000, 8_000, 8_000)],
)
async def test_audio_of_another_rate_than_its_label_is_noticed_once(
    rate: int, true_hz: int, expected: int | None
) -> None:
    world = SessionWorld()

    async def paced() -> AsyncIterator[Request]:
        for _ in range(120):
            world.now += 0.1
            yield Audio(bytes(2 * true_hz // 10))  # what a microphone at the true rate gives in 100 ms

    warnings = events(await run_on(world.session(rate=rate), paced()), StreamWarning)
    found = [w.metadata["likely_hertz"] for w in warnings if w.reason == "RATE_MISMATCH_SUSPECTED"]
    assert found == ([str(expected)] if expected else [])


@pytest.mark.parametrize(("true_hz", "expected"), [(16_000, []), (32_000, ["32000"]), (48_000, ["44100"])])
async def test_a_voice_of_usual_pitch_that_comes_too_fast_is_a_file_and_is_not_suspected(
    true_hz: int, expected: list[str]
) -> None:
    """Sent as 16 kHz, at the pace of 32 kHz. Where the samples are of 48 kHz, they tell it first."""
    world = SessionWorld()
    voice = speech_like(20 * 16_000 / true_hz, f0=140, seed=1)
    sent = linear16(soxr.resample(voice, 16_000, true_hz)).tobytes()

    async def paced() -> AsyncIterator[Request]:
        for begin in range(0, len(sent), 6_400):
            world.now += 0.1
            yield Audio(sent[begin : begin + 6_400])

    warnings = events(await run_on(world.session(), paced()), StreamWarning)
    assert [w.metadata["likely_hertz"] for w in warnings if w.reason == "RATE_MISMATCH_SUSPECTED"] == expected


async def test_a_file_sent_in_bursts_is_not_suspected() -> None:
    world = SessionWorld()
    rng = np.random.default_rng(0)

    async def bursts() -> AsyncIterator[Request]:
        for _ in range(60):
            world.now += float(rng.uniform(0.05, 2.0))
            yield Audio(bytes(2 * int(rng.integers(1_000, 64_000))))

    replies = await run_on(world.session(), bursts())
    assert [w.reason for w in events(replies, StreamWarning)] == ["AUDIO_CONSTANT", "NO_SPEECH"]


# ---- any order of requests, any chunking

PART = st.tuples(st.sampled_from([0.0, 0.0, 0.3, 0.6]), st.integers(1, 40).map(lambda n: n * 0.02))
TURN = st.lists(PART, max_size=6)


def expected_turns(turns: list[bytes]) -> list[str]:
    """Turns that get a result: every ended one, the first, and a last one with audio."""
    names = [f"turn-{n}" for n in range(len(turns))]
    return names if len(turns) == 1 or turns[-1] else names[:-1]


def split(payload: bytes, cuts: list[int]) -> list[Request]:
    places = sorted({0, len(payload), *(cut % (len(payload) + 1) for cut in cuts)})
    return [Audio(payload[a:b]) for a, b in itertools.pairwise(places)]


async def results(turns: list[list[Request]], **options: Any) -> list[Any]:
    requests: list[Request] = []
    for number, turn in enumerate(turns):
        requests += [EndOfTurn(f"turn-{number}")] if number else []
        requests += turn
    replies = await run(SessionWorld().session(turn_id="turn-0", **options), *requests)
    (ended,) = events(replies, StreamEnded)
    assert replies[-1].event is ended
    assert ended.received == ended.speech + ended.non_speech + ended.dropped
    assert ended.received == replies[-1].received
    assert min(ended.speech, ended.non_speech, ended.dropped) >= 0
    assert ended.speech == sum(u.analyzed for u in finals(replies))
    assert ended.speech + ended.dropped == sum(u.end - u.start for u in finals(replies))
    for before, after in itertools.pairwise(finals(replies)):
        assert before.end <= after.start
    answered: set[str] = set()
    answers = [r.event for r in replies if isinstance(r.event, UtteranceResult | PersonalityUpdate | TurnResult)]
    for event in answers:
        if isinstance(event, UtteranceResult | TurnResult):
            assert event.turn_id not in answered
        answered |= {event.turn_id} if isinstance(event, TurnResult) else set()
    kept = [event for event in answers if getattr(event, "is_final", True)]
    return [*kept, (ended.received, ended.speech, ended.dropped)]


@given(
    st.lists(TURN, min_size=1, max_size=3),
    st.lists(st.integers(0, 10**6), max_size=12),
    st.sampled_from([(16_000, "linear16"), (48_000, "linear16"), (8_000, "mulaw"), (44_100, "float32")]),
    st.sampled_from([1, 12_000]),
)
@settings(max_examples=120)
def test_any_chunking_and_any_turns(
    turns: list[list[tuple[float, float]]], cuts: list[int], source: tuple[int, str], min_samples: int
) -> None:
    rate, encoding = source

    def encoded(parts: list[tuple[float, float]]) -> bytes:
        samples = np.concatenate([np.zeros(0), *(np.full(round(s * rate), level) for level, s in parts)])
        if encoding == "mulaw":
            return np.where(samples > 0, 0x8F, 0xFF).astype(np.uint8).tobytes()
        return samples.astype("<f4").tobytes() if encoding == "float32" else (samples * 32767).astype("<i2").tobytes()

    payloads = [encoded(parts) for parts in turns]
    options = {"rate": rate, "encoding": encoding, "model": ModelInfo("fake", "1", 2, min_samples=min_samples)}
    whole = asyncio.run(results([[Audio(p)] if p else [] for p in payloads], **options))
    assert [t.turn_id for t in whole if isinstance(t, TurnResult)] == expected_turns(payloads)
    assert asyncio.run(results([split(p, cuts) for p in payloads], **options)) == whole


@in_virtual_time
async def test_a_stream_ends_though_a_library_lost_its_cancellation() -> None:
    class Deaf(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.asked = asyncio.Event()

        async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
            self.asked.set()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            return await super().get(key, stream)

    store = Deaf()
    async with OpenSession(SessionWorld(store=store).session()) as stream:
        stream.send(Audio(said()), None)
        await store.asked.wait()  # before the final
    assert asyncio.get_running_loop().time() < 3600
