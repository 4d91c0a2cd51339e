"""When a turn whose connection was lost is tried again, and when it is given up. Times come from the caller."""

from kibun.client.errors import (
    DeadlineError,
    KibunError,
    ResourceExhaustedError,
    UnavailableError,
)
from kibun.client.options import RetryPolicy

# A connection that lasted this long shows that the turn itself does not bring the server down.
STABLE_S = 10.0
# Reasons that mean that the network let nothing through for a while.
_STALLED = {"CONFIG_TIMEOUT", "SLOW_CONSUMER"}


class RetryBudget:
    """Decides after each failed attempt of one turn how long to pause, or that the turn has failed.

    There are two bounds. A turn that is accepted and lost again without a new final may itself be what brings the
    server down: it is tried `RetryPolicy.max_attempts` times in a row. A server that is absent, loading, draining or
    full is waited for, up to `give_up_after_s`, if it was there before or sends a time to wait; a server that was
    never reached is tried `max_attempts` times.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0  # in a row; sets the pause before the next attempt
        self._losses = 0  # of accepted attempts, since the last final
        self._contacts = 0  # attempts to reach a server that was never there
        self._missing_since: float | None = None

    @property
    def enabled(self) -> bool:
        """Whether anything is ever tried again."""
        return self._policy.max_attempts > 1

    def reset(self) -> None:
        """Starts both bounds anew: a new final has come."""
        self._failures = self._losses = 0
        self._missing_since = None

    def pause_s(
        self, error: KibunError, *, now: float, accepted_at: float | None, reached_before: bool
    ) -> float | None:
        """Returns the seconds to pause before the next attempt, or None where `error` is to be raised.

        `now` and `accepted_at` are seconds on the same clock; `accepted_at` is when the server accepted the attempt
        that failed, None if it did not. `reached_before`: it had accepted an earlier one, of this turn or another.
        """
        if not self.enabled:
            return None
        if accepted_at is not None:
            self._missing_since, self._contacts = now, 0
            if now - accepted_at >= STABLE_S:
                self._failures = self._losses = 0
            self._losses += 1
        elif reached_before or error.retry_after_s is not None:
            self._missing_since = now if self._missing_since is None else self._missing_since
            if now - self._missing_since >= self._policy.give_up_after_s:
                return None
        else:
            self._contacts += 1
        if max(self._losses, self._contacts) >= self._policy.max_attempts:
            return None
        backoff_s = self._policy.backoff_s(self._failures)
        self._failures += 1
        return max(backoff_s, min(error.retry_after_s or 0.0, self._policy.max_backoff_s))


def may_retry(error: KibunError, *, accepted: bool, resumes: bool) -> bool:
    """Whether an attempt that failed with `error` may be repeated, as the turn itself was not at fault.

    `accepted`: the server had accepted the attempt; `resumes`: it had accepted an earlier one of this turn.
    """
    if isinstance(error, UnavailableError):
        return True
    if isinstance(error, ResourceExhaustedError | DeadlineError) and error.reason in _STALLED:
        return True
    # The server is full, perhaps with the very stream whose connection was lost. A new turn is refused instead: its
    # caller has lost nothing yet, and decides.
    return isinstance(error, ResourceExhaustedError) and resumes and not accepted and error.retry_after_s is not None
