"""Clients, turns and streams used in ways that cannot work: an error that names the fix, and nothing hangs."""

import asyncio
import inspect
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from kibun.client import (
    AsyncClient,
    AsyncStream,
    AsyncTurn,
    Client,
    MisuseError,
    RetryPolicy,
    Stream,
    StreamConfig,
    StreamEnded,
    Turn,
    TurnEndedError,
)
from tests.support.processes import outcome
from tests.support.scripted_service import ScriptedService, noise, serving, serving_in_thread

ABSENT = "127.0.0.1:1"
QUIET = bytes(3200)
# Every way to use a turn or stream, by the name that its class has for it.
USES: dict[str, Callable[[Any], Any]] = {
    "push": lambda stream: stream.push(QUIET),
    "feed": lambda stream: stream.feed([QUIET]),
    "wait_fed": lambda stream: stream.wait_fed(),
    "end": lambda stream: stream.end(),
    "wait_ended": lambda stream: stream.wait_ended(),
    "result": lambda stream: stream.result(),
    "end_of_turn": lambda stream: stream.end_of_turn(),
    "started": lambda stream: stream.started,
    "turn_id": lambda stream: stream.turn_id,
    "__aiter__": aiter,
    "__anext__": anext,
    "__iter__": iter,
    "__next__": next,
}
# What may be asked and done before a stream is open.
HARMLESS = {"open", "cancel", "config", "ended", "turn_result", "__aenter__", "__aexit__", "__enter__", "__exit__"}
ITERATION = {"__aiter__", "__anext__", "__iter__", "__next__"}


def uses_of(cls: type) -> list[str]:
    """The public names of a class of streams, and its ways to iterate: all but those that are harmless."""
    public = {name for name, _ in inspect.getmembers(cls) if not name.startswith("_")}
    return sorted((public | {name for name in ITERATION if hasattr(cls, name)}) - HARMLESS)


async def ended(work: Any) -> Any:
    """The exception of a use, which may be a coroutine; fails where it hangs."""
    async with asyncio.timeout(20):
        try:
            return await work if isinstance(work, Awaitable) else work
        except Exception as error:
            return error


async def use(name: str, stream: AsyncTurn | AsyncStream) -> Any:
    async def call() -> Any:
        result = USES[name](stream)
        return await result if inspect.isawaitable(result) else result

    return await ended(call())


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def target(service: ScriptedService) -> Iterator[str]:
    with serving_in_thread(service) as target:
        yield target


@pytest.mark.parametrize("name", uses_of(AsyncTurn))
async def test_a_turn_that_was_never_opened(name: str) -> None:
    async with AsyncClient(ABSENT) as client:
        error = await use(name, client.conversation().turn())
        assert isinstance(error, MisuseError)
        assert error.reason == "NOT_OPEN"
        assert "async with client.conversation(…).turn(…) as turn" in str(error)


@pytest.mark.parametrize("name", uses_of(AsyncStream))
async def test_a_stream_that_was_never_opened(name: str) -> None:
    async with AsyncClient(ABSENT) as client:
        error = await use(name, client.stream(StreamConfig()))
        assert isinstance(error, MisuseError)
        assert "async with client.stream(…) as stream" in str(error)


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in (Turn, Stream) for name in uses_of(cls)])
def test_the_same_without_asyncio(cls: type, name: str) -> None:
    with Client(ABSENT) as client:
        stream = client.conversation().turn() if cls is Turn else client.stream(StreamConfig())
        error = outcome(lambda: USES[name](stream))
        assert isinstance(error, MisuseError)
        assert error.reason == "NOT_OPEN"
        assert "(with kibun.client.Client: `with " in str(error)


async def test_a_turn_that_could_not_be_opened_says_why_again() -> None:
    async with AsyncClient(ABSENT, retry=RetryPolicy(max_attempts=1)) as client:
        turn = client.conversation().turn()
        assert "kibun serve" in str(await ended(turn.open()))
        assert "kibun serve" in str(await use("push", turn))
        assert "kibun serve" in str(await use("result", turn))
        again = await ended(turn.open())
        assert isinstance(again, MisuseError), "an error of the past would not say that nothing was tried"
        assert again.reason == "USED_TWICE"


async def test_a_turn_is_used_once(service: ScriptedService) -> None:
    async with serving(service) as target, AsyncClient(target) as client:
        turn = client.conversation().turn()
        async with turn:
            await turn.open()  # changes nothing
            await turn.push(noise(1.0))
        for name in ("push", "feed"):
            assert isinstance(await use(name, turn), TurnEndedError)
        turn.end()
        assert (await turn.result()).utterance_count == 1
        assert isinstance(await turn.wait_ended(), StreamEnded)
        assert len([event async for event in turn]) == 5, "what was not read is still there"
        assert [event async for event in turn] == []
        with pytest.raises(MisuseError, match="make another") as caught:
            async with turn:
                pytest.fail("a turn must not open twice")
        assert caught.value.reason == "USED_TWICE"
    assert len(service.connections) == 1


async def test_two_loops_over_one_turn_would_share_its_events(service: ScriptedService) -> None:
    async with serving(service) as target, AsyncClient(target) as client, client.conversation().turn() as turn:
        assert await anext(turn) == turn.started
        first = asyncio.ensure_future(anext(turn))
        await asyncio.sleep(0)
        error = await use("__anext__", turn)
        assert isinstance(error, MisuseError)
        assert error.reason == "READ_TWICE"
        await turn.push(noise(1.0))
        assert await first, "the one that waited first gets its event"


async def test_a_turn_belongs_to_one_event_loop(service: ScriptedService) -> None:
    async with serving(service) as target, AsyncClient(target) as client, client.conversation().turn() as turn:

        def elsewhere(name: str) -> Any:
            return asyncio.run(use(name, turn))

        for name in ("push", "feed", "end", "result", "wait_ended", "__anext__"):
            error = await asyncio.to_thread(elsewhere, name)
            assert isinstance(error, MisuseError)
            assert error.reason == "WRONG_EVENT_LOOP"
        error = await asyncio.to_thread(outcome, turn.end)
        assert isinstance(error, MisuseError)
        assert "loop.call_soon_threadsafe" in str(error)


async def test_a_closed_client_says_so() -> None:
    client = AsyncClient(ABSENT)
    await client.close()
    await client.close()
    calls: list[Any] = [client.service_info(), client.wait_until_ready(600), client.conversation().turn().open()]
    calls += [client.conversation("c").get(), client.__aenter__(), client.stream(StreamConfig()).open()]
    for call in calls:
        error = await ended(call)
        assert isinstance(error, MisuseError)
        assert error.reason == "CLIENT_CLOSED"


async def test_closing_a_client_frees_everyone_who_waits(service: ScriptedService) -> None:
    service.read_delay_s = 60.0
    async with serving(service) as target:
        client = AsyncClient(target)
        turns = [client.conversation().turn() for _ in range(4)]
        for turn in turns:
            await turn.open()
            await anext(turn)
            await turn.push(QUIET)

        async def push_for_ever() -> None:
            while True:
                await turns[0].push(noise(1.0))

        turns[3].feed(iter(lambda: QUIET, b""))
        waiting = [
            asyncio.ensure_future(ended(work))
            for work in (
                push_for_ever(),
                anext(turns[1]),
                turns[2].result(600),
                turns[3].wait_fed(),
            )
        ]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        await client.close()
        for error in await asyncio.gather(*waiting):
            assert isinstance(error, MisuseError)
            assert error.reason == "CLIENT_CLOSED"


def test_closing_a_client_frees_other_threads(service: ScriptedService, target: str) -> None:
    service.read_delay_s = 60.0
    client = Client(target)
    turns = [client.conversation().turn() for _ in range(4)]
    for turn in turns:
        turn.open()
        next(turn)
        turn.push(QUIET)

    def push_for_ever() -> None:
        while True:
            turns[0].push(noise(1.0))

    errors: list[Any] = []
    works: list[Callable[[], Any]] = [
        push_for_ever,
        lambda: next(turns[1]),
        lambda: list(turns[2]),
        lambda: turns[3].result(600),
    ]
    threads = [threading.Thread(target=lambda work=work: errors.append(outcome(work)), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.2)
    assert errors == [], "all of them wait"
    client.close()
    for thread in threads:
        thread.join(20)
    assert [type(error) for error in errors] == [MisuseError] * len(works)
    assert {error.reason for error in errors} == {"CLIENT_CLOSED"}
    client.close()
    with pytest.raises(MisuseError, match="make another"), client:
        pytest.fail("a closed client must not be entered")


def test_closing_a_client_frees_who_waits_for_its_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=600)
        errors: list[Any] = []
        works: list[Callable[[], Any]] = [
            lambda: client.wait_until_ready(600),
            client.service_info,
            client.conversation().get,
            client.conversation().turn().open,
            client.conversation().turn().__enter__,
        ]
        threads = [threading.Thread(target=lambda work=work: errors.append(outcome(work))) for work in works]
        for thread in threads:
            thread.start()
            thread.join(0.1)
        assert errors == [], "all of them wait"
        client.close()
        for thread in threads:
            thread.join(20)
    assert [error.reason for error in errors] == ["CLIENT_CLOSED"] * len(works)


def test_a_block_that_was_left_for_a_closed_client_tells_nothing_twice(target: str) -> None:
    """Nor does it put that before what its caller raised."""
    client = Client(target)
    with client.conversation().turn() as turn:
        turn.push(QUIET)
        threading.Timer(0.1, client.close).start()
        assert outcome(lambda: list(turn)).reason == "CLIENT_CLOSED"

    def fail(client: Client) -> None:
        client.close()
        raise ZeroDivisionError

    client = Client(target)
    with pytest.raises(ZeroDivisionError), client.conversation().turn():
        fail(client)
    client = Client(target)
    with pytest.raises(MisuseError, match="is closed"), client.conversation().turn():
        client.close()


def test_a_result_outlives_its_client(target: str) -> None:
    with Client(target) as client, client.conversation().turn() as turn:
        turn.push(noise(1.0))
    assert turn.result().utterance_count == 1


def test_a_client_may_be_made_before_its_loop_and_serve_several(service: ScriptedService, target: str) -> None:
    """At import, by asyncio.run once and again, and by loops in several threads at once."""
    client = AsyncClient(target)

    async def talk() -> int:
        async with client.conversation().turn() as turn:
            await turn.push(noise(1.0))
            return (await turn.result()).utterance_count

    assert [asyncio.run(talk()), asyncio.run(talk())] == [1, 1]

    async def at_once() -> list[int]:
        return await asyncio.gather(talk(), *(asyncio.to_thread(asyncio.run, talk()) for _ in range(3)))

    assert asyncio.run(at_once()) == [1] * 4
    asyncio.run(client.close())


def test_closing_a_client_in_one_loop_closes_it_in_others(target: str) -> None:
    client = AsyncClient(target)
    opened = threading.Event()

    async def wait_for_an_event() -> Any:
        async with client.conversation().turn() as turn:
            await anext(turn)
            opened.set()
            return await anext(turn)

    error: list[Any] = []
    thread = threading.Thread(target=lambda: error.append(outcome(lambda: asyncio.run(wait_for_an_event()))))
    thread.start()
    assert opened.wait(20)
    asyncio.run(client.close())
    thread.join(20)
    assert isinstance(error[0], MisuseError)
    assert error[0].reason == "CLIENT_CLOSED"


def test_a_synchronous_client_is_not_for_its_own_thread(target: str) -> None:
    with Client(target) as client, client.conversation().turn() as turn:

        async def source() -> Any:
            client.service_info()
            yield QUIET

        turn.feed(source())
        error = outcome(lambda: list(turn))
        assert isinstance(error, MisuseError)
        assert "use AsyncClient there" in str(error)
    with Client(target) as client, client.conversation().turn() as turn:

        async def closing() -> Any:
            client.close()
            yield QUIET

        turn.feed(closing())
        error = outcome(lambda: list(turn))
        assert isinstance(error, MisuseError)
        assert "use AsyncClient there" in str(error)


def test_a_synchronous_client_that_no_one_closes_warns_and_ends(target: str) -> None:
    def use() -> list[threading.Thread]:
        turn = Client(target).conversation().turn()
        turn.open()
        turn.push(QUIET)
        return [thread for thread in threading.enumerate() if thread.name == "kibun-client"]

    with pytest.warns(ResourceWarning, match="was not closed"):
        threads = use()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
