"""The errors that clients get, as one exception with a kind, a reason and what to do about it.

`api.status` turns a `Failure` into a gRPC status; no other module deals with status codes.
"""

from __future__ import annotations

from enum import Enum

RETRY_AFTER_S = 1.0  # where it is not known when trying again will succeed


class Kind(Enum):
    """What went wrong, by names of google.rpc.Code."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    ABORTED = "ABORTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    INTERNAL = "INTERNAL"


class Failure(Exception):
    """Ends a stream or a call.

    Args:
        reason: stable, UPPER_SNAKE_CASE.
        message: what is allowed and what to do.
        field: the request's field at fault, for INVALID_ARGUMENT.
        retry_after_s: seconds to wait, where trying again makes sense.
        quota: the limit that was reached.
    """

    def __init__(
        self,
        kind: Kind,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        quota: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.quota = quota


class StartError(Exception):
    """The server cannot start; the text names the file, port or option and the fix."""


def invalid(reason: str, field: str, message: str) -> Failure:
    """Returns an INVALID_ARGUMENT that names the field."""
    return Failure(Kind.INVALID_ARGUMENT, reason, message, field=field)
