"""What a store gives back: any bytes are part of a conversation, or damaged, or of a newer version."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tests.fuzz.fuzzing import Bytes, fuzz, instrumented

with instrumented(__name__):
    from kibun.server.audio.endpointing import EndReason
    from kibun.server.conversation import codec
    from kibun.server.conversation.state import Opening, UtteranceRecord

READERS: tuple[Callable[[bytes], Any], ...] = (codec.unpack_head, codec.unpack_record, codec.unpack_turn)


def check(data: bytes) -> None:
    """Bytes: kind of the value, whether it gets a right checksum, the value."""
    source = Bytes(data)
    read, sealed = READERS[source.number(0, 2)], source.bit()
    body = source.take(len(source))
    try:
        value = read(codec._sealed(body) if sealed else body)
    except (codec.Damaged, codec.NewerVersion):
        return
    if isinstance(value, str):
        assert codec.unpack_turn(codec.pack_turn(value)) == value
    elif isinstance(value, codec.Head):
        assert all(len(p.records.taken) <= codec.MAX_ENTRIES for p in value.participants.values())


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
    person = codec.ParticipantHead(
        3,
        (1.0, 2.0, 3.0, 4.0, 5.0),
        {"t2": Opening(1.5, 160)},
        codec.Numbers((0, 1, 2, 7, 9), 10),
        codec.Numbers((0,), 1),
    )
    head = codec.Head("abcd", 7, "demo-tiny", 1.0, 2.0, 1800.0, False, {"ann": person, "bo": codec.ParticipantHead()})
    values = [(0, codec.pack_head(head)), (2, codec.pack_turn("turn-1")), (2, codec.pack_turn("気分"))]
    values += [(1, codec.pack_record(record(size))) for size in (0, 1, 8)]
    for kind, value in values:
        yield bytes([kind, 0]) + value
        yield bytes([kind, 1]) + value[codec._PREFIX.size :]
    for runs in ([5, 0, 10**15], [5, 0, 10**15, 0, -(10**15)], [5, 0], [1, -3, 2], ["a"], []):
        people = {"ann": [0, None, {}, runs, [0]]}
        yield b"\0\1" + json.dumps(["i", 0, "m", 1.0, 1.0, 1.0, False, people]).encode()


if __name__ == "__main__":
    fuzz(check, seeds())
