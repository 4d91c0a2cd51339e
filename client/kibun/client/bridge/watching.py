"""`/v1/watch`: a conversation that others speak into, as the SDK's watch tells it."""

import asyncio
from collections.abc import Callable

from kibun.client.bridge import wire
from kibun.client.bridge.socket import Socket
from kibun.client.client import AsyncClient
from kibun.client.watch import AsyncWatch
from kibun.v1 import speech_analysis_pb2 as pb


async def watch(socket: Socket, client_of: Callable[[str | None], AsyncClient]) -> None:
    """Serves one socket to its end. Raises KibunError, GoneError."""
    token, value = await socket.first()
    request = wire.read_message(value, pb.WatchConversationRequest())
    async with (
        client_of(token) as client,
        client.watch(
            request.conversation_id,
            include_past=request.include_past,
            require_existing=request.require_existing_conversation,
        ) as watching,
    ):
        forwarding = asyncio.create_task(_forward(socket, watching))
        listening = asyncio.create_task(_nothing_more(socket))
        try:
            await asyncio.wait({forwarding, listening}, return_when=asyncio.FIRST_COMPLETED)
            for task in (forwarding, listening):
                if task.done():
                    return task.result()
        finally:
            for task in (forwarding, listening):
                task.cancel()
            await asyncio.gather(forwarding, listening, return_exceptions=True)


async def _forward(socket: Socket, watching: AsyncWatch) -> None:
    async for watched in watching:
        if watched.response is not None:
            await socket.send(watched.response)


async def _nothing_more(socket: Socket) -> None:
    """Waits for the other end to go. Raises GoneError, KibunError."""
    await socket.receive()
    raise wire.refusal("UNEXPECTED_FRAME", "conversation_id", "a watch takes one frame, the first; close it to end it")
