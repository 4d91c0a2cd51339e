"""The synchronous client: the asynchronous one, run in its own thread.

Every method blocks until the answer is there. A `Client` may be used from several threads; one turn from two: one
that pushes, one that iterates.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from kibun.client.client import AsyncClient, AsyncConversation, ClientOptions
from kibun.client.errors import TurnEndedError
from kibun.client.events import AnalyzeResult, Event, StreamEnded, StreamStarted, TurnResult
from kibun.client.options import RetryPolicy, StreamConfig, TurnOptions
from kibun.client.resources import ConversationState, ServiceInfo
from kibun.client.stream import AsyncStream, AudioStream
from kibun.client.turn import AsyncTurn

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm

T = TypeVar("T")
Twin = TypeVar("Twin", bound=AudioStream)


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kibun-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there and waits for it; an interrupt (Ctrl-C) here cancels it."""
        if self._loop.is_closed():
            coroutine.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a plain function there."""

        async def run() -> T:
            return function(*arguments)

        return self.run(run())

    def close(self) -> None:
        """Stops the loop and the thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Client:
    """Synchronous twin of `AsyncClient`, with the same arguments. Use it as a context manager, or `close` it."""

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        self._thread = LoopThread()
        try:
            self._client = self._thread.call(partial(AsyncClient, target, **options))
        except BaseException:
            self._thread.close()
            raise
        self.target = target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and stops the thread; streams that are open are cancelled. May be repeated."""
        if not self._thread.closed:
            self._thread.run(self._client.close())
            self._thread.close()

    def conversation(self, conversation_id: str | None = None) -> "Conversation":
        """A handle on a conversation, by default one with a new id; nothing is sent yet."""
        return Conversation(self._thread, self._client.conversation(conversation_id))

    def stream(self, config: StreamConfig) -> "Stream":
        """A stream that may carry several turns of one participant; it does not resume after a lost connection."""
        return Stream(self._thread, self._thread.call(self._client.stream, config))

    def analyze(
        self, pcm: "Pcm", config: StreamConfig | None = None, *, timeout_s: float | None = None
    ) -> AnalyzeResult:
        """Analyses one short recording in one request (a stream has no limit of length). Raises KibunError."""
        return self._thread.run(self._client.analyze(pcm, config, timeout_s=timeout_s))

    def get_conversation(self, conversation_id: str) -> ConversationState:
        """State of a conversation. Raises NotFoundError when the server does not know it (any more)."""
        return self._thread.run(self._client.get_conversation(conversation_id))

    def complete_conversation(self, conversation_id: str) -> ConversationState:
        """Marks a conversation as completed: no further turns. Raises NotFoundError."""
        return self._thread.run(self._client.complete_conversation(conversation_id))

    def delete_conversation(self, conversation_id: str, *, allow_missing: bool = False) -> None:
        """Erases all state of a conversation. Raises NotFoundError unless `allow_missing`."""
        self._thread.run(self._client.delete_conversation(conversation_id, allow_missing=allow_missing))

    def service_info(self) -> ServiceInfo:
        """Models, scales and limits of the server."""
        return self._thread.run(self._client.service_info())

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Waits until the server reports SERVING. Raises UnavailableError after `timeout_s`."""
        self._thread.run(self._client.wait_until_ready(timeout_s))


class Conversation:
    """Synchronous twin of `AsyncConversation`."""

    def __init__(self, thread: LoopThread, conversation: AsyncConversation) -> None:
        self._thread = thread
        self._conversation = conversation

    @property
    def conversation_id(self) -> str:
        return self._conversation.conversation_id

    def turn(
        self,
        turn_id: str | None = None,
        participant_id: str = "user",
        *,
        retry: RetryPolicy | None = None,
        **options: Unpack[TurnOptions],
    ) -> "Turn":
        """A turn of `participant_id`, to be opened with `with`; options and errors as `AsyncConversation.turn`."""
        make = partial(self._conversation.turn, turn_id, participant_id, retry=retry, **options)
        return Turn(self._thread, self._thread.call(make))

    def get(self) -> ConversationState:
        """State of this conversation. Raises NotFoundError."""
        return self._thread.run(self._conversation.get())

    def complete(self) -> ConversationState:
        """Marks this conversation as completed: no further turns. Raises NotFoundError."""
        return self._thread.run(self._conversation.complete())

    def delete(self, *, allow_missing: bool = False) -> None:
        """Erases all state of this conversation. Raises NotFoundError unless `allow_missing`."""
        self._thread.run(self._conversation.delete(allow_missing=allow_missing))


class _Face(Generic[Twin]):
    """What `Stream` and `Turn` share: blocking calls of their asynchronous twin."""

    def __init__(self, thread: LoopThread, twin: Twin) -> None:
        self._thread = thread
        self._twin = twin
        self._feeder: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread.run(self._twin.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.run(self._twin.__aexit__(kind, error, trace))

    def cancel(self) -> None:
        """Ends the call at once; results that have not arrived are lost. Harmless when it is over."""
        self._thread.run(self._twin.cancel())

    @property
    def started(self) -> StreamStarted:
        """What the server accepted: ids, model, limits. After a reconnect, its newest answer."""
        return self._twin.started

    def push(self, pcm: "Pcm") -> None:
        """Sends audio; blocks while more than two seconds are on their way. Raises as `AsyncStream.push` does."""
        self._thread.run(self._twin.push(pcm))

    def feed(self, chunks: "Iterable[Pcm]", *, end: bool = True) -> None:
        """Pushes all of `chunks` from a separate thread, then ends the turn (unless `end` is False).

        An exception of the source cancels the call and is raised, as it is, by the iteration over events.
        """
        if self._feeder is not None and self._feeder.is_alive():
            raise RuntimeError("this stream is already being fed")
        self._feeder = threading.Thread(target=self._feed, args=(chunks, end), name="kibun-feed", daemon=True)
        self._feeder.start()

    def end(self) -> None:
        """Nothing more will be pushed: the server finalizes the open utterance and turn. May be repeated."""
        self._thread.call(self._twin.end)

    def wait_ended(self, timeout_s: float | None = None) -> StreamEnded | None:
        """Ends the turn and waits for the server's final answer. Raises KibunError, DeadlineError."""
        return self._thread.run(self._twin.wait_ended(timeout_s))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self._thread.run(_next_or_none(self._twin))
        if event is None:
            raise StopIteration
        return event

    def _feed(self, chunks: "Iterable[Pcm]", end: bool) -> None:
        try:
            for chunk in chunks:
                self.push(chunk)
        except TurnEndedError:
            return  # the server ended the turn while the source went on
        except Exception as error:
            self._thread.call(self._twin.abort, error)
        else:
            if end:
                self.end()


class Stream(_Face[AsyncStream]):
    """Synchronous twin of `AsyncStream`."""

    def end_of_turn(self, next_turn_id: str = "") -> None:
        """Ends the turn after the audio pushed so far; what is pushed next belongs to `next_turn_id`."""
        self._thread.run(self._twin.end_of_turn(next_turn_id))


class Turn(_Face[AsyncTurn]):
    """Synchronous twin of `AsyncTurn`."""

    @property
    def turn_id(self) -> str:
        """Id of this turn, even if the server chose it."""
        return self._twin.turn_id

    @property
    def ended(self) -> bool:
        """True once the server has sent the turn's result, on its own or because `end` was called."""
        return self._twin.ended

    def result(self, timeout_s: float | None = None) -> TurnResult:
        """Ends the turn and waits for its result. Raises KibunError, DeadlineError after `timeout_s`."""
        return self._thread.run(self._twin.result(timeout_s))


async def _next_or_none(events: AsyncIterator[Event]) -> Event | None:
    # StopAsyncIteration must not leave a task.
    return await anext(events, None)
