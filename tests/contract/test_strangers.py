"""Peers without a valid token, or without manners: their connections are cut, and who is served beside them is not."""

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from kibun.v1 import speech_analysis_pb2 as pb
from tests.support.healthy import Healthy, beside
from tests.support.http2 import CHECK, END_STREAM, PREFACE, bomb, call, fields, frame, pour, settings, silent
from tests.support.scraping import scrape
from tests.support.serving import (
    RunningServer,
    chunks,
    config,
    connect,
    converse,
    encode,
    health_of,
    problem_of,
    serve,
    spoken,
    times_and_emotions,
)

Code = grpc.StatusCode
GOOD = {"authorization": "Bearer good"}
INFO = pb.GetServiceInfoRequest()
WINDOW_OF_NOTHING = PREFACE + settings(initial_window_size=0)
EMPTY_MESSAGE = bytes(5)
WRONG = (("authorization", "Bearer guess"),)
SPEECH = chunks(encode(spoken(4.0)), 4_096)
# Its event loop stands still before it looks at a connection; gRPC's own threads go on taking what clients send.
BUSY = """
import sys, time
from kibun.server.api import service
from kibun.server.api.sockets import Sockets
service.MAX_LATE_S = 60  # or an event loop that is this late would admit only the first stream
look, received = Sockets._look, Sockets.bytes_received
def slow_look(self):
    time.sleep(1.0)
    look(self)
async def told(self, peer):
    number = await received(self, peer)
    print("received", number, file=sys.stderr)
    return number
Sockets._look, Sockets.bytes_received = slow_look, told
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Asks for tokens, also of another tenant's."""
    tokens = tmp_path_factory.mktemp("strangers") / "tokens"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("good", "other")}
    tokens.write_text(f"acme {digests['good']}\numbrella {digests['other']}\n")
    with serve("--token-file", str(tokens), "--metrics-port", "0") as running:
        yield running
        assert running.process.poll() is None
        log = running.log.read_text()
        for word in ("Traceback", "never retrieved", "never awaited", "a call failed"):
            assert word not in log


def connections_cut(server: RunningServer, reason: str) -> float:
    return scrape(server)("kibun_connections_cut_total", reason=reason)


@asynccontextmanager
async def attacked(
    server: RunningServer, connections: int, first: bytes, then: bytes, *, memory_bytes: float
) -> AsyncIterator[Healthy]:
    """All connections have been closed by the server when this ends, and it has not needed more memory than that."""
    sockets = silent(server.port, connections, first)
    done = threading.Event()
    _, before = server.threads_and_rss()
    server.peak_rss()
    try:
        async with beside(server, GOOD) as healthy, asyncio.timeout(60):
            pouring = asyncio.create_task(asyncio.to_thread(pour, sockets, then, done))
            try:
                yield healthy
                await healthy.answered(2)
                assert await pouring == connections, "all were cut"
            finally:
                done.set()
    finally:
        for sock in sockets:
            sock.close()
    more = server.peak_rss() - before
    print(f"{connections} connections: +{more / 1e6:.0f} MB at most; beside them at most {max(healthy.took_s):.2f} s")
    assert more < memory_bytes


# ---- far too much metadata


@pytest.mark.parametrize("connections", [1, 5])
async def test_python_objects_are_made_of_no_more_than_one_call_of_a_bomb(
    server: RunningServer, connections: int
) -> None:
    """The gate, which counts its refusals, sees one of 19 that wait for the same look at their connection's bytes.

    For that one the connection is cut, before any other is looked at, and they are dropped.
    """

    def refusals() -> float:
        return scrape(server)(
            "kibun_calls_ended_total", method="StreamingAnalyze", code="INVALID_ARGUMENT", reason="METADATA_TOO_LARGE"
        )

    refused, cut = refusals(), connections_cut(server, "METADATA_TOO_LARGE")
    async with attacked(server, connections, PREFACE, bomb(20, 10_000, 0), memory_bytes=300e6):
        pass
    assert connections_cut(server, "METADATA_TOO_LARGE") == cut + connections
    assert refusals() == refused + connections


@pytest.mark.parametrize(
    ("entries", "entry_bytes"), [(4_000, 3_000), pytest.param(400_000, 0, marks=pytest.mark.slow)], ids=["long", "many"]
)
async def test_a_bomb_of_metadata_ends_its_connection(server: RunningServer, entries: int, entry_bytes: int) -> None:
    """2 MB on each connection that stand for 6 GB, or for 65 MB in two million entries."""
    before = connections_cut(server, "METADATA_TOO_LARGE")
    data = bomb(2_000_000 // entries, entries, entry_bytes)
    async with attacked(server, 3, PREFACE, data, memory_bytes=400e6 if entry_bytes else 1.5e9):
        pass
    assert connections_cut(server, "METADATA_TOO_LARGE") == before + 3


async def test_where_nobody_needs_a_token_bombs_end_as_well() -> None:
    with serve() as server:
        async with attacked(
            server, 3, PREFACE + call(1, fields(CHECK), end=True), bomb(500, 4_000, 3_000), memory_bytes=400e6
        ):
            pass


async def test_a_client_that_opens_many_streams_at_once_is_not_cut(tmp_path: Path) -> None:
    """On a busy server, which looks at the first of them when all have sent what HTTP/2 lets them send unread."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"acme {hashlib.sha256(b'good').hexdigest()}\n")
    with serve("--token-file", str(tokens), "--metrics-port", "0", prelude=BUSY) as server:
        async with connect(server) as stub:
            alone = times_and_emotions(await converse(stub, [config(), *SPEECH], metadata=GOOD))
        async with connect(server, **{"grpc.use_local_subchannel_pool": 1}) as stub:  # a connection of its own
            streams = [converse(stub, [config(), *SPEECH], metadata=GOOD) for _ in range(24)]
            assert [times_and_emotions(responses) for responses in await asyncio.gather(*streams)] == 24 * [alone]
        assert connections_cut(server, "METADATA_TOO_LARGE") == 0
        received = [int(number) for number in re.findall(r"^received (\d+)$", server.log.read_text(), re.MULTILINE)]
        assert max(received) > 4 * 65_536, "what was once too much"


# ---- calls without a token


async def test_health_checks_that_do_not_read_end_their_connection(server: RunningServer) -> None:
    """512 on each connection, none of which can be answered; the server has room for other checks."""
    checks = b"".join(call(n, fields(CHECK)) + frame(0, n, EMPTY_MESSAGE, flags=END_STREAM) for n in range(1, 1_025, 2))
    before = connections_cut(server, "TOO_MANY_CALLS")
    async with attacked(server, 2, WINDOW_OF_NOTHING, checks, memory_bytes=60e6):
        assert await health_of(server) == 1
    assert connections_cut(server, "TOO_MANY_CALLS") == before + 2


async def test_refusals_come_more_slowly_after_a_few_and_others_are_not_held_up(server: RunningServer) -> None:
    """All come from one address, as robots behind a router do."""
    async with connect(server) as guesser, connect(server) as honest:

        async def guess() -> str:
            return (await problem_of(guesser.GetServiceInfo(INFO, metadata=WRONG))).reason

        for _ in range(12):
            assert await guess() == "UNAUTHENTICATED"
        began = time.monotonic()
        guesses = [asyncio.create_task(guess()) for _ in range(20)]
        for _ in range(50):
            await honest.GetServiceInfo(INFO, metadata=tuple(GOOD.items()))
        assert not all(guess.done() for guess in guesses)
        assert set(await asyncio.gather(*guesses)) == {"UNAUTHENTICATED"}
        assert time.monotonic() - began > 0.9


async def test_many_guesses_at_a_time_end_their_connection(server: RunningServer) -> None:
    guesses = b"".join(call(n, fields(authorization="Bearer guess")) for n in range(1, 401, 2))
    async with attacked(server, 2, PREFACE, guesses, memory_bytes=60e6):
        pass


async def test_a_connection_that_showed_a_valid_token_is_not_cut_for_who_shares_it(
    server: RunningServer,
) -> None:
    """A proxy's: who guesses behind it must not end the streams of those who need not."""
    async with connect(server) as proxy:
        await proxy.GetServiceInfo(INFO, metadata=tuple(GOOD.items()))
        guesses = [problem_of(proxy.GetServiceInfo(INFO, metadata=WRONG)) for _ in range(100)]
        reasons = [problem.reason for problem in await asyncio.gather(*guesses)]
        assert set(reasons) == {"UNAUTHENTICATED", "TOO_MANY_CALLS"}
        await proxy.GetServiceInfo(INFO, metadata=tuple(GOOD.items()))


async def test_two_tokens_are_none(server: RunningServer) -> None:
    async with connect(server) as stub:
        for tokens in (("good", "other"), ("other", "good"), ("good", "good")):
            metadata = tuple(("authorization", f"Bearer {token}") for token in tokens)
            problem = await problem_of(stub.GetServiceInfo(INFO, metadata=metadata))
            assert (problem.code, problem.reason) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert "send one" in problem.message
