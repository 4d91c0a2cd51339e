"""One stream: requests in, replies out. Knows neither gRPC nor torch.

Two tasks and one loop. Up: `Listener` reads requests and decodes audio, `TurnTracker` divides it into segments and
turns, `Responder` queues them. Down: `Responder` answers them one after the other, with the `Estimator` that runs the
model and the `ConversationHandle` that stores what it estimates, and puts results into the `Outbox`; `Session.run`
sends what lies there. Speech events and interims overtake finals that are still being computed; finals and turn results
never change their order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import Vad
from kibun.server.conversation.store import ConversationStore
from kibun.server.errors import Failure
from kibun.server.inference.backend import Analyzer, ModelInfo
from kibun.server.observability.telemetry import CallTelemetry
from kibun.server.session.audio_watch import AudioWatch
from kibun.server.session.conversation_handle import ConversationHandle
from kibun.server.session.estimator import Estimator
from kibun.server.session.events import (
    Limits,
    Reply,
    Request,
    StreamEnded,
    StreamOptions,
    StreamStarted,
    TurnResult,
    UtteranceResult,
)
from kibun.server.session.listener import Listener
from kibun.server.session.open_streams import OpenStream, OpenStreams
from kibun.server.session.outbox import Outbox
from kibun.server.session.responder import Responder
from kibun.server.session.tasks import Tasks
from kibun.server.session.turn_tracker import TurnTracker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What every session of a server is built from.

    `make_vad` makes one stream's VAD of an aggressiveness 0..3; `new_turn_id` makes ids for turns that the client did
    not name; `clock` returns wall seconds.
    """

    analyzer: Analyzer
    store: ConversationStore
    open_streams: OpenStreams
    make_vad: Callable[[int], Vad]
    new_turn_id: Callable[[], str]
    limits: Limits
    clock: Callable[[], float] = time.monotonic


def _tell_nobody(reply: Reply) -> None:
    pass


class Session:
    """Runs one stream. `request_id` names it to the analyzer.

    `tell` gets each reply, for those who watch the conversation: one that the store keeps once it is there.
    """

    def __init__(
        self,
        request_id: str,
        options: StreamOptions,
        model: ModelInfo,
        dependencies: Dependencies,
        telemetry: CallTelemetry | None = None,
        tell: Callable[[Reply], None] = _tell_nobody,
    ) -> None:
        self._tell_watchers = tell
        self._options = options
        self._model = model
        self._dependencies = dependencies
        self._telemetry = telemetry or CallTelemetry.unwatched()
        self._outbox = Outbox()
        self._watch = AudioWatch(options, self._outbox)
        self._tasks = Tasks(self._outbox)
        self._stream = OpenStream(
            dependencies.open_streams, options.key, options.participant_id, options.turn_id, self._outbox
        )
        self._conversation = ConversationHandle(options, model, dependencies.store, self._stream, self._outbox)
        self._responder = Responder(
            Estimator(request_id, options, model, dependencies.analyzer),
            self._conversation,
            self._stream,
            self._outbox,
            self._tasks,
            self._telemetry,
            dependencies.limits,
        )
        self._finishing: asyncio.Task[None] | None = None  # the latest turn whose result was sent
        self._failure: Failure | None = None  # ends the stream once all is answered

    async def run(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Reply, None]:
        """Yields every reply, `StreamStarted` first and `StreamEnded` last.

        Raises Failure where the stream cannot go on, and any other exception of its parts. Must be closed (`aclosing`);
        closing it early drops all that is still queued.
        """
        try:
            created = await self._conversation.enter()
            started = self._started(created)
            for warning in (*self._options.warnings, *filter(None, (self._conversation.missing,))):
                self._outbox.warn(warning)
            turns = self._turn_tracker()
            listener = self._listener(turns)
            self._stream.register()
            for work in (self._listen(listener, requests), self._respond(listener), self._conversation.keep_alive()):
                self._tasks.start(work)
            reply = Reply(started, 0, 0, 0, started.turn_id)
            self._tell(reply)
            yield reply
            while True:
                event = await self._outbox.get()
                ended = isinstance(event, StreamEnded)
                processed = listener.received if ended else turns.processed
                turn_id = getattr(event, "turn_id", reply.turn_id)
                reply = Reply(event, listener.received, processed, reply.number + 1, turn_id)
                if not isinstance(event, TurnResult):
                    self._tell(reply)
                yield reply
                if isinstance(event, UtteranceResult):
                    self._telemetry.wrote(final=event.is_final, speech_samples=event.analyzed)
                if isinstance(event, TurnResult):  # finished once its result was sent, even if the call is cancelled
                    self._finishing = asyncio.create_task(self._finish_turn(reply))
                    await asyncio.shield(self._finishing)
                self._outbox.sent()
                if ended:
                    return
        finally:
            try:
                if self._finishing is not None:
                    await asyncio.gather(self._finishing, return_exceptions=True)
            finally:  # even if this is cancelled once more, while it waits for the store
                self._stream.close()
                await self._tasks.cancel()
                await self._conversation.leave()

    async def _finish_turn(self, result: Reply) -> None:
        await self._conversation.finish_turn(result.turn_id)
        self._tell(result)

    def _tell(self, reply: Reply) -> None:
        try:
            self._tell_watchers(reply)
        except Exception as error:  # of any kind: the stream is not at fault, and goes on
            log.error("what a stream sends could not be handed to watchers", exc_info=error)

    async def _listen(self, listener: Listener, requests: AsyncIterator[Request]) -> None:
        self._failure = await listener.run(requests)
        await self._responder.close()

    async def _respond(self, listener: Listener) -> None:
        await self._responder.run()
        if self._failure is not None:
            raise self._failure
        await self._outbox.all_sent()  # every turn is finished, and stored as finished
        await self._conversation.refresh()
        await self._outbox.put(self._ended(listener.received))

    # ---- the parts that depend on what the conversation knows

    def _turn_tracker(self) -> TurnTracker:
        """A stream that resumes its turn goes on in the same state. If the server has lost the utterance before, the
        client's word counts.
        """
        options = self._options
        before = self._conversation.resumed_after()
        segmenter = Segmenter(
            options.endpointing,
            self._dependencies.make_vad(options.endpointing.vad_aggressiveness),
            resume_after=before.reason if before else options.resumes_after,
            silence=options.start_offset - before.end if before else 0,
        )
        new_turn_id = self._dependencies.new_turn_id
        return TurnTracker(
            options, segmenter, self._responder, self._conversation, self._outbox, self._watch, new_turn_id
        )

    def _listener(self, turns: TurnTracker) -> Listener:
        limits, clock = self._dependencies.limits, self._dependencies.clock
        return Listener(self._options, limits, turns, self._watch, self._stream, self._outbox, self._telemetry, clock)

    # ---- the first and the last reply

    def _started(self, created: bool) -> StreamStarted:
        participant, ttl_s = self._conversation.participant, self._conversation.conversation.ttl_s
        return StreamStarted(
            turn_id=self._options.turn_id,
            created=created,
            prior_utterances=participant.utterance_count,
            ttl_s=ttl_s,
            given_traits=participant.given_traits,
            opened=self._conversation.opened,
        )

    def _ended(self, received: int) -> StreamEnded:
        speech, dropped = self._responder.speech, self._responder.dropped
        return StreamEnded(
            reason="COMPLETED",
            received=received,
            speech=speech,
            non_speech=received - speech - dropped,
            dropped=dropped,
            conversation=self._conversation.conversation,
            model=self._model,
        )
