"""One stream: requests in, replies out. Knows neither gRPC nor torch.

Two tasks and one loop. `Listener` turns audio into utterances as it arrives; `Analysis` answers the finished ones
one after the other; `Session.run` hands out what both put into the outbox. Speech events and interims overtake
finals that are still being computed; finals and turn results never change their order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import suppress

from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import Vad
from kibun.server.conversation.store import ConversationStore
from kibun.server.errors import Failure
from kibun.server.inference.backend import Analyzer, ModelInfo
from kibun.server.observability.telemetry import CallTelemetry
from kibun.server.session.context import Stream
from kibun.server.session.conversation_handle import ConversationHandle
from kibun.server.session.events import (
    Event,
    Limits,
    Reply,
    Request,
    StreamEnded,
    StreamOptions,
    StreamStarted,
    StreamWarning,
    TurnResult,
    UtteranceResult,
)
from kibun.server.session.listener import Listener
from kibun.server.session.open_streams import OpenStream, OpenStreams
from kibun.server.session.responder import Responder

OUTBOX = 64  # replies waiting for a slow reader
CANCEL_AGAIN_S = 0.1


class Session:
    """Runs one stream.

    `new_turn_id` makes ids for turns that the client did not name; `make_vad` makes this stream's own VAD.
    """

    def __init__(
        self,
        request_id: str,
        options: StreamOptions,
        model: ModelInfo,
        *,
        analyzer: Analyzer,
        store: ConversationStore,
        live: OpenStreams,
        make_vad: Callable[[int], Vad],
        new_turn_id: Callable[[], str],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        telemetry: CallTelemetry | None = None,
    ) -> None:
        # A result and not an exception of this future, so that nobody has to have looked at it.
        self._ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._outbox: asyncio.Queue[Event | Exception] = asyncio.Queue(OUTBOX)
        self._streams = live
        self._live = OpenStream(
            options.tenant,
            options.conversation_id,
            options.participant_id,
            options.turn_id,
            end=self._end,
            warn=self._warn,
        )
        self._held = ConversationHandle(options, model, store, self._ended, self._live)
        self._telemetry = telemetry or CallTelemetry.unwatched()
        self._stream = Stream(
            request_id, options, limits, model, self._held, self._live, live, self._outbox, self._telemetry
        )
        self._make_vad = make_vad
        self._new_turn_id = new_turn_id
        self._clock = clock
        self._analysis = Responder(self._stream, analyzer, self._spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._finishing: asyncio.Task[None] | None = None  # the latest turn whose result was written
        self._failure: Failure | None = None  # ends the stream once all is answered

    async def run(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Reply, None]:
        """Yields every reply, `Started` first and `Ended` last.

        Raises Failure where the stream cannot go on, and whatever else went wrong. Must be closed (`aclosing`);
        closing it early drops all that is still queued.
        """
        try:
            await self._streams.settled(self._live, self._stream.options.turn_id)
            created = await self._held.enter()
            started = self._started(created)
            for warning in self._stream.options.warnings:
                self._warn(warning)
            listener = self._listener()
            self._streams.add(self._live)
            for task in (self._listen(listener, requests), self._analyse(listener), self._held.keep_alive()):
                self._spawn(task)
            yield Reply(started, 0, 0)
            while True:
                event = await self._next_event()
                yield self._reply(event, listener)
                if isinstance(event, UtteranceResult):
                    self._telemetry.wrote(final=event.is_final, speech_samples=event.analyzed)
                if isinstance(
                    event, TurnResult
                ):  # finished only now that its result was written, whoever cancels the call
                    self._finishing = asyncio.create_task(self._finish(event.turn_id))
                    await asyncio.shield(self._finishing)
                self._outbox.task_done()
                if isinstance(event, StreamEnded):
                    return
        finally:
            if self._finishing is not None:
                await asyncio.gather(self._finishing, return_exceptions=True)
            self._streams.remove(self._live)
            await self._cancel_tasks()
            await self._held.leave(alone=lambda: not self._streams.has(self._live.conversation))

    async def _finish(self, turn_id: str) -> None:
        with self._live.finishing(turn_id):
            await self._held.finish_turn(turn_id)
            self._live.turn_ids.discard(turn_id)

    # ---- tasks

    async def _listen(self, listener: Listener, requests: AsyncIterator[Request]) -> None:
        self._failure = await listener.run(requests)
        await self._analysis.close()

    async def _analyse(self, listener: Listener) -> None:
        await self._analysis.run()
        if self._failure is not None:
            raise self._failure
        await self._outbox.join()  # every turn is finished, and the conversation says so
        await self._held.refresh()
        await self._outbox.put(self._account(listener))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Runs beside the loop until the stream ends. What it raises ends the stream, after what was told before."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                await self._outbox.put(error)

        task = asyncio.create_task(guarded())
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step, it never ran
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cancel_tasks(self) -> None:
        """Asks more than once: asyncio.wait_for of Python 3.11, which libraries use, can lose a cancellation."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CANCEL_AGAIN_S)

    # ---- replies

    async def _next_event(self) -> Event:
        """The next event from the outbox. Raises what ends the stream."""
        item = self._ended.result() if self._ended.done() else await self._outbox.get()
        if self._ended.done():  # meanwhile
            item = self._ended.result()
        if isinstance(item, Exception):
            raise item
        return item

    def _reply(self, event: Event, listener: Listener) -> Reply:
        received, processed = listener.received, listener.settled
        if isinstance(event, StreamEnded):
            processed = received
        elif self._analysis.waits_from is not None:
            processed = min(processed, self._analysis.waits_from)
        return Reply(event, received, processed)

    def _account(self, listener: Listener) -> StreamEnded:
        received, speech, dropped = listener.received, self._analysis.speech, self._analysis.dropped
        return StreamEnded(
            reason="COMPLETED",
            received=received,
            speech=speech,
            non_speech=received - speech - dropped,
            dropped=dropped,
            conversation=self._held.conversation,
            model=self._stream.model,
        )

    def _started(self, created: bool) -> StreamStarted:
        participant, ttl_s = self._held.participant, self._held.conversation.ttl_s
        heard = len(participant.heard)
        return StreamStarted(self._stream.options.turn_id, created, heard, ttl_s, participant.given_traits)

    # ---- from outside

    def _end(self, failure: Failure) -> None:
        """Ends the stream at once, whatever is queued."""
        if not self._ended.done():
            self._ended.set_result(failure)
            with suppress(asyncio.QueueFull):  # an empty outbox may be waited for; what lies in it is not looked at
                self._outbox.put_nowait(failure)

    def _warn(self, warning: StreamWarning) -> None:
        """A reader too slow to have room for it misses it."""
        with suppress(asyncio.QueueFull):
            self._outbox.put_nowait(warning)

    # ---- opening

    def _listener(self) -> Listener:
        """A stream that resumes its turn exactly where an utterance ended goes on in the same state. What the server
        has of it may be lost; then the client's word counts.
        """
        options = self._stream.options
        before = self._held.resumed_after()
        segmenter = Segmenter(
            options.endpointing,
            self._make_vad(options.endpointing.vad_aggressiveness),
            resume_after=before.reason if before else options.resumes_after,
        )
        return Listener(self._stream, self._analysis, segmenter, new_turn_id=self._new_turn_id, clock=self._clock)
