"""An event loop that is blocked: what the watchdog logs, and how the process ends or recovers."""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from grpc_health.v1 import health_pb2

from kibun.server.observability import logs
from kibun.server.observability.watchdog import EXIT_CODE, Watchdog, WatchdogTimes
from tests.support.processes import exists, until
from tests.support.serving import Talk, chunks, config, connect, encode, health_of, serve, spoken, workers_of

QUICK = WatchdogTimes(blocked_after_s=0.2, exit_after_s=60, calm_s=0.3)
HASTY = WatchdogTimes(blocked_after_s=0.2, exit_after_s=0.6, calm_s=0.3)


@asynccontextmanager
async def watched(times: WatchdogTimes = QUICK, left: list[int] | None = None) -> AsyncIterator[Watchdog]:
    """`left` takes the exit code in place of the process."""
    codes: list[int] = [] if left is None else left
    watchdog = Watchdog(times, leave=codes.append)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


SECRET = "what somebody said"


def block(until: Callable[[], object], secret: str = "") -> bool:
    """Like a library that works for too long, here until something is so: machines may be slow."""
    give_up = time.monotonic() + 30
    while not until():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return bool(secret)


def blocks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "all threads" in record.getMessage()]


def logged(caplog: pytest.LogCaptureFixture, count: int) -> bool:
    return len(blocks(caplog)) == count


async def test_a_block_is_logged_once_with_frames_and_no_values(caplog: pytest.LogCaptureFixture) -> None:
    async with watched() as watchdog:
        assert not watchdog.blocked
        block(lambda: blocks(caplog), SECRET)
        assert watchdog.blocked, "known at once, and for a while after"
        time.sleep(0.3)  # noqa: ASYNC251
        await until(lambda: not watchdog.blocked)
        await until(lambda: "goes on" in caplog.text)
    (record,) = blocks(caplog)
    (main,) = (stack for stack in record.__dict__["stacks"] if stack.startswith("MainThread: "))
    assert re.search(r"test_watchdog\.py:\d+ block\b", main)
    assert SECRET not in f"{caplog.text} {record.__dict__}"
    assert logs.allowed(record.__dict__)["stacks"] == record.__dict__["stacks"]


async def test_each_block_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with watched() as watchdog:
        for count in (1, 2):
            block(partial(logged, caplog, count))
            await until(lambda: not watchdog.blocked)
    assert len(blocks(caplog)) == 2


async def test_a_busy_loop_that_gets_its_turns_is_not_blocked(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(WatchdogTimes(blocked_after_s=1.0)) as watchdog:
        for _ in range(12):
            time.sleep(0.1)  # noqa: ASYNC251
            await asyncio.sleep(0)
            assert not watchdog.blocked
    assert not blocks(caplog)


async def test_python_that_computes_blocks_as_well_as_one_that_waits(caplog: pytest.LogCaptureFixture) -> None:
    async with watched():
        give_up = time.monotonic() + 30
        while not caplog.records:
            assert time.monotonic() < give_up
    assert len(blocks(caplog)) == 1


async def test_a_long_block_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    left: list[int] = []
    async with watched(HASTY, left):
        block(lambda: left)
    assert left == [EXIT_CODE]
    assert "this process ends" in caplog.text


@pytest.mark.parametrize(
    ("passed_s", "used_s", "counted_s"),
    [(0.11, 0.0, 0.11), (12.0, 0.01, 0.1), (12.0, 11.0, 12.0)],
    ids=["a tick", "suspended", "held up by something that computes and lets no other thread run"],
)
def test_time_counts_in_which_the_loop_could_have_run(passed_s: float, used_s: float, counted_s: float) -> None:
    assert Watchdog()._counts(passed_s, used_s) == pytest.approx(counted_s)


def test_a_process_that_was_suspended_is_not_blocked() -> None:
    program = """
import asyncio, logging, sys
from kibun.server.observability.watchdog import Watchdog, WatchdogTimes
logging.basicConfig(stream=sys.stdout)
async def main():
    watchdog = Watchdog(WatchdogTimes(blocked_after_s=1.0, exit_after_s=1.5))
    watchdog.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print("blocked" if watchdog.blocked else "fine", flush=True)
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2.0)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.3)
        out, _ = process.communicate("\n", timeout=20)
        assert (out, process.returncode) == ("fine\n", 0)


# ---- a whole server

SPEECH = chunks(encode(spoken(1.0)))

# The VAD takes a nap at a level of sound that speech does not reach for a whole frame.
NAPS = """
import time
import numpy as np
from kibun.server import serving
make = serving.make_vad
class Sleepy:
    def __init__(self, vad): self.vad, self.frame_samples, self.reset = vad, vad.frame_samples, vad.reset
    def decide(self, frames):
        if np.abs(frames).min(axis=1).max() > 0.9:
            time.sleep({seconds})
        return self.vad.decide(frames)
serving.make_vad = lambda *arguments: Sleepy(make(*arguments))
from functools import partial
from kibun.server import main as command
command.WatchdogTimes = partial(command.WatchdogTimes, calm_s=1.5)
"""
NAP = chunks(b"\xff\x7f" * 1600)


async def test_a_server_that_blocks_is_reported_and_recovers() -> None:
    with serve(prelude=NAPS.format(seconds=1.4)) as server:
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.send(config(), *SPEECH)
            await talk.until("utterance_result", is_final=True)
            await talk.send(*NAP)
            await until(lambda: "all threads are at" in server.log.read_text())
            assert await health_of(server) == health_pb2.HealthCheckResponse.NOT_SERVING, (
                "the loop is back, not trusted"
            )
            await talk.send(*SPEECH)
            assert (await talk.finish())[-1].HasField("stream_ended"), "the streams go on"
            async with asyncio.timeout(20):
                while await health_of(server) != health_pb2.HealthCheckResponse.SERVING:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        assert server.log.read_text().count("all threads are at") == 1


async def test_a_server_that_sleeps_on_ends_with_its_worker() -> None:
    with serve("--watchdog-exit", "2", prelude=NAPS.format(seconds=3600)) as server:
        workers = workers_of(server)
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.send(config(), *SPEECH, *NAP)
            assert await asyncio.to_thread(server.wait, 30) == EXIT_CODE
        assert workers
        await until(lambda: not any(map(exists, workers)))
        log = server.log.read_text()
        assert " decide" in log
        assert "this process ends" in log


@pytest.mark.slow
async def test_a_server_that_was_suspended_for_long_goes_on() -> None:
    with serve() as server:
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.send(config(), *SPEECH)
            await talk.until("utterance_result", is_final=True)
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(12)
            server.process.send_signal(signal.SIGCONT)
            await talk.send(*SPEECH)
            await talk.finish()
        assert "all threads are at" not in server.log.read_text()
