"""Threads that help one another: every piece is computed once, only idle threads help, nothing hangs."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.models.crew import Crew, help_now, helped_s, share

SOON_S = 30.0


def led(crew: Crew, work: Callable[[], object]) -> "Future[object]":
    """The result of work that a thread of the crew leads."""
    done: Future[object] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    crew.submit(run)
    return done


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.lists(st.lists(st.integers(0, 20), max_size=4), max_size=6))
def test_every_piece_is_computed_once(size: int, works: list[list[int]]) -> None:
    crew = Crew(size)
    computed: list[list[int]] = [[] for _ in works]

    def lead(index: int) -> None:
        for count in works[index]:
            before = len(computed[index])
            share([lambda: computed[index].append(0)] * count)
            assert len(computed[index]) == before + count, "none is left when it returns"

    for done in [led(crew, lambda index=index: lead(index)) for index in range(len(works))]:  # type: ignore[misc]
        done.result(SOON_S)
    assert [len(pieces) for pieces in computed] == [sum(counts) for counts in works]


def test_threads_without_work_help() -> None:
    together = threading.Barrier(3)
    crew = Crew(3)
    led(crew, lambda: share([lambda: together.wait(SOON_S)] * 3)).result(SOON_S)  # type: ignore[list-item]


def test_outside_of_a_crew_there_is_no_help() -> None:
    threads: list[int] = []
    share([lambda: threads.append(threading.get_ident())] * 3)
    assert threads == [threading.get_ident()] * 3
    assert (help_now(), helped_s()) == (1, None)


def test_help_is_shared_by_those_who_lead() -> None:
    assert led(Crew(1), help_now).result(SOON_S) == 1
    crew, held = Crew(6), threading.Event()
    assert led(crew, help_now).result(SOON_S) == 6
    others = [led(crew, lambda: held.wait(SOON_S)) for _ in range(2)]
    while crew.help > 3:
        time.sleep(1e-3)
    assert led(crew, help_now).result(SOON_S) == 2
    others += [led(crew, lambda: held.wait(SOON_S)) for _ in range(2)]
    while crew.help > 1:
        time.sleep(1e-3)
    assert led(crew, help_now).result(SOON_S) == 1
    held.set()
    assert all(other.result(SOON_S) for other in others)


def test_a_thread_leads_before_it_helps() -> None:
    """Two threads: one leads, shares three pieces and is held in the first; the other has work of its own to begin."""
    crew, both_lead, is_held = Crew(2), threading.Barrier(2), threading.Event()
    computed: list[str] = []

    def first() -> None:
        def hold() -> None:
            is_held.set()
            while len(computed) < 4:
                time.sleep(1e-3)

        both_lead.wait(SOON_S)
        share([hold, lambda: computed.append("first"), lambda: computed.append("first")])

    def second() -> None:
        both_lead.wait(SOON_S)
        is_held.wait(SOON_S)
        share([lambda: computed.append("second")] * 2)

    for done in [led(crew, first), led(crew, second)]:
        done.result(SOON_S)
    assert computed == ["second", "second", "first", "first"]


def test_an_error_of_a_piece_is_its_leader_s_and_the_crew_goes_on() -> None:
    crew, computed = Crew(2), list[int]()

    def fails() -> None:
        raise ArithmeticError("this piece")

    for _ in range(2):
        with pytest.raises(ArithmeticError, match="this piece"):
            led(crew, lambda: share([fails, lambda: computed.append(1), lambda: computed.append(1)])).result(SOON_S)
    assert computed == [1] * 4, "the others have ended"
    led(crew, lambda: share([lambda: computed.append(2)] * 2)).result(SOON_S)
    assert computed[4:] == [2, 2]


def test_the_time_of_helpers_counts() -> None:
    def helped() -> float | None:
        together = threading.Barrier(2)
        share([lambda: [together.wait(SOON_S), time.sleep(0.05)]] * 2)  # type: ignore[list-item, func-returns-value]
        return helped_s()

    def alone() -> float | None:
        share([lambda: time.sleep(0.01)])
        return helped_s()

    crew = Crew(2)
    took_s = led(crew, helped).result(SOON_S)
    assert isinstance(took_s, float)
    assert took_s >= 0.1
    assert led(crew, alone).result(SOON_S) is None
