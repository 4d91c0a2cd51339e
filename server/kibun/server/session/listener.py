"""Hears one stream: requests in; speech events, utterances and turns out.

Positions are samples of the analysis clock. The wall clock serves the idle timeout and one warning only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import AudioDecoder, AudioError
from kibun.server.audio.endpointing import (
    EndReason,
    NoSpeechTimeout,
    SegmenterEvent,
    SpeechBegin,
    SpeechEnd,
    SpeechSegment,
    TurnSilence,
)
from kibun.server.audio.segmenter import Segmenter
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.session import quality
from kibun.server.session.context import Stream
from kibun.server.session.events import Audio, Refused, Request, SpeechEvent, SpeechType, StreamProgress, StreamWarning
from kibun.server.session.responder import Responder
from kibun.server.session.timeout import Timeout
from kibun.server.session.wall_clock import MessageThrottle, RateWatch

BLOCK = SAMPLE_RATE_HZ // 10  # audio is segmented in blocks of 100 to 200 ms: interims fall due inside big chunks
BREATH = 10 * BLOCK  # of one message; then other streams get their turn
PROGRESS_EVERY = 10 * SAMPLE_RATE_HZ  # of audio, the client is told how far all is settled
FIRST_INTERIM = SAMPLE_RATE_HZ  # geometric times: 1, 2.5, 6.25, 15.6 s of the utterance
INTERIM_RATIO = 2.5  # of one time to the next: all encodings, final included, then cost less than three of the final


@dataclass(slots=True)
class _OpenTurn:
    """`due`: it gets a TurnResult when the client closes the stream.

    The first turn always is; one that the client asked for (`asked`) once it has audio, even if nobody speaks; one
    that began because the last ended in silence, once somebody speaks.
    """

    turn_id: str
    asked: bool
    due: bool = False
    began: bool = False
    faults: set[str] = field(default_factory=set)  # of its audio, that the client was told of


class Listener:
    """Hands utterances and ends of turns to `analysis`. Where that or the outbox is full, no more is read."""

    def __init__(
        self,
        stream: Stream,
        analysis: Responder,
        segmenter: Segmenter,
        *,
        new_turn_id: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        """`new_turn_id` makes ids for turns that the client did not name; `clock` tells wall seconds."""
        self.received = 0  # samples
        self._stream = stream
        self._options = stream.options
        self._limits = stream.limits
        self._analysis = analysis
        self._segmenter = segmenter
        self._new_turn_id = new_turn_id
        self._clock = clock
        self._decoder = AudioDecoder(stream.options.audio)
        self._turn = _OpenTurn(stream.options.turn_id, asked=True, due=True)
        self._pace = RateWatch(stream.options.audio.sample_rate_hz)
        self._message_pace = MessageThrottle(self._limits.max_messages_per_s)
        self._end_announced = False
        self._next_progress, self._told_settled = PROGRESS_EVERY, 0  # samples
        self._next_interim = self._first_interim  # samples of the open utterance; it may be open from the start

    @property
    def settled(self) -> int:
        """Audio before this sample belongs to an utterance that was handed on, or to none."""
        return self._segmenter.settled

    async def run(self, requests: AsyncIterator[Request]) -> Failure | None:
        """Hears until the client half-closes.

        Returns the failure to end the stream with, where all that was heard shall be answered before it.
        Raises Failure where the stream cannot go on.
        """
        idle = Timeout(self._limits.idle_timeout_s)
        try:
            while True:
                try:
                    request = await self._next_request(requests, idle)
                except TimeoutError:
                    return self._idle_timeout()
                if request is None:
                    await self._end_turn(EndReason.HALF_CLOSE)
                    return None
                if isinstance(request, Refused):
                    return request.failure
                if isinstance(request, Audio):
                    await self._hear(request.payload)
                    if self._left_s < 0:
                        await self._end_turn(EndReason.MAX_DURATION)
                        return self._too_long()
                else:
                    await self._client_end_of_turn(request.next_turn_id)
                if (wait_s := self._message_pace.wait_s(self._clock())) > 0:
                    await asyncio.sleep(wait_s)
        except AudioError as error:
            raise invalid(error.reason, error.field, str(error)) from error
        finally:
            idle.close()

    async def _next_request(self, requests: AsyncIterator[Request], idle: Timeout) -> Request | None:
        self._stream.live.awaits_client(True)
        try:
            return await idle.wait(anext(requests, None))
        finally:
            self._stream.live.awaits_client(False)

    # ---- audio

    async def _hear(self, payload: bytes) -> None:
        samples = self._decoder.decode(payload)
        self._turn.due |= self._turn.asked
        # What is short of two blocks is one: a resampler gives a little more than 100 ms for many a message of 100 ms.
        for begin in range(0, max(len(samples) - BLOCK + 1, 1), BLOCK):
            block = samples[begin : begin + BLOCK if len(samples) - begin >= 2 * BLOCK else len(samples)]
            self.received += len(block)
            self._stream.telemetry.received(len(block))
            if found := self._segmenter.push(block):
                await self._segment(found)
            self._consider_interim()
            if begin % BREATH == BREATH - BLOCK:
                await asyncio.sleep(0)
        await self._check_pace()
        await self._announce_end()
        await self._tell_progress()

    async def _drain_decoder(self) -> None:
        """The resampler's tail. The next turn gets a decoder of its own: its audio owes nothing to this turn's."""
        tail = self._decoder.flush()
        self.received += len(tail)
        self._stream.telemetry.received(len(tail))
        await self._segment(self._segmenter.push(tail))
        if self._decoder.pending_bytes:
            message = f"the audio ended within a sample; its last {self._decoder.pending_bytes} bytes were ignored"
            await self._tell(StreamWarning("INCOMPLETE_SAMPLE", message))
        if clipped := self._decoder.clipped_samples:
            message = f"{clipped} samples lay beyond ±1 and were brought back to it; send float32 samples within ±1"
            await self._tell(StreamWarning("SAMPLES_CLIPPED", message, {"sample_count": str(clipped)}))
        self._decoder = AudioDecoder(self._options.audio)

    async def _segment(self, found: list[SegmenterEvent]) -> None:
        for event in found:
            match event:
                case SpeechBegin(position):
                    await self._begin_turn(position)
                    self._next_interim = self._first_interim
                    await self._tell_activity("activity_begin", position)
                case SpeechEnd(position):
                    await self._tell_activity("activity_end", position)
                case NoSpeechTimeout(position):
                    await self._tell_speech("no_speech_timeout", position)
                case SpeechSegment(start=position):
                    await self._begin_turn(position)
                    self._next_interim = self._first_interim
                    await self._tell_quality(event)
                    await self._analysis.final(event, self._turn.turn_id)
                case TurnSilence(position):
                    await self._close_turn(EndReason.SILENCE, position)
                    self._set_turn(self._new_turn_id(), asked=False)

    def _consider_interim(self) -> None:
        opened = self._segmenter.open_start
        if not self._options.interims or opened is None:
            return
        due, every = None, self._options.interim_interval
        while self._segmenter.position - opened >= self._next_interim:
            due = self._next_interim
            apart = every or due * (INTERIM_RATIO - 1)
            self._next_interim = due + round(apart * self._analysis.interim_stretch)
        if due is not None:
            audio = self._segmenter.open_audio(opened + due)
            self._analysis.interim(
                SpeechSegment(opened, opened + due, audio, len(audio), EndReason.SILENCE), self._turn.turn_id
            )

    @property
    def _first_interim(self) -> int:
        return self._options.interim_interval or FIRST_INTERIM

    # ---- turns

    async def _begin_turn(self, position: int) -> None:
        if not self._turn.began:
            self._turn.began = self._turn.due = True
            await self._tell_speech("turn_start", position)

    async def _end_turn(self, reason: EndReason) -> None:
        """Flushes: the open utterance is finished now, then the turn if a result is due."""
        await self._drain_decoder()
        await self._segment(self._segmenter.flush(reason))
        if self._turn.due:
            await self._close_turn(reason, self._segmenter.position)

    async def _close_turn(self, reason: EndReason, position: int) -> None:
        await self._begin_turn(position)
        await self._tell_speech("turn_end", position)
        await self._analysis.turn_end(self._turn.turn_id, reason, position)

    async def _client_end_of_turn(self, next_turn_id: str) -> None:
        next_turn_id = next_turn_id or self._new_turn_id()
        await self._stream.streams.settled(self._stream.live, next_turn_id)
        if next_turn_id in self._stream.live.turn_ids:
            raise invalid("TURN_ID_REPEATED", "end_of_turn.next_turn_id", "the next turn needs an id of its own")
        await self._stream.held.refresh()  # another stream may have finished that turn
        self._stream.held.check_unfinished(next_turn_id)
        self._turn.due = True
        await self._end_turn(EndReason.CLIENT_END_OF_TURN)
        self._set_turn(next_turn_id, asked=True)

    def _set_turn(self, turn_id: str, *, asked: bool) -> None:
        self._turn = _OpenTurn(turn_id, asked)
        self._stream.streams.claim(self._stream.live, turn_id)

    # ---- limits

    @property
    def _left_s(self) -> float:
        return self._limits.max_stream_s - self.received / SAMPLE_RATE_HZ

    async def _announce_end(self) -> None:
        if self._left_s <= self._limits.warn_before_end_s and not self._end_announced:
            self._end_announced = True
            left_s = max(self._left_s, 0.0)
            message = f"this stream will end after {left_s:.0f} s more of audio; open a new one for the next turn"
            await self._tell(StreamWarning("STREAM_ENDS_SOON", message))

    def _too_long(self) -> Failure:
        text = f"a stream may carry {self._limits.max_stream_s:g} s of audio; go on in a new stream with a new turn"
        return Failure(Kind.OUT_OF_RANGE, "STREAM_TOO_LONG", text)

    def _idle_timeout(self) -> Failure:
        text = f"nothing was sent for {self._limits.idle_timeout_s:g} s; open a new stream when there is audio again"
        return Failure(Kind.DEADLINE_EXCEEDED, "IDLE_TIMEOUT", text)

    async def _check_pace(self) -> None:
        true_hz = self._pace.suspect_hz(self.received / SAMPLE_RATE_HZ, self._clock())
        if true_hz is not None:
            labelled = self._options.audio.sample_rate_hz
            message = f"audio labelled {labelled} Hz arrives at the pace of {true_hz} Hz; check sample_rate_hertz"
            await self._tell(StreamWarning("RATE_MISMATCH_SUSPECTED", message, {"likely_hertz": str(true_hz)}))

    # ---- telling

    async def _tell_progress(self) -> None:
        """What waits for its final is not settled; finals that are known are in the outbox, before this."""
        if self.received < self._next_progress:
            return
        self._next_progress = self.received - self.received % PROGRESS_EVERY + PROGRESS_EVERY
        waits_from = self._analysis.waits_from
        settled = self.settled if waits_from is None else min(self.settled, waits_from)
        if settled > self._told_settled:
            self._told_settled = settled
            await self._tell(StreamProgress(settled + self._options.start_offset))

    async def _tell(self, event: SpeechEvent | StreamWarning | StreamProgress) -> None:
        await self._stream.outbox.put(event)

    async def _tell_quality(self, utterance: SpeechSegment) -> None:
        """Each fault once a turn."""
        for warning in quality.warnings(utterance.audio):
            if warning.reason not in self._turn.faults:
                self._turn.faults.add(warning.reason)
                await self._tell(replace(warning, metadata={**warning.metadata, "turn_id": self._turn.turn_id}))

    async def _tell_speech(self, kind: SpeechType, position: int) -> None:
        await self._tell(SpeechEvent(kind, position + self._options.start_offset, self._turn.turn_id))

    async def _tell_activity(self, kind: SpeechType, position: int) -> None:
        if self._options.voice_activity_events:
            await self._tell_speech(kind, position)
