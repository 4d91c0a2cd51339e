"""The cost model alone, and the batcher with its admission under load in virtual time."""

import asyncio
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.bench.load.simulation import MEAN_S, NO_HISTORY, SILENCE, Machine, People, Turnout, simulate
from kibun.bench.support import virtual_time
from kibun.models.types import Analysis, Utterance
from kibun.server.inference.backend import Job, Superseded, Urgency
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.cost import CostModel

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


# --- people who speak ------------------------------------------------------------------------------------------------

MACHINES = {
    "two cores": lambda: Machine(0.1, 0.03, slots=2),
    "two fast cores": lambda: Machine(0.025, 0.025, slots=2),
    "one core": lambda: Machine(0.1, 0.03, slots=1),
    "eight cores": lambda: Machine(0.1, 0.03, slots=8),
    "a GPU": lambda: Machine(0.01, 0.1, slots=2, batch_s=60.0),
}
FINALS = 1000  # that a machine could answer while people come


def crowded(machine: Machine, load: float, *, seed: int = 1, **crowd: Any) -> Turnout:
    return simulate(machine, People(load, 15 + FINALS * MEAN_S / machine.speech_rate, **crowd), seed=seed)


@pytest.mark.parametrize("pause_s", [0.0, 5.0])
@pytest.mark.parametrize("name", MACHINES)
def test_a_flood_of_streams_slows_the_finals_of_admitted_ones_twofold_at_most(name: str, pause_s: float) -> None:
    machine = MACHINES[name]()
    usual, flooded = crowded(MACHINES[name](), 0.6, pause_s=pause_s), crowded(machine, 3.0, pause_s=pause_s)
    assert (usual.lost, flooded.lost) == (0, 0), "no admitted final is lost"
    assert flooded.p95 <= (2.0 if pause_s == 0 else 2.5) * usual.p95
    assert flooded.finals_per_s * MEAN_S > 0.8 * machine.speech_rate, "it does not refuse more than it must"


def test_few_streams_are_refused_below_full_load() -> None:
    calm, busy = crowded(MACHINES["two cores"](), 0.6), crowded(MACHINES["two cores"](), 0.9)
    assert calm.refused_share <= 0.05
    assert busy.refused_share <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "refused_busy"), [(1, 0.18), (2, 0.15), (4, 0.15), (16, 0.15)])
def test_over_twenty_seeds_few_are_refused_and_a_flood_slows_finals_twofold_at_most(
    slots: int, refused_busy: float
) -> None:
    calm, busy, flood = (
        [crowded(Machine(0.1, 0.03, slots=slots), load, seed=seed) for seed in range(20)] for load in (0.6, 0.9, 3.0)
    )
    assert fmean(seen.refused_share for seen in calm) <= 0.05
    assert fmean(seen.refused_share for seen in busy) <= refused_busy
    assert fmean(seen.p95 for seen in flood) <= 2.0 * fmean(seen.p95 for seen in calm)
    assert not any(seen.lost for seen in (*calm, *busy, *flood))


@pytest.mark.parametrize("name", ["two cores", "eight cores", "a GPU"])
def test_a_flood_keeps_no_conversation_from_its_next_turn(name: str) -> None:
    flooded = crowded(MACHINES[name](), 3.0, turns=8.0)
    assert flooded.turns > 300
    assert flooded.turns_refused <= 0.02 * flooded.turns, "at the first try, …"
    assert flooded.turns_lost <= 0.005 * flooded.turns, "… and when tried again after a second"
    assert flooded.refused_share > 0.25, "there is no room for new ones"
    assert flooded.lost == 0


def test_jobs_go_one_by_one_on_a_cpu_and_together_on_a_gpu() -> None:
    cores, gpu = MACHINES["two cores"](), MACHINES["a GPU"]()
    crowded(cores, 3.0)
    served = crowded(gpu, 3.0)
    assert cores.finals_per_batch < 1.05
    assert gpu.finals_per_batch > 1.5
    assert served.finals_per_s > 1.2 * gpu.slots / gpu.final_takes_s, "more than one by one"


def test_interims_give_way_before_finals_do() -> None:
    idle, busy, flooded = (crowded(MACHINES["two cores"](), load, interims=True) for load in (0.15, 0.6, 3.0))
    assert idle.interims > 0.9 * idle.interims_due
    assert busy.interims > flooded.interims
    assert flooded.interims < 0.2 * flooded.interims_due
    assert flooded.lost == 0
    # Ahead of a final is at most one interim, and never on the slot kept for finals.
    alone = crowded(MACHINES["two cores"](), 0.6)
    assert busy.p95 < 1.5 * alone.p95
    assert busy.refused_share <= alone.refused_share + 0.02, "interims cost no stream its place"


def test_what_the_operator_allows_is_traded_for_admissions() -> None:
    short, long = (
        simulate(MACHINES["two cores"](), People(1.2, 120.0), target_delay_s=target_s) for target_s in (0.2, 2.0)
    )
    assert long.refused_share < short.refused_share - 0.05
    assert short.p95 < long.p95


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
