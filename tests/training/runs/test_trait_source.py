"""Which traits condition an emotion head: true, shuffled or with noise."""

import dataclasses

import numpy as np
import pytest

from kibun.training.runs.config import (
    ConfigError,
    TraitOptions,
)
from kibun.training.runs.trait_source import add_noise, condition_traits, true_traits
from tests.support.task_models import items


def test_shuffled_traits_are_those_of_another_profile_of_the_split() -> None:
    some = items(8)
    truth = true_traits(some)
    shuffled = condition_traits(some, TraitOptions("shuffled"), seed=3)
    for split in ("train", "dev"):
        rows = [row for row, item in enumerate(some) if item.split == split]
        assert sorted(map(tuple, truth[rows].tolist())) == sorted(map(tuple, shuffled[rows].tolist()))
    assert not (shuffled == truth).all(axis=1).any()
    for profile in {item.conversation for item in some}:
        rows = [row for row, item in enumerate(some) if item.conversation == profile]
        assert len({tuple(shuffled[row]) for row in rows}) == 1
    assert np.array_equal(shuffled, condition_traits(some, TraitOptions("shuffled"), seed=3))
    with pytest.raises(ConfigError, match="has one profile"):
        condition_traits(items(2), TraitOptions("shuffled"), seed=0)


def test_noise_is_one_draw_per_profile_of_the_size_asked_for() -> None:
    some = items(2000, 2)
    centre = np.full((len(some), 5), 4.0, np.float32)
    noisy = add_noise(some, centre, 0.5, seed=0)
    assert np.array_equal(noisy[::2], noisy[1::2])
    assert float((noisy - centre).std()) == pytest.approx(0.5, rel=0.05)
    wild = condition_traits(some, TraitOptions("noisy", sigma=3.0), seed=0)
    assert wild.min() == 1.0
    assert wild.max() == 7.0


def test_traits_that_are_missing_are_named() -> None:
    some = [dataclasses.replace(items(1, 1)[0], traits=None)]
    with pytest.raises(ConfigError, match="'0-0' has no traits"):
        condition_traits(some, TraitOptions("truth"), seed=0)
    assert np.array_equal(condition_traits(some, TraitOptions("none"), seed=0), np.full((1, 5), 4.0))
    with pytest.raises(ConfigError, match="finished run"):
        condition_traits(some, TraitOptions("predicted", run="/nowhere"), seed=0)
