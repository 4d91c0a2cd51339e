"""The figures of `kibun bench interim` that need no model: counts, worst lengths, factors."""

import numpy as np
import pytest

from kibun.bench.cost.interim import DEFAULT, LIMIT, LONGEST_S, Costs, Errors, Schedule, counted_factor, difference


def test_worst_lengths_are_those_where_an_interim_has_just_fallen_due() -> None:
    """Found by trying all lengths; 0.3 s of the silence after an utterance pass unheard by its final."""
    tried = np.round(np.arange(0.3, LONGEST_S, 0.05), 2)
    for schedule in (DEFAULT, Schedule(1.0), Schedule(0.5), Schedule(1.0, 2.0)):
        worst = max(counted_factor(schedule, length) for length in [*schedule.worst_s(), LONGEST_S])
        assert max(counted_factor(schedule, float(length)) for length in tried) <= worst + 1e-9


def test_interims_fall_due_at_their_times_until_the_utterance_is_over() -> None:
    assert Schedule(1.0, 2.0).due_s(3.6) == [1.0, 2.0]
    assert Schedule(1.0, 2.0).due_s(3.7) == [1.0, 2.0, 4.0], "due while the end is waited for"
    assert Schedule(0.5).due_s(1.6) == [0.5, 1.0, 1.5]
    assert Schedule(1.0).due_s(LONGEST_S)[-1] == LONGEST_S, "which is cut there"


def test_the_default_costs_less_than_three_encodings_even_where_each_has_a_large_fixed_part() -> None:
    lengths = {audio for length in DEFAULT.worst_s() for audio in (length, *DEFAULT.due_s(length))}
    for fixed in (0.0, 1.0, 2.0):  # in seconds of audio
        costs = Costs({length: [length + fixed] for length in lengths})
        for length in DEFAULT.worst_s():
            assert costs.factor(DEFAULT, length) == pytest.approx(costs.measured_factor(DEFAULT, length))
            assert costs.factor(DEFAULT, length) < LIMIT
    doubling = max(Schedule(1.0, 2.0).worst_s())
    assert costs.factor(Schedule(1.0, 2.0), doubling) > LIMIT


def test_unmeasured_lengths_cost_what_the_line_through_the_medians_says() -> None:
    costs = Costs({length: [9.0, 0.2 * length + 0.1, 0.0] for length in (1.0, 2.0, 7.0)})
    assert costs.line == pytest.approx((0.2, 0.1))
    assert costs.expected_s(20.0) == pytest.approx(4.1)


def test_differences_are_means_over_utterances() -> None:
    finals = np.array([[3.0, 2.0, *[4.0] * 5], [1.0, 2.0, *[4.0] * 5]])
    early = finals + np.array([[1.0, 0.0, 5.0, 0, 0, 0, 0], [0.0, -0.5, 0, 0, 0, 0, 0]])
    assert difference(early, finals) == Errors(2, valence=0.5, arousal=0.25, traits=0.5)
