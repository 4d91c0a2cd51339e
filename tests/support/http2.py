"""Frames of HTTP/2 (RFC 9113) and header blocks of HPACK (RFC 7541) made by hand, for peers that no library plays."""

import socket
import threading
import time
from contextlib import suppress

# The server's SETTINGS are never acknowledged by what follows.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and empty SETTINGS
MAX_FRAME_BYTES = 16_384
END_HEADERS, END_STREAM = 4, 1
STREAM = "/kibun.v1.SpeechAnalysisService/StreamingAnalyze"
CHECK = "/grpc.health.v1.Health/Check"


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Of HTTP/2 (4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    """SETTINGS with `initial_window_size`, for one."""
    numbers = {"header_table_size": 1, "initial_window_size": 4}
    return frame(
        4, 0, b"".join(numbers[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    )


def call(stream: int, block: bytes, *, end: bool = False) -> bytes:
    """HEADERS, and CONTINUATION as far as needed."""
    pieces = [block[begin : begin + MAX_FRAME_BYTES] for begin in range(0, len(block), MAX_FRAME_BYTES)]
    frames = []
    for number, piece in enumerate(pieces):
        flags = END_HEADERS * (number == len(pieces) - 1) + END_STREAM * (end and number == 0)
        frames.append(frame(9 if number else 1, stream, piece, flags))
    return b"".join(frames)


def fields(path: str = STREAM, **others: str) -> bytes:
    """A header block of a call, all literals (6.2.2); `_` in a name stands for `-`."""
    values = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in others.items()},
    }
    return b"".join(literal(name, value) for name, value in values.items())


def literal(name: str, value: str, *, into_table: bool = False) -> bytes:
    return bytes([0x40 * into_table]) + _string(name) + _string(value)


def _string(text: str) -> bytes:
    length, more = len(text), b""
    if length >= 127:  # 5.1
        rest = length - 127
        while rest >= 128:
            more += bytes([rest % 128 + 128])
            rest //= 128
        length, more = 127, more + bytes([rest])
    return bytes([length]) + more + text.encode()


def bomb(calls: int, entries: int, entry_bytes: int, *, begin: int = 1) -> bytes:
    """Calls with so many entries of metadata, each one byte on the wire: all refer to one in the dynamic table."""
    first = call(begin, fields() + literal("x", "a" * entry_bytes, into_table=True))
    others = range(begin + 2, begin + 2 * calls, 2)
    return first + b"".join(call(stream, fields() + b"\xbe" * entries) for stream in others)


def silent(port: int, count: int, first: bytes = b"") -> list[socket.socket]:
    """Connections that send `first` and nothing else."""
    sockets = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        if first:
            sock.send(first)
        sock.setblocking(False)
        sockets.append(sock)
    return sockets


def pour(sockets: list[socket.socket], data: bytes, done: threading.Event) -> int:
    """Sends it as fast as it is taken, reading what comes back, until `done`; returns how many the server closed."""
    left = dict.fromkeys(sockets, data)
    closed = 0
    while left and not done.is_set():
        for sock in list(left):
            try:
                if left[sock]:
                    left[sock] = left[sock][sock.send(left[sock]) :]
                elif not sock.recv(1 << 20):
                    raise ConnectionResetError
            except BlockingIOError:
                with suppress(BlockingIOError, ConnectionError):
                    sock.recv(1 << 20)
                time.sleep(0.002)
            except ConnectionError:
                del left[sock]  # the server has had enough
                closed += 1
    return closed
