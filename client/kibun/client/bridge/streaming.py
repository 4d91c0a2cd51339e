"""`/v1/stream`: what a socket sends goes into turns of the SDK, and their events come back.

Each turn is a stream of its own, which the SDK reconnects and replays. Frames are read only as fast as the SDK takes
audio, so a slow server holds the socket back and nothing piles up here.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from kibun.client.bridge import wire
from kibun.client.bridge.message_config import MessageConfig
from kibun.client.bridge.socket import GoneError, Socket
from kibun.client.client import AsyncClient
from kibun.client.errors import KibunError
from kibun.client.options import BYTES_PER_SAMPLE
from kibun.client.stream import AsyncStream, AudioStream
from kibun.v1 import speech_analysis_pb2 as pb

# How long the rest of a turn may take whose socket was closed as it should be.
FINISH_S = 10.0
Frame = bytes | pb.EndOfTurn


async def stream(socket: Socket, client_of: Callable[[str | None], AsyncClient]) -> None:
    """Serves one socket to its end. Raises KibunError, GoneError."""
    token, value = await socket.first()
    request = wire.read_message(value, pb.StreamingAnalyzeRequest())
    if request.WhichOneof("streaming_request") != "streaming_config":
        kind = request.WhichOneof("streaming_request") or "anything else"
        raise wire.refusal("CONFIG_REQUIRED_FIRST", "streaming_request", f"send streaming_config before {kind}")
    config = MessageConfig.of(request.streaming_config)
    async with client_of(token) as client:
        if config.endpointing.end_of_turn_silence_ms is not None:
            # The server ends turns, and audio on its way belongs to the next: one stream for all, which is not resumed.
            await _Passage(socket, client.stream(config)).run(None)
            return
        first: Frame | None = None
        while True:
            passage = _Passage(socket, client.turn(config))
            ended = await passage.run(first)
            if ended is None:
                return
            first = _parsed(await socket.receive_if_not_idle())
            if isinstance(first, bytes):
                first = passage.rest + first
            offset_s = (passage.pushed - len(passage.rest)) / config.bytes_per_second
            config = config.of_next_turn(ended.next_turn_id, passage.conversation_id, offset_s)


class _Passage:
    """One stream of the SDK, fed by the socket."""

    def __init__(self, socket: Socket, stream: AudioStream) -> None:
        self._socket = socket
        self._stream = stream
        self._width = BYTES_PER_SAMPLE[stream.config.encoding]
        self.pushed = 0  # bytes
        # The bytes of a sample that was cut off by the end of the turn.
        self.rest = b""
        self.conversation_id = ""

    async def run(self, first: Frame | None) -> pb.EndOfTurn | None:
        """Returns the frame that ended the turn, or None if the server ended the stream. Raises KibunError, GoneError.

        `first` is a frame that was received already.
        """
        await self._stream.open()
        forwarding = asyncio.create_task(self._forward())
        receiving = asyncio.create_task(self._receive(first))
        try:
            await asyncio.wait({forwarding, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if forwarding.done():
                forwarding.result()
                return None
            try:
                ended = receiving.result()
            except GoneError as gone:
                if gone.deliberate:
                    await self._finish(forwarding)
                raise
            self._stream.end()
            await forwarding
            self.conversation_id = self._stream.started.conversation_id
            return ended
        finally:
            for task in (forwarding, receiving):
                task.cancel()
            await asyncio.gather(forwarding, receiving, return_exceptions=True)
            await self._stream.cancel()

    async def _receive(self, first: Frame | None) -> pb.EndOfTurn:
        """Passes frames on up to the one that ends a turn, or for as long as the stream carries several."""
        while True:
            frame = first if first is not None else _parsed(await self._socket.receive())
            first = None
            if isinstance(frame, bytes):
                await self._stream.push(frame)
                self.pushed += len(frame)
                cut = self.pushed % self._width
                self.rest = (self.rest + frame)[-cut:] if cut else b""
            elif isinstance(self._stream, AsyncStream):
                await self._stream.end_of_turn(frame.next_turn_id)
            else:
                return frame

    async def _forward(self) -> None:
        async for event in self._stream:
            if event.response is not None:
                await self._socket.send(event.response)

    async def _finish(self, forwarding: "asyncio.Task[None]") -> None:
        """Lets the server finish a turn that nobody listens to any more, so that its conversation has all of it."""
        self._stream.end()
        with suppress(KibunError, TimeoutError):
            async with asyncio.timeout(FINISH_S):
                await forwarding


def _parsed(frame: str | bytes) -> Frame:
    """Audio, or the end of a turn. Raises KibunError."""
    if isinstance(frame, bytes):
        return frame
    request = wire.read_message(wire.read_object(frame), pb.StreamingAnalyzeRequest())
    match request.WhichOneof("streaming_request"):
        case "audio_content":
            return request.audio_content
        case "end_of_turn":
            return request.end_of_turn
        case "streaming_config":
            text = "streaming_config comes once, first: open another socket for another configuration"
            raise wire.refusal("CONFIG_REPEATED", "streaming_config", text)
        case _:
            raise wire.refusal(
                "EMPTY_REQUEST", "streaming_request", "a text frame must hold end_of_turn or audio_content"
            )
