"""One turn of one participant, on its own stream, which survives a lost connection."""

from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kibun.client.errors import ErrorDetails, InternalError
from kibun.client.events import Event, StreamEnded, StreamStarted, TurnResult
from kibun.client.options import RetryPolicy, StreamConfig
from kibun.client.stream import AsyncStream
from kibun.client.transport import Transport

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm


class AsyncTurn:
    """A turn, made by `AsyncConversation.turn`: an async context manager and an async iterator of `Event`.

        async with conversation.turn() as turn:
            turn.feed(microphone)              # or: await turn.push(chunk) … turn.end()
            async for event in turn:
                ...
            result = await turn.result()

    When the connection is lost, the turn is reopened and the audio that has no final yet is sent again; events go on
    with a `StreamStarted` whose `reconnects` counts. No final is lost or doubled.
    """

    def __init__(self, transport: Transport, config: StreamConfig, retry: RetryPolicy) -> None:
        self._stream = AsyncStream(transport, config, retry=retry, single_turn=True)

    async def open(self) -> StreamStarted:
        """Opens the turn and waits until the server accepted it. Raises KibunError."""
        return await self._stream.open()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, trace)

    async def cancel(self) -> None:
        """Ends the call at once; results that have not arrived are lost. Harmless when the turn is over."""
        await self._stream.cancel()

    def abort(self, error: BaseException) -> None:
        """Ends the call at once because of `error`, which everyone who uses the turn will see."""
        self._stream.abort(error)

    @property
    def started(self) -> StreamStarted:
        """What the server accepted: ids, model, limits. After a reconnect, its newest answer."""
        return self._stream.started

    @property
    def config(self) -> StreamConfig:
        """What was asked of the server; after a reconnect, with the offset of the replay."""
        return self._stream.config

    @property
    def turn_id(self) -> str:
        """Id of this turn, even if the server chose it."""
        return self.started.turn_id

    @property
    def ended(self) -> bool:
        """True once the server has sent the turn's result, on its own or because `end` was called."""
        return self._stream.turn_result is not None

    async def push(self, pcm: "Pcm") -> None:
        """Sends audio: raw bytes in the turn's encoding (any split), or a mono array of the encoding's dtype.

        Waits while more than two seconds of audio are on their way to a slow network or server. Raises the turn's
        error if it failed, TurnEndedError if it has ended, InvalidRequestError for an array of the wrong type.
        """
        await self._stream.push(pcm)

    def feed(self, chunks: "AsyncIterable[Pcm] | Iterable[Pcm]", *, end: bool = True) -> None:
        """Pushes all of `chunks` in the background, then ends the turn (unless `end` is False).

        An exception of the source cancels the call and is raised, as it is, by the iteration over events.
        """
        self._stream.feed(chunks, end=end)

    def end(self) -> None:
        """The participant has finished: the server finalizes the open utterance and the turn. May be repeated."""
        self._stream.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            event = await anext(self._stream)
            # A server that ended the turn itself may close an empty next one as well, which is not this turn.
            if not (isinstance(event, TurnResult) and event.turn_id != self.turn_id):
                return event

    async def result(self, timeout_s: float | None = None) -> TurnResult:
        """Ends the turn and waits for its result. Raises KibunError, DeadlineError after `timeout_s`."""
        if self._stream.turn_result is None:
            await self._stream.wait_ended(timeout_s)
        if self._stream.turn_result is None:
            raise InternalError("the server ended the stream without a result", ErrorDetails("NO_TURN_RESULT"))
        return self._stream.turn_result

    async def wait_ended(self, timeout_s: float | None = None) -> StreamEnded | None:
        """Ends the turn and waits for the totals of its audio and the conversation's state; None if the connection
        was lost after the result. Raises KibunError, DeadlineError after `timeout_s`.
        """
        return await self._stream.wait_ended(timeout_s)
