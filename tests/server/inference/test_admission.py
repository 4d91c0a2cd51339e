"""The prediction of waits against what it is meant to be: reflected Brownian motion, simulated; queues; limits."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.server.inference import admission
from kibun.server.inference.admission import Outlook, SpeechLoad, target_delay_s

positive = st.floats(1e-3, 60.0)
outlooks = st.builds(Outlook, st.floats(0.0, 100.0), st.floats(0.0, 20.0), positive, positive, positive)


@pytest.mark.parametrize("wait_s", [0.0, 0.7])
@pytest.mark.parametrize("load", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("horizon_s", [1.0, 6.0])
def test_the_mean_is_that_of_reflected_brownian_motion(wait_s: float, load: float, horizon_s: float) -> None:
    rng, steps, burst_s = np.random.default_rng(3), 1500, 0.3
    at = np.full(2000, wait_s)
    dt = horizon_s / steps
    for _ in range(steps):
        at = np.maximum(at + (load - 1) * dt + math.sqrt(load * burst_s * dt) * rng.standard_normal(len(at)), 0.0)
    outlook = Outlook(wait_s, load, burst_s, soon_s=1.0, remaining_s=horizon_s)
    assert outlook.delay_after_s(horizon_s) == pytest.approx(at.mean(), rel=0.08, abs=0.03)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_long_after_it_is_the_mean_wait_of_a_queue_with_random_arrivals(load: float) -> None:
    """Pollaczek and Khinchine: load * E[S²] / (2 E[S] (1 - load)), whatever it began with."""
    for wait_s in (0.0, 5.0):
        predicted = Outlook(wait_s, load, 0.4, 1.0, 10_000.0).delay_after_s(10_000.0)
        assert predicted == pytest.approx(load * 0.4 / (2 * (1 - load)), rel=1e-6)


def test_without_chance_work_flows() -> None:
    for wait_s, load, after_s, expected_s in ((0.5, 1.5, 4.0, 2.5), (3.0, 0.5, 4.0, 1.0), (1.0, 0.5, 4.0, 0.0)):
        assert Outlook(wait_s, load, 1e-12, 1.0, 60.0).delay_after_s(after_s) == pytest.approx(expected_s, abs=1e-5)
    assert Outlook(0.0, 0.0, 0.3, 3.0, 60.0).delay_s() == pytest.approx(0.0, abs=1e-5), "nobody speaks"


def test_what_counts_is_the_worse_of_soon_and_late() -> None:
    stuck = Outlook(10.0, 0.3, 0.3, soon_s=3.0, remaining_s=60.0)
    assert stuck.delay_s() == stuck.delay_after_s(3.0) > 10 * stuck.delay_after_s(60.0)
    too_many = Outlook(0.0, 1.2, 0.3, soon_s=3.0, remaining_s=60.0)
    assert too_many.delay_s() == too_many.delay_after_s(60.0) > 10 * too_many.delay_after_s(3.0)
    assert Outlook(10.0, 0.3, 0.3, soon_s=3.0, remaining_s=2.0).delay_s() == pytest.approx(10 - 2 * 0.7, abs=0.01)


@settings(max_examples=300)
@given(outlooks, positive, positive)
def test_more_work_never_means_less_wait(outlook: Outlook, after_s: float, more: float) -> None:
    wait_s, load, delay_s = outlook.wait_s, outlook.load, outlook.delay_after_s(after_s)
    assert max(wait_s + (load - 1) * after_s, 0) - 1e-6 <= delay_s < math.inf, "not below what is certain"
    slack = 1e-3 * (1 + delay_s)
    assert replace(outlook, wait_s=wait_s + more).delay_after_s(after_s) >= delay_s - slack
    assert replace(outlook, load=load + more).delay_after_s(after_s) >= delay_s - slack


@given(positive, st.integers(1, 512))
def test_the_default_target_is_bounded_and_falls_with_the_number_of_slots(takes_s: float, slots: int) -> None:
    target_s = target_delay_s(takes_s, slots)
    assert 0 < target_s <= admission.TARGET_DELAY_S
    assert target_delay_s(takes_s, slots + 1) <= target_s


def test_how_long_streams_stay_is_learnt_from_those_that_closed_and_those_that_are_open() -> None:
    speech = SpeechLoad()
    assert speech.remaining_s(0.0) == admission.MEMORY_S, "nothing is known"
    for number in range(100):
        speech.open(str(number), float(number))
        speech.add_final(str(number), 2.0, number + 2.0)
        speech.close(str(number), number + 4.0)
    assert speech.remaining_s(200.0) == pytest.approx(4.0, rel=0.05)
    assert speech.new_rate == pytest.approx(0.5, rel=0.05)
    assert (speech.final_s, speech.long_final_s) == pytest.approx((2.1, 2.4), rel=0.05)
    speech.open("stays", 200.0)
    assert speech.remaining_s(300.0) == pytest.approx(6.3, rel=0.05)
    assert speech.remaining_s(10_000.0) == admission.MEMORY_S
    speech.close("stays", 10_000.0)
    assert (len(speech), speech.rate(10_000.0)) == (0, 0.0)


def test_long_finals_count_in_proportion_to_their_length() -> None:
    speech, rng = SpeechLoad(), np.random.default_rng(0)
    lengths = rng.choice([1.0, 9.0], 2000)
    for length_s in lengths:
        speech.add_final("a stream", float(length_s), 0.0)
    assert speech.final_s == pytest.approx(5.0, abs=1.0)
    assert speech.long_final_s == pytest.approx(float((lengths**2).sum() / lengths.sum()), abs=1.0)
