"""When a turn tries again after a loss, and when it gives up."""

import pytest

from kibun.client import (
    DeadlineError,
    InternalError,
    KibunError,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)
from kibun.client.errors import ErrorDetails
from kibun.client.retry import STABLE_S, RetryBudget, may_retry

POLICY = RetryPolicy(max_attempts=3, give_up_after_s=20, initial_backoff_s=0.5, max_backoff_s=4)
LOST = UnavailableError("the connection was lost")
LOADING = UnavailableError("loading", ErrorDetails("LOADING", retry_after_s=1.0))


def pauses(
    policy: RetryPolicy, error: KibunError, *, every_s: float, lived_s: float | None, reached_before: bool
) -> list[float]:
    """Pauses until it gives up, a minute at most; an attempt each `every_s`, accepted ones live for `lived_s`."""
    budget = RetryBudget(policy)
    found: list[float] = []
    for number in range(round(60 / every_s)):
        now = number * every_s
        accepted_at = None if lived_s is None else now - lived_s
        pause = budget.pause_s(error, now=now, accepted_at=accepted_at, reached_before=reached_before)
        if pause is None:
            return found
        found.append(pause)
    return found


def test_a_turn_that_is_accepted_and_lost_again_and_again_is_given_up() -> None:
    assert pauses(POLICY, LOST, every_s=1, lived_s=0.5, reached_before=True) == [0.5, 1.0]


def test_connections_that_stood_for_a_while_are_not_counted() -> None:
    assert pauses(POLICY, LOST, every_s=30, lived_s=STABLE_S, reached_before=True) == [0.5, 0.5]


def test_a_server_that_was_there_before_is_waited_for() -> None:
    assert pauses(POLICY, LOST, every_s=1, lived_s=None, reached_before=True) == [0.5, 1.0, 2.0, *[4.0] * 17]


def test_a_server_that_says_when_to_come_back_is_waited_for() -> None:
    assert pauses(POLICY, LOADING, every_s=5, lived_s=None, reached_before=False) == [1.0, 1.0, 2.0, 4.0]


def test_at_first_contact_attempts_count() -> None:
    assert pauses(POLICY, LOST, every_s=1, lived_s=None, reached_before=False) == [0.5, 1.0]


def test_one_attempt_means_never_again() -> None:
    for reached_before in (False, True):
        assert (
            pauses(RetryPolicy(max_attempts=1), LOADING, every_s=1, lived_s=None, reached_before=reached_before) == []
        )


def test_the_wait_for_a_server_begins_anew_after_it_accepted() -> None:
    budget = RetryBudget(POLICY)
    for now, accepted_at in ((0.0, None), (15.0, None), (19.0, 18.0), (38.0, None)):
        assert budget.pause_s(LOST, now=now, accepted_at=accepted_at, reached_before=True) is not None
    assert budget.pause_s(LOST, now=39.0, accepted_at=None, reached_before=True) is None


def test_what_came_before_the_first_contact_does_not_count_afterwards() -> None:
    budget = RetryBudget(POLICY)
    for now in (0.0, 1.0):
        assert budget.pause_s(LOST, now=now, accepted_at=None, reached_before=False) is not None
    for now in (3.0, 5.0):
        assert budget.pause_s(LOST, now=now, accepted_at=now - 1, reached_before=True) is not None
    assert budget.pause_s(LOST, now=7.0, accepted_at=6.0, reached_before=True) is None


def test_a_new_final_makes_everything_start_again() -> None:
    budget = RetryBudget(POLICY)
    for _ in range(10):
        assert budget.pause_s(LOST, now=1.0, accepted_at=0.0, reached_before=True) == 0.5
        assert budget.pause_s(LOST, now=2.0, accepted_at=1.5, reached_before=True) == 1.0
        budget.reset()


@pytest.mark.parametrize(
    ("error", "accepted", "resumes", "retried"),
    [
        (LOST, False, False, True),
        (LOST, True, True, True),
        (InternalError("", ErrorDetails("WORKER_FAILED")), True, True, False),
        (ResourceExhaustedError("", ErrorDetails("TOO_MANY_STREAMS", retry_after_s=1)), False, False, False),
        (ResourceExhaustedError("", ErrorDetails("TOO_MANY_STREAMS", retry_after_s=1)), False, True, True),
        (ResourceExhaustedError("", ErrorDetails("TOO_MANY_STREAMS")), False, True, False),
        (ResourceExhaustedError("", ErrorDetails("AUDIO_BACKLOG", retry_after_s=30)), True, True, False),
        (ResourceExhaustedError("", ErrorDetails("SLOW_CONSUMER", retry_after_s=1)), True, False, True),
        (DeadlineError("", ErrorDetails("CONFIG_TIMEOUT")), False, False, True),
        (DeadlineError("", ErrorDetails("IDLE_TIMEOUT")), True, True, False),
    ],
)
def test_what_is_tried_again(error: KibunError, accepted: bool, resumes: bool, retried: bool) -> None:
    assert may_retry(error, accepted=accepted, resumes=resumes) is retried
