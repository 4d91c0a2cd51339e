"""Tells the client of one stream what is wrong with its audio: that it is not what was declared, or is faulty."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import log2

import numpy as np

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.declaration import DeclarationCheck, Suspicion
from kibun.server.audio.endpointing import SpeechSegment
from kibun.server.audio.sample_buffer import Samples
from kibun.server.audio.voice_speed import VoiceSpeed
from kibun.server.session import quality
from kibun.server.session.events import StreamOptions, StreamWarning
from kibun.server.session.outbox import Outbox

AT_ONCE = 32 * 1024  # bytes; then other streams get their turn
BLOCK = SAMPLE_RATE_HZ // 10  # samples of a turn that are looked at together: short messages cost little
FIRST_LOOK = 300 * BLOCK  # samples of a turn after which its faults are told, if it has not ended before


class AudioWatch:
    """Takes the audio as it arrives, as it is decoded, and by utterance; puts warnings into the outbox.

    Each fault is told once a turn, a doubtful encoding or number of channels once a stream, a doubtful rate too. While
    encoding or channels are doubtful, neither faults nor a rate are told: they are the consequence, and turning a gain
    down would mend nothing.
    """

    def __init__(self, options: StreamOptions, outbox: Outbox) -> None:
        self.doubts_declaration = False
        self._rate_hz = options.audio.sample_rate_hz
        self._outbox = outbox
        self._check = DeclarationCheck(options.audio)
        self._speed = VoiceSpeed(options.audio.sample_rate_hz)
        self._doubts_rate = False
        self._told_before = options.resumes and options.start_offset > 0  # on the stream that this one goes on with
        self._turn = quality.TurnLevels()  # since the client last ended a turn
        self._told: set[str] = set()  # reasons, since then
        self._turn_id = ""
        self._told_of_turn: set[str] = set()
        self._block = np.empty(BLOCK, np.float32)
        self._held = 0  # samples in it

    async def heard(self, payload: bytes) -> None:
        """Takes the next bytes of the stream."""
        for begin in range(0, len(payload), AT_ONCE):
            if self._check.settled:
                return
            if begin:
                await asyncio.sleep(0)
            await self._doubt(self._check.push(payload[begin : begin + AT_ONCE]))

    async def decoded(self, samples: Samples, turn_id: str) -> None:
        """Takes the next samples of the turn, (n,)."""
        while self._held + len(samples) >= BLOCK:
            block, samples = samples[: BLOCK - self._held], samples[BLOCK - self._held :]
            if self._held:
                self._block[self._held :] = block
                block, self._held = self._block, 0
            await self._look_at(block, turn_id)
        if len(samples):
            self._block[self._held : self._held + len(samples)] = samples
            self._held += len(samples)

    async def utterance(self, segment: SpeechSegment, turn_id: str) -> None:
        """Takes a whole utterance."""
        if not self._check.suspects(segment.end * self._rate_hz // SAMPLE_RATE_HZ):
            await self._tell(quality.warnings(segment.audio), turn_id)

    async def end_turn(self, turn_id: str) -> None:
        """The client has ended the turn: its audio is complete."""
        await self._look_at(self._block[: self._held], turn_id)
        self._held = 0
        await self._doubt(self._check.end_turn())
        await self._sounds_like(self._speed.end_turn())
        await self._tell_faults(turn_id)
        self._turn, self._told = quality.TurnLevels(), set()

    async def paced(self, likely_hz: int) -> None:
        """Audio has come at the pace of `likely_hz` for a while. Not told where the voices contradict it."""
        expected, heard = log2(self._rate_hz / likely_hz), self._speed.octaves()
        contradicted = heard is not None and abs(expected) > 0.5 and abs(heard) < abs(heard - expected)
        if not (contradicted or self.doubts_declaration):
            seen = f"audio declared as {self._rate_hz} Hz arrives at the pace of {likely_hz} Hz"
            fix = "Declare the true one, or resample; a file that is sent at another pace than its own is in order"
            await self._doubt_rate(likely_hz, seen, fix)

    async def _look_at(self, block: Samples, turn_id: str) -> None:
        if (likely_hz := self._speed.push(block)) is not None:
            await self._sounds_like(likely_hz)
        before = self._turn.samples
        self._turn.add(block)
        if before < FIRST_LOOK <= self._turn.samples:
            await self._tell_faults(turn_id)

    async def _sounds_like(self, likely_hz: int | None) -> None:
        """The voices of the stream sound as those of another rate would."""
        if likely_hz is None or self._check.suspects(self._speed.position * self._rate_hz // SAMPLE_RATE_HZ):
            return
        how = "slow and low" if likely_hz > self._rate_hz else "fast and high"
        seen = f"voices sound much too {how}, as if audio of about {likely_hz} Hz were declared as {self._rate_hz} Hz"
        await self._doubt_rate(likely_hz, seen, "Declare the one in the file's header, or resample")

    async def _doubt_rate(self, likely_hz: int, seen: str, fix: str) -> None:
        if self._doubts_rate:
            return
        self._doubts_rate = True
        if not self._told_before:
            field = "audio_config.sample_rate_hertz"
            message = f"{seen}; is {field} the rate that you send? {fix}"
            metadata = {"field": field, "likely_hertz": str(likely_hz)}
            await self._outbox.put(StreamWarning("RATE_MISMATCH_SUSPECTED", message, metadata))

    async def _tell_faults(self, turn_id: str) -> None:
        """Of all audio since the client last ended a turn, unless they were told of an utterance."""
        if not self.doubts_declaration:
            await self._tell([fault for fault in self._turn.faults() if fault.reason not in self._told], turn_id)

    async def _doubt(self, suspicion: Suspicion | None) -> None:
        if suspicion is None:
            return
        self.doubts_declaration = True
        if not self._told_before:
            metadata = {"field": suspicion.field, "likely": suspicion.likely}
            await self._outbox.put(StreamWarning(suspicion.reason, suspicion.message, metadata))

    async def _tell(self, faults: list[StreamWarning], turn_id: str) -> None:
        if turn_id != self._turn_id:
            self._turn_id, self._told_of_turn = turn_id, set()
        for warning in faults:
            if warning.reason not in self._told_of_turn:
                self._told_of_turn.add(warning.reason)
                self._told.add(warning.reason)
                await self._outbox.put(replace(warning, metadata={**warning.metadata, "turn_id": turn_id}))
