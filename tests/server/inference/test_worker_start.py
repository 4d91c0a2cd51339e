"""The worker that `kibun serve` starts before it knows what to load."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from kibun.models.types import Analysis, Utterance
from kibun.server.inference import worker_start
from kibun.server.inference.backend import BackendError, Job
from kibun.server.inference.worker_pool import LocalBackend

STUB = "tests.support.stub_model:load"


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    if (popen := worker_start.take_early()) is not None:
        popen.kill()
        popen.communicate()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--port", "0"],
        ["--model", "m", "--help"],
        ["--model", "m", "-h"],
        ["--model", "m", "--loader", "a:b"],
        ["--model=m", "--loader=a:b"],
        ["--model", "m", "--fronts", "2"],
        ["--model", "m", "--fronts=2"],
    ],
)
def test_no_worker_is_started_where_none_is_sure_to_be_needed(arguments: list[str]) -> None:
    worker_start.start_early(arguments)
    assert worker_start.take_early() is None


async def test_an_early_worker_serves_as_one_that_was_started_later_does() -> None:
    worker_start.start_early(["--model", "stub"])
    [early] = worker_start._early
    backend = LocalBackend(["stub"], loader=STUB)
    await backend.start()
    try:
        assert backend.pids == (early.pid,)
        assert worker_start.take_early() is None
        job = Job("stub", Utterance(np.full(8000, 0.1, np.float32), np.zeros((0, 4), np.float16)))
        (first,) = await backend.infer([job])
        assert isinstance(first, Analysis)
        os.kill(early.pid, signal.SIGKILL)
        (second,) = await backend.infer([job])  # of the worker after it
        assert isinstance(second, Analysis)
        assert second.numbers() == first.numbers()
        assert backend.pids != (early.pid,)
    finally:
        await backend.close()
    assert early.returncode == -signal.SIGKILL


async def test_an_early_worker_says_why_it_cannot_load() -> None:
    worker_start.start_early(["--model=nowhere"])
    with pytest.raises(BackendError, match="LOAD_FAILED: no bundle 'nowhere'"):
        await LocalBackend(["nowhere"]).start()


def test_an_early_worker_ends_with_its_server() -> None:
    """Whatever ends that: here it has not even told the worker who it is."""
    script = (
        "from kibun.server.inference import worker_start\n"
        "worker_start.start_early(['--model', 'm'])\n"
        "print(worker_start._early[0].pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        os.kill(pid, 0)
        server.kill()
    deadline = time.monotonic() + 60
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        pytest.fail("the worker outlives its server")
