"""How a conversation lies in a hash: which fields there are, and which of them a change writes. Pure.

Fields: `head`; one per entry, `r/PARTICIPANT/NUMBER` for utterance records and `t/PARTICIPANT/NUMBER` for finished
turns (see `conversation_codec`); and `deleted` where an earlier conversation of that name was deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kibun.server.conversation import codec
from kibun.server.conversation.state import Conversation, Participant, UtteranceRecord

T = TypeVar("T", UtteranceRecord, str)


@dataclass(frozen=True, slots=True)
class State:
    """A conversation as Redis has it. `head` b"" where there is none; `conversation` None also where it is damaged.

    `deleted`: when the conversation of this name that was last deleted was made; streams of that one must not bring it
    back.
    """

    head: bytes = b""
    deleted: bytes = b""
    parsed: codec.Head | None = None
    conversation: Conversation | None = None


@dataclass(slots=True)
class Difference:
    """Fields to set and fields that go."""

    new: dict[str, bytes] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)


def deleted_when(state: State) -> float:
    return float.fromhex(state.deleted.decode())


def weight(state: State | None) -> int:
    """Records that a state keeps in memory, and what weighs like a record: 16 turns, or being there at all."""
    people = state.conversation.participants.values() if state and state.conversation else ()
    turns = sum(len(p.finished_turns) + len(p.openings) for p in people)
    return (state is not None) + turns // 16 + sum(len(p.records) for p in people)


# ---- entries and their fields


def fields(head: codec.Head) -> list[str]:
    return [
        f"{kind}/{name}/{number}"
        for name, p in head.participants.items()
        for kind, numbers in (("r", p.records), ("t", p.turns))
        for number in numbers.taken
    ]


def entries(state: State) -> dict[str, UtteranceRecord | str]:
    """By field."""
    if state.parsed is None or state.conversation is None:
        return {}
    values: list[UtteranceRecord | str] = []
    for name in state.parsed.participants:
        participant = state.conversation.participants[name]
        values += participant.records
        values += participant.finished_turns
    return dict(zip(fields(state.parsed), values, strict=True))


def unpack(name: str, value: bytes) -> UtteranceRecord | str:
    return codec.unpack_record(value) if name.startswith("r") else codec.unpack_turn(value)


def conversation(conversation_id: str, head: codec.Head, entries: Mapping[str, Any]) -> Conversation:
    people = {}
    for name, p in head.participants.items():
        records = tuple(entries[f"r/{name}/{number}"] for number in p.records.taken)
        turns = tuple(entries[f"t/{name}/{number}"] for number in p.turns.taken)
        people[name] = Participant(name, records, turns, p.revision, p.given_traits, p.openings)
    times = (head.create_time, head.update_time, head.ttl_s)
    return Conversation(conversation_id, head.model, *times, head.completed, people)


def difference_to(before: State, after: Conversation) -> tuple[codec.Head, Difference]:
    """The head of `after`, and what leads there. Entries are immutable: the same object is the same entry."""
    difference = Difference()
    people = {}
    for name, participant in after.participants.items():
        old_head = before.parsed.participants.get(name) if before.parsed else None
        old = before.conversation.participant(name) if before.conversation else Participant(name)
        if old_head is not None and old is participant:
            people[name] = old_head
            continue
        old_head = old_head or codec.ParticipantHead()
        records, turns = participant.records, participant.finished_turns
        people[name] = codec.ParticipantHead(
            participant.revision,
            participant.given_traits,
            participant.openings,
            _placed(f"r/{name}", old.records, old_head.records, records, id, codec.pack_record, difference),
            _placed(f"t/{name}", old.finished_turns, old_head.turns, turns, str, codec.pack_turn, difference),
        )
    incarnation = before.parsed.incarnation if before.parsed else secrets.token_hex(8)
    version = before.parsed.version + 1 if before.parsed else 0
    times = (after.create_time, after.update_time, after.ttl_s)
    return codec.Head(incarnation, version, after.model, *times, after.completed, people), difference


def _placed(
    field_prefix: str,
    old: Sequence[T],
    old_numbers: codec.Numbers,
    new: Sequence[T],
    identity: Callable[[T], object],
    pack: Callable[[T], bytes],
    difference: Difference,
) -> codec.Numbers:
    """Numbers for the new entries: those they have, as long as these rise; otherwise the next ones."""
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a is not b), min(len(old), len(new)))
    if same == len(old) == len(new):
        return old_numbers
    taken = list(old_numbers.taken[:same])
    known = {identity(old[i]): old_numbers.taken[i] for i in range(same, len(old))}
    following = old_numbers.next
    for entry in new[same:]:
        number = known.get(identity(entry), -1)
        if number < 0 or (taken and number <= taken[-1]):
            number, following = following, following + 1
            difference.new[f"{field_prefix}/{number}"] = pack(entry)
        taken.append(number)
    stay = set(taken[same:])
    difference.gone += [f"{field_prefix}/{number}" for number in old_numbers.taken[same:] if number not in stay]
    return codec.Numbers(tuple(taken), following)
