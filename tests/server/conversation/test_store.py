"""What every conversation store does: one suite for memory, Redis, and Redis as streams meet it."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.server.audio.endpointing import EndReason
from kibun.server.conversation.state import (
    MAX_RECORDS,
    Conversation,
    Opening,
    Participant,
    UtteranceRecord,
    add_utterance,
    finish_turn,
    note_opening,
    reopen_turn,
)
from kibun.server.conversation.store import ConversationStore, Key, MemoryStore
from kibun.server.errors import Failure, Kind
from kibun.server.inference.backend import Traits
from tests.support.redis_server import command, prefixed

KEY = ("tenant", "c")
Kind_ = Literal["memory", "redis", "resilient"]
KINDS: tuple[Kind_, ...] = ("memory", "redis", "resilient")


async def open_redis(url: str, *, resilient: bool = False) -> ConversationStore:
    from kibun.server.conversation.redis_connection import Address, RedisLink
    from kibun.server.conversation.redis_store import RedisStore
    from kibun.server.conversation.resilient_store import ResilientStore

    store = RedisStore(RedisLink(Address.parse(url)))
    await store.first_contact()
    return ResilientStore(store) if resilient else store


@dataclass
class World:
    """A store, and what makes its time pass. `another` is a second server's store of the same conversations."""

    store: ConversationStore
    another: ConversationStore
    pass_time: Callable[[Key, float], Awaitable[None]]


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            now = [1000.0]
            memory = MemoryStore(lambda: now[0])

            async def later(_: Key, seconds: float) -> None:
                now[0] += seconds

            yield World(memory, memory, later)
            return
        url = await stack.enter_async_context(prefixed())
        stores = [await open_redis(url, resilient=request.param == "resilient") for _ in range(2)]
        for store in stores:
            stack.push_async_callback(store.close)

        async def expire_sooner(key: Key, seconds: float) -> None:
            name = f"{url.rpartition('=')[2]}:{{{key[0]}/{key[1]}}}"
            left_ms = await command(url.partition("?")[0], "PTTL", name)
            assert isinstance(left_ms, int)
            await command(url.partition("?")[0], "PEXPIRE", name, round(left_ms - seconds * 1000))

        yield World(stores[0], stores[1], expire_sooner)


@pytest.fixture
def store(world: World) -> ConversationStore:
    return world.store


class Stream:
    """A `Holder`."""

    def __init__(self, held: Conversation | None = None, ended: Exception | None = None) -> None:
        self.held = held
        self.ended = ended
        self.told: list[bool | Failure] = []

    def check(self) -> None:
        if self.ended:
            raise self.ended

    def behind(self, is_behind: bool) -> None:
        self.told.append(is_behind)

    def reject(self, failure: Failure) -> None:
        self.told.append(failure)


def fresh(_: Conversation | None = None, ttl_s: float = 60.0) -> Conversation:
    return Conversation("c", "m", 1000.0, 1000.0, ttl_s)


def traits(value: float) -> Traits:
    return (value, 4.0, 4.0, 4.0, 4.0)


def record(turn: str = "t", start: int = 0, *, who: str = "p", level: float | None = 2.0) -> UtteranceRecord:
    return UtteranceRecord(
        utterance_id=f"{who}:{turn}:{start}",
        turn_id=turn,
        start=start,
        end=start + 16_000,
        speech=16_000 if level else 0,
        vector=np.full(4, level, np.float16) if level else None,
        emotion=(level, 5 - level) if level else None,
        traits=traits(level) if level else None,
        traits_source="conversation",
        reason=EndReason.SILENCE,
    )


def said(*records: UtteranceRecord, who: str = "p") -> Callable[[Conversation | None], Conversation]:
    def change(conversation: Conversation | None) -> Conversation:
        conversation = conversation or fresh()
        participant = conversation.participant(who)
        for item in records:
            participant = add_utterance(participant, item)
        return conversation.with_participant(participant)

    return change


def plain(conversation: Conversation | None, *, times: bool = True) -> Any:
    """All of it, comparable, floats and vectors to the bit."""
    if conversation is None:
        return None
    return (
        (conversation.conversation_id, conversation.model, conversation.completed, conversation.ttl_s.hex()),
        (conversation.create_time.hex(), conversation.update_time.hex()) if times else (),
        {name: _plain_participant(p) for name, p in conversation.participants.items()},
    )


def _plain_participant(p: Participant) -> Any:
    openings = [(turn, opening.when.hex(), opening.offset) for turn, opening in p.openings.items()]
    return (
        (p.participant_id, p.finished_turns, p.revision, _hex(p.given_traits)),
        openings,
        tuple(map(_plain_record, p.records)),
    )


def _plain_record(r: UtteranceRecord) -> Any:
    vector = None if r.vector is None else (r.vector.dtype.str, r.vector.shape, r.vector.tobytes())
    numbers = (r.start, r.end, r.speech, _hex(r.emotion), _hex(r.traits))
    return (r.utterance_id, r.turn_id, numbers, vector, r.traits_source, r.reason)


def _hex(values: tuple[float, ...] | None) -> Any:
    return None if values is None else tuple(float(v).hex() for v in values)


# ---- one conversation


async def test_what_was_put_in_comes_out(world: World) -> None:
    assert await world.store.get(KEY) is None
    assert not await world.store.knows(KEY)
    made = await world.store.update(KEY, said(record()))
    for store in (world.store, world.another):
        assert plain(await store.get(KEY)) == plain(made)
        assert await store.knows(KEY)
    assert made.create_time == 1000.0


async def test_every_value_is_kept_exactly(world: World) -> None:
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)  # every float16: subnormal, infinite, NaN
    odd = (0.1, float(np.float32(1 / 3)), 5e-324, 1 / 3, 1.7976931348623157e308)
    given_traits = (1.1, 2.2, float(np.nextafter(3.3, 4)), 4.4, 5.5)
    items = [
        replace(record(), vector=bits, emotion=(-0.0, 0.1 + 0.2), traits=odd, end=2**53 + 1),
        replace(record(start=1), vector=np.zeros(0, np.float16), traits_source="given", reason=EndReason.HALF_CLOSE),
        replace(record(start=2, level=None), speech=3),
    ]
    openings = {"t.1": Opening(1e9 + 1 / 3, 2**40), "t": Opening(0.1, 0)}
    someone = Participant("p.-_Z", tuple(items), ("t-2", "t.1"), 2**40, given_traits, openings)
    whole = replace(fresh(), completed=True, ttl_s=0.1 + 59.9).with_participant(someone)
    made = await world.store.update(KEY, lambda _: whole)
    assert plain(made, times=False) == plain(whole, times=False)
    assert plain(await world.another.get(KEY)) == plain(made)


async def test_numpy_numbers_are_numbers(world: World) -> None:
    item = replace(record(), emotion=(np.float32(0.1), np.float64(0.2)), start=np.int64(7))  # type: ignore[arg-type]
    made = await world.store.update(KEY, said(item))
    assert plain(await world.another.get(KEY)) == plain(made)


async def test_update_time_always_grows(world: World) -> None:
    before = (await world.store.update(KEY, fresh)).update_time
    for store in (world.store, world.another) * 3:
        after = (await store.update(KEY, said(record()))).update_time
        assert after > before
        before = after


async def test_a_change_that_raises_changes_nothing(store: ConversationStore) -> None:
    async def check() -> None:
        before = await store.get(KEY)
        with pytest.raises(Failure, match="of the change"):
            await store.update(KEY, refuse)
        assert plain(await store.get(KEY)) == plain(before)

    def refuse(_: Conversation | None) -> Conversation:
        raise Failure(Kind.NOT_FOUND, "X", "of the change")

    await check()
    await store.update(KEY, said(record()))
    await check()


async def test_a_change_to_nothing_erases(world: World) -> None:
    await world.store.update(KEY, said(record()))
    await world.another.get(KEY)
    await world.store.update(KEY, lambda _: None)
    assert await world.another.get(KEY) is None
    assert await world.store.get(KEY) is None
    await world.another.update(KEY, lambda _: None)
    seen: list[Conversation | None] = []
    await world.another.update(KEY, lambda c: seen.append(c) or fresh())  # type: ignore[func-returns-value]
    assert seen == [None]


async def test_deleting_tells_whether_there_was_something(world: World) -> None:
    assert not await world.store.delete(KEY)
    await world.store.update(KEY, said(record()))
    assert await world.another.delete(KEY)
    for store in (world.another, world.store):
        assert await store.get(KEY) is None
        assert not await store.knows(KEY)
        assert not await store.delete(KEY)


async def test_after_a_deletion_a_new_conversation_may_begin(world: World) -> None:
    """Even one that is older by the clock of the server where it begins."""
    await world.store.update(KEY, said(record()))
    await world.store.delete(KEY)
    again = await world.another.update(KEY, lambda c: c or replace(fresh(), create_time=500.0))
    assert not again.participants
    stream = Stream(again)
    await world.store.update(KEY, said(record(start=7)), stream)
    found = await world.another.get(KEY, stream)
    assert found
    assert [r.start for r in found.participant("p").records] == [7]


async def test_a_turn_is_reopened_at_an_offset(world: World) -> None:
    await world.store.update(KEY, said(record("other"), *(record(start=n * 16_000) for n in range(4))))
    await world.another.get(KEY)
    await world.store.update(KEY, lambda c: c.with_participant(finish_turn(c.participant("p"), "t")))  # type: ignore[union-attr]
    await world.store.update(
        KEY,
        lambda c: c.with_participant(reopen_turn(c.participant("p"), "t", 32_000)),  # type: ignore[union-attr]
    )
    await world.another.update(KEY, said(record(start=32_000, level=3.0)))
    found = await world.store.get(KEY)
    assert found
    assert [(r.turn_id, r.start) for r in found.participant("p").records] == [
        ("other", 0),
        ("t", 0),
        ("t", 16_000),
        ("t", 32_000),
    ]
    assert found.participant("p").records[-1].traits == traits(3.0)
    assert found.participant("p").finished_turns == ()


async def test_the_oldest_records_leave(world: World) -> None:
    await world.store.update(KEY, said(*(record(start=n) for n in range(MAX_RECORDS))))
    await world.another.get(KEY)
    for n in range(3):
        await world.store.update(KEY, said(record(start=MAX_RECORDS + n)))
    for store in (world.another, world.store):
        found = await store.get(KEY)
        assert found
        assert [r.start for r in found.participant("p").records] == list(range(3, MAX_RECORDS + 3))


# ---- holders


async def test_a_holder_goes_on_from_what_it_holds(world: World) -> None:
    stream = Stream(said(record())(None))
    changed = await world.store.update(KEY, said(record(start=1)), stream)
    assert [r.start for r in changed.participant("p").records] == [0, 1]
    assert plain(await world.another.get(KEY)) == plain(changed)
    stream.held = None
    again = await world.another.update(KEY, said(record(start=2)), stream)
    assert [r.start for r in again.participant("p").records] == [0, 1, 2], "what is stored counts"


async def test_a_stream_that_has_ended_stores_nothing(store: ConversationStore) -> None:
    stream = Stream(fresh(), ended=KeyError("ended"))
    with pytest.raises(KeyError):
        await store.update(KEY, said(record()), stream)
    assert await store.get(KEY) is None


# ---- time


async def test_conversations_expire_unless_touched(world: World) -> None:
    await world.store.update(KEY, fresh)
    for store in (world.store, world.another) * 2:
        await world.pass_time(KEY, 50)
        await store.update(KEY, lambda c: c or pytest.fail("expired too early"))
    await world.pass_time(KEY, 61)
    assert await world.store.get(KEY) is None
    assert not await world.another.knows(KEY)
    seen: list[Conversation | None] = []
    await world.store.update(KEY, lambda c: seen.append(c) or fresh())  # type: ignore[func-returns-value]
    assert seen == [None]


async def test_reading_touches_nothing(world: World) -> None:
    await world.store.update(KEY, fresh)
    await world.pass_time(KEY, 50)
    await world.store.get(KEY)
    await world.store.knows(KEY)
    await world.pass_time(KEY, 10)
    assert await world.store.get(KEY) is None


# ---- many


async def test_keys_are_kept_apart(world: World) -> None:
    keys = [("", "c"), ("", "a-c"), ("a", "c"), ("a-", "c"), ("a.b", "c"), ("a", "b.c"), ("c", "a"), ("a", "c-a")]
    for number, key in enumerate(keys):
        await world.store.update(key, said(record(start=number)))
    for number, key in enumerate(keys):
        found = await world.another.get(key)
        assert found
        assert [r.start for r in found.participant("p").records] == [number]
    assert await world.store.delete(keys[0])
    assert [await world.another.knows(key) for key in keys] == [False] + [True] * (len(keys) - 1)


async def test_many_writers_lose_nothing(world: World) -> None:
    async def write(number: int) -> None:
        store = (world.store, world.another)[number % 2]
        who = f"p{number % 3}"
        for n in range(10):
            await store.update(KEY, said(record(f"t{number}", n, who=who), who=who))

    await asyncio.gather(*(write(number) for number in range(12)))
    for store in (world.store, world.another):
        found = await store.get(KEY)
        assert found
        everything = sorted(r.utterance_id for p in found.participants.values() for r in p.records)
        assert everything == sorted(f"p{i % 3}:t{i}:{n}" for i in range(12) for n in range(10))
        assert sum(p.revision for p in found.participants.values()) == 120, "each change counted once"


# ---- any sequence of changes, against a memory store


def _participant_change(kind: str, turn: str, number: int) -> Callable[[Participant], Participant]:
    match kind:
        case "add":
            return lambda p: add_utterance(p, record(turn, number, who=p.participant_id, level=1.0 + number))
        case "reopen":
            return lambda p: reopen_turn(p, turn, number)
        case "open":
            return lambda p: note_opening(p, turn, Opening(number / 3, number))
        case "finish":
            return lambda p: finish_turn(p, turn)
        case "give":
            return lambda p: replace(p, given_traits=traits(number) if number else None)
        case "shuffle":
            order = random.Random(number)
            return lambda p: replace(
                p,
                records=tuple(order.sample(p.records, len(p.records))),
                finished_turns=tuple(order.sample(p.finished_turns, len(p.finished_turns))),
            )
    raise AssertionError(kind)


def _change(kind: str, who: str, turn: str, number: int) -> Callable[[Conversation | None], Conversation | None]:
    def change(conversation: Conversation | None) -> Conversation | None:
        conversation = conversation or fresh()
        match kind:
            case "erase":
                return None
            case "complete":
                return replace(conversation, completed=not conversation.completed, ttl_s=60.0 + number)
            case "leave":
                return replace(
                    conversation, participants={n: p for n, p in conversation.participants.items() if n != who}
                )
            case "raise":
                raise KeyError
        # What shuffles draws anew each time it is called: a change must be pure.
        return conversation.with_participant(_participant_change(kind, turn, number)(conversation.participant(who)))

    return change


OPERATIONS = st.tuples(
    st.sampled_from(
        ["add"] * 6
        + ["reopen", "open", "finish", "give", "shuffle", "complete", "leave", "erase", "raise"]
        + ["delete"]
    ),
    st.sampled_from("pq"),
    st.sampled_from("tu"),
    st.integers(0, 4),
    st.integers(0, 1),  # which server
)


@pytest.fixture(params=["redis", "resilient"], scope="module")
def two_servers(request: pytest.FixtureRequest) -> Iterator[tuple[asyncio.Runner, list[ConversationStore]]]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def begin() -> list[ConversationStore]:
            url = await stack.enter_async_context(prefixed())
            return [await open_redis(url, resilient=request.param == "resilient") for _ in range(2)]

        stores = runner.run(begin())
        yield runner, stores
        for store in stores:
            runner.run(store.close())
        runner.run(stack.aclose())


@settings(max_examples=25, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=25), number=st.integers(0, 10**9))
def test_any_changes_do_as_in_memory(
    two_servers: tuple[asyncio.Runner, list[ConversationStore]], operations: list[Any], number: int
) -> None:
    runner, stores = two_servers
    model = MemoryStore()
    key = (f"tenant-{number}", "c")

    async def run() -> None:
        for kind, who, turn, value, server in operations:
            outcomes = []
            for store in (model, stores[server]):
                if kind == "delete":
                    outcomes.append(await store.delete(key))
                else:
                    try:
                        changed = await store.update(key, _change(kind, who, turn, value))
                        outcomes.append(plain(changed, times=False))
                    except KeyError:
                        outcomes.append("raised")
            assert outcomes[0] == outcomes[1]
        for store in stores:
            found = await store.get(key)
            assert plain(found, times=False) == plain(await model.get(key), times=False)
        await stores[0].delete(key)

    runner.run(run())
