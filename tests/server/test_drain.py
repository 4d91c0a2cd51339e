"""Servers that are asked to stop: that they end, what open streams get, and the exit code."""

import asyncio
import os
import signal
import subprocess

import grpc
import numpy as np
import pytest

from kibun.bench.faults.servers import free_port
from kibun.client import AsyncClient, StreamStarted, UtteranceResult
from kibun.server import serving
from kibun.server.api.service import LAST_RESULTS_S
from kibun.server.main import LAST_RESORT_S
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support.processes import exists, until
from tests.support.scraping import scrape_until
from tests.support.serving import (
    RunningServer,
    Talk,
    chunks,
    command,
    config,
    connect,
    encode,
    end_of_turn,
    environment,
    problem_of,
    serve,
    spoken,
    workers_of,
)

SPEECH = chunks(encode(spoken(1.0)))
HANGS = "stub?slots=1&hangs_after=0"
SMALL_WINDOW = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 16_384}


async def gone(server: RunningServer) -> None:
    """Ends by itself, whatever hangs, with exit code 0, and takes its workers along."""
    workers = workers_of(server)
    assert await asyncio.to_thread(server.wait, 30) == 0, server.log.read_text()
    await until(lambda: not any(map(exists, workers)))
    assert "Traceback" not in server.log.read_text()


async def test_while_models_warm_up_a_server_stops_at_once() -> None:
    """SIGINT does what SIGTERM does."""
    with serve(model="stub?slots=1&delay_s=3600", wait=False, port=free_port()) as server:
        await until(lambda: "models are loaded" in server.log.read_text())
        await asyncio.sleep(0.1)
        server.process.send_signal(signal.SIGINT)
        await gone(server)


async def test_nothing_that_hangs_delays_a_server_at_the_second_signal() -> None:
    """Frozen worker, queued finals, a client that never reads, one that sent nothing yet: all at once."""
    with serve("--grace", "60", model=HANGS) as server:
        async with connect(server) as stub, connect(server, **SMALL_WINDOW) as another:
            streams = [Talk(stub) for _ in range(4)]
            for talk in streams:
                await talk.send(config(), *SPEECH, *SPEECH)
                await talk.until("stream_started")
            unread, mute = Talk(another), Talk(stub)
            await unread.send(config(), *[end_of_turn() for _ in range(2_500)])
            os.kill(workers_of(server)[0], signal.SIGSTOP)
            server.terminate()
            for talk in streams:
                assert (await talk.until("stream_warning")).reason == "GOING_AWAY"
            server.terminate()
            for talk in (*streams, mute):
                found = await problem_of(talk.rest())
                assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
                assert found.retry_s
                assert found.request_id
            await gone(server)


async def test_work_that_is_queued_at_the_end_of_the_grace_gets_a_named_error() -> None:
    with serve("--grace", "0.3", "--metrics-port", "0", model=HANGS) as server:
        async with connect(server) as stub:
            streams = [Talk(stub) for _ in range(3)]
            for talk in streams:
                await talk.send(config(), *SPEECH)
                await talk.until("stream_started")
                await talk.call.done_writing()
            recording = pb.AnalyzeRequest(config=config().streaming_config, audio_content=encode(spoken(1.0)))
            single = asyncio.ensure_future(stub.Analyze(recording))
            await scrape_until(server, lambda found: found("kibun_queued_jobs") == 3)
            server.terminate()
            for work in (*(talk.rest() for talk in streams), single):
                found = await problem_of(work)
                assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            await gone(server)


def test_what_may_delay_the_end_is_bounded() -> None:
    """Results, calls and workers, store, metrics and traces, and a thread that hangs: 2.5 s in all, after the grace."""
    assert LAST_RESULTS_S + serving.STOP_S + 2 * serving.CLOSE_S + LAST_RESORT_S <= 2.5


STUCK = """
import asyncio, time
from kibun.server import serving
class Store(serving.MemoryStore):
    async def close(self):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
async def open_store(*arguments, **options):
    return Store()
serving.open_store = open_store
"""


async def test_a_store_that_cannot_be_closed_does_not_keep_the_process() -> None:
    with serve(prelude=STUCK) as server:
        server.terminate()
        await gone(server)
        assert "Store.close" in server.log.read_text()


def test_an_option_that_is_not_allowed_has_a_separate_exit_code() -> None:
    done = subprocess.run(command("--port", "99999"), env=environment(), capture_output=True, timeout=30, check=False)
    assert done.returncode == 2


def test_exit_codes_are_documented() -> None:
    done = subprocess.run(
        command("--help"),
        env={**environment(), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    for words in ("Exit codes", "70", "SIGTERM"):
        assert words in done.stdout


AGED = """
from kibun.server import serving
aged = {"grpc.max_connection_age_ms": 1_000, "grpc.max_connection_age_grace_ms": 700}
serving.GRPC_OPTIONS = tuple((name, aged.get(name, value)) for name, value in serving.GRPC_OPTIONS)
"""


@pytest.mark.slow
async def test_a_turn_that_outlives_its_connection_moves_to_another_and_loses_nothing() -> None:
    """gRPC ends a connection at its maximum age and grace, streams and all; the SDK goes on from the last final."""
    audio = (np.concatenate([spoken(0.9, seed=seed) for seed in range(3)]) * 32767).astype("<i2")
    with serve(prelude=AGED) as server:
        async with AsyncClient(server.target) as client:
            whole = await client.analyze(audio)
            events = []
            async with client.conversation().turn() as turn:

                async def listen() -> None:
                    events.extend([event async for event in turn])

                listening = asyncio.create_task(listen())
                for begin in range(0, len(audio), 1_600):
                    await turn.push(audio[begin : begin + 1_600])
                    await asyncio.sleep(0.1)
                turn.end()
                result = await turn.result()
                await listening
    finals = [event for event in events if isinstance(event, UtteranceResult) and event.is_final]
    assert max(event.reconnects for event in events if isinstance(event, StreamStarted)) >= 1
    assert [final.start_s for final in finals] == [final.start_s for final in whole.utterances]
    assert [final.emotion for final in finals] == [final.emotion for final in whole.utterances]
    assert result.utterance_count == len(whole.utterances)
