"""Memory that the server shares with one worker process, so that audio reaches it without going through a pipe.

The server allocates, fills and frees; the worker maps the same pages and only reads. A block belongs to one batch and
is freed when that batch's answer has come: until then the worker may be reading it, whatever has become of the caller.
A worker that dies takes its arena with it; its successor gets another.
"""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

ARENA_BYTES = 64 * 2**20
"""1,000 s of audio. Pages cost memory only once written to, and the lowest free ones are taken first."""

_ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True, slots=True)
class Block:
    """Where buffers lie: `offsets` of each, within [start, end)."""

    start: int
    end: int
    offsets: tuple[int, ...]


class Arena:
    """The server's side. Not thread-safe."""

    def __init__(self, size: int = ARENA_BYTES) -> None:
        """size: bytes. Raises OSError where the platform has no anonymous shared files, or memory none left."""
        if not hasattr(os, "memfd_create"):
            raise OSError("this platform has no memfd_create")
        self.fd = os.memfd_create("kibun-audio")  # closed on exec but where it is passed on
        try:
            os.ftruncate(self.fd, size)
            self._memory = mmap.mmap(self.fd, size)
        except OSError:
            os.close(self.fd)
            raise
        self._free = [(0, size)]  # (start, end), ascending, neither empty nor adjacent
        self.used = 0  # bytes in blocks

    def put(self, buffers: Sequence[memoryview]) -> Block | None:
        """Copy the buffers into a block of their own; None where no stretch is long enough."""
        relative, size = [], 0
        for buffer in buffers:
            relative.append(size)
            size += -(-buffer.nbytes // _ALIGNMENT) * _ALIGNMENT
        start = self._allocate(size)
        if start is None:
            return None
        offsets = tuple(start + offset for offset in relative)
        for offset, buffer in zip(offsets, buffers, strict=True):
            self._memory[offset : offset + buffer.nbytes] = buffer
        return Block(start, start + size, offsets)

    def free(self, block: Block) -> None:
        """Once the worker is done with the block."""
        self.used -= block.end - block.start
        start, end = block.start, block.end
        index = bisect.bisect(self._free, (start, end))
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        if index > 0 and self._free[index - 1][1] == start:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, end))

    def close(self) -> None:
        """Give the memory back; the worker's own mapping outlives it. May be repeated."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self.fd)

    def _allocate(self, size: int) -> int | None:
        for index, (start, end) in enumerate(self._free):
            if 0 < size <= end - start:
                self.used += size
                self._free[index : index + 1] = [(start + size, end)] if start + size < end else []
                return start
        return None


def attach(fd: int) -> memoryview:
    """The worker's side: the arena's bytes, for as long as the process lives. Takes the descriptor over."""
    memory = memoryview(mmap.mmap(fd, 0))
    os.close(fd)
    return memory
