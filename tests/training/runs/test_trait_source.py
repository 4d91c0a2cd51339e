"""Which traits condition an emotion head: true, shuffled or with noise."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kibun.training.runs.config import (
    ConfigError,
    TraitOptions,
)
from kibun.training.runs.folder import heard_file
from kibun.training.runs.heard import ServedTraits
from kibun.training.runs.trait_source import (
    Mixed,
    Population,
    add_noise,
    condition_traits,
    population,
    true_traits,
)
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
    assert np.array_equal(condition_traits(some, TraitOptions("none"), 0, (3.0,) * 5), np.full((1, 5), 3.0))
    for source in ("predicted", "mixed"):
        with pytest.raises(ConfigError, match="finished run"):
            condition_traits(some, TraitOptions(source, run="/nowhere"), seed=0)


def test_the_population_counts_each_profile_once() -> None:
    some = items(4, each=2)
    uneven = [*some, some[0], some[0]]
    traits = np.array([some[row].traits for row in range(0, 8, 2)])
    of = population(uneven)
    np.testing.assert_allclose(of.centre, traits.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(of.scale, traits.std(axis=0), atol=1e-4)
    assert population(some[:2]).scale == (1.0,) * 5, "one profile: nothing varies"
    assert population([dataclasses.replace(some[0], traits=None)]) == Population()


def test_a_mixed_source_goes_from_truth_to_what_is_heard(tmp_path: Path) -> None:
    some = items(200, each=1)
    heard = np.full((3, len(some), 5), 2.5, np.float32)
    ServedTraits(tuple(item.id for item in some), heard).write(heard_file(tmp_path, "train"))
    options = TraitOptions("mixed", run=str(tmp_path), truth_first=1.0, truth_last=0.2, mean_share=0.1)
    mixed = Mixed(some, options, epochs=4, seed=0, mean=(4.0,) * 5)

    def shares(epoch: int) -> tuple[float, float, float]:
        given = np.array([mixed(epoch, index) for index in range(len(some))])
        truth = (given == true_traits(some)).all(axis=1)
        return float(truth.mean()), float((given == 4.0).all(axis=1).mean()), float((given == 2.5).all(axis=1).mean())

    first, last = shares(0), shares(3)
    assert first[0] == pytest.approx(0.9 * 0.9, abs=0.08)
    assert last[0] == pytest.approx(0.9 * 0.3, abs=0.08)
    assert first[1] == pytest.approx(0.1, abs=0.06)
    assert sum(first) == sum(last) == 1
    assert np.array_equal(mixed(2, 7), Mixed(some, options, epochs=4, seed=0, mean=(4.0,) * 5)(2, 7))
    with pytest.raises(ConfigError, match="lacks utterance 'new'"):
        Mixed([dataclasses.replace(some[0], id="new")], options, epochs=4, seed=0, mean=(4.0,) * 5)
