"""When a turn whose connection was lost tries again, and when it gives up. No clock: times come from the caller."""

from kibun.client.errors import (
    DeadlineError,
    KibunError,
    ResourceExhaustedError,
    UnavailableError,
)
from kibun.client.options import RetryPolicy

# A connection that stood this long is no sign of a server that fails over this turn again and again.
STABLE_S = 10.0
# Errors that stand for a network which let nothing through for a while.
_STALLED = {"CONFIG_TIMEOUT", "SLOW_CONSUMER"}


class Patience:
    """Two bounds, for two ways to fail.

    A turn that is accepted and lost again, without a new final, may be what brings the server down: that many times in
    a row as `RetryPolicy.max_attempts` says. A server that is not there, is loading, draining or full is waited for:
    `give_up_after_s`, if it was there before or says itself when to come back. At first contact, attempts count.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0  # in a row; sets the pause before the next attempt
        self._losses = 0  # of accepted attempts, since the last final
        self._contacts = 0  # attempts to reach a server that was never there
        self._missing_since: float | None = None

    def progressed(self) -> None:
        """A new final has come."""
        self._failures = self._losses = 0
        self._missing_since = None

    def pause_s(self, error: KibunError, *, now: float, accepted_at: float | None, known: bool) -> float | None:
        """Seconds to wait before the next attempt after one that failed with `error`; None: raise it.

        `accepted_at`: when the server had accepted the attempt, if it had; `known`: the server had accepted an earlier
        one, of this turn or another.
        """
        if self._policy.max_attempts <= 1:
            return None
        if accepted_at is not None:
            self._missing_since, self._contacts = now, 0
            if now - accepted_at >= STABLE_S:
                self._failures = self._losses = 0
            self._losses += 1
        elif known or error.retry_after_s is not None:
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
    """Whether an attempt that failed like this says nothing against the turn itself.

    `accepted`: the server had accepted the attempt; `resumes`: it had accepted an earlier one of this turn.
    """
    if isinstance(error, UnavailableError):
        return True
    if isinstance(error, ResourceExhaustedError | DeadlineError) and error.reason in _STALLED:
        return True
    # Full, perhaps with the very stream whose connection was lost. A turn that begins is refused instead: its caller
    # decides, who has lost nothing yet.
    return isinstance(error, ResourceExhaustedError) and resumes and not accepted and error.retry_after_s is not None
