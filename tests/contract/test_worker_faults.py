"""Workers that die, hang or fail, seen by streams through a whole server: streams go on with the same results."""

import asyncio
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load_file, save_file

from kibun.models.files import resolve_bundle, write_checksums
from kibun.server.inference.worker_pool import DEFAULT_LOADER
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support import stub_model
from tests.support.processes import until
from tests.support.serving import (
    Problem,
    RunningServer,
    Talk,
    check_stream,
    chunks,
    command,
    config,
    connect,
    converse,
    encode,
    environment,
    finals,
    problem_of,
    refused,
    serve,
    spoken,
    times_and_emotions,
    workers_of,
)

SPEECH = [chunks(encode(spoken(1.0 + 0.3 * n, seed=n))) for n in range(4)]
EVENTS = pb.AnalysisFeatures(enable_voice_activity_events=True)
Status = health_pb2.HealthCheckResponse.ServingStatus


@asynccontextmanager
async def health(server: RunningServer) -> AsyncIterator[list[int]]:
    """Every health status since it was opened, as it comes."""
    seen: list[int] = []

    async def watch() -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
                seen.append(answer.status)  # noqa: PERF401 (it is read meanwhile)

    watching = asyncio.create_task(watch())
    try:
        await until(lambda: seen == [Status.SERVING])
        yield seen
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def speak(stub: Stub, number: int, speaking: asyncio.Barrier | None = None) -> list[pb.StreamingAnalyzeResponse]:
    """One stream with one utterance. `speaking` is met once the utterance is on its way to the worker."""
    async with Talk(stub) as talk:
        await talk.send(config(features=EVENTS), *SPEECH[number])
        await talk.until("speech_event", type=pb.SpeechEvent.TYPE_SPEECH_ACTIVITY_END)
        if speaking is not None:
            await speaking.wait()
        responses = await talk.finish()
        check_stream(responses)
        return responses


def faulty(first: float) -> list[pb.StreamingAnalyzeRequest]:
    """A stream whose utterance begins with a sample that asks the stub model for a fault."""
    speech = spoken(1.0)[int(0.4 * 16_000) :].copy()
    speech[0] = first
    first_message = config(encoding=pb.AUDIO_ENCODING_FLOAT32)
    return [first_message, *chunks(encode(speech, "float32"), 256 * 1024)]


async def failing(stub: Stub, first: float) -> Problem:
    async with Talk(stub) as talk:
        await talk.send(*faulty(first))
        found = await problem_of(talk.rest())
        assert not finals(talk.responses)
        return found


@pytest.mark.usefixtures("eager_finals")
@pytest.mark.parametrize("fault", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
async def test_streams_survive_the_loss_of_the_worker(fault: signal.Signals) -> None:
    with serve("--worker-deadline", "1", model="stub?delay_s=0.3&load_s=0.4") as server:
        async with connect(server) as stub, health(server) as statuses:
            alone = [
                times_and_emotions(responses) for responses in await asyncio.gather(*(speak(stub, n) for n in range(4)))
            ]
            speaking = asyncio.Barrier(5)
            streams = [asyncio.create_task(speak(stub, number, speaking)) for number in range(4)]
            await speaking.wait()
            (victim,) = workers_of(server)
            os.kill(victim, fault)
            assert [times_and_emotions(await stream) for stream in streams] == alone, "no final is lost or different"
            await until(lambda: statuses == [Status.SERVING, Status.NOT_SERVING, Status.SERVING])
            assert victim not in workers_of(server)
            assert times_and_emotions(await speak(stub, 0)) == alone[0]
        assert "Traceback" not in server.log.read_text()


async def test_workers_that_die_disturb_neither_open_streams_nor_new_ones() -> None:
    with serve() as server:
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.send(config(), *SPEECH[0])
            await talk.until("utterance_result", is_final=True)
            for _ in range(2):
                (victim,) = workers_of(server)
                os.kill(victim, signal.SIGKILL)
                assert len(finals(await speak(stub, 0))) == 1, "a stream that comes meanwhile waits for the next worker"
                assert victim not in workers_of(server)
            await talk.send(*SPEECH[1])
            responses = await talk.finish()
        check_stream(responses)
        assert len(finals(responses)) == 2


async def test_a_faulty_job_ends_its_own_stream_and_no_other() -> None:
    faults = {
        stub_model.POISON: "WORKER_FAILED",
        stub_model.NAN: "MODEL_NONFINITE",
        stub_model.RAISES: "MODEL_FAILED",
    }
    with serve(model="stub?delay_s=0.1&slots=1&batch_s=30") as server:
        async with connect(server) as stub:
            alone = [
                times_and_emotions(responses) for responses in await asyncio.gather(*(speak(stub, n) for n in range(4)))
            ]
            failures, beside = await asyncio.gather(
                asyncio.gather(*(failing(stub, first) for first in faults)),
                asyncio.gather(*(speak(stub, n) for n in range(4))),
            )
            assert [times_and_emotions(responses) for responses in beside] == alone
        log = server.log.read_text()
        for found, reason in zip(failures, faults.values(), strict=True):
            assert (found.code, found.reason) == (grpc.StatusCode.INTERNAL, reason)
            assert re.search(r"request-\w{16}", found.message)
            assert found.request_id in log
        assert len(re.findall("worker ended.*signal=9", log)) == 2, "two attempts at most"


HURRIED = """
from functools import partial
from kibun.server import main as command
command.WorkerTimes = partial(command.WorkerTimes, queue_s=1.0, backoff_first_s=0.2, backoff_max_s=0.4)
from kibun.server.inference import batcher
batcher.SOON_S = 0.5
"""


def failed_starts(server: RunningServer) -> int:
    return server.log.read_text().count("could not be started again")


async def test_while_no_worker_can_be_started_streams_are_sent_elsewhere(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.touch()
    with serve(model=str(bundle), prelude=HURRIED) as server:
        async with connect(server) as stub, health(server) as statuses, Talk(stub) as talk:
            await talk.send(config(), *SPEECH[0])
            await talk.until("utterance_result", is_final=True)
            bundle.unlink()
            began = time.monotonic()
            os.kill(workers_of(server)[0], signal.SIGKILL)
            await until(lambda: statuses[-1] == Status.NOT_SERVING)
            await until(lambda: failed_starts(server) >= 3)  # there has been no worker for 0.6 s
            refusal = await refused(stub)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "RESTARTING")
            assert refusal.retry_s
            await talk.send(*SPEECH[1])
            found = await problem_of(talk.rest())
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKER")
            assert found.retry_s
            assert found.request_id
            assert failed_starts(server) <= 3 + (time.monotonic() - began) / 0.4, "at longer and longer intervals"
            bundle.touch()
            await until(lambda: statuses[-1] == Status.SERVING)
            assert len(finals(await converse(stub, [config(), *SPEECH[1]]))) == 1


# ---- bundles that must not be served


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a bit", "a pickle", "NaN", "a missing file"])
def test_a_bundle_that_is_not_what_was_built_is_refused_before_serving(tmp_path: Path, damage: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(resolve_bundle("demo-tiny"), bundle)
    weights = bundle / "model.safetensors"
    if damage == "a bit":
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif damage == "a pickle":
        weights.write_bytes(pickle.dumps({"weights": [0.0]}))
    elif damage == "NaN":
        state = load_file(weights)
        state["emotion_heads.arousal.out.bias"].fill_(float("nan"))
        save_file(state, weights)
        write_checksums(bundle)
    else:
        weights.unlink()
    real = ("--loader", DEFAULT_LOADER, "--port", "0")
    done = subprocess.run(
        command(*real, model=str(bundle)), env=environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert "serving on" not in done.stderr
