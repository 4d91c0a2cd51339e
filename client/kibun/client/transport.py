"""The one place of the SDK that talks gRPC: calls with metadata on them, failures as typed errors."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

import grpc

from kibun.client import forking
from kibun.client.channel import Credentials, call_metadata, check_connection, open_channel
from kibun.client.errors import DeadlineError, ErrorDetails, MisuseError
from kibun.client.explain import explain_deadline
from kibun.client.status import error_from_rpc
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub

R = TypeVar("R")

_NONE = Credentials()
# grpc.aio writes this over the server's own status when a write fails because the server has just ended the stream.
_MASKED_DETAILS = "Internal error from Core"
_UNMASK_WAIT_S = 1.0
_UNMASK_POLL_S = 0.01
# gRPC takes a time that is far away for one that is past.
_LONGEST_CALL_S = 1e8
# For gRPC to hand over what its calls ended with, and so to let go of them.
_SETTLE_S = 0.02
# For the connection of another event loop to be closed there; that loop may end at any moment.
_CLOSE_ELSEWHERE_S = 1.0


class OpenStream(Protocol):
    """A stream that ends with an error when its connection is closed, or pauses until there is another."""

    def fail(self, error: BaseException) -> None: ...

    @property
    def can_pause(self) -> bool: ...

    async def pause(self) -> None: ...

    def resume(self) -> None: ...


class _Connection:
    """What belongs to one event loop: its channel, and the streams that are open there."""

    def __init__(self, target: str, credentials: Credentials) -> None:
        forking.grpc_is_used()
        self.channel = open_channel(target, credentials)
        self.stub = SpeechAnalysisServiceStub(self.channel)
        self.streams: WeakSet[OpenStream] = WeakSet()

    async def close(self) -> None:
        streams = list(self.streams)
        for stream in streams:
            stream.fail(client_closed())
        await self.channel.close()
        if streams:  # otherwise, where this loop ends now, gRPC reports that in another one, with a traceback
            await asyncio.sleep(_SETTLE_S)


class Transport:
    """Connections to one server: one for each event loop that uses it, opened by its first call.

    `timeout_s` is how long a stream may take to open, attempts and pauses together; None: no such limit.
    """

    def __init__(self, target: str, credentials: Credentials, timeout_s: float | None) -> None:
        check_connection(target, credentials)
        self.target = target
        self.timeout_s = timeout_s
        # A stream was accepted over this channel: there is a server, though it may be gone for a while.
        self.was_accepted = False
        self.closed = False
        self._credentials = credentials
        self._metadata = call_metadata(credentials)
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}
        self._lock = threading.Lock()
        self._calls = 0  # under way
        self._paused: list[OpenStream] = []
        forking.watch(self)

    @property
    def stub(self) -> SpeechAnalysisServiceStub:
        """The service, as the running event loop reaches it. Raises MisuseError."""
        return self._connection().stub

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel of the running event loop. Raises MisuseError."""
        return self._connection().channel

    def add_stream(self, stream: OpenStream) -> None:
        """Lets `stream` fail when its connection is closed. Raises MisuseError."""
        self._connection().streams.add(stream)

    async def unary(self, method: str, request: Any, timeout_s: float) -> Any:
        """One request, one response, by a method of the service. Raises KibunError."""
        return await self.call(lambda: getattr(self.stub, method), request, timeout_s)

    async def call(self, method: Callable[[], Callable[..., Awaitable[Any]]], request: Any, timeout_s: float) -> Any:
        """The same for the method of any stub, made by `method`. Raises KibunError."""
        self._calls += 1
        try:
            limit_s = min(timeout_s, _LONGEST_CALL_S)
            return await method()(request, timeout=limit_s, metadata=self._metadata)
        except grpc.RpcError as error:
            failure = error_from_rpc(error, self.target, self._credentials)
            if failure.reason == DeadlineError.default_reason:  # gRPC's own words
                failure = DeadlineError(explain_deadline(self.target, timeout_s), failure.details)
        except asyncio.CancelledError:
            # The channel cancels its calls when it is closed; that is no one's wish to cancel the caller.
            task = asyncio.current_task()
            if not self.closed or task is None or task.cancelling():
                raise
            failure = client_closed()
        finally:
            self._calls -= 1
        raise failure  # here, so that an error that someone keeps does not keep the call, and with it the connection

    def streaming_analyze(self) -> "StreamCall":
        """Opens the bidirectional call."""
        return StreamCall(self.stub.StreamingAnalyze(metadata=self._metadata), self.target, self._credentials)

    def watch_conversation(self, request: pb.WatchConversationRequest) -> "ReceivingCall[pb.WatchConversationResponse]":
        """Opens the call of a watch."""
        call = self.stub.WatchConversation(request, metadata=self._metadata)
        return ReceivingCall(call, self.target, self._credentials)

    async def close(self) -> None:
        """Closes all connections for good; calls and streams in flight end with MisuseError."""
        self.closed = True
        with self._lock:
            connections, self._connections = self._connections, {}
        for loop, connection in connections.items():
            if loop is asyncio.get_running_loop():
                await connection.close()
            elif loop.is_running():  # in another thread
                with suppress(RuntimeError):  # it has just ended
                    closing = asyncio.run_coroutine_threadsafe(connection.close(), loop)
                    await asyncio.wait({asyncio.wrap_future(closing)}, timeout=_CLOSE_ELSEWHERE_S)

    async def pause(self) -> bool:
        """Closes the connection of the running event loop until `resume`; False where something else than a turn that
        can resume is in the middle of using it.
        """
        connection = self._connections.get(asyncio.get_running_loop())
        if connection is None:
            return True
        streams = list(connection.streams)
        if self._calls or not all(stream.can_pause for stream in streams):
            return False
        self._paused = streams
        await asyncio.gather(*(stream.pause() for stream in streams))
        with self._lock:
            del self._connections[asyncio.get_running_loop()]
        await connection.channel.close()
        await asyncio.sleep(_SETTLE_S)
        return True

    def resume(self) -> None:
        """Lets what was paused go on."""
        streams, self._paused = self._paused, []
        for stream in streams:
            stream.resume()

    def before_fork(self) -> bool:
        with self._lock:
            return self._forget_ended_loops()

    def after_fork(self, *, in_child: bool) -> None:
        if in_child:
            self._lock = threading.Lock()  # whoever held it is in the parent, as are the streams
            self._calls, self._paused = 0, []

    def _connection(self) -> _Connection:
        forking.check()
        if self.closed:
            raise client_closed()
        loop = running_loop()
        with self._lock:
            connection = self._connections.get(loop)
            if connection is None:
                self._forget_ended_loops()
                connection = self._connections[loop] = _Connection(self.target, self._credentials)
            return connection

    def _forget_ended_loops(self) -> bool:
        ended = [loop for loop in self._connections if loop.is_closed()]
        for loop in ended:
            del self._connections[loop]
        return bool(ended)


def client_closed() -> MisuseError:
    """What everyone gets who uses, or waits for, a client that was closed."""
    return MisuseError("the client is closed: make another one", ErrorDetails(reason="CLIENT_CLOSED"))


def running_loop() -> asyncio.AbstractEventLoop:
    """The running event loop. Raises MisuseError where there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise MisuseError(
            "this must be called in a coroutine, within the event loop; in a program without asyncio use "
            "kibun.client.Client, and from another thread loop.call_soon_threadsafe(…)",
            ErrorDetails(reason="WRONG_EVENT_LOOP"),
        ) from None


class ReceivingCall(Generic[R]):
    """A call that responses of type `R` come from, read by one task."""

    def __init__(self, call: Any, target: str, credentials: Credentials = _NONE) -> None:
        self._call = call
        # Not `call.read()`: after a failed write that leaves messages unread which had already arrived.
        self._responses: AsyncIterator[R] = aiter(call)
        self._first_status: grpc.RpcError | None = None
        call.add_done_callback(self._remember_status)
        self._target = target
        self._credentials = credentials
        self.request_id: str | None = None

    async def read(self) -> R | None:
        """The next response; None at the end. Raises KibunError when the call failed."""
        try:
            return await anext(self._responses, None)
        except grpc.RpcError as error:
            failure = error_from_rpc(
                await self._unmasked(error), self._target, self._credentials, request_id=self.request_id
            )
        raise failure

    def cancel(self) -> None:
        """Ends the call at once; harmless when it is over. An abandoned call would stay alive on the server."""
        self._call.cancel()

    def _remember_status(self, call: Any) -> None:
        # Runs at the moment the status is known, before a failed write can be put over it.
        code, details, trailers = _value(call.code()), _value(call.details()), _value(call.trailing_metadata())
        self._first_status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)

    async def _unmasked(self, error: grpc.RpcError) -> grpc.RpcError:
        if error.details() != _MASKED_DETAILS:
            return error
        if self._first_status is not None and self._first_status.details() != _MASKED_DETAILS:
            return self._first_status
        # The failed write came first: the server's status is on its way.
        for _ in range(round(_UNMASK_WAIT_S / _UNMASK_POLL_S)):
            await asyncio.sleep(_UNMASK_POLL_S)
            if await self._call.details() != _MASKED_DETAILS:
                self._remember_status(self._call)
                return self._first_status or error
        return error


class StreamCall(ReceivingCall[pb.StreamingAnalyzeResponse]):
    """One StreamingAnalyze call: a side to write and a side to read, each used by one task."""

    async def write(self, request: pb.StreamingAnalyzeRequest) -> bool:
        """False when the call is over; `read` raises the reason, as it sees the server's status."""
        try:
            await self._call.write(request)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            return False
        return True

    async def half_close(self) -> None:
        """Signals the server that nothing more will be sent. Does nothing when the call is over; see `write`."""
        with suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            await self._call.done_writing()


def _value(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Result of a coroutine that has no need to wait, as those of a finished call."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the call is not finished")
