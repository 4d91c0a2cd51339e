"""Hashes of conversations that another program damaged and sealed again: the checksum is right, the values are not."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kibun.server.conversation import codec, validity
from kibun.server.conversation import redis_layout as layout
from kibun.server.conversation import store_pb2 as pb
from kibun.server.conversation.state import Conversation, Opening, Participant, Totals, Turn
from tests.support import present
from tests.support.stores import record, traits

SUMS = Totals.of([record(), record(start=16_000)])
NAN, INF = math.nan, math.inf


def whole() -> Conversation:
    """With something in every field."""
    records = (record("t", 32_000), replace(record("t", 48_000), bundle="0a"), replace(record("u"), bundle="0a"))
    person = Participant(
        "p",
        records,
        ("t0", "t1"),
        5,
        traits(2.0),
        {"t": Opening(1000.5, 0, settled=32_000), "u": Opening(1001.5, 16_000)},
        {"t": Turn(SUMS, 0, 32_000), "v": Turn(Totals(missing=1), missing_before=7)},
        SUMS + Totals(missing=1),
        3,
        "0a",
    )
    people = {"p": person, "q": Participant("q")}
    return Conversation("c", "m", 1000.0, 1001.0, 60.0, participants=people)


def stored(conversation: Conversation) -> dict[str, bytes]:
    """Its hash."""
    change = layout.difference(layout.StoredConversation(), conversation)
    return {"head": codec.pack_head(present(change.head)), **change.new}


def read(fields: dict[str, bytes]) -> Conversation:
    """What the store makes of a hash; raises Damaged or NewerVersion."""
    head = layout.unpack_head(fields["head"])
    entries = {field: layout.unpack_entry(field, fields[field]) for field in layout.fields(head) if field in fields}
    if len(entries) < len(layout.fields(head)):
        raise codec.Damaged
    return layout.conversation("c", head, entries)


# ---- changes to the hash, all with the right checksum

Change = Callable[[dict[str, bytes]], None]
UTTERANCE = "r/p/0"


def head(change: Callable[[pb.Head], Any]) -> Change:
    def apply(fields: dict[str, bytes]) -> None:
        version, body = codec.unseal(fields["head"])
        message = pb.Head.FromString(body)
        change(message)
        fields["head"] = codec.seal(message.SerializeToString(), version)

    return apply


def person(change: Callable[[pb.Participant], Any]) -> Change:
    def apply(message: pb.Head) -> None:
        participant = pb.Participant.FromString(message.participants[0])
        change(participant)
        message.participants[0] = participant.SerializeToString()

    return head(apply)


def utterance(change: Callable[[pb.Utterance], Any], field: str = UTTERANCE) -> Change:
    def apply(fields: dict[str, bytes]) -> None:
        message = pb.Utterance.FromString(codec.unseal(fields[field])[1])
        change(message)
        fields[field] = codec.seal(message.SerializeToString())

    return apply


def put(field: str, body: bytes, version: int = 2) -> Change:
    return lambda fields: fields.__setitem__(field, codec.seal(body, version))


def sets(**values: Any) -> Callable[[Any], None]:
    """Sets fields of a message; lists replace lists."""

    def apply(message: Any) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                message.ClearField(name)
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)

    return apply


def entries(next_number: int, *runs: tuple[int, int]) -> pb.Entries:
    return pb.Entries(next=next_number, runs=[pb.Run(first=first, count=count) for first, count in runs])


def raw(number: int, value: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    return bytes([number << 3 | 2, len(value)]) + value


KINDS: dict[str, Change] = {
    # not such a message at all
    "an empty head": put("head", b""),
    "an empty utterance": put(UTTERANCE, b""),
    "an empty turn": put("t/p/0", b""),
    "no protobuf": put("head", b"\xff" * 40),
    "text": put(UTTERANCE, b'{"utterance": 1}'),
    "a turn in place of an utterance": put(UTTERANCE, raw(1, b"t")),
    "another utterance's value": lambda fields: fields.__setitem__(UTTERANCE, fields["r/p/1"]),
    "no UTF-8": put(UTTERANCE, raw(1, b"\xff\xfe")),
    "no UTF-8 in the head": put("head", raw(1, b"\xc3")),
    "a turn without UTF-8": put("t/p/0", raw(1, b"\xff")),
    "version 1 that is none": put("head", b"{}", 1),
    "version 1 with nonsense": put("head", b'["i", -1, "m", 1, 1, 1, false, {"p": [0, null, {}, [1, 0, 9], [0]]}]', 1),
    "too large a head": head(sets(incarnation="0" * (validity.MAX_HEAD_BYTES + 1))),
    "far too large a head": lambda fields: fields.__setitem__("head", bytes(150_000_000)),
    "far too large a turn": lambda fields: fields.__setitem__("t/p/0", bytes(50_000_000)),
    "far too large a mark": lambda fields: fields.__setitem__("deleted", bytes(50_000_000)),
    "too large an utterance": utterance(sets(vector=bytes(validity.MAX_ENTRY_BYTES + 2))),
    # the head
    "no incarnation": head(sets(incarnation="")),
    "an incarnation that is none": head(sets(incarnation="x" * 16)),
    "changes without end": head(sets(version=2**64 - 1)),
    "no model": head(sets(model="")),
    "a model with a line break": head(sets(model="m\n")),
    "an endless model": head(sets(model="m" * 10_000)),
    "created never": head(sets(create_time=NAN)),
    "created before all time": head(sets(create_time=-1.0)),
    "changed at infinity": head(sets(update_time=INF)),
    "changed after all time": head(sets(update_time=1e300)),
    "changed in the year 10000": head(sets(update_time=253_402_300_790.0)),
    "no time to live": head(sets(ttl_s=0.0)),
    "hardly any time to live": head(sets(ttl_s=1e-300)),
    "a negative time to live": head(sets(ttl_s=-60.0)),
    "a time to live that is no number": head(sets(ttl_s=NAN)),
    "an endless time to live": head(sets(ttl_s=INF)),
    "a time to live of ages": head(sets(ttl_s=1e18)),
    "a participant twice": head(lambda m: m.participants.append(m.participants[0])),
    "too many participants": head(
        lambda m: m.participants.extend(pb.Participant(participant_id=f"x{n}").SerializeToString() for n in range(63))
    ),
    "a participant that is none": head(lambda m: m.participants.append(b"\xff\xff")),
    # a participant
    "no participant id": person(sets(participant_id="")),
    "another participant's entries": person(sets(participant_id="r")),
    "a participant id with a slash": person(sets(participant_id="p/0")),
    "a participant id with NUL": person(sets(participant_id="p\0")),
    "an endless participant id": person(sets(participant_id="p" * 65)),
    "revisions without end": person(sets(revision=2**64 - 1)),
    "more revisions than an int32": person(sets(revision=2**31)),
    "three given traits": person(sets(given_traits=[1.0, 2.0, 3.0])),
    "given traits beyond their scale": person(sets(given_traits=[7.5, 2.0, 3.0, 4.0, 5.0])),
    "given traits that are no number": person(sets(given_traits=[NAN, 2.0, 3.0, 4.0, 5.0])),
    "a turn opened twice": person(lambda m: m.openings.append(m.openings[0])),
    "too many openings": person(lambda m: m.openings.extend(pb.Opening(turn_id=f"o{n}", when=1.0) for n in range(64))),
    "opened never": person(lambda m: sets(when=NAN)(m.openings[0])),
    "opened for ever": person(lambda m: sets(when=INF)(m.openings[0])),
    "opened after all time": person(lambda m: sets(when=1e300)(m.openings[0])),
    "opened beyond all audio": person(lambda m: sets(offset=2**63)(m.openings[0])),
    "settled beyond all audio": person(lambda m: sets(settled=2**64 - 1)(m.openings[0])),
    "opened without an id": person(lambda m: sets(turn_id="")(m.openings[0])),
    "entries that are missing": person(lambda m: m.utterances.CopyFrom(entries(9, (0, 9)))),
    "endless entries": person(lambda m: m.utterances.CopyFrom(entries(2**40, (0, 2**40)))),
    "an entry twice": person(lambda m: m.utterances.CopyFrom(entries(3, (0, 2), (1, 1)))),
    "falling numbers of entries": person(lambda m: m.utterances.CopyFrom(entries(3, (1, 1), (0, 1)))),
    "a number to be given again": person(lambda m: m.utterances.CopyFrom(entries(1, (0, 3)))),
    "numbers without end": person(lambda m: m.utterances.CopyFrom(entries(2**64 - 1, (0, 3)))),
    "more turns than an int32": person(sets(more_turns=2**63)),
    "a bundle that is none": person(sets(bundle="../x")),
    # sums
    "more utterances than an int32": person(lambda m: sets(utterances=2**32)(m.dropped)),
    "a part that is more than the whole": person(lambda m: sets(utterances=1)(m.dropped)),
    "speech without utterances": person(lambda m: (sets(earlier=[])(m), sets(utterances=0)(m.dropped))),
    "more emotion than speech": person(lambda m: sets(weight=2**50)(m.dropped)),
    "a sum beyond all floats": person(lambda m: sets(valence=b"\x7f" * 200)(m.dropped)),
    "a mean beyond its scale": person(lambda m: sets(valence=bytes(7) + b"\x70")(m.dropped)),
    "a negative mean": person(lambda m: sets(arousal=b"\xff")(m.dropped)),
    "a turn's sums twice": person(lambda m: m.earlier.append(m.earlier[0])),
    "a turn that ends before it starts": person(lambda m: sets(start=40_000)(m.earlier[0])),
    "a turn without an end": person(lambda m: m.earlier[0].ClearField("end")),
    "a turn beyond all audio": person(lambda m: sets(end=2**63)(m.earlier[0])),
    "missing beyond all audio": person(lambda m: sets(missing_before=2**63)(m.earlier[1])),
    "missing without end": person(lambda m: sets(missing=2**62)(m.dropped)),
    # an utterance
    "no utterance id": utterance(sets(utterance_id="")),
    "another's utterance id": utterance(sets(utterance_id="q:t:32000")),
    "no turn": utterance(sets(turn_id="")),
    "a turn with a colon": utterance(sets(turn_id="t:t", utterance_id="p:t:t:32000")),
    "a negative start": utterance(sets(start=-1, utterance_id="p:t:-1")),
    "an end before the start": utterance(sets(end=31_999)),
    "no length": utterance(sets(end=32_000)),
    "an end beyond all audio": utterance(sets(end=2**62)),
    "negative speech": utterance(sets(speech=-1)),
    "more speech than there is": utterance(sets(speech=16_001)),
    "one emotion": utterance(sets(emotion=[3.0])),
    "emotion beyond its scale": utterance(sets(emotion=[0.0, 3.0])),
    "emotion that is no number": utterance(sets(emotion=[3.0, NAN])),
    "infinite emotion": utterance(sets(emotion=[3.0, INF])),
    "six traits": utterance(sets(traits=[4.0] * 6)),
    "traits beyond their scale": utterance(sets(traits=[4.0, 4.0, 4.0, 4.0, 8.0])),
    "traits that are no number": utterance(sets(traits=[NAN] * 5)),
    "a source that nobody knows": utterance(sets(traits_source="tarot")),
    "no source": utterance(sets(traits_source="")),
    "a reason that nobody knows": utterance(sets(reason="boredom")),
    "half a float16": utterance(sets(vector=b"odd")),
    "an empty vector": utterance(sets(vector=b"")),
    "a vector that is no number": utterance(sets(vector=b"\x00\x7e" * 4)),
    "an infinite vector": utterance(sets(vector=b"\x00\x7c" * 4)),
    "vectors of two sizes": utterance(sets(vector=bytes(10)), "r/p/1"),
    "an utterance's bundle that is none": utterance(sets(bundle="g" * 99)),
    "an utterance twice": lambda fields: fields.__setitem__("r/p/2", fields["r/p/1"]),
    # a turn, and what was deleted
    "a turn twice": lambda fields: fields.__setitem__("t/p/0", fields["t/p/1"]),
    "an endless turn id": put("t/p/0", raw(1, b"t" * 100)),
    "an entry that is gone": lambda fields: fields.__delitem__(UTTERANCE),
    "deleted never": lambda fields: fields.__setitem__("deleted", b"nan"),
    "deleted for ever": lambda fields: fields.__setitem__("deleted", b"inf"),
    "a mark that is none": lambda fields: fields.__setitem__("deleted", b"\xff"),
    "an empty mark": lambda fields: fields.__setitem__("deleted", b""),
}
