"""Reads version 1 of stored values, which was JSON, as the messages that replaced it. Nothing writes it any more."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

from kibun.server.conversation.store_pb2 import Entries, Head, Opening, Participant, Run, Utterance

_JSON_LENGTH = struct.Struct("<H")
# All that reading JSON of any shape may raise.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, struct.error)


def head(body: bytes) -> Head:
    incarnation, version, model, create_time, update_time, ttl_s, completed, people = json.loads(body)
    participants = [_participant(name, *values).SerializeToString() for name, values in people.items()]
    return Head(
        incarnation=incarnation,
        version=version,
        model=model,
        create_time=create_time,
        update_time=update_time,
        ttl_s=ttl_s,
        completed=completed,
        participants=participants,
    )


def _participant(
    name: str,
    revision: int,
    given_traits: list[float] | None,
    openings: dict[str, tuple[float, int]],
    utterances: Sequence[int],
    finished_turns: Sequence[int],
) -> Participant:
    return Participant(
        participant_id=name,
        revision=revision,
        given_traits=given_traits,
        openings=[Opening(turn_id=turn, when=when, offset=offset) for turn, (when, offset) in openings.items()],
        utterances=_entries(utterances),
        finished_turns=_entries(finished_turns),
    )


def _entries(numbers: Sequence[int]) -> Entries:
    """From [next, first, count, first, count…]."""
    following, *runs = numbers
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return Entries(next=following, runs=[Run(first=first, count=count) for first, count in pairs])


def utterance(body: bytes) -> Utterance:
    """From the length of the JSON, the JSON, and the vector's float16 where it says that there is one."""
    (length,) = _JSON_LENGTH.unpack_from(body)
    end_of_json = _JSON_LENGTH.size + length
    values = json.loads(body[_JSON_LENGTH.size : end_of_json])
    utterance_id, turn_id, start, end, speech, emotion, traits, traits_source, reason, has_vector = values
    return Utterance(
        utterance_id=utterance_id,
        turn_id=turn_id,
        start=start,
        end=end,
        speech=speech,
        vector=body[end_of_json:] if has_vector else None,
        emotion=emotion,
        traits=traits,
        traits_source=traits_source,
        reason=reason,
    )


def finished_turn(body: bytes) -> str:
    return body.decode()
