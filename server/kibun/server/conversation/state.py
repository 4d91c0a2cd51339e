"""What is known about a conversation: immutable values and pure updates. There is no audio in them.

A store applies these functions atomically. Adding the same record twice changes nothing but the revision (the record's
id derives from its turn and start sample), so a retry after a lost answer is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import ConditionSource, Traits
from kibun.server.audio.endpointing import EndReason

MAX_RECORDS = 512  # per participant, the latest: 512 vectors of 768 float16 are 0.8 MB
MAX_PARTICIPANTS = 64  # per conversation
MAX_OPENINGS = 64  # per participant: the turns whose last opening is remembered
MAX_FINISHED_TURNS = 4096  # per participant: the ids that are remembered, to refuse a finished turn


@dataclass(frozen=True, slots=True, eq=False)
class UtteranceRecord:
    """One final utterance. `vector` is float16 (D,), None where there was too little speech for estimates."""

    utterance_id: str
    turn_id: str
    start: int  # samples at 16 kHz within the turn's clock
    end: int
    speech: int  # samples that the estimates were made from
    vector: NDArray[np.float16] | None
    emotion: tuple[float, float] | None  # valence, arousal
    traits: Traits | None  # over the conversation, this utterance included
    traits_source: ConditionSource
    reason: EndReason  # why it ended: a stream that resumes after it goes on in the same state


@dataclass(frozen=True, slots=True)
class Opening:
    """A stream opened a turn: from sample `offset` on, only its results for the turn count."""

    when: float  # seconds since the epoch, later than the turn's previous opening
    offset: int
    settled: int = 0  # the turn may be resumed there, as its client was told


@dataclass(frozen=True, slots=True, eq=False)
class Participant:
    participant_id: str
    records: tuple[UtteranceRecord, ...] = ()
    finished_turns: tuple[str, ...] = ()
    revision: int = 0  # number of estimates of traits over the conversation
    given_traits: Traits | None = None  # last given by a client; they condition emotion
    openings: Mapping[str, Opening] = field(default_factory=dict)  # the last one of each turn, by turn id

    @property
    def analysed(self) -> tuple[UtteranceRecord, ...]:
        """The records with a vector, which later estimates rest on."""
        return tuple(r for r in self.records if r.vector is not None)

    @property
    def speech(self) -> int:
        """Samples of analysed speech in the records."""
        return sum(r.speech for r in self.records)

    @property
    def latest(self) -> UtteranceRecord | None:
        """The record with the latest traits over the conversation."""
        return next((r for r in reversed(self.records) if r.traits is not None), None)

    def turn(self, turn_id: str) -> tuple[UtteranceRecord, ...]:
        """The records of one turn."""
        return tuple(r for r in self.records if r.turn_id == turn_id)


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    conversation_id: str
    model: str
    create_time: float  # seconds since the epoch, as all times here
    update_time: float
    ttl_s: float
    completed: bool = False
    participants: Mapping[str, Participant] = field(default_factory=dict)

    @property
    def expire_time(self) -> float:
        """Every change of the conversation moves it."""
        return self.update_time + self.ttl_s

    def participant(self, participant_id: str) -> Participant:
        """The participant, empty where nothing is known about them."""
        return self.participants.get(participant_id) or Participant(participant_id)

    def with_participant(self, participant: Participant) -> Conversation:
        return replace(self, participants={**self.participants, participant.participant_id: participant})


def add_utterance(participant: Participant, record: UtteranceRecord) -> Participant:
    """Adds the record, in place of one with the same id; the oldest ones beyond MAX_RECORDS are dropped."""
    others = (r for r in participant.records if r.utterance_id != record.utterance_id)
    records = (*others, record)[-MAX_RECORDS:]
    revision = participant.revision + (record.traits is not None)
    return replace(participant, records=records, revision=revision)


def reopen_turn(participant: Participant, turn_id: str, offset: int) -> Participant:
    """Removes the turn's records from sample `offset` on, and its result: the client will send that audio again.

    A turn reopened at offset 0 thus starts anew. Records of other turns stay.
    """
    records = tuple(r for r in participant.records if r.turn_id != turn_id or r.start < offset)
    unfinished = tuple(t for t in participant.finished_turns if t != turn_id)
    return replace(participant, records=records, finished_turns=unfinished)


def note_opening(participant: Participant, turn_id: str, opening: Opening) -> Participant:
    """Records that a stream opened the turn, unless a later one did: streams that opened it before are superseded."""
    last = participant.openings.get(turn_id)
    if last is not None and last.when >= opening.when:
        return participant
    others = [(turn, other) for turn, other in participant.openings.items() if turn != turn_id]
    return replace(participant, openings=dict([*others, (turn_id, opening)][-MAX_OPENINGS:]))


def note_settled(participant: Participant, turn_id: str, opening: Opening, position: int) -> Participant:
    """Records that the turn may be resumed at sample `position`, unless a later stream has taken it over."""
    noted = note_opening(participant, turn_id, opening)
    last = noted.openings[turn_id]
    if last.when > opening.when or last.settled >= position:
        return participant
    return replace(noted, openings={**noted.openings, turn_id: replace(last, settled=position)})


def heard_until(participant: Participant, turn_id: str) -> int | None:
    """The latest sample at which the turn can be resumed without a loss; None where that is not known."""
    opening = participant.openings.get(turn_id)
    if opening is None:
        return None
    return max(opening.offset, opening.settled, *(record.end for record in participant.turn(turn_id)))


def is_superseded(participant: Participant, turn_id: str, opening: Opening, start: int) -> bool:
    """Whether a later stream has taken over the turn from sample `start` on."""
    last = participant.openings.get(turn_id)
    return last is not None and last.when > opening.when and start >= last.offset


def finish_turn(participant: Participant, turn_id: str) -> Participant:
    """Marks the turn as finished: opening it again is an error from now on."""
    others = (t for t in participant.finished_turns if t != turn_id)
    return replace(participant, finished_turns=(*others, turn_id)[-MAX_FINISHED_TURNS:])
