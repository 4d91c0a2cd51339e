"""Values with the right checksum that no server of ours wrote count as lost: none is used, none ends a stream."""

import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kibun.server.api import responses
from kibun.server.conversation import codec, validity
from kibun.server.conversation import redis_layout as layout
from kibun.server.conversation import store_pb2 as pb
from kibun.server.conversation.state import (
    Conversation,
    Opening,
    Participant,
    Told,
    Totals,
    Turn,
    add_utterance,
    finish_turn,
    note_opening,
    reopen_turn,
    resume_turn,
)
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import estimates
from tests.support import present
from tests.support.redis_server import command, prefixed
from tests.support.stores import KEY, FakeStream, adding, plain, record, traits

pytest.importorskip("redis", reason="needs the extra redis")

MODEL = ModelInfo("m", "1", vector_size=4)
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


def test_what_servers_write_is_read() -> None:
    assert plain(read(stored(whole()))) == plain(whole())


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with prefixed() as url:
        yield url


async def damaged_stores(url: str) -> tuple[Any, list[bool]]:
    from kibun.server.conversation.redis_connection import Address, RedisConnection
    from kibun.server.conversation.redis_store import RedisStore
    from kibun.server.conversation.resilient_store import ResilientStore

    counted: list[bool] = []
    connection = RedisConnection(Address.parse(url))
    return ResilientStore(RedisStore(connection, on_damaged=lambda: counted.append(True))), counted


async def test_it_counts_as_lost_once_and_the_conversation_goes_on(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every kind, each in a conversation of its own: whoever comes is told once, and what they say is kept."""
    store, counted = await damaged_stores(url)
    redis, _, prefix = url.partition("?")
    begin = adding(record("new"), who="p")
    for number, (kind, change) in enumerate(KINDS.items()):
        key = (KEY[0], f"c{number}")
        name = f"{prefix.partition('=')[2]}:{{{key[0]}/{key[1]}}}"
        fields = stored(replace(whole(), conversation_id=key[1]))
        change(fields)
        await command(redis, "HSET", name, *(part for pair in fields.items() for part in pair))
        counted.clear()
        caplog.clear()
        stream = FakeStream()
        made = await store.update(key, begin, stream)
        assert [r.turn_id for r in made.participant("p").records] == ["new"], kind
        assert (stream.notices, len(counted), len(caplog.records)) == (["damaged"], 1, 1), kind
        assert "reason" in caplog.records[0].__dict__, kind
        assert plain(await store.get(key, stream)) == plain(made), kind
        await store.update(key, lambda c: c, stream)
        assert stream.notices == ["damaged"], kind
    assert (store.available, store.pending) == (True, 0), "no outage"
    await store.close()


async def test_it_is_as_if_it_were_not_there(url: str) -> None:
    store, _ = await damaged_stores(url)
    redis, _, prefix = url.partition("?")
    name = f"{prefix.partition('=')[2]}:{{{KEY[0]}/{KEY[1]}}}"
    for kind in ("no UTF-8", "changed at infinity", "deleted for ever", "six traits"):
        fields = stored(whole())
        KINDS[kind](fields)
        await command(redis, "HSET", name, *(part for pair in fields.items() for part in pair))
        assert await store.get(KEY) is None, kind
        assert await store.delete(KEY), kind
        assert not await store.knows(KEY), kind
        assert await command(redis, "EXISTS", name) == 0, kind
    await store.close()


@pytest.mark.parametrize("kind", ["string", "list", "set", "sorted set", "stream"])
async def test_a_key_of_another_type_is_replaced(url: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    store, counted = await damaged_stores(url)
    redis, _, prefix = url.partition("?")
    name = f"{prefix.partition('=')[2]}:{{{KEY[0]}/{KEY[1]}}}"
    words = {
        "string": ("SET", name, "x"),
        "list": ("LPUSH", name, "x"),
        "set": ("SADD", name, "x"),
        "sorted set": ("ZADD", name, "1", "x"),
        "stream": ("XADD", name, "*", "a", "b"),
    }[kind]
    stream = FakeStream()
    await store.update(KEY, adding(record()), stream)
    await command(redis, "DEL", name)
    await command(redis, *words)  # while this server knows the conversation
    stream.last_seen = await store.get(("tenant", "other"), stream) or adding(record())(None)
    made = await store.update(KEY, adding(record(start=16_000)), stream)
    assert len(made.participant("p").records) == 2, "the stream knows the first"
    assert (stream.notices, len(caplog.records)) == (["damaged"], len(counted))
    await command(redis, "DEL", name)
    await command(redis, *words)
    assert await store.get(KEY) is None
    assert await store.delete(KEY)
    await store.close()


async def test_a_newer_version_is_left_alone(url: str) -> None:
    store, _ = await damaged_stores(url)
    redis, _, prefix = url.partition("?")
    name = f"{prefix.partition('=')[2]}:{{{KEY[0]}/{KEY[1]}}}"
    newer = codec.seal(b"whatever that will be", codec.VERSION + 1)
    await command(redis, "HSET", name, "head", newer)
    with pytest.raises(Exception, match="newer version"):
        await store.update(KEY, adding(record()), FakeStream())
    assert await command(redis, "HGET", name, "head") == newer
    await store.close()


# ---- any values: what is let pass, everything can work with

NUMBERS = st.sampled_from([0, 1, 2, 5, 16_000, 2**31 - 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 4.0, 1000.5, 253_402_300_799.0]))
TEXTS = st.sampled_from(["", "p", "q", "t", "u", "silence", "average", "0a", "p:t:32000", "é", "\0", "x" * 70])


def values(field: Any) -> st.SearchStrategy[Any]:
    kinds = {
        field.TYPE_STRING: TEXTS,
        field.TYPE_BYTES: st.binary(max_size=20),
        field.TYPE_DOUBLE: FLOATS,
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_INT64: st.one_of(NUMBERS.filter(lambda n: n < 2**63), st.sampled_from([-1, -(2**63)])),
        field.TYPE_UINT64: NUMBERS,
    }
    return kinds[field.type]


def leaves(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that holds no message, with the message that it is of."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None:
            yield message, field
        elif field.label == field.LABEL_REPEATED:
            for item in getattr(message, field.name):
                yield from leaves(item)
        else:
            yield from leaves(getattr(message, field.name))


def use(conversation: Conversation) -> None:
    """All that a server does with a conversation."""
    responses.conversation(conversation, MODEL).SerializeToString()
    told = Told((replace(record("t", 0), vector=None),), 3)
    for p in conversation.participants.values():
        estimates.history(MODEL, p)
        estimates.unusable(MODEL, p)
        changed = add_utterance(p, record("new", who=p.participant_id))
        changed = resume_turn(reopen_turn(changed, "t", 40_000), "t", 40_000, told, continues=False)
        changed = note_opening(finish_turn(changed, "t"), "t", Opening(2000.0, 0))
        again = conversation.with_participant(changed)
        responses.conversation(again, None).SerializeToString()
        stored(again)


@given(data=st.data(), which=st.sampled_from(["head", "person", UTTERANCE, "r/p/1", "t/p/0"]))
def test_whatever_is_let_pass_can_be_worked_with(data: st.DataObject, which: str) -> None:
    def spoil(message: Any) -> None:
        for _ in range(data.draw(st.integers(1, 2))):
            owner, field = data.draw(st.sampled_from(list(leaves(message))))
            if field.label == field.LABEL_REPEATED:
                sets(**{field.name: data.draw(st.lists(values(field), max_size=5))})(owner)
            else:
                setattr(owner, field.name, data.draw(values(field)))

    def spoil_turn(fields: dict[str, bytes]) -> None:
        message = pb.FinishedTurn.FromString(codec.unseal(fields[which])[1])
        spoil(message)
        fields[which] = codec.seal(message.SerializeToString())

    changes = {"head": head(spoil), "person": person(spoil), "t/p/0": spoil_turn}
    fields = stored(whole())
    changes.get(which, utterance(spoil, which))(fields)
    try:
        conversation = read(fields)
    except (codec.Damaged, codec.NewerVersion):
        return
    use(conversation)


@given(body=st.binary(max_size=80), field=st.sampled_from(["head", UTTERANCE, "t/p/0"]), version=st.integers(1, 3))
def test_any_bytes_are_a_value_or_damaged(body: bytes, field: str, version: int) -> None:
    fields = stored(whole())
    fields[field] = codec.seal(body, version)
    try:
        conversation = read(fields)
    except codec.Damaged:
        return
    use(conversation)
