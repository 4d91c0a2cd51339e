"""Values with the right checksum that no server of ours wrote count as lost: none is used, none ends a stream."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kibun.server.api import responses
from kibun.server.conversation import codec
from kibun.server.conversation import store_pb2 as pb
from kibun.server.conversation.state import (
    Conversation,
    Opening,
    Told,
    add_utterance,
    finish_turn,
    note_opening,
    reopen_turn,
    resume_turn,
)
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import estimates
from tests.support.damaged_hashes import KINDS, UTTERANCE, head, person, read, sets, stored, utterance, whole
from tests.support.redis_server import command, prefixed
from tests.support.stores import KEY, FakeStream, adding, plain, record

pytest.importorskip("redis", reason="needs the extra redis")

MODEL = ModelInfo("m", "1", vector_size=4)


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
