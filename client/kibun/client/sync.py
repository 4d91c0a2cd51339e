"""The synchronous client: the asynchronous one, run in its own thread.

Every method blocks until the answer is there. A `Client` may be used from several threads; one turn from two: one
that pushes, one that iterates.
"""

import asyncio
import concurrent.futures
import os
import threading
import warnings
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from kibun.client import forking
from kibun.client.client import AsyncClient, AsyncConversation, ClientOptions
from kibun.client.errors import ErrorDetails, MisuseError
from kibun.client.events import AnalyzeResult, Event, StreamEnded, StreamStarted, TurnResult, WatchStarted
from kibun.client.options import RetryPolicy, StreamConfig, TurnOptions
from kibun.client.resources import ConversationState, ServiceInfo
from kibun.client.stream import AsyncStream, AudioStream, Events
from kibun.client.transport import client_closed
from kibun.client.turn import AsyncTurn
from kibun.client.watch import AsyncWatch, Watched
from kibun.v1 import speech_analysis_pb2 as pb

if TYPE_CHECKING:
    from kibun.client.audio_file import AudioFile
    from kibun.client.pcm import Pcm

T = TypeVar("T")
Twin = TypeVar("Twin", bound=AudioStream)

# For a source of the caller's own that does not notice that it was cancelled, and for closing an idle connection.
_STOP_S = 5.0


class LoopThread:
    """An event loop in a daemon thread, started by the first call that needs it.

    Before a fork it is stopped, if all that it does can be interrupted, and goes on after it in the parent; the child
    starts anew on its next use (see `forking`).
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._transport = client._transport
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._thread_is_paused = False
        forking.watch(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there and waits for it; an interrupt (Ctrl-C) here cancels it. Raises MisuseError."""
        try:
            forking.check()
            with self._lock:
                if self._closed:
                    raise client_closed()
                self._check_thread()
                future = asyncio.run_coroutine_threadsafe(_outcome(coroutine), self._running_loop())
        except BaseException:
            coroutine.close()
            raise
        try:
            value, error = future.result()
        except concurrent.futures.CancelledError:  # by `close`, in another thread
            raise client_closed() from None
        except BaseException:
            future.cancel()
            raise
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # None only beside an error

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Calls a plain function there."""

        async def run() -> T:
            return function(*arguments, **options)

        return self.run(run())

    def close(self) -> None:
        """Closes the client, frees whoever waits in `run`, and stops the thread. May be repeated."""
        with self._lock:
            if self._closed or self._loop is None or forking.is_broken():
                self._closed = True
                return
            self._check_thread()
            self._closed = True
            closing = asyncio.run_coroutine_threadsafe(_close_all(self._client), self._loop)
        closing.result()
        self._stop()

    def before_fork(self) -> bool:
        self._lock.acquire()
        if self._loop is None or self._closed or threading.current_thread() is self._thread:
            return False
        done = threading.Event()
        pausing = asyncio.run_coroutine_threadsafe(self._pause(self._loop, done), self._loop)
        if done.wait(_STOP_S) and self._thread_is_paused and self._thread is not None:
            self._thread.join()
            self._thread = None
        else:
            pausing.cancel()
        return self._thread_is_paused

    def after_fork(self, *, in_child: bool) -> None:
        if self._thread_is_paused:
            self._thread_is_paused = False
            if self._loop is not None and in_child:
                forking.leave_to_parent((self._loop, asyncio.all_tasks(self._loop)))
                self._loop = None
            elif self._loop is not None:
                self._loop.call_soon_threadsafe(self._transport.resume)
                self._start(self._loop)
        self._lock.release()

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise MisuseError(
                "a synchronous client cannot be used by code that runs in its own thread, such as an asynchronous "
                "source: use AsyncClient there",
                ErrorDetails(reason="WRONG_EVENT_LOOP"),
            )

    async def _pause(self, loop: asyncio.AbstractEventLoop, done: threading.Event) -> None:
        try:
            self._thread_is_paused = await self._transport.pause()
        finally:
            if self._thread_is_paused:
                loop.stop()
            else:
                self._transport.resume()
            done.set()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._start(self._loop)
        return self._loop

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._thread = threading.Thread(target=loop.run_forever, name="kibun-client", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def __del__(self) -> None:
        if self._loop is None or self._closed or forking.is_broken():
            return
        warnings.warn(
            f"a client of {self._client.target} was not closed: write `with Client(…) as client:`, or call close()",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )
        # Not `close`, which waits: this may run in any thread, also in its own.
        self._loop.call_soon_threadsafe(_end, self._loop, self._client)


class Client:
    """Synchronous twin of `AsyncClient`, with the same arguments. Use it as a context manager, or `close` it."""

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        self._client = AsyncClient(target, **options)
        self._thread = LoopThread(self._client)
        self.target = target

    def __enter__(self) -> Self:
        if self._thread.closed:
            raise client_closed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and stops the thread. May be repeated, and called in any thread.

        Every thread that waits for an answer, or for an event, gets MisuseError.
        """
        self._thread.close()

    def conversation(self, conversation_id: str | None = None) -> "Conversation":
        """A handle on a conversation, by default one with a new id; nothing is sent yet."""
        return Conversation(self._thread, self._client.conversation(conversation_id))

    def stream(self, config: StreamConfig) -> "Stream":
        """A stream that may carry several turns of one participant; it does not resume after a lost connection."""
        return Stream(self._thread, self._client.stream(config))

    def turn(
        self, config: StreamConfig, *, audio: "AudioFile | None" = None, retry: RetryPolicy | None = None
    ) -> "Turn":
        """A single turn as described by `config`; `Conversation.turn` is a shortcut.

        `audio`: a recording that the turn is fed with once it is open; rate and encoding are the recording's, whatever
        `config` has.
        """
        return Turn(self._thread, self._client.turn(config, audio=audio, retry=retry))

    def watch(
        self,
        conversation_id: str,
        *,
        include_past: bool = False,
        require_existing: bool = False,
        retry: RetryPolicy | None = None,
    ) -> "Watch":
        """What others say in a conversation, as they are told it; `Conversation.watch` is a shortcut."""
        watch = self._client.watch(
            conversation_id, include_past=include_past, require_existing=require_existing, retry=retry
        )
        return Watch(self._thread, watch)

    def analyze(
        self, pcm: "Pcm", config: StreamConfig | None = None, *, timeout_s: float | None = None
    ) -> AnalyzeResult:
        """Analyses one short recording in one request (a stream has no limit of length). Raises KibunError.

        `timeout_s`: in place of the client's.
        """
        return self._thread.run(self._client.analyze(pcm, config, timeout_s=timeout_s))

    def get_conversation(self, conversation_id: str) -> ConversationState:
        """State of a conversation. Raises NotFoundError when the server does not know it (any more)."""
        return self._thread.run(self._client.get_conversation(conversation_id))

    def get_conversation_proto(self, conversation_id: str) -> pb.GetConversationResponse:
        """The same, as the message that was received."""
        return self._thread.run(self._client.get_conversation_proto(conversation_id))

    def complete_conversation(self, conversation_id: str) -> ConversationState:
        """Marks a conversation as completed: no further turns. Raises NotFoundError."""
        return self._thread.run(self._client.complete_conversation(conversation_id))

    def delete_conversation(self, conversation_id: str, *, allow_missing: bool = False) -> None:
        """Erases all state of a conversation. Raises NotFoundError unless `allow_missing`."""
        self._thread.run(self._client.delete_conversation(conversation_id, allow_missing=allow_missing))

    def service_info(self) -> ServiceInfo:
        """Models, scales and limits of the server."""
        return self._thread.run(self._client.service_info())

    def service_info_proto(self) -> pb.GetServiceInfoResponse:
        """The same, as the message that was received."""
        return self._thread.run(self._client.service_info_proto())

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Waits until the server reports SERVING, i.e. that its model is loaded and warm.

        Raises UnavailableError (reason NOT_READY) after `timeout_s`, with what the last attempt saw.
        """
        self._thread.run(self._client.wait_until_ready(timeout_s))


class Conversation:
    """Synchronous twin of `AsyncConversation`."""

    def __init__(self, thread: LoopThread, conversation: AsyncConversation) -> None:
        self._thread = thread
        self._conversation = conversation
        self.conversation_id: str = conversation.conversation_id

    def turn(
        self,
        turn_id: str | None = None,
        participant_id: str = "user",
        *,
        audio: "AudioFile | None" = None,
        retry: RetryPolicy | None = None,
        **options: Unpack[TurnOptions],
    ) -> "Turn":
        """A turn of `participant_id`, to be opened with `with`; `options` as in `StreamConfig`.

        With `audio`, a recording, the turn is fed with it once it is open, and takes rate and encoding from it. Raises
        InvalidRequestError for an option that cannot be sent, TypeError for one that does not exist.
        """
        turn = self._conversation.turn(turn_id, participant_id, audio=audio, retry=retry, **options)
        return Turn(self._thread, turn)

    def watch(
        self, *, include_past: bool = False, require_existing: bool = False, retry: RetryPolicy | None = None
    ) -> "Watch":
        """What others say in this conversation, to be opened with `with`.

        `include_past`: first what the server has stored of it. A conversation that nobody has spoken in is waited for;
        `require_existing`: NotFoundError instead.
        """
        watch = self._conversation.watch(include_past=include_past, require_existing=require_existing, retry=retry)
        return Watch(self._thread, watch)

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
    """What `Stream` and `Turn` share: blocking calls of their asynchronous twin, where each is described."""

    def __init__(self, thread: LoopThread, twin: Twin) -> None:
        self._thread = thread
        self._twin = twin
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.closed and (error is not None or self._twin._error_was_raised):
            return  # the client has ended the stream, and whoever left the block knows it
        if error is None or os.getpid() == self._pid:  # the stream of a parent is not the child's to close
            self._thread.run(self._twin._leave(error, threading.current_thread()))

    def open(self, timeout_s: float | None = None) -> StreamStarted:
        """Opens it and waits until the server accepted it; `with` does so by itself.

        Raises KibunError, DeadlineError after `timeout_s` (None: the client's, if it was given one), MisuseError if it
        is over.
        """
        return self._thread.run(self._twin.open(timeout_s))

    def cancel(self) -> None:
        """Ends the call at once; results that have not arrived are lost. Harmless when it is over."""
        self._thread.run(self._twin.cancel())

    @property
    def started(self) -> StreamStarted:
        """What the server accepted: ids, model, limits. After a reconnect, its newest answer."""
        return self._twin.started

    @property
    def config(self) -> StreamConfig:
        """What was asked of the server; after a reconnect, with the offset of the replay."""
        return self._twin.config

    @property
    def turn_result(self) -> TurnResult | None:
        """The first TurnResult, once it has arrived."""
        return self._twin.turn_result

    def push(self, pcm: "Pcm") -> None:
        """Sends audio: raw bytes in the stream's encoding (any split), or a mono array of the encoding's dtype.

        Blocks while more than two seconds of audio are on their way to a slow network or server. Raises KibunError if
        the stream failed, TurnEndedError if it was ended, InvalidRequestError for audio of the wrong type, MisuseError
        while a source is fed.
        """
        self._thread.run(self._twin.push(pcm))

    def feed(self, chunks: "AsyncIterable[Pcm] | Iterable[Pcm]", *, end: bool = True) -> None:
        """Pushes all of `chunks` in the background, then ends the stream (unless `end` is False).

        What is not asynchronous may block: it is read in a thread of its own. A generator is closed at the end. An
        exception of the source cancels the call and is raised, as it is, by the iteration over events; one that cannot
        be (CancelledError, GeneratorExit) becomes SourceError. Raises as `push` does.
        """
        self._thread.call(self._twin.feed, chunks, end=end)

    def wait_fed(self, timeout_s: float | None = None) -> None:
        """Waits until the source that is fed was read to its end and pushed, or the stream is over.

        Raises KibunError if the stream failed, DeadlineError after `timeout_s`.
        """
        self._thread.run(self._twin.wait_fed(timeout_s))

    def end(self, *, stop_feed: bool = False) -> None:
        """Nothing more will be pushed: the server finalizes the open utterance and turn. May be repeated.

        While a source is fed, MisuseError is raised, as its rest would be lost: it ends the stream by itself, or is to
        be waited for by `wait_fed`. `stop_feed` reads it no more, and ends with what was pushed so far.
        """
        self._thread.call(self._twin.end, stop_feed=stop_feed)

    def wait_ended(self, timeout_s: float | None = None) -> StreamEnded | None:
        """Reads what is fed to its end, ends the stream and waits for the server's final answer.

        Returns None when the connection was lost after the result of a single turn. Raises KibunError, DeadlineError
        after `timeout_s`.
        """
        return self._thread.run(self._twin.wait_ended(timeout_s))

    def __iter__(self) -> Iterator[Event]:
        return _Events(self._thread, self._thread.call(self._twin.__aiter__))

    def __next__(self) -> Event:
        return _next(self._thread, self._twin.__anext__())


class _Events(Iterator[Event]):
    """One loop over the events of a stream."""

    def __init__(self, thread: LoopThread, events: Events) -> None:
        self._thread = thread
        self._events = events

    def __next__(self) -> Event:
        return _next(self._thread, self._events.next(threading.current_thread()))


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
        """Reads what is fed to its end, ends the turn and waits for its result.

        Raises KibunError, DeadlineError after `timeout_s`. A source without an end, such as a microphone, is to be
        stopped before: `end(stop_feed=True)`. Once it has arrived, it can be had after `close` as well.
        """
        return self._twin.turn_result or self._thread.run(self._twin.result(timeout_s))


class Watch:
    """Synchronous twin of `AsyncWatch`."""

    def __init__(self, thread: LoopThread, twin: AsyncWatch) -> None:
        self._thread = thread
        self._twin = twin
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._thread.closed and os.getpid() == self._pid:  # the watch of a parent is not the child's to end
            self.cancel()

    def open(self, timeout_s: float | None = None) -> WatchStarted:
        """Opens the watch and waits until the server accepted it; `with` does so by itself.

        Raises KibunError, DeadlineError after `timeout_s` (None: the client's, if it was given one), MisuseError if the
        watch is over.
        """
        return self._thread.run(self._twin.open(timeout_s))

    def cancel(self) -> None:
        """Ends the watch at once. Harmless when it is not open."""
        self._thread.run(self._twin.cancel())

    @property
    def started(self) -> WatchStarted:
        """What the conversation was when the watch began; after a reconnect, when it began again."""
        return self._thread.call(lambda: self._twin.started)

    def __iter__(self) -> Iterator[Watched]:
        self._thread.call(self._twin.__aiter__)
        return self

    def __next__(self) -> Watched:
        return _next(self._thread, self._twin.__anext__())


def _next(thread: LoopThread, coming: Coroutine[Any, Any, T]) -> T:
    try:
        return thread.run(coming)
    except StopAsyncIteration:
        raise StopIteration from None


async def _close_all(client: AsyncClient) -> None:
    """Closes the client, and ends what else runs in its loop."""
    await client.close()
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=_STOP_S)


def _end(loop: asyncio.AbstractEventLoop, client: AsyncClient) -> None:
    """Ends the loop, and with it its thread, once the client is closed."""
    closing = loop.create_task(_close_all(client))
    closing.add_done_callback(lambda _: loop.stop())


async def _outcome(coroutine: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    """What the coroutine returns or raises. Raised here, SystemExit would end the loop, and others would be copied."""
    try:
        return await coroutine, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error
