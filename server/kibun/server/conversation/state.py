"""What is known about a conversation: immutable values and pure updates. There is no audio in them.

A store applies these functions atomically. Adding the same record twice changes nothing but the revision (the record's
id derives from its turn and start sample), so a retry after a lost answer is harmless.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add, sub

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import ConditionSource, Traits
from kibun.server.audio.endpointing import EndReason

MAX_RECORDS = 512  # per participant, the latest: 512 vectors of 768 float16 are 0.8 MB
MAX_PARTICIPANTS = 64  # per conversation
MAX_OPENINGS = 64  # per participant: the turns whose last opening is remembered
MAX_EARLIER = 16  # per participant: the turns with utterances beyond MAX_RECORDS whose own sums are remembered
MAX_FINISHED_TURNS = 4096  # per participant: the ids that are remembered, to refuse a finished turn
FRACTION_BITS = 52  # of estimates in sums: all that a float of 1 or more has


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
    bundle: str = ""  # checksum of the bundle that made the vector; "": unknown


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over utterances. All are integers, and so exact in whatever order and on whatever server they were added.

    `valence` and `arousal` are weighted with the utterances' samples, in units of 2**-52.
    """

    utterances: int = 0
    speech: int = 0  # samples that estimates were made from
    weight: int = 0  # samples of those with an emotion
    valence: int = 0
    arousal: int = 0
    missing: int = 0  # utterances, at least, whose finals were sent and are known nowhere any more; in no other sum

    @classmethod
    def of(cls, records: Iterable[UtteranceRecord]) -> Totals:
        utterances = speech = weight = valence = arousal = 0
        for record in records:
            utterances += 1
            speech += record.speech
            if record.emotion is not None:
                weight += record.speech
                valence += record.speech * round(record.emotion[0] * (1 << FRACTION_BITS))
                arousal += record.speech * round(record.emotion[1] * (1 << FRACTION_BITS))
        return cls(utterances, speech, weight, valence, arousal)

    def __add__(self, other: Totals) -> Totals:
        return Totals(*map(add, self._values, other._values))

    def __sub__(self, other: Totals) -> Totals:
        return Totals(*map(sub, self._values, other._values))

    @property
    def emotion(self) -> tuple[float, float] | None:
        """Mean valence and arousal, weighted by speech; None without any."""
        scale = self.weight << FRACTION_BITS
        return (self.valence / scale, self.arousal / scale) if scale else None

    @property
    def _values(self) -> tuple[int, ...]:
        return self.utterances, self.speech, self.weight, self.valence, self.arousal, self.missing


@dataclass(frozen=True, slots=True)
class Turn:
    """What is known of a turn's utterances, in all or beyond the records."""

    totals: Totals = Totals()
    start: int | None = None  # first and last sample of the utterances; None without any
    end: int | None = None
    missing_before: int = 0  # where utterances are missing, they began before this sample

    def plus(self, records: Sequence[UtteranceRecord]) -> Turn:
        if not records:
            return self
        start, end = min(r.start for r in records), max(r.end for r in records)
        return replace(
            self,
            totals=self.totals + Totals.of(records),
            start=start if self.start is None else min(start, self.start),
            end=end if self.end is None else max(end, self.end),
        )

    def with_missing(self, missing: int, before: int) -> Turn:
        return replace(self, totals=replace(self.totals, missing=missing), missing_before=before if missing else 0)


@dataclass(frozen=True, slots=True)
class Told:
    """What a client that resumes a turn has of it: finals as records without vector, and their number if it said so."""

    finals: tuple[UtteranceRecord, ...] = ()  # in order
    count: int | None = None


NOTHING_TOLD = Told()


@dataclass(frozen=True, slots=True)
class Opening:
    """A stream opened a turn: from sample `offset` on, only its results for the turn count."""

    when: float  # seconds since the epoch, later than the turn's previous opening
    offset: int
    settled: int = 0  # the turn may be resumed there, as its client was told
    resumes: bool = False  # the stream goes on with the turn as it was, and may send the same again


@dataclass(frozen=True, slots=True, eq=False)
class Participant:
    participant_id: str
    records: tuple[UtteranceRecord, ...] = ()  # the latest
    finished_turns: tuple[str, ...] = ()  # the latest
    revision: int = 0  # number of estimates of traits over the conversation
    given_traits: Traits | None = None  # last given by a client; they condition emotion
    openings: Mapping[str, Opening] = field(default_factory=dict)  # the last one of each turn, by turn id
    earlier: Mapping[str, Turn] = field(default_factory=dict)  # what turns have beyond `records`, by turn id
    dropped: Totals = Totals()  # of all that is not in `records`; `earlier` has its part of it
    more_turns: int = 0  # finished ones that are not in `finished_turns`
    bundle: str = ""  # checksum of the bundle that was last at work, as clients were told

    @property
    def totals(self) -> Totals:
        """Over all utterances of the conversation."""
        return self.dropped + Totals.of(self.records)

    @property
    def utterance_count(self) -> int:
        """That of `totals`, at once."""
        return self.dropped.utterances + len(self.records)

    @property
    def turn_count(self) -> int:
        """Finished turns."""
        return self.more_turns + len(self.finished_turns)

    def records_of(self, turn_id: str) -> tuple[UtteranceRecord, ...]:
        """Those of one turn."""
        return tuple(r for r in self.records if r.turn_id == turn_id)

    def turn(self, turn_id: str) -> Turn:
        """All that is known of one turn."""
        return self.earlier.get(turn_id, Turn()).plus(self.records_of(turn_id))


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
        """For people: when it expires unless it changes. Stores measure that time by clocks that nobody sets."""
        return self.update_time + self.ttl_s

    def participant(self, participant_id: str) -> Participant:
        """The participant, empty where nothing is known about them."""
        return self.participants.get(participant_id) or Participant(participant_id)

    def with_participant(self, participant: Participant) -> Conversation:
        return replace(self, participants={**self.participants, participant.participant_id: participant})


def add_utterance(participant: Participant, record: UtteranceRecord) -> Participant:
    """Adds the record, in place of one with the same id; of the oldest beyond MAX_RECORDS only sums are kept."""
    earlier = participant.earlier.get(record.turn_id)
    if earlier is not None and earlier.end is not None and record.start < earlier.end:
        return participant  # it is in the sums: a turn's utterances come in order
    others = tuple(r for r in participant.records if r.utterance_id != record.utterance_id)
    revision = participant.revision + (record.traits is not None)
    changed = _keep_latest(replace(participant, revision=revision), (*others, record))
    if earlier is not None and earlier.totals.missing and record.start < earlier.missing_before:
        found = len(others) == len(participant.records)  # the server that had it was away, not gone
        changed = note_missing(changed, record.turn_id, earlier.totals.missing - found, earlier.missing_before)
    return changed


def reopen_turn(participant: Participant, turn_id: str, offset: int) -> Participant:
    """Removes the turn's records from sample `offset` on, and its result: the client will send that audio again.

    A turn reopened at offset 0 thus starts anew. Records of other turns stay. Sums that reach beyond `offset` cannot
    be divided: they are removed as a whole, and `resume_turn` says what is then missing.
    """
    records = tuple(r for r in participant.records if r.turn_id != turn_id or r.start < offset)
    unfinished = tuple(t for t in participant.finished_turns if t != turn_id)
    participant = replace(participant, records=records, finished_turns=unfinished)
    earlier = participant.earlier.get(turn_id)
    if earlier is None or (offset and (earlier.end is None or earlier.end <= offset)):
        return participant
    return _with_earlier(participant, turn_id, Turn())


def resume_turn(participant: Participant, turn_id: str, offset: int, told: Told, *, continues: bool) -> Participant:
    """Adds what only the client still has of a turn that it reopened at `offset`, and counts what nobody has.

    `continues`: everything before `offset` is known to be heard. Where it is not, and the client does not say how many
    finals it has, at least one is taken to be missing.
    """
    earlier = participant.earlier.get(turn_id, Turn())
    known = sorted([(r.start, r.end) for r in participant.records_of(turn_id)])
    begin = earlier.end or 0
    lost = [r for r in told.finals if begin <= r.start < offset and not _overlaps(known, r.start, r.end)]
    if lost:
        records = _merge(participant.records, lost)
        revision = participant.revision + sum(r.speech > 0 for r in lost)  # the client had an update with each
        participant = _keep_latest(replace(participant, revision=revision), records)
    turn = participant.turn(turn_id)
    if told.count is not None or told.finals:
        missing = max(max(told.count or 0, len(told.finals)) - turn.totals.utterances, 0)
    elif continues or offset == turn.end:
        missing = turn.totals.missing
    else:
        missing = max(turn.totals.missing, 1)
    return note_missing(participant, turn_id, missing, offset)


def note_missing(participant: Participant, turn_id: str, missing: int, before: int) -> Participant:
    """Sets how many utterances of the turn, all before sample `before`, are known nowhere any more."""
    earlier = participant.earlier.get(turn_id, Turn())
    if earlier.totals.missing == missing:
        return participant
    return _with_earlier(participant, turn_id, earlier.with_missing(missing, before))


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
    return max(opening.offset, opening.settled, participant.turn(turn_id).end or 0)


def is_superseded(participant: Participant, turn_id: str, opening: Opening, start: int) -> bool:
    """Whether a later stream has taken over the turn from sample `start` on."""
    last = participant.openings.get(turn_id)
    return last is not None and last.when > opening.when and start >= last.offset


def finish_turn(participant: Participant, turn_id: str) -> Participant:
    """Marks the turn as finished: opening it again is an error from now on."""
    others = tuple(t for t in participant.finished_turns if t != turn_id)
    turns = (*others, turn_id)
    more = max(len(turns) - MAX_FINISHED_TURNS, 0)
    return replace(participant, finished_turns=turns[more:], more_turns=participant.more_turns + more)


def _keep_latest(participant: Participant, records: tuple[UtteranceRecord, ...]) -> Participant:
    """The participant with these records; those beyond MAX_RECORDS become part of the sums."""
    beyond = max(len(records) - MAX_RECORDS, 0)
    participant, gone = replace(participant, records=records[beyond:]), records[:beyond]
    for turn_id in dict.fromkeys(r.turn_id for r in gone):
        earlier = participant.earlier.get(turn_id, Turn())
        participant = _with_earlier(participant, turn_id, earlier.plus([r for r in gone if r.turn_id == turn_id]))
    return participant


def _merge(records: Iterable[UtteranceRecord], lost: Iterable[UtteranceRecord]) -> tuple[UtteranceRecord, ...]:
    """Puts records of one turn, in order, among those that are known of it."""
    merged, left = list[UtteranceRecord](), deque(lost)
    for record in records:
        while left and record.turn_id == left[0].turn_id and record.start > left[0].start:
            merged.append(left.popleft())
        merged.append(record)
    return (*merged, *left)


def _with_earlier(participant: Participant, turn_id: str, turn: Turn) -> Participant:
    """Sets what the turn has beyond the records. The sums over the conversation keep what `earlier` has no room for."""
    before = participant.earlier.get(turn_id, Turn())
    others = [(other, known) for other, known in participant.earlier.items() if other != turn_id]
    turns = others if turn == Turn() else [*others, (turn_id, turn)][-MAX_EARLIER:]
    return replace(participant, earlier=dict(turns), dropped=participant.dropped - before.totals + turn.totals)


def _overlaps(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether any of the sorted spans, which do not overlap, has a sample of start..end."""
    at = bisect_left(spans, (end, 0))
    return at > 0 and spans[at - 1][1] > start
