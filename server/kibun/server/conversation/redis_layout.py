"""How a conversation lies in a Redis hash: which fields there are, and which of them a change writes. Pure functions.

The fields are `head`; one per entry, `r/PARTICIPANT/NUMBER` for an utterance and `t/PARTICIPANT/NUMBER` for a finished
turn (packed by `codec`); and `deleted` where an earlier conversation of that name was deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from kibun.server.conversation import codec, validity
from kibun.server.conversation.state import Conversation, Participant, UtteranceRecord

T = TypeVar("T", UtteranceRecord, str)


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation as Redis has it.

    `head` is b"" where there is none; `parsed` and `conversation` are None also where something of it, or the whole
    key, is `damaged`. `deleted` is b"" or the `create_time` of the conversation of this name that was deleted last, as
    text: its streams must not bring it back.
    """

    head: bytes = b""
    deleted: bytes = b""
    parsed: codec.Head | None = None
    conversation: Conversation | None = None
    damaged: bool = False

    @property
    def deleted_create_time(self) -> float | None:
        """None also where the mark is damaged."""
        with suppress(codec.Damaged):
            return validity.check_deleted(self.deleted) if self.deleted else None
        return None

    @property
    def weight(self) -> int:
        """Memory used, in utterance records: one for the conversation and one per 16 turns are added."""
        people = self.conversation.participants.values() if self.conversation else ()
        turns = sum(len(p.finished_turns) + len(p.openings) + len(p.earlier) for p in people)
        return 1 + turns // 16 + sum(len(p.records) for p in people)


# ---- from a hash to a conversation


def fields(head: codec.Head) -> list[str]:
    """The fields of all entries."""
    return [
        f"{kind}/{participant_id}/{number}"
        for participant_id, p in head.participants.items()
        for kind, numbers in (("r", p.utterances), ("t", p.finished_turns))
        for number in numbers.taken
    ]


def entries(state: StoredConversation) -> dict[str, UtteranceRecord | str]:
    """The entries of a state, by field."""
    if state.parsed is None or state.conversation is None:
        return {}
    values: list[UtteranceRecord | str] = []
    for participant_id in state.parsed.participants:
        participant = state.conversation.participants[participant_id]
        values += participant.records
        values += participant.finished_turns
    return dict(zip(fields(state.parsed), values, strict=True))


def unpack_head(value: bytes) -> codec.Head:
    """Raises codec.Damaged or codec.NewerVersion, as the functions below."""
    validity.check_size(value, validity.MAX_HEAD_BYTES)
    head = codec.unpack_head(value)
    validity.check_head(head)
    return head


def unpack_entry(field: str, value: bytes) -> UtteranceRecord | str:
    validity.check_size(value, validity.MAX_ENTRY_BYTES)
    kind, participant_id, _ = field.split("/")
    if kind == "r":
        record = codec.unpack_utterance(value)
        validity.check_utterance(record, participant_id)
        return record
    turn_id = codec.unpack_finished_turn(value)
    validity.check_turn_id(turn_id)
    return turn_id


def conversation(conversation_id: str, head: codec.Head, entries: Mapping[str, Any]) -> Conversation:
    """Puts the conversation together from its head and its entries, by field."""
    people = {}
    for name, p in head.participants.items():
        records = tuple(entries[f"r/{name}/{number}"] for number in p.utterances.taken)
        turns = tuple(entries[f"t/{name}/{number}"] for number in p.finished_turns.taken)
        people[name] = codec.make_participant(p, records, turns)
        validity.check_participant(people[name])
    return codec.make_conversation(conversation_id, head, people)


# ---- from a conversation to a hash


@dataclass(frozen=True, slots=True)
class Difference:
    """What makes the hash of one state that of another."""

    head: codec.Head | None  # None: the conversation is erased
    whole: bool  # nothing of the old hash stays
    new: dict[str, bytes]  # fields to set
    gone: list[str]  # fields to delete


def difference(before: StoredConversation, after: Conversation | None) -> Difference:
    """Compares entries by identity: they are immutable, so the same object is the same entry."""
    if after is None:
        return Difference(head=None, whole=True, new={}, gone=[])
    old, known = before.parsed, before.conversation
    if old is not None and not old.participants.keys() <= after.participants.keys():
        old = known = None  # a participant is gone, with any number of fields
    old_people = known.participants if known else {}
    old_heads = old.participants if old else {}
    heads: dict[str, codec.ParticipantHead] = {}
    new: dict[str, bytes] = {}
    gone: list[str] = []
    for name, participant in after.participants.items():
        was, old_head = old_people.get(name) or Participant(name), old_heads.get(name)
        if old_head is not None and participant is was:
            heads[name] = old_head
            continue
        r, t = (old_head.utterances, old_head.finished_turns) if old_head else (codec.Numbers(), codec.Numbers())
        utterances, new_r, gone_r = _number(was.records, r, participant.records, id)
        finished_turns, new_t, gone_t = _number(was.finished_turns, t, participant.finished_turns, str)
        new |= {f"r/{name}/{number}": codec.pack_utterance(record) for number, record in new_r.items()}
        new |= {f"t/{name}/{number}": codec.pack_finished_turn(turn_id) for number, turn_id in new_t.items()}
        gone += [f"r/{name}/{number}" for number in gone_r] + [f"t/{name}/{number}" for number in gone_t]
        heads[name] = codec.make_participant_head(participant, utterances, finished_turns)
    incarnation, version = (old.message.incarnation, old.message.version + 1) if old else (secrets.token_hex(8), 0)
    head = codec.make_head(after, heads, incarnation, version)
    return Difference(head, whole=old is None, new=new, gone=gone)


def _number(
    old: Sequence[T], numbers: codec.Numbers, new: Sequence[T], identity: Callable[[T], object]
) -> tuple[codec.Numbers, dict[int, T], list[int]]:
    """Numbers the new entries: each keeps its number as long as they rise; otherwise it gets the next one.

    Returns the numbers of all, the entries that got a new number, and the numbers that nothing has any more.
    """
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a is not b), min(len(old), len(new)))
    if same == len(old) == len(new):
        return numbers, {}, []
    taken = list(numbers.taken[:same])
    known = {identity(entry): number for entry, number in zip(old[same:], numbers.taken[same:], strict=True)}
    following, added = numbers.next, dict[int, T]()
    for entry in new[same:]:
        number = known.get(identity(entry), -1)
        if number < 0 or (taken and number <= taken[-1]):
            number, following = following, following + 1
            added[number] = entry
        taken.append(number)
    left = set(taken[same:])
    gone = [number for number in numbers.taken[same:] if number not in left]
    return codec.Numbers(tuple(taken), following), added, gone
