"""Traits for conditioning: true, predicted, noisy, shuffled, or none; one row per utterance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import NEUTRAL_TRAITS, TRAIT_SCALE, TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.runs.config import SETTINGS, ConfigError, TraitOptions

FIELD_OF_SETTING: dict[str, str] = {setting: f"{setting}_traits" for setting in SETTINGS}  # of `Estimate`


def condition_traits(items: Sequence[Item], options: TraitOptions, seed: int) -> NDArray[np.float32]:
    """Traits that the emotion of each utterance is conditioned on, (N, 5) on the 1..7 scale.

    noisy: one draw per conversation profile and trait, limited to the scale. shuffled: each profile of a split gets the
    traits of another one of the same split, so that their distribution stays and their meaning is lost.

    Raises:
        ConfigError: traits are missing from the manifest, or the other run has none for an utterance.
    """
    if options.source == "none":
        return np.tile(np.array(NEUTRAL_TRAITS, np.float32), (len(items), 1))
    if options.source == "predicted":
        return predicted_traits(items, Path(str(options.run)), options.setting)
    truth = true_traits(items)
    if options.source == "noisy":
        return add_noise(items, truth, options.sigma, seed)
    if options.source == "shuffled":
        return shuffle_profiles(items, truth, seed)
    return truth


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
    from kibun.training.evaluation.predictions import read_predictions

    found: dict[str, Sequence[float]] = {}
    field = FIELD_OF_SETTING[setting]
    for split in ("train", "dev", "test"):
        file = run / f"predictions-{split}.jsonl"
        if not file.is_file():
            raise ConfigError(f"{file}: missing; traits.run must be a finished run of `kibun train pr`")
        rows = {row.id: getattr(row.predicted, field) for row in read_predictions(file)}
        found |= {name: traits for name, traits in rows.items() if traits is not None}
    for item in items:
        if item.id not in found:
            raise ConfigError(
                f"{run}: has no {field} for utterance {item.id!r}: train it on the same manifest and splits"
            )
    return np.clip(np.array([found[item.id] for item in items], np.float32), *TRAIT_SCALE)


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
