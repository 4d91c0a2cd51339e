"""Divides the audio of one stream into segments of speech and turns. Its clock counts samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import (
    EndReason,
    NoSpeechTimeout,
    SegmenterEvent,
    SpeechBegin,
    SpeechEnd,
    SpeechSegment,
    TurnSilence,
)
from kibun.server.audio.sample_buffer import Samples
from kibun.server.audio.segmenter import Segmenter
from kibun.server.session.audio_watch import AudioWatch
from kibun.server.session.conversation_handle import ConversationHandle
from kibun.server.session.events import SpeechEvent, SpeechType, StreamOptions
from kibun.server.session.outbox import Outbox
from kibun.server.session.responder import Responder

FIRST_INTERIM = SAMPLE_RATE_HZ  # geometric times: 1, 2.5, 6.25, 15.6 s of the utterance
INTERIM_RATIO = 2.5  # of one time to the next: all encodings, final included, then cost less than three of the final
#: Eager finals that turn out not to be final keep to the same limit over the utterances of a stream, but for this much
#: audio at its start; of what earlier utterances did not need, no more than the most is kept for later ones.
FIRST_SPARE = 4 * SAMPLE_RATE_HZ
MOST_SPARE = 20 * SAMPLE_RATE_HZ


@dataclass(slots=True)
class _OpenTurn:
    """`due`: it gets a TurnResult when the client closes the stream.

    The first turn always does; one that the client asked for (`asked`) once it has audio, even without speech; one that
    began because the last ended in silence, once there is speech.
    """

    turn_id: str
    asked: bool
    start: int  # samples, on the stream
    due: bool = False
    began: bool = False


@dataclass(slots=True)
class _Early:
    """What is estimated of the open utterance before it ends, in samples of it."""

    next_interim: int
    estimated: int = 0  # by all of them, but for interims at a fixed interval
    eager_end: int | None = None  # of the stream: where it ends if the silence goes on for which it was estimated


class TurnTracker:
    """Takes samples; puts speech events into the outbox, and gives segments and ends of turns to the responder."""

    def __init__(
        self,
        options: StreamOptions,
        segmenter: Segmenter,
        responder: Responder,
        conversation: ConversationHandle,
        outbox: Outbox,
        watch: AudioWatch,
        new_turn_id: Callable[[], str],
    ) -> None:
        """`new_turn_id` makes ids for turns that the client did not name."""
        self._options = options
        self._segmenter = segmenter
        self._responder = responder
        self._conversation = conversation
        self._outbox = outbox
        self._watch = watch
        self._new_turn_id = new_turn_id
        self._turn = _OpenTurn(options.turn_id, asked=True, start=0, due=True)
        self._early = self._nothing_early()  # an utterance may be open from the start
        self._spare = FIRST_SPARE  # samples that may be estimated early beyond twice the open utterance

    @property
    def processed(self) -> int:
        """Everything before this sample has its final, or belongs to no utterance. Never falls."""
        waits_for = self._responder.waits_for
        return self._segmenter.needed_from if waits_for is None else min(self._segmenter.needed_from, waits_for.start)

    @property
    def settled(self) -> int:
        """The latest sample, not after `processed`, from which a replay gives all that is still to come."""
        waits_for = self._responder.waits_for
        return self._segmenter.settled if waits_for is None else waits_for.replay_from

    def audio_arrived(self) -> None:
        """The client sent audio, be it less than a sample: a turn that it asked for is due."""
        self._turn.due |= self._turn.asked

    async def note_settled(self, position: int) -> None:
        """Stores that the open turn may be resumed at `position`, before the client is told so."""
        if position >= self._turn.start:
            await self._conversation.note_settled(self._turn.turn_id, position + self._options.start_offset)

    async def push(self, samples: Samples) -> None:
        """Takes the next samples, float32 (n,), n >= 0."""
        await self._watch.decoded(samples, self._turn.turn_id)
        if found := self._segmenter.push(samples):
            await self._handle(found)

    async def end(self, reason: EndReason, next_turn_id: str | None = None) -> None:
        """Ends the open segment now, and the turn if a result is due.

        `next_turn_id`: the client asked for this turn's result, and goes on with a turn of this id.
        """
        self._turn.due |= next_turn_id is not None
        await self._handle(self._segmenter.flush(reason))
        await self._watch.end_turn(self._turn.turn_id)
        if self._turn.due:
            await self._close_turn(reason, self._segmenter.position)
        if next_turn_id is not None:
            self._open_turn(next_turn_id, self._segmenter.position, asked=True)

    async def check_next_turn(self, turn_id: str) -> str:
        """The id of the turn to go on with, a new one for "". Raises Failure if it is or was another turn's."""
        turn_id = turn_id or self._new_turn_id()
        await self._conversation.check_next_turn(turn_id)
        return turn_id

    def estimate_early(self) -> None:
        """Starts what is to be estimated before the open utterance ends.

        In a silence that may end it, the utterance, once for each silence: its final is then at hand when it ends. Else
        an interim, if one has fallen due.
        """
        opened = self._segmenter.open_start
        if opened is None:
            return
        end = self._segmenter.complete_until
        if self._early.eager_end is not None and end != self._early.eager_end:
            self._early.eager_end = None
            self._responder.speech_goes_on()
        if self._early.eager_end is None and end is not None:
            self._start_eager(opened, end)
        if self._early.eager_end is None:
            self._start_interim(opened)

    def _start_eager(self, opened: int, end: int) -> None:
        length = end - opened
        if not self._options.eager or self._early.estimated > length + self._spare or self._responder.busy:
            return
        segment = self._open_segment(opened, end)
        if self._responder.eager(segment, self._turn.turn_id, as_interim=self._options.interims):
            self._early.eager_end = end
            self._early.estimated += length
            if self._options.interim_interval is None:  # as interim it counts among the others
                self._early.next_interim = max(self._early.next_interim, round(INTERIM_RATIO * length))

    def _start_interim(self, opened: int) -> None:
        """Starts an interim if one has fallen due: on audio up to the exact sample at which it did."""
        if not self._options.interims:
            return
        due, every = None, self._options.interim_interval
        while self._segmenter.position - opened >= self._early.next_interim:
            due = self._early.next_interim
            apart = every or due * (INTERIM_RATIO - 1)
            self._early.next_interim = due + round(apart * self._responder.interim_stretch)
        if due is not None and self._responder.interim(self._open_segment(opened, opened + due), self._turn.turn_id):
            self._early.estimated += 0 if every else due

    def _open_segment(self, opened: int, end: int) -> SpeechSegment:
        audio = self._segmenter.open_audio(end)
        return SpeechSegment(opened, end, audio, len(audio), EndReason.SILENCE, opened)

    def _settle_early(self, final: SpeechSegment) -> None:
        length = final.end - final.start
        is_eager = self._early.eager_end == final.end
        beside_final = self._early.estimated - (length if is_eager else 0)
        self._spare = min(self._spare + 2 * length - beside_final, MOST_SPARE)
        self._early = self._nothing_early()

    def _nothing_early(self) -> _Early:
        return _Early(self._options.interim_interval or FIRST_INTERIM)

    async def _handle(self, found: list[SegmenterEvent]) -> None:
        for event in found:
            match event:
                case SpeechBegin(position):
                    await self._begin_turn(position)
                    self._early = self._nothing_early()
                    await self._put_activity("activity_begin", position)
                case SpeechEnd(position):
                    await self._put_activity("activity_end", position)
                case NoSpeechTimeout(position):
                    await self._put_speech("no_speech_timeout", position)
                case SpeechSegment(start=position):
                    await self._begin_turn(position)
                    self._settle_early(event)
                    await self._watch.utterance(event, self._turn.turn_id)
                    await self._responder.final(event, self._turn.turn_id)
                case TurnSilence(position):
                    await self._close_turn(EndReason.SILENCE, position)
                    self._open_turn(self._new_turn_id(), position, asked=False)

    async def _begin_turn(self, position: int) -> None:
        if not self._turn.began:
            self._turn.began = self._turn.due = True
            await self._put_speech("turn_start", position)

    async def _close_turn(self, reason: EndReason, position: int) -> None:
        await self._begin_turn(position)
        await self._put_speech("turn_end", position)
        await self._responder.turn_end(self._turn.turn_id, reason, position)

    def _open_turn(self, turn_id: str, position: int, *, asked: bool) -> None:
        self._turn = _OpenTurn(turn_id, asked, position)
        self._conversation.claim_turn(turn_id)

    async def _put_speech(self, kind: SpeechType, position: int) -> None:
        await self._outbox.put(SpeechEvent(kind, position + self._options.start_offset, self._turn.turn_id))

    async def _put_activity(self, kind: SpeechType, position: int) -> None:
        if self._options.voice_activity_events:
            await self._put_speech(kind, position)
