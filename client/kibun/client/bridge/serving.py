"""Runs a bridge: uvicorn, with bounds on what a connection may hold."""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kibun.client.bridge.app import Bridge, BridgeOptions

# A frame holds at most this; a text frame has room for the 1,024 finals of a resumed turn.
MAX_FRAME_BYTES = 1024 * 1024
# Connections beside the sockets: pages being loaded, and sockets being refused.
SPARE_CONNECTIONS = 64
HEADER_S = 10.0
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 9\r\n\r\nbusy now\n"


class BridgeServer:
    """A bridge that listens on `host` and `port` (0: any that is free). Raises OSError where that cannot be had."""

    def __init__(self, options: BridgeOptions, host: str, port: int) -> None:
        self.bridge = Bridge(options)
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        limit = options.max_sockets + SPARE_CONNECTIONS
        config = uvicorn.Config(
            self.bridge.asgi(),
            http=_bounded(limit),
            # It reads on only once the application took what came: a socket is held back by not reading it.
            ws="websockets-sansio",
            ws_max_size=MAX_FRAME_BYTES,
            ws_ping_interval=20.0,
            ws_ping_timeout=120.0,  # a socket that is held back cannot answer, for as long as the SDK reconnects
            ws_per_message_deflate=False,
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=3,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)

    async def run(self) -> None:
        """Serves until it is cancelled, or `stop` is called."""
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def _bounded(limit: int) -> Any:
    """uvicorn's HTTP with at most `limit` connections, none of which may keep its headers to itself."""

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= limit:
                transport.write(_BUSY)
                transport.close()
                self.transport = transport
                return
            super().connection_made(transport)
            self._late = self.loop.call_later(HEADER_S, self._close_if_silent)

        def data_received(self, data: bytes) -> None:
            if self in self.connections:
                super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            if self in self.connections:
                self._late.cancel()
                super().connection_lost(exc)

        def _close_if_silent(self) -> None:
            if self in self.connections and self.cycle is None:
                self.transport.close()

    return Bounded
