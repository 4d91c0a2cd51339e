"""Streams go on while Redis is away; it gets what it missed once it is back. A switch in front of a real Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from kibun.bench.support import virtual_time
from kibun.server.conversation.backlog import replay
from kibun.server.conversation.state import Conversation, Participant, finish_turn
from kibun.server.conversation.store import Key, StoreUnavailable
from kibun.server.errors import Failure, Kind
from tests.support import present
from tests.support.redis_server import prefixed
from tests.support.stores import KEY, FakeStream, adding, fresh, plain, record, traits

pytest.importorskip("redis", reason="needs the extra redis")

from redis.exceptions import ConnectionError

from kibun.server.audio.decoder import AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation import backlog, redis_hash, resilient_store
from kibun.server.conversation.audience import Notice
from kibun.server.conversation.redis_connection import Address
from kibun.server.conversation.redis_store import RedisStore
from kibun.server.conversation.resilient_store import ResilientStore
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.conversation_handle import ConversationHandle
from kibun.server.session.events import StreamOptions
from kibun.server.session.open_streams import OpenStream, OpenStreams
from kibun.server.session.outbox import Outbox
from tests.support.tapped_redis import Send, TappedConnection

pytestmark = pytest.mark.filterwarnings("error")
PROBE_S, FAST_S = resilient_store.PROBE_S, resilient_store.FAST_S
MODEL = ModelInfo("m", "1", vector_size=4)


class Site:
    """One server's store, with a switch in its line.

    `mode` is up, down, lossy (it is done, but the answer is lost), slow (each answer takes more than `SLOW_S`, by a
    clock of the test's own) or frozen.
    """

    def __init__(
        self, url: str, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.mode = "up"
        self.calls = self.probes = 0
        self.now = 0.0
        self.then: tuple[int, str] | None = None  # from that call on, another mode
        self.connection = TappedConnection(Address.parse(url), lambda: self.now)
        self.connection.tap = self.switched
        self.store = ResilientStore(RedisStore(self.connection, clock, monotonic), clock, monotonic)

    async def switched(self, send: Send, *words: Any) -> Any:
        probe = words[0] == "PING"
        self.calls += not probe
        self.probes += probe
        if self.then and self.calls > self.then[0]:
            self.mode, self.then = self.then[1], None
        if self.mode == "down":
            raise ConnectionError("switched off")
        if self.mode == "frozen" or (self.mode == "slow" and probe):
            await asyncio.Event().wait()
        answer = await send(*words)
        if self.mode == "slow":
            self.now += 1.1 * resilient_store.SLOW_S
        if self.mode == "lossy" and not probe:
            raise ConnectionError("the answer is lost")
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 (the store has no event for it)
                await asyncio.sleep(0.005)

    async def back(self) -> None:
        """Switches on; returns once the store noticed and all streams are notified."""
        self.mode = "up"
        await self.until(lambda: self.store.available and not self.store.pending)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resilient_store, "PROBE_S", (0.01, 0.05))
    monkeypatch.setattr(resilient_store, "FAST_S", 2.0)


@pytest.fixture
async def sites() -> AsyncIterator[tuple[Site, Site]]:
    """Two servers on one Redis."""
    async with prefixed() as url:
        pair = Site(url), Site(url)
        yield pair
        for site in pair:
            site.mode = "up"
            await site.store.close()


@pytest.fixture
def site(sites: tuple[Site, Site]) -> Site:
    return sites[0]


@pytest.fixture
def other(sites: tuple[Site, Site]) -> Site:
    return sites[1]


async def add(site: Site, stream: FakeStream, start: int, who: str = "p") -> Conversation:
    stream.last_seen = await site.store.update(KEY, adding(record("t", start, who=who), who=who), stream)
    return stream.last_seen


async def cut_off(site: Site) -> FakeStream:
    """A stream with a change in the store and, now that the store is away, one that waits."""
    stream = FakeStream()
    await add(site, stream, 0)
    site.mode = "down"
    await add(site, stream, 1)
    return stream


def starts(conversation: Conversation | None, who: str = "p") -> list[int]:
    return [r.start for r in conversation.participant(who).records] if conversation else []


async def unavailable(work: Awaitable[Any]) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await work
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert caught.value.retry_after_s


# ---- going on and catching up


@pytest.mark.parametrize("mode", ["down", "lossy"])
async def test_a_stream_goes_on_and_the_store_catches_up(site: Site, other: Site, mode: str) -> None:
    stream = FakeStream()
    await add(site, stream, 0)
    site.mode = mode
    for start in (1, 2, 3):
        assert starts(await add(site, stream, start)) == list(range(start + 1))
        assert starts(await site.store.get(KEY, stream)) == list(range(start + 1))
    assert stream.notices == [True], "notified once"
    for call in (site.store.get(KEY), site.store.update(KEY, fresh)):
        await unavailable(call)
    assert await site.store.knows(KEY)

    await site.back()
    assert stream.notices == [True, False]
    for store in (site.store, other.store):
        assert starts(await store.get(KEY)) == [0, 1, 2, 3]
    assert starts(await add(site, stream, 4)) == [0, 1, 2, 3, 4]
    assert stream.notices == [True, False]


async def test_who_watches_is_told_when_the_store_has_what_was_said_meanwhile(site: Site) -> None:
    """On other servers what was told during the outage may not have arrived, and the store did not have it."""
    with site.store.audience.watcher(KEY) as watcher:
        await cut_off(site)
        assert not watcher._waiting
        await site.back()
        assert await watcher.get() == Notice("missed")
    with site.store.audience.watcher(("tenant", "another")) as watcher:
        await cut_off(site)
        await site.back()
        assert not watcher._waiting


async def test_an_outage_costs_no_call_per_change(site: Site) -> None:
    stream = await cut_off(site)
    before = site.calls
    for start in range(2, 50):
        await add(site, stream, start)
        await site.store.get(KEY, stream)
    assert site.calls == before


async def test_streams_of_a_conversation_see_each_other_in_an_outage(site: Site, other: Site) -> None:
    one, two = FakeStream(), FakeStream()
    await add(site, one, 0)
    site.mode = "down"
    await add(site, one, 1)
    assert starts(await add(site, two, 2, "q"), "p") == [0, 1]
    assert starts(await site.store.get(KEY, one), "q") == [2]
    await site.back()
    found = await other.store.get(KEY)
    assert (starts(found), starts(found, "q")) == ([0, 1], [2])
    assert one.notices == two.notices == [True, False]


async def test_what_an_ended_stream_said_is_stored_later(site: Site, other: Site) -> None:
    site.mode = "down"
    await add(site, FakeStream(), 0)
    assert site.store.pending == 1
    await site.back()
    assert starts(await other.store.get(KEY)) == [0]


async def test_both_servers_changes_are_kept(site: Site, other: Site) -> None:
    mine, theirs = FakeStream(), FakeStream()
    await add(site, mine, 0)
    site.mode = "down"
    await add(site, mine, 1)
    await add(other, theirs, 2, "q")
    await other.store.update(KEY, lambda c: c and replace(c, completed=True))
    await site.back()
    for store in (site.store, other.store):
        found = present(await store.get(KEY))
        assert found.completed
        assert (starts(found), starts(found, "q")) == ([0, 1], [2])


async def test_a_store_that_lost_everything_gets_it_back(site: Site, other: Site) -> None:
    stream = await cut_off(site)
    await other.store.update(KEY, lambda _: None)
    await site.back()
    assert starts(await other.store.get(KEY)) == [0, 1]
    await other.store.update(KEY, lambda _: None)
    await add(site, stream, 2)
    assert starts(await other.store.get(KEY)) == [0, 1, 2], "also where no outage was noticed"


async def test_an_outage_right_at_the_end_of_a_turn(site: Site, other: Site) -> None:
    """All of it reached the store, only the answers were lost; sent again, it changes nothing."""
    entered: list[int] = []

    def enter(conversation: Conversation | None) -> Conversation:
        conversation = conversation or fresh()
        if "t" in conversation.participant("p").finished_turns and not entered:
            raise Failure(Kind.ALREADY_EXISTS, "TURN_FINISHED", "finished")
        return conversation

    site.mode = "lossy"
    stream = FakeStream()
    stream.last_seen = await site.store.update(KEY, enter, stream)
    entered.append(1)
    await add(site, stream, 0)
    await site.store.update(
        KEY,
        lambda c: c.with_participant(finish_turn(c.participant("p"), "t")),  # type: ignore[union-attr]
        stream,
    )
    before = site.calls
    await site.until(lambda: site.calls > before + 3)  # it was sent again and again
    await site.back()
    found = present(await other.store.get(KEY))
    assert starts(found) == [0]
    assert found.participant("p").finished_turns == ("t",)
    assert stream.notices == [True, False]


# ---- new streams


async def test_a_stream_may_begin_in_an_outage(site: Site, other: Site) -> None:
    await add(other, FakeStream(), 0)
    site.mode = "down"
    stream = FakeStream()
    assert not await site.store.knows(KEY)
    stream.last_seen = await site.store.update(KEY, lambda c: c or fresh(), stream)
    assert stream.notices == [True]
    assert starts(await add(site, stream, 1)) == [1], "what was said before cannot be read now"
    await site.back()
    assert starts(await site.store.get(KEY, stream)) == [0, 1]


async def test_whether_a_conversation_exists_is_unknown_during_an_outage(site: Site, other: Site) -> None:
    def existing(conversation: Conversation | None) -> Conversation:
        if conversation is None:
            raise Failure(Kind.NOT_FOUND, "CONVERSATION_NOT_FOUND", "no such conversation")
        return conversation

    site.mode = "down"
    stream = FakeStream()
    await unavailable(site.store.update(KEY, existing, stream))
    assert (stream.notices, site.store.pending) == ([], 0)
    await add(site, stream, 0)
    assert starts(await site.store.update(KEY, existing, FakeStream())) == [0], "this server knows it"


async def test_a_stream_that_should_not_have_begun_is_ended(site: Site, other: Site) -> None:
    """It began in an outage in a conversation that had been completed; what it said is not stored."""
    good, bad = FakeStream(), FakeStream()
    await add(site, good, 0)
    await other.store.update(KEY, lambda c: c and replace(c, completed=True))

    def enter(conversation: Conversation | None) -> Conversation:
        if conversation and conversation.completed:
            raise Failure(Kind.FAILED_PRECONDITION, "CONVERSATION_COMPLETED", "completed")
        return conversation or fresh()

    site.mode = "down"
    await add(site, good, 1)
    bad.last_seen = await site.store.update(KEY, enter, bad)
    await add(site, bad, 2)
    await site.back()
    assert bad.notices == [True, "CONVERSATION_COMPLETED"]
    assert good.notices == [True, False]
    assert starts(await other.store.get(KEY)) == [0, 1]


async def test_what_cannot_be_applied_blocks_no_other_change(site: Site, other: Site) -> None:
    bad, good = FakeStream(), FakeStream()
    calls = 0

    def once(conversation: Conversation | None) -> Conversation:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyError
        return conversation or fresh()

    site.mode = "down"
    await site.store.update(KEY, once, bad)
    await add(site, good, 0, "q")
    await site.back()
    assert bad.notices == [True, "NOT_STORED"]
    assert good.notices == [True, False]
    assert starts(await other.store.get(KEY), "q") == [0]


async def test_what_cannot_be_written_blocks_no_other_change(site: Site, other: Site) -> None:
    stream = FakeStream()
    site.mode = "down"
    await site.store.update(KEY, adding(replace(record(), turn_id=object())), stream)  # type: ignore[arg-type]
    await site.back()
    assert stream.notices == [True, "NOT_STORED"]
    await add(site, FakeStream(), 1)
    assert starts(await other.store.get(KEY)) == [1]


async def test_a_stream_that_leaves_nothing_is_not_kept(site: Site, other: Site) -> None:
    site.mode = "down"
    for _ in range(10):
        stream = FakeStream()
        stream.last_seen = await site.store.update(KEY, lambda c: c or fresh(), stream)
        await site.store.update(KEY, lambda _: None, stream)
    assert site.store.pending == 0
    assert not await site.store.knows(KEY)
    await site.back()
    assert await other.store.get(KEY) is None


# ---- deletion


async def test_deletion_elsewhere_wins(site: Site, other: Site) -> None:
    stream = await cut_off(site)
    assert await other.store.delete(KEY)
    await site.back()
    assert stream.notices == [True, "CONVERSATION_DELETED"]
    assert await other.store.get(KEY) is None


async def test_deletion_in_an_outage_is_refused_but_drops_what_waits(site: Site, other: Site) -> None:
    stream = await cut_off(site)
    await unavailable(site.store.delete(KEY))
    assert site.store.pending == 0
    stream.ended = Failure(Kind.ABORTED, "CONVERSATION_DELETED", "deleted")  # as the service does
    with pytest.raises(Failure, match="deleted"):
        await add(site, stream, 2)
    await site.back()
    assert starts(await other.store.get(KEY)) == [0]
    assert await site.store.delete(KEY)
    assert await other.store.get(KEY) is None


async def test_a_late_change_does_not_bring_back_what_was_deleted(site: Site) -> None:
    stream = FakeStream()
    await add(site, stream, 0)
    deleting = asyncio.create_task(site.store.delete(KEY))
    await asyncio.sleep(0)
    late = asyncio.create_task(site.store.update(KEY, adding(record(start=1)), stream))
    assert await deleting
    with pytest.raises(Failure, match="deleted"):
        await late
    assert await site.store.get(KEY) is None


@pytest.mark.parametrize("entered", ["before the outage", "in the outage"])
async def test_a_turn_resumed_elsewhere_meanwhile(site: Site, other: Site, entered: str) -> None:
    """Its first server could not reach the store, and tells it late: what counts is what each heard of its part."""

    def enter(site: Site, offset: int) -> ConversationHandle:
        options = StreamOptions(
            "tenant", "c", "p", "t", "m", AudioFormat("linear16", 16_000), EndpointingOptions(), start_offset=offset
        )
        return conversation_handle(options, site)

    first = enter(site, 0)
    if entered == "in the outage":
        site.mode = "down"
    await first.enter()
    await first.add(record(start=0))
    site.mode = "down"
    await first.add(record(start=16_000))
    await first.add(record(start=32_000, level=1.0))  # its client never got this one

    second = enter(other, 32_000)
    await second.enter()
    await second.add(record(start=32_000, level=3.0))
    await second.finish_turn("t")
    await site.back()
    found = present(await other.store.get(KEY))
    someone = found.participant("p")
    assert sorted(starts(found)) == [0, 16_000, 32_000]
    assert {r.start: r.traits for r in someone.records}[32_000] == traits(3.0)
    assert someone.finished_turns == ("t",)


def conversation_handle(options: StreamOptions, site: Site) -> ConversationHandle:
    outbox = Outbox()
    stream = OpenStream(OpenStreams(), options.key, options.participant_id, options.turn_id, outbox)
    return ConversationHandle(options, MODEL, site.store, stream, outbox)


# ---- limits


async def test_slow_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resilient_store, "FAST_S", 0.05)
    stream = FakeStream()
    await add(site, stream, 0)
    site.mode = "slow"
    for start in (1, 2):
        await add(site, stream, start)
    assert stream.notices == [], "it did answer"
    before = site.calls
    for start in range(3, 20):
        await add(site, stream, start)
    assert stream.notices == [True]
    probes = site.probes
    await site.until(lambda: site.probes >= probes + 3)
    assert site.store.pending == 17, "as long as it is slow"
    assert site.calls == before
    monkeypatch.setattr(resilient_store, "FAST_S", 2.0)
    await site.back()
    assert starts(await site.store.get(KEY)) == list(range(20))


async def test_one_slow_answer_is_no_outage(site: Site) -> None:
    stream = FakeStream()
    for start in range(4):
        site.mode = "slow" if start % 2 else "up"
        await add(site, stream, start)
    assert stream.notices == []
    assert site.store.available


async def test_a_large_conversation_is_no_slow_store(site: Site, other: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many answers is quick, and all of them together take longer than one may."""
    monkeypatch.setattr(redis_hash, "READ_AT_ONCE", 10)
    for key in (KEY, ("tenant", "another")):
        await other.store.update(key, adding(*(record(start=n) for n in range(200))))

    async def quick(send: Send, *words: Any) -> Any:
        assert len(words) <= 8 + redis_hash.READ_AT_ONCE
        site.now += 0.5 * resilient_store.SLOW_S
        return await site.switched(send, *words)

    site.connection.tap = quick
    stream = FakeStream()
    for key in (KEY, ("tenant", "another")):
        assert starts(await site.store.get(key, stream)) == list(range(200))
    assert site.calls == 2 * 21
    assert site.store.available


async def test_a_large_conversation_that_changes_while_it_is_read(
    site: Site, other: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_hash, "READ_AT_ONCE", 10)
    await other.store.update(KEY, adding(*(record(start=n) for n in range(95))))
    changes = 0

    async def disturbed(send: Send, *words: Any) -> Any:
        nonlocal changes
        if words[0] == "EVALSHA" and words[1] == redis_hash._READ.sha and changes < 15:
            changes += 1
            await other.store.update(KEY, adding(record(start=1000 + changes)))
        return await send(*words)

    site.connection.tap = disturbed
    found = await site.store.get(KEY)
    assert plain(found) == plain(await other.store.get(KEY))
    assert len(starts(found)) == 95 + changes


def frozen_site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """A store whose Redis never answers, with the timeouts of the product."""
    monkeypatch.setattr(resilient_store, "PROBE_S", PROBE_S)
    monkeypatch.setattr(resilient_store, "FAST_S", FAST_S)
    site = Site("redis://127.0.0.1")
    site.mode = "frozen"
    return site


def test_an_answer_is_waited_for_one_second_and_then_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_an_outage() -> None:
        site, stream, now = frozen_site(monkeypatch), FakeStream(fresh()), asyncio.get_running_loop().time
        await asyncio.gather(*(add(site, FakeStream(stream.last_seen), start, f"p{start}") for start in range(20)))
        assert (site.calls, now()) == (1, 1.0), "all of them wait for the one that asks"
        for start in range(20, 40):
            await add(site, stream, start)
        assert (site.calls, now()) == (1, 1.0)
        await site.store.close()

    virtual_time.run(in_an_outage())


async def add_many(site: Site, key: Key, count: int) -> FakeStream:
    stream = FakeStream()
    for start in range(count):
        stream.last_seen = await site.store.update(key, adding(record(start=start)), stream)
    return stream


async def test_who_has_the_most_pays_for_what_is_too_much(
    site: Site, other: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, most in (("MAX_CONVERSATION", 6), ("MAX_TENANT", 10), ("MAX_ALL", 16)):
        monkeypatch.setattr(backlog, name, most)
    site.mode = "down"
    sizes = {("b", "small"): 2, ("a", "long"): 9, ("a", "one"): 3, ("a", "two"): 3, ("c", "new"): 5, ("d", "late"): 1}
    streams = {key: await add_many(site, key, count) for key, count in sizes.items()}
    assert site.store.pending == 16
    caplog.clear()
    await site.back()
    found = {key: len(starts(await other.store.get(key))) for key in sizes}
    # "long" loses 3 of its 9 to its own limit, 2 to its tenant's (12 of 10), and "a" has the most when all are too many
    lost = 3 + 2 + 2
    assert [r.count for r in caplog.records if hasattr(r, "count")] == [lost]
    assert {key[0] for key, stream in streams.items() if stream.notices != [True, False]} == {"a"}, "others have all"
    assert found == sizes | {("a", "long"): found["a", "long"], ("a", "one"): 3, ("a", "two"): found["a", "two"]}
    assert streams["a", "long"].notices == [True], "not that all is stored"


async def test_changes_there_was_no_room_for_are_the_oldest(
    site: Site, other: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MAX_CONVERSATION", 5)
    stream = FakeStream()
    await add(site, stream, 100)
    site.mode = "down"
    for start in range(8):
        await add(site, stream, start)
    assert starts(stream.last_seen) == [100, *range(8)], "this server knows all"
    await site.back()
    assert starts(await other.store.get(KEY)) == [100, *range(3, 8)]


async def test_a_store_that_lost_everything_gets_back_what_there_was_no_room_for(
    site: Site, other: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MAX_CONVERSATION", 5)
    site.mode = "down"
    await add_many(site, KEY, 8)
    await site.back()
    assert starts(await other.store.get(KEY)) == list(range(8))


async def test_a_stream_of_which_nothing_could_be_kept_goes_on_from_what_it_holds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MAX_TENANT", 1)
    stream, key = await cut_off(site), ("tenant", "another")
    other = await add_many(site, key, 1)
    assert site.store.pending == 1
    assert await site.store.knows(key)
    assert starts(await add(site, stream, 2)) == [0, 1, 2]
    del other


async def test_keeping_a_conversation_alive_takes_no_room(site: Site) -> None:
    stream = FakeStream()
    await add(site, stream, 0)
    site.mode = "down"
    for _ in range(10):
        before = stream.last_seen
        stream.last_seen = await site.store.update(KEY, lambda c: c or fresh(), stream)
        assert before
        assert stream.last_seen.update_time > before.update_time
    assert site.store.pending == 1, "the one that registers this stream"
    assert stream.notices == [True]
    await site.back()
    assert stream.notices == [True, False]


async def test_a_silent_stream_takes_no_room(site: Site) -> None:
    options = StreamOptions("tenant", "c", "p", "t", "m", AudioFormat("linear16", 16_000), EndpointingOptions())
    held = conversation_handle(options, site)
    site.mode = "down"
    await held.enter()
    for _ in range(10):
        await held.update(lambda participant: participant)  # as `keep_alive`
    assert site.store.pending == 1
    await held.add(record())
    assert site.store.pending == 2


def finishing(turn_id: str) -> Callable[[Conversation | None], Conversation]:
    """Makes a turn the only one that a participant finished."""

    def change(conversation: Conversation | None) -> Conversation:
        return adding()(conversation).with_participant(finish_turn(Participant("p"), turn_id))

    return change


async def test_catching_up_lets_others_have_their_turn(site: Site, other: Site) -> None:
    count = 20 * resilient_store.BATCH
    site.mode = "down"
    stream = FakeStream()
    for n in range(count):
        await site.store.update(KEY, finishing(f"{n}"), stream)
    longest = changes = 0

    def watched(steps: Any, *rest: Any) -> Any:
        nonlocal longest, changes
        longest, changes = max(longest, len(steps)), changes + len(steps)
        return replay(steps, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resilient_store, "replay", watched)
        await site.back()
    assert longest == resilient_store.BATCH
    assert changes == count, "each once"
    found = present(await other.store.get(KEY))
    assert found.participant("p").finished_turns == (f"{count - 1}",)
    assert stream.notices == [True, False]


@pytest.mark.parametrize("mode", ["down", "lossy"])
async def test_an_outage_in_the_middle_of_catching_up(
    site: Site, other: Site, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(resilient_store, "BATCH", 3)
    site.mode = "down"
    bad, stream = FakeStream(), FakeStream()
    calls = 0

    def once(conversation: Conversation | None) -> Conversation:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Failure(Kind.FAILED_PRECONDITION, "CONVERSATION_COMPLETED", "completed")
        return conversation or fresh()

    await add(site, stream, 0)
    await site.store.update(KEY, once, bad)
    for start in range(1, 10):
        await add(site, stream, start)
    await add(site, bad, 99)
    site.mode, site.then = "up", (site.calls + 3, mode)  # a question and two answers
    await site.until(lambda: site.mode == mode and not site.store.available)
    assert site.store.pending == 6
    await site.back()
    assert starts(await other.store.get(KEY)) == list(range(10))
    assert bad.notices == [True, "CONVERSATION_COMPLETED"]
    assert stream.notices == [True, False]


@pytest.mark.parametrize("step_s", [0.0, 3600.0, -3600.0])
async def test_what_has_expired_is_no_longer_kept(step_s: float) -> None:
    """By a clock that nobody sets: a step of the other one changes nothing."""
    async with prefixed() as url:
        wall, now = [time.time()], [0.0]
        site = Site(url, lambda: wall[0], lambda: now[0])
        before = FakeStream()
        before.last_seen = await site.store.update(KEY, adding(record("before")), before)
        site.mode = "down"
        stream = FakeStream()
        await add(site, stream, 0)
        wall[0] += step_s
        now[0] += 59
        site.store.sweep()
        assert site.store.pending == 1
        assert await site.store.get(KEY, FakeStream()), "what this server last saw"
        now[0] += 2
        site.store.sweep()
        assert site.store.pending == 0
        await site.store.close()


async def test_closing_tries_once_more(site: Site, other: Site) -> None:
    site.mode = "down"
    await add(site, FakeStream(), 0)
    site.mode = "up"
    await site.store.close()
    assert starts(await other.store.get(KEY)) == [0]


def test_closing_does_not_wait_for_a_frozen_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def in_an_outage() -> None:
        site, now = frozen_site(monkeypatch), asyncio.get_running_loop().time
        await add(site, FakeStream(fresh()), 0)
        begin = now()
        await site.store.close()
        assert now() - begin == pytest.approx(resilient_store.LAST_TRY_S)

    virtual_time.run(in_an_outage())
    assert [getattr(r, "count", None) for r in caplog.records if "are lost" in r.getMessage()] == [1]


async def test_estimates_of_an_outage_are_stored_as_they_were_sent(site: Site, other: Site) -> None:
    stream = FakeStream()
    site.mode = "down"
    item = record(level=3.0)
    await site.store.update(KEY, adding(item), stream)
    await site.back()
    found = present(await other.store.get(KEY))
    assert plain(found)[2]["p"][-1] == plain(adding(item)(None))[2]["p"][-1]
    assert found.participant("p").records[0].traits == traits(3.0)
