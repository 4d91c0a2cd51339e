"""Training, dev and test sets of the synthetic world at feature level: new speakers and new voices in each."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from kibun.training.simulation.world import Scenes, draw_scenes, make_world
from kibun.training.simulation.world_features import draw_frames


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """How much data, how big a model, how long a training; the same for every head."""

    profiles: int = 1000  # speakers to train on
    dev_profiles: int = 200
    test_profiles: int = 400
    utterances: int = 24  # of each speaker
    size: int = 32  # H of the frames
    epochs: int = 30
    patience: int = 10  # epochs without a better dev CCC before training stops
    batch: int = 256
    learning_rate: float = 3e-3
    personality_epochs: int = 60
    world: int = 0
    audio: bool = False  # rendered as sound and heard by a small HuBERT, in place of frames out of nowhere
    recognition_epochs: int = 4  # audio: of the trunk's pre-training on cues

    def __post_init__(self) -> None:
        if self.profiles < 10:
            raise ValueError(f"profiles is {self.profiles}, must be at least 10: there is nothing to learn from fewer")
        if self.world < 0:
            raise ValueError(f"world is {self.world}, must not be negative")


AUDIO = BenchOptions(
    profiles=600,
    dev_profiles=100,
    test_profiles=150,
    utterances=6,
    size=64,
    epochs=16,
    patience=5,
    batch=64,
    learning_rate=2e-3,
    audio=True,
)
QUICK = BenchOptions(test_profiles=300, utterances=12, epochs=10, patience=4, personality_epochs=15)


@dataclasses.dataclass(frozen=True)
class UtteranceSet:
    """N = P * U utterances: frames (N, T, H), traits (N, 5) on 1..7, valence (N,), and the scenes they come from."""

    scenes: Scenes
    frames: Tensor
    traits: Tensor
    valence: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(P, U): speakers, utterances of each."""
        profiles, utterances = self.scenes.valence.shape
        return profiles, utterances

    def with_traits(self, traits: Tensor) -> "UtteranceSet":
        """The same utterances with other traits to condition on, (N, 5)."""
        return dataclasses.replace(self, traits=traits)

    def shuffled(self, seed: int) -> "UtteranceSet":
        """Every speaker gets the traits of another one; they stay the same over a speaker's utterances."""
        profiles, utterances = self.shape
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(6,))).permutation(profiles)
        other = np.empty(profiles, dtype=np.int64)
        other[order] = np.roll(order, 1)  # one cycle through everybody: nobody keeps their own
        return self.with_traits(of_profiles(torch.from_numpy(self.scenes.traits[other]).float(), utterances))


@dataclasses.dataclass(frozen=True)
class Splits:
    """Sets without a speaker or a voice in common."""

    train: UtteranceSet
    dev: UtteranceSet
    test: UtteranceSet


def draw_splits(options: BenchOptions, seed: int, *, interaction: bool, evidence: float = 0.0) -> Splits:
    """The sets of this seed. The scenes do not depend on `evidence`, which is how plainly frames show traits."""
    world = make_world(options.world, interaction=interaction)
    sets = []
    for index, profiles in enumerate((options.profiles, options.dev_profiles, options.test_profiles)):
        said, heard = np.random.SeedSequence(seed, spawn_key=(7, index)).spawn(2)
        scenes = draw_scenes(world, np.random.default_rng(said), profiles, options.utterances)
        frames = draw_frames(
            scenes, np.random.default_rng(heard), size=options.size, world_seed=options.world, evidence=evidence
        )
        sets.append(
            UtteranceSet(
                scenes=scenes,
                frames=torch.from_numpy(frames).flatten(0, 1),  # (N, T, H)
                traits=of_profiles(torch.from_numpy(scenes.traits).float(), options.utterances),
                valence=torch.from_numpy(scenes.valence).float().flatten(),
            )
        )
    return Splits(*sets)


def of_profiles(values: Tensor, utterances: int) -> Tensor:
    """(P, ...) -> (P * utterances, ...): what is known of a speaker, at each of their utterances."""
    return values.repeat_interleave(utterances, dim=0)
