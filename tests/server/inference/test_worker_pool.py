"""LocalBackend with real worker processes that run stub models, through every fault that a worker can have."""

import asyncio
import contextlib
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
from kibun.server.observability.suspension import OVERSLEPT_S
from tests.support import ROOT, stub_model
from tests.support.processes import exists, until
from tests.support.stub_model import Barrier

QUICK = WorkerTimes(start_s=20, batch_s=0.6, queue_s=10, close_s=1, backoff_first_s=0.05)
PATIENT = WorkerTimes(start_s=20, batch_s=30, queue_s=10, close_s=1, backoff_first_s=0.05)
WAITED = 1 + 4 * stub_model.WAITS  # the arousal of such an utterance
LATE = "a batch was not answered in time; worker killed"


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


@pytest.fixture
def gate(tmp_path: Path) -> Barrier:
    return Barrier(tmp_path / "gate")


async def waiting(
    backend: LocalBackend, gate: Barrier, number: int, *jobs: Job
) -> asyncio.Task[list[Analysis | BackendError]]:
    """A call with these jobs, once its batch waits at the gate as the `number`-th."""
    call = asyncio.create_task(backend.infer(jobs))
    await until(lambda: gate.arrived == number)
    return call


def in_flight(backend: LocalBackend) -> int:
    """Batches that the workers have not answered yet."""
    return sum(device.worker.in_flight for device in backend._devices if device.worker is not None)


def late_after_s(caplog: pytest.LogCaptureFixture) -> list[float]:
    """The deadlines at which workers were killed, in seconds."""
    return [float(record.__dict__["seconds"]) for record in caplog.records if record.getMessage() == LATE]


# --- in good health --------------------------------------------------------------------------------------------------


async def test_start_returns_what_was_loaded() -> None:
    backend = LocalBackend(["one?slots=3", "two"], loader="tests.support.stub_model:load")
    assert not backend.ready()
    with pytest.raises(BackendError, match="UNAVAILABLE"):
        await backend.infer([job(0.1)])
    infos = await backend.start()
    assert [info.name for info in infos] == ["one", "two"]
    assert infos[0].vector_size == stub_model.VECTOR_SIZE
    assert (backend.slots, backend.batch_s, backend.ready()) == (3, 8.0, True)
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


async def test_slots_run_side_by_side(gate: Barrier) -> None:
    async with running(f"stub?slots=2&gate={gate}") as backend:
        calls = [asyncio.create_task(backend.infer([job(stub_model.WAITS)])) for _ in range(4)]
        await until(lambda: gate.arrived == 2)
        assert in_flight(backend) == 2, "two at once, the others wait for a slot"
        gate.open()
        assert [arousal(outcome) for call in calls for outcome in await call] == pytest.approx([WAITED] * 4)
        assert gate.arrived == 4


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
            *(batcher.submit(job(level), stream_id=str(level), urgency="final", deadline_s=1) for level in levels)
        )
    assert [result.arousal for result in results] == pytest.approx([1 + 4 * level for level in levels], abs=1e-4)


async def test_drain_waits_for_jobs_then_refuses(gate: Barrier) -> None:
    async with running(f"stub?gate={gate}") as backend:
        slow = await waiting(backend, gate, 1, job(stub_model.WAITS))
        draining = asyncio.create_task(backend.drain())
        await until(lambda: not backend.ready())
        assert not draining.done()
        with pytest.raises(BackendError, match="UNAVAILABLE"):
            await backend.infer([job(0.1)])
        gate.open()
        await draining
        assert in_flight(backend) == 0
        assert arousal((await slow)[0]) == pytest.approx(WAITED)


async def test_close_answers_what_is_in_flight_at_once(gate: Barrier) -> None:
    times = WorkerTimes(start_s=20, batch_s=30, close_s=20)
    async with running(f"stub?gate={gate}", times=times) as backend:
        waits = await waiting(backend, gate, 1, job(stub_model.WAITS))
        (device,) = backend._devices
        await backend.close()
        (outcome,) = await waits
        assert reason(outcome) == "UNAVAILABLE"
        assert device.worker is not None
        assert device.worker.exit == {"exit_code": 0}, "it exits by itself and does not wait for its inference"


async def test_a_cancelled_call_frees_its_slot_only_when_the_work_is_done(gate: Barrier) -> None:
    async with running(f"stub?slots=1&gate={gate}") as backend:
        call = await waiting(backend, gate, 1, job(stub_model.WAITS))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        following = asyncio.create_task(backend.infer([job(stub_model.WAITS)]))
        for _ in range(10):
            await asyncio.sleep(0)
        assert in_flight(backend) == 1, "that of the cancelled call"
        assert gate.arrived == 1
        gate.open()
        assert arousal((await following)[0]) == pytest.approx(WAITED)
        assert gate.arrived == 2


# --- bad jobs --------------------------------------------------------------------------------------------------------


async def test_a_bad_job_gets_its_own_error_and_no_other_fails(capfd: pytest.CaptureFixture[str]) -> None:
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
    assert str(stub_model.RAISES) not in log, "the text of an exception may come from the audio"


async def test_a_poison_job_has_two_attempts_and_no_other_job_is_lost(gate: Barrier) -> None:
    async with running(f"stub?slots=2&gate={gate}") as backend:
        first = backend.pids
        beside = await waiting(backend, gate, 1, job(0.4), job(stub_model.WAITS))
        call = asyncio.create_task(backend.infer([job(0.1), job(stub_model.POISON), job(0.3)]))
        await until(lambda: first != backend.pids)
        gate.open()
        outcomes = await call
        assert reason(outcomes[1]) == "WORKER_FAILED"
        assert [arousal(outcomes[n]) for n in (0, 2)] == pytest.approx([1.4, 2.2])
        assert [arousal(outcome) for outcome in await beside] == pytest.approx([2.6, WAITED])
        assert [arousal(o) for o in await backend.infer([job(0.5001)])] == pytest.approx([3.0], abs=0.01)
        assert backend.restarts == 2


async def test_of_two_poison_jobs_at_once_no_other_job_is_lost(gate: Barrier) -> None:
    async with running(f"stub?slots=2&gate={gate}") as backend:
        poison = stub_model.WAITING_POISON
        one = asyncio.create_task(backend.infer([job(poison), job(0.1)]))
        two = await waiting(backend, gate, 2, job(0.2), job(poison))
        gate.open()
        first, second = await one, await two
    assert [reason(first[0]), reason(second[1])] == ["WORKER_FAILED"] * 2
    assert [arousal(first[1]), arousal(second[0])] == pytest.approx([1.4, 1.8])


async def test_a_second_attempt_waits_for_the_work_of_cancelled_callers(gate: Barrier) -> None:
    async with running(f"stub?slots=2&gate={gate}") as backend:
        poison = await waiting(backend, gate, 1, job(stub_model.WAITING_POISON))
        beside = await waiting(backend, gate, 2, job(stub_model.WAITS))
        (victim,) = backend.pids
        os.kill(victim, signal.SIGKILL)
        await until(lambda: gate.arrived == 3)  # the second attempt of the first, alone
        poison.cancel()  # the worker still goes on with it
        await asyncio.gather(poison, return_exceptions=True)
        for _ in range(10):
            await asyncio.sleep(0)
        assert in_flight(backend) == 1
        assert gate.arrived == 3
        gate.open()  # the poison kills this worker as well
        assert arousal((await beside)[0]) == pytest.approx(WAITED)
        assert backend.restarts == 2


async def test_second_attempts_go_before_new_jobs(gate: Barrier) -> None:
    """A second attempt needs a worker without other work, which there never is while new jobs keep coming."""
    async with running(f"stub?slots=2&gate={gate}") as backend:
        lost = await waiting(backend, gate, 1, job(stub_model.WAITS))
        outcomes: list[Analysis | BackendError] = []

        async def keep_busy() -> None:
            while not lost.done():
                outcomes.extend(await backend.infer([job(0.1)] * 3))

        callers = [asyncio.create_task(keep_busy()) for _ in range(4)]
        await until(lambda: len(outcomes) > 20)
        gate.open()
        os.kill(backend.pids[0], signal.SIGKILL)
        assert arousal((await lost)[0]) == pytest.approx(WAITED)
        await asyncio.gather(*callers)
        assert [arousal(outcome) for outcome in outcomes] == pytest.approx([1.4] * len(outcomes))


async def test_a_job_that_hangs_fails_after_two_deadlines(caplog: pytest.LogCaptureFixture) -> None:
    async with running(times=QUICK) as backend:
        hangs, beside = await asyncio.gather(backend.infer([job(stub_model.HANGS)]), backend.infer([job(0.2)]))
        assert reason(hangs[0]) == "WORKER_FAILED"
        assert arousal(beside[0]) == pytest.approx(1.8)
    assert late_after_s(caplog) == [QUICK.deadline_s(0.5)] * 2


# --- dying workers ---------------------------------------------------------------------------------------------------


async def test_jobs_in_flight_survive_sigkill(gate: Barrier, caplog: pytest.LogCaptureFixture) -> None:
    async with running(f"stub?gate={gate}") as backend:
        (victim,) = backend.pids
        calls = asyncio.gather(*(backend.infer([job(level), job(stub_model.WAITS)]) for level in (0.1, 0.2)))
        await until(lambda: gate.arrived == 2)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: not backend.ready())
        gate.open()
        outcomes = [outcome for call in await calls for outcome in call]
        assert [arousal(outcome) for outcome in outcomes] == pytest.approx([1.4, WAITED, 1.8, WAITED])
        assert backend.ready()
        assert victim not in backend.pids
    assert (victim, signal.SIGKILL) in {
        (record.__dict__.get("pid"), record.__dict__.get("signal")) for record in caplog.records
    }


async def test_sigstop_is_noticed_at_the_deadline_and_blocks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with running(times=QUICK) as backend:
        (victim,) = backend.pids
        os.kill(victim, signal.SIGSTOP)
        # 2 MB, more than a pipe holds: sending them to a process that does not read must not stop the event loop.
        calls = asyncio.gather(backend.infer([job(0.1, seconds=30.0)]), backend.infer([job(0.2)]))
        turns = 0
        while not calls.done():
            await asyncio.sleep(0.005)
            turns += 1
        outcomes = await calls
        assert [arousal(outcome) for (outcome,) in outcomes] == pytest.approx([1.4, 1.8], abs=1e-4)
        assert turns > 10, "the event loop ran on until the deadline"
        assert not exists(victim)
    assert late_after_s(caplog) == [QUICK.deadline_s(0.5)]


async def test_once_costs_are_known_a_hung_worker_is_given_up_early(
    gate: Barrier, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that is given up too early, being only slow, answers at the second attempt."""
    times = WorkerTimes(start_s=20, batch_s=30, first_attempt_min_s=0.5, close_s=1, backoff_first_s=0.05)
    async with running(f"stub?slots=1&gate={gate}", times=times) as backend:
        for _ in range(10):
            await backend.infer([job(0.1)])
        (victim,) = backend.pids
        os.kill(victim, signal.SIGSTOP)
        assert arousal((await backend.infer([job(0.1)]))[0]) == pytest.approx(1.4)
        slow = asyncio.create_task(backend.infer([job(stub_model.WAITS)]))
        await until(lambda: gate.arrived == 2)  # both attempts
        gate.open()
        assert arousal((await slow)[0]) == pytest.approx(WAITED)
        assert backend.restarts == 2
    given_up = late_after_s(caplog)
    assert len(given_up) == 2
    assert max(given_up) < times.batch_s


async def test_a_server_that_was_suspended_does_not_blame_the_worker(gate: Barrier) -> None:
    async with running(f"stub?gate={gate}", times=QUICK) as backend:
        pids = backend.pids
        call = await waiting(backend, gate, 1, job(stub_model.WAITS))
        gate.open()
        time.sleep(QUICK.deadline_s(0.5) + 2 * OVERSLEPT_S)  # noqa: ASYNC251 - deadline and answer pass while the loop stands
        assert arousal((await call)[0]) == pytest.approx(WAITED)
        assert backend.pids == pids


async def test_an_idle_worker_that_dies_is_replaced() -> None:
    async with running() as backend:
        for _ in range(3):
            (victim,) = backend.pids
            os.kill(victim, signal.SIGKILL)
            await until(lambda: backend.ready() and victim not in backend.pids)  # noqa: B023 (called here)


async def test_while_no_worker_starts_jobs_wait_for_a_bounded_time(tmp_path: Path) -> None:
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


async def test_signals_of_a_terminal_do_not_end_the_worker() -> None:
    async with running() as backend:
        (pid,) = backend.pids
        assert os.getpgid(pid) != os.getpgid(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert arousal((await backend.infer([job(0.1)]))[0]) == pytest.approx(1.4)
        assert backend.pids == (pid,)


async def test_workers_end_when_the_server_is_killed(gate: Barrier) -> None:
    program = f"""
import asyncio, numpy
from tests.support import stub_model
from kibun.models.types import Utterance
from kibun.server.inference.backend import Job
from kibun.server.inference.worker_pool import LocalBackend

async def main():
    backend = LocalBackend(["stub?gate={gate}"], loader="tests.support.stub_model:load")
    await backend.start()
    waits = Utterance(numpy.full(8000, stub_model.WAITS, numpy.float32), numpy.zeros((0, 4), numpy.float16))
    await backend.infer([Job("stub", waits)])

asyncio.run(main())
"""
    await kill_server_once_arrived(program, gate)


async def test_a_worker_that_loads_ends_when_the_server_is_killed(gate: Barrier) -> None:
    """It reads nothing while it loads, so it does not see the end of its pipe."""
    program = f"""
import asyncio
from kibun.server.inference.worker_pool import LocalBackend

asyncio.run(LocalBackend(["sleepy?gate={gate}"], loader="tests.support.stub_model:load").start())
"""
    await kill_server_once_arrived(program, gate)


async def kill_server_once_arrived(program: str, gate: Barrier) -> None:
    """Run a server until its worker is at the gate, kill it, and wait for the end of the worker."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment)
    try:
        await until(lambda: gate.arrived == 1)
        (worker,) = children(server.pid)
    finally:
        server.kill()
        await server.wait()
    await until(lambda: not exists(worker))


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
async def test_a_failing_start_names_the_reason_and_leaves_no_process(
    model: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    times = WorkerTimes(start_s=0.5 if model == "sleepy" else 20)
    backend = LocalBackend([model], loader="tests.support.stub_model:load", times=times)
    with pytest.raises(BackendError, match=message) as caught:
        await backend.start()
    assert caught.value.reason == "LOAD_FAILED"
    assert not backend.ready()
    assert children(os.getpid()) == []
    if model.startswith("/"):
        assert "Traceback" not in capfd.readouterr().err, "what the operator can fix needs no traceback"


async def test_one_of_two_devices_failing_fails_the_start(tmp_path: Path) -> None:
    backend = LocalBackend(["stub"], loader="tests.support.stub_model:load_on_cpu_only", device=["cpu", "cuda:7"])
    with pytest.raises(BackendError, match="cuda:7: no such device"):
        await backend.start()
    assert children(os.getpid()) == []


async def test_a_loader_that_does_not_exist_is_named() -> None:
    with pytest.raises(BackendError, match="no_such_loader"):
        await LocalBackend(["stub"], loader="no_such_loader:load").start()


def children(parent: int) -> list[int]:
    """Workers among the children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            worker = b"kibun.server.inference.worker" in (stat.parent / "cmdline").read_bytes()
            if worker and int(fields[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def test_the_server_side_imports_neither_torch_nor_grpc() -> None:
    program = (
        "import sys, kibun.server.inference.worker_pool, kibun.server.inference.batcher;"
        "heavy = {name for name in sys.modules if name.split('.')[0] in ('torch', 'grpc', 'transformers')"
        " or name.startswith('kibun.models.')} - {'kibun.models.types', 'kibun.models.evidence'};"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
