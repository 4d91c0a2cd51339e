"""Reads the requests of one stream and decodes their audio.

Positions are samples of the analysis clock. The wall clock serves the idle timeout, the throttle and one warning only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import AudioDecoder, AudioError
from kibun.server.audio.endpointing import EndReason
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.observability.telemetry import CallTelemetry
from kibun.server.session.audio_watch import AudioWatch
from kibun.server.session.events import (
    Audio,
    Limits,
    Refused,
    Request,
    StreamOptions,
    StreamProgress,
    StreamWarning,
)
from kibun.server.session.open_streams import OpenStream
from kibun.server.session.outbox import Outbox
from kibun.server.session.timeout import Timeout
from kibun.server.session.turn_tracker import TurnTracker
from kibun.server.session.wall_clock import MessageThrottle, RateWatch

BLOCK = SAMPLE_RATE_HZ // 10  # audio is segmented in blocks of 100 to 200 ms: interims fall due inside big chunks
BLOCKS_PER_STEP = 10  # of one message; then other streams get their turn
PROGRESS_EVERY = 10 * SAMPLE_RATE_HZ  # samples between two reports of how far all is settled


class Listener:
    """Passes the client's audio and ends of turns to `turns`. While a queue there is full, no more is read."""

    def __init__(
        self,
        options: StreamOptions,
        limits: Limits,
        turns: TurnTracker,
        watch: AudioWatch,
        stream: OpenStream,
        outbox: Outbox,
        telemetry: CallTelemetry,
        clock: Callable[[], float],
    ) -> None:
        """`clock` returns wall seconds."""
        self.received = 0  # samples
        self._options = options
        self._limits = limits
        self._turns = turns
        self._watch = watch
        self._stream = stream
        self._outbox = outbox
        self._telemetry = telemetry
        self._clock = clock
        self._decoder = AudioDecoder(options.audio)
        self._rate_watch = RateWatch(options.audio.sample_rate_hz)
        self._throttle = MessageThrottle(limits.max_messages_per_s)
        self._end_announced = False
        self._next_progress, self._reported = PROGRESS_EVERY, 0  # samples

    async def run(self, requests: AsyncIterator[Request]) -> Failure | None:
        """Listens until the client half-closes.

        Returns the failure to end the stream with, where all that came before shall be answered first.
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
                    await self._take_audio(request.payload)
                    if self._left_s < 0:
                        await self._end_turn(EndReason.MAX_DURATION)
                        return self._too_long()
                else:
                    next_turn_id = await self._turns.check_next_turn(request.next_turn_id)
                    await self._end_turn(EndReason.CLIENT_END_OF_TURN, next_turn_id)
                if (wait_s := self._throttle.wait_s(self._clock())) > 0:
                    await asyncio.sleep(wait_s)
        except AudioError as error:
            raise invalid(error.reason, error.field, str(error)) from error
        finally:
            idle.close()

    async def _next_request(self, requests: AsyncIterator[Request], idle: Timeout) -> Request | None:
        self._stream.awaits_client(True)
        try:
            return await idle.wait(anext(requests, None))
        finally:
            self._stream.awaits_client(False)

    # ---- audio

    async def _take_audio(self, payload: bytes) -> None:
        samples = self._decoder.decode(payload)
        self._turns.audio_arrived()
        await self._watch.heard(payload)
        # Less than two blocks are one: for many a message of 100 ms a resampler gives a little more than 100 ms.
        for number, begin in enumerate(range(0, max(len(samples) - BLOCK + 1, 1), BLOCK), start=1):
            block = samples[begin : begin + BLOCK if len(samples) - begin >= 2 * BLOCK else len(samples)]
            self._count(len(block))
            await self._turns.push(block)
            self._turns.estimate_early()
            if number % BLOCKS_PER_STEP == 0:
                await asyncio.sleep(0)
        true_hz = self._rate_watch.suspect_hz(self.received / SAMPLE_RATE_HZ, self._clock())
        if true_hz is not None:
            await self._watch.paced(true_hz)
        if self._left_s <= self._limits.warn_before_end_s and not self._end_announced:
            await self._announce_end()
        if self.received >= self._next_progress:
            await self._report_progress()

    async def _end_turn(self, reason: EndReason, next_turn_id: str | None = None) -> None:
        """Ends the turn with the decoder's tail. The next turn gets a new decoder: its audio depends on no other."""
        tail = self._decoder.flush()
        self._count(len(tail))
        await self._turns.push(tail)
        if self._decoder.pending_bytes:
            message = f"the audio ended within a sample; its last {self._decoder.pending_bytes} bytes were ignored"
            await self._outbox.put(StreamWarning("INCOMPLETE_SAMPLE", message))
        if clipped := self._decoder.clipped_samples:
            message = f"{clipped} samples lay beyond ±1 and were brought back to it; send float32 samples within ±1"
            await self._outbox.put(StreamWarning("SAMPLES_CLIPPED", message, {"sample_count": str(clipped)}))
        self._decoder = AudioDecoder(self._options.audio)
        await self._turns.end(reason, next_turn_id)

    def _count(self, samples: int) -> None:
        self.received += samples
        self._telemetry.received(samples)

    async def _report_progress(self) -> None:
        """Finals of what is settled are in the outbox already, before this."""
        self._next_progress = self.received - self.received % PROGRESS_EVERY + PROGRESS_EVERY
        if (settled := self._turns.settled) > self._reported:
            self._reported = settled
            await self._turns.note_settled(settled)
            await self._outbox.put(StreamProgress(settled + self._options.start_offset))

    # ---- limits

    @property
    def _left_s(self) -> float:
        return self._limits.max_stream_s - self.received / SAMPLE_RATE_HZ

    async def _announce_end(self) -> None:
        self._end_announced = True
        left_s = max(self._left_s, 0.0)
        message = f"this stream will end after {left_s:.0f} s more of audio; open a new one for the next turn"
        await self._outbox.put(StreamWarning("STREAM_ENDS_SOON", message))

    def _too_long(self) -> Failure:
        text = f"a stream may carry {self._limits.max_stream_s:g} s of audio; go on in a new stream with a new turn"
        return Failure(Kind.OUT_OF_RANGE, "STREAM_TOO_LONG", text)

    def _idle_timeout(self) -> Failure:
        text = f"nothing was sent for {self._limits.idle_timeout_s:g} s; open a new stream when there is audio again"
        return Failure(Kind.DEADLINE_EXCEEDED, "IDLE_TIMEOUT", text)
