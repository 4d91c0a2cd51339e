"""Threads that help one another: every piece is computed once, what comes first is helped first, nothing hangs."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.models.crew import Crew, Help, busy_s, help_now, share

SOON_S = 30.0


def led(crew: Crew, work: Callable[[], object], rank: int = 0) -> "Future[object]":
    """The result of work that a thread of the crew leads."""
    done: Future[object] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    crew.submit(run, rank)
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
    assert (help_now(), busy_s()) == (Help(1, 1.0), 0.0)


def test_help_is_shared_by_those_who_lead() -> None:
    assert led(Crew(1), help_now).result(SOON_S) == Help(1, 1.0)
    crew, held = Crew(6), threading.Event()
    assert led(crew, help_now).result(SOON_S) == Help(6, 2.0)
    others = [led(crew, lambda: held.wait(SOON_S)) for _ in range(2)]
    while crew.help.threads > 3:
        time.sleep(1e-3)
    assert led(crew, help_now).result(SOON_S) == Help(2, 2.0)
    others += [led(crew, lambda: held.wait(SOON_S)) for _ in range(3)]
    assert led(crew, help_now).result(SOON_S) == Help(2, 1.08), "no thread is idle: cutting must cost little"
    held.set()
    assert all(other.result(SOON_S) for other in others)


def test_what_is_urgent_is_begun_first() -> None:
    crew, held, begun = Crew(1), threading.Event(), list[int]()
    first = led(crew, lambda: held.wait(SOON_S))
    later = [led(crew, lambda rank=rank: begun.append(rank), rank) for rank in (2, 0, 1, 0)]  # type: ignore[misc]
    held.set()
    for done in (first, *later):
        done.result(SOON_S)
    assert begun == [0, 0, 1, 2]


@pytest.mark.parametrize("ranks", [(0, 0), (2, 0), (0, 2)])
def test_where_all_lead_what_comes_first_is_helped_and_does_not_help(ranks: tuple[int, int]) -> None:
    """Two threads that lead. Each has pieces; those of the first in order are computed by both, by its own at last."""
    crew = Crew(2)
    both_lead, one_is_taken = threading.Barrier(2), threading.Event()
    computed: list[tuple[str, str]] = []

    def lead(name: str) -> None:
        both_lead.wait(SOON_S)
        first = (name == "a") == (ranks[0] <= ranks[1])

        def piece() -> None:
            computed.append((name, threading.current_thread().name))

        def held() -> None:
            one_is_taken.set()
            piece()
            while len(computed) < 3:  # the other thread takes the next pieces, of this work before its own
                time.sleep(1e-3)

        if not first:
            one_is_taken.wait(SOON_S)
        share([held, piece, piece] if first else [piece, piece])

    works = [led(crew, lambda name=name: lead(name), rank) for name, rank in zip("ab", ranks, strict=True)]  # type: ignore[misc]
    for done in works:
        done.result(SOON_S)
    first = "a" if ranks[0] <= ranks[1] else "b"
    helper = computed[1][1]
    assert helper != computed[0][1]
    assert computed[1:] == [(first, helper)] * 2 + [({"a": "b", "b": "a"}[first], helper)] * 2


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


def test_the_work_of_helpers_counts() -> None:
    crew = Crew(2)

    def lead() -> float:
        share([lambda: time.sleep(0.05)] * 4)
        return busy_s()

    assert led(crew, lead).result(SOON_S) >= 0.2  # type: ignore[operator]
