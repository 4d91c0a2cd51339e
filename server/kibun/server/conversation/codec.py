"""Conversations as bytes, for a store outside this process. No pickle, and there is no audio to write.

A conversation is one head and many entries (utterance records, ids of finished turns), each in a field of its own under
a number that is never given twice: an entry's bytes never change, so that a change writes the head and what is new, and
a reader fetches what it does not have. The head says which entries there are, in their order.

Every value, of any version, is a version byte, the CRC-32 of the rest (begun with the version), and the rest: JSON
(which keeps a float exactly), followed by the vector's float16, little-endian, where there is one.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from kibun.models.types import ConditionSource, Traits
from kibun.server.audio.endpointing import EndReason
from kibun.server.conversation.state import MAX_FINISHED_TURNS, MAX_RECORDS, Opening, UtteranceRecord

VERSION = 1
MAX_ENTRIES = max(MAX_RECORDS, MAX_FINISHED_TURNS)  # of one kind and participant
_PREFIX = struct.Struct("<BI")
_JSON_LENGTH = struct.Struct("<H")
# All that reading JSON of any shape may raise.
_UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, struct.error)


class Damaged(Exception):
    """These bytes are not what was written: nobody can read them."""


class NewerVersion(Exception):
    """Written by a newer version of this software, which can read it."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The entries of one kind: their numbers, rising, and the number of the next one."""

    taken: tuple[int, ...] = ()
    next: int = 0


@dataclass(frozen=True, slots=True)
class ParticipantHead:
    revision: int = 0
    given_traits: Traits | None = None
    openings: Mapping[str, Opening] = field(default_factory=dict)
    records: Numbers = field(default_factory=Numbers)
    turns: Numbers = field(default_factory=Numbers)
    _packed: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def packed(self) -> str:
        """As JSON, made once: a change writes the heads of all participants, and most are as they were."""
        if not self._packed:
            openings = {turn: [opening.when, opening.offset] for turn, opening in self.openings.items()}
            values = [self.revision, self.given_traits, openings, _runs(self.records), _runs(self.turns)]
            self._packed.append(_json(values))
        return self._packed[0]


@dataclass(frozen=True, slots=True)
class Head:
    """A conversation but for its entries. `incarnation` is random and made anew where all is written anew."""

    incarnation: str
    version: int  # counts the changes of an incarnation: no two heads are equal
    model: str
    create_time: float
    update_time: float
    ttl_s: float
    completed: bool
    participants: Mapping[str, ParticipantHead]


def pack_head(head: Head) -> bytes:
    people = ",".join(f"{_json(name)}:{p.packed}" for name, p in head.participants.items())
    times = (head.create_time, head.update_time, head.ttl_s)
    about = _json([head.incarnation, head.version, head.model, *times, head.completed])
    return _sealed(f"{about[:-1]},{{{people}}}]".encode())


def unpack_head(data: bytes) -> Head:
    """Raises Damaged or NewerVersion, as all `unpack` do."""
    try:
        incarnation, version, model, create, update, ttl, completed, people = json.loads(_opened(data))
        participants = {
            name: ParticipantHead(revision, _traits(given), _openings(openings), _numbers(records), _numbers(turns))
            for name, (revision, given, openings, records, turns) in people.items()
        }
    except _UNREADABLE as error:
        raise Damaged from error
    return Head(incarnation, version, model, create, update, ttl, completed, participants)


def pack_record(record: UtteranceRecord) -> bytes:
    vector = record.vector
    about = _json(
        [
            record.utterance_id,
            record.turn_id,
            record.start,
            record.end,
            record.speech,
            record.emotion,
            record.traits,
            record.traits_source,
            record.reason.value,
            vector is not None,
        ]
    ).encode()
    raw = b"" if vector is None else vector.astype("<f2", copy=False).tobytes()
    return _sealed(_JSON_LENGTH.pack(len(about)) + about + raw)


def unpack_record(data: bytes) -> UtteranceRecord:
    body = _opened(data)
    try:
        (length,) = _JSON_LENGTH.unpack_from(body)
        begin = _JSON_LENGTH.size
        utterance_id, turn_id, start, end, speech, emotion, traits, source, reason, has_vector = json.loads(
            body[begin : begin + length]
        )
        vector = np.frombuffer(body, "<f2", offset=begin + length).astype(np.float16, copy=False)
        return UtteranceRecord(
            utterance_id=utterance_id,
            turn_id=turn_id,
            start=start,
            end=end,
            speech=speech,
            vector=vector if has_vector else None,
            emotion=None if emotion is None else (emotion[0], emotion[1]),
            traits=_traits(traits),
            traits_source=cast(ConditionSource, source),
            reason=EndReason(reason),
        )
    except _UNREADABLE as error:
        raise Damaged from error


def pack_turn(turn_id: str) -> bytes:
    return _sealed(turn_id.encode())


def unpack_turn(data: bytes) -> str:
    try:
        return _opened(data).decode()
    except UnicodeDecodeError as error:
        raise Damaged from error


# ---- parts


def _sealed(body: bytes) -> bytes:
    return _PREFIX.pack(VERSION, _check(VERSION, body)) + body


def _opened(data: bytes) -> bytes:
    if len(data) < _PREFIX.size:
        raise Damaged
    version, check = _PREFIX.unpack_from(data)
    body = data[_PREFIX.size :]
    if not version or check != _check(version, body):
        raise Damaged
    if version > VERSION:
        raise NewerVersion
    return body


def _check(version: int, body: bytes) -> int:
    return zlib.crc32(body, version)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(number: np.generic) -> object:
    return number.item()  # exact: a float32 is a float64


def _openings(values: Mapping[str, tuple[float, int]]) -> dict[str, Opening]:
    return {turn: Opening(when, offset) for turn, (when, offset) in values.items()}


def _traits(values: Sequence[float] | None) -> Traits | None:
    return None if values is None else cast(Traits, tuple(values))


def _runs(numbers: Numbers) -> list[int]:
    """[next, first, count, first, count…]: entries that were only ever appended are one run."""
    runs = [numbers.next]
    for number in numbers.taken:
        if len(runs) > 1 and number == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += [number, 1]
    return runs


def _numbers(runs: Sequence[int]) -> Numbers:
    following, *pairs = runs
    if sum(abs(count) for _, count in _pairs(pairs)) > MAX_ENTRIES:
        raise ValueError("more entries than are ever kept")
    taken: Iterable[int] = (n for first, count in _pairs(pairs) for n in range(first, first + count))
    return Numbers(tuple(taken), following)


def _pairs(values: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(values[::2], values[1::2], strict=True)
