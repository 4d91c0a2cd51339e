"""Messages between the server process and a worker process, and their bytes.

A frame is `!I` number of parts, `!QQ` length and place of each part, then the parts: a pickle (protocol 5), followed
by the buffers of its arrays, so that audio is neither copied into nor out of the pickle. A part's place is its offset
in memory that both processes share (`arena`), and then it does not follow, or `IN_FRAME`. Both ends run the same code
of the same installation over a private pipe; nothing else can write to it, hence pickle is safe here.
"""

import asyncio
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from kibun.models.types import Analysis
from kibun.server.inference.backend import BackendError, Job, ModelInfo
from kibun.server.inference.shared_memory import Arena, Block
from kibun.server.observability.logs import Format

IN_FRAME = 2**64 - 1
"""Place of a part that follows in the frame itself."""


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
    log_format: Format = "text"
    arena_fd: int | None = None  # the worker's arena, set by whoever spawns it; None: there is none
    server_pid: int | None = None  # whose end is the worker's, also while it loads; set by whoever spawns it


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
    results: tuple[Analysis | BackendError, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """An encoded message: pieces to be written one after the other, and the shared block that they point into."""

    pieces: list[bytes | memoryview]
    block: Block | None = None


def encode(message: object, arena: Arena | None = None) -> Frame:
    """Encode a message; its arrays go into the arena if there is one with room. The caller frees the block."""
    pickled: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=pickled.append)
    buffers = [buffer.raw() for buffer in pickled]
    block = arena.put(buffers) if arena is not None else None
    places = block.offsets if block is not None else [IN_FRAME] * len(buffers)
    header = struct.pack("!IQQ", 1 + len(buffers), len(body), IN_FRAME)
    header += b"".join(struct.pack("!QQ", len(b), place) for b, place in zip(buffers, places, strict=True))
    return Frame([header, body, *(buffers if block is None else ())], block)


def decode(parts: Sequence[bytes | bytearray | memoryview]) -> Any:
    """Turn the parts of one frame back into the message; arrays are views of the parts."""
    return pickle.loads(parts[0], buffers=parts[1:])


async def read_message(stream: asyncio.StreamReader) -> Any:
    """Read one message in the server. Raises EOFError when the worker is gone."""
    try:
        (count,) = struct.unpack("!I", await stream.readexactly(4))
        places = struct.iter_unpack("!QQ", await stream.readexactly(16 * count))
        return decode([await stream.readexactly(length) for length, _ in places])
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError("the worker closed its pipe") from error


def read_message_blocking(stream: BinaryIO, arena: memoryview | None = None) -> Any:
    """Read one message in the worker; arrays in the arena become views of it.

    Raises EOFError when the server is gone.
    """
    (count,) = struct.unpack("!I", _read_exactly(stream, 4))
    parts: list[bytearray | memoryview] = []
    for length, place in struct.iter_unpack("!QQ", _read_exactly(stream, 16 * count)):
        if place == IN_FRAME:
            parts.append(_read_exactly(stream, length))
        else:
            assert arena is not None
            parts.append(arena[place : place + length])
    return decode(parts)


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
