"""The one place of the SDK that talks gRPC: calls with metadata on them, failures as typed errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from kibun.client.channel import Credentials, call_metadata, open_channel
from kibun.client.status import error_from_rpc
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub

Response = TypeVar("Response")

# grpc.aio writes this over the server's own status when a write fails because the server has just ended the stream.
_MASKED_DETAILS = "Internal error from Core"
_UNMASK_WAIT_S = 1.0
_UNMASK_POLL_S = 0.01


class Transport:
    """A channel with its credentials and stub. To be used within one event loop."""

    def __init__(self, target: str, credentials: Credentials) -> None:
        self.target = target
        # A stream was accepted over this channel: there is a server, though it may be gone for a while.
        self.was_accepted = False
        self.channel = open_channel(target, credentials)
        self._metadata = call_metadata(credentials)
        self.stub = SpeechAnalysisServiceStub(self.channel)

    async def unary(
        self,
        method: Callable[..., Awaitable[Response]],
        request: Any,
        timeout_s: float | None,
    ) -> Response:
        """One request, one response. Raises KibunError."""
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.target) from None

    def streaming_analyze(self) -> "StreamCall":
        """Opens the bidirectional call."""
        return StreamCall(self.stub.StreamingAnalyze(metadata=self._metadata), self.target)

    async def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        await self.channel.close()


class StreamCall:
    """One StreamingAnalyze call: a side to write and a side to read, each used by one task."""

    def __init__(self, call: Any, target: str) -> None:
        self._call = call
        # Not `call.read()`: after a failed write that leaves messages unread which had already arrived.
        self._responses: AsyncIterator[pb.StreamingAnalyzeResponse] = aiter(call)
        self._first_status: grpc.RpcError | None = None
        call.add_done_callback(self._remember_status)
        self._target = target
        self.request_id: str | None = None

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

    async def read(self) -> pb.StreamingAnalyzeResponse | None:
        """The next response; None at the end. Raises KibunError when the call failed."""
        try:
            return await anext(self._responses, None)
        except grpc.RpcError as error:
            raise error_from_rpc(await self._unmasked(error), self._target, request_id=self.request_id) from None

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


def _value(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Result of a coroutine that has no need to wait, as those of a finished call."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the call is not finished")
