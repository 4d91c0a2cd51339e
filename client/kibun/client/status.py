"""gRPC failures -> `KibunError`, with the details that the server packed into google.rpc.Status."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from kibun.client.channel import Credentials
from kibun.client.errors import (
    AbortedError,
    AlreadyExistsError,
    AuthenticationError,
    DeadlineError,
    ErrorDetails,
    FailedPreconditionError,
    InternalError,
    InvalidRequestError,
    KibunError,
    NotFoundError,
    ResourceExhaustedError,
    ServerTooOldError,
    UnavailableError,
)
from kibun.client.estimates import seconds
from kibun.client.explain import explain_unauthenticated, explain_unavailable

_NONE = Credentials()
_DETAILS_KEY = "grpc-status-details-bin"

_CLASSES: dict[grpc.StatusCode, type[KibunError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    # Not cancelled by this side, which would not look at the status: the server stops, or a proxy cut the stream.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: ServerTooOldError,
}


def error_from_rpc(
    error: grpc.RpcError, target: str, credentials: Credentials = _NONE, *, request_id: str | None = None
) -> KibunError:
    """The typed error for a failed call to `target` with these credentials.

    `request_id` is what the stream already knows; an id within the error itself comes first.
    """
    code: grpc.StatusCode = error.code()
    text: str = error.details() or ""
    packed = _packed_status(error)
    details = _details(code, packed, request_id)
    cls = _CLASSES.get(code, InternalError)
    if cls is ServerTooOldError:
        return ServerTooOldError(
            f"{target} does not know this call: upgrade the server to a kibun that does, or check that a kibun "
            "server is listening there",
            ErrorDetails(reason=ServerTooOldError.default_reason, code=code.name, request_id=request_id),
        )
    if packed is None and code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        # From gRPC itself, on either side: retrying does not help.
        return InvalidRequestError(
            f"a message is larger than {target} takes: stream long audio, in chunks ({text})",
            ErrorDetails(reason="MESSAGE_TOO_LARGE", code=code.name, request_id=request_id),
        )
    if packed is None and code is grpc.StatusCode.UNAVAILABLE:
        text = explain_unavailable(text, target, credentials)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        text = explain_unauthenticated(text, target, credentials)
    return cls(text or f"the call failed with {code.name}", details)


def _packed_status(error: grpc.RpcError) -> status_pb2.Status | None:
    metadata: Iterable[tuple[str, Any]] = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS_KEY:
            with suppress(DecodeError):  # damaged on its way: what is left is the bare status
                return status_pb2.Status.FromString(value)
    return None


def _details(code: grpc.StatusCode, packed: status_pb2.Status | None, request_id: str | None) -> ErrorDetails:
    values: dict[str, Any] = {"reason": code.name, "code": code.name, "request_id": request_id}
    if packed is not None:
        for detail in packed.details:
            for message_type, read in _READERS.items():
                if detail.Is(message_type.DESCRIPTOR):
                    message = message_type()
                    detail.Unpack(message)
                    values.update(read(message))
    return ErrorDetails(**values)


def _read_error_info(message: error_details_pb2.ErrorInfo) -> dict[str, Any]:
    values: dict[str, Any] = {"reason": message.reason, "metadata": dict(message.metadata)}
    if message.metadata.get("request_id"):
        values["request_id"] = message.metadata["request_id"]
    return values


_READERS: dict[Any, Callable[[Any], dict[str, Any]]] = {
    error_details_pb2.ErrorInfo: _read_error_info,
    error_details_pb2.RequestInfo: lambda message: {"request_id": message.request_id},
    error_details_pb2.BadRequest: lambda message: {
        "fields": {violation.field: violation.description for violation in message.field_violations}
    },
    error_details_pb2.RetryInfo: lambda message: {"retry_after_s": seconds(message.retry_delay)},
    error_details_pb2.QuotaFailure: lambda message: {
        "quotas": {violation.subject: violation.description for violation in message.violations}
    },
}
