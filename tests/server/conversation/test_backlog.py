"""Which changes are lost where an outage makes more than fit."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kibun.server.conversation import backlog
from kibun.server.conversation.backlog import Backlog, Pending, PendingChange, replay
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import Key
from kibun.server.errors import Failure, Kind
from tests.support.stores import FakeStream, adding, plain, record


def change(start: int, stream: FakeStream) -> PendingChange:
    return PendingChange(stream, adding(record(start=start)))


def add(kept: Backlog, key: Key, start: int) -> None:
    kept.add(key, kept.get(key) or Pending(None, None), change(start, FakeStream()))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from(["add"] * 5 + ["drop"]))))
def test_the_largest_pays_for_what_is_too_much(operations: list[tuple[str, str, str]]) -> None:
    sizes: Counter[Key] = Counter()
    lost = 0
    with pytest.MonkeyPatch.context() as patch:
        for name, most in (("MAX_CONVERSATION", 4), ("MAX_TENANT", 6), ("MAX_ALL", 10)):
            patch.setattr(backlog, name, most)
        kept = Backlog()
        for number, (tenant, name, what) in enumerate(operations):
            key = (tenant, name)
            if what == "drop":
                assert kept.drop(key) == sizes.pop(key, 0)
            else:
                add(kept, key, number)
                sizes[key] += 1
            now = Counter({key: len(pending.changes) for key in kept if (pending := kept.get(key))})
            if sizes != now:
                (loser,) = (sizes - now).elements()
                tenants: Counter[str] = Counter()
                for (owner, _), size in sizes.items():
                    tenants[owner] += size
                if sizes[key] > 4:
                    assert loser == key
                elif tenants[tenant] > 6:
                    assert loser[0] == tenant
                    assert sizes[loser] == max(size for (owner, _), size in sizes.items() if owner == tenant)
                else:
                    assert sizes.total() > 10
                    assert tenants[loser[0]] == max(tenants.values())
                    assert sizes[loser] == max(size for (owner, _), size in sizes.items() if owner == loser[0])
                lost += 1
            sizes = now
            assert (kept.total, kept.lost, len(kept)) == (now.total(), lost, len(now))
            assert max(now.values(), default=0) <= 4
            assert kept.total <= 10


def test_changes_lost_while_a_batch_is_stored_are_not_removed_twice() -> None:
    stream = FakeStream()
    pending = Pending(None, None)
    for start in range(5):
        pending.changes.append(change(start, stream))
    batch = pending.oldest(3)
    pending.lose_oldest()
    pending.remove_stored(batch)
    assert pending.changes[0].change(None) is not None
    assert len(pending.changes) == 2


def test_a_store_that_lost_the_conversation_gets_what_there_was_no_room_for() -> None:
    pending = Pending(None, None)
    stream = FakeStream()
    for start in range(3):
        pending.changes.append(change(start, stream))
    pending.lose_oldest()
    assert plain(pending.base) == plain(adding(record(start=0))(None))


def test_later_changes_of_a_rejected_stream_are_left_out() -> None:
    def refuse(_: Conversation | None) -> Conversation:
        raise Failure(Kind.FAILED_PRECONDITION, "X", "refused")

    def fail(_: Conversation | None) -> Conversation:
        raise KeyError

    changes: list[Callable[[Conversation | None], Conversation]] = [refuse, fail]
    good, bad, broken = FakeStream(), FakeStream(), FakeStream()
    steps = [change(0, good), PendingChange(bad, changes[0]), PendingChange(broken, changes[1])]
    steps += [change(1, bad), change(2, broken), change(3, good)]
    rejected: dict[int, Failure] = {}
    result, now_rejected = replay(steps, None, rejected)
    assert rejected == {}
    assert {number: why.reason for number, why in now_rejected.items()} == {id(bad): "X", id(broken): "NOT_STORED"}
    assert result
    assert [r.start for r in result.participant("p").records] == [0, 3]
    assert replay([change(4, bad)], result, now_rejected)[0] is result
