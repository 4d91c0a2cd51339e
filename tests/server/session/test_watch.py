"""What a watch yields when streams are lost, the store is away, or it is read too slowly."""

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from kibun.server.conversation.audience import MAX_ASIDES, MAX_WAITING, Notice, NoticeKind, Watcher
from kibun.server.conversation.state import Conversation, Opening, note_opening
from kibun.server.conversation.store import Key, MemoryStore, StoreUnavailable
from kibun.server.session import watch
from kibun.server.session.events import PersonalityUpdate, TurnResult, UtteranceResult
from kibun.server.session.watch import Past, Watch, Watched, WatchEnded, WatchGap, WatchStarted
from tests.support.scripted import MODEL
from tests.support.session_world import KEY, SessionWorld, in_blocks, run, said


class AwayStore(MemoryStore):
    """Does not answer while `away`."""

    away = False

    async def get(self, key: Key, stream: Any = None) -> Conversation | None:
        if self.away:
            raise StoreUnavailable
        return await super().get(key, stream)


def watching(store: MemoryStore, *, include_past: bool = False) -> Watch:
    return Watch(KEY, store, lambda _: MODEL, include_past=include_past, require_existing=False)


def tell(store: MemoryStore, kind: NoticeKind, start: int = 0, turn_id: str = "t1", **fields: Any) -> None:
    store.audience.tell(KEY, Notice(kind, "p", turn_id, start, b"told", **fields))


def shown(watched: list[Watched]) -> list[str]:
    """In words, "*" behind what was read from the store."""
    words = []
    for one in watched:
        match one:
            case Notice():
                words.append(f"{one.kind} {one.turn_id} {one.start}")
            case Past(event=UtteranceResult() as event):
                words.append(f"final {event.turn_id} {event.start}*")
            case Past(event=TurnResult() as event):
                words.append(f"turn_result {event.turn_id} {event.start}*")
            case Past(event=PersonalityUpdate()):
                words.append("traits*")
            case WatchGap(reason):
                words.append(reason)
            case WatchStarted() | WatchEnded():
                words.append(type(one).__name__)
    return words


async def complete(store: MemoryStore) -> None:
    def change(known: Conversation | None) -> Conversation:
        assert known is not None
        return replace(known, completed=True)

    await store.update(KEY, change)
    store.audience.tell(KEY, Notice("completed"))


async def starts(world: SessionWorld) -> list[int]:
    return [record.start for record in (await world.conversation()).participant("p").records]


async def test_finals_that_were_never_told_are_read_when_their_stream_is_resumed() -> None:
    """As where a server was killed between storing a final and telling it."""
    world = SessionWorld()
    async with aclosing(watching(world.store).run()) as seen:
        first = [await anext(seen)]
        await run(world.session(), *in_blocks(said()), *in_blocks(said()))
        at = await starts(world)
        tell(world.store, "resumed")
        await complete(world.store)
        rest = first + [one async for one in seen]
    assert shown(rest) == [
        "WatchStarted",
        *(f"final t1 {start}*" for start in at),
        f"turn_result t1 {at[0]}*",
        "traits*",
        "resumed t1 0",
        "WatchEnded",
    ]


async def test_a_stream_that_resumes_further_back_may_find_other_utterances_than_its_turn_had() -> None:
    """What the watcher has of them is not told again; what it does not have is, also where it begins earlier."""
    store = MemoryStore()
    async with aclosing(watching(store).run()) as seen:
        await anext(seen)
        tell(store, "began", opened=1.0)
        for start in (0, 31328):
            tell(store, "final", start)
        tell(store, "resumed", 22656, opened=2.0)
        for start in (22656, 31328, 53984):
            tell(store, "interim", start)
            tell(store, "final", start)
        tell(store, "turn_result")
        tell(store, "turn_result")
        tell(store, "began", 31328, opened=3.0)
        tell(store, "final", 31328)
        store.audience.tell(KEY, Notice("deleted"))
        words = shown([one async for one in seen])
    assert words == [
        *("began t1 0", "final t1 0", "final t1 31328", "resumed t1 22656"),
        *("interim t1 22656", "final t1 22656", "interim t1 53984", "final t1 53984", "turn_result t1 0"),
        *("began t1 31328", "final t1 31328", "WatchEnded"),
    ]


async def test_what_was_read_from_the_store_is_not_told_again_by_what_still_waits() -> None:
    world = SessionWorld()
    async with aclosing(watching(world.store).run()) as seen:
        await anext(seen)
        await run(world.session(), *in_blocks(said()))
        (at,) = await starts(world)
        person = (await world.conversation()).participant("p")
        world.store.audience.tell(KEY, Notice("missed"))
        tell(world.store, "began", opened=person.openings["t1"].when)
        tell(world.store, "final", at)
        tell(world.store, "turn_result")
        world.store.audience.tell(KEY, Notice("deleted"))
        words = shown([one async for one in seen])
    assert words == [f"final t1 {at}*", f"turn_result t1 {at}*", "traits*", "began t1 0", "WatchEnded"]


@pytest.mark.parametrize("resumes", [False, True])
async def test_a_stream_that_only_the_store_tells_of_begins_the_turn_anew_or_goes_on_with_it(resumes: bool) -> None:
    """Its utterance begins where one began that the watcher has."""

    def opened_again(known: Conversation | None) -> Conversation:
        assert known is not None
        participant = known.participant("p")
        return known.with_participant(note_opening(participant, "t1", Opening(2e9, 0, resumes=resumes)))

    world = SessionWorld()
    async with aclosing(watching(world.store).run()) as seen:
        await anext(seen)
        await run(world.session(), *in_blocks(said()))
        (at,) = await starts(world)
        tell(world.store, "began", opened=(await world.conversation()).participant("p").openings["t1"].when)
        tell(world.store, "final", at)
        assert shown([await anext(seen), await anext(seen)]) == ["began t1 0", f"final t1 {at}"]
        await world.store.update(KEY, opened_again)
        world.store.audience.tell(KEY, Notice("missed"))
        world.store.audience.tell(KEY, Notice("deleted"))
        words = shown([one async for one in seen])
    assert words[:-3] == ([] if resumes else [f"final t1 {at}*"])
    assert words[-1] == "WatchEnded"


async def test_who_reads_too_slowly_loses_interims_then_is_told_and_gets_finals_from_the_store() -> None:
    world = SessionWorld()
    async with aclosing(watching(world.store).run()) as seen:
        await anext(seen)
        tell(world.store, "began")
        assert shown([await anext(seen)]) == ["began t1 0"]
        await run(world.session(), *in_blocks(said()), *in_blocks(said()))
        at = await starts(world)
        tell(world.store, "final", at[0])
        for _ in range(2 * MAX_WAITING):
            tell(world.store, "interim", at[1])
        tell(world.store, "final", at[1])
        assert shown([await anext(seen)]) == [f"final t1 {at[0]}"]
        interims = shown([await anext(seen) for _ in range(MAX_ASIDES - 1)])
        assert set(interims) == {f"interim t1 {at[1]}"}
        assert shown([await anext(seen)]) == [f"final t1 {at[1]}"]

        await run(world.session(turn_id="t2"), *in_blocks(said()))
        (late,) = (r.start for r in (await world.conversation()).participant("p").records_of("t2"))
        tell(world.store, "final", late, "t2")
        for _ in range(MAX_WAITING):
            tell(world.store, "other", turn_id="t2")
        await complete(world.store)
        rest = shown([one async for one in seen])
    assert rest[0] == "SLOW_WATCHER"
    assert f"final t2 {late}*" in rest
    assert rest[-1] == "WatchEnded"
    assert sum(word.startswith("final") for word in rest) == 1


def test_a_queue_stays_bounded_whatever_is_told() -> None:
    watcher = Watcher()
    for kind in ("final", "interim", "aside", "other", "turn_result") * 10_000:
        watcher.offer(Notice(kind))
        assert len(watcher._waiting) <= MAX_WAITING


async def test_while_the_store_is_away_live_events_go_on_and_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "READ_AGAIN_S", 0.01)
    store = AwayStore()
    world = SessionWorld(store=store)
    async with aclosing(watching(store).run()) as seen:
        await anext(seen)
        await run(world.session(), *in_blocks(said()))
        at = await starts(world)
        store.away = True
        store.audience.tell(KEY, Notice("missed", reason="OTHER_SERVERS_BACK"))
        assert shown([await anext(seen)]) == ["OTHER_SERVERS_BACK"]
        tell(store, "other")
        assert shown([await anext(seen)]) == ["other t1 0"]
        store.away = False
        assert shown([await anext(seen)]) == [f"final t1 {at[0]}*"]
    store.away = True
    async with aclosing(watching(store).run()) as seen:
        with pytest.raises(StoreUnavailable):
            await anext(seen)


async def test_another_conversation_of_the_same_name_is_seen_from_its_beginning() -> None:
    world = SessionWorld()
    await run(world.session(), *in_blocks(said()))
    async with aclosing(watching(world.store, include_past=True).run()) as seen:
        (started,) = [await anext(seen)]
        assert isinstance(started, WatchStarted)
        assert len([await anext(seen) for _ in range(started.past)]) == 3
        await world.store.delete(KEY)  # as if it had expired: nobody is told
        await run(world.session(), *in_blocks(said()))
        world.store.audience.tell(KEY, Notice("missed"))
        await complete(world.store)
        rest = shown([one async for one in seen])
    assert [word.split()[0] for word in rest] == ["final", "turn_result", "traits*", "WatchEnded"]


async def test_what_watchers_are_told_cannot_harm_a_stream() -> None:
    world = SessionWorld()
    session = world.session()
    session._tell_watchers = lambda reply: 1 / 0  # type: ignore[assignment]
    alone = await run(SessionWorld().session(), *in_blocks(said()))
    assert [r.event for r in await run(session, *in_blocks(said()))][1:-1] == [r.event for r in alone][1:-1]


async def test_a_watcher_that_leaves_is_forgotten() -> None:
    store = MemoryStore()
    async with aclosing(watching(store).run()) as seen:
        await anext(seen)
        assert store.audience.watches(KEY)
    assert not store.audience.watches(KEY)
    assert len(store.audience) == 0
