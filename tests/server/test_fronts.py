"""Several fronts on one port: who gets what, and what happens when one of them, or all, end."""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from kibun.bench.faults.servers import free_port
from kibun.bench.support.child import children
from kibun.client import AsyncClient, StreamStarted, UtteranceResult
from kibun.server.api.service import ServiceLimits
from kibun.server.errors import StartError
from kibun.server.fronts import _Front, reserved_port
from kibun.server.inference.worker_protocol import LoadOptions
from kibun.server.observability.exporter import Exporter
from kibun.server.observability.joined import JoinedMetrics
from kibun.server.observability.metrics import Metrics
from kibun.server.settings import Settings
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.processes import exists, until
from tests.support.redis_server import OwnRedis, own_redis
from tests.support.scraping import Scrape, fetch, scrape, scrape_until, site
from tests.support.serving import (
    RunningServer,
    Talk,
    chunks,
    command,
    encode,
    environment,
    finals,
    of_kind,
    problem_of,
    serve,
    spoken,
)

FRONTS = ("0", "1")
OWN_CONNECTION = {"grpc.use_local_subchannel_pool": 1}
SOON = "from kibun.server import fronts; fronts.MUTE_S = 0.5"  # a front that is frozen is noticed


# ---- what is refused, and what each gets


def settings(**changes: object) -> Settings:
    return Settings(models=("m",), **{"fronts": 4, "store": "redis://127.0.0.1", **changes})  # type: ignore[arg-type]


async def test_what_a_library_prints_in_a_front_does_not_end_the_watch_over_it() -> None:
    front = _Front(0, settings(), asyncio.Event())
    process = await asyncio.create_subprocess_exec(
        "printf", r'hello\n[1]\n{"serving": true, "metrics_port": 7, "error": null}\n', stdout=asyncio.subprocess.PIPE
    )
    await front._hear(process)
    assert await process.wait() == 0
    assert front.status.metrics_port == 7
    assert front.has_served.is_set()


def test_combinations_that_cannot_work_are_refused() -> None:
    for changes, words in (
        ({"store": "memory"}, ("--fronts 4 needs --store redis://",)),
        ({"threads": 3}, ("--threads 3", "4 fronts")),
        ({"limits": ServiceLimits(max_streams=2)}, ("--max-streams 2", "4 fronts")),
    ):
        with pytest.raises(StartError) as caught:
            settings(**changes)
        assert all(word in str(caught.value) for word in words)
    assert settings(fronts=1, store="memory", threads=1).share(3) == 3


def test_the_machine_is_shared_out() -> None:
    assert settings().share(256) == 64
    assert settings().share(9) == 3, "rounded up: together they may have what was asked for"
    alone = LoadOptions("m:f", ("m",))
    assert [alone.own_threads(8), replace(alone, threads=3).own_threads(8)] == [8, 3]
    shared = replace(alone, sharing=4)
    assert [shared.own_threads(10), replace(shared, threads=9).own_threads(10), shared.own_threads(2)] == [2, 2, 1]


def test_a_port_is_reserved_against_all_but_fronts() -> None:
    """Also against other servers with fronts, which would take a share of its connections unnoticed."""
    with reserved_port("localhost", 0) as port:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(StartError, match="the port may be taken"), reserved_port(host, port):
                pass
        with socket.socket() as plain, pytest.raises(OSError, match="in use"):
            plain.bind(("127.0.0.1", port))
        with socket.socket() as front:
            front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            front.bind(("127.0.0.1", port))
            front.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                front.settimeout(5)
                front.accept()[0].close()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartError), reserved_port("127.0.0.1", other.getsockname()[1]):
            pass
    with pytest.raises(StartError, match="cannot listen on 203"), reserved_port("203.0.113.7", 0):
        pass


def test_metrics_of_all_fronts_are_one_page() -> None:
    def exporter(streams: int, reason: str) -> Exporter:
        metrics = Metrics()
        metrics.open_streams.set(streams)
        metrics.ready.set(1)
        metrics.call_refused(reason)
        metrics.final_latency.observe(0.02)
        return Exporter(metrics.registry, ready=lambda: True, alive=lambda: True)

    fronts = [exporter(3, "OVERLOADED"), exporter(4, "LOADING")]
    ports: dict[int, int | None] = {number: front.open("127.0.0.1", 0) for number, front in enumerate(fronts)}
    whole = Exporter(JoinedMetrics(lambda: ports).registry, ready=lambda: True, alive=lambda: True)
    port = whole.open("127.0.0.1", 0)
    try:
        found = Scrape(fetch(f"http://127.0.0.1:{port}/metrics")[1])
        assert (found("kibun_open_streams"), found("kibun_open_streams", front="1")) == (7, 4)
        assert found("kibun_refusals_total") == found("kibun_refusals_total", reason="LOADING", front="1") + 1 == 2
        assert found("kibun_final_latency_seconds_bucket", le="0.025") == 2
        assert len([family for family in found.families if family.name == "kibun_open_streams"]) == 1
        assert all(sample.labels["front"] in FRONTS for sample in found.samples)
        fronts[1].close()
        stop_in_between = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=answer_in_part, args=(stop_in_between,), daemon=True).start()
        ports |= {2: None, 3: stop_in_between.getsockname()[1]}
        found = Scrape(fetch(f"http://127.0.0.1:{port}/metrics")[1])
        assert [found("kibun_ready", front=front) for front in "0123"] == [1, 0, 0, 0]
        assert found("kibun_open_streams") == 3
    finally:
        for each in (*fronts, whole):
            each.close()


def answer_in_part(listening: socket.socket) -> None:
    """As a process does that is killed while it answers."""
    with listening, listening.accept()[0] as connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nkibun_open_streams 3\n")


def test_what_keeps_fronts_from_starting_is_said_once() -> None:
    arguments = ("--port", "0", "--fronts", "2", "--store", f"redis://127.0.0.1:{free_port()}")
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("no Redis or Valkey answers at") == 1
    assert "Traceback" not in done.stderr


def test_a_taken_port_of_metrics_ends_it_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ("--port", "0", "--fronts", "2", "--store", "redis://127.0.0.1", "--metrics-port", port)
        done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"--metrics-port {port}: cannot listen" in done.stderr


# ---- a server with two


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    pytest.importorskip("redis", reason="needs the extra redis")
    with own_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def server(redis: OwnRedis) -> Iterator[RunningServer]:
    arguments = ("--fronts", "2", "--store", redis.url, "--metrics-port", "0", "--watchdog-exit", "3")
    with serve(*arguments, prelude=SOON) as server:
        yield server
        fronts = children(server.process.pid)
        assert len(fronts) == 2
        assert server.process.poll() is None
    asyncio.run(until(lambda: not any(map(exists, fronts))))  # their supervisor was killed


def streams(found: Scrape) -> dict[str, float]:
    """Open ones by front."""
    return {front: found("kibun_open_streams", front=front) for front in FRONTS}


@asynccontextmanager
async def one_on_each(server: RunningServer) -> AsyncIterator[dict[str, Stub]]:
    """A connection to each front. The kernel chooses, so connections are opened until both have been reached."""
    reached: dict[str, Stub] = {}
    async with AsyncExitStack() as stack:
        for _ in range(40):
            channel = grpc.aio.insecure_channel(server.target, options=list(OWN_CONNECTION.items()))
            stub = Stub(await stack.enter_async_context(channel))
            async with Talk(stub) as talk:
                await talk.start()
                found = await scrape_until(server, lambda found: sum(streams(found).values()) == 1)
                await talk.finish()
            await scrape_until(server, lambda found: sum(streams(found).values()) == 0)
            reached[next(front for front, count in streams(found).items() if count)] = stub
            if len(reached) == 2:
                break
        assert sorted(reached) == list(FRONTS), "the kernel spreads connections"
        yield reached


async def test_a_conversation_goes_on_at_another_front(server: RunningServer) -> None:
    async with one_on_each(server) as stubs:
        for number, front in enumerate((*FRONTS, *FRONTS)):
            async with Talk(stubs[front]) as talk:
                started = await talk.start(conversation_id="c", participant_id="p", turn_id=f"t{number}")
                assert started.prior_utterance_count == number
                await talk.send(*chunks(encode(spoken(0.8, seed=number))))
                assert len(finals(await talk.finish())) == 1


async def test_a_turn_opened_again_at_another_front_ends_the_older_stream(server: RunningServer) -> None:
    """At its next final, as across servers."""
    async with one_on_each(server) as stubs, Talk(stubs["0"]) as older, Talk(stubs["1"]) as newer:
        ids = {"conversation_id": "s", "participant_id": "p", "turn_id": "t"}
        await older.start(**ids)
        await newer.start(**ids)
        await older.send(*chunks(encode(spoken(0.8))))
        problem = await problem_of(older.rest())
        assert (problem.code, problem.reason) == (grpc.StatusCode.ABORTED, "SUPERSEDED")
        await newer.send(*chunks(encode(spoken(0.8))))
        assert len(finals(await newer.finish())) == 1


async def test_all_streams_of_a_connection_are_one_fronts(server: RunningServer) -> None:
    async with one_on_each(server) as stubs, AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(Talk(stubs["1"])) for _ in range(5)]
        for talk in talks:
            await talk.start()
        assert streams(await asyncio.to_thread(scrape, server)) == {"0": 0, "1": 5}


@dataclass
class Heard:
    """What an SDK's client got for one turn."""

    reconnects: int = 0
    finals: list[UtteranceResult] = field(default_factory=list)


async def speak(client: AsyncClient, audio: np.ndarray, killing: asyncio.Event, ready: asyncio.Semaphore) -> Heard:
    """Half of the audio, then, once a front is being killed, the rest."""
    heard = Heard()
    async with client.conversation().turn() as turn:

        async def listen() -> None:
            async for event in turn:
                if isinstance(event, StreamStarted):
                    heard.reconnects = event.reconnects
                elif isinstance(event, UtteranceResult) and event.is_final:
                    heard.finals.append(event)

        listening = asyncio.create_task(listen())
        half = len(audio) // 2
        await turn.push(audio[:half])
        while not heard.finals:  # noqa: ASYNC110 - an open stream, in the middle of its turn
            await asyncio.sleep(0.02)
        ready.release()
        await killing.wait()
        for begin in range(half, len(audio), 3200):
            await turn.push(audio[begin : begin + 3200])
            await asyncio.sleep(0.02)
        turn.end()
        await turn.result()
        await listening
    return heard


async def test_a_front_that_is_killed_loses_nothing_and_is_started_again(server: RunningServer) -> None:
    audio = (np.concatenate([spoken(0.9, seed=seed) for seed in range(4)]) * 32767).astype("<i2")
    killing, ready, restarts = asyncio.Event(), asyncio.Semaphore(0), scrape(server)("kibun_front_restarts_total")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(server.target)) for _ in range(10)]
        whole = await clients[0].analyze(audio)
        speaking = [asyncio.create_task(speak(client, audio, killing, ready)) for client in clients]
        for _ in speaking:
            await asyncio.wait_for(ready.acquire(), 20)
        open_at = streams(await asyncio.to_thread(scrape, server))
        assert all(open_at.values()), "each client has a connection of its own, and the kernel spreads them"
        (victim, _) = children(server.process.pid)
        os.kill(victim, signal.SIGKILL)
        killing.set()
        heard = await asyncio.wait_for(asyncio.gather(*speaking), 60)
    undisturbed = [(final.start_s, final.emotion) for final in whole.utterances]
    assert len(undisturbed) == 4
    for each in heard:
        assert [(final.start_s, final.emotion) for final in each.finals] == undisturbed
    moved = sum(each.reconnects > 0 for each in heard)
    assert moved in [int(count) for count in open_at.values()], "those of the other front noticed nothing"
    await scrape_until(server, lambda found: found("kibun_front_restarts_total") == restarts + 1)
    await scrape_until(server, lambda found: found("kibun_ready") == 2, within_s=60)
    assert f"pid={victim} signal=9" in server.log.read_text().replace(",", "")


async def test_a_front_that_is_frozen_is_replaced(server: RunningServer) -> None:
    """Otherwise its share of all new connections would hang."""
    frozen, other = children(server.process.pid)
    os.kill(frozen, signal.SIGSTOP)
    await until(lambda: frozen not in children(server.process.pid))
    await scrape_until(server, lambda found: found("kibun_ready") == 2, within_s=60)
    assert "a front does not answer; killed" in server.log.read_text()
    assert other in children(server.process.pid)


# ---- the end


async def test_all_fronts_reload_and_drain(redis: OwnRedis, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"acme {hashlib.sha256(b'hush').hexdigest()}\n")
    arguments = ("--fronts", "2", "--store", redis.url, "--token-file", str(tokens), "--metrics-port", "0")
    with serve(*arguments) as server:
        assert fetch(f"{site(server)}/readyz") == (200, "ready\n")
        processes = [pid for front in children(server.process.pid) for pid in (front, *children(front))]
        assert len(processes) == 4, "two fronts, each with a worker"
        server.process.send_signal(signal.SIGHUP)
        for front in FRONTS:
            await until(lambda front=front: f"kibun, front {front}: reloaded" in server.log.read_text())  # type: ignore[misc]
        metadata = (("authorization", "Bearer hush"),)
        async with AsyncExitStack() as stack:
            talks = []
            for _ in range(6):
                channel = grpc.aio.insecure_channel(server.target, options=list(OWN_CONNECTION.items()))
                stub = Stub(await stack.enter_async_context(channel))
                talks.append(await stack.enter_async_context(Talk(stub, metadata=metadata)))
                await talks[-1].start()
            server.terminate()
            for talk in talks:
                assert (await talk.until("stream_warning")).reason == "GOING_AWAY"
            for pid in children(server.process.pid):
                os.kill(pid, signal.SIGTERM)  # as a service manager that stops all processes of a service
            assert fetch(f"{site(server)}/readyz")[0] == 503
            for talk in talks:
                await talk.send(*chunks(encode(spoken(0.8))))
                assert len(of_kind(await talk.finish(), "turn_result")) == 1
        assert await asyncio.to_thread(server.wait, 30) == 0, server.log.read_text()
        await until(lambda: not any(map(exists, processes)))
        assert "Traceback" not in server.log.read_text()


async def test_a_front_that_hangs_does_not_keep_the_server_at_the_second_signal(redis: OwnRedis) -> None:
    prelude = "from kibun.server import fronts; fronts.END_S = 0.5"
    with serve("--fronts", "2", "--store", redis.url, "--grace", "60", prelude=prelude) as server:
        fronts = children(server.process.pid)
        os.kill(fronts[0], signal.SIGSTOP)
        server.process.send_signal(signal.SIGINT)
        server.terminate()
        assert await asyncio.to_thread(server.wait, 30) == 0
        await until(lambda: not any(map(exists, fronts)))
