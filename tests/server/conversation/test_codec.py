"""Stored values: what was written is read to the bit, in the form of today and the one before, or refused by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kibun.server.audio.endpointing import EndReason
from kibun.server.conversation import codec
from kibun.server.conversation import store_pb2 as pb
from kibun.server.conversation.codec import Numbers
from kibun.server.conversation.state import Conversation, Opening, Participant, UtteranceRecord
from tests.support import present
from tests.support.stores import fresh, plain_record, record, traits

ODD = np.array([1.0, -2.5, 6e-8, np.inf, np.nan], np.float16)
ANN = Participant(
    "ann",
    revision=2**40,
    given_traits=(1.1, 2.2, 3.3, 4.4, 5.5),
    openings={"t2": Opening(1e9 + 1 / 3, 2**40)},
)
HEAD = codec.make_head(
    Conversation("c", "demo-tiny", 1000.1, 2000.0000000000002, 1800.0, completed=True),
    {
        "ann": codec.make_participant_head(ANN, Numbers((0, 1, 2, 7, 9, 4), 10), Numbers((3,), 4)),
        "bo": codec.make_participant_head(Participant("bo"), Numbers(), Numbers()),
    },
    "0123456789abcdef",
    7,
)
UTTERANCES = [
    replace(record(), speech=15_000, vector=ODD, emotion=(0.1, -0.0), traits=(1.1, 2.2, 3.3, 4.4, 5.5)),
    UtteranceRecord("p:t.気:3", "t.気", 3, 2**53 + 1, 0, None, None, None, "given", EndReason.HALF_CLOSE),
    replace(
        record(start=9),
        end=20,
        speech=7,
        vector=np.zeros(0, np.float16),
        emotion=(5e-324, 1 / 3),
        traits=(1.0, 2.0, 3.0, 4.0, 5.0),
        traits_source="utterance",
        reason=EndReason.MAX_DURATION,
    ),
]

# Written by version 1.
HEAD_1 = (
    b'\x01\xd2\x8dx\x05["0123456789abcdef",7,"demo-tiny",1000.1,2000.0000000000002,1800.0,true,'
    b'{"ann":[1099511627776,[1.1,2.2,3.3,4.4,5.5],{"t2":[1000000000.3333334,1099511627776]},'
    b'[10,0,3,7,1,9,1,4,1],[4,3,1]],"bo":[0,null,{},[0],[0]]}]'
)
UTTERANCES_1 = [
    b'\x015\rX\xdcZ\x00["p:t:0","t",0,16000,15000,[0.1,-0.0],[1.1,2.2,3.3,4.4,5.5],"conversation","silence",true]'
    b"\x00<\x00\xc1\x01\x00\x00|\x00~",
    b'\x01!\xe2\xb4.O\x00["p:t.\xe6\xb0\x97:3","t.\xe6\xb0\x97",3,9007199254740993,0,null,null,"given","half_close",'
    b"false]",
    b'\x01!\x85\x7f\x94f\x00["p:t:9","t",9,20,7,[5e-324,0.3333333333333333],[1.0,2.0,3.0,4.0,5.0],"utterance",'
    b'"max_duration",true]',
]
TURN_1 = b"\x01J\x17\x1d\x87t-\xe6\xb0\x97\xe5\x88\x86"

READERS: list[tuple[Callable[[bytes], Any], bytes]] = [
    (codec.unpack_head, codec.pack_head(HEAD)),
    (codec.unpack_utterance, codec.pack_utterance(UTTERANCES[0])),
    (codec.unpack_finished_turn, codec.pack_finished_turn("t-気分")),
    (codec.unpack_head, HEAD_1),
    (codec.unpack_utterance, UTTERANCES_1[0]),
    (codec.unpack_finished_turn, TURN_1),
]
KINDS = ["head", "utterance", "turn", "head of version 1", "utterance of version 1", "turn of version 1"]


def test_every_value_comes_back_exactly() -> None:
    assert codec.unpack_head(codec.pack_head(HEAD)) == HEAD
    for utterance in UTTERANCES:
        assert plain_record(codec.unpack_utterance(codec.pack_utterance(utterance))) == plain_record(utterance)
    assert codec.unpack_finished_turn(codec.pack_finished_turn("t-気分")) == "t-気分"


def test_every_float16_comes_back_to_the_bit() -> None:
    vector = np.arange(2**16, dtype=np.uint16).view(np.float16)
    found = present(codec.unpack_utterance(codec.pack_utterance(replace(record(), vector=vector))).vector)
    assert found.dtype == np.float16
    assert found.tobytes() == vector.tobytes()


def test_version_1_is_still_read() -> None:
    assert codec.unpack_head(HEAD_1) == HEAD
    for utterance, stored in zip(UTTERANCES, UTTERANCES_1, strict=True):
        assert plain_record(codec.unpack_utterance(stored)) == plain_record(utterance)
    assert codec.unpack_finished_turn(TURN_1) == "t-気分"


@pytest.mark.parametrize(("unpack", "stored"), READERS, ids=KINDS)
def test_damage_is_detected_wherever_it_is(unpack: Callable[[bytes], Any], stored: bytes) -> None:
    unpack(stored)
    for at in range(len(stored)):
        for bit in (1, 128):
            with pytest.raises(codec.Damaged):
                unpack(stored[:at] + bytes([stored[at] ^ bit]) + stored[at + 1 :])
        with pytest.raises(codec.Damaged):
            unpack(stored[:at])
    with pytest.raises(codec.Damaged):
        unpack(stored + b"\0")


@pytest.mark.parametrize(("unpack", "stored"), READERS[:3], ids=KINDS[:3])
def test_a_newer_version_is_not_damage(unpack: Callable[[bytes], Any], stored: bytes) -> None:
    with pytest.raises(codec.NewerVersion):
        unpack(codec.seal(b"whatever that will be", codec.VERSION + 1))


def test_fields_that_are_not_known_yet_are_ignored() -> None:
    _, body = codec.unseal(codec.pack_finished_turn("t"))
    later = b"\xfa\x07\x03new"  # field 127, three bytes
    assert codec.unpack_finished_turn(codec.seal(body + later)) == "t"


@pytest.mark.parametrize(
    "message",
    [
        pb.Utterance(reason="silence", traits=[1.0, 2.0]),
        pb.Utterance(reason="silence", emotion=[1.0]),
        pb.Utterance(reason="silence", vector=b"odd"),
        pb.Utterance(reason="nobody knows"),
    ],
)
def test_values_that_make_no_sense_are_damage(message: pb.Utterance) -> None:
    with pytest.raises(codec.Damaged):
        codec.unpack_utterance(codec.seal(message.SerializeToString()))


@pytest.mark.parametrize("runs", [[(0, 2**63)], [(0, 1)] * (codec.MAX_ENTRIES + 1), [(0, 2**64 - 1), (0, 2)]])
def test_a_head_cannot_claim_endless_entries(runs: list[tuple[int, int]]) -> None:
    entries = pb.Entries(runs=[pb.Run(first=first, count=count) for first, count in runs])
    for person in (pb.Participant(utterances=entries), pb.Participant(finished_turns=entries)):
        with pytest.raises(codec.Damaged):
            codec.unpack_head(codec.seal(pb.Head(participants=[person.SerializeToString()]).SerializeToString()))


def test_sizes_are_what_the_documentation_says() -> None:
    numbers = Numbers(tuple(range(512)), 512)
    people = [Participant(f"p{n}", given_traits=traits(1.0), openings={"t": Opening(1.0, 0)}) for n in range(2)]
    heads = {p.participant_id: codec.make_participant_head(p, numbers, numbers) for p in people}
    assert len(codec.pack_head(codec.make_head(fresh(), heads, "0123456789abcdef", 1000))) < 300
    assert len(codec.pack_utterance(replace(record(), vector=np.zeros(768, np.float16)))) < 1_700
