"""One WebSocket: frames in and out, and the end of it that tells why."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from kibun.client.bridge import wire
from kibun.client.errors import DeadlineError, ErrorDetails, InternalError, KibunError, ResourceExhaustedError

log = logging.getLogger(__name__)

FIRST_FRAME_S = 10.0
# As the server's own default: a robot mutes its microphone while it talks.
IDLE_S = 600.0
# How long a frame may wait for a reader; SDK and system buffer minutes of events before.
SEND_S = 30.0


class GoneError(Exception):
    """The other end closed the socket, or was lost. `deliberate`: by a close with code 1000."""

    def __init__(self, *, deliberate: bool) -> None:
        super().__init__("the socket was closed")
        self.deliberate = deliberate


class Socket:
    """A WebSocket that was accepted."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._gone = False

    async def first(self) -> tuple[str | None, dict[str, Any]]:
        """Token and rest of the first frame. Raises KibunError, GoneError."""
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                frame = await self.receive()
        except TimeoutError:
            raise _late("CONFIG_TIMEOUT", f"no frame came within {FIRST_FRAME_S:g} s: send the first at once") from None
        if isinstance(frame, bytes):
            raise wire.refusal(
                "CONFIG_REQUIRED_FIRST", "streaming_request", "send a text frame, the configuration, before audio"
            )
        value = wire.read_object(frame)
        token = value.pop("token", None)
        if not isinstance(token, str | None):
            raise wire.refusal("INVALID_TOKEN", "token", "token must be a string")
        return token or None, value

    async def receive(self) -> str | bytes:
        """The next frame. Raises GoneError."""
        try:
            message = await self._websocket.receive()
        except WebSocketDisconnect as gone:
            message = {"type": "websocket.disconnect", "code": gone.code}
        if message["type"] == "websocket.disconnect":
            self._gone = True
            raise GoneError(deliberate=message.get("code") == 1000)
        frame: str | bytes | None = message.get("text")
        return frame if frame is not None else bytes(message["bytes"])

    async def receive_if_not_idle(self) -> str | bytes:
        """The next frame, between two turns. Raises DeadlineError, GoneError."""
        try:
            async with asyncio.timeout(IDLE_S):
                return await self.receive()
        except TimeoutError:
            raise _late("IDLE_TIMEOUT", f"nothing came for {IDLE_S:g} s after the end of a turn") from None

    async def send(self, message: Message) -> None:
        """Sends a message of the contract; nothing where nobody is there any more. Raises KibunError."""
        await self._send(wire.text_of(message))

    async def _send(self, text: str) -> None:
        if self._gone:
            return
        try:
            async with asyncio.timeout(SEND_S):
                await self._websocket.send_text(text)
        except TimeoutError:
            self._gone = True
            details = ErrorDetails("SLOW_CONSUMER", "RESOURCE_EXHAUSTED")
            raise ResourceExhaustedError(f"the socket took no message for {SEND_S:g} s", details) from None
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: it was closed in between
            self._gone = True

    async def fail(self, error: KibunError) -> None:
        """Says why, and closes."""
        try:
            await self._send(wire.error_text(error))
            if not self._gone:
                await self._websocket.close(wire.close_code(error), wire.close_reason(error))
        except (KibunError, WebSocketDisconnect, RuntimeError):
            return  # nobody is there to be told


async def converse(websocket: WebSocket, work: Callable[[Socket], Awaitable[None]]) -> None:
    """Runs `work` on a socket, and closes it with whatever came of that; nothing is raised."""
    await websocket.accept()
    socket = Socket(websocket)
    try:
        await work(socket)
    except GoneError:
        pass
    except KibunError as error:
        await socket.fail(error)
    except Exception:
        log.exception("a socket failed")
        await socket.fail(InternalError("the bridge failed: see its log", ErrorDetails("BRIDGE_FAILED", "INTERNAL")))
    else:
        await _close(websocket)


async def _close(websocket: WebSocket) -> None:
    try:
        await websocket.close()
    except (WebSocketDisconnect, RuntimeError):
        return


def _late(reason: str, message: str) -> DeadlineError:
    return DeadlineError(message, ErrorDetails(reason, "DEADLINE_EXCEEDED"))
