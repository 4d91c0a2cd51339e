"""What heard traits are worth: measured against the formula's own definition, looked up by count, applied exactly."""

import numpy as np
import pytest

from kibun.models import evidence
from kibun.models.types import FULL_WEIGHT, Evidence, Traits

CENTRE: Traits = (4.5, 3.5, 4.0, 5.0, 3.0)
ROWS = (
    Evidence(1, (1.0,) * 5, (1.0,) * 5, (0.0, 0.1, 0.2, 0.3, 0.4)),
    Evidence(3, (1.0,) * 5, (1.0,) * 5, (0.1, 0.2, 0.3, 0.4, 0.5)),
)


def speakers(count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """(estimates, truth): a cautious estimate, one as noisy as true, one too bold, noise alone, one turned round."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1, (count, 5))
    noise = rng.normal(0, 1, (count, 5))
    away = np.stack(
        [
            0.5 * (true + noise)[:, 0],  # the posterior mean: as good as can be
            (true + 0.5 * noise)[:, 1],
            2 * true[:, 2],
            noise[:, 3],
            -true[:, 4],
        ],
        axis=1,
    )
    return np.array(CENTRE) + away, np.array(CENTRE) + true


def test_weights_and_errors_are_those_of_known_noise() -> None:
    estimated, truth = speakers()
    found = evidence.measured(7, estimated, truth, CENTRE)
    assert found.utterance_count == 7
    np.testing.assert_allclose(found.error, (0.5**0.5, 0.5, 1.0, 2**0.5, 2.0), atol=0.02)
    assert found.error_of_mean is not None
    np.testing.assert_allclose(found.error_of_mean, np.ones(5), atol=0.02)
    # The third is as wrong as the mean, but tells all there is to know: drawn to the mean by half it is exact.
    np.testing.assert_allclose(found.weight, (1.0, 0.8, 0.5, 0, 0), atol=0.01)
    assert found.weight[3:] == (0, 0)
    drawn = evidence.shrunk(estimated, found.weight, CENTRE)
    assert np.sqrt(np.mean((drawn - truth) ** 2, axis=0))[2] < 0.01


def test_what_few_speakers_do_not_show_is_not_used() -> None:
    """Noise alone: by chance its slope is above 0 half of the time, and above two standard errors seldom."""
    rng = np.random.default_rng(1)
    used = [
        np.array(
            evidence.measured(1, CENTRE + rng.normal(size=(30, 5)), CENTRE + rng.normal(size=(30, 5)), CENTRE).weight
        )
        for _ in range(100)
    ]
    assert 0 < np.mean(np.array(used) > 0) < 0.05


def test_no_other_factor_between_0_and_1_has_a_smaller_error() -> None:
    estimated, truth = speakers(500)
    found = evidence.measured(1, estimated, truth, CENTRE)
    for trait in (0, 1):
        errors = [
            np.mean((evidence.shrunk(estimated, [factor] * 5, CENTRE) - truth)[:, trait] ** 2)
            for factor in np.linspace(0, 1, 1001)
        ]
        assert found.weight[trait] == pytest.approx(np.argmin(errors) / 1000, abs=0.002)


def test_an_estimate_that_never_leaves_the_mean_counts_nothing() -> None:
    found = evidence.measured(1, np.tile(CENTRE, (4, 1)), np.tile(CENTRE, (4, 1)) + 1, CENTRE)
    assert (found.error, found.weight) == ((1.0,) * 5, (0.0,) * 5)


@pytest.mark.parametrize(("count", "row"), [(0, 0), (1, 0), (2, 0), (3, 1), (500, 1)])
def test_the_weight_is_that_of_the_utterances_at_hand(count: int, row: int) -> None:
    assert evidence.weight(ROWS, count) == ROWS[row].weight
    assert evidence.after(ROWS, count) == (None if count == 0 else ROWS[row])


def test_traits_of_which_nothing_is_known_count_in_full() -> None:
    assert evidence.weight(None, 1) == evidence.weight((), 1) == FULL_WEIGHT


def test_weights_of_0_and_1_are_exact() -> None:
    traits = np.random.default_rng(0).uniform(1, 7, (1000, 5))
    assert np.array_equal(evidence.shrunk(traits, FULL_WEIGHT, CENTRE), traits)
    assert np.array_equal(evidence.shrunk(traits, [0] * 5, CENTRE), np.tile(CENTRE, (1000, 1)))
    np.testing.assert_allclose(evidence.shrunk((5.5, 3.5, 3.0, 7.0, 1.0), [0.5] * 5, CENTRE), (5, 3.5, 3.5, 6, 2))
