"""What callers feed, as an asynchronous iterator: a source that blocks is read in a thread of its own."""

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable
from typing import Any, TypeVar

from kibun.client.errors import ErrorDetails, SourceError, WrongTypeError

T = TypeVar("T")

# Chunks that a thread reads ahead of what was sent.
READ_AHEAD = 2
# How long a source that is no longer wanted may take to notice, e.g. a microphone in the middle of a chunk.
STOP_GRACE_S = 1.0
# Raised to stop a task or generator: passed on, they would stop the caller's own.
_NOT_TO_PASS_ON = (asyncio.CancelledError, GeneratorExit)
_END = StopAsyncIteration()


def check_source(source: object) -> None:
    """Raises WrongTypeError for what is no source of chunks: a single chunk, a path, a function."""
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "dtype"):
        fix = "feed() takes an iterable of chunks; a single piece of audio goes to push()"
    elif isinstance(source, AsyncIterable | Iterable) and not isinstance(source, str):
        return
    elif isinstance(source, str | os.PathLike) or hasattr(source, "chunks"):
        fix = (
            "a recording goes to the turn when it is made, to have its rate and encoding: "
            "conversation.turn(audio=AudioFile(path))"
        )
    elif callable(source):
        fix = "feed() takes an iterable of chunks: call a generator function, or wrap another as iter(function, b'')"
    else:
        fix = "feed() takes an iterable of chunks: a generator, a microphone's chunks, a list"
    message = f"{fix}; it was given {type(source).__name__}"
    raise WrongTypeError(message, ErrorDetails("AUDIO_TYPE_MISMATCH", fields={"chunks": message}))


async def read(source: AsyncIterable[T] | Iterable[T]) -> AsyncGenerator[T]:
    """The chunks of `source`. Its generator is closed at the end, whatever the end is.

    Raises what the source raises; SourceError in place of what cannot be passed on.
    """
    chunks: AsyncIterator[T] | None = None
    try:
        while True:
            try:
                if chunks is None:
                    chunks = aiter(source) if isinstance(source, AsyncIterable) else _ReaderThread(source)
                chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except _NOT_TO_PASS_ON as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                raise _ended_by(error) from error
            yield chunk
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
        elif isinstance(chunks, _ReaderThread):
            await chunks.stop()


class _ReaderThread(AsyncIterator[T]):
    """Iterates in a thread, a few chunks ahead."""

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._read: asyncio.Queue[tuple[T | None, BaseException | None]] = asyncio.Queue()
        self._space = threading.Semaphore(READ_AHEAD)
        self._unwanted = threading.Event()
        self._done = asyncio.Event()
        # A daemon: one that blocks in its source for ever must not keep the program from ending.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="kibun-feed", daemon=True).start()

    async def __anext__(self) -> T:
        chunk, error = await self._read.get()
        if isinstance(error, StopAsyncIteration) and error is not _END:
            raise _ended_by(error) from error
        if error is not None:
            raise error
        self._space.release()
        return chunk  # type: ignore[return-value]  # None only beside an error

    async def stop(self) -> None:
        """Reads no more, and waits a little until the source is closed."""
        self._unwanted.set()
        self._space.release()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self._done.wait()
        except TimeoutError:
            pass  # it blocks, and is closed when it returns

    def _run(self) -> None:
        end: BaseException = _END
        chunks: Any = None
        try:
            chunks = iter(self._source)
            for chunk in chunks:
                self._space.acquire()
                if self._unwanted.is_set():
                    break
                self._tell(self._read.put_nowait, (chunk, None))
        except BaseException as error:
            end = error
        try:
            if isinstance(chunks, Generator):
                chunks.close()
        except BaseException as error:
            end = error if end is _END else end
        self._tell(self._read.put_nowait, (None, end))
        self._tell(self._done.set)

    def _tell(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed, and no one waits
            self._unwanted.set()


def _ended_by(error: BaseException) -> SourceError:
    """The error to raise for an exception of the source that cannot be passed on."""
    return SourceError(f"the source that was fed ended with {error!r}")
