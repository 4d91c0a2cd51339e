"""A TCP proxy that misbehaves on demand: latency, a trickle, silence, resets, connections that end on one side only.

Runs in its caller's event loop. What it does to connections holds for those that are open and for those
that follow; `reset`, `end` and `vanish` happen once, to those that are open.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Side = Literal["client", "server"]

PIECE_BYTES = 65_536
TRICKLE_S = 0.05  # between the pieces of a trickle
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: what is unsent is dropped, the peer gets RST


class _Link:
    """One connection of a client with its own to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.writers: dict[Side, asyncio.StreamWriter] = {"client": client, "server": server}
        self.ended: set[Side] = set()  # sides that know that the other has ended; they get nothing more
        self.known = asyncio.Event()  # cleared while the server is not to know that the client has gone
        self.known.set()

    def end(self, side: Side) -> None:
        if side not in self.ended:
            self.ended.add(side)
            with suppress(OSError, RuntimeError):
                self.writers[side].write_eof()

    def reset(self, side: Side) -> None:
        self.ended.add(side)
        with suppress(OSError):
            sock = self.writers[side].get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.writers[side].transport.abort()


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes bytes to and from `target_port` there. A context manager."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0  # known once it listens
        self.connections = 0  # taken so far
        self.latency_s = 0.0  # before bytes are passed on, either way; bytes that come meanwhile wait along with them
        self.trickle_bytes_per_s: float | None = None  # each way
        self._flows = asyncio.Event()
        self._flows.set()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=PIECE_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.latency_s, self.trickle_bytes_per_s = 0.0, None
        self.flow()
        self.forget()
        self.reset()
        # Not cancelled: asyncio's streams complain of tasks that are.
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self) -> None:
        """Drops all data silently; new connections are still accepted."""
        self._flows.clear()

    def flow(self) -> None:
        """Ends `stall`: all that was sent meanwhile arrives."""
        self._flows.set()

    def reset(self) -> None:
        """Both sides' connections break at once (RST)."""
        for link in tuple(self._links):
            link.reset("client")
            link.reset("server")

    def end(self, side: Side) -> None:
        """Ends one direction: this side gets a FIN and nothing more; what it sends still arrives."""
        for link in tuple(self._links):
            link.end(side)

    def vanish(self) -> None:
        """Resets the client's connections (RST) without the server noticing, until `forget`."""
        for link in tuple(self._links):
            link.known.clear()
            link.reset("client")

    def forget(self) -> None:
        """Ends the servers' connections that `vanish` has left."""
        for link in tuple(self._links):
            link.known.set()

    # ---- connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        assert self._server is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target_port, limit=PIECE_BYTES)
        except OSError:
            writer.transport.abort()  # as the server's own port would have done
            return
        if not self._server.is_serving():  # closed meanwhile: this connection has missed the reset of all others
            writer.transport.abort()
            back.transport.abort()
            return
        link = _Link(writer, back)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(reader, link, "server"), self._pump(there, link, "client"))
        finally:
            self._links.discard(link)
            writer.transport.abort()
            back.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, link: _Link, side: Side) -> None:
        """Passes on to `side` what the other side sends, until that ends."""
        with suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                await self._pass_on(data, link, side)
        await self._flows.wait()
        if side == "server":
            await link.known.wait()
        link.end(side)

    async def _pass_on(self, data: bytes, link: _Link, side: Side) -> None:
        writer = link.writers[side]
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        while data:
            await self._flows.wait()
            if self.trickle_bytes_per_s is None:
                piece, data = data, b""
            else:
                size = max(round(self.trickle_bytes_per_s * TRICKLE_S), 1)
                piece, data = data[:size], data[size:]
                await asyncio.sleep(TRICKLE_S)
            if side not in link.ended:
                writer.write(piece)
                await writer.drain()
