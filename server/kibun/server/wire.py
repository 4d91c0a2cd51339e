"""Messages between the server process and a worker process, and their bytes.

A frame is `!I` number of parts, `!Q` length of each part, then the parts: a pickle (protocol 5), followed by the
buffers of its arrays, so that audio is neither copied into nor out of the pickle. Both ends run the same code
of the same installation over a private pipe; nothing else can write to it, hence pickle is safe here.
"""

import asyncio
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from kibun.server.backend import BackendError, Job, ModelInfo, Result


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """First message to a worker: what to load, and where to run it."""

    loader: str  # "package.module:function", called in the worker with these options
    models: tuple[str, ...]  # paths or names of bundles; the first is the default
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int | None = None  # inference threads; None: one per usable core on a CPU
    allow_untrained: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    import_path: tuple[str, ...] = ()  # the server's sys.path, for loaders that are not installed
    log_level: int = 20  # as in logging


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker's answer once a warm-up inference has succeeded."""

    models: tuple[ModelInfo, ...]
    slots: int  # batches it runs at once
    batch_s: float  # seconds of audio worth having in one batch
    device: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The worker's answer when it cannot serve; it exits after it."""

    message: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs to run together."""

    number: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """One entry per job of the batch with this number, in order."""

    number: int
    results: tuple[Result | BackendError, ...]


def encode(message: object) -> list[bytes | memoryview]:
    """Encode a message as the pieces of one frame, to be written one after the other."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts: list[bytes | memoryview] = [body, *(buffer.raw() for buffer in buffers)]
    lengths = struct.pack(f"!{len(parts)}Q", *(len(part) for part in parts))
    return [struct.pack("!I", len(parts)) + lengths, *parts]


def decode(parts: Sequence[bytes | bytearray]) -> Any:
    """Turn the parts of one frame back into the message; arrays are views of the parts."""
    return pickle.loads(parts[0], buffers=parts[1:])


async def read_message(stream: asyncio.StreamReader) -> Any:
    """Read one message in the server. Raises EOFError when the worker is gone."""
    try:
        (count,) = struct.unpack("!I", await stream.readexactly(4))
        lengths = struct.unpack(f"!{count}Q", await stream.readexactly(8 * count))
        return decode([await stream.readexactly(length) for length in lengths])
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError("the worker closed its pipe") from error


def read_message_blocking(stream: BinaryIO) -> Any:
    """Read one message in the worker. Raises EOFError when the server is gone."""
    (count,) = struct.unpack("!I", _read_exactly(stream, 4))
    lengths = struct.unpack(f"!{count}Q", _read_exactly(stream, 8 * count))
    return decode([_read_exactly(stream, length) for length in lengths])


def _read_exactly(stream: BinaryIO, length: int) -> bytearray:
    """Read into a bytearray: arrays made of it stay writable, which torch asks for."""
    data = bytearray(length)
    view = memoryview(data)
    done = 0
    while done < length:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the server closed its pipe")
        done += count
    return data
