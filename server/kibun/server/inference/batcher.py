"""A bounded, deadline-ordered queue in front of a backend: `Batcher`, and its pure part, `JobQueue`.

A job is dispatched at once while the backend has an idle slot; jobs queue only while all slots are busy. There is no
fixed wait. Finals go before eager jobs, and these before interims; each earliest deadline first. Finals are never
dropped. What is not final is, under load: a stream has at most one such job queued, its newest, and none once its final
is queued. An eager job becomes the final where its utterance ended as expected, wherever it is by then: in the queue,
at work, or answered.

Whether queued jobs go together depends on the measured cost of batches, `a * audio_seconds + b`. One more job in a
batch of k makes those k wait for its audio, k * a * seconds. It saves one b, for which the job and all those behind it
would wait, on one of the slots. So it is added while

    k * a * seconds  <  b * (jobs that are not in the batch yet) / slots

which minimises the mean wait: with b near 0 (a CPU) jobs go one by one and the first answer comes soonest; with a large
b (a GPU), or a long queue, where throughput counts, they go together. Two limits are hard: the audio that the backend
takes in one batch, and the deadline of the batch's first job, if it can be met at all.
"""

import asyncio
import bisect
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from kibun.models.types import Analysis
from kibun.server.inference import admission
from kibun.server.inference.admission import Outlook, SpeechLoad
from kibun.server.inference.backend import Backend, BackendError, Job, Outcomes, Superseded, Urgency
from kibun.server.inference.cost import CostModel
from kibun.server.observability.telemetry import Telemetry

SOON_S = 10.0
"""A worker is restarted within this time: until then streams are admitted, so that one that kills it shuts out none."""


@dataclass(frozen=True)
class QueueLimits:
    """Bounds of the queue, in seconds of audio: roughly what jobs cost in time and in memory (64 kB per second)."""

    queued_s: float = 600.0  # of finals; as much again of those that were eager jobs, and of interims


@dataclass(frozen=True, order=True, slots=True)
class Ticket:
    """A queued job. Tickets are ordered by deadline, then by arrival."""

    deadline: float  # in seconds, on the clock of the caller
    number: int  # in order of arrival, unique
    job: Job = field(compare=False)
    stream_id: str = field(compare=False)
    urgency: Urgency = field(compare=False)
    queued: float = field(compare=False, default=0.0)  # since when, on the same clock


class JobQueue:
    """Decides what is queued and which jobs go next. No clock, no asyncio: the caller passes times."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._lanes: dict[Urgency, list[Ticket]] = {"final": [], "eager": [], "interim": []}  # each sorted
        self._early_of: dict[str, Ticket] = {}  # by stream: its eager job or interim

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def accepts(self, job: Job, urgency: Urgency) -> bool:
        """Whether a job may be pushed. An empty lane accepts any job; an eager one needs room among the finals too."""
        queued = self._lanes[urgency] if urgency != "eager" else self._lanes["final"] + self._lanes["eager"]
        return not queued or _seconds(queued) + job.utterance.seconds <= self._limits.queued_s

    def push(self, ticket: Ticket) -> Ticket | None:
        """Queue a job; return the queued eager job or interim of its stream, which it supersedes, if there is one."""
        superseded = self._early_of.get(ticket.stream_id)
        if superseded is not None:
            self.discard(superseded)
        if ticket.urgency != "final":
            self._early_of[ticket.stream_id] = ticket
        bisect.insort(self._lanes[ticket.urgency], ticket)
        return superseded

    def promote(self, final: Ticket) -> None:
        """Queue a final in place of the eager job that it was; does nothing if that has left the queue."""
        eager = self._early_of.get(final.stream_id)
        if eager is not None and eager.job is final.job:
            self.push(final)

    def discard(self, ticket: Ticket) -> bool:
        """Remove a job whose caller is gone; False if it is no longer queued."""
        lane = self._lanes[ticket.urgency]
        index = bisect.bisect_left(lane, ticket)
        if index == len(lane) or lane[index] is not ticket:
            return False
        del lane[index]
        self._forget(ticket)
        return True

    def pop_batch(self, idle_slots: int, slots: int, *, batch_s: float, now: float, cost: CostModel) -> list[Ticket]:
        """Remove and return the jobs that go now to one of the idle slots; empty if none should.

        batch_s: seconds of audio that a batch may carry; a longer job goes alone.

        They are always the head of a lane: no final goes after one with a later deadline that was queued at the same
        time, whatever their lengths. A batch never mixes lanes, so no final waits for an interim's audio. Where there
        are several slots, one takes no interims: the next final finds it idle. Jobs that other idle slots could start
        at once are left to those.
        """
        if idle_slots < 1:
            return []
        lane = self._lanes["final"] or self._lanes["eager"]
        if not lane:
            reserved = 1 if slots > 1 else 0
            lane, idle_slots = self._lanes["interim"], idle_slots - reserved
            if idle_slots < 1 or not lane:
                return []
        share = -(-len(lane) // idle_slots)
        count, seconds, left_s = 1, lane[0].job.utterance.seconds, lane[0].deadline - now
        while count < share:
            added_s = lane[count].job.utterance.seconds
            saved_s = cost.per_batch_s * (len(lane) - count) / slots
            if seconds + added_s > batch_s or count * cost.per_audio_s * added_s >= saved_s:
                break
            if cost.expect(seconds) <= left_s < cost.expect(seconds + added_s):
                break
            seconds += added_s
            count += 1
        batch = lane[:count]
        del lane[:count]
        for ticket in batch:
            self._forget(ticket)
        return batch

    @property
    def finals_s(self) -> float:
        """Seconds of audio in the queued finals."""
        return _seconds(self._lanes["final"])

    def clear(self) -> list[Ticket]:
        """Remove and return everything."""
        tickets = [ticket for lane in self._lanes.values() for ticket in lane]
        for lane in self._lanes.values():
            lane.clear()
        self._early_of.clear()
        return tickets

    def _forget(self, ticket: Ticket) -> None:
        if self._early_of.get(ticket.stream_id) is ticket:
            del self._early_of[ticket.stream_id]


def _seconds(lane: list[Ticket]) -> float:
    return sum(ticket.job.utterance.seconds for ticket in lane)


class Batcher:
    """The queue at work on one event loop; implements backend.Analyzer."""

    def __init__(
        self,
        backend: Backend,
        limits: QueueLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        cost: CostModel | None = None,
        telemetry: Telemetry | None = None,
        target_delay_s: float | None = None,
    ) -> None:
        """target_delay_s: bound on the predicted wait; None: what pays on this machine, `admission.target_delay_s`."""
        self._backend = backend
        self._queue = JobQueue(limits or QueueLimits())
        self._clock = clock
        self._cost = cost or CostModel()
        self._telemetry = telemetry or Telemetry()
        self._target_delay_s = target_delay_s
        self._speech = SpeechLoad()
        self._numbers = itertools.count()
        self._futures: dict[int, asyncio.Future[Analysis]] = {}  # by ticket number; queued and running
        # Answers to eager jobs, given or to be given, for as long as their submitter keeps the job.
        self._eager: WeakKeyDictionary[Job, asyncio.Future[Analysis]] = WeakKeyDictionary()
        self._running: dict[asyncio.Task[None], float] = {}  # batches, and when they are expected to end
        self._entry = asyncio.Lock()  # finals that wait for a full queue enter it in the order they came
        self._dequeued = asyncio.Event()  # a job left the queue
        self._closed = False

    @property
    def queued(self) -> int:
        """Jobs queued, not counting those running."""
        return len(self._queue)

    @property
    def load(self) -> float:
        """Share of the machine that the finals of all open streams are expected to need; above 1 if it is too small."""
        return self._speech.rate(self._clock()) * self._share_of_speech

    @property
    def wait_s(self) -> float:
        """Seconds for which a final submitted now is expected to wait before its analysis begins."""
        slots, now = self._backend.slots, self._clock()
        if len(self._running) < slots:
            return 0.0
        # An overdue batch is expected to take as long again as it is late.
        running_s = sum(abs(done_at - now) for done_at in list(self._running.values()))  # metrics are read by threads
        queued_s = self._queue.finals_s * self._busy_cost
        return (running_s + queued_s) / max(slots, 1)

    @property
    def delay_s(self) -> float:
        """Seconds for which finals are predicted to wait, on average, if as many streams stay open as are now."""
        return self._predict(self._speech.rate(self._clock()))

    @property
    def target_delay_s(self) -> float:
        """Predicted `delay_s` up to which new streams are admitted."""
        if self._target_delay_s is not None:
            return self._target_delay_s
        return admission.target_delay_s(self._cost.expect(self._speech.final_s), self._backend.slots)

    @property
    def full(self) -> bool:
        """See backend.Analyzer.full."""
        waits_s = admission.INTERIM_WAIT * self.target_delay_s
        return self._entry.locked() or self.load > admission.INTERIM_LOAD or self.wait_s > waits_s

    @property
    def stretch(self) -> float:
        """See backend.Analyzer.stretch."""
        return admission.stretch(self.load)

    def ready(self) -> bool:
        """See backend.Analyzer.ready."""
        return self._backend.down_s() < SOON_S

    def admits(self, *, running: bool) -> bool:
        """See backend.Analyzer.admits. The first stream is always admitted, however slow the machine."""
        if not self._speech:
            return True
        bound_s = self.target_delay_s * (admission.RUNNING if running else 1)
        now, speech = self._clock(), self._speech
        rate = speech.rate(now) if running else speech.lasting_rate(now)
        return not self._entry.locked() and self._predict(rate + speech.new_rate) <= bound_s

    @contextmanager
    def stream(self, stream_id: str, *, running: bool = False) -> Iterator[None]:
        """See backend.Analyzer.stream."""
        self._speech.open(stream_id, self._clock(), running=running)
        try:
            yield
        finally:
            self._speech.close(stream_id, self._clock())

    def learn_costs(self) -> None:
        """Learn the cost of batches from the backend's start, before any stream has to be admitted."""
        for audio_s, took_s in self._backend.costs:
            self._cost.observe(audio_s, took_s)

    async def submit(self, job: Job, *, stream_id: str, urgency: Urgency, deadline_s: float) -> Analysis:
        """See backend.Analyzer.submit. A job that has left the queue is computed even if its caller is cancelled."""
        now = self._clock()
        ticket = Ticket(now + deadline_s, next(self._numbers), job, stream_id, urgency, now)
        answer = None
        if urgency == "final":
            self._speech.add_final(stream_id, job.utterance.seconds, now)
            answer = self._take_over_eager(ticket)
            if answer is None:
                async with self._entry:
                    while not self._queue.accepts(job, urgency):
                        self._dequeued.clear()
                        await self._dequeued.wait()
        elif self.full or not self._queue.accepts(job, urgency):
            raise Superseded
        if answer is None:
            answer = self._push(ticket)
        if urgency == "eager":
            self._eager[job] = answer
        try:
            return await (asyncio.shield(answer) if urgency == "eager" else answer)
        finally:
            # An error is not kept for the final: its traceback would keep the job, and so the error itself, for ever.
            given = answer.done() and not answer.cancelled() and answer.exception() is None
            if urgency != "eager" or (not given and self._eager.pop(job, None) is not None):
                answer.cancel()  # nobody waits for it; does nothing once it is there
                if self._queue.discard(ticket):
                    self._dequeued.set()

    def _push(self, ticket: Ticket) -> asyncio.Future[Analysis]:
        """Queue a job; return its answer to be. Raises BackendError UNAVAILABLE."""
        if self._closed:
            raise BackendError("UNAVAILABLE", "the server is stopping")
        answer = self._expect(ticket, asyncio.get_running_loop().create_future())
        superseded = self._queue.push(ticket)
        if superseded is not None and (waiting := self._waiting(superseded)) is not None:
            waiting.set_exception(Superseded())
        self._dispatch()
        return answer

    def _take_over_eager(self, final: Ticket) -> asyncio.Future[Analysis] | None:
        """The answer to the final's job that was submitted as eager, given or to be given; None: there is none."""
        answer = self._eager.pop(final.job, None)
        if answer is None or (answer.done() and (answer.cancelled() or answer.exception())):
            return None
        self._queue.promote(final)
        return self._expect(final, answer)

    def _expect(self, ticket: Ticket, answer: asyncio.Future[Analysis]) -> asyncio.Future[Analysis]:
        self._futures[ticket.number] = answer
        answer.add_done_callback(lambda _: self._futures.pop(ticket.number))
        return answer

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        while self._running:
            await asyncio.wait(self._running)

    def close(self) -> None:
        """Fail everything that is queued with BackendError UNAVAILABLE. Does not close the backend."""
        self._closed = True
        self._fail(self._queue.clear(), BackendError("UNAVAILABLE", "the server is stopping"))
        self._dequeued.set()

    @property
    def _busy_cost(self) -> float:
        """Seconds that a second of audio costs a slot when jobs queue up."""
        return self._cost.per_audio_when_busy_s(self._speech.final_s, self._backend.batch_s)

    @property
    def _share_of_speech(self) -> float:
        """Share of the machine that one second of speech per second needs."""
        return self._busy_cost / max(self._backend.slots, 1)

    def _predict(self, rate: float) -> float:
        """`delay_s` if this many seconds of speech came per second."""
        now, share, speech = self._clock(), self._share_of_speech, self._speech
        burst_s = speech.long_final_s * share
        return Outlook(
            self.wait_s, rate * share, burst_s, soon_s=speech.final_s, remaining_s=speech.remaining_s(now)
        ).delay_s()

    def _dispatch(self) -> None:
        """Start batches on idle slots. Called whenever a job arrives or a slot becomes idle."""
        slots, batch_s = self._backend.slots, self._backend.batch_s
        while True:
            now, idle = self._clock(), slots - len(self._running)
            batch = self._queue.pop_batch(idle, slots, batch_s=batch_s, now=now, cost=self._cost)
            if not batch:
                return
            task = asyncio.create_task(self._run(batch))
            self._running[task] = now + self._cost.expect(_seconds(batch))
            task.add_done_callback(self._done)
            self._dequeued.set()

    async def _run(self, batch: list[Ticket]) -> None:
        try:
            outcomes = await self._infer(batch)
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

    async def _infer(self, batch: list[Ticket]) -> Outcomes:
        """Run a batch and observe its cost, unless a job failed: then it is unknown what ran."""
        began = self._clock()
        outcomes = await self._backend.infer([ticket.job for ticket in batch])
        answered = self._clock()
        if not any(isinstance(outcome, BackendError) for outcome in outcomes):
            audio_s, cost_s = _seconds(batch), answered - began
            if outcomes.helped_s is not None:  # and cut for that, which costs as well: it shows that no more is needed
                cost_s = min(outcomes.helped_s, self._cost.expect(audio_s))
            self._cost.observe(audio_s, cost_s)
        self._telemetry.ran([(t.stream_id, t.urgency, t.queued) for t in batch], began, answered)
        return outcomes

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._dispatch()

    def _fail(self, batch: list[Ticket], error: BackendError) -> None:
        for ticket in batch:
            if (future := self._waiting(ticket)) is not None:
                # One exception each: awaiters in different tasks add their tracebacks to it.
                future.set_exception(BackendError(error.reason, error.message))

    def _waiting(self, ticket: Ticket) -> asyncio.Future[Analysis] | None:
        """The future of a caller that still waits."""
        future = self._futures.get(ticket.number)
        return None if future is None or future.done() else future
