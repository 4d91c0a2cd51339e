"""Admits calls of the service: identifies the caller, checks its limits, and turns failures into statuses.

An interceptor, so that nothing of a call is read before it is admitted. Of other services (health, reflection) it only
checks the metadata and how many calls a connection has open.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from grpc._cython import cygrpc
from grpc_status import rpc_status

from kibun.server.api.auth import NOT_ACCEPTED, TENANT, Authenticator, unauthenticated
from kibun.server.api.connections import Connections
from kibun.server.api.quota import Account, Quotas
from kibun.server.api.status import status_of
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.inference.backend import BackendError
from kibun.server.observability.telemetry import WATCH, CallTelemetry, Telemetry

MAX_METADATA_BYTES = 16_384
MAX_METADATA_ENTRIES = 64
ENTRY_OVERHEAD_BYTES = 32
MAX_HONEST_BYTES = 131_072  # gRPC lets no peer that acknowledges SETTINGS send more than its 65,536 and one entry
MAX_HONEST_ENTRIES = MAX_HONEST_BYTES // ENTRY_OVERHEAD_BYTES + 1
STREAMS = ("StreamingAnalyze", "Analyze")  # methods that count as a stream
_PSEUDONYM = "certificate-"  # begins the tenants of certificates whose own name cannot be a tenant's

Context: TypeAlias = grpc.aio.ServicerContext
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Handler: TypeAlias = Callable[[AsyncIterator[Any], Context], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Call:
    """A call in progress."""

    method: str
    request_id: str
    telemetry: CallTelemetry
    tenant: str = ""
    account: Account | None = None  # of a call that counts as a stream
    token: str | None = None  # its digest
    task: asyncio.Task[Any] | None = None
    ended: Failure | None = None  # set where the server ends the call from outside
    aborts: bool = False  # its status is being sent


_call: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    """Returns the call that this code runs for. Raises LookupError outside of one."""
    return _call.get()


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Guards the methods of one service; all of them must be handlers of kind stream-stream.

    `check(stream)` raises Failure while the service admits no calls, or none that count as a stream.
    """

    def __init__(
        self,
        service: str,
        authenticator: Authenticator,
        quotas: Quotas,
        check: Callable[[bool], None],
        telemetry: Telemetry | None = None,
    ) -> None:
        self._prefix = f"/{service}/"
        self._authenticator = authenticator
        self._quotas = quotas
        self._check = check
        self._telemetry = telemetry or Telemetry()
        self.connections = Connections(self._telemetry.metrics.connection_cut)
        self._calls: set[Call] = set()

    def watch_calls(self) -> None:
        """Looks at each call of this process from now on before gRPC's Python layer does, which has no place for that.

        What is replaced is private to grpcio. With a version that has it no more, for which a test fails, metadata that
        is too large ends its connection only once Python objects have been made of it.
        """
        handle = getattr(cygrpc, "_handle_rpc", None)
        if handle is None:
            log.warning("calls cannot be looked at early: this grpcio is not one that kibun was tested with")
            return

        async def handle_unless_cut(*arguments: Any) -> None:
            state = next(argument for argument in arguments if isinstance(argument, cygrpc.RPCState))
            if await self.connections.admits(cygrpc._ServicerContext(state, None, None, None).peer()):
                await handle(*arguments)

        cygrpc._handle_rpc = handle_unless_cut

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        metadata: Metadata = handler_call_details.invocation_metadata or ()  # converted anew wherever it is asked for
        if handler is None and _size(metadata) <= MAX_METADATA_BYTES:
            return handler
        if handler is not None and method.startswith(self._prefix):
            handle = self._guarded(method.removeprefix(self._prefix), handler.stream_stream, metadata)
        else:
            handle = self._watched(handler and handler.stream_stream, metadata)
        return grpc.stream_stream_rpc_method_handler(
            handle,
            request_deserializer=handler and handler.request_deserializer,
            response_serializer=handler and handler.response_serializer,
        )

    def refresh(self) -> None:
        """Applies reloaded tokens to open calls."""
        self._quotas.refresh()
        self.end_revoked()

    def end_revoked(self) -> None:
        """Ends the calls whose token has expired, was removed from the file or now belongs to another tenant."""
        for call in self._calls:
            if call.token is not None and not self._authenticator.valid(call.token, call.tenant):
                _end(call, unauthenticated(NOT_ACCEPTED))

    async def end_all(self, failure: Failure, *, within_s: float) -> None:
        """Ends every call that has not ended by itself within that time."""
        tasks = [call.task for call in self._calls if call.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        for call in self._calls:
            _end(call, failure)

    def _watched(self, handler: Any, metadata: Metadata) -> Handler:
        """Guards a method of another service, whose callers need not say who they are."""

        async def handle(requests: AsyncIterator[Any], context: Context) -> None:
            try:
                with self.connections.stranger(context.peer()):
                    self._check_size(metadata, context)
                    answers = handler(requests, context)
                    if inspect.isawaitable(answers):
                        await answers
                    else:
                        async for answer in answers:
                            await context.write(answer)
            except Failure as failure:
                await context.abort(grpc.StatusCode[failure.kind.value], failure.message)

        return handle

    def _guarded(self, method: str, handler: Handler, metadata: Metadata) -> Handler:
        async def handle(requests: AsyncIterator[Any], context: Context) -> None:
            request_id = f"request-{uuid.uuid4().hex[:16]}"
            call = Call(method, request_id, self._telemetry.begin(method, request_id), task=asyncio.current_task())
            _call.set(call)
            self._calls.add(call)
            try:
                await self._admit(call, handler, metadata, requests, context)
                call.telemetry.end("OK")
            except asyncio.CancelledError:
                if call.ended is None or call.task is None:
                    raise
                call.task.uncancel()
                await _abort(context, call.ended, call)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, _failure(error, call.request_id), call)
            finally:
                self._calls.discard(call)
                call.telemetry.end("CANCELLED")  # does nothing if the call has ended otherwise

        return handle

    async def _admit(
        self, call: Call, handler: Handler, metadata: Metadata, requests: AsyncIterator[Any], context: Context
    ) -> None:
        stream = call.method in STREAMS
        peer = context.peer()
        with ExitStack() as stack:
            try:
                self._check_size(metadata, context)
                self._identify(call, metadata, context)
            except Failure:
                stack.enter_context(self.connections.stranger(peer))
                await self.connections.failed(peer)
                raise
            self.connections.welcome(peer)
            self._telemetry.trace(call.telemetry, _header(metadata, "traceparent"))
            self._check(stream)
            if stream:
                call.account = stack.enter_context(self._quotas.stream(call.tenant))
            elif call.method == WATCH:
                stack.enter_context(self._quotas.watch(call.tenant))
            else:
                stack.enter_context(self._quotas.call(call.tenant))
            await handler(requests, context)

    def _check_size(self, metadata: Metadata, context: Context) -> None:
        """Raises Failure for too much metadata, and cuts the connection if no honest peer can send that."""
        size = _size(metadata)
        if size > MAX_METADATA_BYTES or len(metadata) > MAX_METADATA_ENTRIES:
            if size > MAX_HONEST_BYTES:
                self.connections.cut(context.peer(), "METADATA_TOO_LARGE")
            text = f"metadata may hold {MAX_METADATA_ENTRIES} entries and {MAX_METADATA_BYTES} bytes in all; send less"
            raise invalid("METADATA_TOO_LARGE", "metadata", text)

    def _identify(self, call: Call, metadata: Metadata, context: Context) -> None:
        """Sets the call's token and tenant. Raises Failure without a valid token."""
        if not self._authenticator.open and sum(key == "authorization" for key, _ in metadata) > 1:
            raise unauthenticated("more than one 'authorization' came: send one, with one token")
        call.token = self._authenticator.digest(_header(metadata, "authorization"))
        call.tenant = self._authenticator.tenant(call.token)
        if self._authenticator.open:
            call.tenant = _certified_tenant(context) or call.tenant
        # A token file's names are the operator's; a certificate's may be a person's.
        call.telemetry.tenant = call.tenant if call.token or not call.tenant else _pseudonym(call.tenant.encode())


def _end(call: Call, failure: Failure) -> None:
    if call.ended is None and not call.aborts and call.task is not None:
        call.ended = failure
        call.task.cancel()


def _size(metadata: Metadata) -> int:
    """As HTTP/2 counts (RFC 9113, 6.5.2); no further than to what no honest peer sends."""
    return sum(len(key) + len(value) + ENTRY_OVERHEAD_BYTES for key, value in metadata[:MAX_HONEST_ENTRIES])


def _header(metadata: Metadata, name: str) -> str | None:
    value = dict(metadata).get(name)
    return value if isinstance(value, str) else None


def _certified_tenant(context: Context) -> str:
    """Returns the tenant by the client certificate's common name, or else alternative name; "" without a certificate.

    Raises Failure UNAUTHENTICATED for a name with a NUL in it: gRPC cuts "robot-1\\0x" to "robot-1".
    """
    properties = context.auth_context() or {}
    common = next(filter(None, properties.get("x509_common_name", ())), b"")
    name = common or next(filter(None, properties.get("x509_subject_alternative_name", ())), b"")
    cut = any(rb"\00" in subject for subject in properties.get("x509_subject", ()))  # as RFC 2253 writes a NUL
    if name and not common:
        certificates = (pem.decode("ascii") for pem in properties.get("x509_pem_cert", ()))
        cut |= any(name + b"\0" in ssl.PEM_cert_to_DER_cert(pem) for pem in certificates)
    if cut:
        raise unauthenticated("the name in the client certificate holds a NUL: use another certificate")
    text = name.decode("ascii", "replace")
    # A name that cannot be a tenant's gets a pseudonym, which no other certificate can claim by its name.
    plain = TENANT.match(text) and not text.startswith(_PSEUDONYM)
    return text if plain else _pseudonym(name) if name else ""


def _pseudonym(name: bytes) -> str:
    return f"{_PSEUDONYM}{hashlib.sha256(name).hexdigest()[:32]}"


def _failure(error: Exception, request_id: str) -> Failure:
    if isinstance(error, Failure):
        return error
    reason = error.reason if isinstance(error, BackendError) else "INTERNAL"
    log.error("a call failed", extra={"request_id": request_id, "reason": reason}, exc_info=error)
    text = f"the server failed; try again, and if that fails too, look for {request_id} in its log"
    return Failure(Kind.INTERNAL, reason, text)


async def _abort(context: Context, failure: Failure, call: Call) -> None:
    """Ends the call with the failure's status, by an exception."""
    call.aborts = True
    call.telemetry.end(failure.kind.value, failure.reason)
    status = rpc_status.to_status(status_of(failure, call.request_id))
    await context.abort(status.code, status.details, status.trailing_metadata)
