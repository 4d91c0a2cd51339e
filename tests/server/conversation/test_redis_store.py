"""What Redis adds to the contract: addresses and secrets, permissions, bytes on the wire, damage, several processes."""

import asyncio
import logging
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kibun.bench.faults.servers import free_port
from kibun.server.conversation.state import Conversation, Opening, UtteranceRecord, finish_turn, note_opening
from kibun.server.conversation.store import MemoryStore, StoreRefused, StoreUnavailable
from kibun.server.errors import Failure, StartError
from kibun.server.settings import Settings
from tests.support import ROOT, present
from tests.support.certificates import make_certificates
from tests.support.redis_server import OwnRedis, command, long_timeouts, own_redis, prefixed
from tests.support.stores import KEY, FakeStream, adding, fresh, plain, record

pytest.importorskip("redis", reason="needs the extra redis")

from redis.asyncio.connection import SSLConnection
from redis.exceptions import ResponseError

from kibun.server.conversation import codec
from kibun.server.conversation.open_store import open_store
from kibun.server.conversation.redis_connection import Address, AddressError, RedisConnection
from kibun.server.conversation.redis_layout import StoredConversation
from kibun.server.conversation.redis_store import Cache, RedisStore
from kibun.server.conversation.resilient_store import ResilientStore
from tests.support.tapped_redis import Send, TappedConnection

SECRET = "Zx8-hush"


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    with long_timeouts():
        yield


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with prefixed() as url:
        yield url


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisStore]:
    async with opened(url) as store:
        yield store


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisStore]:
    async with tapped(url) as (store, _):
        yield store


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[tuple[RedisStore, TappedConnection]]:
    connection = TappedConnection(Address.parse(url))
    store = RedisStore(connection)
    await store.first_contact()
    yield store, connection
    await store.close()


def name_of(url: str) -> str:
    """The Redis key of KEY."""
    return f"{Address.parse(url).prefix}:{{{KEY[0]}/{KEY[1]}}}"


# ---- addresses


def test_addresses() -> None:
    full = Address.parse("rediss://us%40er:p%23w@example.org:7000/3?ssl_ca_certs=/&ssl_check_hostname=false&prefix=x")
    assert full.settings == {
        "ssl_ca_certs": "/",
        "ssl_check_hostname": False,
        "username": "us@er",
        "password": "p#w",
        "host": "example.org",
        "port": 7000,
        "db": 3,
        "connection_class": SSLConnection,
    }
    assert (full.prefix, full.place) == ("x", "rediss://example.org:7000")
    socket = Address.parse("unix://:pw@/run/redis.sock?db=2")
    assert (socket.settings["path"], socket.settings["password"], socket.settings["db"]) == ("/run/redis.sock", "pw", 2)
    plain = Address.parse("redis://[::1]")
    assert (plain.settings["host"], plain.settings["port"], plain.prefix) == ("::1", 6379, "kibun")


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{SECRET}@host",
        SECRET,
        f"redis://user:{SECRET}#x@host",
        f"redis://user:{SECRET}/x@host",
        f"redis://user:12/{SECRET}@host",
        f"redis://user:12?{SECRET}@host",
        f"redis://user:12?{SECRET}=1@host",
        f"redis://user:{SECRET}@host:port",
        f"redis://user:{SECRET}@host/0?prefix=a:b",
        f"redis://user:{SECRET}@host/0?ssl_ca_certs=x",
        f"redis://user:{SECRET}@host/zero",
        f"redis://user:{SECRET}@[host",
        f"unix://user:{SECRET}@host/path",
        f"unix://:{SECRET}@",
    ],
)
async def test_a_wrong_address_is_not_quoted(address: str) -> None:
    with pytest.raises(StartError, match=r"^--store: ") as caught:
        await open_store(address)
    chain: BaseException | None = caught.value
    while chain is not None and not chain.__suppress_context__:
        assert SECRET not in str(chain)
        chain = chain.__cause__ or chain.__context__
    assert SECRET not in str(caught.value)
    with pytest.raises(AddressError):
        Address.parse(address)


async def test_no_repr_shows_the_password() -> None:
    address = f"redis://user:{SECRET}@127.0.0.1:1/0"
    connection = RedisConnection(Address.parse(address))
    shown = [Address.parse(address), connection, RedisStore(connection), Settings(("m",), store=address)]
    shown += [vars(connection)]  # the client and its pool
    assert SECRET not in repr(shown)
    assert "hush" not in repr(shown)


async def test_memory_is_the_default() -> None:
    assert Settings(("m",)).store == "memory"
    assert isinstance(await open_store("memory"), MemoryStore)


async def test_a_server_that_cannot_be_reached(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for address in (f"redis://user:{SECRET}@127.0.0.1:{free_port()}", f"unix://:{SECRET}@{tmp_path}/none"):
        with pytest.raises(
            StartError, match=r"--store: no Redis or Valkey answers at \w+://.*: start it, or"
        ) as caught:
            await open_store(address)
        assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


async def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "kibun.server.conversation.redis_connection"
    for module in [name for name in sys.modules if name.startswith(("redis.", ours))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(StartError, match=r"--store .*pip install 'kibun\[redis\]'"):
        await open_store("redis://127.0.0.1")


@pytest.mark.parametrize("host", ["192.0.2.1", "cache.example.org", "[2001:db8::1]", "127.0.0.1.example.org"])
async def test_another_machines_redis_wants_tls(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisConnection, "__init__", lambda *_: pytest.fail("it was to be spoken to"))
    with pytest.raises(StartError, match=r"--store: redis://.*another machine.*rediss://, or --insecure") as caught:
        await open_store(f"redis://user:{SECRET}@{host}:7000/1")
    assert SECRET not in str(caught.value)


async def test_insecure_is_enough_for_another_machines_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    async def first_contact(_: RedisStore) -> None:
        raise Asked

    monkeypatch.setattr(RedisStore, "first_contact", first_contact)
    for address, insecure in (
        ("redis://192.0.2.1", True),
        ("rediss://192.0.2.1", False),
        ("unix:///run/redis.sock", False),
        ("redis://[::1]", False),
        ("redis://127.0.0.2", False),
        ("redis://", False),
    ):
        with pytest.raises(Asked):
            await open_store(address, insecure=insecure)


# ---- permissions and TLS, with servers of our own

USERS = f"""
    --user default off
    --user kibun on >{SECRET} ~kibun:* +ping +hmget +hexists +eval +evalsha +hset +hdel +del +pexpire
    --user reader on >{SECRET} ~kibun:* +ping +hmget +hexists
""".split()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    """A Redis whose user kibun may do what docs/store.md says, and nothing more."""
    with own_redis(tmp_path_factory.mktemp("redis"), *USERS) as server:
        yield server


async def test_the_documented_permissions_are_enough(guarded: OwnRedis) -> None:
    store = await open_store(f"redis://kibun:{SECRET}@127.0.0.1:{guarded.port}")
    made = await store.update(KEY, adding(record()))
    await store.update(KEY, adding(record(start=1)))
    assert plain(await store.get(KEY)) != plain(made)
    assert await store.knows(KEY)
    assert await store.delete(KEY)
    await store.close()


@pytest.mark.parametrize(
    ("user", "answer"),
    [
        ("kibun:wrong", "refused the user name or password"),
        ("nobody:x", "refused the user name or password"),
        (f":{SECRET}", "refused the user name or password"),
        ("", "refused the user name or password"),
        (f"reader:{SECRET}", "answered: .*no permissions to run the 'eval' command"),
        (f"kibun:{SECRET}", "answered: .*no permissions to access"),
    ],
)
async def test_a_user_without_permission_is_refused_at_start(guarded: OwnRedis, user: str, answer: str) -> None:
    option = "?prefix=other" if user.startswith("kibun:Zx") else ""
    with pytest.raises(StartError, match=rf"--store: redis://127.0.0.1:{guarded.port} {answer}") as caught:
        await open_store(f"redis://{user and user + '@'}127.0.0.1:{guarded.port}{option}")
    assert SECRET not in str(caught.value)


async def test_tls(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "server.pem", tmp_path / "server.key"
    files = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca)
    port = free_port()
    with own_redis(tmp_path, "--tls-port", str(port), *map(str, files), port=0):
        own = f"ssl_certfile={tmp_path}/client.pem&ssl_keyfile={tmp_path}/client.key"
        store = await open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca}&{own}")
        await store.update(KEY, adding(record()))
        await store.close()
        with pytest.raises(StartError, match=r"does its port speak TLS, with a certificate of ssl_ca_certs"):
            await open_store(f"rediss://127.0.0.1:{port}?{own}")
        with pytest.raises(StartError, match=r"no Redis or Valkey answers"):
            await open_store(f"redis://127.0.0.1:{port}")
        with pytest.raises(StartError, match=r"--store: ssl_ca_certs names a file that is not there"):
            await open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs=none.pem")


# ---- what goes over the wire


class Counted:
    """Counts commands, and the bytes that a connection sends and receives."""

    def __init__(self) -> None:
        self.sent = self.received = self.commands = 0

    async def __call__(self, send: Send, *words: Any) -> Any:
        answer = await send(*words)
        self.commands += 1
        self.sent += sum(len(w) if isinstance(w, bytes | str) else 8 for w in words)
        self.received += sum(len(part or b"") for part in answer) if isinstance(answer, list) else 8
        return answer


@pytest.mark.parametrize("records", [10, 500])
async def test_an_utterance_costs_its_own_bytes(url: str, records: int) -> None:
    def big(n: int) -> UtteranceRecord:
        return replace(record(start=n), vector=np.full(768, n, np.float16))

    async with tapped(url) as (store, connection), tapped(url) as (another, another_connection):
        await store.update(KEY, adding(*map(big, range(records))))
        connection.tap = counted = Counted()
        await store.get(KEY)
        await store.update(KEY, adding(big(9000)))
        assert counted.commands == 2
        assert counted.sent + counted.received < 3_000

        await another.get(KEY)
        await store.update(KEY, adding(big(9001)))
        another_connection.tap = counted = Counted()
        assert plain(await another.get(KEY)) == plain(await store.get(KEY))
        assert counted.received < 4_000, "only what is new"


async def test_memory_of_conversations_seen_is_bounded(url: str) -> None:
    store = RedisStore(RedisConnection(Address.parse(url)), cache_records=50)
    for n in range(20):
        await store.update(("tenant", f"c{n}"), adding(*(record(start=i) for i in range(4))))
    assert len(store) == 10
    for n in range(20):
        found = present(await store.get(("tenant", f"c{n}")))
        assert len(found.participant("p").records) == 4
    for n in range(20):
        await store.delete(("tenant", f"c{n}"))
    assert len(store) == 0
    await store.close()


def test_the_cache_weighs_what_it_has() -> None:
    cache = Cache(50)
    for n in range(20):
        cache.put(
            ("tenant", f"c{n}"),
            StoredConversation(conversation=adding(*(record(start=i) for i in range(4)))(None)),
            0.0,
        )
    assert (len(cache), cache.records) == (10, 50)
    assert [key[1] for key in cache] == [f"c{n}" for n in range(10, 20)]
    cache.put(("tenant", "c10"), StoredConversation(conversation=adding(record())(None)), 0.0)
    assert (len(cache), cache.records) == (10, 47)
    for key in tuple(cache):
        cache.put(key, StoredConversation(), 0.0)
    assert (len(cache), cache.records) == (0, 0)


async def test_what_must_have_expired_is_not_kept(url: str) -> None:
    now = [1000.0]
    store = RedisStore(RedisConnection(Address.parse(url)), monotonic=lambda: now[0])
    await store.update(KEY, adding(record()))
    assert store.remembered(KEY) is not None
    now[0] += 61
    assert store.remembered(KEY) is None
    store.sweep()
    assert len(store) == 0
    await store.close()


async def test_a_server_that_forgot_its_scripts(tmp_path: Path) -> None:
    with own_redis(tmp_path) as server:
        async with opened(server.url) as own:
            await own.update(KEY, adding(record()))
            await command(server.url, "SCRIPT", "FLUSH")
            await own.update(KEY, adding(record(start=1)))


async def test_a_lost_first_answer_is_no_conflict(url: str) -> None:
    """The connection breaks after the change was made, and redis-py sends it again."""

    async def twice(send: Send, *words: Any) -> Any:
        await send(*words)
        return await send(*words)

    calls = 0

    def change(conversation: Conversation | None) -> Conversation:
        nonlocal calls
        calls += 1
        return adding(record(start=1))(conversation)

    async with tapped(url) as (store, connection):
        await store.update(KEY, adding(record()))
        connection.tap = twice
        changed = await store.update(KEY, change)
        assert calls == 1
        await store.update(KEY, adding(record(start=2)))
        assert await store.delete(KEY)
    assert changed.participant("p").revision == 2


async def test_a_cancelled_call_gives_its_answer_to_no_other_call(store: RedisStore) -> None:
    """Streams are cancelled at any moment, and the connections are shared."""
    keys = [("tenant", f"c{n}") for n in range(20)]
    for n, key in enumerate(keys):
        await store.update(key, adding(record(start=n)))
    chance = random.Random(0)

    async def ask(n: int) -> None:
        found = present(await store.get(keys[n]))
        assert [r.start for r in found.participant("p").records] == [n]

    for _ in range(30):
        asked = [asyncio.create_task(ask(n)) for n in range(20)]
        for _ in range(chance.randrange(60)):  # some ask, some wait, some have read their answer
            await asyncio.sleep(0)
        cancelled = chance.sample(asked, 10)
        for task in cancelled:
            task.cancel()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(o is None or isinstance(o, asyncio.CancelledError) for o in outcomes), outcomes
    for n in range(20):
        await ask(n)


# ---- damage


@pytest.mark.parametrize("field", ["head", "r/p/0", "t/p/0"])
@pytest.mark.parametrize("how", ["bit", "cut", "empty", "gone"])
async def test_a_damaged_conversation_counts_as_lost(
    url: str, store: RedisStore, field: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = adding(record())(None)
    whole = whole.with_participant(replace(whole.participant("p"), finished_turns=("t",)))
    await store.update(KEY, lambda _: whole)
    value = await command(url.partition("?")[0], "HGET", name_of(url), field)
    assert isinstance(value, bytes)
    damaged = {"bit": value[:3] + bytes([value[3] ^ 1]) + value[4:], "cut": value[:-1], "empty": b""}
    if how == "gone":
        await command(url.partition("?")[0], "HDEL", name_of(url), field)
    else:
        await command(url.partition("?")[0], "HSET", name_of(url), field, damaged[how])
    async with opened(url) as another:
        with caplog.at_level(logging.WARNING, "kibun"):
            assert await another.get(KEY) is None
        assert ("damaged" in caplog.text) == ((field, how) != ("head", "gone"))
        assert KEY[1] + "/" not in caplog.text
        stream = FakeStream()
        await another.update(KEY, adding(record(start=5)), stream)
        await another.update(KEY, adding(record(start=5)), stream)
        assert stream.notices == ["damaged"]
        found = present(await store.get(KEY))
        assert [r.start for r in found.participant("p").records] == [5]
        assert await another.delete(KEY)


async def test_a_damaged_conversation_can_be_deleted(url: str, store: RedisStore) -> None:
    await store.update(KEY, fresh)
    await command(url.partition("?")[0], "HSET", name_of(url), "head", b"x")
    assert await store.delete(KEY)
    assert not await store.delete(KEY)


@pytest.mark.parametrize("field", ["head", "r/p/0"])
async def test_what_a_newer_version_wrote_is_left_alone(url: str, store: RedisStore, field: str) -> None:
    await store.update(KEY, adding(record()))
    body = b"[of the future]"
    newer = codec.seal(body, codec.VERSION + 1)
    await command(url.partition("?")[0], "HSET", name_of(url), field, newer)
    async with opened(url) as another:
        for call in (another.get(KEY), another.update(KEY, adding(record())), another.delete(KEY)):
            with pytest.raises(Failure, match="newer version") as caught:
                await call
            assert caught.value.reason == "CONVERSATION_VERSION"
            assert caught.value.retry_after_s
    assert await command(url.partition("?")[0], "HGET", name_of(url), field) == newer


# Two utterances and a finished turn as version 1 stored them.
VERSION_1 = {
    "head": b'\x01m@\xb9=["0123456789abcdef",0,"m",1000.0,1001.0,60.0,false,'
    b'{"p":[2,null,{"t":[1000.5,0]},[2,0,2],[1,0,1]]}]',
    "r/p/0": b'\x01Jc\xa4\x86Y\x00["p:t:0","t",0,16000,16000,[2.0,3.0],[2.0,4.0,4.0,4.0,4.0],"conversation","silence",'
    b"true]\x00@\x00@\x00@\x00@",
    "r/p/1": b'\x01)\xfb\xbf0a\x00["p:t:16000","t",16000,32000,16000,[3.0,2.0],[3.0,4.0,4.0,4.0,4.0],"conversation",'
    b'"silence",true]\x00B\x00B\x00B\x00B',
    "t/p/0": b"\x01>jm\xf2t",
}


async def test_a_conversation_that_version_1_stored_goes_on(url: str, store: RedisStore) -> None:
    redis, name = url.partition("?")[0], name_of(url)
    await command(redis, "HSET", name, *(part for pair in VERSION_1.items() for part in pair))
    found = await store.get(KEY)
    second = replace(record(start=16_000, level=3.0), emotion=(3.0, 2.0))
    before = adding(replace(record(), emotion=(2.0, 3.0)), second)(None)
    opened_turn = note_opening(before.participant("p"), "t", Opening(1000.5, 0))
    before = before.with_participant(finish_turn(opened_turn, "t"))
    assert plain(found) == plain(replace(before, update_time=1001.0))

    made = await store.update(KEY, adding(record(start=32_000)))
    fields = await command(redis, "HGETALL", name)
    assert isinstance(fields, dict)
    versions = {field.decode(): value[0] for field, value in fields.items()}
    assert versions == {"head": 2, "r/p/0": 1, "r/p/1": 1, "t/p/0": 1, "r/p/2": 2}, "entries stay as they are"
    async with opened(url) as another:
        assert plain(await another.get(KEY)) == plain(made)
        await another.update(KEY, adding(record(start=16_000, level=4.0)))
        assert plain(await store.get(KEY)) == plain(await another.get(KEY))


async def test_somebody_elses_value_is_one_conversations_trouble(url: str, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[bool] = []
    store = ResilientStore(RedisStore(RedisConnection(Address.parse(url))), on_error=lambda: errors.append(True))
    await command(url.partition("?")[0], "LPUSH", name_of(url), SECRET)
    other = ("tenant", "other")
    stream = FakeStream()
    assert await store.get(KEY) is None
    assert not await store.knows(KEY)
    await store.update(other, adding(record()), FakeStream())
    assert await store.get(other)
    await store.update(KEY, adding(record()), stream)
    assert len(present(await store.get(KEY)).participant("p").records) == 1, "it was lost, and is made anew"
    assert (store.pending, stream.notices, errors) == (0, ["damaged"], []), "no outage"
    assert {getattr(r, "reason", None) for r in caplog.records} == {"the key is of another type"}
    assert SECRET not in caplog.text
    await store.close()


async def test_what_cannot_be_sent_is_one_conversations_trouble(url: str) -> None:
    connection = RedisConnection(Address.parse(url))
    store = ResilientStore(RedisStore(connection))
    with pytest.raises(StoreRefused):
        await connection.call("GET", object())  # type: ignore[arg-type]
    assert store.available
    await store.close()


@pytest.mark.parametrize(
    "error",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "Error running script (call to f_0): @user_script:1: -OOM command not allowed when used memory > 'maxmemory'.",
        "READONLY You can't write against a read only replica.",
        "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist on disk.",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script.",
        "MASTERDOWN Link with MASTER is down.",
        "NOPERM this user has no permissions to run the 'eval' command",
    ],
)
async def test_what_every_key_would_meet_counts_as_away(url: str, error: str) -> None:
    async def refuse(*_: Any) -> Any:
        raise ResponseError(error)

    async with tapped(url) as (store, connection):
        connection.tap = refuse
        with pytest.raises(StoreUnavailable):
            await store.get(KEY)
        with pytest.raises(StoreUnavailable):
            await store.update(KEY, adding(record()))


async def test_a_full_redis_counts_as_away(tmp_path: Path) -> None:
    with own_redis(tmp_path) as server:
        async with opened(server.url) as store:
            for _ in range(2):  # the second time where one was deleted
                await store.update(KEY, adding(record()))
                await command(server.url, "CONFIG", "SET", "maxmemory", "1mb")
                with pytest.raises(StoreUnavailable):
                    await store.update(("tenant", "other"), adding(record()))
                with pytest.raises(StoreUnavailable):
                    await store.update(KEY, adding(record(start=1)))
                store.forget(KEY)
                assert await store.delete(KEY), "that frees memory"
                await command(server.url, "CONFIG", "SET", "maxmemory", "0")


# ---- deletion by way of another server


async def test_a_stream_elsewhere_does_not_bring_back_what_was_deleted(url: str, store: RedisStore) -> None:
    stream = FakeStream()
    stream.last_seen = await store.update(KEY, adding(record()), stream)
    async with opened(url) as another:
        assert await another.delete(KEY)
        for call in (store.update(KEY, adding(record(start=1)), stream), store.get(KEY, stream)):
            with pytest.raises(Failure) as caught:
                await call
            assert caught.value.reason == "CONVERSATION_DELETED"
        again = await another.update(KEY, fresh)
        with pytest.raises(Failure, match="deleted"):
            await store.update(KEY, adding(record(start=1)), stream)
        found = await another.get(KEY)
        assert plain(found) == plain(again), "nothing of the old one"
        await another.update(KEY, lambda _: None)
        with pytest.raises(Failure, match="deleted"):
            await store.update(KEY, adding(record(start=1)), stream)


async def test_what_is_left_of_a_deleted_conversation(url: str, store: RedisStore) -> None:
    await store.update(KEY, adding(record()))
    await store.delete(KEY)
    base = url.partition("?")[0]
    assert await command(base, "HKEYS", name_of(url)) == [b"deleted"]
    left_ms = await command(base, "PTTL", name_of(url))
    assert isinstance(left_ms, int)
    assert 0 < left_ms <= 60_000


async def test_an_erased_conversation_leaves_no_key(url: str, store: RedisStore) -> None:
    await store.update(KEY, fresh)
    await store.update(KEY, lambda _: None)
    assert await command(url.partition("?")[0], "EXISTS", name_of(url)) == 0


# ---- several processes

WRITER = """
import asyncio, sys
from tests.support.redis_server import *
from tests.support.stores import KEY, adding, open_redis, record

async def main(url, process, tasks, each):
    long_timeouts().__enter__()
    store = await open_redis(url, resilient=True)
    async def write(task):
        for n in range(each):
            who = f"p{task % 2}"
            await store.update(KEY, adding(record(f"{process}-{task}", n, who=who), who=who))
    await asyncio.gather(*map(write, range(tasks)))
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], 8, 10))
"""


async def test_two_processes_lose_nothing(url: str, store: RedisStore) -> None:
    path = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": path}
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, url, str(n), env=environment)
        for n in range(2)
    ]
    assert [await writer.wait() for writer in writers] == [0, 0]
    found = present(await store.get(KEY))
    ids = {r.utterance_id for p in found.participants.values() for r in p.records}
    assert ids == {f"p{t % 2}:{w}-{t}:{n}" for w in range(2) for t in range(8) for n in range(10)}


async def test_a_cancelled_call_is_cancelled_whatever_it_was_about_to_do(url: str) -> None:
    """Libraries lose cancellations that come as a write is done (asyncio.wait_for in Python 3.11)."""
    async with opened(url) as store:
        for steps in range(30):
            task = asyncio.create_task(store.get(KEY))
            for _ in range(steps):
                await asyncio.sleep(0)
            if task.cancel():
                await asyncio.wait([task])
                assert task.cancelled(), f"after {steps} steps"
