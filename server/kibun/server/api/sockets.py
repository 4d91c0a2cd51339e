"""gRPC's sockets, found by the name that gRPC has for their other end: it cannot close a connection, nor measure one.

A name is `ipv4:10.0.0.7:40312` or `ipv6:%5B::1%5D:40312`: of one connection, as it holds the port.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote

_BYTES_RECEIVED = 128  # offset of tcpi_bytes_received in struct tcp_info, uint64; Linux

Address = tuple[str, int]


def shut_down(peer: str) -> bool:
    """Shuts the connection down, so that gRPC ends it and all its calls; False if there is none (any more)."""
    with _socket_of(peer) as found:
        if found is not None:
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)
        return found is not None


def bytes_received(peer: str) -> int:
    """Returns how many bytes came on the connection so far; 0 where the system does not tell."""
    with _socket_of(peer) as found:
        if found is None or not hasattr(socket, "TCP_INFO"):
            return 0
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0]) if len(info) >= _BYTES_RECEIVED + 8 else 0


@contextmanager
def _socket_of(peer: str) -> Iterator[socket.socket | None]:
    """A copy of the socket: closing it closes nothing, and it stays what it is should gRPC close its own meanwhile."""
    found = None
    with suppress(ValueError):
        wanted = _named(peer)
        for name in os.listdir("/dev/fd"):
            if _peer_of(int(name)) == wanted:
                with suppress(OSError):
                    found = socket.socket(fileno=os.dup(int(name)))
                break
    try:
        yield found if found is not None and _peer_of(found.fileno()) == wanted else None
    finally:
        if found is not None:
            found.close()


def _peer_of(descriptor: int) -> Address | None:
    """Returns the other end of a socket; None of anything else."""
    try:
        looked_at = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=descriptor)  # reads IPv4 as well
    except OSError:
        return None
    try:
        return _address(*looked_at.getpeername()[:2])
    except (OSError, ValueError, TypeError):  # not a socket, not connected, or not by IP
        return None
    finally:
        looked_at.detach()


def _named(peer: str) -> Address:
    """Raises ValueError where the name is not that of a connection by IP."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return _address(host, port)


def _address(host: str, port: str | int) -> Address:
    """Raises ValueError where the host is not an IP address."""
    ip = ipaddress.ip_address(host.strip("[]"))
    return str(getattr(ip, "ipv4_mapped", None) or ip), int(port)
