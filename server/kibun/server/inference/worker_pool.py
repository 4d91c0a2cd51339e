"""LocalBackend: worker processes on this machine, restarted when they die; each lost job is tried once more.

Needs neither torch nor grpc. When a worker dies, every batch that it was running is lost, and any of their jobs may be
the cause. So the second attempt runs each of these jobs *alone*, one after the other: a job that kills its worker does
so at most twice, and the second time harms no other.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kibun.models.types import Precision
from kibun.server.inference.backend import BackendError, Job, ModelInfo, Outcomes
from kibun.server.inference.cost import CostModel
from kibun.server.inference.worker_process import EXIT_GRACE_S, WorkerDied, WorkerProcess
from kibun.server.inference.worker_protocol import LoadOptions
from kibun.server.observability import logs

_log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_LOADER = "kibun.server.inference.worker:load_models"
"""Loads bundles; see `runner.Loader`."""


@dataclass(frozen=True)
class WorkerTimes:
    """Timeouts of a LocalBackend, and when it starts a dead worker again; in seconds."""

    start_s: float = 300.0  # for a worker to be ready
    batch_s: float = 10.0  # for a batch to be answered; see `deadline_s`
    first_attempt_factor: float = 20.0  # the first attempt gets this many times the measured cost of the batch, …
    first_attempt_min_s: float = 3.0  # … and at least this long
    queue_s: float = 60.0  # for a batch to find a free worker
    close_s: float = 0.5  # for a worker to exit by itself
    backoff_first_s: float = 0.1  # before the second restart in a row; the first is immediate, then it doubles
    backoff_max_s: float = 10.0
    stable_s: float = 30.0  # a worker that ran this long ends the row

    def deadline_s(self, audio_s: float) -> float:
        """The longest that a batch with this much audio may take: `batch_s`, and as much again for every 5 s of it.

        By default each second of audio adds 2 s: ten times what a model of hubert-base's size takes on one slow core.
        """
        return self.batch_s * (1 + audio_s / 5)


class _Device:
    """A device, and the worker that runs on it now, if any."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self.worker: WorkerProcess | None = None
        self.reserved = False  # for one second attempt at a time

    @property
    def alive(self) -> bool:
        return self.worker is not None and self.worker.alive

    @property
    def load(self) -> float:
        """Share of its slots that are in use; 1 where it takes no batch now."""
        if self.worker is None or not self.worker.alive or self.reserved:
            return 1.0
        return self.worker.in_flight / self.worker.info.slots


class LocalBackend:
    """One worker process per device. All methods belong to one event loop."""

    def __init__(
        self,
        models: Sequence[str | os.PathLike[str]],
        *,
        device: str | Sequence[str] = "auto",
        threads: int | None = None,
        sharing: int = 1,
        allow_untrained: bool = False,
        precision: Precision = "auto",
        loader: str = DEFAULT_LOADER,
        times: WorkerTimes | None = None,
    ) -> None:
        """Take the options of the workers; `start` starts them.

        models: paths or names of bundles, the default first.
        device: auto, cpu, cuda or cuda:N; several devices get a worker each.
        threads: inference threads; None: one per usable core on a CPU. With several devices, of each worker.
        sharing: servers on this machine that share these threads, this one included.
        precision: of matrix products; see kibun.models.precision.
        loader: what the worker calls to load, "module:function" (see runner.Loader).
        """
        devices = [device] if isinstance(device, str) else list(device)
        self._times = times or WorkerTimes()
        self._devices = [
            _Device(
                LoadOptions(
                    loader=loader,
                    models=tuple(os.fspath(model) for model in models),
                    device=name,
                    threads=threads,
                    sharing=sharing,
                    allow_untrained=allow_untrained,
                    precision=precision,
                    import_path=tuple(sys.path),
                    log_level=logging.getLogger().getEffectiveLevel(),
                    log_format=logs.chosen(),
                    front=logs.front(),
                )
            )
            for name in devices
        ]
        self.restarts = 0
        """Workers started in place of dead ones."""
        self.slots = 0
        """Batches that all workers together run at once; 0 before `start`."""
        self.batch_s = 0.0
        """Seconds of audio that one batch may carry; 0 where batching gains nothing."""
        self.costs: tuple[tuple[float, float], ...] = ()
        """See Backend.costs."""
        self._cost = CostModel()
        self._restarters: list[asyncio.Task[None]] = []
        self._calls = 0  # `infer` calls in flight
        self._first_lock, self._second_lock = asyncio.Lock(), asyncio.Lock()
        self._retries = 0  # jobs waiting for, or in, their second attempt
        self._accepting = False
        self._closed = False
        self._down_since: float | None = None
        self._changed = asyncio.Event()  # replaced at every change; see _wait_for

    async def start(self) -> tuple[ModelInfo, ...]:
        """Spawn the workers and wait until all are ready. Raises BackendError LOAD_FAILED."""
        spawns = [asyncio.create_task(self._spawn(device)) for device in self._devices]
        try:
            await asyncio.gather(*spawns)
        except BaseException:
            for spawn in spawns:
                spawn.cancel()
            await asyncio.gather(*spawns, return_exceptions=True)
            await self.close()
            raise
        workers = [device.worker for device in self._devices if device.worker is not None]
        self.batch_s, self.costs = workers[0].info.batch_s, workers[0].info.costs
        self.slots = sum(worker.info.slots for worker in workers)
        self._restarters = [asyncio.create_task(self._restart_when_dead(device)) for device in self._devices]
        self._accepting = True
        return workers[0].info.models

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are alive."""
        return tuple(d.worker.pid for d in self._devices if d.worker is not None and d.worker.alive)

    def ready(self) -> bool:
        """Whether a worker is alive and new jobs are accepted."""
        return self._accepting and any(device.alive for device in self._devices)

    def down_s(self) -> float:
        """Seconds for which no worker has been alive; 0 while one is, and before the first."""
        return 0.0 if self._down_since is None else asyncio.get_running_loop().time() - self._down_since

    async def infer(self, jobs: Sequence[Job]) -> Outcomes:
        """Analyse a batch on the least busy worker; see Backend.infer.

        A job whose worker died or hung on both attempts gets BackendError WORKER_FAILED; one for which there was no
        worker, NO_WORKER.
        """
        if not self._accepting:
            raise BackendError("UNAVAILABLE", "the backend is not running")
        self._calls += 1
        try:
            try:
                return await self._first_attempt(jobs)
            except WorkerDied:
                return await self._second_attempts(jobs)
        finally:
            self._calls -= 1
            self._notify()

    async def drain(self) -> None:
        """Refuse new jobs and wait for those in flight. The workers run on until `close`."""
        self._accepting = False
        with contextlib.suppress(BackendError):  # closed meanwhile: nothing is in flight any more
            await self._wait_for(lambda: self._calls == 0 or None)

    async def close(self) -> None:
        """End all workers; jobs in flight get BackendError UNAVAILABLE."""
        self._accepting, self._closed = False, True
        for restarter in self._restarters:
            restarter.cancel()
        await asyncio.gather(*self._restarters, return_exceptions=True)
        workers = [device.worker for device in self._devices if device.worker is not None]
        await asyncio.gather(*(worker.close(grace_s=self._times.close_s) for worker in workers))
        self._notify()

    async def _first_attempt(self, jobs: Sequence[Job]) -> Outcomes:
        device = await self._wait_for_worker(self._first_lock, self._least_busy)
        return await self._run(device, jobs, self._first_deadline_s(_seconds(jobs)))

    async def _second_attempts(self, jobs: Sequence[Job]) -> Outcomes:
        outcomes = Outcomes([])
        for job in jobs:
            self._retries += 1
            try:
                alone = await self._attempt_alone(job)
            finally:
                self._retries -= 1
                self._notify()
            outcomes.extend(alone)
        return outcomes

    async def _attempt_alone(self, job: Job) -> Outcomes:
        try:
            device = await self._wait_for_worker(self._second_lock, self._idle)
        except BackendError as error:
            return Outcomes([error])
        device.reserved = True
        try:
            return await self._run(device, [job], self._times.deadline_s(job.utterance.seconds))
        except WorkerDied:
            if self._closed:
                return Outcomes([BackendError("UNAVAILABLE", "the backend was closed")])
            return Outcomes([BackendError("WORKER_FAILED", "the worker died or hung on both attempts")])
        finally:
            device.reserved = False

    async def _run(self, device: _Device, jobs: Sequence[Job], timeout_s: float) -> Outcomes:
        assert device.worker is not None
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcomes = await device.worker.infer(jobs, timeout_s=timeout_s)
        if not any(isinstance(outcome, BackendError) for outcome in outcomes):
            self._cost.observe(_seconds(jobs), loop.time() - began)
        return outcomes

    def _first_deadline_s(self, audio_s: float) -> float:
        """Shorter than the second once the cost of batches is known: one given up too early is still tried again."""
        times = self._times
        if not self._cost.trusted:
            return times.deadline_s(audio_s)
        measured_s = max(times.first_attempt_min_s, times.first_attempt_factor * self._cost.expect(audio_s))
        return min(measured_s, times.deadline_s(audio_s))

    def _least_busy(self) -> _Device | None:
        """Find a worker with a free slot; None while there is none, or while second attempts come first."""
        device = min(self._devices, key=lambda device: device.load)
        return device if device.load < 1 and not self._retries else None

    def _idle(self) -> _Device | None:
        """Find a worker with nothing in flight."""
        return next((device for device in self._devices if device.load == 0), None)

    async def _wait_for_worker(self, lock: asyncio.Lock, find: Callable[[], _Device | None]) -> _Device:
        """Wait for a worker; callers that share a lock are served in order. Raises BackendError NO_WORKER."""
        try:
            async with asyncio.timeout(self._times.queue_s), lock:
                return await self._wait_for(find)
        except TimeoutError:
            raise BackendError("NO_WORKER", f"no worker was free within {self._times.queue_s:g} s") from None

    async def _wait_for(self, find: Callable[[], T | None]) -> T:
        """Wait until `find`, called again after every change, finds something."""
        while (found := find()) is None:
            if self._closed:
                raise BackendError("UNAVAILABLE", "the backend was closed")
            await self._changed.wait()
        return found

    def _notify(self) -> None:
        """Wake everything that waits in `_wait_for`."""
        if any(device.alive for device in self._devices):
            self._down_since = None
        elif self._accepting and self._down_since is None:
            self._down_since = asyncio.get_running_loop().time()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _spawn(self, device: _Device) -> None:
        device.worker = await WorkerProcess.spawn(device.options, timeout_s=self._times.start_s, on_change=self._notify)
        _log.info("worker is ready", extra={"pid": device.worker.pid, "device": device.worker.info.device})
        self._notify()

    async def _restart_when_dead(self, device: _Device) -> None:
        """Start another worker whenever the device's has died; wait longer each time that does not help."""
        loop = asyncio.get_running_loop()
        failures, ready_at = 0, loop.time()
        while True:
            await self._wait_for(lambda: not device.alive or None)
            if loop.time() - ready_at >= self._times.stable_s:
                failures = 0
            if failures:
                delay_s = self._times.backoff_first_s * 2 ** min(failures - 1, 30)
                await asyncio.sleep(min(delay_s, self._times.backoff_max_s))
            failures += 1
            if device.worker is not None:
                await device.worker.close(grace_s=EXIT_GRACE_S)
                _log.error("worker ended; starting another", extra={"pid": device.worker.pid, **device.worker.exit})
                device.worker = None
            try:
                await self._spawn(device)
                self.restarts += 1
            except BackendError as error:
                _log.error("a worker could not be started again", extra={"reason": error.reason}, exc_info=error)
            except Exception:  # whatever it is, giving up would leave the server without a worker for good
                _log.exception("a worker could not be started again")
            ready_at = loop.time()


def _seconds(jobs: Sequence[Job]) -> float:
    return sum(job.utterance.seconds for job in jobs)
