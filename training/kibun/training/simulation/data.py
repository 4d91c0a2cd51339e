"""Simulated training, dev and test sets at feature level: new speakers and new voices in each."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from kibun.training.simulation.world import Scenes, draw_scenes, make_world
from kibun.training.simulation.world_features import draw_frames


@dataclasses.dataclass(frozen=True)
class SimulationOptions:
    """Amount of data, size of the model, length of training; the same for every head."""

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
    audio: bool = False  # rendered as sound and encoded by a small HuBERT, in place of drawn frames
    recognition_epochs: int = 2  # audio: of the trunk's pre-training on cues

    def __post_init__(self) -> None:
        if self.profiles < 10:
            raise ValueError(f"profiles is {self.profiles}, must be at least 10: fewer are too few to learn from")
        if self.utterances < 2:
            raise ValueError(f"utterances is {self.utterances}, must be at least 2: setting 2 is a mean over them")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of speakers in train, dev and test."""
        return self.profiles, self.dev_profiles, self.test_profiles


AUDIO = SimulationOptions(
    profiles=600,
    dev_profiles=100,
    test_profiles=150,
    size=64,
    epochs=6,
    patience=4,
    batch=64,
    learning_rate=2e-3,
    audio=True,
)
QUICK = SimulationOptions(test_profiles=300, utterances=12, epochs=10, patience=4, personality_epochs=15)


@dataclasses.dataclass(frozen=True)
class UtteranceSet:
    """N = P * U utterances: frames (N, T, H), traits (N, 5) on 1..7, valence (N,), and the scenes they come from."""

    scenes: Scenes
    frames: Tensor
    traits: Tensor
    valence: Tensor

    @classmethod
    def of(cls, scenes: Scenes, frames: Tensor) -> "UtteranceSet":
        """The utterances of these scenes, with the true traits; frames (N, T, H)."""
        valence = torch.from_numpy(scenes.valence).float()  # (P, U)
        traits = torch.from_numpy(scenes.traits).float()  # (P, 5)
        return cls(scenes, frames, of_profiles(traits, valence.shape[1]), valence.flatten())

    @property
    def shape(self) -> tuple[int, int]:
        """(P, U): speakers, utterances of each."""
        profiles, utterances = self.scenes.valence.shape
        return profiles, utterances

    @property
    def true_traits(self) -> Tensor:
        """(P, 5) of the speakers, on 1..7."""
        return torch.from_numpy(self.scenes.traits).float()

    def with_traits(self, traits: Tensor) -> "UtteranceSet":
        """The same utterances with other traits to condition on, (N, 5)."""
        return dataclasses.replace(self, traits=traits)

    def of_speakers(self, rows: Tensor) -> "UtteranceSet":
        """The utterances of these speakers, (S,), with true traits."""
        index = rows.numpy()
        scenes = Scenes(**{name: values[index] for name, values in vars(self.scenes).items()})
        return UtteranceSet.of(scenes, self.frames.view(*self.shape, *self.frames.shape[1:])[rows].flatten(0, 1))

    def shuffled(self, seed: int) -> "UtteranceSet":
        """The same utterances with each speaker's traits replaced by those of another speaker."""
        profiles, utterances = self.shape
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(6,))).permutation(profiles)
        other = np.empty(profiles, dtype=np.int64)
        other[order] = np.roll(order, 1)  # one cycle through all: no speaker gets their own
        return self.with_traits(of_profiles(self.true_traits[other], utterances))


@dataclasses.dataclass(frozen=True)
class Splits:
    """Sets without a speaker or a voice in common."""

    train: UtteranceSet
    dev: UtteranceSet
    test: UtteranceSet


def draw_splits(
    options: SimulationOptions, world: int, seed: int, *, interaction: bool, evidence: float = 0.0
) -> Splits:
    """The sets of this seed, by the rules of this world.

    The scenes do not depend on `evidence`, the strength with which frames show traits.
    """
    rules = make_world(world, interaction=interaction)
    sets = []
    for index, profiles in enumerate(options.sizes):
        scene_seed, frame_seed = np.random.SeedSequence(seed, spawn_key=(7, index)).spawn(2)
        scenes = draw_scenes(rules, np.random.default_rng(scene_seed), profiles, options.utterances)
        frames = draw_frames(
            scenes, np.random.default_rng(frame_seed), size=options.size, world_seed=world, evidence=evidence
        )
        sets.append(UtteranceSet.of(scenes, torch.from_numpy(frames).flatten(0, 1)))
    return Splits(*sets)


def of_profiles(values: Tensor, utterances: int) -> Tensor:
    """(P, ...) by speaker -> (P * utterances, ...) by utterance."""
    return values.repeat_interleave(utterances, dim=0)
