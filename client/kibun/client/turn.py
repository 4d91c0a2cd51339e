"""One turn of one participant, on its own stream, which survives a lost connection."""

from typing import TYPE_CHECKING

from kibun.client.checks import check_timeout
from kibun.client.errors import ErrorDetails, InternalError
from kibun.client.events import Event, StreamStarted, TurnResult
from kibun.client.options import RetryPolicy, StreamConfig
from kibun.client.stream import AudioStream
from kibun.client.transport import Transport

if TYPE_CHECKING:
    from kibun.client.audio_file import AudioFile


class AsyncTurn(AudioStream):
    """A turn, made by `AsyncConversation.turn`: an async context manager and an async iterator of `Event`.

        async with conversation.turn() as turn:
            turn.feed(microphone)              # or: await turn.push(chunk) … turn.end()
            async for event in turn:
                ...
            result = await turn.result()

    A turn made with `audio` is fed with that recording once it is open.

    When the connection is lost, the turn is reopened and the audio that has no final yet is sent again; events go on
    with a `StreamStarted` whose `reconnects` counts. No final is lost or doubled.
    """

    def __init__(
        self, transport: Transport, config: StreamConfig, retry: RetryPolicy, audio: "AudioFile | None" = None
    ) -> None:
        super().__init__(transport, config, retry, single_turn=True)
        self._audio = audio

    async def open(self, timeout_s: float | None = None) -> StreamStarted:
        """Opens the turn and waits until the server accepted it; `async with` does so by itself.

        Raises KibunError, DeadlineError after `timeout_s` (None: the client's, if it was given one), MisuseError if the
        turn is over.
        """
        started = await super().open(timeout_s)
        if self._audio is not None:
            audio, self._audio = self._audio, None  # once, though an open turn may be opened again
            self.feed(audio.chunks())
        return started

    @property
    def turn_id(self) -> str:
        """Id of this turn, even if the server chose it."""
        return self.started.turn_id

    @property
    def ended(self) -> bool:
        """True once the server has sent the turn's result, on its own or because `end` was called."""
        return self._engine.turn_result is not None

    async def __anext__(self) -> Event:
        while True:
            event = await super().__anext__()
            # A server that ended the turn itself may close an empty next one as well, which is not this turn.
            if not (isinstance(event, TurnResult) and event.turn_id != self.turn_id):
                return event

    async def result(self, timeout_s: float | None = None) -> TurnResult:
        """Reads what is fed to its end, ends the turn and waits for its result.

        Raises KibunError, DeadlineError after `timeout_s`. A source without an end, such as a microphone, is to be
        stopped before: `end(stop_feed=True)`.
        """
        check_timeout(timeout_s)
        if self._engine.turn_result is None:
            await self.wait_ended(timeout_s)
        if self._engine.turn_result is None:
            raise InternalError("the server ended the stream without a result", ErrorDetails("NO_TURN_RESULT"))
        return self._engine.turn_result
