"""A stream of audio to the service and of events back: the lower level, which may carry several turns."""

import asyncio
from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kibun.client.engine import StreamEngine
from kibun.client.errors import DeadlineError, TurnEndedError
from kibun.client.events import Event, StreamEnded, StreamStarted, TurnResult
from kibun.client.options import RetryPolicy, StreamConfig
from kibun.client.pcm import payload_bytes, pieces
from kibun.client.replay import EndOfTurn
from kibun.client.transport import Transport

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm

NO_RETRY = RetryPolicy(max_attempts=1, replay_limit_s=0.0)


class AudioStream:
    """What `AsyncStream` and `AsyncTurn` share: an async context manager and an async iterator of `Event`.

    Leaving the block normally ends the stream and waits until the server has answered everything; leaving it by an
    exception cancels the call.
    """

    def __init__(self, transport: Transport, config: StreamConfig, retry: RetryPolicy, *, single_turn: bool) -> None:
        self._engine = StreamEngine(transport, config, retry, single_turn=single_turn)
        self._target = transport.target
        self._feeder: asyncio.Task[None] | None = None
        self._error_was_raised = False

    # -- opening and leaving

    async def open(self) -> StreamStarted:
        """Opens the stream and waits until the server accepted it. Raises KibunError."""
        self._engine.start()
        try:
            await self._engine.opened.wait()
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
        try:
            if error is None:
                self.end()
                await self._engine.over.wait()
                if not self._error_was_raised:
                    self._raise_error()
        finally:
            await self.cancel()

    async def cancel(self) -> None:
        """Ends the call at once; results that have not arrived are lost. Harmless when the stream is over."""
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.gather(self._feeder, return_exceptions=True)
        await self._engine.cancel()

    def abort(self, error: BaseException) -> None:
        """Ends the call at once because of `error`, which everyone who uses the stream will see."""
        self._engine.fail(error)

    @property
    def started(self) -> StreamStarted:
        """What the server accepted: ids, model, limits. After a reconnect, its newest answer."""
        if self._engine.started is None:
            raise RuntimeError("the stream is not open yet: use `async with`")
        return self._engine.started

    @property
    def config(self) -> StreamConfig:
        """What was asked of the server; after a reconnect, with the offset of the replay."""
        return self._engine.config

    # -- sending

    async def push(self, pcm: "Pcm") -> None:
        """Sends audio: raw bytes in the stream's encoding (any split), or a mono array of the encoding's dtype.

        Waits while more than two seconds of audio are on their way to a slow network or server. Raises the stream's
        error if it failed, TurnEndedError if it was ended, InvalidRequestError for an array of the wrong type.
        """
        config = self._engine.config
        self._check_open()
        data = payload_bytes(pcm, config.encoding)
        limit = self._engine.started.max_audio_content_bytes if self._engine.started else 0
        for piece in pieces(data, config.encoding, config.sample_rate_hz, limit):
            await self._put(piece)

    def feed(self, chunks: "AsyncIterable[Pcm] | Iterable[Pcm]", *, end: bool = True) -> None:
        """Pushes all of `chunks` in the background, then ends the stream (unless `end` is False).

        An exception of the source cancels the call and is raised, as it is, by the iteration over events.
        """
        if self._feeder is not None and not self._feeder.done():
            raise RuntimeError("this stream is already being fed")
        self._feeder = asyncio.create_task(self._feed(chunks, end))

    def end(self) -> None:
        """Nothing more will be pushed: the server finalizes the open utterance and turn. May be repeated."""
        self._engine.close_input()

    async def wait_ended(self, timeout_s: float | None = None) -> StreamEnded | None:
        """Ends the stream and waits for the server's final answer: None when the connection was lost after the result
        of a single turn. Raises KibunError, DeadlineError after `timeout_s`.
        """
        self.end()
        try:
            async with asyncio.timeout(timeout_s):
                await self._engine.over.wait()
        except TimeoutError:
            raise DeadlineError(f"no answer from {self._target} within {timeout_s} s") from None
        self._raise_error()
        return self._engine.ended

    # -- receiving

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._engine.events.get()
        if event is not None:
            return event
        self._engine.events.put_nowait(None)  # further iterations end as well
        self._raise_error()
        raise StopAsyncIteration

    # -- helpers

    async def _put(self, item: bytes | EndOfTurn) -> None:
        try:
            await self._engine.put(item)
        except BaseException as error:
            self._error_was_raised |= error is self._engine.error
            raise

    def _check_open(self) -> None:
        self._raise_error()
        self._engine.check_open()

    def _raise_error(self) -> None:
        if self._engine.error is not None:
            self._error_was_raised = True
            raise self._engine.error

    async def _feed(self, chunks: "AsyncIterable[Pcm] | Iterable[Pcm]", end: bool) -> None:
        try:
            if isinstance(chunks, AsyncIterable):
                async for chunk in chunks:
                    await self.push(chunk)
            else:
                for chunk in chunks:
                    await self.push(chunk)
        except TurnEndedError:
            return  # the server ended the turn while the source went on
        except Exception as error:
            self._engine.fail(error)
        if end:
            self.end()


class AsyncStream(AudioStream):
    """A stream of one or more turns, made by `AsyncClient.stream`. A lost connection is an error here."""

    def __init__(self, transport: Transport, config: StreamConfig) -> None:
        super().__init__(transport, config, NO_RETRY, single_turn=False)

    async def end_of_turn(self, next_turn_id: str = "") -> None:
        """Ends the turn after the audio pushed so far; what is pushed next belongs to `next_turn_id`."""
        await self._put(EndOfTurn(next_turn_id))

    @property
    def turn_result(self) -> TurnResult | None:
        """The first TurnResult that has arrived."""
        return self._engine.turn_result
