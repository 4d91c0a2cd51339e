"""The one place of the SDK that talks gRPC: calls with metadata on them, failures as typed errors."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from kibun.client.channel import Credentials, call_metadata, open_channel
from kibun.client.status import error_from_rpc
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub

Response = TypeVar("Response")

# grpc.aio puts this over the server's own status when a write meets a stream that the server has just closed; the
# real status arrives a moment later.
_MASKED_DETAILS = "Internal error from Core"
_UNMASK_WAIT_S = 1.0
_UNMASK_POLL_S = 0.01


class Transport:
    """A channel with its credentials and stub. To be used within one event loop."""

    def __init__(self, target: str, credentials: Credentials) -> None:
        self.target = target
        self.channel = open_channel(target, credentials)
        self._metadata = call_metadata(credentials)
        self.stub = SpeechAnalysisServiceStub(self.channel)  # type: ignore[no-untyped-call]

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
    """One StreamingAnalyze call: a writer's and a reader's side, to be used by one task each."""

    def __init__(self, call: Any, target: str) -> None:
        self._call = call
        self._target = target
        self.request_id: str | None = None

    async def write(self, request: pb.StreamingAnalyzeRequest) -> bool:
        """False when the call is over; why is for `read` to say, which sees the server's status."""
        try:
            await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        return True

    async def half_close(self) -> None:
        """Tells the server that nothing more will be sent."""
        await self._call.done_writing()

    async def read(self) -> pb.StreamingAnalyzeResponse | None:
        """The next response; None at the end. Raises KibunError when the call failed."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise error_from_rpc(await self._unmasked(error), self._target, request_id=self.request_id) from None
        if response is grpc.aio.EOF:
            return None
        assert isinstance(response, pb.StreamingAnalyzeResponse)
        return response

    def cancel(self) -> None:
        """Ends the call at once; harmless when it is over. An abandoned call would stay alive on the server."""
        self._call.cancel()

    async def _unmasked(self, error: grpc.RpcError) -> grpc.RpcError:
        waited_s = 0.0
        while error.details() == _MASKED_DETAILS and waited_s < _UNMASK_WAIT_S:
            await asyncio.sleep(_UNMASK_POLL_S)
            waited_s += _UNMASK_POLL_S
            try:
                await self._call.read()
            except grpc.RpcError as newer:
                error = newer
        return error
