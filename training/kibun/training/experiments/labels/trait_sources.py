"""The traits that emotion is conditioned on: true, another speaker-conversation's, noisy, or predicted."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAIT_SCALE, TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.metrics import ccc, rmse
from kibun.training.experiments.labels.folds import LabelFold, Rows
from kibun.training.experiments.labels.linear import Scaling, features, fit_linear
from kibun.training.experiments.labels.trait_heads import SETTINGS, CrossFitted, profiles_of
from kibun.training.runs.trait_source import add_noise, shuffle_profiles

TRUE, SHUFFLED, RIDGE = "true", "shuffled", "ridge"
LABELS = {
    TRUE: "true",
    SHUFFLED: "shuffled",
    RIDGE: "ridge on the conversation's mean",
    "setting1": "setting 1",
    "setting2": "setting 2",
    "setting2_calibrated": "setting 2, calibrated",
    "setting3": "setting 3",
    "causal3": "causal setting 3",
}
PREDICTED = (RIDGE, *SETTINGS)
BY_UTTERANCE = ("setting1", "causal3")  # others have one value for a speaker-conversation

Floats = NDArray[np.float64]


def noise_source(sigma: float) -> str:
    """The name of true traits with noise of this standard deviation."""
    return f"noise_{sigma:g}"


def label(source: str) -> str:
    """As printed."""
    return LABELS.get(source) or f"true + noise, σ {source.removeprefix('noise_')}"


@dataclasses.dataclass(frozen=True)
class TraitSources:
    """The traits of every utterance of a fold, (N, 5), by source and seed; rows outside the fold mean nothing."""

    array: NDArray[np.float32]
    items: Sequence[Item]
    seeds: Sequence[int]
    sigmas: Sequence[float]
    heads: CrossFitted | None  # None: no predictions by settings

    def of_fold(self, fold: LabelFold) -> dict[str, list[Floats]]:
        """One array for each seed; a single one where no seed is used."""
        truth = np.array([item.traits for item in self.items])
        found: dict[str, list[Floats]] = {TRUE: [truth], SHUFFLED: [], RIDGE: [self._ridge(fold, truth)]}
        placed = self._placed(fold)
        inside = np.flatnonzero([item.split is not None for item in placed])
        some = [placed[row] for row in inside]
        for seed in self.seeds:
            shuffled = truth.copy()
            shuffled[inside] = shuffle_profiles(some, truth[inside].astype(np.float32), seed)
            found[SHUFFLED].append(shuffled)
            for sigma in self.sigmas:
                noisy = add_noise(self.items, truth.astype(np.float32), sigma, seed).astype(np.float64)
                found.setdefault(noise_source(sigma), []).append(noisy)
            if self.heads is not None:
                for setting, traits in self.heads.traits(fold, seed).items():
                    found.setdefault(setting, []).append(traits)
        return found

    def _placed(self, fold: LabelFold) -> list[Item]:
        """The utterances with the split that they have in this fold, within which traits are exchanged."""
        split: list[str | None] = [None] * len(self.items)
        for name, rows in (("dev", np.setdiff1d(fold.dev, fold.train)), ("train", fold.train), ("test", fold.test)):
            for row in rows:
                split[row] = name
        return [dataclasses.replace(item, split=home) for item, home in zip(self.items, split, strict=True)]

    def _ridge(self, fold: LabelFold, truth: Floats) -> Floats:
        """Ridge from the mean features of a speaker-conversation to its traits, cross-fitted on train."""
        rows = np.concatenate([fold.train, fold.test, np.setdiff1d(fold.dev, fold.train)])
        profiles = profiles_of(self.items, rows)
        means = np.stack([self.array[profile].mean(axis=0) for profile in profiles])  # (P, D)
        first = np.array([profile[0] for profile in profiles])
        home = np.isin(first, fold.train)
        train, other = np.flatnonzero(home), np.flatnonzero(~home)
        parts = np.where(home, fold.parts[first], -1)
        found = truth.copy()

        def predict(fitted: Rows, wanted: Rows) -> None:
            inner = LabelFold(fold.name, fitted, fitted, fitted, wanted, parts)
            columns = features(means, Scaling.of(means, fitted))
            traits = fit_linear(columns, truth[first], inner).predict(wanted)
            for index, row in zip(wanted, np.clip(traits, *TRAIT_SCALE), strict=True):
                found[profiles[index]] = row

        predict(train, other)
        for part in np.unique(parts[train]):
            predict(train[parts[train] != part], train[parts[train] == part])
        return found


@dataclasses.dataclass(frozen=True)
class TraitQuality:
    """How well a source's traits are predicted on test, (5,) each: means over folds and seeds.

    mean_rmse: of always guessing train's mean. Utterances count once where traits differ between them, otherwise
    speaker-conversations do.
    """

    ccc: tuple[float, ...]
    rmse: tuple[float, ...]
    mean_rmse: tuple[float, ...]


def trait_quality(
    source: str, items: Sequence[Item], folds: Sequence[LabelFold], found: Sequence[Sequence[Floats]]
) -> TraitQuality:
    """found: the traits (N, 5) of each fold and seed."""
    truth = np.array([item.traits for item in items])
    figures: list[list[list[float]]] = []
    for fold, seeds in zip(folds, found, strict=True):
        first = [int(profile[0]) for profile in profiles_of(items, fold.test)]
        rows = fold.test if source in BY_UTTERANCE else np.array(first)
        guess = truth[[int(profile[0]) for profile in profiles_of(items, fold.train)]].mean(axis=0)
        for traits in seeds:
            pairs = [(traits[rows, k], truth[rows, k]) for k in range(len(TRAITS))]
            figures.append(
                [
                    [ccc(predicted, true) for predicted, true in pairs],
                    [rmse(predicted, true) for predicted, true in pairs],
                    [rmse(np.full(len(rows), guess[k]), true) for k, (_, true) in enumerate(pairs)],
                ]
            )
    means = np.mean(figures, axis=0).tolist()
    return TraitQuality(*(tuple(each) for each in means))
