"""The way of log lines to stderr: by a thread, so that who logs neither waits for the log's reader nor fails with it.

A reader that has ended, a full disk, a stderr that was closed before the start: the lines are lost, and counted. A
reader that stands still: up to MAX_WAITING_BYTES wait for it, further lines are lost. A line tells how many were, as
soon as there is one that can be written.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue

MAX_WAITING_BYTES = 1 << 20
MAX_LINE = 1 << 16


class LogOutput:
    """Writes lines to a file descriptor, in order. All methods may be called in any thread."""

    def __init__(self, descriptor: int | None, describe_loss: Callable[[int], bytes]) -> None:
        """`descriptor`: None where there is nothing to write to. `describe_loss` makes the line about lost lines."""
        self._descriptor = descriptor
        self._describe_loss = describe_loss
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()  # its `put` may interrupt another
        self._lock = threading.RLock()  # as finalizers and signal handlers log, too
        self._thread: threading.Thread | None = None
        self._waiting_bytes = 0
        self._lost = 0
        self._told = 0  # of the lost ones, how many a line has told of
        self._torn = False  # the last line was written in part

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._lost

    def write(self, lines: bytes) -> None:
        """Takes whole lines. Neither waits nor raises."""
        if not lines:
            return
        with self._lock:
            if self._waiting_bytes + len(lines) > MAX_WAITING_BYTES or not self._started():
                self._lost += _count(lines)
                return
            self._waiting_bytes += len(lines)
        self._queue.put(lines)

    def flush(self, timeout_s: float) -> None:
        """Waits until what was taken so far is written or lost, and no longer than the timeout."""
        if self._thread is not None:
            written = threading.Event()
            self._queue.put(written)
            written.wait(timeout_s)

    def _started(self) -> bool:
        """Starts the thread, unless it runs; False where that is impossible."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            written = self._write_out(item)
            with self._lock:
                self._waiting_bytes -= len(item)
                self._lost += 0 if written else _count(item)
                untold = self._lost - self._told
                caught_up = written and not self._waiting_bytes
            if untold and caught_up and self._write_out(self._describe_loss(untold)):
                self._told += untold

    def _write_out(self, lines: bytes) -> bool:
        if self._descriptor is None:
            return False
        rest = memoryview(b"\n" + lines if self._torn else lines)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process that has this file made it non-blocking
                    _wait_until_writable(self._descriptor)
                else:
                    self._torn = bool(rest)
        except OSError:
            return False
        return True


class LogStream(io.TextIOBase):
    """A text file whose lines go to a `LogOutput`, for what prints in place of logging."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, output: LogOutput, descriptor: int) -> None:
        """`descriptor`: for those who ask for it, such as faulthandler."""
        super().__init__()
        self._output = output
        self._descriptor = descriptor
        self._lock = threading.RLock()
        self._begun = ""  # a line

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            lines, newline, self._begun = (self._begun + text).rpartition("\n")
            if newline:
                self._output.write(encoded(lines))
            if len(self._begun) > MAX_LINE:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Ends a line that was begun, so that no other comes into it."""
        with self._lock:
            line, self._begun = self._begun, ""
            if line:
                self._output.write(encoded(line))


def encoded(line: str) -> bytes:
    """Returns the bytes of a line, for `LogOutput.write`."""
    return f"{line}\n".encode(errors="backslashreplace")


def _count(lines: bytes) -> int:
    return lines.count(b"\n")


def _wait_until_writable(descriptor: int) -> None:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    waiting.poll()
