"""Messages between the server process and a worker process, and their bytes.

A frame is the number of its parts (`!I`), the length of each in bytes (`!Q`), then the parts: a pickle (protocol 5),
followed by the buffers of its arrays, so that audio is copied neither into nor out of the pickle. Both ends run the
same installation over a private pipe that nothing else can write to: pickle is safe here.
"""

import asyncio
import io
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kibun.models.types import Analysis, Precision
from kibun.server.inference.backend import BackendError, Job, ModelInfo
from kibun.server.observability.logs import Format


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """First message to a worker: what to load, and on which device."""

    loader: str  # "package.module:function", called in the worker with these options
    models: tuple[str, ...]  # paths or names of bundles; the first is the default
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int | None = None  # inference threads of all workers that share the machine; None: see `own_threads`
    sharing: int = 1  # workers that share the machine's cores, or its device, this one included
    allow_untrained: bool = False
    precision: Precision = "auto"
    import_path: tuple[str, ...] = ()  # the server's sys.path, for loaders that are not installed
    log_level: int = 20  # as in logging
    log_format: Format = "text"
    server_pid: int | None = None  # the worker exits with it, even while loading; set by `WorkerProcess.spawn`
    front: int | None = None  # that it works for; see logs.configure

    def own_threads(self, default: int) -> int:
        """Inference threads of this worker, where a machine has `default` unless told otherwise; at least one."""
        return max(1, (self.threads or default) // self.sharing)


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker's answer to LoadOptions, once warm-up inferences have succeeded."""

    models: tuple[ModelInfo, ...]
    slots: int  # batches that it runs at once
    batch_s: float  # seconds of audio that one batch may carry
    device: str
    costs: tuple[tuple[float, float], ...] = ()  # of warm-up inferences: seconds of audio, and seconds that it took


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The worker's answer to LoadOptions when it cannot serve; it then exits."""

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
    helped_s: float | None  # see `Outcomes`


def encode(message: object) -> list[bytes | memoryview]:
    """Encode a message as pieces to be written one after the other; arrays are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts: list[bytes | memoryview] = [body, *(buffer.raw() for buffer in buffers)]  # raw: flat, of bytes
    return [struct.pack(f"!I{len(parts)}Q", len(parts), *map(len, parts)), *parts]


async def read_message(stream: asyncio.StreamReader) -> Any:
    """Read one message in the server. Raises EOFError when the worker is gone."""
    try:
        (count,) = struct.unpack("!I", await stream.readexactly(4))
        lengths = struct.unpack(f"!{count}Q", await stream.readexactly(8 * count))
        return _decode([await stream.readexactly(length) for length in lengths])
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError("the worker closed its pipe") from error


def read_message_blocking(stream: io.RawIOBase) -> Any:
    """Read one message in the worker. Raises EOFError when the server is gone."""
    (count,) = struct.unpack("!I", _read_exactly(stream, 4))
    lengths = struct.unpack(f"!{count}Q", _read_exactly(stream, 8 * count))
    return _decode([_read_exactly(stream, length) for length in lengths])


def _decode(parts: Sequence[bytes | bytearray]) -> Any:
    """Decode the parts of one frame; the message's arrays are views of the parts."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _read_exactly(stream: io.RawIOBase, length: int) -> bytearray:
    """Read into a bytearray: arrays that are views of it are writable, as torch demands."""
    data = bytearray(length)
    view = memoryview(data)
    done = 0
    while done < length:
        count = stream.readinto(view[done:])
        if not count:
            raise EOFError("the server closed its pipe")
        done += count
    return data
