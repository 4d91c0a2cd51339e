"""The checker of fault runs finds every way in which a promise can be broken, and nothing where none is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kibun.bench.faults.checker import PROMISES, Violation, check, is_named
from kibun.bench.faults.history import (
    Accounting,
    ClientHistory,
    Final,
    Interim,
    Opened,
    Other,
    Seen,
    TurnError,
    TurnHistory,
    TurnOutcome,
    What,
)

LOST = TurnError(2.0, "UnavailableError", "UNAVAILABLE", "UNAVAILABLE", "the connection was lost")


def final(number: int, *, value: float = 3.0) -> Final:
    """Utterances of a second each, with half a second between."""
    start = 24_000 * number
    return Final(f"person:turn:{start}", start, start + 16_000, 16_000, "silence", (value, 3.0))


FINALS = [final(number) for number in range(3)]
RESULT = TurnOutcome("turn", 3, 48_000, (3.0, 3.0))
PUSHED = 72_000
ACCOUNT = Accounting(PUSHED, 48_000, 24_000, 0)


def turn(*calls: list[What], pushed: int = PUSHED, error: TurnError | None = None) -> TurnHistory:
    """A turn over one or more connections, numbered as they must be."""
    history = TurnHistory("client", "turn", pushed, error=error)
    for call, events in enumerate(calls):
        for number, what in enumerate(events):
            received = what.received if isinstance(what, Accounting) else 0
            history.seen.append(Seen(float(call), call, number, received, what))
    return history


def client(*turns: TurnHistory) -> ClientHistory:
    return ClientHistory("client", list(turns), (3, 1, 48_000, (3.0,)))


def good() -> TurnHistory:
    return turn(
        [
            Opened(0, True),
            Interim(FINALS[0].utterance_id),
            FINALS[0],
            Other("PersonalityUpdate"),
            *FINALS[1:],
            RESULT,
            ACCOUNT,
        ]
    )


def resumed() -> TurnHistory:
    """Lost after the first final, resumed at its end."""
    end = FINALS[0].end
    account = Accounting(PUSHED - end, 32_000, PUSHED - end - 32_000, 0)
    return turn([Opened(0, True), FINALS[0]], [Opened(end, False), *FINALS[1:], RESULT, account])


def violations(history: TurnHistory, *, state_survives: bool = True) -> list[Violation]:
    return check([client(history)], {"client": client(good())}, state_survives=state_survives)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert violations(good()) == []
    assert violations(resumed()) == []


def test_a_result_whose_account_was_lost_is_right() -> None:
    history = good()
    history.seen.pop()
    assert violations(history) == []


def _without(what: What) -> Callable[[TurnHistory], None]:
    def change(history: TurnHistory) -> None:
        history.seen = [seen for seen in history.seen if seen.what != what]
        history.seen = [replace(seen, number=number) for number, seen in enumerate(history.seen)]

    return change


def _with(*what: What, at: int) -> Callable[[TurnHistory], None]:
    def change(history: TurnHistory) -> None:
        new = [Seen(0.0, 0, 0, 0, one) for one in what]
        history.seen[at:at] = new
        history.seen = [replace(seen, number=number) for number, seen in enumerate(history.seen)]

    return change


def _instead(old: What, new: What) -> Callable[[TurnHistory], None]:
    def change(history: TurnHistory) -> None:
        history.seen = [replace(seen, what=new) if seen.what == old else seen for seen in history.seen]

    return change


def _fails(error: TurnError) -> Callable[[TurnHistory], None]:
    def change(history: TurnHistory) -> None:
        history.seen = history.seen[:2]
        history.error = error

    return change


def _hangs(history: TurnHistory) -> None:
    history.hung = "an event"


def _vanishes(history: TurnHistory) -> None:
    history.seen = history.seen[:2]


def _skips_a_number(history: TurnHistory) -> None:
    history.seen[3:] = [replace(seen, number=seen.number + 1) for seen in history.seen[3:]]


def _pushes_more(history: TurnHistory) -> None:
    history.pushed += 5


def _pushes_less(history: TurnHistory) -> None:
    history.pushed -= 7


OVERLAPPING = replace(FINALS[1], utterance_id="person:turn:15000", start=15_000, end=20_000)
BEYOND = Final("person:turn:72000", 72_000, 80_000, 8_000, "silence", (3.0, 3.0))


@pytest.mark.parametrize(
    ("change", "kind", "amount"),
    [
        (_without(FINALS[1]), "finals_lost", 1),
        (_fails(LOST), "finals_lost", 3),
        (_with(FINALS[1], at=6), "finals_doubled", 1),
        (_with(OVERLAPPING, at=4), "finals_doubled", 1),
        (_with(final(1, value=4.0), at=6), "finals_changed", 1),
        (_instead(FINALS[1], final(1, value=3.1)), "finals_changed", 1),
        (_instead(FINALS[1], replace(FINALS[1], end=FINALS[1].end + 1)), "finals_changed", 1),
        (_instead(FINALS[2], replace(FINALS[2], reason="half_close")), "finals_changed", 1),
        (_with(BEYOND, at=6), "finals_changed", 1),
        (_without(RESULT), "results_lost", 1),
        (_with(RESULT, at=7), "results_doubled", 1),
        (_instead(RESULT, replace(RESULT, turn_id="next")), "results_doubled", 1),
        (_instead(RESULT, replace(RESULT, utterance_count=2)), "personality_differences", 1),
        (_fails(replace(LOST, code="UNKNOWN", reason="UNKNOWN")), "unknown_status", 1),
        (_fails(replace(LOST, code="INTERNAL", reason="INTERNAL")), "unknown_status", 1),
        (_fails(replace(LOST, kind="InternalError", code="", reason="STREAM_CUT")), "unknown_status", 1),
        (_fails(replace(LOST, kind="RuntimeError", code="", reason="")), "unknown_status", 1),
        (_vanishes, "unknown_status", 1),
        (_hangs, "hangs", 1),
        (_instead(ACCOUNT, replace(ACCOUNT, speech=ACCOUNT.speech - 3)), "samples_unaccounted", 3),
        (_instead(ACCOUNT, replace(ACCOUNT, received=PUSHED - 4, non_speech=23_996)), "samples_unaccounted", 4),
        (_pushes_more, "samples_unaccounted", 5),
        (_pushes_less, "samples_unaccounted", 7),
        (_instead(FINALS[1], Other("a final that was dropped")), "finals_lost", 1),
        (_with(Interim(FINALS[0].utterance_id), at=3), "out_of_order", 1),
        (_with(FINALS[2], at=2), "out_of_order", 2),
        (_with(BEYOND, at=7), "out_of_order", 1),
        (_skips_a_number, "out_of_order", 1),
    ],
)
def test_each_broken_promise_is_found(change: Callable[[TurnHistory], None], kind: str, amount: int) -> None:
    history = good()
    change(history)
    assert kind in PROMISES
    found = [violation for violation in violations(history) if violation.kind == kind]
    assert found, f"{kind} was not noticed"
    assert sum(violation.amount for violation in found) == amount


def test_a_turn_is_accounted_for_over_all_its_connections() -> None:
    history = resumed()
    history.seen[2] = replace(history.seen[2], what=Opened(FINALS[0].end + 160, False))
    assert [(v.kind, v.amount) for v in violations(history)] == [("samples_unaccounted", 160)]
    history.seen[2] = replace(history.seen[2], what=Opened(FINALS[0].end - 160, False))
    assert [(v.kind, v.amount) for v in violations(history)] == [("samples_unaccounted", 160)]


def test_counts_of_a_connection_never_fall() -> None:
    history = good()
    history.seen[2] = replace(history.seen[2], received=320)
    assert [(v.kind, v.amount) for v in violations(history)] == [("samples_unaccounted", 320)]


def test_where_state_is_lost_estimates_may_differ_and_nothing_else() -> None:
    history = good()
    _instead(FINALS[1], final(1, value=3.1))(history)
    _instead(RESULT, replace(RESULT, estimates=(9.1 / 3, 3.0)))(history)
    assert violations(history, state_survives=False) == []
    _instead(FINALS[2], replace(FINALS[2], start=FINALS[2].start + 1))(history)
    assert [violation.kind for violation in violations(history, state_survives=False)] == ["finals_changed"]


@pytest.mark.parametrize(
    "change",
    [{"utterance_count": 2}, {"utterance_count": 0, "speech": 0, "estimates": (None, None)}, {"speech": 47_999},
     {"estimates": (3.1, 3.0)}, {"estimates": (None, None)}],
)  # fmt: skip
def test_a_result_is_of_all_finals_or_says_that_some_are_missing(change: dict[str, Any]) -> None:
    for missing in (0, 1):
        history = good()
        _instead(RESULT, replace(RESULT, **change, missing=missing))(history)
        found = {violation.kind for violation in violations(history, state_survives=False)}
        assert found == (set() if missing else {"results_incomplete"})
        history.hands_over = True
        found = {violation.kind for violation in violations(history, state_survives=False)}
        assert found == {"results_incomplete"}, "a client that handed over what it had misses nothing"


def test_what_the_server_remembers_is_compared() -> None:
    mine, undisturbed = client(good()), {"client": client(good())}
    mine.remembered = (4, 1, 48_000, (3.0,))
    assert [v.kind for v in check([mine], undisturbed, state_survives=True)] == ["personality_differences"]
    assert check([mine], undisturbed, state_survives=False) == []
    mine.hung = "the conversation's state"
    assert [v.kind for v in check([mine], undisturbed, state_survives=False)] == ["hangs"]
    mine.hung, mine.error = None, replace(LOST, code="UNKNOWN")
    assert [v.kind for v in check([mine], undisturbed, state_survives=False)] == ["unknown_status"]


@pytest.mark.parametrize(
    ("code", "reason", "named"),
    [
        ("UNAVAILABLE", "UNAVAILABLE", True),  # the transport's own: the connection was lost
        ("CANCELLED", "CANCELLED", True),
        ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", True),
        ("INTERNAL", "WORKER_FAILED", True),
        ("", "REPLAY_BUFFER_EXCEEDED", True),
        ("INTERNAL", "INTERNAL", False),
        ("UNKNOWN", "SOMETHING", False),
        ("", "UNKNOWN", False),
        ("", "STREAM_CUT", False),
    ],
)
def test_named_errors(code: str, reason: str, named: bool) -> None:
    assert is_named(TurnError(0.0, "KibunError", code, reason, "")) is named
