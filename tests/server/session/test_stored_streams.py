"""What streams leave in the store: nothing if nothing was said, everything in spite of an outage."""

import asyncio
import gc
import tracemalloc
from dataclasses import dataclass, replace

import pytest

from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import C, Change, Key, MemoryStore, StoreUnavailable, StreamHandle
from kibun.server.errors import Failure, Kind
from kibun.server.session.events import (
    Audio,
    EndOfTurn,
    PersonalityUpdate,
    StreamEnded,
    StreamStarted,
    StreamWarning,
    TurnResult,
    UtteranceResult,
)
from tests.support.scripted import MODEL
from tests.support.session_world import (
    KEY,
    TRAITS,
    OpenSession,
    SessionWorld,
    events,
    finals,
    let_others_run,
    open_and_drop,
    pcm,
    run,
    said,
)

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("eager")]

# ---- nothing said, nothing left


async def test_a_dropped_stream_leaves_nothing() -> None:
    world = SessionWorld()
    await open_and_drop(world.session())
    assert len(world.store) == 0
    assert len(world.open_streams) == 0


@pytest.mark.parametrize("streams", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_many_dropped_streams_leave_nothing(streams: int) -> None:
    world = SessionWorld()
    await open_and_drop(world.session())
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(streams // 20):
            await asyncio.gather(*(open_and_drop(world.session(conversation_id=f"c{number}-{n}")) for n in range(20)))
            if number == 5:
                gc.collect()
                before, _ = tracemalloc.get_traced_memory()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(world.store) == 0
    assert (after - before) / streams < 200, "bytes each"


@pytest.mark.parametrize("leaves_first", [0, 1])
async def test_the_last_stream_of_a_blank_conversation_erases_it(leaves_first: int) -> None:
    world = SessionWorld()
    streams = [OpenSession(world.session(turn_id=f"t{n}")) for n in range(2)]
    for stream in streams:
        await stream.__aenter__()
    await streams[leaves_first].__aexit__()
    assert len(world.store) == 1, "the other is still open"
    await streams[1 - leaves_first].__aexit__()
    assert len(world.store) == 0


async def test_vectors_of_another_bundle_are_not_used() -> None:
    """One of the same name and size: its estimates would rest on vectors of two models."""
    world, rebuilt = SessionWorld(), replace(MODEL, checksum="0123456789abcdef")
    for turn_id, model, warned, evidence in (
        ("t1", MODEL, False, 1),
        ("t2", MODEL, False, 2),
        ("t3", rebuilt, True, 1),
        ("t4", rebuilt, False, 2),
        ("t5", MODEL, True, 3),
    ):
        replies = await run(world.session(turn_id=turn_id, model=model), Audio(said()))
        assert ("MODEL_CHANGED" in [w.reason for w in events(replies, StreamWarning)]) == warned
        (update,) = events(replies, PersonalityUpdate)
        assert update.personality.utterance_count == evidence
        (final,) = finals(replies)
        assert final.condition
        assert final.condition.utterance_count == evidence
    person = (await world.conversation()).participant("p")
    assert person.totals.utterances == 5
    assert [r.bundle for r in person.records] == [m.bundle for m in (MODEL, MODEL, rebuilt, rebuilt, MODEL)]


async def test_a_final_that_the_store_lost_is_missed_in_the_result() -> None:
    """More changes waited for a store that was away than can: the server goes on, and does not hide it."""
    world = SessionWorld()

    def lose(conversation: Conversation | None) -> Conversation:
        assert conversation
        person = conversation.participant("p")
        return conversation.with_participant(replace(person, records=person.records[2:]))

    async with OpenSession(world.session()) as stream:
        for _ in range(3):
            stream.send(Audio(said()))
            await stream.until(UtteranceResult, is_final=True)
        await world.store.update(KEY, lose)
        stream.send(EndOfTurn("t2"), Audio(said()), None)
        replies = await stream.rest()
    first, second = events(replies, TurnResult)
    assert (first.utterance_count, first.missing, first.missing_before > 0) == (1, 2, True)
    assert (second.utterance_count, second.missing) == (1, 0)
    assert [w.reason for w in events(replies, StreamWarning)] == ["UTTERANCES_MISSING"]
    (ended,) = events(replies, StreamEnded)
    totals = ended.conversation.participant("p").totals
    assert (totals.utterances, totals.missing) == (2, 2)


async def test_what_older_servers_stored_is_used() -> None:
    """Their records do not say what made their vector."""
    world = SessionWorld()
    await run(world.session(turn_id="t1"), Audio(said()))
    (record,) = (await world.conversation()).participant("p").records

    def older(conversation: Conversation | None) -> Conversation:
        assert conversation
        person = replace(conversation.participant("p"), records=(replace(record, bundle=""),))
        return conversation.with_participant(person)

    await world.store.update(KEY, older)
    replies = await run(world.session(turn_id="t2"), Audio(said()))
    assert [u.personality.utterance_count for u in events(replies, PersonalityUpdate)] == [2]
    assert not events(replies, StreamWarning)


async def test_another_bundle_at_work_beside_a_stream_is_told_once() -> None:
    world, rebuilt = SessionWorld(), replace(MODEL, checksum="0123456789abcdef")
    async with OpenSession(world.session(turn_id="t1")) as stream:
        for number in range(3):
            await run(world.session(turn_id=f"u{number}", model=rebuilt), Audio(said()))
            stream.send(Audio(said()))
            await stream.until(UtteranceResult, is_final=True)
        stream.send(None)
        replies = await stream.rest()
    assert [u.personality.utterance_count for u in events(replies, PersonalityUpdate)] == [3]
    assert stream.warned.count("MODEL_CHANGED") == 1


async def test_what_was_said_stays() -> None:
    world = SessionWorld()
    assert len(finals(await run(world.session(), Audio(said())))) == 1
    assert len(world.store) == 1
    await open_and_drop(world.session(turn_id="t2"))
    assert len((await world.conversation()).participant("p").records) == 1


@pytest.mark.parametrize("what", ["turn", "given", "completed"])
async def test_a_conversation_that_is_not_blank_stays(what: str) -> None:
    world = SessionWorld()
    if what == "turn":
        await run(world.session(), Audio(pcm((0, 0.5))), EndOfTurn())
    elif what == "given":
        await open_and_drop(world.session(given_traits=TRAITS))
    else:
        async with OpenSession(world.session()):
            await world.store.update(KEY, completed)
    assert len(world.store) == 1


def completed(conversation: Conversation | None) -> Conversation:
    assert conversation
    return replace(conversation, completed=True)


async def test_a_blank_conversation_that_others_use_is_not_erased() -> None:
    """A stream on another server has entered it, which only its update time shows."""

    class Interrupted(MemoryStore):
        async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
            found = await super().get(key, stream)
            if found and self.interrupt:
                await super().update(key, lambda c: c)
            return found

        interrupt = True

    world = SessionWorld(store=Interrupted())
    await open_and_drop(world.session())
    assert len(world.store) == 1
    world.store.interrupt = False  # type: ignore[attr-defined]
    await open_and_drop(world.session(turn_id="t2"))
    assert len(world.store) == 0, "empty, whichever stream made it"


async def test_a_stream_that_was_refused_changes_nothing() -> None:
    world = SessionWorld()
    async with OpenSession(world.session()):
        before = await world.conversation()
        with pytest.raises(Failure, match="began with model"):
            await run(world.session(turn_id="t2", model=replace(MODEL, name="other")))
        assert await world.conversation() is before


async def test_a_stream_cancelled_while_it_enters_leaves_nothing() -> None:
    class Slow(MemoryStore):
        async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
            changed = await super().update(key, change, stream)
            await let_others_run(5)
            return changed

    world = SessionWorld(store=Slow())
    task = asyncio.create_task(run(world.session(), Audio(said())))
    await let_others_run(3)
    assert len(world.store) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(world.store) == 0


# ---- what a store reports to its stream


@dataclass
class OutageScript:
    """What a session's store did with its stream."""

    behind_at: int
    rejected_at: int = 10**9


class NotifyingStore(MemoryStore):
    """Tells its streams of an outage at the n-th change, and of the end of it two changes later."""

    def __init__(self, script: OutageScript) -> None:
        super().__init__()
        self.script = script
        self.changes = 0

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        changed = await super().update(key, change, stream)
        self.changes += 1
        assert stream
        if self.changes in (self.script.behind_at, self.script.behind_at + 2):
            stream.notify_behind(self.changes == self.script.behind_at)
        if self.changes == self.script.rejected_at:
            stream.reject(Failure(Kind.FAILED_PRECONDITION, "CONVERSATION_COMPLETED", "completed elsewhere"))
        return changed


async def test_a_client_is_warned_of_an_outage_and_its_end() -> None:
    world = SessionWorld(store=NotifyingStore(OutageScript(behind_at=1)))
    replies = await run(world.session(), *[Audio(said())] * 3)
    warnings = [r.event.reason for r in replies if isinstance(r.event, StreamWarning)]
    assert warnings == ["STORE_UNAVAILABLE", "STORE_RECOVERED"]
    assert isinstance(replies[0].event, StreamStarted), "even where the outage comes while entering"


async def test_a_stream_whose_conversation_has_no_place_for_it_ends() -> None:
    world = SessionWorld(store=NotifyingStore(OutageScript(behind_at=1, rejected_at=2)))
    with pytest.raises(Failure, match="completed elsewhere"):
        await run(world.session(), *[Audio(said())] * 3)


async def test_a_required_conversation_that_cannot_be_looked_up_is_refused() -> None:
    class Away(MemoryStore):
        async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
            raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        await run(SessionWorld(store=Away()).session(require_existing=True), Audio(said()))


# ---- a turn taken over through another server


async def until_superseded(stream: OpenSession) -> None:
    with pytest.raises(Failure) as caught:
        await stream.rest()
    assert (caught.value.kind, caught.value.reason) == (Kind.ABORTED, "SUPERSEDED")


def two_servers() -> tuple[SessionWorld, SessionWorld]:
    one = SessionWorld()
    return one, SessionWorld(store=one.store)


async def heard(world: SessionWorld) -> list[tuple[str, int]]:
    return [(r.turn_id, r.start) for r in (await world.conversation()).participant("p").records]


async def test_a_turn_resumed_through_another_server_is_lost_to_the_first() -> None:
    here, there = two_servers()
    async with OpenSession(here.session()) as old:
        old.send(Audio(said()))
        first = await old.until(UtteranceResult, is_final=True)
        async with OpenSession(there.session(start_offset=first.end)) as new:
            old.send(Audio(said()))
            await until_superseded(old)
            new.send(Audio(said()), None)
            second = await new.until(UtteranceResult, is_final=True)
            assert (await new.until(TurnResult)).utterance_count == 2
            await new.until(StreamEnded)
    assert await heard(here) == [("t1", first.start), ("t1", second.start)]
    assert (await here.conversation()).participant("p").finished_turns == ("t1",)


async def test_the_result_of_a_turn_taken_over_is_not_stored_by_the_first_server() -> None:
    here, there = two_servers()
    async with OpenSession(here.session()) as old, OpenSession(there.session()):
        old.send(Audio(pcm((0, 0.3))), None)
        await until_superseded(old)
    assert await here.store.get(KEY) is None, "nothing was said"


async def test_a_later_turn_of_a_stream_supersedes_as_well() -> None:
    """A stream goes on to a turn that another stream had opened."""
    here, there = two_servers()
    async with OpenSession(here.session()) as claims, OpenSession(there.session(turn_id="t2")) as loses:
        claims.send(Audio(said()), EndOfTurn("t2"), Audio(said()))
        await claims.until(UtteranceResult, is_final=True, turn_id="t2")
        loses.send(Audio(said()))
        await until_superseded(loses)
        claims.send(None)
        await claims.until(StreamEnded)
    assert [turn for turn, _ in await heard(here)] == ["t1", "t2"]


async def test_streams_of_different_turns_do_not_supersede_each_other() -> None:
    here, there = two_servers()
    async with OpenSession(here.session()) as one, OpenSession(there.session(turn_id="t2")) as two:
        for stream in (one, two, one):
            stream.send(Audio(said()))
            await stream.until(UtteranceResult, is_final=True)
        for stream in (one, two):
            stream.send(None)
            await stream.until(StreamEnded)
    assert sorted(turn for turn, _ in await heard(here)) == ["t1", "t1", "t2"]


# ---- a turn whose result its client has read before the store knows


class HeldUp(MemoryStore):
    """Changes of the first stream wait while `go_on` is cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.first: StreamHandle | None = None

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        self.first = self.first or stream
        if stream is self.first:
            await self.go_on.wait()
        return await super().update(key, change, stream)


async def test_a_turn_whose_result_was_read_is_finished_for_other_streams() -> None:
    store = HeldUp()
    world = SessionWorld(store=store)
    async with OpenSession(world.session()) as old:
        old.send(Audio(said()), None)
        await old.until(TurnResult)
        store.go_on.clear()
        rest = asyncio.create_task(old.until(StreamEnded))  # goes on after having written the result
        await let_others_run(3)
        again = asyncio.create_task(run(world.session(), Audio(said())))
        other = await run(world.session(participant_id="q"), Audio(said()))
        assert isinstance(other[-1].event, StreamEnded), "others do not wait"
        assert not again.done()
        store.go_on.set()
        with pytest.raises(Failure) as caught:
            await again
        assert (caught.value.kind, caught.value.reason) == (Kind.ALREADY_EXISTS, "TURN_FINISHED")
        assert await rest, "no other stream took its turn over"


async def test_a_turn_whose_result_was_read_is_finished_for_its_own_stream() -> None:
    store = HeldUp()
    async with OpenSession(SessionWorld(store=store).session()) as stream:
        stream.send(Audio(said()), EndOfTurn("t2"))
        await stream.until(TurnResult)
        store.go_on.clear()
        rest = asyncio.create_task(stream.until(StreamEnded))
        await let_others_run(3)
        stream.send(EndOfTurn("t1"))
        await let_others_run(3)
        store.go_on.set()
        with pytest.raises(Failure) as caught:
            await rest
        assert caught.value.reason == "TURN_FINISHED"


async def test_a_stream_cancelled_while_its_turn_is_being_finished_holds_up_nobody() -> None:
    store = HeldUp()
    world = SessionWorld(store=store)
    before = asyncio.all_tasks()
    old = OpenSession(world.session())
    await old.__aenter__()
    old.send(Audio(said()), None)
    await old.until(TurnResult)
    store.go_on.clear()
    rest = asyncio.create_task(old.until(StreamEnded))
    await let_others_run(3)
    again = asyncio.create_task(run(world.session(), Audio(said())))
    await let_others_run(3)
    rest.cancel()
    await let_others_run(3)
    assert not rest.done(), "the store may still take the end of the turn"
    rest.cancel()
    await asyncio.wait([rest])
    await old.__aexit__()
    store.go_on.set()
    assert isinstance((await again)[-1].event, StreamEnded), "it was not finished, and a client may say it again"
    await let_others_run(3)
    assert asyncio.all_tasks() == before
    assert len(world.open_streams) == 0
