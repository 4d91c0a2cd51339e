"""Watching through the SDK and from a shell, against a real server."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from kibun.bench.faults.proxy import Proxy
from kibun.client import (
    AsyncClient,
    AsyncConversation,
    AsyncWatch,
    Client,
    MisuseError,
    NotFoundError,
    RetryPolicy,
    StreamStarted,
    TurnResult,
    UnavailableError,
    UtteranceResult,
    Watched,
    WatchEnded,
    WatchStarted,
    WrongTypeError,
)
from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.commands import Kibun
from tests.support.serving import spoken

STUB = ["--loader", "tests.support.stub_model:load"]


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with ServerProcess("stub", STUB) as server:
            yield server.target


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(target) as client:
        yield client


def speech(number: int) -> np.ndarray:
    return (32767 * spoken(0.8, seed=number)).astype(np.int16)


async def say(conversation: AsyncConversation, turn_id: str, *numbers: int, who: str = "user") -> list[UtteranceResult]:
    """One turn of so many utterances; their finals."""
    async with conversation.turn(turn_id, who) as turn:
        turn.feed([speech(number) for number in numbers])
        return [event async for event in turn if isinstance(event, UtteranceResult)]


async def until(watch: AsyncWatch, seen: list[Watched], kind: type, count: int = 1) -> None:
    """Reads on until there are so many events of that kind."""
    async with asyncio.timeout(20):
        while sum(isinstance(watched.event, kind) for watched in seen) < count:
            seen.append(await anext(watch))


def finals_of(seen: list[Watched]) -> list[str]:
    return [w.event.utterance_id for w in seen if isinstance(w.event, UtteranceResult) and w.event.is_final]


async def test_a_watch_sees_every_participant_until_the_conversation_is_completed(client: AsyncClient) -> None:
    conversation = client.conversation("family")
    async with conversation.watch() as watch:
        assert watch.started.conversation is None
        said = await say(conversation, "t1", 1, 2, who="ann") + await say(conversation, "t2", 3, who="bob")
        await conversation.complete()
        seen = [watched async for watched in watch]
    assert isinstance(seen[0].event, WatchStarted)
    assert finals_of(seen) == [event.utterance_id for event in said]
    assert [w.event for w in seen if isinstance(w.event, UtteranceResult)] == said
    assert {(w.participant_id, w.turn_id) for w in seen[1:-1]} == {("ann", "t1"), ("bob", "t2")}
    ended = seen[-1].event
    assert isinstance(ended, WatchEnded)
    assert (ended.reason, ended.conversation and ended.conversation.participant("ann").utterance_count) == (
        "COMPLETED",
        2,
    )


@pytest.mark.parametrize("include_past", [True, False])
async def test_a_lost_connection_doubles_and_loses_nothing(target: str, include_past: bool) -> None:
    async with (
        Proxy(int(target.rpartition(":")[2])) as proxy,
        AsyncClient(target) as speaker,
        AsyncClient(f"127.0.0.1:{proxy.port}") as client,
    ):
        name = f"lost-{include_past}"
        conversation = speaker.conversation(name)
        said = [u.utterance_id for u in await say(conversation, "t1", 1, 2)]
        seen: list[Watched] = []
        async with client.conversation(name).watch(include_past=include_past) as watch:
            said += [u.utterance_id for u in await say(conversation, "t2", 3)]
            await until(watch, seen, TurnResult, 2 if include_past else 1)
            proxy.reset()
            said += [u.utterance_id for u in await say(conversation, "t3", 4, 5)]
            await until(watch, seen, WatchStarted, 2)
            await until(watch, seen, TurnResult, 3 if include_past else 2)
            said += [u.utterance_id for u in await say(conversation, "t4", 6)]
            await speaker.complete_conversation(name)
            seen += [watched async for watched in watch]
    assert finals_of(seen) == said[0 if include_past else 2 :]
    results = [w.turn_id for w in seen if isinstance(w.event, TurnResult)]
    assert results == ["t1", "t2", "t3", "t4"][0 if include_past else 1 :]
    assert [w.event.reconnects for w in seen if isinstance(w.event, WatchStarted)] == [0, 1]


async def test_a_server_that_is_never_there_again_ends_the_watch(target: str) -> None:
    async with (
        Proxy(int(target.rpartition(":")[2])) as proxy,
        AsyncClient(f"127.0.0.1:{proxy.port}") as client,
        client.conversation("gone").watch(retry=RetryPolicy(give_up_after_s=0.5)) as watch,
    ):
        await anext(watch)
        proxy.target_port = 1
        proxy.reset()
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(30):
                await anext(watch)


async def test_what_is_done_wrongly_names_the_fix(client: AsyncClient) -> None:
    conversation = client.conversation("wrong")
    with pytest.raises(WrongTypeError):
        conversation.watch(include_past="yes")  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match="async with"):
        aiter(conversation.watch())
    with pytest.raises(NotFoundError):
        await conversation.watch(require_existing=True).open()
    watch = conversation.watch()
    async with watch:
        reading = asyncio.ensure_future(anext(aiter(watch)))
        await reading
        waiting = asyncio.ensure_future(anext(aiter(watch)))
        await asyncio.sleep(0)
        with pytest.raises(MisuseError, match="two loops"):
            await anext(watch)
        waiting.cancel()
    with pytest.raises(MisuseError, match="used once"):
        await watch.open()
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_a_caller_who_gives_up_waiting_does_not_end_the_watch(client: AsyncClient) -> None:
    conversation = client.conversation("patient")
    async with conversation.watch() as watch:
        await anext(watch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watch)
        await say(conversation, "t", 1)
        assert isinstance((await anext(watch)).event, StreamStarted)


async def test_closing_the_client_frees_who_waits(target: str) -> None:
    client = AsyncClient(target)
    async with client.conversation("closed").watch() as watch:
        await anext(watch)
        waiting = asyncio.ensure_future(anext(aiter(watch)))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(MisuseError, match="client is closed"):
            await waiting


def test_the_synchronous_twin(target: str) -> None:
    with Client(target) as client:
        conversation = client.conversation("threads")
        seen: list[Watched] = []

        def look() -> None:
            seen.extend(watch)

        with conversation.watch(include_past=True) as watch:
            assert watch.started.conversation is None
            looking = threading.Thread(target=look)
            looking.start()
            with conversation.turn("t") as turn:
                turn.push(speech(1))
                result = turn.result(30)
            conversation.complete()
            looking.join(20)
    assert isinstance(seen[-1].event, WatchEnded)
    assert [w.event for w in seen if isinstance(w.event, TurnResult)] == [result]


async def test_from_a_shell(client: AsyncClient, target: str, capfd: pytest.CaptureFixture[str]) -> None:
    conversation = client.conversation("shell")
    said = await say(conversation, "t1", 1, 2, who="ann")
    await conversation.complete()
    kibun = Kibun(capfd)
    assert await asyncio.to_thread(kibun, "watch", "shell", "--past", "--json", "-s", target) == 0
    assert "watch_started" in kibun.lines[0]
    assert kibun.lines[-1]["watch_ended"]["reason"] == "COMPLETED"
    events = [line["event"] for line in kibun.lines if "event" in line]
    finals = [event["utterance_result"] for event in events if "utterance_result" in event]
    assert [final["utterance_id"] for final in finals] == [event.utterance_id for event in said]

    assert await asyncio.to_thread(kibun, "watch", "shell", "--past", "-s", target) == 0
    rows = [line for line in kibun.out.splitlines() if " ann " in line and "–" in line]
    assert len(rows) == 2
    assert "utterances" in kibun.out, "the summary"
    assert await asyncio.to_thread(kibun, "watch", "a b", "-s", target) == 1
    assert "conversation_id" in kibun.err
