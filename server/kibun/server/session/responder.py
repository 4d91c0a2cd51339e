"""Answers the segments of one stream: finals and turn results in order, interims beside them while there is time.

In order, because each utterance is estimated with the help of those before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndReason, SpeechSegment
from kibun.server.errors import Failure, Kind
from kibun.server.inference.backend import BackendError, Superseded
from kibun.server.observability.telemetry import CallTelemetry
from kibun.server.session.conversation_handle import ConversationHandle
from kibun.server.session.estimator import Estimator
from kibun.server.session.events import Limits, StreamWarning, UtteranceResult
from kibun.server.session.open_streams import OpenStream
from kibun.server.session.outbox import Outbox
from kibun.server.session.tasks import Tasks

MAX_QUEUED = 256  # utterances and ends of turns that may wait; how much audio they may hold is bounded by Limits


@dataclass(slots=True, eq=False)
class _Eager:
    """An estimate of the open utterance in the silence that may end it."""

    segment: SpeechSegment
    as_interim: bool  # the client gets it at once
    covers_speech: bool = True  # nobody has spoken on
    ended: bool = False  # its utterance has: the answer is that of the final


class Responder:
    """Takes segments and ends of turns in order (`final`, `turn_end`, `close`); `run` answers them."""

    def __init__(
        self,
        estimator: Estimator,
        conversation: ConversationHandle,
        stream: OpenStream,
        outbox: Outbox,
        tasks: Tasks,
        telemetry: CallTelemetry,
        limits: Limits,
    ) -> None:
        self.speech = 0  # samples that finals were made from
        self.dropped = 0  # samples of utterances too short for that
        self._estimator = estimator
        self._conversation = conversation
        self._stream = stream
        self._outbox = outbox
        self._tasks = tasks
        self._telemetry = telemetry
        self._limits = limits
        self._queue: asyncio.Queue[Callable[[], Awaitable[None]] | None] = asyncio.Queue(MAX_QUEUED)
        self._waiting: deque[SpeechSegment] = deque()  # not answered yet
        self._answered = asyncio.Event()  # set with every final
        self._interim: asyncio.Task[None] | None = None  # under way, or the latest
        self._eager: _Eager | None = None  # of the open utterance, while nobody speaks on
        self._eager_task: asyncio.Task[None] | None = None  # that of `_eager`

    @property
    def waits_for(self) -> SpeechSegment | None:
        """The first segment that waits for its final; None if all are answered."""
        return self._waiting[0] if self._waiting else None

    @property
    def interim_stretch(self) -> float:
        """How many times further apart interims should be than on an idle server, >= 1."""
        return self._estimator.interim_stretch

    # ---- taking work

    async def final(self, segment: SpeechSegment, turn_id: str) -> None:
        """Queues a segment for its final; waits while too much audio is queued, and the transport slows the client.

        Raises Failure AUDIO_BACKLOG if nothing is answered for `Limits.backlog_timeout_s`.
        """
        self._end_eager(segment)
        self._cancel_interim()
        self._telemetry.utterance_ended()
        await self._wait_for_backlog()
        self._waiting.append(segment)
        await self._put(partial(self._answer_final, segment, turn_id))

    async def turn_end(self, turn_id: str, reason: EndReason, position: int) -> None:
        """Queues the end of a turn at sample `position` for its result."""
        await self._put(partial(self._answer_turn, turn_id, reason, position))

    async def close(self) -> None:
        """Makes `run` return once all that is queued is answered."""
        await self._queue.put(None)

    @property
    def busy(self) -> bool:
        """Whether finals wait, on this stream or for the machine: those come first."""
        return bool(self._waiting) or self._estimator.full

    def interim(self, segment: SpeechSegment, turn_id: str) -> bool:
        """Starts to estimate the open utterance as far as it goes; False if busy."""
        if self.busy:
            self._telemetry.dropped_interim("busy")
            return False
        self._cancel_interim()
        self._interim = self._tasks.start(self._answer_interim(segment, turn_id))
        return True

    def eager(self, segment: SpeechSegment, turn_id: str, *, as_interim: bool) -> bool:
        """Starts to estimate the open utterance in the silence that may end it; False if busy or too short.

        If that ends it, `final` gives its answer; else `speech_goes_on`. as_interim: the client gets it at once.
        """
        if self.busy or not self._estimator.can_analyze(segment):
            return False
        self._cancel_interim()
        self._eager = _Eager(segment, as_interim)
        self._eager_task = self._tasks.start(self._answer_eager(self._eager, turn_id))
        return True

    def speech_goes_on(self) -> None:
        """The utterance of `eager` goes on: what was estimated of it is an interim like others, or nothing."""
        eager, task = self._eager, self._eager_task
        self._eager = self._eager_task = None
        if eager is None or task is None:
            return
        eager.covers_speech = False
        self._estimator.forget_eager()
        self._telemetry.eager("spoken_on")
        if eager.as_interim:
            self._interim = task  # so that it comes neither after a newer one nor after the final
        else:
            task.cancel()

    def _end_eager(self, segment: SpeechSegment) -> None:
        """The open utterance has ended with this segment: that of `eager`, or another."""
        eager = self._eager
        if eager is not None and (eager.segment.start, eager.segment.end) != (segment.start, segment.end):
            self.speech_goes_on()
        if self._eager is not None:
            self._eager.ended, self._eager, self._eager_task = True, None, None

    def _cancel_interim(self) -> None:
        if self._interim is not None and not self._interim.done():
            self._interim.cancel()
            self._telemetry.dropped_interim("superseded")
        self._interim = None

    async def _put(self, answer: Callable[[], Awaitable[None]]) -> None:
        self._stream.count_unanswered(1)
        await self._queue.put(answer)

    async def _wait_for_backlog(self) -> None:
        limits = self._limits
        while sum(len(s.audio) for s in self._waiting) > limits.max_backlog_s * SAMPLE_RATE_HZ:
            self._answered.clear()
            try:
                async with asyncio.timeout(limits.backlog_timeout_s):
                    await self._answered.wait()
            except TimeoutError:
                raise Failure(
                    Kind.RESOURCE_EXHAUSTED,
                    "AUDIO_BACKLOG",
                    f"more than {limits.max_backlog_s:g} s of speech wait for analysis; send no faster than spoken "
                    "or resume later",
                    retry_after_s=limits.backlog_timeout_s,
                    quota="backlog",
                ) from None

    # ---- answering

    async def run(self) -> None:
        """Answers everything until `close`. Raises Failure or BackendError."""
        while (answer := await self._queue.get()) is not None:
            await answer()
            self._stream.count_unanswered(-1)

    async def _answer_interim(self, segment: SpeechSegment, turn_id: str) -> None:
        known = self._conversation.participant
        try:
            analysis = await self._estimator.interim(segment, known)
        except Superseded:
            self._telemetry.dropped_interim("busy")
        except (BackendError, Failure):  # a lasting fault reaches the client with the final
            self._telemetry.dropped_interim("failed")
        else:
            await self._put_interim(self._estimator.utterance_result(segment, turn_id, analysis, known, is_final=False))

    async def _answer_eager(self, eager: _Eager, turn_id: str) -> None:
        try:
            known = await self._conversation.peek_after_earlier()
            if eager.ended or not eager.covers_speech:  # earlier streams took until now
                self._telemetry.eager("dropped")
                return
            analysis = await self._estimator.eager(eager.segment, known)
        except (Superseded, BackendError, Failure):  # a lasting fault reaches the client with the final
            if eager is self._eager:  # from now on it can be neither spoken on nor a final's
                self._eager = self._eager_task = None
                self._estimator.forget_eager()
                self._telemetry.eager("dropped")
            elif eager.ended and self._estimator.forget_eager():  # else its final has taken it, and fails as well
                self._telemetry.eager("dropped")
            return
        if eager.as_interim and not eager.ended:
            result = self._estimator.utterance_result(eager.segment, turn_id, analysis, known, is_final=False)
            await self._put_interim(replace(result, covers_speech_so_far=eager.covers_speech))

    async def _put_interim(self, result: UtteranceResult) -> None:
        if self._outbox.full:  # a slow reader misses interims, never finals
            self._telemetry.dropped_interim("slow_reader")
        else:
            await self._outbox.put(result)

    async def _answer_final(self, segment: SpeechSegment, turn_id: str) -> None:
        await self._conversation.refresh_after_earlier()
        known = self._conversation.participant
        if self._estimator.can_analyze(segment):
            analysis, eager = await self._estimator.final(segment, known)
            if eager is not None:
                self._telemetry.eager("final" if eager else "recomputed")
            self.speech += len(segment.audio)
        else:
            analysis = None
            await self._outbox.put(_too_short(segment, turn_id))
            self.dropped += len(segment.audio)
        final = self._estimator.utterance_result(segment, turn_id, analysis, known, is_final=True)
        record = self._estimator.record_of(final, analysis)
        await self._conversation.add(record)
        await self._outbox.put(final)
        if update := self._estimator.personality_update(record, self._conversation.participant):
            await self._outbox.put(update)
        self._waiting.popleft()
        self._answered.set()

    async def _answer_turn(self, turn_id: str, reason: EndReason, position: int) -> None:
        await self._conversation.refresh()  # what the participant said on other streams counts as well
        await self._conversation.note_missing(turn_id, position)
        participant = self._conversation.participant
        totals = participant.turn(turn_id).totals
        if not totals.speech and not totals.missing:
            await self._outbox.put(_no_speech(turn_id))
        await self._outbox.put(self._estimator.turn_result(turn_id, reason, position, participant))


def _too_short(segment: SpeechSegment, turn_id: str) -> StreamWarning:
    text = f"an utterance of {len(segment.audio) / SAMPLE_RATE_HZ:.3f} s is too short to estimate from"
    return StreamWarning("TOO_LITTLE_SPEECH", text, {"turn_id": turn_id})


def _no_speech(turn_id: str) -> StreamWarning:
    text = "no speech to estimate from was found in this turn; its estimates are unset"
    return StreamWarning("NO_SPEECH", text, {"turn_id": turn_id})
