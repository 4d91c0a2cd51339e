"""Failures to `google.rpc.Status`."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from kibun.server.errors import Failure

DOMAIN = "kibun"


def status_of(failure: Failure, request_id: str) -> status_pb2.Status:
    """Returns the status, with ErrorInfo, and BadRequest, RetryInfo and QuotaFailure where they apply."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata={"request_id": request_id})
    ]
    if failure.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=failure.field, description=failure.message, reason=failure.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if failure.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(failure.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if failure.quota is not None:
        exceeded = error_details_pb2.QuotaFailure.Violation(subject=failure.quota, description=failure.message)
        details.append(error_details_pb2.QuotaFailure(violations=[exceeded]))
    status = status_pb2.Status(code=code_pb2.Code.Value(failure.kind.value), message=failure.message)
    for detail in details:
        status.details.add().Pack(detail)
    return status
