"""A bounded, deadline-ordered queue in front of a backend: `Batcher`, and its pure part, `JobQueue`.

A job goes out at once while the backend has an idle slot; only while all are busy do jobs gather, to leave together.
There is no fixed wait. Finals leave before interims, the earliest deadline first, and none is ever dropped.
Interims are what gives under load: a stream has at most one queued, its newest, and none once its final is there.
"""

import asyncio
import bisect
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kibun.server.backend import Backend, BackendError, Job, Result, Superseded


@dataclass(frozen=True)
class QueueLimits:
    """Bounds of the queue, in seconds of audio: what jobs cost, roughly, in time and in memory (64 kB a second)."""

    queued_s: float = 600.0  # finals that may be queued; interims may be as many again


@dataclass(frozen=True, order=True, slots=True)
class Ticket:
    """A queued job. Tickets are ordered by deadline, then by arrival."""

    deadline: float  # on the clock of whoever made it, in seconds
    number: int  # of arrival, unique
    job: Job = field(compare=False)
    stream_id: str = field(compare=False)
    final: bool = field(compare=False)


class JobQueue:
    """Decides what is queued and what leaves next. No clock, no asyncio; times come from the caller."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._finals: list[Ticket] = []  # sorted
        self._interims: list[Ticket] = []  # sorted
        self._interim_of: dict[str, Ticket] = {}  # by stream

    def __len__(self) -> int:
        return len(self._finals) + len(self._interims)

    def has_room(self, job: Job, *, final: bool) -> bool:
        """Whether a job may be pushed. A lane that is empty takes any job."""
        lane = self._finals if final else self._interims
        return not lane or _seconds(lane) + job.seconds <= self._limits.queued_s

    def push(self, ticket: Ticket) -> Ticket | None:
        """Queue a job; return its stream's interim that it supersedes, if any."""
        superseded = self._interim_of.get(ticket.stream_id)
        if superseded is not None:
            self.discard(superseded)
        if not ticket.final:
            self._interim_of[ticket.stream_id] = ticket
        bisect.insort(self._finals if ticket.final else self._interims, ticket)
        return superseded

    def discard(self, ticket: Ticket) -> bool:
        """Take a job out that nobody waits for any more; False if it has left already."""
        lane = self._finals if ticket.final else self._interims
        index = bisect.bisect_left(lane, ticket)
        if index == len(lane) or lane[index] is not ticket:
            return False
        del lane[index]
        self._forget(ticket)
        return True

    def pop_batch(self, idle_slots: int, slots: int, batch_s: float) -> list[Ticket]:
        """Take the jobs that leave now on one of the idle slots; empty if none should.

        `batch_s`: seconds of audio that a batch may carry; a job that is longer goes alone.

        A batch never mixes finals and interims, so no final waits for an interim's audio. While there is more than
        one slot, one is kept free of interims: the next final finds it idle. What other idle slots could start at
        once is left to them.
        """
        if idle_slots < 1:
            return []
        lane = self._finals
        if not lane:
            reserved = 1 if slots > 1 else 0
            lane, idle_slots = self._interims, idle_slots - reserved
            if idle_slots < 1 or not lane:
                return []
        share = -(-len(lane) // idle_slots)
        count, seconds = 1, lane[0].job.seconds
        while count < share and seconds + lane[count].job.seconds <= batch_s:
            seconds += lane[count].job.seconds
            count += 1
        batch = lane[:count]
        del lane[:count]
        for ticket in batch:
            self._forget(ticket)
        return batch

    def late(self, now: float) -> bool:
        """Whether a final is still queued past its deadline: more is asked for than the backend can do."""
        return bool(self._finals) and self._finals[0].deadline < now

    def clear(self) -> list[Ticket]:
        """Take everything out."""
        tickets = self._finals + self._interims
        self._finals, self._interims, self._interim_of = [], [], {}
        return tickets

    def _forget(self, ticket: Ticket) -> None:
        if self._interim_of.get(ticket.stream_id) is ticket:
            del self._interim_of[ticket.stream_id]


def _seconds(lane: list[Ticket]) -> float:
    return sum(ticket.job.seconds for ticket in lane)


class Batcher:
    """The queue at work on one event loop; implements backend.Analyzer."""

    def __init__(
        self, backend: Backend, limits: QueueLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backend = backend
        self._queue = JobQueue(limits or QueueLimits())
        self._clock = clock
        self._numbers = itertools.count()
        self._futures: dict[int, asyncio.Future[Result]] = {}  # by ticket number; queued and running
        self._running: set[asyncio.Task[None]] = set()
        self._entry = asyncio.Lock()  # finals that wait for room enter in the order they came
        self._room = asyncio.Event()  # something left the queue
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether finals wait for room, or are late while still queued."""
        return self._entry.locked() or self._queue.late(self._clock())

    @property
    def queued(self) -> int:
        """Jobs queued, not counting those running."""
        return len(self._queue)

    async def submit(self, job: Job, *, stream_id: str, final: bool, deadline_s: float) -> Result:
        """See backend.Analyzer.submit. A job that has left the queue is computed even if its caller is gone."""
        deadline = self._clock() + deadline_s
        ticket = Ticket(deadline, next(self._numbers), job, stream_id, final)
        if final:
            async with self._entry:
                while not self._queue.has_room(job, final=True):
                    self._room.clear()
                    await self._room.wait()
        elif self.full or not self._queue.has_room(job, final=False):
            raise Superseded
        if self._closed:
            raise BackendError("UNAVAILABLE", "the server is stopping")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._futures[ticket.number] = future
        superseded = self._queue.push(ticket)
        if superseded is not None:
            self._futures[superseded.number].set_exception(Superseded())
        self._dispatch()
        try:
            return await future
        finally:
            del self._futures[ticket.number]
            if self._queue.discard(ticket):
                self._room.set()

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        while self._running:
            await asyncio.wait(self._running)

    def close(self) -> None:
        """Answer all that is queued with BackendError UNAVAILABLE. Does not close the backend."""
        self._closed = True
        self._fail(self._queue.clear(), BackendError("UNAVAILABLE", "the server is stopping"))
        self._room.set()

    def _dispatch(self) -> None:
        """Give idle slots their work. Called whenever a job arrives or a slot falls idle."""
        slots = self._backend.slots
        while batch := self._queue.pop_batch(slots - len(self._running), slots, self._backend.batch_s):
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._done)
            self._room.set()

    async def _run(self, batch: list[Ticket]) -> None:
        try:
            outcomes = await self._backend.infer([ticket.job for ticket in batch])
        except BackendError as error:
            self._fail(batch, error)
            return
        except BaseException as error:
            self._fail(batch, BackendError("WORKER_FAILED", f"the backend raised {type(error).__name__}"))
            raise  # to the event loop, which logs it
        for ticket, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, BackendError):
                self._fail([ticket], outcome)
            elif (future := self._waiting(ticket)) is not None:
                future.set_result(outcome)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch()

    def _fail(self, batch: list[Ticket], error: BackendError) -> None:
        for ticket in batch:
            if (future := self._waiting(ticket)) is not None:
                # One exception each: awaiters in different tasks add their tracebacks to it.
                future.set_exception(BackendError(error.reason, error.message))

    def _waiting(self, ticket: Ticket) -> asyncio.Future[Result] | None:
        """Find the future of a caller who still waits."""
        future = self._futures.get(ticket.number)
        return None if future is None or future.done() else future
