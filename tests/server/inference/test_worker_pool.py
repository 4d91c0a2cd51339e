"""LocalBackend and real worker processes that run stub models, through every fault that a worker can have."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from kibun.models.types import Analysis, Utterance
from kibun.server.inference.backend import BackendError, Job
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.worker_pool import LocalBackend, WorkerTimes
from tests.support import ROOT, stub_model
from tests.support.processes import exists, until

QUICK = WorkerTimes(start_s=20, batch_s=1.0, queue_s=10, close_s=1, backoff_first_s=0.05)
PATIENT = WorkerTimes(start_s=20, batch_s=30, queue_s=10, close_s=1, backoff_first_s=0.05)


@asynccontextmanager
async def running(
    *models: str, times: WorkerTimes = PATIENT, device: str | list[str] = "cpu"
) -> AsyncIterator[LocalBackend]:
    backend = LocalBackend(models or ["stub"], loader="tests.support.stub_model:load", times=times, device=device)
    await backend.start()
    try:
        yield backend
    finally:
        pids = backend.pids
        await backend.close()
        assert not any(map(exists, pids)), "no process outlives close()"


def job(first: float, *, model: str = "stub", seconds: float = 0.5, heard: int = 0) -> Job:
    return Job(model, Utterance(np.full(int(seconds * 16_000), first, np.float32), np.zeros((heard, 4), np.float16)))


def arousal(outcome: Analysis | BackendError) -> float:
    assert isinstance(outcome, Analysis), outcome
    assert outcome.arousal is not None
    return outcome.arousal


def reason(outcome: Analysis | BackendError) -> str:
    assert isinstance(outcome, BackendError), outcome
    return outcome.reason


# --- in good health --------------------------------------------------------------------------------------------------


async def test_handshake_tells_what_was_loaded() -> None:
    backend = LocalBackend(["one?slots=3", "two"], loader="tests.support.stub_model:load")
    assert not backend.ready()
    with pytest.raises(BackendError, match="UNAVAILABLE"):
        await backend.infer([job(0.1)])
    infos = await backend.start()
    assert [info.name for info in infos] == ["one", "two"]
    assert infos[0].vector_size == stub_model.VECTOR_SIZE
    assert (backend.slots, backend.batch_s, backend.devices, backend.ready()) == (3, 8.0, ("cpu",), True)
    await backend.close()
    assert not backend.ready()
    await backend.close()


async def test_answers_come_in_the_order_of_the_jobs() -> None:
    async with running("stub", "other") as backend:
        levels = [0.9, 0.1, 0.7, 0.3]
        jobs = [job(level, model="stub" if level < 0.5 else "other", heard=2) for level in levels]
        outcomes = await backend.infer(jobs)
    assert [arousal(outcome) for outcome in outcomes] == pytest.approx([1 + 4 * level for level in levels])
    assert [int(outcome.vector[0]) for outcome in outcomes if isinstance(outcome, Analysis)] == [2] * 4


async def test_slots_run_side_by_side() -> None:
    async with running("stub?slots=2&delay_s=0.3") as backend:
        started = time.monotonic()
        await asyncio.gather(*(backend.infer([job(0.1)]) for _ in range(4)))
        assert 0.55 < time.monotonic() - started < 1.1


async def test_two_devices_have_a_worker_each_and_share_the_work() -> None:
    async with running("stub?slots=1&delay_s=0.1", device=["cpu", "cpu"]) as backend:
        assert (backend.slots, len(set(backend.pids))) == (2, 2)
        outcomes = await asyncio.gather(*(backend.infer([job(0.1)]) for _ in range(4)))
        answered_by = {float(outcome.vector[3]) for (outcome,) in outcomes if isinstance(outcome, Analysis)}
        assert len(answered_by) == 2


async def test_a_batcher_serves_many_streams_through_it() -> None:
    async with running("stub?slots=2&delay_s=0.005") as backend:
        batcher = Batcher(backend)
        levels = [n / 64 + 0.001 for n in range(60)]
        results = await asyncio.gather(
            *(batcher.submit(job(level), stream_id=str(level), final=True, deadline_s=1) for level in levels)
        )
    assert [result.arousal for result in results] == pytest.approx([1 + 4 * level for level in levels], abs=1e-4)


async def test_drain_waits_for_jobs_then_refuses() -> None:
    async with running() as backend:
        slow = asyncio.create_task(backend.infer([job(stub_model.SLOW)]))
        await asyncio.sleep(0.1)
        await backend.drain()
        assert slow.done()
        assert arousal((await slow)[0]) > 1
        assert not backend.ready()
        with pytest.raises(BackendError, match="UNAVAILABLE"):
            await backend.infer([job(0.1)])


async def test_close_answers_what_is_in_flight_at_once() -> None:
    async with running() as backend:
        hangs = asyncio.create_task(backend.infer([job(stub_model.HANGS)]))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await backend.close()
        (outcome,) = await hangs
        assert reason(outcome) == "UNAVAILABLE"
        assert time.monotonic() - started < 0.5, "a worker that is told to end does not wait for its inference"


async def test_a_cancelled_call_frees_its_slot_only_when_the_work_is_done() -> None:
    async with running("stub?slots=1") as backend:
        call = asyncio.create_task(backend.infer([job(stub_model.SLOW)]))
        await asyncio.sleep(0.1)
        call.cancel()
        started = time.monotonic()
        await backend.infer([job(0.1)])
        assert 0.5 < time.monotonic() - started < 5


# --- bad jobs --------------------------------------------------------------------------------------------------------


async def test_a_bad_job_gets_its_own_error_and_spoils_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    async with running() as backend:
        bad = [job(stub_model.NAN), job(stub_model.RAISES), job(0.1, model="absent"), job(0.1, seconds=0.02)]
        outcomes = await backend.infer([bad[0], job(0.2), bad[1], job(0.3), bad[2], bad[3]])
        pid = backend.pids
        assert backend.ready()
        assert backend.pids == pid
    assert [reason(outcomes[n]) for n in (0, 2, 4, 5)] == [
        "MODEL_NONFINITE",
        "MODEL_FAILED",
        "UNKNOWN_MODEL",
        "INVALID_JOB",
    ]
    assert [arousal(outcomes[n]) for n in (1, 3)] == pytest.approx([1.8, 2.2])
    assert str(stub_model.RAISES) not in str(outcomes[2])
    log = capfd.readouterr().err
    assert "ValueError" in log
    assert str(stub_model.RAISES) not in log, "what an exception says may come from the audio"


async def test_a_poison_job_has_two_attempts_and_takes_nobody_with_it() -> None:
    async with running("stub?slots=2&delay_s=0.2") as backend:
        first = backend.pids
        outcomes, beside = await asyncio.gather(
            backend.infer([job(0.1), job(stub_model.POISON), job(0.3)]), backend.infer([job(0.4), job(0.6)])
        )
        assert reason(outcomes[1]) == "WORKER_FAILED"
        assert [arousal(outcomes[n]) for n in (0, 2)] == pytest.approx([1.4, 2.2])
        assert [arousal(outcome) for outcome in beside] == pytest.approx([2.6, 3.4])
        assert [arousal(o) for o in await backend.infer([job(0.5001)])] == pytest.approx([3.0], abs=0.01)
        assert backend.pids != first


async def test_two_poison_jobs_at_once_take_nobody_with_them() -> None:
    async with running("stub?slots=2&delay_s=0.1") as backend:
        calls = [backend.infer([job(stub_model.POISON), job(0.1)]), backend.infer([job(0.2), job(stub_model.POISON)])]
        one, two = await asyncio.gather(*calls)
    assert [reason(one[0]), reason(two[1])] == ["WORKER_FAILED"] * 2
    assert [arousal(one[1]), arousal(two[0])] == pytest.approx([1.4, 1.8])


async def test_a_second_attempt_waits_for_work_that_nobody_waits_for_any_more() -> None:
    async with running("stub?slots=2") as backend:
        poison = asyncio.create_task(backend.infer([job(stub_model.SLOW_POISON)]))
        beside = asyncio.create_task(backend.infer([job(stub_model.SLOW)]))
        (victim,) = backend.pids
        await until(lambda: backend.ready() and victim not in backend.pids)
        await asyncio.sleep(0.1)
        poison.cancel()  # the worker goes on with it all the same
        assert arousal((await beside)[0]) > 1


async def test_second_attempts_go_before_new_jobs() -> None:
    times = WorkerTimes(start_s=20, queue_s=3)
    async with running("stub?slots=2&s_per_audio_s=0.2", times=times) as backend:
        stop = asyncio.Event()

        async def keep_busy(offset: int) -> list[Analysis | BackendError]:
            await asyncio.sleep(0.025 * offset)
            outcomes = []
            while not stop.is_set():
                outcomes += await backend.infer([job(0.1, seconds=0.2 + 0.05 * offset)] * 3)
            return outcomes

        callers = [asyncio.create_task(keep_busy(offset)) for offset in range(4)]
        await asyncio.sleep(0.5)
        os.kill(backend.pids[0], signal.SIGKILL)
        await asyncio.sleep(4)  # longer than a job may wait
        stop.set()
        outcomes = [outcome for caller in callers for outcome in await caller]
        assert len(outcomes) > 20
        assert [arousal(outcome) for outcome in outcomes] == pytest.approx([1.4] * len(outcomes))


async def test_a_job_that_hangs_is_given_up_after_two_deadlines() -> None:
    async with running(times=QUICK) as backend:
        started = time.monotonic()
        hangs, beside = await asyncio.gather(backend.infer([job(stub_model.HANGS)]), backend.infer([job(0.2)]))
        assert reason(hangs[0]) == "WORKER_FAILED"
        assert arousal(beside[0]) == pytest.approx(1.8)
        assert 2.0 < time.monotonic() - started < 12


# --- dying workers ---------------------------------------------------------------------------------------------------


async def test_sigkill_in_flight_is_answered_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async with running("stub?delay_s=0.3") as backend:
        (victim,) = backend.pids
        calls = asyncio.gather(*(backend.infer([job(level), job(0.5 + level)]) for level in (0.1, 0.2)))
        await asyncio.sleep(0.1)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: not backend.ready(), 1)
        outcomes = [outcome for call in await calls for outcome in call]
        assert [arousal(outcome) for outcome in outcomes] == pytest.approx([1.4, 3.4, 1.8, 3.8])
        assert backend.ready()
        assert victim not in backend.pids
    assert (victim, signal.SIGKILL) in {
        (record.__dict__.get("pid"), record.__dict__.get("signal")) for record in caplog.records
    }


async def test_sigstop_is_noticed_at_the_deadline_and_blocks_nothing() -> None:
    async with running(times=QUICK) as backend:
        (victim,) = backend.pids
        os.kill(victim, signal.SIGSTOP)
        started = time.monotonic()
        # 2 MB, more than a pipe holds: handing them to a process that does not read must not stop the event loop.
        calls = asyncio.gather(backend.infer([job(0.1, seconds=30.0)]), backend.infer([job(0.2)]))
        longest, last = 0.0, time.monotonic()
        while not calls.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        outcomes = await calls
        assert [arousal(outcome) for (outcome,) in outcomes] == pytest.approx([1.4, 1.8], abs=1e-4)
        assert 1.0 < time.monotonic() - started < 12
        assert longest < 0.25
        assert not exists(victim)


async def test_once_costs_are_known_a_hung_worker_is_given_up_early() -> None:
    """And who was given up too early, being slow and not hung, is answered at the second attempt."""
    times = WorkerTimes(start_s=20, batch_s=30, first_attempt_min_s=0.4, close_s=1, backoff_first_s=0.05)
    async with running("stub?slots=1", times=times) as backend:
        for _ in range(10):
            await backend.infer([job(0.1)])
        (victim,) = backend.pids
        os.kill(victim, signal.SIGSTOP)
        started = time.monotonic()
        assert arousal((await backend.infer([job(0.1)]))[0]) == pytest.approx(1.4)
        assert time.monotonic() - started < 12, "not 30 s"
        assert arousal((await backend.infer([job(stub_model.SLOW)]))[0]) > 1
        await until(lambda: backend.restarts == 2)


async def test_a_server_that_was_suspended_does_not_blame_the_worker() -> None:
    async with running(times=QUICK) as backend:
        pids = backend.pids
        call = asyncio.create_task(backend.infer([job(stub_model.SLOW)]))
        await asyncio.sleep(0.2)
        time.sleep(1.5)  # noqa: ASYNC251 - the loop does not run: deadline and answer both pass meanwhile
        assert arousal((await call)[0]) > 1
        assert backend.pids == pids


async def test_an_idle_worker_that_dies_is_replaced() -> None:
    async with running() as backend:
        for _ in range(3):
            (victim,) = backend.pids
            os.kill(victim, signal.SIGKILL)
            await until(lambda victim=victim: backend.ready() and victim not in backend.pids)


async def test_while_no_worker_starts_jobs_wait_a_bounded_time(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.touch()
    times = WorkerTimes(start_s=20, queue_s=0.6, backoff_first_s=0.05, backoff_max_s=0.2)
    async with running(str(bundle), times=times) as backend:
        bundle.unlink()
        os.kill(backend.pids[0], signal.SIGKILL)
        await until(lambda: not backend.ready())
        with pytest.raises(BackendError, match="NO_WORKER"):
            await backend.infer([job(0.1, model=str(bundle))])
        assert not backend.ready()
        bundle.touch()
        await until(backend.ready)
        assert arousal((await backend.infer([job(0.1, model=str(bundle))]))[0]) == pytest.approx(1.4)


async def test_a_terminal_interrupt_leaves_the_worker_to_the_server() -> None:
    async with running() as backend:
        (pid,) = backend.pids
        assert os.getpgid(pid) != os.getpgid(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert arousal((await backend.infer([job(0.1)]))[0]) == pytest.approx(1.4)
        assert backend.pids == (pid,)


def test_workers_end_when_the_server_is_killed() -> None:
    program = """
import asyncio, numpy, os
from tests.support import stub_model
from kibun.models.types import Utterance
from kibun.server.inference.backend import Job
from kibun.server.inference.worker_pool import LocalBackend

async def main():
    backend = LocalBackend(["stub"], loader="tests.support.stub_model:load")
    await backend.start()
    print(*backend.pids, flush=True)
    job = Job("stub", Utterance(numpy.full(8000, stub_model.HANGS, numpy.float32), numpy.zeros((0, 4), numpy.float16)))
    await backend.infer([job])

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    with server.stdout:
        pid = int(server.stdout.readline())
        assert exists(pid)
        time.sleep(0.2)
        server.kill()
        server.wait()
        deadline = time.monotonic() + 5
        while exists(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not exists(pid)


def test_a_worker_that_loads_ends_when_the_server_is_killed() -> None:
    """It reads nothing meanwhile, and so does not see the end of its pipe."""
    program = """
import asyncio
from kibun.server.inference.worker_pool import LocalBackend

async def main():
    backend = LocalBackend(["sleepy"], loader="tests.support.stub_model:load")
    starting = asyncio.create_task(backend.start())
    while True:
        await asyncio.sleep(0.05)
        children = open("/proc/self/task/%d/children" % __import__("os").getpid()).read().split()
        if children:
            print(children[0], flush=True)
            await starting

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    with server.stdout:
        pid = int(server.stdout.readline())
        time.sleep(1.0)  # it begins to load
        assert exists(pid)
        server.kill()
        server.wait()
        deadline = time.monotonic() + 20
        while exists(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not exists(pid)


# --- a start that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/model.safetensors", r"^LOAD_FAILED: /no/such/model.safetensors: no such file$"),
        ("crash", "killed by signal 9 before it was ready"),
        ("bug", "unexpected KeyError while loading: 'layer_weights'"),
        ("sleepy", "not ready within 0.5 s"),
        ("nan", "nan: the warm-up inference failed: "),
    ],
)
async def test_a_failing_start_says_why_and_leaves_no_process(
    model: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    times = WorkerTimes(start_s=0.5 if model == "sleepy" else 20)
    backend = LocalBackend([model], loader="tests.support.stub_model:load", times=times)
    with pytest.raises(BackendError, match=message) as caught:
        await backend.start()
    assert caught.value.reason == "LOAD_FAILED"
    assert not backend.ready()
    assert children() == []
    if model.startswith("/"):
        assert "Traceback" not in capfd.readouterr().err, "what the operator can mend needs no traceback"


async def test_one_of_two_devices_failing_fails_the_start(tmp_path: Path) -> None:
    backend = LocalBackend(["stub"], loader="tests.support.stub_model:load_on_cpu_only", device=["cpu", "cuda:7"])
    with pytest.raises(BackendError, match="cuda:7: no such device"):
        await backend.start()
    assert children() == []


async def test_a_loader_that_does_not_exist_is_named() -> None:
    with pytest.raises(BackendError, match="no_such_loader"):
        await LocalBackend(["stub"], loader="no_such_loader:load").start()


def children() -> list[int]:
    """Workers among this process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if (
                int(fields[1]) == os.getpid()
                and b"kibun.server.inference.worker" in (stat.parent / "cmdline").read_bytes()
            ):
                found.append(int(stat.parent.name))
        except (OSError, IndexError):
            continue
    return found


def test_the_server_side_imports_neither_torch_nor_grpc() -> None:
    program = (
        "import sys, kibun.server.inference.worker_pool, kibun.server.inference.batcher;"
        "heavy = {name for name in sys.modules if name.split('.')[0] in ('torch', 'grpc', 'transformers')"
        " or name.startswith('kibun.models.')} - {'kibun.models.types'};"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
