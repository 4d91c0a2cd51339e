"""Batches that set manner of speaking apart from who speaks and how it was recorded.

Corpora take turns, whatever their sizes; every speaker of a batch comes with several utterances of different emotion.
What differs within a speaker is manner; channel, room and noise are drawn anew each time.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kibun.models.categories import NORMS
from kibun.training.audio.augment import ROOMS, Augment, AugmentOptions
from kibun.training.audio.crops import Crops, speech_span
from kibun.training.corpora.manifest import Item
from kibun.training.errors import ManifestError
from kibun.training.runs.utterances import Utterances

CATEGORIES = tuple(sorted(NORMS))
UNNAMED = -100  # cross entropy leaves it out

# Acted corpora are studio recordings, each from one microphone: more colour than for generated speech.
STUDIOS: AugmentOptions = dataclasses.replace(ROOMS, colour_db=4.0, tilt_db_per_octave=1.0)
SPEEDS = (0.9, 0.95, 1.0, 1.05, 1.1)


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """Size and shape of a batch."""

    speakers: int = 4
    per_speaker: int = 4  # utterances of each
    crop_seconds: tuple[float, float] = (1.2, 2.4)
    untrimmed: float = 0.3  # chance that an utterance keeps the silence around it
    augment: AugmentOptions = STUDIOS
    speeds: tuple[float, ...] = SPEEDS


class VoiceBatches:
    """The batch of each step, a pure function of seed and step."""

    def __init__(self, corpora: Sequence[Sequence[Item]], options: BatchOptions, seed: int) -> None:
        """corpora: the utterances of each. Raises ManifestError where one has no speaker of several utterances."""
        self.options, self.seed = options, seed
        items = [item for corpus in corpora for item in corpus]
        self.utterances = Utterances(items, np.zeros((len(items), 5), np.float32), min_samples=0)
        # Half of a studio's clip may be silence, and half of an utterance that a detector found, at most.
        self.crops = Crops(
            options.crop_seconds, Augment(options.augment), margin_s=0.9, margin_share=0.35, speeds=options.speeds
        )
        self.pools: list[list[list[list[int]]]] = []  # rows by corpus, speaker and category
        start = 0
        for corpus in corpora:
            self.pools.append(_by_speaker(corpus, start, options.per_speaker))
            start += len(corpus)

    def draw(self, step: int) -> dict[str, Tensor]:
        """The arguments of `VoicesTask.forward`."""
        rng = np.random.default_rng((5, self.seed, step))
        options = self.options
        rows: list[int] = []
        for number in range(options.speakers):
            corpus = self.pools[(step * options.speakers + number) % len(self.pools)]
            rows += _utterances_of(corpus[rng.integers(len(corpus))], options.per_speaker, rng)
        items = [self.utterances.items[row] for row in rows]
        return {
            "input_values": self.crops([self._audio(row, rng) for row in rows], (self.seed, step)),  # (B, N)
            "valence": torch.tensor([item.valence for item in items]),  # (B,)
            "arousal": torch.tensor([item.arousal for item in items]),  # (B,)
            "category": torch.tensor(
                [CATEGORIES.index(item.emotion) if item.emotion in CATEGORIES else UNNAMED for item in items]
            ),  # (B,)
        }

    def _audio(self, row: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(N,): an utterance with or without the silence around it."""
        audio = self.utterances.read(row)
        if rng.random() < self.options.untrimmed:
            return audio
        start, end = speech_span(audio)
        return audio[start:end]


def _by_speaker(corpus: Sequence[Item], start: int, least: int) -> list[list[list[int]]]:
    """The rows of each speaker with enough utterances, by category; those without a category are each their own."""
    speakers: dict[str, dict[str, list[int]]] = {}
    for row, item in enumerate(corpus, start):
        speakers.setdefault(item.speaker, {}).setdefault(item.emotion or str(row), []).append(row)
    pools = [list(groups.values()) for groups in speakers.values() if sum(map(len, groups.values())) >= least]
    if not pools:
        name = corpus[0].corpus or "a corpus"
        raise ManifestError(f"{name}: no speaker has {least} utterances, as a batch needs: add some of each")
    return pools


def _utterances_of(groups: Sequence[Sequence[int]], count: int, rng: np.random.Generator) -> list[int]:
    """Rows of one speaker: of different groups where there are enough."""
    chosen = rng.choice(len(groups), count, replace=count > len(groups))
    return [int(rng.choice(groups[group])) for group in chosen]
