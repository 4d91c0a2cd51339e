"""The estimates of one stream: finals one after the other, interims beside them while there is room.

One after the other, because each utterance is estimated in the light of those before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from kibun.models.types import SAMPLE_RATE_HZ, Analysis, Utterance
from kibun.server.audio.endpointing import EndReason, SpeechSegment
from kibun.server.conversation.state import Participant, UtteranceRecord
from kibun.server.errors import Failure, Kind
from kibun.server.inference.backend import Analyzer, BackendError, Job, Superseded
from kibun.server.session import estimates, events
from kibun.server.session.context import Stream

FINAL_DEADLINE_S = 1.0
INTERIM_DEADLINE_S = 2.0
MAX_WORK = 256  # utterances and ends of turns that may wait; what utterances weigh is bounded by Limits


@dataclass(frozen=True, slots=True)
class _Final:
    utterance: SpeechSegment
    turn_id: str


@dataclass(frozen=True, slots=True)
class _TurnEnd:
    turn_id: str
    reason: EndReason
    position: int


class Responder:
    """Takes utterances and ends of turns in order (`final`, `turn_end`, `close`); `run` answers them.

    `spawn` starts a coroutine as one of the session's tasks.
    """

    def __init__(
        self,
        stream: Stream,
        analyzer: Analyzer,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.speech = 0  # samples that finals were made from
        self.dropped = 0  # samples of utterances too short for that
        self._stream = stream
        self._options = stream.options
        self._analyzer = analyzer
        self._spawn = spawn
        self._work: asyncio.Queue[_Final | _TurnEnd | None] = asyncio.Queue(MAX_WORK)
        self._waiting: deque[SpeechSegment] = deque()  # without an answer yet
        self._progress = asyncio.Event()
        self._interim: asyncio.Task[None] | None = None

    @property
    def waits_from(self) -> int | None:
        """Start of the first utterance that waits for its final."""
        return self._waiting[0].start if self._waiting else None

    @property
    def interim_stretch(self) -> float:
        """How many times further apart interims should be than on an idle server, >= 1."""
        return self._analyzer.stretch

    # ---- taking work

    async def final(self, utterance: SpeechSegment, turn_id: str) -> None:
        """Queues an utterance; blocks while too much audio waits, and the transport slows the client down.

        Raises Failure AUDIO_BACKLOG where no room comes about.
        """
        self._drop_interim()
        self._stream.telemetry.utterance_ended()
        await self._make_room()
        self._waiting.append(utterance)
        await self._put(_Final(utterance, turn_id))

    async def turn_end(self, turn_id: str, reason: EndReason, position: int) -> None:
        """Queues the turn's result."""
        await self._put(_TurnEnd(turn_id, reason, position))

    async def close(self) -> None:
        """Nothing more will come: `run` returns after what is queued."""
        await self._work.put(None)

    def interim(self, utterance: SpeechSegment, turn_id: str) -> None:
        """Estimates the open utterance as far as it goes, unless finals wait: those come first."""
        if self._waiting or self._analyzer.full:
            self._stream.telemetry.dropped_interim("busy")
            return
        self._drop_interim()
        self._interim = self._spawn(self._answer_interim(utterance, turn_id))

    def _drop_interim(self) -> None:
        if self._interim is not None and not self._interim.done():
            self._interim.cancel()
            self._stream.telemetry.dropped_interim("superseded")
        self._interim = None

    async def _put(self, work: _Final | _TurnEnd) -> None:
        self._stream.live.work(1)
        await self._work.put(work)

    async def _make_room(self) -> None:
        limits = self._stream.limits
        while sum(len(u.audio) for u in self._waiting) > limits.max_backlog_s * SAMPLE_RATE_HZ:
            self._progress.clear()
            try:
                async with asyncio.timeout(limits.backlog_timeout_s):
                    await self._progress.wait()
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
        while (work := await self._work.get()) is not None:
            if isinstance(work, _Final):
                await self._answer_final(work.utterance, work.turn_id)
            else:
                await self._answer_turn(work)
            self._stream.live.work(-1)

    async def _answer_interim(self, utterance: SpeechSegment, turn_id: str) -> None:
        known, outbox, telemetry = self._stream.held.participant, self._stream.outbox, self._stream.telemetry
        try:
            result = await self._submit(utterance, known, final=False)
        except Superseded:
            telemetry.dropped_interim("busy")
        except (BackendError, Failure):  # the final tells the client of a lasting fault
            telemetry.dropped_interim("failed")
        else:
            if outbox.full():  # a slow reader misses interims, never finals
                telemetry.dropped_interim("slow_reader")
            else:
                outbox.put_nowait(self._event(utterance, turn_id, result, known, is_final=False))

    async def _answer_final(self, utterance: SpeechSegment, turn_id: str) -> None:
        held, outbox, model = self._stream.held, self._stream.outbox, self._stream.model
        await self._stream.streams.wait_for_earlier(self._stream.live)
        await held.refresh()
        known = held.participant
        result = None
        if len(utterance.audio) < model.min_samples:
            message = f"an utterance of {len(utterance.audio) / SAMPLE_RATE_HZ:.3f} s is too short to estimate from"
            await outbox.put(events.StreamWarning("TOO_LITTLE_SPEECH", message, {"turn_id": turn_id}))
            self.dropped += len(utterance.audio)
        else:
            result = await self._submit(utterance, known, final=True)
            self.speech += len(utterance.audio)
        final = self._event(utterance, turn_id, result, known, is_final=True)
        record = _record(final, result)
        await held.add(record)
        await outbox.put(final)
        update = estimates.of_participant(model, held.participant)
        if self._options.personality and record.traits is not None and update is not None:
            await outbox.put(events.PersonalityUpdate(self._options.participant_id, update, held.participant.revision))
        self._waiting.popleft()
        self._progress.set()

    async def _submit(self, utterance: SpeechSegment, known: Participant, *, final: bool) -> Analysis:
        options, model = self._options, self._stream.model
        job = Job(
            model.name,
            Utterance(
                audio=utterance.audio,
                history=estimates.history(known.records, model.vector_size),
                given_traits=options.given_traits or known.given_traits,
                emotion=options.emotion,
                personality=model.supports_personality,  # also where it is not shown: emotion is conditioned on it
            ),
        )
        deadline_s = FINAL_DEADLINE_S if final else INTERIM_DEADLINE_S
        request_id = self._stream.request_id
        try:
            return await self._analyzer.submit(job, stream_id=request_id, final=final, deadline_s=deadline_s)
        except BackendError as error:
            if error.reason == "UNAVAILABLE":
                message = "the server is stopping; resume the turn on another connection"
                raise Failure(Kind.UNAVAILABLE, "DRAINING", message, retry_after_s=1.0) from error
            if error.reason == "NO_WORKER":
                message = "this server cannot analyse for now; resume the turn on another connection"
                raise Failure(Kind.UNAVAILABLE, "NO_WORKER", message, retry_after_s=1.0) from error
            raise

    def _event(
        self, utterance: SpeechSegment, turn_id: str, result: Analysis | None, known: Participant, *, is_final: bool
    ) -> events.UtteranceResult:
        options, model, n = self._options, self._stream.model, len(utterance.audio)
        start = utterance.start + options.start_offset
        return events.UtteranceResult(
            utterance_id=f"{options.participant_id}:{turn_id}:{start}",
            turn_id=turn_id,
            is_final=is_final,
            start=start,
            end=utterance.end + options.start_offset,
            analyzed=n if result else 0,
            emotion=estimates.emotion(result) if result else None,
            personality=estimates.of_utterance(model, result, n) if result and options.personality else None,
            condition=estimates.condition(model, result, known, n) if result and options.emotion else None,
            reason=utterance.reason if is_final else None,
        )

    async def _answer_turn(self, turn: _TurnEnd) -> None:
        """What the turn amounts to: all its utterances, those of a stream that this one resumed included."""
        await self._stream.held.refresh()  # what was heard of the participant on other streams counts
        participant = self._stream.held.participant
        records = participant.turn(turn.turn_id)
        position = turn.position + self._options.start_offset
        if not any(r.speech for r in records):
            message = "no speech to estimate from was found in this turn; its estimates are unset"
            await self._stream.outbox.put(events.StreamWarning("NO_SPEECH", message, {"turn_id": turn.turn_id}))
        personality = estimates.of_participant(self._stream.model, participant) if self._options.personality else None
        await self._stream.outbox.put(
            events.TurnResult(
                turn_id=turn.turn_id,
                start=min((r.start for r in records), default=position),
                end=max((r.end for r in records), default=position),
                utterance_count=len(records),
                speech=sum(r.speech for r in records),
                emotion=estimates.mean_emotion(records) if self._options.emotion else None,
                personality=personality,
                reason=turn.reason,
            )
        )


def _record(final: events.UtteranceResult, result: Analysis | None) -> UtteranceRecord:
    assert final.reason is not None  # a final has one
    traits, source = estimates.conversation_traits(result) if result else (None, "average")
    return UtteranceRecord(
        utterance_id=final.utterance_id,
        turn_id=final.turn_id,
        start=final.start,
        end=final.end,
        speech=final.analyzed,
        vector=result.vector if result else None,
        emotion=(final.emotion.valence, final.emotion.arousal) if final.emotion else None,
        traits=traits,
        traits_source=source,
        reason=final.reason,
    )
