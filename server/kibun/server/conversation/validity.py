"""What a stored conversation can be. A store may hold what another program wrote, or what was damaged and sealed again:
the checksum is right, and the values are such as no server of ours ever writes. They raise `codec.Damaged`.

Checked once, as values are read: the rest of the server relies on what these functions let pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from kibun.server.conversation import codec
from kibun.server.conversation.state import (
    FRACTION_BITS,
    MAX_EARLIER,
    MAX_OPENINGS,
    MAX_PARTICIPANTS,
    Participant,
    Totals,
    Turn,
    UtteranceRecord,
)

MAX_HEAD_BYTES = 4 * 1024 * 1024
MAX_ENTRY_BYTES = 256 * 1024
MAX_SAMPLE = 2**53  # positions and sums of samples: 17,000 years
MAX_COUNT = 2**30  # fits the contract's int32, with room to count on
MAX_NUMBER = 2**62  # of entries and changes, which are counted up for ever
MAX_TIME_S = 253_402_300_799.0  # the end of the year 9999: the last that a Timestamp can show
MIN_TTL_S = 1.0  # open streams renew it every third of it
MAX_VECTOR = 65_536
_EMOTION, _TRAIT = (1.0, 5.0), (1.0, 7.0)
_ROUNDING = 1e-3  # by which an estimate at the end of its scale may be beyond it
_SOURCES = ("given", "utterance", "average", "conversation")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_WORD = re.compile(r"[0-9a-f]{1,64}")


def check_size(value: bytes, limit: int) -> None:
    _require(len(value) <= limit, "larger than such a value can be")


def check_head(head: codec.Head) -> None:
    """All of a head; its entries need not have been read yet."""
    m = head.message
    _require(_WORD.fullmatch(m.incarnation) is not None, "no incarnation")
    _require(m.version < MAX_NUMBER, "the number of changes")
    _require(0 < len(m.model) <= 256 and m.model.isprintable(), "the model's name")
    _require(0 <= m.create_time <= MAX_TIME_S and 0 <= m.update_time <= MAX_TIME_S, "a time")
    _require(m.ttl_s >= MIN_TTL_S and m.update_time + m.ttl_s <= MAX_TIME_S, "the time to live")
    _require(len(head.participants) <= MAX_PARTICIPANTS, "the number of participants")
    for participant_id, p in head.participants.items():
        _check_id(participant_id)
        for numbers in (p.utterances, p.finished_turns):
            _check_numbers(numbers)


def check_utterance(record: UtteranceRecord, participant_id: str) -> None:
    _check_id(record.turn_id)
    _require(record.utterance_id == f"{participant_id}:{record.turn_id}:{record.start}", "the id of an utterance")
    _require(0 <= record.start < record.end <= MAX_SAMPLE, "the span of an utterance")
    _require(0 <= record.speech <= record.end - record.start, "the speech of an utterance")
    _check_scale(record.emotion or (), _EMOTION)
    _check_scale(record.traits or (), _TRAIT)
    _require(record.traits_source in _SOURCES, "a source of traits")
    _require(record.bundle == "" or _WORD.fullmatch(record.bundle) is not None, "a bundle's checksum")
    if record.vector is not None:
        _require(0 < len(record.vector) <= MAX_VECTOR, "the size of a vector")
        _require(bool(np.isfinite(record.vector).all()), "a vector that is not finite")


def check_turn_id(turn_id: str) -> None:
    _check_id(turn_id)


def check_deleted(mark: bytes) -> float:
    """The time of creation that the mark of a deletion holds."""
    try:
        create_time = float.fromhex(mark.decode())
    except (ValueError, OverflowError) as error:
        raise codec.Damaged("the mark of a deletion") from error
    _require(0 <= create_time <= MAX_TIME_S, "the mark of a deletion")
    return create_time


def check_participant(p: Participant) -> None:
    """All of a participant but what `check_head`, `check_utterance` and `check_turn_id` looked at."""
    _require(p.revision < MAX_COUNT and p.more_turns < MAX_COUNT, "a count")
    _check_scale(p.given_traits or (), _TRAIT)
    _check_distinct(r.utterance_id for r in p.records)
    _check_distinct(p.finished_turns)
    sizes = {(r.bundle, len(r.vector)) for r in p.records if r.vector is not None and r.bundle}
    _require(len(sizes) == len({bundle for bundle, _ in sizes}), "vectors of one bundle of several sizes")
    _require(len(p.openings) <= MAX_OPENINGS and len(p.earlier) <= MAX_EARLIER, "the number of turns")
    for turn_id, opening in p.openings.items():
        _check_id(turn_id)
        _require(0 <= opening.when <= MAX_TIME_S, "the time of an opening")
        _require(max(opening.offset, opening.settled) <= MAX_SAMPLE, "the offset of an opening")
    _require(p.bundle == "" or _WORD.fullmatch(p.bundle) is not None, "a bundle's checksum")
    _check_totals(p.dropped)
    left = p.dropped
    for turn_id, turn in p.earlier.items():
        _check_id(turn_id)
        _check_turn(turn)
        left -= turn.totals
    _check_totals(left)  # a part is not more than the whole


def _check_turn(turn: Turn) -> None:
    _check_totals(turn.totals)
    _require(turn.missing_before <= MAX_SAMPLE, "where utterances are missing")
    if turn.start is None or turn.end is None:
        _require(turn.start is turn.end is None and turn.totals.utterances == 0, "the span of a turn")
    else:
        _require(turn.start < turn.end <= MAX_SAMPLE and turn.totals.utterances > 0, "the span of a turn")


def _check_totals(t: Totals) -> None:
    _require(0 <= t.utterances < MAX_COUNT and 0 <= t.missing < MAX_COUNT, "a count")
    _require(0 <= t.weight <= t.speech <= MAX_SAMPLE and (t.speech == 0 or t.utterances > 0), "a sum of speech")
    low, high = ((1000 * t.weight << FRACTION_BITS) * round(end) for end in _EMOTION)
    slack = t.weight << FRACTION_BITS
    _require(all(low - slack <= 1000 * v <= high + slack for v in (t.valence, t.arousal)), "a sum of emotions")


def _check_numbers(numbers: codec.Numbers) -> None:
    _require(numbers.next < MAX_NUMBER, "the number of an entry")
    _require(all(a < b for a, b in pairwise((*numbers.taken, numbers.next))), "the numbers of entries")


def _check_id(value: str) -> None:
    _require(_ID.fullmatch(value) is not None, "an id")


def _check_scale(values: Sequence[float], scale: tuple[float, float]) -> None:
    low, high = scale
    for value in values:
        _require(math.isfinite(value) and low - _ROUNDING <= value <= high + _ROUNDING, "an estimate beyond its scale")


def _check_distinct(values: Iterable[str]) -> None:
    known = list(values)
    _require(len(set(known)) == len(known), "an entry that is there twice")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise codec.Damaged(what)
