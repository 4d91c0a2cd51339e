"""What a store gives back: any bytes are part of a conversation, or damaged, or of a newer version."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tests.fuzz.fuzzing import Bytes, fuzz, instrumented

with instrumented(__name__):
    from kibun.server.audio.endpointing import EndReason
    from kibun.server.conversation import codec
    from kibun.server.conversation import store_pb2 as pb
    from kibun.server.conversation.state import Conversation, Opening, Participant, UtteranceRecord

READERS: tuple[Callable[[bytes], Any], ...] = (
    codec.unpack_head,
    codec.unpack_utterance,
    codec.unpack_finished_turn,
)


def check(data: bytes) -> None:
    """Bytes: kind of the value, version that it is sealed as (0: as it is), the value."""
    source = Bytes(data)
    read, version = READERS[source.number(0, 2)], source.number(0, codec.VERSION)
    body = source.take(len(source))
    try:
        value = read(codec.seal(body, version) if version else body)
        if isinstance(value, codec.Head):
            people = {name: codec.make_participant(p, (), ()) for name, p in value.participants.items()}
            codec.make_conversation("c", value, people)
    except (codec.Damaged, codec.NewerVersion):
        return
    if isinstance(value, str):
        assert codec.unpack_finished_turn(codec.pack_finished_turn(value)) == value
    elif isinstance(value, codec.Head):
        for p in value.participants.values():
            assert len(p.utterances.taken) <= codec.MAX_ENTRIES
            assert len(p.finished_turns.taken) <= codec.MAX_ENTRIES


def record(vector: int) -> UtteranceRecord:
    return UtteranceRecord(
        utterance_id="ann:t1:0",
        turn_id="t1",
        start=0,
        end=16_000,
        speech=16_000,
        vector=np.arange(vector, dtype=np.float16) if vector else None,
        emotion=(3.5, 1.25) if vector else None,
        traits=(4.5, 4.0, 3.5, 3.0, 2.5) if vector else None,
        traits_source="conversation",
        reason=EndReason.SILENCE,
    )


def seeds() -> Iterable[bytes]:
    ann = Participant(
        "ann", revision=3, given_traits=(1.0, 2.0, 3.0, 4.0, 5.0), openings={"t2": Opening(1.5, 160, settled=320)}
    )
    heads = {
        "ann": codec.make_participant_head(ann, codec.Numbers((0, 1, 2, 7, 9), 10), codec.Numbers((0,), 1)),
        "bo": codec.make_participant_head(Participant("bo"), codec.Numbers(), codec.Numbers()),
    }
    conversation = Conversation("c", "demo-tiny", 1.0, 2.0, 1800.0)
    head = codec.make_head(conversation, heads, "abcd", 7)
    values = [(0, codec.pack_head(head))]
    values += [(2, codec.pack_finished_turn(turn_id)) for turn_id in ("turn-1", "気分")]
    values += [(1, codec.pack_utterance(record(size))) for size in (0, 1, 8)]
    for kind, value in values:
        yield bytes([kind, 0]) + value
        yield bytes([kind, codec.VERSION]) + codec.unseal(value)[1]
    for runs in ([(0, 10**15)], [(2**63, 2**63), (2**63, 2**63)], [(2**64 - 1, 3)]):
        many = pb.Entries(next=5, runs=[pb.Run(first=first, count=count) for first, count in runs])
        person = pb.Participant(participant_id="ann", utterances=many)
        yield b"\0\2" + pb.Head(participants=[person.SerializeToString()]).SerializeToString()
    yield from version_1()


def version_1() -> Iterable[bytes]:
    """Values as they were stored before there was store.proto."""
    for runs in ([5, 0, 10**15], [5, 0, 10**15, 0, -(10**15)], [5, 0], [1, -3, 2], ["a"], []):
        people: dict[str, list[object]] = {"ann": [0, None, {}, runs, [0]]}
        yield b"\0\1" + json.dumps(["i", 0, "m", 1.0, 1.0, 1.0, False, people]).encode()
    about = b'["p:t:0","t",0,16000,15000,[0.1,-0.0],[1.1,2.2,3.3,4.4,5.5],"conversation","silence",true]'
    yield b"\1\1" + bytes([len(about), 0]) + about + b"\x00<\x00\xc1"
    yield b"\2\1" + "気分".encode()


if __name__ == "__main__":
    fuzz(check, seeds())
