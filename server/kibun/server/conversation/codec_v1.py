"""Reads version 1 of stored values, which was JSON, as the messages that replaced it. Nothing writes it any more.

All functions raise one of UNREADABLE where the bytes are no such value.
"""

from __future__ import annotations

import json
import struct

from kibun.server.conversation.store_pb2 import Entries, Head, Opening, Participant, Run, Utterance

_JSON_LENGTH = struct.Struct("<H")
# All that reading JSON of any shape may raise.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, struct.error)

_HEAD = ("incarnation", "version", "model", "create_time", "update_time", "ttl_s", "completed")
_UTTERANCE = ("utterance_id", "turn_id", "start", "end", "speech", "emotion", "traits", "traits_source", "reason")


def head(body: bytes) -> Head:
    *values, people = json.loads(body)
    participants = []
    for name, (revision, given_traits, openings, utterances, finished_turns) in people.items():
        participant = Participant(
            participant_id=name,
            revision=revision,
            given_traits=given_traits,
            openings=[Opening(turn_id=turn, when=when, offset=offset) for turn, (when, offset) in openings.items()],
            utterances=_entries(*utterances),
            finished_turns=_entries(*finished_turns),
        )
        participants.append(participant.SerializeToString())
    return Head(**dict(zip(_HEAD, values, strict=True)), participants=participants)


def _entries(following: int, *runs: int) -> Entries:
    """From the number of the next entry, and the first number and length of each run."""
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return Entries(next=following, runs=[Run(first=first, count=count) for first, count in pairs])


def utterance(body: bytes) -> Utterance:
    """From the length of the JSON, the JSON, and the vector's float16 where the JSON announces one."""
    (length,) = _JSON_LENGTH.unpack_from(body)
    begin_of_vector = _JSON_LENGTH.size + length
    *values, has_vector = json.loads(body[_JSON_LENGTH.size : begin_of_vector])
    vector = body[begin_of_vector:] if has_vector else None
    return Utterance(**dict(zip(_UTTERANCE, values, strict=True)), vector=vector)


def finished_turn(body: bytes) -> str:
    return body.decode()
