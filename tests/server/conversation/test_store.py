"""What every conversation store does: one suite for memory, Redis, and Redis as streams meet it."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

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
    Totals,
    Turn,
    add_utterance,
    finish_turn,
    note_opening,
    reopen_turn,
)
from kibun.server.conversation.store import ConversationStore, MemoryStore
from kibun.server.errors import Failure, Kind
from tests.support import present
from tests.support.redis_server import prefixed
from tests.support.stores import (
    KEY,
    FakeStream,
    Stores,
    adding,
    fresh,
    open_redis,
    plain,
    plain_record,
    record,
    stores,
    traits,
)

__all__ = ["stores"]  # a fixture


@pytest.fixture
def store(stores: Stores) -> ConversationStore:
    return stores.store


# ---- one conversation


async def test_what_was_put_in_comes_out(stores: Stores) -> None:
    assert await stores.store.get(KEY) is None
    assert not await stores.store.knows(KEY)
    made = await stores.store.update(KEY, adding(record()))
    for store in (stores.store, stores.another):
        assert plain(await store.get(KEY)) == plain(made)
        assert await store.knows(KEY)
    assert made.create_time == 1000.0


async def test_every_value_is_kept_exactly(stores: Stores) -> None:
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)
    bits = bits[np.isfinite(bits)]  # every finite float16, also subnormal
    odd = (1.1, float(np.float32(4 / 3)), float(np.nextafter(1, 2)), 4 / 3, 7.0)
    given_traits = (1.1, 2.2, float(np.nextafter(3.3, 4)), 4.4, 5.5)
    who, sums = "p.-_Z", Totals(2**28, 2**52, 2**51, 3 * 2**103 + 1, 2**104, missing=3)
    items = [
        replace(record(who=who), vector=bits, emotion=(1.0, 1.1 + 2.2), traits=odd, end=2**53 - 1),
        replace(record(start=1, who=who), bundle="0f", traits_source="given", reason=EndReason.HALF_CLOSE),
        replace(record(start=2, level=None, who=who), speech=3),
    ]
    earlier = {"t": Turn(replace(sums, utterances=1), 5, 2**52, 7), "v": Turn(Totals(missing=1), missing_before=3)}
    openings = {"t.1": Opening(1e9 + 1 / 3, 2**40, settled=2**41), "t": Opening(0.1, 0, resumes=True)}
    someone = Participant(
        who, tuple(items), ("t-2", "t.1"), 2**29, given_traits, openings, earlier, sums + sums, 2**29, "ab"
    )
    whole = replace(fresh(), completed=True, ttl_s=0.1 + 59.9).with_participant(someone)
    made = await stores.store.update(KEY, lambda _: whole)
    assert plain(made, times=False) == plain(whole, times=False)
    assert plain(await stores.another.get(KEY)) == plain(made)


async def test_numpy_numbers_are_numbers(stores: Stores) -> None:
    item = replace(record(start=7), emotion=(np.float32(1.1), np.float64(1.2)), start=np.int64(7))  # type: ignore[arg-type]
    made = await stores.store.update(KEY, adding(item))
    assert plain(await stores.another.get(KEY)) == plain(made)


async def test_update_time_always_grows(stores: Stores) -> None:
    before = (await stores.store.update(KEY, fresh)).update_time
    for store in (stores.store, stores.another) * 3:
        after = (await store.update(KEY, adding(record()))).update_time
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
    await store.update(KEY, adding(record()))
    await check()


async def test_a_change_to_nothing_erases(stores: Stores) -> None:
    await stores.store.update(KEY, adding(record()))
    await stores.another.get(KEY)
    await stores.store.update(KEY, lambda _: None)
    assert await stores.another.get(KEY) is None
    assert await stores.store.get(KEY) is None
    await stores.another.update(KEY, lambda _: None)
    seen: list[Conversation | None] = []
    await stores.another.update(KEY, lambda c: seen.append(c) or fresh())  # type: ignore[func-returns-value]
    assert seen == [None]


async def test_deleting_tells_whether_there_was_something(stores: Stores) -> None:
    assert not await stores.store.delete(KEY)
    await stores.store.update(KEY, adding(record()))
    assert await stores.another.delete(KEY)
    for store in (stores.another, stores.store):
        assert await store.get(KEY) is None
        assert not await store.knows(KEY)
        assert not await store.delete(KEY)


async def test_after_a_deletion_a_new_conversation_may_begin(stores: Stores) -> None:
    """Even one that is older by the clock of the server where it begins."""
    await stores.store.update(KEY, adding(record()))
    await stores.store.delete(KEY)
    again = await stores.another.update(KEY, lambda c: c or replace(fresh(), create_time=500.0))
    assert not again.participants
    stream = FakeStream(again)
    await stores.store.update(KEY, adding(record(start=7)), stream)
    found = present(await stores.another.get(KEY, stream))
    assert [r.start for r in found.participant("p").records] == [7]


async def test_a_turn_is_reopened_at_an_offset(stores: Stores) -> None:
    await stores.store.update(KEY, adding(record("other"), *(record(start=n * 16_000) for n in range(4))))
    await stores.another.get(KEY)
    await stores.store.update(KEY, lambda c: c.with_participant(finish_turn(c.participant("p"), "t")))  # type: ignore[union-attr]
    await stores.store.update(
        KEY,
        lambda c: c.with_participant(reopen_turn(c.participant("p"), "t", 32_000)),  # type: ignore[union-attr]
    )
    await stores.another.update(KEY, adding(record(start=32_000, level=3.0)))
    found = present(await stores.store.get(KEY))
    assert [(r.turn_id, r.start) for r in found.participant("p").records] == [
        ("other", 0),
        ("t", 0),
        ("t", 16_000),
        ("t", 32_000),
    ]
    assert found.participant("p").records[-1].traits == traits(3.0)
    assert found.participant("p").finished_turns == ()


async def test_the_oldest_records_leave(stores: Stores) -> None:
    some = [record(start=16_000 * n, level=1 + n / 999) for n in range(MAX_RECORDS + 3)]
    await stores.store.update(KEY, adding(*some[:MAX_RECORDS]))
    await stores.another.get(KEY)
    for item in some[MAX_RECORDS:]:
        await stores.store.update(KEY, adding(item))
    for store in (stores.another, stores.store):
        found = present(await store.get(KEY)).participant("p")
        assert [plain_record(r) for r in found.records] == [plain_record(r) for r in some[3:]]
        assert found.totals == found.turn("t").totals == Totals.of(some), "sums are of all"


# ---- streams


async def test_a_stream_goes_on_from_what_it_last_saw(stores: Stores) -> None:
    stream = FakeStream(adding(record())(None))
    changed = await stores.store.update(KEY, adding(record(start=1)), stream)
    assert [r.start for r in changed.participant("p").records] == [0, 1]
    assert plain(await stores.another.get(KEY)) == plain(changed)
    stream.last_seen = None
    again = await stores.another.update(KEY, adding(record(start=2)), stream)
    assert [r.start for r in again.participant("p").records] == [0, 1, 2], "what is stored counts"


async def test_a_stream_that_has_ended_stores_nothing(store: ConversationStore) -> None:
    stream = FakeStream(fresh(), ended=KeyError("ended"))
    with pytest.raises(KeyError):
        await store.update(KEY, adding(record()), stream)
    assert await store.get(KEY) is None


# ---- time


async def test_conversations_expire_unless_touched(stores: Stores) -> None:
    await stores.store.update(KEY, fresh)
    for store in (stores.store, stores.another) * 2:
        await stores.pass_time(KEY, 50)
        await store.update(KEY, lambda c: c or pytest.fail("expired too early"))
    await stores.pass_time(KEY, 61)
    assert await stores.store.get(KEY) is None
    assert not await stores.another.knows(KEY)
    seen: list[Conversation | None] = []
    await stores.store.update(KEY, lambda c: seen.append(c) or fresh())  # type: ignore[func-returns-value]
    assert seen == [None]


async def test_reading_touches_nothing(stores: Stores) -> None:
    await stores.store.update(KEY, fresh)
    await stores.pass_time(KEY, 50)
    await stores.store.get(KEY)
    await stores.store.knows(KEY)
    await stores.pass_time(KEY, 10)
    assert await stores.store.get(KEY) is None


# ---- many


async def test_keys_are_kept_apart(stores: Stores) -> None:
    keys = [("", "c"), ("", "a-c"), ("a", "c"), ("a-", "c"), ("a.b", "c"), ("a", "b.c"), ("c", "a"), ("a", "c-a")]
    for number, key in enumerate(keys):
        await stores.store.update(key, adding(record(start=number)))
    for number, key in enumerate(keys):
        found = present(await stores.another.get(key))
        assert [r.start for r in found.participant("p").records] == [number]
    assert await stores.store.delete(keys[0])
    assert [await stores.another.knows(key) for key in keys] == [False] + [True] * (len(keys) - 1)


async def test_many_writers_lose_nothing(stores: Stores) -> None:
    async def write(number: int) -> None:
        store = (stores.store, stores.another)[number % 2]
        who = f"p{number % 3}"
        for n in range(10):
            await store.update(KEY, adding(record(f"t{number}", n, who=who), who=who))

    await asyncio.gather(*(write(number) for number in range(12)))
    for store in (stores.store, stores.another):
        found = present(await store.get(KEY))
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


@settings(max_examples=25)
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
