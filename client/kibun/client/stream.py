"""A stream of audio to the service and of events back: the lower level, which may carry several turns."""

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from weakref import ReferenceType, WeakSet, ref

from kibun.client import source
from kibun.client.checks import check_timeout, check_value
from kibun.client.engine import StreamEngine
from kibun.client.errors import DeadlineError, ErrorDetails, MisuseError, TurnEndedError
from kibun.client.events import Event, StreamEnded, StreamStarted, TurnResult
from kibun.client.options import RetryPolicy, StreamConfig
from kibun.client.pcm import payload_bytes, pieces
from kibun.client.replay import EndOfTurn
from kibun.client.transport import Transport

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm

# Who iterates: a task, or a thread that uses the synchronous client.
Reader = asyncio.Task[Any] | threading.Thread

NO_RETRY = RetryPolicy(max_attempts=1, replay_limit_s=0.0)


class AudioStream:
    """What `AsyncStream` and `AsyncTurn` share: an async context manager and an async iterator of `Event`.

    Leaving the block normally ends the stream and waits until the server has answered everything; leaving it by an
    exception cancels the call. A source that is being fed is read to its end first, unless the block has iterated over
    the events and left that loop early: then it is read no more. Every method but `cancel` raises MisuseError for a
    stream that is not open, or that was opened in another event loop.
    """

    def __init__(self, transport: Transport, config: StreamConfig, retry: RetryPolicy, *, single_turn: bool) -> None:
        self._engine = StreamEngine(transport, config, retry, single_turn=single_turn)
        self._target = transport.target
        self._timeout_s = transport.timeout_s
        self._feeder: asyncio.Task[None] | None = None
        self._error_was_raised = False
        self._someone_waits = False
        # The loops over the events that may still be under way.
        self._loops: WeakSet[Events] = WeakSet()
        self._was_iterated = False

    # -- opening and leaving

    async def open(self, timeout_s: float | None = None) -> StreamStarted:
        """Opens the stream and waits until the server accepted it; `async with` does so by itself.

        Raises KibunError, DeadlineError after `timeout_s` (None: the client's, if it was given one), MisuseError if the
        stream is over.
        """
        check_timeout(timeout_s)
        within_s = timeout_s or self._timeout_s
        self._engine.start()
        try:
            async with asyncio.timeout(within_s):
                await self._engine.opened.wait()
        except TimeoutError:
            await self.cancel()
            why = f": {self._engine.last_loss}" if self._engine.last_loss else ""
            details = ErrorDetails(reason="OPEN_TIMEOUT")
            raise DeadlineError(f"{self._target} did not accept the stream within {within_s} s{why}", details) from None
        except asyncio.CancelledError:
            await self.cancel()
            raise
        self._raise_error()
        return self.started

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(error, asyncio.current_task())

    async def _leave(self, error: BaseException | None, who: Reader | None) -> None:
        """Ends the block as `async with` does, when `who` leaves it, with `error`."""
        try:
            if error is None:
                if self._was_iterated and not any(loop.goes_on_without(who) for loop in self._loops):
                    self._stop_feed()
                await self._until_fed()
                self._engine.close_input()
                await self._engine.over.wait()
                if not self._error_was_raised:
                    self._raise_error()
        finally:
            await self.cancel()

    async def cancel(self) -> None:
        """Ends the call at once; results that have not arrived are lost. Harmless when the stream is not open.

        A source that is being fed gets a second to notice.
        """
        self._stop_feed()
        self._error_was_raised |= not self._engine.over.is_set()  # to be cancelled is no error for who cancels
        await self._engine.cancel()
        if self._feeder is not None and not self._feeder.done():
            await asyncio.wait({self._feeder}, timeout=source.STOP_GRACE_S)

    @property
    def started(self) -> StreamStarted:
        """What the server accepted: ids, model, limits. After a reconnect, its newest answer."""
        if self._engine.started is None:
            self._engine.check_started()
            self._raise_error()
            raise MisuseError("the server has not accepted the stream yet", ErrorDetails(reason="NOT_OPEN"))
        return self._engine.started

    @property
    def config(self) -> StreamConfig:
        """What was asked of the server; after a reconnect, with the offset of the replay."""
        return self._engine.config

    @property
    def turn_result(self) -> TurnResult | None:
        """The first TurnResult, once it has arrived."""
        return self._engine.turn_result

    # -- sending

    async def push(self, pcm: "Pcm") -> None:
        """Sends audio: raw bytes in the stream's encoding (any split), or a mono array of the encoding's dtype.

        Waits while more than two seconds of audio are on their way to a slow network or server. Raises KibunError if
        the stream failed, TurnEndedError if it was ended, InvalidRequestError for audio of the wrong type, MisuseError
        while a source is fed.
        """
        self._check_open()
        self._check_no_feed("push() would mix its audio with that of the source that is being fed")
        await self._push(pcm)

    def feed(self, chunks: "AsyncIterable[Pcm] | Iterable[Pcm]", *, end: bool = True) -> None:
        """Pushes all of `chunks` in the background, then ends the stream (unless `end` is False).

        What is not asynchronous may block: it is read in a thread of its own. A generator is closed at the end. An
        exception of the source cancels the call and is raised, as it is, by the iteration over events; one that cannot
        be (CancelledError, GeneratorExit) becomes SourceError. Raises as `push` does.
        """
        source.check_source(chunks)
        self._check_open()
        self._check_no_feed("feed() reads one source at a time, and is reading one")
        self._feeder = asyncio.get_running_loop().create_task(self._feed(chunks, end))

    async def wait_fed(self, timeout_s: float | None = None) -> None:
        """Waits until the source that is fed was read to its end and pushed, or the stream is over.

        Raises KibunError if the stream failed, DeadlineError after `timeout_s`.
        """
        check_timeout(timeout_s)
        self._engine.check_started()
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_fed()
        except TimeoutError:
            raise DeadlineError(f"the source that is fed did not end within {timeout_s} s") from None
        self._raise_error()

    def end(self, *, stop_feed: bool = False) -> None:
        """Nothing more will be pushed: the server finalizes the open utterance and turn. May be repeated.

        While a source is fed, MisuseError is raised, as its rest would be lost: it ends the stream by itself, or is to
        be waited for by `wait_fed`. `stop_feed` reads it no more, and ends with what was pushed so far.
        """
        self._engine.check_started()
        if stop_feed:
            self._stop_feed()
        elif self._engine.takes_audio:
            self._check_no_feed("end() would cut off the source that is being fed")
        self._engine.close_input()

    async def wait_ended(self, timeout_s: float | None = None) -> StreamEnded | None:
        """Reads what is fed to its end, ends the stream and waits for the server's final answer.

        Returns None when the connection was lost after the result of a single turn. Raises KibunError, DeadlineError
        after `timeout_s`.
        """
        check_timeout(timeout_s)
        self._engine.check_started()
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_fed()
                self._engine.close_input()
                await self._engine.over.wait()
        except TimeoutError:
            late = "end of the source that is fed" if self._is_fed() else f"answer from {self._target}"
            raise DeadlineError(f"no {late} within {timeout_s} s") from None
        self._raise_error()
        return self._engine.ended

    # -- receiving

    def __aiter__(self) -> "Events":
        self._engine.check_started()
        self._was_iterated = True
        events = Events(self)
        self._loops.add(events)
        return events

    async def __anext__(self) -> Event:
        self._engine.check_started()
        if self._someone_waits:
            raise MisuseError(
                "two loops iterate over this stream at once, and each would get some of the events: use one, and hand "
                "events on from there",
                ErrorDetails(reason="READ_TWICE"),
            )
        self._someone_waits = True
        try:
            event = await self._engine.events.get()
        finally:
            self._someone_waits = False
        if event is not None:
            return event
        self._engine.events.put_nowait(None)  # further iterations end as well
        self._raise_error()
        raise StopAsyncIteration

    # -- helpers

    async def _push(self, pcm: "Pcm") -> None:
        config = self._engine.config
        data = payload_bytes(pcm, config.encoding)
        limit = self._engine.started.max_audio_content_bytes if self._engine.started else 0
        for piece in pieces(data, config.encoding, config.sample_rate_hz, limit):
            await self._put(piece)

    async def _put(self, item: bytes | EndOfTurn) -> None:
        try:
            await self._engine.put(item)
        except BaseException as error:
            self._error_was_raised |= error is self._engine.error
            raise

    def _check_open(self) -> None:
        self._engine.check_started()
        self._raise_error()
        self._engine.check_open()

    def _raise_error(self) -> None:
        if self._engine.error is not None:
            self._error_was_raised = True
            raise self._engine.error

    # -- feeding

    async def _feed(self, chunks: "AsyncIterable[Pcm] | Iterable[Pcm]", end: bool) -> None:
        try:
            async with aclosing(source.read(chunks)) as read:
                async for chunk in read:
                    try:
                        await self._push(chunk)
                    except TurnEndedError:
                        return  # the server ended the turn while the source went on
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._engine.fail(error)
        if end:
            self._engine.close_input()

    def _is_fed(self) -> bool:
        return self._feeder is not None and not self._feeder.done()

    def _check_no_feed(self, problem: str) -> None:
        if self._is_fed():
            raise MisuseError(
                f"{problem}: wait for its end with wait_fed(), or stop it with end(stop_feed=True)",
                ErrorDetails(reason="SOURCE_RUNNING"),
            )

    def _stop_feed(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()

    async def _until_fed(self) -> None:
        if self._feeder is None or self._feeder.done():
            return
        over = asyncio.ensure_future(self._engine.over.wait())
        try:
            await asyncio.wait({self._feeder, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()


class Events(AsyncIterator[Event]):
    """One loop over the events of a stream, by which the stream knows when that was left: at the latest when this is
    gone, but a variable, a traceback or a generator may keep it.
    """

    def __init__(self, stream: AudioStream) -> None:
        self._stream = stream
        # Who runs it; None until it has begun. Weak, as its frame holds this in turn.
        self._reader: ReferenceType[Reader] | None = None

    async def __anext__(self) -> Event:
        return await self.next(asyncio.current_task())

    async def next(self, reader: Reader | None) -> Event:
        """The next event, for the loop of `reader`."""
        self._reader = ref(reader) if reader else None
        return await self._stream.__anext__()

    def goes_on_without(self, who: Reader | None) -> bool:
        """Whether it may be under way while `who` is not in it."""
        if self._reader is None:
            return True
        reader = self._reader()
        if reader is None or reader is who:
            return False
        if isinstance(reader, threading.Thread):
            return reader.is_alive()
        return not (reader.done() or reader.cancelling())


class AsyncStream(AudioStream):
    """A stream of one or more turns, made by `AsyncClient.stream`. A lost connection is an error here."""

    def __init__(self, transport: Transport, config: StreamConfig) -> None:
        super().__init__(transport, config, NO_RETRY, single_turn=False)

    async def end_of_turn(self, next_turn_id: str = "") -> None:
        """Ends the turn after the audio pushed so far; what is pushed next belongs to `next_turn_id`."""
        check_value("next_turn_id", next_turn_id, str)
        self._engine.check_started()
        await self._put(EndOfTurn(next_turn_id))
