"""Frames of a socket <-> the contract's messages, as proto3 JSON. There is no schema here but the contract's own."""

import json
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from kibun.client.errors import (
    DeadlineError,
    ErrorDetails,
    InternalError,
    InvalidRequestError,
    KibunError,
    ResourceExhaustedError,
    UnavailableError,
)

M = TypeVar("M", bound=Message)

# Close codes of RFC 6455 and IANA's registry.
CLOSE_NOT_JSON = 1007
CLOSE_REFUSED = 1008
CLOSE_FAILED = 1011
CLOSE_TRY_LATER = 1013
# A close frame has room for so many bytes of reason.
_MAX_CLOSE_REASON = 123

# What the SDK found by itself has no gRPC code; these are the codes that a server would have used.
_CODES: dict[type[KibunError], str] = {
    InvalidRequestError: "INVALID_ARGUMENT",
    UnavailableError: "UNAVAILABLE",
    DeadlineError: "DEADLINE_EXCEEDED",
    ResourceExhaustedError: "RESOURCE_EXHAUSTED",
}


class NotJsonError(InvalidRequestError):
    """A text frame is no JSON object, or not the contract's message."""

    default_reason = "NOT_JSON"


def refusal(reason: str, field: str, message: str) -> InvalidRequestError:
    """An error of who is at the socket's other end."""
    return InvalidRequestError(message, ErrorDetails(reason=reason, code="INVALID_ARGUMENT", fields={field: message}))


def read_object(text: str) -> dict[str, Any]:
    """The JSON object of a text frame. Raises NotJsonError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets, thousands deep
        raise NotJsonError(f"a text frame must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise NotJsonError(f"a text frame must be a JSON object, not {type(value).__name__}")
    return value


def read_message(value: dict[str, Any], message: M) -> M:
    """`message`, filled from proto3 JSON; fields by either of their names. Raises NotJsonError."""
    try:
        return json_format.ParseDict(value, message)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # Only the first is documented, but a list where an object belongs raises others.
        name = message.DESCRIPTOR.name
        details = ErrorDetails(reason="NOT_OF_THE_CONTRACT", code="INVALID_ARGUMENT")
        raise NotJsonError(f"a text frame must be a {name} of kibun.v1 as JSON: {error}", details) from None


def text_of(message: Message) -> str:
    """A message as proto3 JSON, with the contract's own names of fields; those that are unset are left out."""
    return json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True), separators=(",", ":"))


def error_text(error: KibunError) -> str:
    """The last text frame of a socket that is closed for `error`."""
    code = error.code or next((code for kind, code in _CODES.items() if isinstance(error, kind)), "INTERNAL")
    content = {"code": code, "reason": error.reason, "message": error.message, "field": error.field}
    return json.dumps({"error": content})


def close_code(error: KibunError) -> int:
    """The code that a socket is closed with for `error`."""
    if isinstance(error, NotJsonError):
        return CLOSE_NOT_JSON
    if isinstance(error, UnavailableError | ResourceExhaustedError):
        return CLOSE_TRY_LATER
    return CLOSE_FAILED if isinstance(error, InternalError) else CLOSE_REFUSED


def close_reason(error: KibunError) -> str:
    """The stable reason, as far as a close frame has room."""
    return error.reason.encode()[:_MAX_CLOSE_REASON].decode(errors="ignore")
