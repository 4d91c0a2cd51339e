"""A bridge in the test's own event loop, and a socket to talk to it as a page does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from kibun.client.bridge.app import BridgeOptions
from kibun.client.bridge.serving import BridgeServer
from kibun.client.client import AsyncClient
from kibun.client.options import RetryPolicy

CONFIG = {"audio_config": {"encoding": "AUDIO_ENCODING_LINEAR16", "sample_rate_hertz": 16000}, "turn_id": "t"}
ClientOf = Callable[[str | None], AsyncClient]
RETRY = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.05)


@contextlib.asynccontextmanager
async def bridging(target: str | ClientOf, **options: Any) -> AsyncIterator[BridgeServer]:
    """A bridge to `target` on a free port; `options` of `BridgeOptions`."""

    def client_of(token: str | None) -> AsyncClient:
        return AsyncClient(str(target), token=token, retry=RETRY, timeout_s=20.0)

    made = BridgeOptions(client_of=client_of if isinstance(target, str) else target, **options)
    server = BridgeServer(made, "127.0.0.1", 0)
    running = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        server.stop()
        await running


class Page:
    """What a page does with a socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, frame: dict[str, Any] | bytes | str) -> None:
        await self.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """All messages up to the next of this kind."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while not found or kind not in found[-1]:
                found.append(json.loads(await self.socket.recv()))
        return found

    async def refusal(self) -> tuple[int, dict[str, Any]]:
        """Close code, and the error before it; {} if there was none."""
        last: dict[str, Any] = {}
        async with asyncio.timeout(20):
            try:
                while True:
                    last = json.loads(await self.socket.recv())
            except ConnectionClosed:
                assert self.socket.close_reason
                return self.socket.close_code or 0, last.get("error", {})


@contextlib.asynccontextmanager
async def page(server: BridgeServer, path: str = "/v1/stream", **headers: str) -> AsyncIterator[Page]:
    """A socket to the bridge. Without `origin` like a program, with it like a page of that address."""
    async with connect(
        f"ws://127.0.0.1:{server.port}{path}", additional_headers=headers, max_size=None, compression=None
    ) as socket:
        yield Page(socket)


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    """Which response each message is."""
    envelope = {"sequence_number", "audio_received", "audio_processed"}
    return [next(iter(message.keys() - envelope)) for message in messages]
