"""What passes between servers on a real Redis: once, in order, and not without a word where something is missing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("redis", reason="needs the extra redis")

from kibun.server.conversation import redis_relay
from kibun.server.conversation.audience import Audience, Notice, Watcher
from kibun.server.conversation.redis_connection import Address
from kibun.server.conversation.redis_relay import RedisRelay
from tests.support.redis_server import command, prefixed
from tests.support.tapped_redis import Send, TappedConnection

KEY = ("tenant", "c")


class Server:
    """What a server has of this."""

    def __init__(self, url: str) -> None:
        self.now = 0.0
        self.connection = TappedConnection(Address.parse(url))
        self.audience = Audience()
        self.relay = RedisRelay(self.connection, self.audience, lambda: asyncio.get_running_loop().time() + self.now)
        self.audience.relay = self.relay

    def say(self, number: int) -> None:
        if self.audience.watches(KEY):
            self.audience.tell(KEY, Notice("final", "p", "t", number, b"payload \xff\n %d" % number))


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with prefixed() as url:
        yield url


@asynccontextmanager
async def servers(url: str, count: int = 2) -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        running = [Server(url) for _ in range(count)]
        for server in running:
            server.relay.start()
            stack.push_async_callback(server.connection.close)
            stack.push_async_callback(server.relay.close)
        yield running


@asynccontextmanager
async def watcher(server: Server) -> AsyncIterator[Watcher]:
    with server.audience.watcher(KEY) as watcher:
        assert await server.relay.listen(KEY)
        yield watcher


async def heard(watcher: Watcher, count: int) -> list[str]:
    async with asyncio.timeout(10):
        return [_word(await watcher.get()) for _ in range(count)]


def _word(notice: Notice) -> str:
    if notice.kind == "final":
        assert notice.payload == b"payload \xff\n %d" % notice.start
        assert (notice.participant_id, notice.turn_id) == ("p", "t")
        return str(notice.start)
    return notice.reason or notice.kind


async def test_it_begins_with_a_word_that_something_may_have_been_missed(url: str) -> None:
    async with servers(url) as (here, there), watcher(here) as seen:
        assert await heard(seen, 1) == ["missed"]
        for number in range(300):
            there.say(number)
        assert await heard(seen, 300) == [str(number) for number in range(300)]
        here.say(1)
        assert await heard(seen, 1) == ["1"], "its own only once"


async def test_a_message_published_twice_is_heard_once(url: str) -> None:
    async with servers(url) as (here, there), watcher(here) as seen:
        assert await heard(seen, 1) == ["missed"]
        lost = 0

        async def lose_answers(send: Send, *words: Any) -> Any:
            nonlocal lost
            answer = await send(*words)
            if words[0] == "PUBLISH" and lost < 3:
                lost += 1
                raise OSError("the answer was lost")
            return answer

        there.connection.tap = lose_answers
        for number in range(5):
            there.say(number)
        assert await heard(seen, 5) == ["0", "1", "2", "3", "4"]
        assert lost == 3


async def test_what_waits_too_long_for_redis_is_missed_with_a_word(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_relay, "MAX_OUTGOING", 4)
    async with servers(url) as (here, there), watcher(here) as seen:
        assert await heard(seen, 1) == ["missed"]
        there.say(0)
        assert await heard(seen, 1) == ["0"]
        for number in range(1, 20):  # at once: nothing of it is published yet
            there.say(number)
        assert await heard(seen, 5) == ["OTHER_SERVERS_MISSED", "16", "17", "18", "19"]


async def test_what_no_server_published_is_ignored(url: str) -> None:
    async with servers(url) as (here, there), watcher(here) as seen:
        assert await heard(seen, 1) == ["missed"]
        prefix = here.connection.address.prefix
        for channel in (f"{prefix}:watched", f"{prefix}:watch:{{tenant/c}}"):
            for junk in (b"", b"hello", b"\x02\0\0\0\0{}", b"\xff" * 1000):
                await command(url.partition("?")[0], "PUBLISH", channel, junk)
        there.say(7)
        assert await heard(seen, 1) == ["7"]


async def test_who_begins_to_watch_what_others_publish_already_may_have_missed_something(url: str) -> None:
    async with servers(url, 3) as (here, there, late), watcher(here) as seen:
        assert await heard(seen, 2) == ["missed", "missed"], "one of each"
        async with watcher(late) as seen_late:
            there.say(0)
            assert await heard(seen_late, 2) == ["missed", "0"]


async def test_who_stops_watching_is_believed_to_watch_only_for_a_while(url: str) -> None:
    async with servers(url) as (here, there):
        async with watcher(here) as seen:
            assert await heard(seen, 1) == ["missed"]
            assert there.audience.watches(KEY)
            assert not here.relay.wanted(KEY), "nobody else watches"
        there.now += redis_relay.BELIEVED_S
        assert not there.audience.watches(KEY)
        async with watcher(here) as seen:
            assert await heard(seen, 1) == ["missed"], "again, as something was said meanwhile"


async def test_the_end_of_a_conversation_is_published_whoever_watches(url: str) -> None:
    async with servers(url) as (here, there), watcher(here) as seen:
        assert await heard(seen, 1) == ["missed"]
        there.now += redis_relay.BELIEVED_S
        assert not there.audience.watches(KEY)
        there.audience.tell(KEY, Notice("deleted"))
        assert await heard(seen, 1) == ["deleted"]
