"""One stream: requests in, replies out. Knows neither gRPC nor torch.

Two tasks and one loop. `_receive` turns audio into utterances as it arrives; `_analyse` takes the finished
utterances one after the other, because each is estimated in the light of those before it; `run` hands out what
both put into the outbox. Speech events and interims overtake finals that are still being computed; finals and
turn results never change their order.

Everything is counted in samples of the analysis clock. The wall clock serves timeouts and one warning only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from kibun.server import estimates
from kibun.server.audio import SAMPLE_RATE_HZ, AudioDecoder, AudioError
from kibun.server.backend import Analyzer, BackendError, Job, ModelInfo, Result, Superseded
from kibun.server.conversation import (
    Conversation,
    Participant,
    UtteranceRecord,
    add_utterance,
    finish_turn,
    reopen_turn,
)
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.events import (
    Audio,
    Ended,
    Event,
    PersonalityUpdate,
    Reply,
    Request,
    Speech,
    Started,
    StreamOptions,
    Turn,
    Utterance,
    Warn,
)
from kibun.server.live import LiveStream, LiveStreams
from kibun.server.pace import RateWatch
from kibun.server.segmenter import (
    EndReason,
    NoSpeechTimeout,
    Segmenter,
    SegmenterEvent,
    SpeechBegin,
    SpeechEnd,
    TurnSilence,
)
from kibun.server.segmenter import Utterance as Segment
from kibun.server.store import ConversationStore
from kibun.server.vad import Vad

BLOCK = SAMPLE_RATE_HZ // 10  # audio is segmented in blocks of 100 ms, so that interims fall due inside big chunks
FIRST_INTERIM = SAMPLE_RATE_HZ  # geometric times: 1, 2, 4, 8 s … of the utterance
FINAL_DEADLINE_S = 1.0
INTERIM_DEADLINE_S = 2.0
OUTBOX = 64  # replies waiting for a slow reader


@dataclass(frozen=True, slots=True)
class Limits:
    """What one stream may do. Seconds."""

    max_stream_s: float = 4 * 3600.0
    warn_before_end_s: float = 60.0
    idle_timeout_s: float = 600.0
    max_backlog_s: float = 60.0  # audio of finished utterances that may wait for analysis
    backlog_timeout_s: float = 30.0  # a stream that makes no room for this long is ended


@dataclass(slots=True)
class _OpenTurn:
    """`due`: it gets a TurnResult when the client closes the stream.

    The first turn always is; one that a client asked for (`asked`) once it has audio, even if nobody speaks; one
    that began because the last ended in silence, once somebody speaks.
    """

    turn_id: str
    asked: bool
    due: bool = False
    began: bool = False


@dataclass(frozen=True, slots=True)
class _Final:
    segment: Segment
    turn_id: str


@dataclass(frozen=True, slots=True)
class _TurnEnd:
    turn_id: str
    reason: EndReason
    position: int


@dataclass(frozen=True, slots=True)
class _Close:
    """Nothing more will come; the stream ends, with `failure` if there is one."""

    failure: Failure | None = None


_Work = _Final | _TurnEnd | _Close


class Session:
    """Runs one stream.

    `new_turn_id` makes ids for turns that the client did not name; `make_vad` makes this stream's own VAD.
    """

    def __init__(
        self,
        stream_id: str,
        options: StreamOptions,
        model: ModelInfo,
        *,
        analyzer: Analyzer,
        store: ConversationStore,
        live: LiveStreams,
        make_vad: Callable[[int], Vad],
        new_turn_id: Callable[[], str],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._stream_id = stream_id
        self._model = model
        self._analyzer = analyzer
        self._store = store
        self._streams = live
        self._new_turn_id = new_turn_id
        self._limits = limits
        self._clock = clock
        self._key = (options.tenant, options.conversation_id)
        self._live = LiveStream(
            options.tenant,
            options.conversation_id,
            options.participant_id,
            options.turn_id,
            end=self._fail,
            warn=self._warn_now,
        )
        self._outbox: asyncio.Queue[Event] = asyncio.Queue(OUTBOX)
        self._work: asyncio.Queue[_Work] = asyncio.Queue()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._interim: asyncio.Task[None] | None = None
        self._next_interim = 0

        self._decoder = AudioDecoder(options.audio)
        self._vad = make_vad(options.endpointing.vad_aggressiveness)
        self._segmenter = Segmenter(options.endpointing, self._vad)
        self._turn = _OpenTurn(options.turn_id, asked=True, due=True)
        self._pace = RateWatch(options.audio.sample_rate_hz, clock())
        self._end_announced = False
        self._waiting_for_client = False

        self._conversation: Conversation | None = None  # as last seen, to go on with if the store loses it
        self._received = 0
        self._pending = 0  # samples of finished utterances that wait for their final
        self._pending_starts: list[int] = []
        self._unfinished = 0  # items of work not done
        self._room = asyncio.Event()
        self._speech = 0
        self._dropped = 0

    # ---- the loop

    async def run(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Reply, None]:
        """Yields every reply, `Started` first and `Ended` last.

        Raises Failure where the stream cannot go on. Must be closed (`aclosing`); closing it early drops all
        that is still queued.
        """
        started = await self._open()
        tasks = [asyncio.create_task(self._receive(requests)), asyncio.create_task(self._analyse())]
        for task in tasks:
            task.add_done_callback(self._task_done)
        try:
            yield self._reply(started)
            while True:
                event = await self._next_event()
                yield self._reply(event)
                self._outbox.task_done()
                if isinstance(event, Turn):  # finished only now that its result was written
                    await self._update(partial(finish_turn, turn_id=event.turn_id))
                if isinstance(event, Ended):
                    return
        finally:
            tasks += [self._interim] if self._interim else []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._streams.remove(self._live)
            if self._failed.done():
                self._failed.exception()  # seen, also when the consumer left first

    async def _next_event(self) -> Event:
        if self._failed.done():
            self._failed.result()
        if not self._outbox.empty():
            return self._outbox.get_nowait()
        get = asyncio.ensure_future(self._outbox.get())
        try:
            await asyncio.wait((get, self._failed), return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            return get.result()
        finally:
            get.cancel()

    def _reply(self, event: Event) -> Reply:
        if isinstance(event, Ended):
            return Reply(event, event.received, event.received)
        done_to = min([self._segmenter.position, *self._pending_starts])
        if self._segmenter.open_start is not None:
            done_to = min(done_to, self._segmenter.open_start)
        return Reply(event, self._received, done_to)

    def _fail(self, failure: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(failure)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _warn_now(self, warning: Warn) -> None:
        """For warnings from outside the stream; a reader too slow to have room for it misses it."""
        with suppress(asyncio.QueueFull):
            self._outbox.put_nowait(warning)

    # ---- opening

    async def _open(self) -> Started:
        options = self.options
        created = False

        def enter(conversation: Conversation | None) -> Conversation:
            nonlocal created
            created = conversation is None
            if conversation is None:
                if options.require_existing:
                    raise Failure(
                        Kind.NOT_FOUND,
                        "CONVERSATION_NOT_FOUND",
                        "no such conversation, or it has expired; leave require_existing_conversation unset "
                        "to begin a new one",
                    )
                now = time.time()
                conversation = Conversation(options.conversation_id, self._model.name, now, now, options.ttl_s)
            self._check_enterable(conversation)
            participant = reopen_turn(
                conversation.participant(options.participant_id), options.turn_id, options.start_offset
            )
            return replace(conversation, ttl_s=options.ttl_s).with_participant(participant)

        self._conversation = await self._store.update(self._key, enter)
        before = [r for r in self._known().turn(options.turn_id) if r.end == options.start_offset]
        if before:  # the stream goes on exactly where an utterance ended, so the segmenter does too
            self._segmenter = Segmenter(options.endpointing, self._vad, resume_after=before[-1].reason)
        self._streams.add(self._live)
        self._update_idle()
        return Started(options.turn_id, created, len(self._known().heard))

    def _check_enterable(self, conversation: Conversation) -> None:
        options = self.options
        if conversation.completed:
            raise Failure(
                Kind.FAILED_PRECONDITION,
                "CONVERSATION_COMPLETED",
                "this conversation was completed; begin another with a new conversation_id",
            )
        if conversation.model != self._model.name:
            raise Failure(
                Kind.FAILED_PRECONDITION,
                "MODEL_MISMATCH",
                f"this conversation began with model {conversation.model!r}; ask for that one, or begin another",
            )
        self._check_unfinished(conversation.participant(options.participant_id), options.turn_id)

    @staticmethod
    def _check_unfinished(participant: Participant, turn_id: str) -> None:
        if turn_id in participant.finished_turns:
            raise Failure(
                Kind.ALREADY_EXISTS,
                "TURN_FINISHED",
                f"turn {turn_id!r} already has its result; give the next turn a new turn_id",
            )

    # ---- hearing

    async def _receive(self, requests: AsyncIterator[Request]) -> None:
        try:
            while (request := await self._next_request(requests)) is not None:
                if isinstance(request, Audio):
                    await self._hear_payload(request.payload)
                else:
                    await self._client_end_of_turn(request.next_turn_id)
        except AudioError as error:
            raise invalid(error.reason, error.field, str(error)) from error
        except Failure as failure:
            if failure.kind is not Kind.DEADLINE_EXCEEDED and failure.kind is not Kind.OUT_OF_RANGE:
                raise
            await self._put_work(_Close(failure))  # what was heard is still answered
        else:
            await self._drain_decoder()
            await self._segment(self._segmenter.flush(EndReason.HALF_CLOSE))
            if self._turn.due:
                await self._close_turn(EndReason.HALF_CLOSE, self._segmenter.position)
            await self._put_work(_Close())

    async def _next_request(self, requests: AsyncIterator[Request]) -> Request | None:
        self._waiting_for_client = True
        self._update_idle()
        try:
            async with asyncio.timeout(self._limits.idle_timeout_s):
                return await anext(requests, None)
        except TimeoutError:
            raise Failure(
                Kind.DEADLINE_EXCEEDED,
                "IDLE_TIMEOUT",
                f"nothing was sent for {self._limits.idle_timeout_s:g} s; open a new stream when there is audio again",
            ) from None
        finally:
            self._waiting_for_client = False
            self._update_idle()

    async def _hear_payload(self, payload: bytes) -> None:
        samples = self._decoder.decode(payload)
        self._received += len(samples)
        self._turn.due |= self._turn.asked
        for begin in range(0, len(samples), BLOCK):
            await self._segment(self._segmenter.push(samples[begin : begin + BLOCK]))
        await self._check_pace()
        await self._check_length()

    async def _drain_decoder(self) -> None:
        """The resampler's tail. The next turn gets a decoder of its own: its audio owes nothing to this turn's."""
        tail = self._decoder.flush()
        self._received += len(tail)
        await self._segment(self._segmenter.push(tail))
        if self._decoder.pending_bytes:
            await self._outbox.put(
                Warn(
                    "INCOMPLETE_SAMPLE",
                    f"the audio ended within a sample; its last {self._decoder.pending_bytes} bytes were ignored",
                )
            )
        self._decoder = AudioDecoder(self.options.audio)

    async def _segment(self, found: list[SegmenterEvent]) -> None:
        for event in found:
            match event:
                case SpeechBegin(position):
                    await self._begin_turn(position)
                    self._next_interim = self.options.interim_interval or FIRST_INTERIM
                    await self._speech_event("activity_begin", position)
                case SpeechEnd(position):
                    await self._speech_event("activity_end", position)
                case NoSpeechTimeout(position):
                    await self._put_speech("no_speech_timeout", position)
                case Segment():
                    await self._utterance(event)
                case TurnSilence(position):
                    await self._close_turn(EndReason.SILENCE, position)
                    self._set_turn(self._new_turn_id(), asked=False)
        await self._consider_interim()

    async def _utterance(self, segment: Segment) -> None:
        await self._begin_turn(segment.start)
        if self._interim:
            self._interim.cancel()
        self._next_interim = self.options.interim_interval or FIRST_INTERIM
        await self._make_room()
        self._pending += len(segment.audio)
        self._pending_starts.append(segment.start)
        await self._put_work(_Final(segment, self._turn.turn_id))

    async def _make_room(self) -> None:
        """Stops reading while too much audio waits; the transport then slows the client down."""
        limit = self._limits
        while self._pending > limit.max_backlog_s * SAMPLE_RATE_HZ:
            self._room.clear()
            try:
                async with asyncio.timeout(limit.backlog_timeout_s):
                    await self._room.wait()
            except TimeoutError:
                raise Failure(
                    Kind.RESOURCE_EXHAUSTED,
                    "AUDIO_BACKLOG",
                    f"more than {limit.max_backlog_s:g} s of speech wait for analysis; send no faster than spoken "
                    "or resume later",
                    retry_after_s=limit.backlog_timeout_s,
                    quota="backlog",
                ) from None

    async def _check_pace(self) -> None:
        true_hz = self._pace.suspect_hz(self._received / SAMPLE_RATE_HZ, self._clock())
        if true_hz is not None:
            labelled = self.options.audio.sample_rate_hz
            message = f"audio labelled {labelled} Hz arrives at the pace of {true_hz} Hz; check sample_rate_hertz"
            await self._outbox.put(Warn("RATE_MISMATCH_SUSPECTED", message, {"likely_hertz": str(true_hz)}))

    async def _check_length(self) -> None:
        left = self._limits.max_stream_s - self._received / SAMPLE_RATE_HZ
        if left <= 0:
            await self._end_turn(EndReason.MAX_DURATION)
            raise Failure(
                Kind.OUT_OF_RANGE,
                "STREAM_TOO_LONG",
                f"a stream may carry {self._limits.max_stream_s:g} s of audio; go on in a new stream with a new turn",
            )
        if left <= self._limits.warn_before_end_s and not self._end_announced:
            self._end_announced = True
            message = f"this stream will end after {left:.0f} s more of audio; open a new one for the next turn"
            await self._outbox.put(Warn("STREAM_ENDS_SOON", message))

    # ---- turns

    async def _begin_turn(self, position: int) -> None:
        if not self._turn.began:
            self._turn.began = self._turn.due = True
            await self._put_speech("turn_start", position)

    async def _end_turn(self, reason: EndReason) -> None:
        """Flushes: the open utterance is finished now, then the turn."""
        await self._segment(self._segmenter.flush(reason))
        await self._close_turn(reason, self._segmenter.position)

    async def _close_turn(self, reason: EndReason, position: int) -> None:
        await self._begin_turn(position)
        await self._put_speech("turn_end", position)
        await self._put_work(_TurnEnd(self._turn.turn_id, reason, position))

    async def _client_end_of_turn(self, next_turn_id: str) -> None:
        next_turn_id = next_turn_id or self._new_turn_id()
        if next_turn_id == self._turn.turn_id:
            raise invalid("TURN_ID_REPEATED", "end_of_turn.next_turn_id", "the next turn needs an id of its own")
        self._check_unfinished(self._known(), next_turn_id)
        await self._drain_decoder()
        await self._end_turn(EndReason.CLIENT_END_OF_TURN)
        self._set_turn(next_turn_id, asked=True)

    def _set_turn(self, turn_id: str, *, asked: bool) -> None:
        self._turn = _OpenTurn(turn_id, asked)
        self._live.turn_id = turn_id

    # ---- interims

    async def _consider_interim(self) -> None:
        """Starts the interim that is due, unless finals wait: those come first."""
        opened = self._segmenter.open_start
        if not self.options.interims or opened is None:
            return
        due = None
        while self._segmenter.position - opened >= self._next_interim:
            due = self._next_interim
            self._next_interim = due + self.options.interim_interval if self.options.interim_interval else due * 2
        if due is None or self._pending_starts or self._analyzer.full:
            return
        if self._interim:
            self._interim.cancel()
        audio = self._segmenter.open_audio(opened + due)
        segment = Segment(opened, opened + due, audio, len(audio), EndReason.SILENCE)
        self._interim = asyncio.create_task(self._analyse_interim(segment, self._turn.turn_id))

    async def _analyse_interim(self, segment: Segment, turn_id: str) -> None:
        known = self._known()
        with suppress(Superseded, BackendError):  # the final tells the client of a lasting fault
            result = await self._submit(segment, known, final=False)
            if not self._outbox.full():  # a slow reader misses interims, never finals
                self._outbox.put_nowait(self._utterance_event(segment, turn_id, result, known, is_final=False))

    # ---- finals, one after the other

    async def _analyse(self) -> None:
        while True:
            match await self._work.get():
                case _Final(segment, turn_id):
                    await self._analyse_final(segment, turn_id)
                case _TurnEnd(turn_id, reason, position):
                    await self._turn_result(turn_id, reason, position)
                case _Close(failure):
                    await self._close(failure)
                    return
            self._unfinished -= 1
            self._update_idle()

    async def _analyse_final(self, segment: Segment, turn_id: str) -> None:
        await self._streams.wait_for_earlier(self._live)
        self._conversation = await self._store.get(self._key) or self._conversation
        known = self._known()
        result: Result | None = None
        if len(segment.audio) < self._model.min_samples:
            self._dropped += len(segment.audio)
            message = f"an utterance of {len(segment.audio) / SAMPLE_RATE_HZ:.3f} s is too short to estimate from"
            await self._outbox.put(Warn("TOO_LITTLE_SPEECH", message))
        else:
            result = await self._submit(segment, known, final=True)
            self._speech += len(segment.audio)
        final = self._utterance_event(segment, turn_id, result, known, is_final=True)
        traits, source = estimates.conversation_traits(result) if result else (None, "")
        record = UtteranceRecord(
            utterance_id=final.utterance_id,
            turn_id=turn_id,
            start=final.start,
            end=final.end,
            speech=final.analyzed,
            vector=result.vector if result else None,
            emotion=(final.emotion.valence, final.emotion.arousal) if final.emotion else None,
            reason=segment.reason,
        )
        await self._update(lambda p: add_utterance(p, record, traits, source))
        await self._outbox.put(final)
        update = estimates.of_participant(self._model, self._known())
        if self.options.personality and traits is not None and update is not None:
            await self._outbox.put(PersonalityUpdate(self.options.participant_id, update, self._known().revision))
        self._pending -= len(segment.audio)
        self._pending_starts.remove(segment.start)
        self._room.set()

    async def _submit(self, segment: Segment, known: Participant, *, final: bool) -> Result:
        options = self.options
        job = Job(
            model=self._model.name,
            audio=segment.audio,
            history=estimates.history(known.records, self._model.vector_size),
            given_traits=options.given_traits,
            emotion=options.emotion and self._model.supports_emotion,
            personality=self._model.supports_personality,
        )
        deadline_s = FINAL_DEADLINE_S if final else INTERIM_DEADLINE_S
        try:
            return await self._analyzer.submit(job, stream_id=self._stream_id, final=final, deadline_s=deadline_s)
        except BackendError as error:
            if error.reason == "UNAVAILABLE":
                message = "the server is stopping; resume the turn on another connection"
                raise Failure(Kind.UNAVAILABLE, "DRAINING", message, retry_after_s=1.0) from error
            raise

    def _utterance_event(
        self, segment: Segment, turn_id: str, result: Result | None, known: Participant, *, is_final: bool
    ) -> Utterance:
        options, model, n = self.options, self._model, len(segment.audio)
        start = segment.start + options.start_offset
        return Utterance(
            utterance_id=f"{options.participant_id}:{turn_id}:{start}",
            turn_id=turn_id,
            is_final=is_final,
            start=start,
            end=segment.end + options.start_offset,
            analyzed=n if result else 0,
            emotion=estimates.emotion(result) if result else None,
            personality=estimates.of_utterance(model, result, n) if result and options.personality else None,
            condition=estimates.condition(model, result, known, n) if result and options.emotion else None,
            reason=segment.reason if is_final else None,
        )

    async def _turn_result(self, turn_id: str, reason: EndReason, position: int) -> None:
        """What the turn amounts to: all its utterances, those of a stream that this one resumed included."""
        participant = self._known()
        records = participant.turn(turn_id)
        position += self.options.start_offset
        if not any(r.speech for r in records):
            message = "no speech to estimate from was found in this turn; its estimates are unset"
            await self._outbox.put(Warn("NO_SPEECH", message, {"turn_id": turn_id}))
        personality = estimates.of_participant(self._model, participant) if self.options.personality else None
        await self._outbox.put(
            Turn(
                turn_id=turn_id,
                start=min((r.start for r in records), default=position),
                end=max((r.end for r in records), default=position),
                utterance_count=len(records),
                speech=sum(r.speech for r in records),
                emotion=estimates.mean_emotion(records) if self.options.emotion else None,
                personality=personality,
                reason=reason,
            )
        )

    async def _close(self, failure: Failure | None) -> None:
        if failure is not None:
            await self._outbox.join()  # what was computed goes out before the error
            raise failure
        conversation = await self._store.get(self._key) or self._conversation
        assert conversation is not None  # opened
        await self._outbox.put(
            Ended(
                reason="COMPLETED",
                received=self._received,
                speech=self._speech,
                non_speech=self._received - self._speech - self._dropped,
                dropped=self._dropped,
                conversation=conversation,
                model=self._model,
            )
        )

    # ---- small things

    async def _put_work(self, work: _Work) -> None:
        self._unfinished += 1
        await self._work.put(work)

    async def _speech_event(self, kind: str, position: int) -> None:
        if self.options.voice_activity_events:
            await self._put_speech(kind, position)

    async def _put_speech(self, kind: str, position: int) -> None:
        event = Speech(kind, position + self.options.start_offset, self._turn.turn_id)  # type: ignore[arg-type]
        await self._outbox.put(event)

    def _known(self) -> Participant:
        assert self._conversation is not None  # opened
        return self._conversation.participant(self.options.participant_id)

    async def _update(self, change: Callable[[Participant], Participant]) -> None:
        """Changes this participant in the store; a conversation that the store lost goes on from what is held."""
        if self._failed.done():  # deleted or superseded: whatever is still under way must not bring it back
            self._failed.result()
        held = self._conversation
        assert held is not None  # opened

        def apply(conversation: Conversation | None) -> Conversation:
            base = conversation or held
            return base.with_participant(change(base.participant(self.options.participant_id)))

        self._conversation = await self._store.update(self._key, apply)

    def _update_idle(self) -> None:
        if self._waiting_for_client and self._unfinished == 0:
            self._live.idle.set()
        else:
            self._live.idle.clear()
