"""Packs conversations into bytes for a store outside this process, and unpacks them. There is no audio in them.

A conversation is one head and many entries (utterances, ids of finished turns). Each entry is stored under a number
that is never given twice, so its bytes never change: a change writes the head and the new entries, and a reader fetches
only the entries it does not have. The head lists the numbers of the entries, in their order.

Every value is a version byte, the CRC-32 of the rest (seeded with the version), and the rest: a message of store.proto.
Version 1 was JSON; it is still read (`codec_v1`). A head of version 3 has sums, which servers before it would drop;
everything else is written as version 2, which they read.

A value with the right checksum may still be one that no server of ours wrote: see `validity`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from google.protobuf.message import DecodeError

from kibun.models.types import ConditionSource, Traits
from kibun.server.audio.endpointing import EndReason
from kibun.server.conversation import codec_v1
from kibun.server.conversation import store_pb2 as pb
from kibun.server.conversation.state import (
    MAX_FINISHED_TURNS,
    MAX_RECORDS,
    Conversation,
    Opening,
    Participant,
    Totals,
    Turn,
    UtteranceRecord,
)

VERSION = 3  # the newest that is read
_WITHOUT_SUMS, _WITH_SUMS = 2, 3  # those that are written
MAX_ENTRIES = max(MAX_RECORDS, MAX_FINISHED_TURNS)  # of one kind and participant
_PREFIX = struct.Struct("<BI")
_UNREADABLE = (DecodeError, *codec_v1.UNREADABLE)


class Damaged(Exception):
    """The bytes are not what was written and cannot be read. The text says why, without anything of them."""


class NewerVersion(Exception):
    """The bytes were written by a newer version of this software, which can read them."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The rising numbers of a participant's entries of one kind, and the number that the next entry gets."""

    taken: tuple[int, ...] = ()
    next: int = 0


@dataclass(frozen=True, slots=True)
class ParticipantHead:
    """The head's entry for one participant; most changes leave `packed`, the message, as it is."""

    packed: bytes
    utterances: Numbers
    finished_turns: Numbers
    version: int  # of the head that can hold it


@dataclass(frozen=True, slots=True)
class Head:
    """A conversation without its entries; `participants` are by participant id."""

    message: pb.Head
    participants: Mapping[str, ParticipantHead]


# ---- the head


def make_head(
    conversation: Conversation, participants: Mapping[str, ParticipantHead], incarnation: str, version: int
) -> Head:
    """Makes the head of a conversation from the heads of its participants."""
    message = pb.Head(
        incarnation=incarnation,
        version=version,
        model=conversation.model,
        create_time=conversation.create_time,
        update_time=conversation.update_time,
        ttl_s=conversation.ttl_s,
        completed=conversation.completed,
        participants=[participant.packed for participant in participants.values()],
    )
    return Head(message, participants)


def make_participant_head(participant: Participant, utterances: Numbers, finished_turns: Numbers) -> ParticipantHead:
    """Makes the head of a participant whose entries have these numbers."""
    openings = participant.openings.items()
    message = pb.Participant(
        participant_id=participant.participant_id,
        revision=participant.revision,
        given_traits=participant.given_traits,
        openings=[
            pb.Opening(turn_id=turn_id, when=o.when, offset=o.offset, settled=o.settled, resumes=o.resumes)
            for turn_id, o in openings
        ],
        utterances=_pack_numbers(utterances),
        finished_turns=_pack_numbers(finished_turns),
        dropped=_pack_totals(participant.dropped) if participant.dropped != Totals() else None,
        earlier=[_pack_turn(turn_id, turn) for turn_id, turn in participant.earlier.items()],
        more_turns=participant.more_turns,
        bundle=participant.bundle,
    )
    return _participant_head(message, message.SerializeToString(), utterances, finished_turns)


def _participant_head(
    message: pb.Participant, packed: bytes, utterances: Numbers, finished_turns: Numbers
) -> ParticipantHead:
    has_sums = message.HasField("dropped") or message.earlier or message.more_turns
    return ParticipantHead(packed, utterances, finished_turns, _WITH_SUMS if has_sums else _WITHOUT_SUMS)


def pack_head(head: Head) -> bytes:
    version = max((p.version for p in head.participants.values()), default=_WITHOUT_SUMS)
    return seal(head.message.SerializeToString(), version)


def unpack_head(data: bytes) -> Head:
    """Raises Damaged or NewerVersion, as all `unpack` functions do."""
    version, body = unseal(data)
    try:
        message = codec_v1.head(body) if version == 1 else pb.Head.FromString(body)
        participants = [(pb.Participant.FromString(packed), packed) for packed in message.participants]
    except _UNREADABLE as error:
        raise Damaged("no head") from error
    heads = {
        p.participant_id: _participant_head(p, packed, _unpack_numbers(p.utterances), _unpack_numbers(p.finished_turns))
        for p, packed in participants
    }
    if len(heads) != len(participants):
        raise Damaged("a participant is there twice")
    return Head(message, heads)


def make_conversation(conversation_id: str, head: Head, participants: Mapping[str, Participant]) -> Conversation:
    """Makes a conversation from its head and its participants."""
    m = head.message
    return Conversation(conversation_id, m.model, m.create_time, m.update_time, m.ttl_s, m.completed, participants)


def make_participant(
    head: ParticipantHead, records: tuple[UtteranceRecord, ...], finished_turns: tuple[str, ...]
) -> Participant:
    """Makes a participant from its head and its entries. Raises Damaged."""
    m = pb.Participant.FromString(head.packed)
    given_traits = cast(Traits | None, _all_or_none(m.given_traits, 5))
    openings = {o.turn_id: Opening(o.when, o.offset, o.settled, o.resumes) for o in m.openings}
    earlier = {turn.turn_id: _unpack_turn(turn) for turn in m.earlier}
    if len(openings) != len(m.openings) or len(earlier) != len(m.earlier):
        raise Damaged("a turn is there twice")
    return Participant(
        participant_id=m.participant_id,
        records=records,
        finished_turns=finished_turns,
        revision=m.revision,
        given_traits=given_traits,
        openings=openings,
        earlier=earlier,
        dropped=_unpack_totals(m.dropped),
        more_turns=m.more_turns,
        bundle=m.bundle,
    )


def _pack_numbers(numbers: Numbers) -> pb.Entries:
    """Entries that were only ever appended are one run."""
    runs: list[list[int]] = []  # first, count
    for number in numbers.taken:
        if runs and number == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return pb.Entries(next=numbers.next, runs=[pb.Run(first=first, count=count) for first, count in runs])


def _unpack_numbers(entries: pb.Entries) -> Numbers:
    if sum(run.count for run in entries.runs) > MAX_ENTRIES:
        raise Damaged("more entries than a participant can have")
    taken = tuple(number for run in entries.runs for number in range(run.first, run.first + run.count))
    return Numbers(taken, entries.next)


def _pack_turn(turn_id: str, turn: Turn) -> pb.Turn:
    totals = _pack_totals(turn.totals)
    return pb.Turn(turn_id=turn_id, totals=totals, start=turn.start, end=turn.end, missing_before=turn.missing_before)


def _unpack_turn(m: pb.Turn) -> Turn:
    start = m.start if m.HasField("start") else None
    end = m.end if m.HasField("end") else None
    return Turn(_unpack_totals(m.totals), start, end, m.missing_before)


def _pack_totals(totals: Totals) -> pb.Totals:
    return pb.Totals(
        utterances=totals.utterances,
        speech=totals.speech,
        weight=totals.weight,
        valence=_pack_sum(totals.valence),
        arousal=_pack_sum(totals.arousal),
        missing=totals.missing,
    )


def _unpack_totals(m: pb.Totals) -> Totals:
    valence, arousal = (int.from_bytes(value, "little", signed=True) for value in (m.valence, m.arousal))
    return Totals(m.utterances, m.speech, m.weight, valence, arousal, m.missing)


def _pack_sum(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True) if value else b""


# ---- entries


def pack_utterance(record: UtteranceRecord) -> bytes:
    message = pb.Utterance(
        utterance_id=record.utterance_id,
        turn_id=record.turn_id,
        start=record.start,
        end=record.end,
        speech=record.speech,
        vector=None if record.vector is None else record.vector.astype("<f2", copy=False).tobytes(),
        emotion=record.emotion,
        traits=record.traits,
        traits_source=record.traits_source,
        reason=record.reason.value,
        bundle=record.bundle,
    )
    return seal(message.SerializeToString())


def unpack_utterance(data: bytes) -> UtteranceRecord:
    version, body = unseal(data)
    try:
        message = codec_v1.utterance(body) if version == 1 else pb.Utterance.FromString(body)
        vector = np.frombuffer(message.vector, "<f2").astype(np.float16, copy=False)
        return UtteranceRecord(
            utterance_id=message.utterance_id,
            turn_id=message.turn_id,
            start=message.start,
            end=message.end,
            speech=message.speech,
            vector=vector if message.HasField("vector") else None,
            emotion=cast(tuple[float, float] | None, _all_or_none(message.emotion, 2)),
            traits=cast(Traits | None, _all_or_none(message.traits, 5)),
            traits_source=cast(ConditionSource, message.traits_source),
            reason=EndReason(message.reason),
            bundle=message.bundle,
        )
    except _UNREADABLE as error:
        raise Damaged("no utterance") from error


def pack_finished_turn(turn_id: str) -> bytes:
    return seal(pb.FinishedTurn(turn_id=turn_id).SerializeToString())


def unpack_finished_turn(data: bytes) -> str:
    version, body = unseal(data)
    try:
        return codec_v1.finished_turn(body) if version == 1 else pb.FinishedTurn.FromString(body).turn_id
    except _UNREADABLE as error:
        raise Damaged("no finished turn") from error


def _all_or_none(values: Sequence[float], count: int) -> tuple[float, ...] | None:
    if len(values) not in (0, count):
        raise Damaged("an estimate with the wrong number of values")
    return tuple(values) or None


# ---- version and checksum


def seal(body: bytes, version: int = _WITHOUT_SUMS) -> bytes:
    """Puts the version byte and the checksum in front."""
    return _PREFIX.pack(version, zlib.crc32(body, version)) + body


def unseal(data: bytes) -> tuple[int, bytes]:
    """The version, 1 to VERSION, and the body. Raises Damaged or NewerVersion."""
    if len(data) < _PREFIX.size:
        raise Damaged("too short")
    version, checksum = _PREFIX.unpack_from(data)
    body = data[_PREFIX.size :]
    if not version or checksum != zlib.crc32(body, version):
        raise Damaged("its checksum is wrong")
    if version > VERSION:
        raise NewerVersion
    return version, body
