"""A log that is closed, full, or not read: the server serves as ever, and counts what it could not write."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kibun.bench.faults.servers import free_port
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.processes import until
from tests.support.scraping import Scrape, fetch
from tests.support.serving import (
    RunningServer,
    check_stream,
    chunks,
    config,
    connect,
    converse,
    encode,
    serve,
    spoken,
    times_and_emotions,
    workers_of,
)

SPEECH = chunks(encode(spoken(1.0)))
SMALL_PIPE = 4096
CALLS = 80  # make more lines than a small pipe holds
TOKENS = {f"token-{n}": hashlib.sha256(f"token-{n}".encode()).hexdigest() for n in range(2)}
OLD, NEW = ({"authorization": f"Bearer {token}"} for token in TOKENS)


class Reader:
    """Of a named pipe, which holds little."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.open()

    def open(self) -> None:
        self._end = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, SMALL_PIPE)

    def read(self) -> bytes:
        """All that is there now."""
        content = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._end, 1 << 16):
                content += piece
        return content

    def close(self) -> None:
        os.close(self._end)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path / "pipe")
    yield reader
    reader.close()


class Watched:
    """A server with tokens, whose metrics port is known without its log."""

    def __init__(self, folder: Path) -> None:
        self._tokens = folder / "tokens"
        self._metrics_port = free_port()
        self.revoke("token-1")

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--token-file", str(self._tokens), "--metrics-port", str(self._metrics_port))

    def revoke(self, token: str) -> None:
        self._tokens.write_text("".join(f"acme {digest}\n" for name, digest in TOKENS.items() if name != token))

    @property
    def lost(self) -> float:
        return Scrape(fetch(f"http://127.0.0.1:{self._metrics_port}/metrics")[1])("kibun_log_lines_lost_total")


async def speak(stub: Stub, metadata: dict[str, str] = OLD) -> list[tuple[float, ...]]:
    responses = await asyncio.wait_for(converse(stub, [config(), *SPEECH], metadata=metadata), 30)
    check_stream(responses)
    return times_and_emotions(responses)


async def ask(stub: Stub, metadata: dict[str, str], answer: str) -> None:
    """Makes a call that fails, which is a line of the log."""
    request = pb.GetConversationRequest(conversation_id="unknown")
    with pytest.raises(grpc.aio.AioRpcError, match=answer):
        await stub.GetConversation(request, metadata=tuple(metadata.items()), timeout=10)


async def talk_a_lot(stub: Stub, metadata: dict[str, str]) -> None:
    for _ in range(CALLS):
        await ask(stub, metadata, "no such conversation")


async def check_that_it_lives(server: RunningServer, stub: Stub, watched: Watched) -> None:
    """It analyses, replaces a worker that dies, and takes another file of tokens."""
    before = await speak(stub)
    assert len(before) == 1
    (worker,) = workers_of(server)
    os.kill(worker, signal.SIGKILL)
    assert await speak(stub) == before
    assert worker not in workers_of(server)

    watched.revoke("token-0")
    server.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                assert await speak(stub, NEW) == before
                break
            await asyncio.sleep(0.02)
    await ask(stub, OLD, "token")


def check_that_it_stops(server: RunningServer) -> None:
    server.terminate()
    assert server.wait() == 0


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "<&- >&- 2>&-", ">/dev/full 2>&1"])
async def test_a_log_that_cannot_be_written(redirect: str, tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    with serve(*watched.arguments, redirect=redirect) as server:
        async with connect(server) as stub:
            await check_that_it_lives(server, stub, watched)
        assert watched.lost >= 5
        for process in (server.process.pid, *workers_of(server)):
            streams = [os.readlink(f"/proc/{process}/fd/{number}") for number in range(3)]
            assert all(stream.startswith(("/dev/", "pipe:")) for stream in streams), "no connection and no file"
        check_that_it_stops(server)


async def test_a_log_whose_reader_ends_and_comes_back(reader: Reader, tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    with serve(*watched.arguments, redirect=f"2>{reader.path}") as server:
        await until(lambda: b"serving on" in reader.read())
        reader.close()
        async with connect(server) as stub:
            await check_that_it_lives(server, stub, watched)
            lost = watched.lost
            assert lost >= 5
            reader.open()
            await ask(stub, OLD, "token")
        log = b""

        def told() -> bool:
            nonlocal log
            log += reader.read()
            return b"kibun: %d lines of this log could not be written\n" % lost in log

        await until(told)
        check_that_it_stops(server)


async def test_a_log_whose_reader_stands_still(reader: Reader, tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    with serve(*watched.arguments, redirect=f"2>{reader.path}") as server:
        async with connect(server) as stub:
            await talk_a_lot(stub, OLD)
            await check_that_it_lives(server, stub, watched)
            assert watched.lost == 0, "it waits for its reader"
            log = b""

            def arrived() -> bool:
                nonlocal log
                log += reader.read()
                return b"reloaded 1 tokens" in log

            await until(arrived)
            assert log.count(b"CONVERSATION_NOT_FOUND") == CALLS, "nothing is lost"
            await talk_a_lot(stub, NEW)
        check_that_it_stops(server)
