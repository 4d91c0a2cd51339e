"""What the SDK raises. Nothing here imports grpc, so that the command line can name these classes cheaply.

Every failure is a `KibunError`: those that the server reported carry its reason, and those that the SDK found itself
(a bad address, a chunk of the wrong type, a replay buffer too small) have a reason of their own and no code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ErrorDetails:
    """Everything a server reports about a failure besides its class and text."""

    # UPPER_SNAKE_CASE, stable: what a program should branch on (google.rpc.ErrorInfo.reason).
    reason: str
    # Name of the gRPC status code, e.g. "INVALID_ARGUMENT"; "" when the SDK raised the error itself.
    code: str = ""
    # Id to quote to the server's operator.
    request_id: str | None = None
    # Seconds after which another attempt makes sense (google.rpc.RetryInfo).
    retry_after_s: float | None = None
    # Field of the request -> what is allowed (google.rpc.BadRequest).
    fields: Mapping[str, str] = field(default_factory=dict)
    # Subject -> which quota was exceeded (google.rpc.QuotaFailure).
    quotas: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


class KibunError(Exception):
    """Base of all errors of the SDK; `str()` gives the message with its reason and request id."""

    # Used when an error is raised by the SDK without further details.
    default_reason = "UNKNOWN"

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: ErrorDetails = details or ErrorDetails(reason=self.default_reason)

    @property
    def reason(self) -> str:
        """Stable name of the failure, e.g. "SAMPLE_RATE_UNSUPPORTED"."""
        return self.details.reason

    @property
    def code(self) -> str:
        """Name of the gRPC status code; "" when the SDK raised this error itself."""
        return self.details.code

    @property
    def request_id(self) -> str | None:
        """Id of the call in the server's log, where the server gave one."""
        return self.details.request_id

    @property
    def retry_after_s(self) -> float | None:
        """Seconds to wait before another attempt, where the server gave them."""
        return self.details.retry_after_s

    @property
    def fields(self) -> Mapping[str, str]:
        """Fields of the request that were wrong, each with what is allowed."""
        return self.details.fields

    @property
    def field(self) -> str | None:
        """The first of `fields`, or None."""
        return next(iter(self.details.fields), None)

    def __str__(self) -> str:
        notes = [note for note in (self.reason, self.request_id and f"request {self.request_id}") if note]
        return f"{self.message} [{', '.join(notes)}]"


class InvalidRequestError(KibunError):
    """INVALID_ARGUMENT, OUT_OF_RANGE, or a request that the SDK refused to send. Fix it; a retry cannot help."""

    default_reason = "INVALID_REQUEST"


class InputError(InvalidRequestError):
    """A file or an option that names what to analyse cannot be used; the message names it, its line, and what is
    allowed. Nothing was sent.
    """

    default_reason = "INVALID_INPUT"

    def __str__(self) -> str:
        return self.message  # which says it all


class NotFoundError(KibunError):
    """Unknown model or conversation."""


class AlreadyExistsError(KibunError):
    """The turn was finished before."""


class FailedPreconditionError(KibunError):
    """The conversation is completed, or bound to another model."""


class AbortedError(KibunError):
    """A newer stream took over this turn."""


class ResourceExhaustedError(KibunError):
    """The server is full or a quota is used up; see `retry_after_s` and `details.quotas`."""


class AuthenticationError(KibunError):
    """Missing or wrong credentials (UNAUTHENTICATED, PERMISSION_DENIED)."""

    default_reason = "UNAUTHENTICATED"


class DeadlineError(KibunError):
    """The server or this call ran out of time."""

    default_reason = "DEADLINE_EXCEEDED"


class UnavailableError(KibunError):
    """The server cannot be reached, is loading or draining, or the connection was lost too often."""

    default_reason = "UNAVAILABLE"


class InternalError(KibunError):
    """The server failed; quote `request_id` to its operator."""


class ServerTooOldError(KibunError):
    """The server does not know this call."""

    default_reason = "SERVER_TOO_OLD"


class ReplayBufferExceededError(KibunError):
    """The connection was lost while more audio lacked a final than the turn keeps (`RetryPolicy.replay_limit_s`)."""

    default_reason = "REPLAY_BUFFER_EXCEEDED"


class TurnEndedError(KibunError):
    """Audio was pushed to a turn or stream that has already ended."""

    default_reason = "TURN_ENDED"


class MisuseError(KibunError, RuntimeError):
    """A client, turn or stream was used in a way that cannot work; the text says what to do instead.

    Reasons: NOT_OPEN, USED_TWICE, CLIENT_CLOSED, SOURCE_RUNNING, READ_TWICE, WRONG_EVENT_LOOP, FORKED.
    """

    default_reason = "USAGE"


class WrongTypeError(InvalidRequestError, TypeError):
    """A value of another type than what is documented, e.g. a string for a number; `field` names it."""

    default_reason = "WRONG_TYPE"


class SourceError(KibunError):
    """What `feed` read ended in an exception that cannot be passed on, such as CancelledError; it is the cause."""

    default_reason = "SOURCE_FAILED"


class AudioFileError(InvalidRequestError):
    """A recording cannot be read, or not whole.

    Reasons: NO_SUCH_FILE, NOT_A_FILE, NOT_PERMITTED, FILE_UNREADABLE, NO_AUDIO, FORMAT_UNSUPPORTED, FORMAT_UNKNOWN,
    FILE_DAMAGED, FILE_INCOMPLETE, SAMPLE_RATE_UNSUPPORTED, NO_CHANNEL, NON_FINITE_AUDIO, AUDIO_OUT_OF_RANGE.
    """

    default_reason = "FILE_UNREADABLE"

    def __init__(self, name: str, problem: str, details: ErrorDetails | None = None) -> None:
        super().__init__(f"{name} {problem}", details)
        # What a copy is made with, e.g. on its way to another process.
        self.args: tuple[Any, ...] = (name, problem, details)
        # The message without the file's name.
        self.problem = problem
