"""What is fed to a turn: read to its end wherever that is expected, in a thread where it blocks, and closed."""

# A source fails somewhere within its block, so `raises` is put around blocks of several statements.
# ruff: noqa: PT012

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kibun.client import (
    AsyncClient,
    AsyncTurn,
    Client,
    DeadlineError,
    Event,
    InvalidRequestError,
    MisuseError,
    RetryPolicy,
    SourceError,
    StreamEnded,
    TurnResult,
    UnavailableError,
    UtteranceResult,
)
from kibun.client.source import READ_AHEAD
from tests.support.processes import outcome, until
from tests.support.scripted_service import SECOND, ScriptedService, noise, serving, serving_in_thread

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm

TENTH = SECOND // 10


class Source:
    """An iterable whose generator counts what it gave, and whether it was closed."""

    def __init__(self, chunks: int, pause_s: float = 0.0) -> None:
        self.chunks = chunks
        self.pause_s = pause_s
        self.given = 0
        self.closed = threading.Event()
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[bytes]:
        try:
            while self.given < self.chunks:
                self.threads.add(threading.get_ident())
                time.sleep(self.pause_s)
                self.given += 1
                yield noise(0.1, seed=self.given)
        finally:
            self.closed.set()


class AsyncSource(Source):
    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("an asynchronous source is read as one")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while self.given < self.chunks:
                self.threads.add(threading.get_ident())
                await asyncio.sleep(self.pause_s)
                self.given += 1
                yield noise(0.1, seed=self.given)
        finally:
            self.closed.set()


SOURCES = [Source, AsyncSource]


def all_of(chunks: int) -> bytes:
    return b"".join(noise(0.1, seed=number + 1) for number in range(chunks))


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
async def client(service: ScriptedService) -> AsyncIterator[AsyncClient]:
    async with serving(service) as target, AsyncClient(target) as client:
        yield client


@pytest.fixture
def sync_client(service: ScriptedService) -> Iterator[Client]:
    with serving_in_thread(service) as target, Client(target) as client:
        yield client


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("how", ["result", "wait_ended", "iteration", "leaving", "wait_fed"])
async def test_what_is_fed_is_read_to_its_end(
    client: AsyncClient, service: ScriptedService, kind: type[Source], end: bool, how: str
) -> None:
    source = kind(30, pause_s=0.005)
    async with asyncio.timeout(20), client.conversation().turn() as turn:
        turn.feed(source, end=end)
        if how == "result":
            assert (await turn.result()).utterance_count == 3
        elif how == "wait_ended":
            assert isinstance(await turn.wait_ended(), StreamEnded)
        elif how == "wait_fed":
            await turn.wait_fed()
            turn.end()
        elif how == "iteration" and end:
            assert sum(isinstance(event, UtteranceResult) for event in [event async for event in turn]) == 3
    assert service.connections[0].audio == all_of(30)
    assert source.closed.is_set()


@pytest.mark.parametrize("how", ["result", "wait_ended", "iteration", "leaving", "wait_fed"])
def test_the_same_without_asyncio(sync_client: Client, service: ScriptedService, how: str) -> None:
    source = Source(30, pause_s=0.005)

    def use() -> None:
        with sync_client.conversation().turn() as turn:
            turn.feed(source)
            if how == "result":
                assert turn.result().utterance_count == 3
            elif how == "wait_ended":
                assert isinstance(turn.wait_ended(), StreamEnded)
            elif how == "wait_fed":
                turn.wait_fed()
                turn.end()
            elif how == "iteration":
                assert sum(isinstance(event, UtteranceResult) for event in turn) == 3

    assert outcome(use) is None
    assert service.connections[0].audio == all_of(30)
    assert source.closed.is_set()


@pytest.mark.parametrize("kind", SOURCES)
async def test_leaving_the_loop_over_events_early_stops_the_source(
    client: AsyncClient, service: ScriptedService, kind: type[Source]
) -> None:
    """A microphone has no end: a robot that has heard enough leaves the loop, and the block."""
    source = kind(10**6, pause_s=0.001)
    async with asyncio.timeout(20), client.conversation().turn() as turn:
        turn.feed(source)
        async for event in turn:
            if isinstance(event, UtteranceResult):
                break
    assert turn.ended, "what was heard has its result"
    assert source.closed.is_set()
    assert service.connections[0].half_closed


async def test_a_loop_in_another_task_is_not_left(client: AsyncClient, service: ScriptedService) -> None:
    events: list[Any] = []

    async def listen(turn: Any) -> None:
        async for event in turn:
            events.append(event)
            await asyncio.sleep(0.01)

    async with asyncio.timeout(20), client.conversation().turn() as turn:
        listening = asyncio.create_task(listen(turn))
        await asyncio.sleep(0)
        turn.feed(Source(30, pause_s=0.005))
    await listening
    assert service.connections[0].audio == all_of(30)
    assert isinstance(events[-1], StreamEnded)


async def listen(events: AsyncIterator[Event], stop: type[Event] = UtteranceResult) -> None:
    async for event in events:
        if isinstance(event, stop):
            break


async def passed_on(turn: AsyncTurn) -> AsyncIterator[Event]:
    async for event in turn:
        yield event


@pytest.mark.parametrize("way", ["variable", "generator", "timeout", "cancelled", "finished"])
async def test_a_loop_that_was_left_is_left_whatever_keeps_its_iterator(client: AsyncClient, way: str) -> None:
    source = Source(10**6, pause_s=0.001)
    async with asyncio.timeout(20), client.conversation().turn() as turn:
        turn.feed(source)
        events = aiter(turn) if way == "variable" else passed_on(turn)
        if way == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await listen(events, StreamEnded)
        elif way == "cancelled":  # and not waited for
            listening = asyncio.create_task(listen(events, StreamEnded))
            await until(lambda: source.given > 3)
            listening.cancel()
        elif way == "finished":
            await asyncio.create_task(listen(events))
        else:
            await listen(events)
    assert source.closed.is_set()
    assert turn.ended


@pytest.mark.parametrize("way", ["loop", "variable", "thread"])
def test_leaving_the_loop_early_without_asyncio(sync_client: Client, way: str) -> None:
    source = Source(10**6, pause_s=0.001)

    def use() -> TurnResult:
        with sync_client.conversation().turn() as turn:
            turn.feed(source)
            events = iter(turn)

            def read() -> None:
                for event in turn if way == "loop" else events:
                    if isinstance(event, UtteranceResult):
                        break

            if way == "thread":
                thread = threading.Thread(target=read)
                thread.start()
                thread.join()
            else:
                if way == "loop":
                    del events
                read()
        return turn.result()

    assert outcome(use).utterance_count >= 1
    assert source.closed.is_set()


@pytest.mark.parametrize("kind", SOURCES)
async def test_a_source_without_an_end_can_be_stopped_and_waited_for(client: AsyncClient, kind: type[Source]) -> None:
    source = kind(10**6, pause_s=0.001)
    async with asyncio.timeout(20), client.conversation().turn() as turn:
        turn.feed(source)
        with pytest.raises(DeadlineError, match="source that is fed"):
            await turn.result(timeout_s=0.1)
        with pytest.raises(DeadlineError, match="source that is fed"):
            await turn.wait_fed(timeout_s=0.1)
        turn.end(stop_feed=True)
        assert (await turn.result()).end_reason == "client_end_of_turn"
    assert source.closed.is_set()


async def test_what_would_cut_or_mix_the_source_is_refused(client: AsyncClient, service: ScriptedService) -> None:
    async with asyncio.timeout(20), client.conversation().turn() as turn:
        turn.feed(Source(10, pause_s=0.01), end=False)
        for use in (turn.end, partial(turn.feed, [noise(1.0)])):
            with pytest.raises(MisuseError, match="wait_fed") as caught:
                use()
            assert caught.value.reason == "SOURCE_RUNNING"
        with pytest.raises(MisuseError, match="would mix"):
            await turn.push(noise(1.0))
        await turn.wait_fed()
        await turn.push(noise(0.1, seed=11))
        turn.feed([noise(0.1, seed=12)])
        await turn.result()
    assert service.connections[0].audio == all_of(12), "one after the other"


async def test_sources_that_block_wait_for_each_other_and_the_loop(client: AsyncClient) -> None:
    """Two microphones on one loop. Read in the loop, one would hold up the other, and everything else."""
    meeting = threading.Barrier(3)
    threads: set[int] = set()

    def microphone() -> Iterator[bytes]:
        for number in range(10):
            meeting.wait(20)
            threads.add(threading.get_ident())
            yield noise(0.1, seed=number)

    async def hear() -> int:
        async with client.conversation().turn() as turn:
            turn.feed(microphone())
            return (await turn.result()).utterance_count

    async def beat() -> None:
        for _ in range(10):
            await until(lambda: meeting.n_waiting == 2)
            meeting.wait(20)

    async with asyncio.timeout(60):
        first, second, _ = await asyncio.gather(hear(), hear(), beat())
    assert (first, second) == (1, 1)
    assert len(threads - {threading.get_ident()}) == len(threads) == 2


def test_a_source_sees_the_context_of_its_caller(sync_client: Client) -> None:
    place = contextvars.ContextVar("place", default="nowhere")
    seen_there: list[str] = []

    def source() -> Iterator[bytes]:
        seen_there.append(place.get())
        yield noise(0.1)

    place.set("here")
    with sync_client.conversation().turn() as turn:
        turn.feed(source())
        turn.result()
    assert seen_there == ["here"]


async def test_an_asynchronous_source_is_read_in_the_loop(client: AsyncClient) -> None:
    source = AsyncSource(5)
    async with client.conversation().turn() as turn:
        turn.feed(source)
        await turn.result()
    assert source.threads == {threading.get_ident()}


async def test_a_source_is_read_no_further_ahead_than_the_network_takes(
    client: AsyncClient, service: ScriptedService
) -> None:
    service.read_delay_s = 60.0
    source = Source(10**6)
    async with asyncio.timeout(20), client.conversation().turn() as turn:
        turn.feed(source)
        given = -1
        while given != source.given:
            given = source.given
            await asyncio.sleep(0.3)
        sent = turn._engine._buffer._middle // TENTH
        assert source.given <= sent + 20 + READ_AHEAD + 2, "two seconds that wait, and what the thread has in hand"
        await turn.cancel()
    assert source.closed.wait(20)


class Stop(Exception):
    """An exception of a caller's own."""


# What a source may raise, and what its reader gets to see.
ENDS: list[tuple[Callable[[], BaseException], type[BaseException]]] = [
    (lambda: Stop("unplugged"), Stop),
    (lambda: SystemExit(3), SystemExit),
    (KeyboardInterrupt, KeyboardInterrupt),
    (asyncio.CancelledError, SourceError),
    (GeneratorExit, SourceError),
    (StopAsyncIteration, RuntimeError),
    (lambda: TimeoutError("no sound"), TimeoutError),
    (lambda: UnavailableError("from elsewhere"), UnavailableError),
]


class Raising(Iterator[bytes]):
    """Not a generator, which would turn some exceptions into others."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self._given = False

    def __next__(self) -> bytes:
        if self._given:
            raise self._error
        self._given = True
        return noise(0.2)


def raising(error: BaseException) -> Iterator[bytes]:
    yield noise(0.2)
    raise error


async def raising_later(error: BaseException) -> AsyncIterator[bytes]:
    yield noise(0.2)
    raise error


class Unready(AsyncIterator[bytes]):
    """Fails before the first piece is asked for."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __aiter__(self) -> "Unready":
        raise self._error

    async def __anext__(self) -> bytes:
        raise NotImplementedError


def failing(error: BaseException) -> list[Callable[[BaseException], Any]]:
    """Sources that end in `error`."""
    sources: list[Callable[[BaseException], Any]] = [raising, raising_later, Raising]
    if not isinstance(error, StopAsyncIteration):  # there it only says that there is nothing to read
        sources.append(Unready)
    return sources


def seen(error: Any, expected: type[BaseException], raised: BaseException) -> None:
    """`error` is what was raised; what cannot be passed on is its cause."""
    if isinstance(raised, StopAsyncIteration):  # a generator makes a RuntimeError of it, others a SourceError
        assert isinstance(error, RuntimeError | SourceError)
    else:
        assert type(error) is expected
    assert error is raised or error.__cause__ is raised


@pytest.mark.parametrize(("make", "expected"), ENDS)
def test_every_exception_of_a_source_ends_the_turn(
    sync_client: Client, make: Callable[[], BaseException], expected: type[BaseException]
) -> None:
    raised = make()

    def use(source: Callable[[BaseException], Any], how: str) -> None:
        with sync_client.conversation().turn() as turn:
            turn.feed(source(raised))
            if how == "iteration":
                list(turn)
            elif how == "result":
                turn.result()

    for source in failing(raised):
        for how in ("iteration", "result", "leaving"):
            seen(outcome(partial(use, source, how)), expected, raised)
    assert outcome(sync_client.conversation().turn().open).turn_id, "the client is as good as before"


@pytest.mark.parametrize(("make", "expected"), ENDS)
def test_the_same_with_asyncio(
    service: ScriptedService, make: Callable[[], BaseException], expected: type[BaseException]
) -> None:
    raised = make()

    async def use(source: Callable[[BaseException], Any]) -> None:
        async with serving(service) as target, AsyncClient(target) as client, client.conversation().turn() as turn:
            turn.feed(source(raised))
            async for _ in turn:
                pass

    def run(source: Callable[[BaseException], Any]) -> None:
        asyncio.run(use(source))

    for source in failing(raised):
        seen(outcome(partial(run, source)), expected, raised)


@pytest.mark.parametrize(
    "chunk",
    [None, "RIFF", [0, 1], 3, 0.5, np.zeros(10), np.zeros((10, 2), np.int16), np.zeros(10, np.int32), np.int16(3)],
    ids=repr,
)
async def test_a_source_of_what_is_no_audio_is_named(client: AsyncClient, chunk: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        async with asyncio.timeout(20), client.conversation().turn() as turn:
            turn.feed([noise(0.1), chunk])
            async for _ in turn:
                pass
    assert caught.value.reason == "AUDIO_TYPE_MISMATCH"
    assert caught.value.field == "audio_content"


@pytest.mark.parametrize(
    ("source", "fix"),
    [
        (b"\0\0", r"goes to push\(\)"),
        ("speech.wav", r"audio=AudioFile\(path\)"),
        (Path("speech.wav"), r"audio=AudioFile\(path\)"),
        (np.zeros(16000, np.int16), r"goes to push\(\)"),
        (None, "a generator"),
        (3, "a generator"),
        (bytes, r"iter\(function, b''\)"),
    ],
    ids=repr,
)
async def test_what_is_no_source_is_refused_at_once(client: AsyncClient, source: Any, fix: str) -> None:
    async with client.conversation().turn() as turn:
        with pytest.raises(InvalidRequestError, match=fix):
            turn.feed(source)
        await turn.push(noise(0.1))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("how", ["cancel", "exception", "client"])
async def test_a_source_is_closed_however_the_turn_ends(service: ScriptedService, kind: type[Source], how: str) -> None:
    source = kind(10**6, pause_s=0.005)
    async with asyncio.timeout(20), serving(service) as target:
        client = AsyncClient(target)
        with pytest.raises((ZeroDivisionError, MisuseError)):
            async with client.conversation().turn() as turn:
                turn.feed(source)
                await until(lambda: source.given > 3)
                if how == "cancel":
                    await turn.cancel()
                elif how == "client":
                    await client.close()
                    await turn.result()
                _ = 1 / 0
        assert source.closed.is_set()
        await client.close()


async def test_a_source_that_blocks_for_ever_holds_nothing_up(client: AsyncClient) -> None:
    release = threading.Event()

    def stuck() -> Iterator[bytes]:
        yield noise(0.1)
        release.wait(60)

    try:
        async with asyncio.timeout(20):
            with pytest.raises(ZeroDivisionError):
                async with client.conversation().turn() as turn:
                    turn.feed(stuck())
                    with pytest.raises(DeadlineError):
                        await turn.result(timeout_s=0.1)
                    _ = 1 / 0
            async with client.conversation().turn() as turn:
                turn.feed(stuck())
                await anext(turn)
                turn.end(stop_feed=True)
                assert isinstance(await turn.result(), TurnResult)
    finally:
        release.set()


async def test_a_lost_connection_is_told_while_the_source_blocks(service: ScriptedService) -> None:
    release = threading.Event()

    def stuck() -> Iterator[bytes]:
        yield noise(0.1)
        release.wait(60)

    service.fault = lambda number, connection: "lose" if connection.audio else None
    try:
        async with (
            asyncio.timeout(20),
            serving(service) as target,
            AsyncClient(target, retry=RetryPolicy(max_attempts=1)) as client,
        ):
            with pytest.raises(UnavailableError):
                async with client.conversation().turn() as turn:
                    turn.feed(stuck())
                    await turn.result()
    finally:
        release.set()


async def test_a_feed_goes_on_over_a_lost_connection(service: ScriptedService) -> None:
    service.fault = lambda number, c: "lose" if number == 1 and len(c.audio) >= 1.5 * SECOND else None
    async with (
        serving(service) as target,
        AsyncClient(target, retry=RetryPolicy(initial_backoff_s=0.01)) as client,
        client.conversation().turn() as turn,
    ):
        turn.feed(Source(30))
        assert isinstance(await turn.result(), TurnResult)
        finals = [event.start_s for event in [event async for event in turn] if isinstance(event, UtteranceResult)]
    assert finals == [0.0, 1.0, 2.0]
    assert service.connections[1].audio == all_of(30)[SECOND:]


def test_sources_of_all_kinds_are_read(sync_client: Client, service: ScriptedService) -> None:
    array = np.frombuffer(all_of(10), np.int16)
    kinds: list[Iterable[Pcm]] = [
        [all_of(10)],
        (all_of(10),),
        iter([all_of(5), all_of(10)[5 * TENTH :]]),
        np.array_split(array, 7),
        iter(iter([all_of(10), b""]).__next__, b""),
        map(bytes, [all_of(10)]),
        [all_of(10)[:1], all_of(10)[1:]],
        [bytearray(all_of(10)), b"", memoryview(b"")],
    ]
    for kind in kinds:
        with sync_client.conversation().turn() as turn:
            turn.feed(kind)
            turn.result()
        assert service.connections[-1].audio == all_of(10)
