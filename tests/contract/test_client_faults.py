"""Clients that vanish, freeze, flood or send nothing at all, and a healthy stream beside them that must not notice."""

import asyncio
import os
import resource
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from kibun.bench.faults.proxy import Proxy
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support import ROOT
from tests.support.certificates import make_certificates
from tests.support.healthy import beside
from tests.support.http2 import PREFACE, fields, frame, pour, silent
from tests.support.processes import until
from tests.support.scraping import scrape, scrape_until
from tests.support.serving import (
    RunningServer,
    Talk,
    active,
    check_stream,
    chunks,
    config,
    connect,
    converse,
    encode,
    end_of_turn,
    environment,
    finals,
    none_active,
    of_kind,
    problem_of,
    serve,
    spoken,
    times_and_emotions,
)

SPEECH = chunks(encode(spoken(1.0)))
SMALL_WINDOW = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 16_384}
FEATURES = pb.AnalysisFeatures(interim_results=True, enable_voice_activity_events=True)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--max-streams", "1000", "--config-timeout", "1", "--slow-reader-timeout", "0.5") as running:
        yield running
        assert running.process.poll() is None
        log = running.log.read_text()
        for word in ("Traceback", "never retrieved", "never awaited", "a call failed"):
            assert word not in log


@asynccontextmanager
async def client(server_port: int, code: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A client in a separate process, once it has reported that it is ready; killed at the end."""
    program = f"""
import asyncio, sys
sys.path[:0] = {[str(ROOT)]!r}
from tests.support.serving import *
async def main():
    async with grpc.aio.insecure_channel("127.0.0.1:{server_port}") as channel:
        stub = rpc.SpeechAnalysisServiceStub(channel)
{code}
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=subprocess.PIPE, env=environment()
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# ---- clients that vanish

SPEAKS_AND_SLEEPS = """
        talks = [Talk(stub) for _ in range(6)]
        for talk in talks:
            await talk.send(config(features=pb.AnalysisFeatures(enable_voice_activity_events=True)),
                            *chunks(encode(spoken(1.0))))
        for talk in talks:
            await talk.until("speech_event", type=pb.SpeechEvent.TYPE_SPEECH_ACTIVITY_END)
        print("ready", flush=True)
        await asyncio.sleep(3600)
"""


async def test_what_a_killed_client_left_in_the_queue_is_dropped() -> None:
    """After the start the model takes a second per batch: six finals wait, one of them in the worker's hands."""
    with serve("--metrics-port", "0", model="stub?slots=1&hangs_after=0&hang_s=1") as server:
        async with connect(server) as stub, client(server.port, SPEAKS_AND_SLEEPS) as process:
            assert await active(stub) == 6
            done = (await asyncio.to_thread(scrape, server))("kibun_batch_jobs_sum")
            process.send_signal(signal.SIGKILL)
            await none_active(stub)
            assert len(finals(await converse(stub, [config(), *SPEECH]))) == 1
            found = await scrape_until(server, lambda found: found("kibun_queued_jobs") == 0)
            assert found("kibun_batch_jobs_sum") <= done + 2, "one job before it, not six"


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_call_that_was_given_up_stops_working_at_once(server: RunningServer, how: str) -> None:
    async with connect(server) as stub, Talk(stub, timeout=1.0 if how == "deadline" else None) as talk:
        await talk.send(config(features=FEATURES), *SPEECH, *SPEECH[:8])
        await talk.until("speech_event")
        if how == "cancel":
            talk.call.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await talk.rest()
        print(f"stopped after {1000 * await none_active(stub):.0f} ms")


SPEAKS_ON = """
        async with Talk(stub) as talk:
            await talk.send(config(), *chunks(encode(spoken(1.0))))
            await talk.until("speech_event")
            print("ready", flush=True)
            while True:
                await talk.send(*chunks(bytes(3200)))
                await asyncio.sleep(0.1)
"""


@pytest.mark.slow
async def test_frozen_and_cut_off_clients_are_gone_within_25_seconds() -> None:
    """No packet says that they have gone: one is stopped, the network of the other swallows everything."""
    with serve() as server:
        async with AsyncExitStack() as stack:
            stub = await stack.enter_async_context(connect(server))
            proxy = await stack.enter_async_context(Proxy(server.port))
            frozen = await stack.enter_async_context(client(server.port, SPEAKS_ON))
            await stack.enter_async_context(client(proxy.port, SPEAKS_ON))
            assert await active(stub) == 2
            frozen.send_signal(signal.SIGSTOP)
            proxy.stall()
            took_s = await none_active(stub, within_s=40)
            print(f"gone after {took_s:.1f} s")
            assert took_s < 27
            assert len(finals(await converse(stub, [config(), *SPEECH]))) == 1


# ---- clients that do not read


async def test_clients_that_never_read_cost_little_and_end_with_a_reason(server: RunningServer) -> None:
    async with beside(server) as healthy, connect(server, **SMALL_WINDOW) as stub, AsyncExitStack() as stack:
        _, before = server.threads_and_rss()
        unread = []
        for _ in range(20):
            unread.append(await stack.enter_async_context(Talk(stub)))
            await unread[-1].send(config(), *[end_of_turn() for _ in range(1_200)])
        await healthy.answered()
        await until(lambda: server.log.read_bytes().count(b"code=RESOURCE_EXHAUSTED") >= 20)
        _, after = server.threads_and_rss()
        print(f"{(after - before) / 20_000:.0f} kB a stream")
        assert after - before < 20 * 1_000_000
        found = await problem_of(unread[0].rest())
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")
        numbers = [response.sequence_number for response in unread[0].responses]
        assert numbers == list(range(len(numbers))), "nothing that was written is missing"


# ---- clients that send too much, or too little at a time


async def test_a_drip_of_single_bytes_is_the_audio_it_is() -> None:
    audio = encode(spoken(0.5, rate=8_000)[:6_400], "mulaw")
    with serve("--max-message-rate", "1e6") as server:
        async with connect(server) as stub:
            whole, drip = [
                await converse(
                    stub,
                    [config(rate=8_000, encoding=pb.AUDIO_ENCODING_MULAW, turn_id="t"), *chunks(audio, size)],
                )
                for size in (256 * 1024, 1)
            ]
    check_stream(drip)
    assert len(finals(whole)) == 1
    assert times_and_emotions(drip) == times_and_emotions(whole)
    assert of_kind(drip, "turn_result") == of_kind(whole, "turn_result")


FLOODS = """
        async def flood(content):
            async with Talk(stub) as talk:
                await talk.send(config())
                while True:
                    await talk.send(pb.StreamingAnalyzeRequest(audio_content=content))
        print("ready", flush=True)
        floods = (flood(content) for content in (b"", bytes(2), bytes(3200), bytes(262144), bytes(range(256)) * 100))
        await asyncio.gather(*floods, return_exceptions=True)
"""


async def test_a_flood_is_read_no_faster_than_allowed(server: RunningServer) -> None:
    async with beside(server) as healthy:
        _, before = server.threads_and_rss()
        async with client(server.port, FLOODS):
            used, began = processor_s(server), time.monotonic()
            await healthy.answered(5)
            used = (processor_s(server) - used) / (time.monotonic() - began)
            _, after = server.threads_and_rss()
        assert after - before < 60_000_000
    print(f"{used:.0%} of a core, +{(after - before) / 1e6:.0f} MB; beside it {healthy.p99_s:.3f} s at the 99th")
    async with connect(server) as stub:
        await none_active(stub)


def processor_s(server: RunningServer) -> float:
    """Processor time of the main process so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def open_and_cancel(stub: Stub, count: int) -> None:
    """Streams at every stage: nothing sent, config sent, started, speaking."""
    for number in range(count):
        async with Talk(stub) as talk:
            if number % 4:
                await talk.send(config(), *SPEECH[: number % 7])
            if number % 4 == 2:
                await talk.until("stream_started")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ten_thousand_cancelled_streams_leave_nothing() -> None:
    """The first thousands fill what is kept by design: allocators' pools, statistics, idle conversations."""
    with serve("--log-level", "WARNING") as server:
        async with connect(server) as stub:
            await open_and_cancel(stub, 10_000)
            threads, before = server.threads_and_rss()
            descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
            await open_and_cancel(stub, 10_000)
            await none_active(stub)
            after_threads, after = server.threads_and_rss()
            print(f"{(after - before) / 10_000:.0f} bytes a stream")
            assert after - before <= 10_000 * 200
            assert after_threads <= threads + 2
            assert len(os.listdir(f"/proc/{server.process.pid}/fd")) <= descriptors + 2


# ---- connections without a stream


def closed(sockets: list[socket.socket], count: int, within_s: float = 30.0) -> list[float]:
    """Seconds after which the server closed each, until it has closed `count` of them; then closes the others."""
    selector, began, seconds = selectors.DefaultSelector(), time.monotonic(), list[float]()
    for sock in sockets:
        selector.register(sock, selectors.EVENT_READ)
    while len(seconds) < count and time.monotonic() - began < within_s:
        for key, _ in selector.select(0.2):
            assert isinstance(key.fileobj, socket.socket)
            try:
                data = key.fileobj.recv(65_536)
            except ConnectionResetError:
                data = b""
            if not data:
                seconds.append(time.monotonic() - began)
                selector.unregister(key.fileobj)
                key.fileobj.close()
    for sock in sockets:
        sock.close()
    return seconds


@pytest.fixture(autouse=True)
def _many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))


@pytest.mark.slow
async def test_silent_connections_are_closed_and_disturb_no_other(tmp_path: Path) -> None:
    """500 with nothing, 500 that stop in the middle of a TLS handshake, and some that begin HTTP/2 and stop."""
    make_certificates(tmp_path)
    tls = ("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"))
    hello = client_hello()
    with serve() as server, serve(*tls) as secure:
        async with beside(server) as healthy:
            sockets = [*silent(server.port, 500), *silent(server.port, 50, PREFACE[:24])]
            sockets += [*silent(secure.port, 250), *silent(secure.port, 250, hello)]
            seconds = await asyncio.to_thread(closed, sockets, len(sockets))
            assert len(seconds) == len(sockets)
            assert max(seconds) < 10, "5 s where nothing else runs"
        print(f"closed after {max(seconds):.1f} s; beside them {healthy.p99_s:.3f} s at the 99th percentile")


def client_hello() -> bytes:
    """The first flight of a TLS client."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing)
    with suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


async def test_more_connections_than_allowed_are_closed_at_once() -> None:
    with serve("--max-connections", "30") as server:
        async with beside(server):
            sockets = silent(server.port, 60, PREFACE)
            assert len(await asyncio.to_thread(closed, sockets, 30)) >= 30, "by nothing else: they sent their preface"
        async with connect(server) as stub:
            assert await active(stub) == 0, "there is room again"


@pytest.mark.parametrize(
    "attack", ["rapid reset", *(pytest.param(a, marks=pytest.mark.slow) for a in ("ping", "settings", "half-open"))]
)
async def test_floods_of_http2_frames_hurt_no_other_client(server: RunningServer, attack: str) -> None:
    pings = b"".join(frame(6, 0, number.to_bytes(8, "big")) for number in range(5_000))
    payload = {
        "rapid reset": b"".join(
            frame(1, n, fields(), flags=4) + frame(3, n, (8).to_bytes(4, "big")) for n in range(1, 6_001, 2)
        ),
        "ping": pings,
        "settings": frame(4, 0) * 5_000,
        "half-open": b"".join(frame(1, n, fields(), flags=4) for n in range(1, 2_001, 2)),
    }[attack]
    _, before = server.threads_and_rss()
    done = threading.Event()
    sockets = silent(server.port, 3, PREFACE)
    async with beside(server) as healthy:
        pouring = asyncio.create_task(asyncio.to_thread(pour, sockets, payload, done))
        try:
            await healthy.answered(3)
        finally:
            done.set()
            await pouring
        for sock in sockets:
            sock.close()
        _, after = server.threads_and_rss()
        assert after - before < 60_000_000
    async with connect(server) as stub:
        await none_active(stub)
