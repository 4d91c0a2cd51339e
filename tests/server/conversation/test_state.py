"""What is known of a conversation, how long it is kept, and what estimates are made of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kibun.models.types import Analysis
from kibun.server.api import responses
from kibun.server.conversation.state import (
    MAX_FINISHED_TURNS,
    MAX_RECORDS,
    Conversation,
    Participant,
    Totals,
    UtteranceRecord,
    add_utterance,
    finish_turn,
    reopen_turn,
)
from kibun.server.conversation.store import MemoryStore
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import estimates
from tests.support import present
from tests.support.stores import KEY, fresh, record, traits

MODEL = ModelInfo("m", "1", vector_size=4)


def participant(*records: UtteranceRecord) -> Participant:
    someone = Participant("p")
    for item in records:
        someone = add_utterance(someone, item)
    return someone


# ---- updates


def test_an_utterance_added_twice_counts_once() -> None:
    once = participant(record(), record(start=16_000))
    twice = add_utterance(once, record(start=16_000, level=3.0))
    assert [r.start for r in twice.records] == [0, 16_000]
    assert twice.totals.speech == once.totals.speech == 32_000
    assert present(estimates.of_participant(MODEL, twice)).traits == traits(3.0)


def test_records_and_turns_are_capped_and_the_oldest_leave() -> None:
    someone = participant(*(record(start=16_000 * n) for n in range(MAX_RECORDS + 3)))
    assert [r.start // 16_000 for r in someone.records] == list(range(3, MAX_RECORDS + 3))
    for n in range(MAX_FINISHED_TURNS + 2):
        someone = finish_turn(someone, f"t{n}")
    assert len(someone.finished_turns) == MAX_FINISHED_TURNS
    assert someone.finished_turns[-1] == f"t{MAX_FINISHED_TURNS + 1}"
    assert someone.turn_count == MAX_FINISHED_TURNS + 2
    again = finish_turn(someone, "t9")
    assert (again.finished_turns.count("t9"), again.turn_count) == (1, MAX_FINISHED_TURNS + 2)


@pytest.mark.parametrize(("offset", "left"), [(0, 0), (1, 1), (16_000, 1), (16_001, 2), (10**6, 3)])
def test_reopening_a_turn_forgets_what_will_be_sent_again(offset: int, left: int) -> None:
    someone = participant(record("other", 0), *(record(start=n * 16_000, level=n + 1.5) for n in range(3)))
    reopened = reopen_turn(someone, "t", offset)
    assert reopened.turn("t").totals.utterances == left
    assert reopened.turn("other").totals.utterances == 1
    latest = present(estimates.of_participant(MODEL, reopened))
    assert latest.traits == traits(left + 0.5 if left else 2.0), "traits rest on what is left"


def test_nothing_is_known_about_a_new_participant() -> None:
    new = Conversation("c", "m", 0, 0, 60).participant("p")
    assert new.participant_id == "p"
    assert (new.records, new.totals) == ((), Totals())
    assert estimates.of_participant(MODEL, new) is None
    assert estimates.mean_emotion(new.totals) is None


# ---- estimates


def test_mean_emotion_weighs_by_speech_and_skips_what_has_none() -> None:
    assert estimates.mean_emotion(Totals.of([record(level=None)])) is None
    some = [record(level=1.0, speech=3), record(level=5.0, speech=1), record(level=None)]
    mean = present(estimates.mean_emotion(Totals.of(some)))
    assert (mean.valence, mean.arousal) == (2.0, 4.0)


def test_history_is_the_vectors_in_order() -> None:
    assert estimates.history(MODEL, Participant("p")).shape == (0, 4)
    some = (record(level=2.0), record(start=16_000, level=None), record(start=32_000, level=3.0))
    vectors = estimates.history(MODEL, participant(*some))
    assert vectors.dtype == np.float16
    assert vectors.tolist() == [[2] * 4, [3] * 4]


@pytest.mark.parametrize(("count", "row"), [(0, None), (1, 1), (2, 1), (3, 3), (9, 3), (10, 10), (500, 10)])
def test_expected_error_is_that_of_the_evidence_at_hand(count: int, row: int | None) -> None:
    rows = tuple((n, traits(1 / n)) for n in (1, 3, 10))
    error = estimates.expected_error(replace(MODEL, expected_error=rows), count)
    assert error == (None if row is None else traits(1 / row))
    assert estimates.expected_error(MODEL, count) is None


@pytest.mark.parametrize("source", ["utterance", "average", "conversation", "given"])
def test_a_condition_comes_with_its_evidence(source: str) -> None:
    result = Analysis(np.zeros(4, np.float16), condition_traits=traits(3), condition_source=source)  # type: ignore[arg-type]
    known = participant(record(), record(start=16_000, level=None))
    found = present(estimates.condition(MODEL, result, known, 8_000))
    evidence = {"given": (0, 0), "utterance": (1, 8_000)}.get(source, (2, 24_000))
    assert (found.source, found.utterance_count, found.speech) == (source, *evidence)


@given(st.integers(0, 10**12))
def test_every_position_is_an_exact_duration(position: int) -> None:
    found = responses.duration(position)
    assert (found.seconds * 10**9 + found.nanos) * 16_000 == position * 10**9


# ---- the store


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def store(now: list[float]) -> MemoryStore:
    return MemoryStore(lambda: now[0], lambda: now[0])


async def test_conversations_expire_unless_touched(store: MemoryStore, now: list[float]) -> None:
    await store.update(KEY, fresh)
    for _ in range(5):
        now[0] += 59
        changed = await store.update(KEY, lambda c: c or fresh())
        assert changed.create_time == 1000.0
        assert changed.expire_time == now[0] + 60
    now[0] += 60
    assert await store.get(KEY) is None, "expired, though still in memory"
    assert len(store) == 1
    assert not await store.delete(KEY), "nothing to delete: it has expired"
    assert len(store) == 0


async def test_an_expired_conversation_begins_anew(store: MemoryStore, now: list[float]) -> None:
    await store.update(KEY, lambda c: fresh(c).with_participant(participant(record())))
    now[0] += 61
    seen: list[Conversation | None] = []
    await store.update(KEY, lambda c: seen.append(c) or fresh(c))  # type: ignore[func-returns-value]
    assert seen == [None]


async def test_sweep_erases_only_what_has_expired(store: MemoryStore, now: list[float]) -> None:
    await store.update(KEY, fresh)
    now[0] += 30
    await store.update(("tenant", "d"), fresh)
    now[0] += 31
    store.sweep()
    assert len(store) == 1
    assert await store.get(("tenant", "d"))


async def test_a_change_that_raises_changes_nothing(store: MemoryStore) -> None:
    await store.update(KEY, fresh)

    def refuse(_: Conversation | None) -> Conversation:
        raise KeyError

    before = await store.get(KEY)
    with pytest.raises(KeyError):
        await store.update(KEY, refuse)
    assert await store.get(KEY) is before


async def test_tenants_have_conversations_of_their_own(store: MemoryStore) -> None:
    await store.update(KEY, fresh)
    assert await store.get(("another", "c")) is None
    assert not await store.delete(("another", "c"))
    assert await store.get(KEY)
