"""What a server must answer, written a second time and plainly: no tasks, no queues, no gRPC.

Every request is answered at once and in full, one after the other. An oracle for order, turns, supersession, the
bookkeeping of conversations and counts of samples: it shares no code with the session (its `Turn` is written anew) or
the stores. No oracle for audio: it asks the server's own decoder and segmenter, one message at a time. Estimates are
those of `stub_model`. Positions are samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kibun.server.audio.decoder import AudioDecoder, AudioError, AudioFormat
from kibun.server.audio.endpointing import (
    EndpointingOptions,
    EndReason,
    NoSpeechTimeout,
    SegmenterEvent,
    SpeechBegin,
    SpeechEnd,
    SpeechSegment,
    TurnSilence,
)
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import make_vad

MIN_SAMPLES = 400
MAX_PAYLOAD_BYTES = 256 * 1024


class Refusal(NamedTuple):
    """The status that must come. `field` None: no BadRequest."""

    code: str
    reason: str
    field: str | None = None


@dataclass(eq=False)
class Turn:
    """`id` None: the server makes one; the driver fills it in once the server has sent it."""

    id: str | None
    asked: bool = True
    due: bool = False
    began: bool = False


@dataclass(eq=False)
class Record:
    """One final utterance. `level` is the stub's root mean square; None: too short to analyse."""

    turn: Turn
    start: int
    end: int
    speech: int
    level: float | None
    arousal: float | None
    openness: float | None  # over the conversation
    reason: EndReason


@dataclass(eq=False)
class Person:
    records: list[Record] = field(default_factory=list)
    finished: list[Turn] = field(default_factory=list)
    given: float | None = None  # openness; the other traits are 4
    revision: int = 0

    @property
    def analysed(self) -> list[Record]:
        return [r for r in self.records if r.level is not None]

    @property
    def openness(self) -> float | None:
        return next((r.openness for r in reversed(self.records) if r.openness is not None), None)

    def has_finished(self, turn_id: str) -> bool:
        return any(t.id == turn_id for t in self.finished)

    def of_turn(self, turn: Turn) -> list[Record]:
        return [r for r in self.records if r.turn is turn or (turn.id is not None and r.turn.id == turn.id)]


def mean_arousal(records: Sequence[Record]) -> float | None:
    pairs = [(r.arousal, r.speech) for r in records if r.arousal is not None]
    total = sum(weight for _, weight in pairs)
    return sum(arousal * weight for arousal, weight in pairs) / total if total else None


@dataclass(eq=False)
class Conversation:
    model: str
    completed: bool = False
    people: dict[str, Person] = field(default_factory=dict)

    @property
    def blank(self) -> bool:
        return not self.completed and not any(p.records or p.finished or p.given for p in self.people.values())


@dataclass(frozen=True)
class Config:
    """What a stream asks for; `turn_id` "": the server makes one."""

    conversation_id: str
    participant_id: str
    turn_id: str
    audio: AudioFormat
    endpointing: EndpointingOptions = field(default_factory=EndpointingOptions)
    model: str = "stub"
    emotion: bool = True
    personality: bool = True
    activity: bool = False
    require_existing: bool = False
    resume: bool = False
    given: float | None = None
    offset: int = 0


class ReferenceServer:
    """All conversations and open streams of one tenant."""

    def __init__(self) -> None:
        self.conversations: dict[str, Conversation] = {}
        self.streams: list[Stream] = []

    def person(self, conversation_id: str, participant_id: str) -> Person:
        """What is known of the participant, empty if nothing is."""
        conversation = self.conversations.get(conversation_id)
        return conversation.people.get(participant_id, Person()) if conversation else Person()

    def open(self, config: Config) -> Stream | Refusal:
        found = self.conversations.get(config.conversation_id)
        if found is None and config.require_existing:
            return Refusal("NOT_FOUND", "CONVERSATION_NOT_FOUND")
        if found is not None and found.completed:
            return Refusal("FAILED_PRECONDITION", "CONVERSATION_COMPLETED")
        if found is not None and found.model != config.model:
            return Refusal("FAILED_PRECONDITION", "MODEL_MISMATCH")
        finished = self.person(config.conversation_id, config.participant_id).has_finished(config.turn_id)
        if finished and not config.resume:
            return Refusal("ALREADY_EXISTS", "TURN_FINISHED")
        conversation = self.conversations.setdefault(config.conversation_id, Conversation(config.model))
        person = conversation.people.setdefault(config.participant_id, Person())
        person.given = config.given or person.given
        person.records = [r for r in person.records if r.turn.id != config.turn_id or r.start < config.offset]
        person.finished = [t for t in person.finished if t.id != config.turn_id]
        stream = Stream(self, config, created=found is None)
        self.streams.append(stream)
        stream.claim(stream.turn)
        return stream

    def close(self, stream: Stream) -> None:
        """Ends the stream, and with the last one a conversation in which nothing was said."""
        if stream not in self.streams:
            return
        self.streams.remove(stream)
        name = stream.config.conversation_id
        found = self.conversations.get(name)
        if found is not None and found.blank and not any(s.config.conversation_id == name for s in self.streams):
            del self.conversations[name]

    def complete(self, conversation_id: str) -> Conversation | Refusal:
        conversation = self.conversations.get(conversation_id)
        if conversation is None:
            return Refusal("NOT_FOUND", "CONVERSATION_NOT_FOUND")
        conversation.completed = True
        return conversation

    def delete(self, conversation_id: str, *, allow_missing: bool) -> Refusal | None:
        known = conversation_id in self.conversations
        for stream in [s for s in self.streams if s.config.conversation_id == conversation_id]:
            stream.fail(Refusal("ABORTED", "CONVERSATION_DELETED"))
        self.conversations.pop(conversation_id, None)
        return None if known or allow_missing else Refusal("NOT_FOUND", "CONVERSATION_NOT_FOUND")


class Stream:
    """One open stream, and all that its client must have got so far.

    `answers`: finals, personality updates and turn results, in this order; `warnings`: their reasons.
    """

    def __init__(self, world: ReferenceServer, config: Config, *, created: bool) -> None:
        self.world = world
        self.config = config
        self.created = created
        self.prior = len(self.person.records)
        self.turn = Turn(config.turn_id or None, due=True)
        self.received = self.speech = self.dropped = 0
        self.answers: list[tuple[Any, ...]] = []
        self.speech_events: list[tuple[str, int, Turn]] = []
        self.warnings: list[str] = []
        # What its client has of the turn, if it resumes one.
        self.had = len(self.person.of_turn(self.turn)) if config.resume else None
        self.seen_turns = 0  # results that the driver has seen
        self.failure: Refusal | None = None
        self.ended = False
        self._decoder = AudioDecoder(config.audio)
        before = next((r for r in self.person.of_turn(self.turn) if r.end == config.offset), None)
        vad = make_vad("silero", config.endpointing.vad_aggressiveness)
        self._segmenter = Segmenter(config.endpointing, vad, resume_after=before.reason if before else None)

    @property
    def person(self) -> Person:
        return self.world.person(self.config.conversation_id, self.config.participant_id)

    # ---- what a client sends

    def audio(self, payload: bytes) -> None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            return self.fail(Refusal("INVALID_ARGUMENT", "AUDIO_CONTENT_TOO_LARGE", "audio_content"))
        try:
            samples = self._decoder.decode(payload)
        except AudioError as error:
            return self.fail(Refusal("INVALID_ARGUMENT", error.reason, "audio_content"))
        self.turn.due |= self.turn.asked
        self.received += len(samples)
        return self._segment(self._segmenter.push(samples))

    def end_of_turn(self, next_turn_id: str) -> None:
        if next_turn_id and next_turn_id == self.turn.id:
            return self.fail(Refusal("INVALID_ARGUMENT", "TURN_ID_REPEATED", "end_of_turn.next_turn_id"))
        if next_turn_id and self.person.has_finished(next_turn_id):
            return self.fail(Refusal("ALREADY_EXISTS", "TURN_FINISHED"))
        self.turn.due = True
        self._end_turn(EndReason.CLIENT_END_OF_TURN)
        self.turn = Turn(next_turn_id or None)
        return self.claim(self.turn)

    def half_close(self) -> None:
        self._end_turn(EndReason.HALF_CLOSE)
        self.ended = True

    def fail(self, refusal: Refusal) -> None:
        self.failure = refusal
        self.world.close(self)

    def claim(self, turn: Turn) -> None:
        """Takes the turn: another stream of the participant with it ends."""
        mine = (self.config.conversation_id, self.config.participant_id)
        for other in tuple(self.world.streams):
            theirs = (other.config.conversation_id, other.config.participant_id)
            if other is not self and theirs == mine and turn.id is not None and other.turn.id == turn.id:
                other.fail(Refusal("ABORTED", "SUPERSEDED"))

    # ---- what follows from it

    def _segment(self, found: list[SegmenterEvent]) -> None:
        for event in found:
            match event:
                case SpeechBegin(position):
                    self._begin_turn(position)
                    self._put_activity("SPEECH_ACTIVITY_BEGIN", position)
                case SpeechEnd(position):
                    self._put_activity("SPEECH_ACTIVITY_END", position)
                case NoSpeechTimeout(position):
                    self._put_speech("NO_SPEECH_TIMEOUT", position)
                case SpeechSegment():
                    self._begin_turn(event.start)
                    self._final(event)
                case TurnSilence(position):
                    self._close_turn(EndReason.SILENCE, position)
                    self.turn = Turn(None, asked=False)

    def _final(self, segment: SpeechSegment) -> None:
        config, person, n = self.config, self.person, len(segment.audio)
        start, end = segment.start + config.offset, segment.end + config.offset
        level = None
        if n < MIN_SAMPLES:
            self.warnings.append("TOO_LITTLE_SPEECH")
            self.dropped += n
        else:
            level = float(np.sqrt(np.mean(np.square(segment.audio, dtype=np.float64))))
            self.speech += n
        before = [np.float16(r.level) for r in person.analysed]
        so_far = None if level is None else _openness(float(np.mean([*before, np.float16(level)], dtype=np.float64)))
        arousal = 1 + 4 * min(level, 1.0) if level is not None and config.emotion else None
        record = Record(self.turn, start, end, 0 if level is None else n, level, arousal, so_far, segment.reason)
        same = [r for r in person.of_turn(self.turn) if r.start == start]
        person.records = [*(r for r in person.records if r not in same), record]
        person.revision += so_far is not None
        of_utterance = _openness(level) if level is not None and config.personality else None
        condition = (person.given or so_far) if arousal is not None else None
        self.answers.append(
            ("final", self.turn, start, end, record.speech, segment.reason, arousal, of_utterance, condition)
        )
        if so_far is not None and config.personality:
            self.answers.append(("update", so_far, len(person.analysed), person.revision))

    def _begin_turn(self, position: int) -> None:
        if not self.turn.began:
            self.turn.began = self.turn.due = True
            self._put_speech("START_OF_TURN", position)

    def _end_turn(self, reason: EndReason) -> None:
        tail = self._decoder.flush()
        self.received += len(tail)
        self._segment(self._segmenter.push(tail))
        if self._decoder.pending_bytes:
            self.warnings.append("INCOMPLETE_SAMPLE")
        self._decoder = AudioDecoder(self.config.audio)
        self._segment(self._segmenter.flush(reason))
        if self.turn.due:
            self._close_turn(reason, self._segmenter.position)

    def _close_turn(self, reason: EndReason, position: int) -> None:
        self._begin_turn(position)
        self._put_speech("END_OF_TURN", position)
        person, at = self.person, position + self.config.offset
        records = person.of_turn(self.turn)
        speech = sum(r.speech for r in records)
        if not speech:
            self.warnings.append("NO_SPEECH")
        start, end = min((r.start for r in records), default=at), max((r.end for r in records), default=at)
        arousal = mean_arousal(records) if self.config.emotion else None
        openness = person.openness if self.config.personality else None
        self.answers.append(("turn", self.turn, start, end, len(records), speech, reason, arousal, openness))
        person.finished = [t for t in person.finished if t.id is None or t.id != self.turn.id] + [self.turn]

    def _put_speech(self, kind: str, position: int) -> None:
        self.speech_events.append((kind, position + self.config.offset, self.turn))

    def _put_activity(self, kind: str, position: int) -> None:
        if self.config.activity:
            self._put_speech(kind, position)


def _openness(level: float) -> float:
    return 4 + 3 * min(level, 1.0)
