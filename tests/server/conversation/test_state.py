"""What is known of a conversation, how long it is kept, and what estimates are made of it."""

from dataclasses import replace
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kibun.models.types import Analysis, Evidence
from kibun.server.api import responses
from kibun.server.conversation.state import (
    MAX_EARLIER,
    MAX_FINISHED_TURNS,
    MAX_RECORDS,
    Conversation,
    Participant,
    Told,
    Totals,
    Turn,
    UtteranceRecord,
    add_utterance,
    finish_turn,
    reopen_turn,
    resume_turn,
)
from kibun.server.conversation.store import MemoryStore
from kibun.server.errors import Failure
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


# ---- sums

LEVELS = st.floats(1.0, 5.0, width=32)
SAID = st.lists(st.tuples(LEVELS, LEVELS, st.integers(0, 16_000), st.booleans()), min_size=1, max_size=30)


def said(items: list[tuple[float, float, int, bool]]) -> list[UtteranceRecord]:
    """One utterance each, of these emotions and so much speech, or too short for both."""
    return [
        replace(record(start=20_000 * n), emotion=(valence, arousal), speech=speech)
        if heard
        else record(start=20_000 * n, level=None)
        for n, (valence, arousal, speech, heard) in enumerate(items)
    ]


@given(SAID, st.randoms(use_true_random=False))
def test_sums_are_the_same_in_any_order(items: list[Any], random: Random) -> None:
    some = said(items)
    whole = Totals.of(some)
    random.shuffle(some)
    cut = random.randint(0, len(some))
    assert Totals.of(some) == Totals.of(some[:cut]) + Totals.of(some[cut:]) == whole
    assert whole - Totals.of(some[cut:]) == Totals.of(some[:cut])
    weight = sum(r.speech for r in some if r.emotion)
    expected = [
        float(sum(Fraction(r.emotion[n]) * r.speech for r in some if r.emotion) / weight) if weight else None
        for n in (0, 1)
    ]
    assert (list(whole.emotion) if whole.emotion else [None, None]) == expected, "rounded once"


@given(SAID, st.data())
def test_a_resumed_turn_is_complete_whatever_was_lost(items: list[Any], data: st.DataObject) -> None:
    """Of any utterances, the server has lost any: what the client has makes up for it, or their number is known."""
    some = said(items)
    cut = data.draw(st.integers(0, len(some)))
    offset = some[cut - 1].end if cut else 0
    had, rest = some[:cut], some[cut:]
    kept = [r for r in some if data.draw(st.booleans())]  # also such as the client never got
    handed = [replace(r, vector=None, traits=None) for r in had]
    whole, knows = participant(*some), participant(*kept)
    reopened = reopen_turn(knows, "t", offset)
    for told, complete in ((Told(tuple(handed), len(had)), True), (Told((), len(had)), False)):
        resumed = resume_turn(reopened, "t", offset, told, continues=False)
        again = resume_turn(reopen_turn(resumed, "t", offset), "t", offset, told, continues=False)
        assert again.turn("t") == resumed.turn("t"), "as often as one likes"
        for item in rest:
            resumed = add_utterance(resumed, item)
        lost = len(set(had) - set(kept))
        if complete:
            assert resumed.turn("t") == whole.turn("t")
            assert [r.start for r in resumed.records] == [r.start for r in whole.records]
            assert resumed.revision >= whole.revision - sum(not r.speech for r in some)
        else:
            totals = resumed.turn("t").totals
            assert (totals.utterances, totals.missing) == (len(some) - lost, lost)
            assert resumed.turn("t").missing_before == (offset if lost else 0)
        assert resumed.totals == resumed.turn("t").totals


@pytest.mark.parametrize("offset", [0, 1, 100, 101, 300, MAX_RECORDS + 99, MAX_RECORDS + 100])
def test_a_turn_with_more_than_is_kept_is_reopened(offset: int) -> None:
    """At its beginning, within what only sums are left of, and within what is kept."""
    some = [record(start=16_000 * n, level=1 + n / 999) for n in range(MAX_RECORDS + 100)]
    known = add_utterance(participant(*some), record("u"))  # another turn, later
    had = some[:offset]
    told = Told(tuple(replace(r, vector=None) for r in had), len(had))
    begin = had[-1].end if had else 0
    resumed = resume_turn(reopen_turn(known, "t", begin), "t", begin, told, continues=True)
    for item in some[offset:]:
        resumed = add_utterance(resumed, item)
    assert resumed.turn("t") == known.turn("t") == Turn().plus(some)
    assert resumed.totals == known.totals == Totals.of([*some, record("u")])
    unknown = resume_turn(reopen_turn(known, "t", begin), "t", begin, Told((), len(had)), continues=True)
    assert unknown.turn("t").totals.missing == (len(had) if 0 < offset < 101 else 0)


@pytest.mark.parametrize("handed_over", [False, True])
def test_what_was_missing_may_come_late(handed_over: bool) -> None:
    """A turn was resumed elsewhere; the server before was not gone, and stores what it had once it can."""
    some = [record(start=16_000 * n) for n in range(4)]
    finals = tuple(replace(r, vector=None) for r in some[:2])
    told = Told(finals if handed_over else (), 2)
    someone = resume_turn(Participant("p"), "t", 32_000, told, continues=False)
    assert someone.totals.missing == (0 if handed_over else 2)
    for item in (some[2], some[0], some[3], some[0], some[1], some[1]):
        someone = add_utterance(someone, item)
    assert someone.turn("t") == Turn().plus(some)
    assert all(r.vector is not None for r in someone.records)


def test_sums_of_an_utterance_that_comes_again_stay() -> None:
    some = [record(start=16_000 * n) for n in range(MAX_RECORDS + 5)]
    known = participant(*some)
    assert add_utterance(known, some[0]).totals == known.totals, "a change that is made twice"
    assert participant(*some, *some[-3:]).totals == known.totals


def test_sums_are_kept_of_any_number_of_turns() -> None:
    """Of each of the latest, in case that it is resumed; of all, for the conversation."""
    someone = participant(*(record(f"t{n}") for n in range(MAX_RECORDS + 200)))
    assert someone.totals.utterances == MAX_RECORDS + 200
    assert len(someone.earlier) == MAX_EARLIER
    assert someone.turn("t199").totals.utterances == 1
    assert someone.turn("t1").totals.utterances == 0
    told = Told((replace(record("t1"), vector=None),), 1)
    resumed = resume_turn(reopen_turn(someone, "t1", 16_000), "t1", 16_000, told, continues=False)
    assert resumed.turn("t1").totals.utterances == 1


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
def test_evidence_is_that_of_the_utterances_at_hand(count: int, row: int | None) -> None:
    rows = tuple(Evidence(n, traits(1 / n)) for n in (1, 3, 10))
    found = replace(MODEL, evidence=rows).evidence_after(count)
    assert found == (None if row is None else Evidence(row, traits(1 / row)))
    assert MODEL.evidence_after(count) is None


@pytest.mark.parametrize("source", ["utterance", "average", "conversation", "given"])
def test_a_condition_comes_with_its_evidence(source: str) -> None:
    weight = traits(0.25) if source == "conversation" else None
    result = Analysis(
        np.zeros(4, np.float16),
        condition_traits=traits(3),
        condition_source=source,  # type: ignore[arg-type]
        condition_weight=weight,
    )
    known = participant(record(), record(start=16_000, level=None))
    found = present(estimates.condition(MODEL, result, known, 8_000))
    evidence = {"given": (0, 0), "utterance": (1, 8_000)}.get(source, (2, 24_000))
    assert (found.source, found.utterance_count, found.speech) == (source, *evidence)
    assert found.weight == weight, "the one that was used"
    assert responses.personality(found).HasField("condition_weight") == (weight is not None)  # type: ignore[union-attr]


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


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 1e9])
async def test_a_step_of_the_wall_clock_changes_no_time_to_live(step_s: float) -> None:
    wall, now = [1e6], [0.0]
    store = MemoryStore(lambda: wall[0], lambda: now[0], tenant_conversations=1)
    await store.update(KEY, fresh)
    wall[0] += step_s
    now[0] += 59
    store.sweep()
    assert await store.get(KEY)
    with pytest.raises(Failure, match="you have 1 conversations"):
        await store.update(("tenant", "d"), fresh)
    now[0] += 1
    assert await store.get(KEY) is None
    store.sweep()
    assert len(store) == 0
    made = await store.update(("tenant", "d"), lambda _: replace(fresh(), create_time=wall[0]))
    assert made.expire_time == wall[0] + 60, "for people: by the clock on the wall"


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
