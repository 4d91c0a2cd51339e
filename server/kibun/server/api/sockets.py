"""gRPC's sockets, found by the name that gRPC has for their other end: it cannot close a connection, nor measure one.

A name is `ipv4:10.0.0.7:40312` or `ipv6:%5B::1%5D:40312`: of one connection, as it holds the port.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from contextlib import suppress
from urllib.parse import unquote

_BYTES_RECEIVED = 128  # offset of tcpi_bytes_received in struct tcp_info, uint64; Linux
_SHARE = 20  # looking at all descriptors may take this part of the time

Address = tuple[str, int]


class Sockets:
    """The connections of this process. Belongs to one event loop.

    A connection that is not known yet is looked for among all descriptors, some milliseconds for each 1,000 of them.
    That finds all the others as well, and whoever looks again soon waits, so that it never takes up the loop.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Address, int] = {}  # as last found; meanwhile a descriptor may be another's
        self._began = self._took = 0.0  # when that was
        self._looking = asyncio.Lock()

    async def bytes_received(self, peer: str) -> int | None:
        """Returns how many bytes came so far; None if the connection is gone, 0 where the system does not tell."""
        try:
            wanted = _address_in(peer)
            await self._find(wanted)
        except (ValueError, OSError):
            return 0
        return _bytes_received(self._descriptors[wanted]) if self._is_at_hand(wanted) else None

    def shut_down(self, peer: str) -> bool:
        """Shuts the connection down, so that gRPC ends it and all its calls; False if there is none (any more)."""
        with suppress(ValueError, OSError):
            wanted = _address_in(peer)
            if not self._is_at_hand(wanted):
                self._look()
            if wanted in self._descriptors:
                # A copy stays what it is should gRPC close its own meanwhile.
                with socket.socket(fileno=os.dup(self._descriptors[wanted])) as found:
                    if _peer_of(found.fileno()) == wanted:
                        found.shutdown(socket.SHUT_RDWR)
                        return True
        return False

    async def _find(self, wanted: Address) -> None:
        """Looks for the connection unless it is at hand. Raises OSError if that is impossible."""
        asked = time.monotonic()
        if self._is_at_hand(wanted):
            return
        async with self._looking:
            if self._began <= asked:  # nobody has looked since
                await asyncio.sleep(self._began + _SHARE * self._took - time.monotonic())
                self._look()

    def _look(self) -> None:
        began = time.monotonic()
        found = {_peer_of(int(name)): int(name) for name in os.listdir("/dev/fd")}
        self._descriptors = {address: descriptor for address, descriptor in found.items() if address is not None}
        self._began, self._took = began, time.monotonic() - began

    def _is_at_hand(self, wanted: Address) -> bool:
        return _peer_of(self._descriptors.get(wanted, -1)) == wanted


def _borrowed(descriptor: int) -> socket.SocketType:
    """The descriptor as a socket, for IPv4 as well: to be detached, not closed. Raises OSError where it is not open."""
    return socket.SocketType(socket.AF_INET6, socket.SOCK_STREAM, 0, descriptor)


def _bytes_received(descriptor: int) -> int:
    try:
        found = _borrowed(descriptor)
    except OSError:
        return 0
    try:
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256) if hasattr(socket, "TCP_INFO") else b""
        return int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0]) if len(info) >= _BYTES_RECEIVED + 8 else 0
    except OSError:
        return 0
    finally:
        found.detach()


def _peer_of(descriptor: int) -> Address | None:
    """Returns the other end of a socket; None of anything else."""
    try:
        found = _borrowed(descriptor)
    except (OSError, ValueError):
        return None
    try:
        return _address(*found.getpeername()[:2])
    except (OSError, ValueError, TypeError, AttributeError):  # not a socket, not connected, or not by IP
        return None
    finally:
        found.detach()


def _address_in(peer: str) -> Address:
    """Raises ValueError where the name is not that of a connection by IP."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6"):
        raise ValueError(f"{peer!r} is not a connection by IP")
    return _address(host, port)


def _address(host: str, port: str | int) -> Address:
    """gRPC and Python both write addresses as inet_ntop does. Raises ValueError for a port that is no number."""
    return host.strip("[]").partition("%")[0].removeprefix("::ffff:"), int(port)
