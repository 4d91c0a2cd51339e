"""The decisions of the queue against invariants, and the batcher in front of a fake backend."""

import asyncio
import contextlib
import gc
import itertools
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kibun.models.types import Analysis, Utterance
from kibun.server.inference import admission
from kibun.server.inference.backend import BackendError, Job, Outcomes, Superseded, Urgency
from kibun.server.inference.batcher import Batcher, JobQueue, QueueLimits, Ticket
from kibun.server.inference.cost import CostModel
from tests.support.scripted import AliveBackend

NO_HISTORY = np.zeros((0, 4), np.float16)
LIMITS = QueueLimits(queued_s=20.0)


def make_job(seconds: float = 1.0, label: float = 0.0) -> Job:
    return Job("stub", Utterance(np.full(int(seconds * 16_000), label, np.float32), NO_HISTORY))


def make_ticket(
    number: int, deadline: float, *, stream: str = "a", urgency: Urgency = "final", seconds: float = 1.0
) -> Ticket:
    return Ticket(deadline, number, make_job(seconds), stream, urgency)


def costing(per_audio_s: float, per_batch_s: float) -> CostModel:
    """A model that has learnt these costs."""
    cost = CostModel()
    for index in range(300):
        audio_s = 0.5 * (1 + index % 20)
        cost.observe(audio_s, per_audio_s * audio_s + per_batch_s)
    return cost


COSTS = {"batching pays": costing(0.001, 1.0), "it does not": costing(0.1, 0.0), "it may": costing(0.1, 0.2)}


# --- JobQueue --------------------------------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """Any order of arrivals, departures and cancellations, against a plain set of what should be queued."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = JobQueue(LIMITS)
        self.queued: dict[int, Ticket] = {}
        self.number = 0
        self.finals_in = 0
        self.finals_out = 0

    def arrive(self, stream: str, urgency: Urgency, deadline: int, seconds: int) -> None:
        ticket = make_ticket(self.number, deadline, stream=stream, urgency=urgency, seconds=seconds)
        if not self.queue.accepts(ticket.job, urgency):
            return
        self.number += 1
        expected = [t for t in self.queued.values() if t.stream_id == stream and t.urgency != "final"]
        superseded = self.queue.push(ticket)
        assert ([superseded] if superseded else []) == expected
        for old in expected:
            del self.queued[old.number]
        self.queued[ticket.number] = ticket
        self.finals_in += urgency == "final"

    streams, deadlines, lengths = st.sampled_from("abcd"), st.integers(0, 9), st.integers(1, 12)

    @rule(stream=streams, deadline=deadlines, seconds=lengths)
    def final_arrives(self, stream: str, deadline: int, seconds: int) -> None:
        self.arrive(stream, "final", deadline, seconds)

    @rule(stream=streams, deadline=deadlines, seconds=lengths)
    def eager_job_arrives(self, stream: str, deadline: int, seconds: int) -> None:
        self.arrive(stream, "eager", deadline, seconds)

    @rule(stream=streams, deadline=deadlines, seconds=lengths)
    def interim_arrives(self, stream: str, deadline: int, seconds: int) -> None:
        self.arrive(stream, "interim", deadline, seconds)

    @rule(stream=streams, deadline=deadlines)
    def eager_job_becomes_the_final(self, stream: str, deadline: int) -> None:
        eager = next((t for t in self.queued.values() if t.stream_id == stream and t.urgency == "eager"), None)
        job = eager.job if eager else make_job()
        final = Ticket(deadline, self.number, job, stream, "final")
        self.number += 1
        self.queue.promote(final)
        if eager is not None:
            del self.queued[eager.number]
            self.queued[final.number] = final
            self.finals_in += 1

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def caller_cancels(self, data: st.DataObject) -> None:
        ticket = self.queued.pop(data.draw(st.sampled_from(sorted(self.queued))))
        assert self.queue.discard(ticket)
        assert not self.queue.discard(ticket)
        self.finals_out += ticket.urgency == "final"

    @rule(
        idle=st.integers(0, 3),
        spare=st.integers(0, 2),
        batch_s=st.sampled_from([0.0, 4.0, 100.0]),
        now=st.integers(-5, 15),
        costs=st.sampled_from(sorted(COSTS)),
    )
    def slot_falls_idle(self, idle: int, spare: int, batch_s: float, now: int, costs: str) -> None:
        slots, cost = idle + spare, COSTS[costs]
        batch = self.queue.pop_batch(idle, slots, batch_s=batch_s, now=now, cost=cost)
        lane: list[Ticket] = []
        for urgency in ("final", "eager", "interim"):
            lane = lane or sorted(t for t in self.queued.values() if t.urgency == urgency)
        assert batch == lane[: len(batch)], "earliest deadlines first, finals before eager jobs, these before interims"
        seconds = sum(t.job.utterance.seconds for t in batch)
        assert len(batch) <= 1 or seconds <= batch_s
        if batch and now + cost.expect(batch[0].job.utterance.seconds) <= batch[0].deadline:
            assert now + cost.expect(seconds) <= batch[0].deadline, "no job is late because of the others in its batch"
        assert len(batch) <= 1 or costs != "it does not"
        if lane and lane[0].urgency != "interim":
            assert bool(batch) == bool(idle), "what is or may be a final goes whenever a slot is idle"
        elif lane:
            assert bool(batch) == (idle > 1 or idle == slots == 1), "one slot of several is reserved for finals"
        for ticket in batch:
            del self.queued[ticket.number]
            self.finals_out += ticket.urgency == "final"

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert len(self.queue) == len(self.queued)
        assert self.finals_in - self.finals_out == sum(t.urgency == "final" for t in self.queued.values())

    @invariant()
    def bounded(self) -> None:
        for urgency in ("eager", "interim"):
            lengths = [t.job.utterance.seconds for t in self.queued.values() if t.urgency == urgency]
            assert len(lengths) <= 1 or sum(lengths) <= LIMITS.queued_s
        finals = [t.job.utterance.seconds for t in self.queued.values() if t.urgency == "final"]
        assert len(finals) <= 2 or sum(finals) <= 2 * LIMITS.queued_s
        early = [t.stream_id for t in self.queued.values() if t.urgency != "final"]
        assert len(early) == len(set(early)), "at most one job per stream that is not final"

    def teardown(self) -> None:
        assert sorted(self.queue.clear()) == sorted(self.queued.values())
        assert len(self.queue) == 0


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40)


def sizes(cost: CostModel, jobs: int, *, slots: int = 1, idle: int = 1, deadline: float = 100.0) -> list[int]:
    """The sizes of the batches in which that many jobs of 1 s go, one whenever a slot becomes idle."""
    queue = JobQueue(QueueLimits())
    for number in range(jobs):
        queue.push(make_ticket(number, deadline=deadline, stream=str(number)))
    found = []
    while len(queue):
        found.append(len(queue.pop_batch(idle, slots, batch_s=60.0, now=0.0, cost=cost)))
    return found


def test_idle_slots_share_what_is_queued() -> None:
    queue = JobQueue(LIMITS)
    for number in range(4):
        queue.push(make_ticket(number, deadline=100 + number, stream=str(number)))
    cost = costing(0.001, 1.0)
    assert [len(queue.pop_batch(idle, 3, batch_s=100.0, now=0.0, cost=cost)) for idle in (3, 2, 1)] == [2, 1, 1]


def test_jobs_go_together_where_that_shortens_the_mean_wait() -> None:
    assert sizes(costing(0.1, 0.0), 8) == [1] * 8, "a batch saves nothing"
    assert sizes(costing(0.001, 0.1), 8) == [8], "a batch costs as much as a job"
    # A second job makes the first wait 0.1 s longer and saves 0.02 s for each of those behind the first.
    assert sizes(costing(0.1, 0.02), 5) == [1] * 5
    assert sizes(costing(0.1, 0.02), 12)[0] == 2, "much is queued: throughput counts"
    assert sizes(costing(0.1, 0.02), 12, slots=3)[0] == 1, "but other slots work on it too"


def test_a_batch_grows_no_further_than_its_first_deadline_allows_unless_that_is_missed_anyway() -> None:
    cost = costing(0.01, 0.5)
    assert sizes(cost, 8, deadline=0.545)[0] == 4
    assert sizes(cost, 8, deadline=0.4)[0] == 8


def simulate(load: float, seconds: float, slots: int) -> tuple[list[float], int, int]:
    """Finals of 3 s every 1 / load seconds, interims between them, on slots that take 0.1 s per audio second.

    Returns how late each final was, interims computed, interims asked for.
    """
    queue, rng = JobQueue(QueueLimits()), np.random.default_rng(0)
    arrivals = [(float(t), bool(n % 4 == 3)) for n, t in enumerate(np.cumsum(rng.exponential(0.25 / load, 4000)))]
    arrivals = [(t, final) for t, final in arrivals if t < seconds]
    busy_until = [0.0] * slots
    lateness, interims, asked, number, now = [], 0, 0, 0, 0.0
    while arrivals or len(queue) or max(busy_until) > now:
        while arrivals and arrivals[0][0] <= now:
            _, final = arrivals.pop(0)
            asked += not final
            number += 1
            urgency: Urgency = "final" if final else "interim"
            queue.push(make_ticket(number, now + 1.0, stream=str(number // 4), urgency=urgency, seconds=3.0))
        for slot in range(slots):
            idle = sum(until <= now for until in busy_until)
            if busy_until[slot] <= now and (
                batch := queue.pop_batch(idle, slots, batch_s=0.0, now=now, cost=CostModel())
            ):
                busy_until[slot] = now + 0.3 * len(batch)
                lateness += [busy_until[slot] - t.deadline for t in batch if t.urgency == "final"]
                interims += sum(t.urgency == "interim" for t in batch)
        later = [until for until in busy_until if until > now] + [t for t, _ in arrivals[:1]]
        now = min(later) if later else now
    return lateness, interims, asked


def test_under_overload_interims_are_dropped_and_finals_are_not() -> None:
    # Two slots finish 6.7 jobs a second. Finals alone take 60 %, with their interims 240 %.
    lateness, interims, asked = simulate(load=4.0, seconds=60.0, slots=2)
    assert len(lateness) == pytest.approx(240, rel=0.2)
    assert np.quantile(lateness, 0.95) < 0.0, "95 % of finals are done before their deadline"
    assert 0 < interims < 0.5 * asked
    _, interims, asked = simulate(load=0.2, seconds=60.0, slots=2)
    assert interims > 0.8 * asked, "on an idle server most are computed"


# --- Batcher ---------------------------------------------------------------------------------------------------------


class FakeBackend(AliveBackend):
    """Answers once `gate` is set; the vector repeats the label of the job's audio."""

    def __init__(self, slots: int = 1, batch_s: float = 8.0) -> None:
        self.slots = slots
        self.batch_s = batch_s
        self.calls: list[list[float]] = []
        self.gate = asyncio.Event()
        self.error: BaseException | None = None

    async def infer(self, jobs: Sequence[Job]) -> Outcomes:
        labels = [float(job.utterance.audio[0]) for job in jobs]
        self.calls.append(labels)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        answers = [
            BackendError("MODEL_NONFINITE", "nan") if label < 0 else Analysis(np.full(4, label, np.float16))
            for label in labels
        ]
        return Outcomes(answers)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def let_tasks_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def ask(
    batcher: Batcher,
    label: float,
    *,
    stream: str | None = None,
    urgency: Urgency = "final",
    within: float = 1.0,
    s: float = 1.0,
    job: Job | None = None,
) -> "asyncio.Task[Analysis]":
    job = job or make_job(s, label)
    return asyncio.create_task(
        batcher.submit(job, stream_id=stream or str(label), urgency=urgency, deadline_s=within), name=str(label)
    )


async def test_idle_slots_get_work_at_once_and_the_rest_is_queued() -> None:
    backend = FakeBackend(slots=2)
    batcher = Batcher(backend, cost=costing(0.001, 1.0))
    tasks = []
    for label in (1, 2, 3, 4, 5):
        tasks.append(ask(batcher, label))
        await let_tasks_run()
    assert backend.calls == [[1], [2]]
    assert batcher.queued == 3
    backend.gate.set()
    results = await asyncio.gather(*tasks)
    assert [float(result.vector[0]) for result in results] == [1, 2, 3, 4, 5]
    assert sorted(itertools.chain(*backend.calls[2:])) == [3, 4, 5]
    assert len(backend.calls) < 5, "what was queued went together"


async def test_finals_first_by_deadline_then_interims() -> None:
    backend = FakeBackend(batch_s=0.0)
    batcher = Batcher(backend)
    tasks = [ask(batcher, 1)]
    await let_tasks_run()
    tasks += [ask(batcher, 2, urgency="interim", within=0.1), ask(batcher, 3, within=5.0), ask(batcher, 4, within=2.0)]
    await let_tasks_run()
    backend.gate.set()
    await asyncio.gather(*tasks)
    assert backend.calls == [[1], [4], [3], [2]]


async def test_newer_interim_and_final_supersede_the_queued_interim() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    running = ask(batcher, 1)
    await let_tasks_run()
    first = ask(batcher, 2, stream="s", urgency="interim")
    await let_tasks_run()
    second = ask(batcher, 3, stream="s", urgency="interim")
    await let_tasks_run()
    with pytest.raises(Superseded):
        await first
    final = ask(batcher, 4, stream="s")
    await let_tasks_run()
    with pytest.raises(Superseded):
        await second
    backend.gate.set()
    assert float((await final).vector[0]) == 4
    await running
    assert backend.calls == [[1], [4]]


async def test_running_interim_is_not_superseded() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    interim = ask(batcher, 1, stream="s", urgency="interim")
    await let_tasks_run()
    final = ask(batcher, 2, stream="s")
    await let_tasks_run()
    backend.gate.set()
    assert [float(r.vector[0]) for r in await asyncio.gather(interim, final)] == [1, 2]


# --- eager jobs ------------------------------------------------------------------------------------------------------


async def test_an_eager_job_goes_after_finals_and_before_interims() -> None:
    backend = FakeBackend(batch_s=0.0)
    batcher = Batcher(backend)
    tasks = [ask(batcher, 1)]
    await let_tasks_run()
    tasks += [ask(batcher, 2, urgency="interim", within=0.1), ask(batcher, 3, urgency="eager", within=0.2)]
    tasks += [ask(batcher, 4, within=5.0)]
    await let_tasks_run()
    backend.gate.set()
    await asyncio.gather(*tasks)
    assert backend.calls == [[1], [4], [3], [2]]


@pytest.mark.parametrize("when", ["queued", "at work", "answered"])
async def test_a_final_takes_the_place_and_the_answer_of_its_eager_job(when: str) -> None:
    backend = FakeBackend(batch_s=0.0)
    batcher = Batcher(backend)
    others = [ask(batcher, 1)] if when == "queued" else []
    await let_tasks_run()
    job = make_job(label=2)
    eager = ask(batcher, 2, stream="s", urgency="eager", job=job)
    await let_tasks_run()
    others += [ask(batcher, 3, within=9.0)] if when == "queued" else []
    if when == "answered":
        backend.gate.set()
        await eager
    final = ask(batcher, 2, stream="s", job=job)
    await let_tasks_run()
    assert batcher.queued == (2 if when == "queued" else 0)
    backend.gate.set()
    answers = await asyncio.gather(eager, final)
    assert [float(answer.vector[0]) for answer in answers] == [2, 2]
    await asyncio.gather(*others)
    assert backend.calls == ([[1], [2], [3]] if when == "queued" else [[2]]), "computed once, in its turn"


async def test_a_final_of_another_job_supersedes_a_queued_eager_job() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    running = ask(batcher, 1)
    await let_tasks_run()
    eager = ask(batcher, 2, stream="s", urgency="eager")
    await let_tasks_run()
    final = ask(batcher, 3, stream="s")
    await let_tasks_run()
    backend.gate.set()
    with pytest.raises(Superseded):
        await eager
    await asyncio.gather(running, final)
    assert backend.calls == [[1], [3]]


async def test_an_eager_job_whose_speaker_goes_on_leaves_the_queue_and_nothing_of_it_stays() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    running = ask(batcher, 1)
    await let_tasks_run()
    job = make_job(label=2)
    kept = weakref.ref(job)
    eager = ask(batcher, 2, stream="s", urgency="eager", job=job)
    await let_tasks_run()
    eager.cancel()
    await let_tasks_run()
    assert batcher.queued == 0
    backend.gate.set()
    await running
    assert backend.calls == [[1]]
    del job, eager
    gc.collect()
    assert kept() is None, "nor its audio"


async def test_the_answer_to_an_eager_job_lasts_as_long_as_its_submitter_keeps_the_job() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    backend.gate.set()
    job = make_job(label=2)
    kept = weakref.ref(job)
    await ask(batcher, 2, stream="s", urgency="eager", job=job)
    await let_tasks_run()
    del job
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("how", ["failed", "superseded"])
async def test_nothing_stays_of_an_eager_job_without_an_answer(how: str) -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    running = [ask(batcher, 1)] if how == "superseded" else []
    await let_tasks_run()
    job = make_job(label=-1.0)
    kept = weakref.ref(job)
    eager = ask(batcher, -1.0, stream="s", urgency="eager", job=job)
    await let_tasks_run()
    running += [ask(batcher, 2, stream="s", urgency="interim")] if how == "superseded" else []
    backend.gate.set()
    with pytest.raises(Superseded if how == "superseded" else BackendError):
        await eager
    await asyncio.gather(*running)
    await let_tasks_run()
    del job, eager
    gc.collect()
    assert kept() is None, "nor its audio"


async def test_a_final_takes_over_an_eager_job_whose_caller_was_cancelled_after() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    job = make_job(label=2)
    eager = ask(batcher, 2, stream="s", urgency="eager", job=job)
    await let_tasks_run()
    final = ask(batcher, 2, stream="s", job=job)
    await let_tasks_run()
    eager.cancel()
    await let_tasks_run()
    backend.gate.set()
    assert float((await final).vector[0]) == 2
    assert backend.calls == [[2]]


async def test_a_final_is_tried_anew_where_its_eager_job_failed_before() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    backend.gate.set()
    job = make_job(label=-1.0)
    with pytest.raises(BackendError):
        await ask(batcher, -1.0, stream="s", urgency="eager", job=job)
    with pytest.raises(BackendError):
        await ask(batcher, -1.0, stream="s", job=job)
    assert backend.calls == [[-1.0], [-1.0]]


async def test_an_eager_final_counts_once_as_speech_and_a_wasted_eager_job_not_at_all() -> None:
    backend = FakeBackend()
    clock = Clock()
    batcher, plain = Batcher(backend, clock=clock), Batcher(backend, clock=clock)
    backend.gate.set()
    with batcher.stream("s"), plain.stream("s"):
        clock.now = 10.0
        await ask(batcher, 1, stream="s", urgency="eager", s=3.0)
        job = make_job(3.0, 2)
        await ask(batcher, 2, stream="s", urgency="eager", job=job)
        await ask(batcher, 2, stream="s", job=job)
        await ask(plain, 2, stream="s", s=3.0)
        assert batcher._speech.rate(10.0) == plain._speech.rate(10.0)


async def test_no_eager_job_while_the_machine_is_full() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend, QueueLimits(queued_s=1.0))
    tasks = [ask(batcher, label) for label in range(4)]
    await let_tasks_run()
    assert batcher.full
    with pytest.raises(Superseded):
        await ask(batcher, 9, urgency="eager")
    backend.gate.set()
    await asyncio.gather(*tasks)


async def test_cancelled_callers_leave_the_queue() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    running, queued, other = ask(batcher, 1), ask(batcher, 2), ask(batcher, 3)
    await let_tasks_run()
    queued.cancel()
    running.cancel()
    await let_tasks_run()
    assert batcher.queued == 1
    assert len(backend.calls) == 1, "the slot of a running job stays taken"
    backend.gate.set()
    assert float((await other).vector[0]) == 3
    assert backend.calls == [[1], [3]]


async def test_finals_wait_for_a_full_queue_in_order_and_interims_do_not_wait() -> None:
    backend = FakeBackend(batch_s=0.0)
    batcher = Batcher(backend, QueueLimits(queued_s=2.0))
    tasks = [ask(batcher, label) for label in (1, 2, 3)]
    await let_tasks_run()
    assert not batcher.full
    tasks += [ask(batcher, 4), ask(batcher, 5, within=0.5)]
    await let_tasks_run()
    assert batcher.full
    assert batcher.queued == 2
    with pytest.raises(Superseded):
        await ask(batcher, 6, urgency="interim")
    backend.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(backend.calls) == [[1], [2], [3], [4], [5]]
    assert not batcher.full


async def test_cancelling_a_queued_final_lets_the_next_one_in() -> None:
    batcher = Batcher(FakeBackend(), QueueLimits(queued_s=1.0))
    _, queued, waiting, gone = ask(batcher, 1), ask(batcher, 2), ask(batcher, 3), ask(batcher, 4)
    await let_tasks_run()
    gone.cancel()
    queued.cancel()
    await let_tasks_run()
    assert (batcher.queued, batcher.full, waiting.done()) == (1, False, False)


async def test_admission_follows_from_how_long_finals_will_wait() -> None:
    """The running job is expected to take 4 s; once it is overdue, as long again as it is late."""
    clock, backend = Clock(), FakeBackend()
    batcher = Batcher(backend, clock=clock, cost=costing(0.1, 0.0), target_delay_s=1.0)
    with batcher.stream("somebody else"):
        running = ask(batcher, 1, s=40.0)
        await let_tasks_run()
        served = {}
        for now in (3.0, 3.75, 9.0, 12.0):
            clock.now = now
            admits = batcher.admits(running=False), batcher.admits(running=True)
            served[now] = (batcher.wait_s, not batcher.full, *admits)
        assert served == {
            3.0: (1.0, False, True, True),  # over before a new stream has said anything
            3.75: (0.25, True, True, True),
            9.0: (5.0, False, False, True),
            12.0: (8.0, False, False, False),
        }
        with pytest.raises(Superseded):
            await ask(batcher, 3, urgency="interim")
        queued = ask(batcher, 2, s=20.0)
        await let_tasks_run()
        assert batcher.wait_s == pytest.approx(8.0 + 2.0)
        backend.gate.set()
        await asyncio.gather(running, queued)
        assert batcher.wait_s == 0.0
    assert batcher.admits(running=False), "one stream is always admitted"


def test_costs_are_known_before_any_stream_comes() -> None:
    backend, cost = FakeBackend(), CostModel()
    batcher = Batcher(backend, cost=cost)
    batcher.learn_costs()
    assert cost.expect(1.0) == CostModel().expect(1.0), "a backend that tells none"
    backend.costs = [(0.25, 0.2025), (1.0, 0.21)]
    batcher.learn_costs()
    assert cost.expect(1.0) == pytest.approx(0.21, rel=0.05)
    assert cost.per_batch_s == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(
    ("expected_s", "helped_s", "learnt_s"),
    [(0.2, None, 0.5), (2.0, None, 0.5), (2.0, 0.8, 0.8), (0.2, 0.8, 0.2)],
    ids=["dearer", "cheaper", "cheaper, with help", "dearer, with help: cutting it cost something"],
)
async def test_what_a_batch_costs_is_learnt_from_those_that_nobody_helped_with(
    expected_s: float, helped_s: float | None, learnt_s: float
) -> None:
    clock, cost = Clock(), CostModel()
    cost.observe(1.0, expected_s)

    class Timed(FakeBackend):
        async def infer(self, jobs: Sequence[Job]) -> Outcomes:
            clock.now += 0.5
            return Outcomes([Analysis(np.zeros(4, np.float16))], helped_s)

    batcher = Batcher(Timed(), clock=clock, cost=cost)
    for label in range(200):
        await ask(batcher, label, s=1.0)
    assert cost.expect(1.0) == pytest.approx(learnt_s, rel=0.05)


async def test_streams_count_before_they_speak_and_silent_ones_count_less_and_less() -> None:
    clock = Clock()
    batcher = Batcher(FakeBackend(slots=2), clock=clock, cost=costing(0.19, 0.0), target_delay_s=1.5)
    with contextlib.ExitStack() as streams:
        admitted, full, stretch = 0, [], []
        while batcher.admits(running=False):
            streams.enter_context(batcher.stream(str(admitted)))
            admitted += 1
            full.append(batcher.full)
            stretch.append(batcher.stretch)
        assert admitted == 9, "the finals of one take 9.5 % of the two slots; who never pauses may stay for long"
        assert full == [False] * 6 + [True] * 3, "interims are skipped before a stream is refused"
        assert stretch == pytest.approx([1, 1, 1, 1, 1.375, 1.85, 2, 2, 2]), "and become rarer before that"
        assert batcher.load == pytest.approx(0.855)
        assert batcher.wait_s == 0.0, "nothing was said yet"
        assert 0 < batcher.delay_s <= 1.5
        assert batcher.admits(running=True), "the next turn of a running conversation"
        clock.now = 120.0
        assert batcher.load < 0.13
        assert batcher.admits(running=False)
    assert batcher.load == 0.0


async def test_a_slow_machine_admits_its_first_stream_and_a_fast_one_spends_no_delay_that_buys_nothing() -> None:
    slow = Batcher(FakeBackend(), cost=costing(3.0, 0.0))
    assert slow.admits(running=False)
    with slow.stream("the only one"):
        assert not slow.admits(running=False), "it alone brings three times what the machine can do"
        assert slow.target_delay_s == admission.TARGET_DELAY_S
    fast = Batcher(FakeBackend(slots=4), cost=costing(0.01, 0.0))
    assert fast.target_delay_s == pytest.approx(admission.KNEE * 0.03 / 2, rel=0.05)
    assert Batcher(FakeBackend(slots=4), cost=costing(0.01, 0.0), target_delay_s=5.0).target_delay_s == 5.0


async def test_an_error_of_one_job_fails_no_other() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    tasks = [ask(batcher, 1), ask(batcher, -2), ask(batcher, 3)]
    await let_tasks_run()
    backend.gate.set()
    good, bad, other = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(bad, BackendError)
    assert bad.reason == "MODEL_NONFINITE"
    assert isinstance(good, Analysis)
    assert isinstance(other, Analysis)


async def test_a_backend_error_reaches_every_caller_and_the_queue_goes_on() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend)
    backend.error = BackendError("WORKER_FAILED", "no worker")
    tasks = [ask(batcher, 1), ask(batcher, 2)]
    await let_tasks_run()
    backend.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error.reason for error in errors if isinstance(error, BackendError)] == ["WORKER_FAILED"] * 2
    backend.error = None
    assert float((await ask(batcher, 3)).vector[0]) == 3


async def test_an_unexpected_error_reaches_the_caller() -> None:
    backend = FakeBackend()
    backend.error = ZeroDivisionError()
    backend.gate.set()
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context["exception"]))
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        await ask(Batcher(backend), 1)
    await let_tasks_run()
    assert [type(error) for error in unhandled] == [ZeroDivisionError]


async def test_drain_waits_for_all_and_close_refuses() -> None:
    backend = FakeBackend()
    batcher = Batcher(backend, QueueLimits(queued_s=1.0))
    tasks = [ask(batcher, label) for label in (1, 2, 3)]
    await let_tasks_run()
    draining = asyncio.create_task(batcher.drain())
    await let_tasks_run()
    assert not draining.done()
    backend.gate.set()
    await draining
    assert all(task.done() for task in tasks)
    batcher.close()
    with pytest.raises(BackendError, match="UNAVAILABLE"):
        await ask(batcher, 4)


async def test_close_answers_what_is_queued() -> None:
    batcher = Batcher(FakeBackend(), QueueLimits(queued_s=1.0))
    running, queued, waiting = (ask(batcher, label) for label in (1, 2, 3))
    await let_tasks_run()
    batcher.close()
    for task in (queued, waiting):
        with pytest.raises(BackendError, match="UNAVAILABLE"):
            await task
    assert not running.done()


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(("final", "eager", "interim")),
            st.floats(0.1, 9),
            st.floats(0.1, 2),
            st.booleans(),
        ),
        max_size=30,
    ),
    st.integers(1, 3),
)
def test_every_caller_gets_its_own_answer(asks: list[tuple[str, Urgency, float, float, bool]], slots: int) -> None:
    async def run() -> None:
        backend = FakeBackend(slots)
        batcher = Batcher(backend, QueueLimits(queued_s=4.0))
        tasks = []
        for label, (stream, urgency, within, seconds, pause) in enumerate(asks):
            tasks.append(ask(batcher, label, stream=stream, urgency=urgency, within=within, s=seconds))
            if pause:
                await let_tasks_run()
        await let_tasks_run()
        backend.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for label, (outcome, (_, urgency, *_)) in enumerate(zip(outcomes, asks, strict=True)):
            if isinstance(outcome, Analysis):
                assert float(outcome.vector[0]) == label
            else:
                assert isinstance(outcome, Superseded)
                assert urgency != "final", "finals are always answered"
        computed = sorted(itertools.chain(*backend.calls))
        assert len(computed) == len(set(computed)), "nothing is computed twice"
        assert batcher.queued == 0

    asyncio.run(run())
