"""Traits for conditioning: true, predicted, mixed, noisy, shuffled, or none; one row per utterance.

Served, emotion is conditioned on traits *as heard so far*: wrong at first, better later, and drawn to the mean by what
they are worth (`kibun.models.evidence`). A head that was trained with the truth alone trusts them too much. With the
source "mixed", each utterance of each epoch is given one of

- the truth, for a share of them that falls over training: it teaches what traits mean, and serving may be given it;
- traits as heard after a random number of the speaker's utterances, by a conversation head that has not seen the
  speaker (`heard.py`), drawn to the mean as in service;
- the mean: nothing heard.

Dev, which chooses, and test get what would be served: causal traits, drawn to the mean.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import NEUTRAL_TRAITS, TRAIT_SCALE, TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.corpora.splits import SPLITS
from kibun.training.evaluation.predictions import Estimate, read_predictions
from kibun.training.runs.config import SETTINGS, ConfigError, TraitOptions
from kibun.training.runs.folder import heard_file, predictions_file
from kibun.training.runs.heard import read_condition

FIELD_OF_SETTING: dict[str, str] = {setting: f"{setting}_traits" for setting in SETTINGS}  # of `Estimate`


@dataclasses.dataclass(frozen=True)
class Population:
    """Mean and standard deviation (5,) of the training speakers' traits, each conversation profile counted once."""

    centre: tuple[float, ...] = NEUTRAL_TRAITS
    scale: tuple[float, ...] = (1.0,) * len(TRAITS)


def population(train: Sequence[Item]) -> Population:
    """That of a train split; the middle of the scale, and 1, where it has no traits."""
    profiles = {item.conversation: item.traits for item in train if item.traits is not None}
    if not profiles:
        return Population()
    traits = np.array(list(profiles.values()), np.float64)  # (P, 5)
    spread = traits.std(axis=0)
    # A trait that does not vary tells nothing, whatever it is divided by.
    scale = np.where(spread > 1e-3, spread, 1.0)
    return Population(_rounded(traits.mean(axis=0)), _rounded(scale))


def condition_traits(
    items: Sequence[Item], options: TraitOptions, seed: int, mean: Sequence[float] = NEUTRAL_TRAITS
) -> NDArray[np.float32]:
    """Traits that the emotion of each utterance is conditioned on, (N, 5) on the 1..7 scale.

    noisy: one draw per conversation profile and trait, limited to the scale. shuffled: each profile of a split gets the
    traits of another one of the same split, so that their distribution stays and their meaning is lost. mixed: those
    that would be served; `Mixed` has those of training. none: `mean`.

    Raises:
        ConfigError: traits are missing from the manifest, or the other run has none for an utterance.
    """
    if options.source == "none":
        return np.tile(np.array(mean, np.float32), (len(items), 1))
    if options.source == "predicted":
        return predicted_traits(items, Path(str(options.run)), options.setting)
    if options.source == "mixed":
        return served_traits(items, Path(str(options.run)))
    truth = true_traits(items)
    if options.source == "noisy":
        return add_noise(items, truth, options.sigma, seed)
    if options.source == "shuffled":
        return shuffle_profiles(items, truth, seed)
    return truth


class Mixed:
    """The traits of the source "mixed" in training; see the module's docstring."""

    def __init__(
        self, train: Sequence[Item], options: TraitOptions, *, epochs: int, seed: int, mean: Sequence[float]
    ) -> None:
        """Raises ConfigError where the other run lacks what is needed."""
        file = heard_file(Path(str(options.run)), "train")
        self.heard = read_condition(file).of(train, file)  # (R, N, 5)
        self.truth = true_traits(train)
        self.mean = np.array(mean, np.float32)
        self.options, self.epochs, self.seed = options, epochs, seed

    def truth_share(self, epoch: int) -> float:
        """Of the utterances of this epoch, counted from 0, that are not given the mean."""
        first, last = self.options.truth_first, self.options.truth_last
        return first + (last - first) * (epoch + 0.5) / self.epochs

    def __call__(self, epoch: int, index: int) -> NDArray[np.float32]:
        """(5,): the same for the same epoch and utterance, however often a run is resumed."""
        rng = np.random.default_rng((3, self.seed, epoch, index))
        which, order = rng.random(2), rng.integers(len(self.heard))
        if which[0] < self.options.mean_share:
            return self.mean
        traits = self.truth[index] if which[1] < self.truth_share(epoch) else self.heard[order, index]
        return np.asarray(traits, np.float32)


def served_traits(items: Sequence[Item], run: Path) -> NDArray[np.float32]:
    """(N, 5) as a run of `kibun train pr` would have them served, on dev and test in the manifest's order."""
    found = np.zeros((len(items), len(TRAITS)), np.float32)
    for split in sorted({str(item.split) for item in items}):
        file, rows = heard_file(run, split), [row for row, item in enumerate(items) if str(item.split) == split]
        found[rows] = read_condition(file).of([items[row] for row in rows], file)[0]
    return found


def true_traits(items: Sequence[Item]) -> NDArray[np.float32]:
    """(N, 5) traits of the manifest; ConfigError names an utterance without."""
    for item in items:
        if item.traits is None:
            raise ConfigError(
                f"utterance {item.id!r} has no traits in the manifest: add them, or traits.source = 'none'"
            )
    return np.array([item.traits for item in items], np.float32).reshape(-1, len(TRAITS))


def predicted_traits(items: Sequence[Item], run: Path, setting: str) -> NDArray[np.float32]:
    """(N, 5) as a run of `kibun train pr` predicted them, limited to the scale."""
    field = FIELD_OF_SETTING[setting]
    estimates = {name: getattr(estimate, field) for name, estimate in _predictions_of(run).items()}
    found = {name: traits for name, traits in estimates.items() if traits is not None}
    for item in items:
        if item.id not in found:
            raise ConfigError(
                f"{run}: has no {field} for utterance {item.id!r}: train it on the same manifest and splits"
            )
    return np.clip(np.array([found[item.id] for item in items], np.float32), *TRAIT_SCALE)


def _predictions_of(run: Path) -> dict[str, Estimate]:
    """The estimates of every utterance of a run of `kibun train pr`, by id. Raises ConfigError."""
    found: dict[str, Estimate] = {}
    for split in SPLITS:
        file = predictions_file(run, split)
        if not file.is_file():
            raise ConfigError(f"{file}: missing; traits.run must be a finished run of `kibun train pr`")
        found |= {row.id: row.predicted for row in read_predictions(file)}
    return found


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def add_noise(items: Sequence[Item], traits: NDArray[np.float32], sigma: float, seed: int) -> NDArray[np.float32]:
    """Gaussian noise of one draw per profile and trait, limited to 1..7 (Table VII of the paper)."""
    profiles = sorted({item.conversation for item in items})
    noise = np.random.default_rng([seed, 1]).normal(0.0, sigma, (len(profiles), len(TRAITS)))
    row = {profile: index for index, profile in enumerate(profiles)}
    return np.clip(traits + noise[[row[item.conversation] for item in items]], *TRAIT_SCALE).astype(np.float32)


def shuffle_profiles(items: Sequence[Item], traits: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Each profile gets the traits of another profile of its split; ConfigError where a split has only one."""
    rng = np.random.default_rng([seed, 2])
    shuffled = np.empty_like(traits)
    for split in sorted({str(item.split) for item in items}):
        rows = [index for index, item in enumerate(items) if str(item.split) == split]
        profiles = sorted({items[index].conversation for index in rows})
        if len(profiles) < 2:
            raise ConfigError(f"traits.source = 'shuffled': split {split!r} has one profile, two or more are needed")
        order = rng.permutation(len(profiles))
        # Along one cycle through all, so that no profile gets its own.
        donor = {profiles[order[at]]: profiles[order[at - 1]] for at in range(len(profiles))}
        first: dict[tuple[str, str], int] = {}
        for index in rows:
            first.setdefault(items[index].conversation, index)
        for index in rows:
            shuffled[index] = traits[first[donor[items[index].conversation]]]
    return shuffled
