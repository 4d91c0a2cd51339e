"""The cost model alone, and the batcher with its admission under load in virtual time."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.models.types import Analysis, Utterance
from kibun.server.inference.backend import BackendError, Job, ModelInfo, Superseded, Urgency
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.cost import CostModel
from tests.support import virtual_time
from tests.support.scripted import AliveBackend

SILENCE = np.zeros(60 * 16_000, np.float32)
NO_HISTORY = np.zeros((0, 4), np.float16)
MODEL = ModelInfo("measured", "1", 4)


# --- cost model ------------------------------------------------------------------------------------------------------

seconds = st.floats(0.0, 60.0)
audio = st.floats(0.02, 60.0)


@settings(max_examples=50)
@given(st.floats(1e-4, 1.0), st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_the_cost_of_mixed_batches_is_found(per_audio_s: float, per_batch_s: float, seed: int) -> None:
    cost, rng = CostModel(), np.random.default_rng(seed)
    for audio_s in rng.uniform(0.5, 10, 100):
        cost.observe(audio_s, per_audio_s * audio_s + per_batch_s)
    for audio_s in (1.0, 5.0, 10.0):
        assert cost.expect(audio_s) == pytest.approx(per_audio_s * audio_s + per_batch_s, rel=0.1)
    assert cost.per_batch_s == pytest.approx(per_batch_s, rel=0.1, abs=1e-6)


def test_before_any_measurement_a_slow_core_is_assumed() -> None:
    cost = CostModel()
    assert (cost.per_audio_s, cost.per_batch_s) == (0.1, 0.0)
    assert cost.expect(5.0) == pytest.approx(0.5)


def test_one_length_alone_shows_no_gain_of_batches() -> None:
    cost = CostModel()
    for _ in range(100):
        cost.observe(4.0, 0.6)
    assert cost.per_batch_s == 0.0
    assert cost.per_audio_s == pytest.approx(0.15)


@settings(max_examples=50)
@given(st.lists(st.tuples(audio, seconds), max_size=60), audio)
def test_costs_are_sane_whatever_was_measured(measured: list[tuple[float, float]], audio_s: float) -> None:
    cost = CostModel()
    for took in measured:
        cost.observe(*took)
    assert cost.per_audio_s >= 0
    assert cost.per_batch_s >= 0
    assert 0 <= cost.expect(audio_s) < cost.expect(2 * audio_s) + 1e-9 < np.inf
    busy = cost.per_audio_when_busy_s(3.0, 30.0)
    assert cost.per_audio_s <= busy <= cost.expect(3.0) / 3.0 + 1e-9


def test_outliers_change_little_and_lasting_changes_are_followed() -> None:
    cost, rng = CostModel(), np.random.default_rng(0)
    for index, audio_s in enumerate(rng.uniform(1, 8, 300)):
        outlier = 50 if index % 20 == 19 else 1
        cost.observe(audio_s, outlier * (0.1 * audio_s + 0.05))
    assert cost.expect(3.0) == pytest.approx(0.35, rel=0.15)
    for audio_s in rng.uniform(1, 8, 100):
        cost.observe(audio_s, 0.4 * audio_s + 0.2)
    assert cost.expect(3.0) == pytest.approx(1.4, rel=0.15)


def test_times_of_zero_are_forgotten_again() -> None:
    cost = CostModel()
    for _ in range(20):
        cost.observe(1.0, 0.0)
    for _ in range(400):
        cost.observe(1.0, 0.5)
    assert cost.expect(1.0) == pytest.approx(0.5, rel=0.1)


# --- a machine, and people who speak ---------------------------------------------------------------------------------


@dataclass
class Machine(AliveBackend):
    """A backend whose batches take `per_audio_s * audio + per_batch_s` seconds, give or take a tenth."""

    per_audio_s: float
    per_batch_s: float
    slots: int
    batch_s: float
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    batches: list[tuple[float, list[Job]]] = field(default_factory=list)  # when they began
    running: list[Job] = field(default_factory=list)
    most_interims: int = 0  # batches of interims at once

    @property
    def speech_rate(self) -> float:
        """Seconds of speech per second that just saturate it, in batches where those pay."""
        audio_s = max(MEAN_S, min(self.batch_s, self.per_batch_s / self.per_audio_s))
        return self.slots / (self.per_audio_s + self.per_batch_s / audio_s)

    @property
    def finals_per_batch(self) -> float:
        return float(np.mean([len(jobs) for _, jobs in self.batches if jobs[0].model == "final"]))

    async def infer(self, jobs: Sequence[Job]) -> list[Analysis | BackendError]:
        took_s = self.per_audio_s * sum(job.utterance.seconds for job in jobs) + self.per_batch_s
        took_s *= float(np.exp(0.1 * self.rng.standard_normal()))
        self.batches.append((asyncio.get_running_loop().time(), list(jobs)))
        self.running.append(jobs[0])
        assert len(self.running) <= self.slots
        assert len({job.model for job in jobs}) == 1, "finals and interims do not mix"
        self.most_interims = max(self.most_interims, sum(job.model == "interim" for job in self.running))
        await asyncio.sleep(took_s)
        self.running.remove(jobs[0])
        return [Analysis(NO_HISTORY[0:0])] * len(jobs)


def draw_length(rng: np.random.Generator) -> float:
    """Seconds of an utterance: most are short, some are long."""
    return float(np.clip(rng.lognormal(np.log(2.5), 0.6), 0.6, 15.0))


MEAN_S = float(np.mean([draw_length(np.random.default_rng(seed)) for seed in range(2000)]))
RAMP_S = 15.0
FINALS = 1500  # that a machine could answer while streams come
MACHINES = {
    "two cores": lambda: Machine(0.1, 0.03, slots=2, batch_s=30.0),
    "two fast cores": lambda: Machine(0.025, 0.025, slots=2, batch_s=30.0),
    "one core": lambda: Machine(0.1, 0.03, slots=1, batch_s=30.0),
    "eight cores": lambda: Machine(0.1, 0.03, slots=8, batch_s=30.0),
    "a GPU": lambda: Machine(0.01, 0.1, slots=2, batch_s=60.0),
}


@dataclass
class Seen:
    """What happened. Latencies in seconds, of finals submitted while streams came, but for the first RAMP_S."""

    offered: int = 0
    refused: int = 0
    admitted: int = 0
    latencies: list[float] = field(default_factory=list)
    answered: int = 0
    interims_due: int = 0
    interims: int = 0
    until: float = 0.0  # streams came

    @property
    def finals_per_s(self) -> float:
        return len(self.latencies) / (self.until - RAMP_S)

    @property
    def p95(self) -> float:
        return float(np.quantile(self.latencies, 0.95))


async def speak(batcher: Batcher, name: str, length_s: float, pause_s: float, interims: bool, seen: Seen) -> None:
    """A stream: a pause, an utterance, and its final awaited."""
    loop = asyncio.get_running_loop()

    def submit(spoken_s: float, model: str) -> "asyncio.Task[Analysis]":
        job = Job(model, Utterance(SILENCE[: int(spoken_s * 16_000)], NO_HISTORY))
        urgency: Urgency = "final" if model == "final" else "interim"
        wanted = batcher.submit(job, stream_id=name, urgency=urgency, deadline_s=1.0 if model == "final" else 2.0)
        return asyncio.create_task(wanted)

    with batcher.stream(name):
        await asyncio.sleep(pause_s)
        asked, spoken_s, due_s = [], 0.0, 1.0
        while interims and due_s < length_s:
            await asyncio.sleep(due_s - spoken_s)
            seen.interims_due += 1
            if not batcher.full:
                asked.append(submit(due_s, "interim"))
            spoken_s, due_s = due_s, due_s * (1 + batcher.stretch)
        await asyncio.sleep(length_s - spoken_s)
        began = loop.time()
        await submit(length_s, "final")
        seen.answered += 1
        if RAMP_S < began < seen.until:
            seen.latencies.append(loop.time() - began)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(outcome, (Analysis, Superseded)) for outcome in outcomes)
        seen.interims += sum(isinstance(outcome, Analysis) for outcome in outcomes)


async def crowd(machine: Machine, load: float, *, pause_s: float, interims: bool, seed: int) -> Seen:
    """Streams come at random, as many as bring `load` times what the machine can do."""
    loop, rng, streams = asyncio.get_running_loop(), np.random.default_rng(seed), []
    seen = Seen(until=FINALS * MEAN_S / machine.speech_rate)
    batcher = Batcher(machine, clock=loop.time)
    await batcher.measure(MODEL)
    while loop.time() < seen.until:
        await asyncio.sleep(rng.exponential(MEAN_S / (load * machine.speech_rate)))
        length_s, pause = draw_length(rng), rng.uniform(0, 2 * pause_s)
        seen.offered += 1
        if batcher.admits(running=False):
            seen.admitted += 1
            streams.append(asyncio.create_task(speak(batcher, str(seen.offered), length_s, pause, interims, seen)))
        else:
            seen.refused += 1
    await asyncio.gather(*streams)
    assert batcher.queued == 0
    return seen


def simulate(machine: Machine, load: float, *, pause_s: float = 0.0, interims: bool = False, seed: int = 1) -> Seen:
    return virtual_time.run(crowd(machine, load, pause_s=pause_s, interims=interims, seed=seed))


@pytest.mark.parametrize("pause_s", [0.0, 5.0])
@pytest.mark.parametrize("name", MACHINES)
def test_a_flood_of_streams_hardly_slows_the_finals_of_admitted_ones(name: str, pause_s: float) -> None:
    usual = simulate(MACHINES[name](), 0.6, pause_s=pause_s)
    machine = MACHINES[name]()
    flooded = simulate(machine, 3.0, pause_s=pause_s)
    assert flooded.answered == flooded.admitted, "no admitted final is lost"
    assert flooded.p95 <= 2.5 * usual.p95
    assert 0.6 < flooded.refused / flooded.offered < 0.8
    assert flooded.finals_per_s * MEAN_S > 0.8 * machine.speech_rate, "it does not refuse more than it must"
    assert usual.refused / usual.offered < 0.12


def test_jobs_go_one_by_one_on_a_cpu_and_together_on_a_gpu() -> None:
    on = {name: MACHINES[name]() for name in ("two cores", "a GPU")}
    served = {name: simulate(machine, 3.0) for name, machine in on.items()}
    assert on["two cores"].finals_per_batch < 1.05
    gpu = on["a GPU"]
    assert gpu.finals_per_batch > 1.5
    one_by_one = gpu.slots / (gpu.per_audio_s * MEAN_S + gpu.per_batch_s)  # finals a second
    assert served["a GPU"].finals_per_s > 1.2 * one_by_one


def test_interims_use_only_what_finals_leave() -> None:
    idle, busy, flooded = (simulate(MACHINES["two cores"](), load, interims=True) for load in (0.15, 0.6, 3.0))
    assert idle.interims > 0.9 * idle.interims_due
    assert busy.interims > flooded.interims
    assert flooded.interims < 0.2 * flooded.interims_due
    assert flooded.answered == flooded.admitted
    # Ahead of a final is at most one interim, and never on the slot kept for finals.
    alone = simulate(MACHINES["two cores"](), 0.6)
    assert busy.p95 < 1.5 * alone.p95


# --- any arrivals ----------------------------------------------------------------------------------------------------

arrival = st.tuples(
    st.floats(0.0, 0.5),  # seconds after the one before
    st.sampled_from("abcd"),
    st.booleans(),
    st.floats(0.1, 5.0),  # deadline
    st.floats(0.1, 4.0),  # audio
)


@settings(max_examples=60)
@given(
    st.lists(arrival, max_size=40),
    st.integers(1, 3),
    st.sampled_from([0.0, 6.0, 60.0]),
    st.sampled_from([(0.2, 0.0), (0.1, 0.1), (0.005, 0.5)]),
)
def test_every_final_is_answered_in_the_order_of_deadlines(
    arrivals: list[tuple[float, str, bool, float, float]], slots: int, batch_s: float, costs: tuple[float, float]
) -> None:
    machine = Machine(*costs, slots=slots, batch_s=batch_s)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        batcher = Batcher(machine, clock=loop.time)
        asked: list[tuple[Job, bool, float, float]] = []  # with submission and deadline
        tasks = []
        for after_s, stream, final, deadline_s, audio_s in arrivals:
            await asyncio.sleep(after_s)
            job = Job("final" if final else "interim", Utterance(SILENCE[: int(audio_s * 16_000)], NO_HISTORY))
            asked.append((job, final, loop.time(), loop.time() + deadline_s))
            urgency: Urgency = "final" if final else "interim"
            wanted = batcher.submit(job, stream_id=stream, urgency=urgency, deadline_s=deadline_s)
            tasks.append(asyncio.create_task(wanted))
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        began = {id(job): at for at, jobs in machine.batches for job in jobs}
        finals = []
        for (job, final, submitted, deadline), outcome in zip(asked, outcomes, strict=True):
            assert isinstance(outcome, Analysis if final else (Analysis, Superseded))
            assert (id(job) in began) == isinstance(outcome, Analysis)
            if final:
                finals.append((submitted, deadline, began[id(job)]))
        for _, deadline, at in finals:
            for submitted, earlier_deadline, later in finals:
                queued_together = submitted < at < later
                assert not (queued_together and earlier_deadline < deadline), "went after one with a later deadline"

    virtual_time.run(run())
    assert sum(len(jobs) for _, jobs in machine.batches) == len(
        {id(job) for _, jobs in machine.batches for job in jobs}
    )
    assert machine.most_interims <= max(1, slots - 1), "one slot of several is reserved for finals"
