"""Every timeout that a caller gives holds: each public call, against servers that are absent, silent or frozen."""

import asyncio
import contextlib
import inspect
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from kibun.client import (
    AsyncClient,
    AsyncConversation,
    AsyncStream,
    AsyncTurn,
    Client,
    Conversation,
    DeadlineError,
    InvalidRequestError,
    KibunError,
    RetryPolicy,
    Stream,
    StreamConfig,
    Turn,
)
from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.processes import outcome

GIVEN_S = 0.3
# For a call that should take GIVEN_S on a machine that is busy. What does not hold takes 20 s and more.
HANG_S = 10.0
ONCE = RetryPolicy(max_attempts=1)
PATIENT = RetryPolicy(max_attempts=10**6)  # but no longer than the caller is
AUDIO = bytes(3200)

# Every call that waits for the server, and how it is made: bounded by the client's `timeout_s` or by its own.
CLIENT_CALLS: dict[str, Callable[[Any], Any]] = {
    "analyze": lambda client: client.analyze(AUDIO, timeout_s=GIVEN_S),
    "get_conversation": lambda client: client.get_conversation("c"),
    "get_conversation_proto": lambda client: client.get_conversation_proto("c"),
    "complete_conversation": lambda client: client.complete_conversation("c"),
    "delete_conversation": lambda client: client.delete_conversation("c"),
    "service_info": lambda client: client.service_info(),
    "service_info_proto": lambda client: client.service_info_proto(),
    "wait_until_ready": lambda client: client.wait_until_ready(GIVEN_S),
}
CONVERSATION_CALLS: dict[str, Callable[[Any], Any]] = {
    "get": lambda conversation: conversation.get(),
    "complete": lambda conversation: conversation.complete(),
    "delete": lambda conversation: conversation.delete(),
}
OPENING_CALLS: dict[str, Callable[[Any], Any]] = {
    "open": lambda stream: stream.open(GIVEN_S),
}
# Those of a stream that is open.
STREAM_CALLS: dict[str, Callable[[Any], Any]] = {
    "wait_ended": lambda stream: stream.wait_ended(GIVEN_S),
    "result": lambda stream: stream.result(GIVEN_S),
    "wait_fed": lambda stream: stream.wait_fed(GIVEN_S),
}
# What waits for no server: makes objects, closes what is open, or hands over what is sent in the background. `push`
# waits only while two seconds of audio are on their way, as long as the connection lasts.
IMMEDIATE = {"conversation", "stream", "turn", "watch", "close", "cancel", "feed", "end", "push", "end_of_turn"}
CLASSES = [AsyncClient, AsyncConversation, AsyncStream, AsyncTurn, Client, Conversation, Stream, Turn]


def calls_of(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def test_no_call_is_forgotten() -> None:
    known = {*CLIENT_CALLS, *CONVERSATION_CALLS, *OPENING_CALLS, *STREAM_CALLS, *IMMEDIATE}
    assert set().union(*map(calls_of, CLASSES)) == known


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with ServerProcess("stub", ["--loader", "tests.support.stub_model:load"]) as server:
            yield server


@contextlib.contextmanager
def frozen(server: ServerProcess) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture(params=["absent", "silent", "black hole", "frozen"])
def target(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[str]:
    """The address of a server that does not answer."""
    with contextlib.ExitStack() as stack:
        if request.param == "absent":
            yield "127.0.0.1:1"
        elif request.param == "frozen":
            stack.enter_context(frozen(server))
            yield server.target
        else:
            listener = stack.enter_context(
                socket.create_server(("127.0.0.1", 0), backlog=0 if "hole" in request.param else 99)
            )
            if "hole" in request.param:  # its queue is full, and further attempts to connect are answered by nothing
                for _ in range(4):
                    waiting = stack.enter_context(socket.socket())
                    waiting.setblocking(False)
                    waiting.connect_ex(listener.getsockname())
            yield f"127.0.0.1:{listener.getsockname()[1]}"


def all_calls(client: Any) -> list[Callable[[], Any]]:
    """Each call that needs no open stream, on a client of either kind."""
    conversation = client.conversation("c")
    streams = [conversation.turn, lambda: client.stream(StreamConfig())]
    calls = [(call, lambda: client) for name, call in CLIENT_CALLS.items() if hasattr(client, name)]
    calls += [(call, lambda: conversation) for call in CONVERSATION_CALLS.values()]
    calls += [(call, make) for call in OPENING_CALLS.values() for make in streams]
    calls += [(lambda stream: stream.open(), make) for make in streams]  # bounded by the client's timeout
    return [lambda call=call, make=make: call(make()) for call, make in calls]  # type: ignore[misc]


async def failure(call: Callable[[], Any]) -> Any:
    try:
        async with asyncio.timeout(HANG_S):
            return await call()
    except Exception as error:
        return error


async def test_every_call_ends_in_time(target: str) -> None:
    async with AsyncClient(target, timeout_s=GIVEN_S, retry=PATIENT) as client:
        calls = all_calls(client)
        results = await asyncio.gather(*map(failure, calls))
    assert all(isinstance(result, KibunError) for result in results), results
    assert len(results) == len(CLIENT_CALLS) + len(CONVERSATION_CALLS) + 4


async def test_every_blocking_call_ends_in_time(target: str) -> None:
    client = Client(target, timeout_s=GIVEN_S, retry=PATIENT)
    calls = all_calls(client)
    results = await asyncio.gather(*(asyncio.to_thread(outcome, call, HANG_S) for call in calls))
    assert all(isinstance(result, KibunError) for result in results), results
    outcome(client.close, HANG_S)


@pytest.mark.parametrize("retry", [ONCE, RetryPolicy()], ids=["once", "again"])
async def test_a_server_that_freezes_in_mid_stream(server: ServerProcess, retry: RetryPolicy) -> None:
    async with asyncio.timeout(3 * HANG_S), AsyncClient(server.target, timeout_s=GIVEN_S, retry=retry) as client:
        streams = [(name, client.conversation().turn()) for name in STREAM_CALLS]
        streams += [("wait_ended", client.stream(StreamConfig()))]  # type: ignore[list-item]
        for name, stream in streams:
            await stream.open()
            await stream.push(AUDIO)
            if name == "wait_fed":
                stream.feed(iter(lambda: AUDIO, b""))
        with frozen(server):
            for name, stream in streams:
                assert isinstance(await failure(lambda: STREAM_CALLS[name](stream)), DeadlineError)  # noqa: B023
            assert all(
                isinstance(result, KibunError) for result in await asyncio.gather(*map(failure, all_calls(client)))
            )
            with pytest.raises(DeadlineError):
                async with client.conversation().turn():
                    pytest.fail("no one accepted it")
            for _, stream in streams:
                await stream.cancel()


async def test_the_same_without_asyncio(server: ServerProcess) -> None:
    client = Client(server.target, timeout_s=GIVEN_S)
    turn = client.conversation().turn()

    def use() -> Any:
        with turn:
            turn.push(AUDIO)
            os.kill(server.pid, signal.SIGSTOP)
            turn.result(GIVEN_S)

    try:
        assert isinstance(outcome(use, HANG_S), DeadlineError), "also leaving the block takes no longer"
        assert outcome(client.close, HANG_S) is None
    finally:
        os.kill(server.pid, signal.SIGCONT)


def takers_of_timeouts() -> list[tuple[type, str]]:
    return [
        (cls, name)
        for cls in CLASSES
        for name in sorted(calls_of(cls))
        if "timeout_s" in inspect.signature(getattr(cls, name)).parameters
    ]


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), float("inf"), "5", b"5", True, [5]], ids=repr)
async def test_what_is_no_time_is_refused(value: Any) -> None:
    for maker in (AsyncClient, Client):
        with pytest.raises(InvalidRequestError, match="timeout_s must be"):
            maker("127.0.0.1:1", timeout_s=value)
    with Client("127.0.0.1:1") as client:
        asynchronous = AsyncClient("127.0.0.1:1")
        made: dict[type, Any] = {
            AsyncClient: asynchronous,
            AsyncTurn: asynchronous.conversation().turn(),
            AsyncStream: asynchronous.stream(StreamConfig()),
            Client: client,
            Turn: client.conversation().turn(),
            Stream: client.stream(StreamConfig()),
        }
        for cls, name in takers_of_timeouts():
            arguments = [AUDIO] if name == "analyze" else []
            error = await failure(partial(finished, getattr(made[cls], name), *arguments, timeout_s=value))
            assert isinstance(error, InvalidRequestError)
            assert (error.field, "timeout_s must be" in str(error)) == ("timeout_s", True)


async def finished(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    result = call(*arguments, **options)
    return await result if inspect.isawaitable(result) else result


def test_timeouts_are_found() -> None:
    assert len(takers_of_timeouts()) >= 16


async def test_a_timeout_that_is_far_away_is_one(server: ServerProcess) -> None:
    async with AsyncClient(server.target, timeout_s=1e11) as client:
        await client.service_info()
        await client.wait_until_ready(1e11)
        async with client.conversation().turn() as turn:
            await turn.push(AUDIO)
            assert await turn.result(1e11)


async def test_a_server_that_accepts_nothing_is_told_from_one_that_is_absent(server: ServerProcess) -> None:
    async with AsyncClient(server.target, timeout_s=GIVEN_S) as client:
        await client.service_info()
        with frozen(server):
            with pytest.raises(DeadlineError, match=r"did not accept the (turn|stream) within 0\.3 s") as caught:
                await client.conversation().turn().open()
            assert caught.value.reason == "OPEN_TIMEOUT"
            with pytest.raises(DeadlineError, match=r"did not answer within 0\.3 s"):
                await client.service_info()
    async with AsyncClient("127.0.0.1:1", timeout_s=GIVEN_S, retry=PATIENT) as client:
        with pytest.raises(DeadlineError, match=r"within 0\.3 s: cannot reach 127\.0\.0\.1:1"):
            await client.conversation().turn().open()
