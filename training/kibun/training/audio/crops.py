"""Utterances cut to one random length, so that a batch needs no padding and duration carries no information."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.audio.augment import Augment, add_noise, change_speed

Floats = NDArray[np.float32]
LEVEL_FRAME = SAMPLE_RATE_HZ // 100
EDGE_DB = -26.0  # below the loud frames of an utterance, where its edges are taken to be silent


@dataclasses.dataclass(frozen=True)
class Crops:
    """Cuts every utterance of a batch to one random length and augments it.

    Many get silence before and after, as a voice activity detector or a studio leaves it; so does an utterance that is
    too short.
    """

    seconds: tuple[float, float]
    augment: Augment | None = None
    margin_chance: float = 0.6
    margin_s: float = 0.5
    margin_share: float | None = None  # of the row, each at most; None: a quarter of the shortest row
    babble_chance: float = 0.13  # of the voices of other utterances in the background, where augmented
    speeds: tuple[float, ...] = (1.0,)  # one of them before the cut, each as likely; whole percents

    def __call__(self, audios: Sequence[Floats], key: tuple[int, ...]) -> Tensor:
        """B utterances (N_i,) in ±1 -> (B, N). What is random depends on the key alone."""
        rng = np.random.default_rng(key)
        size = self.draw_size(rng)
        rows = []
        for index, audio in enumerate(audios):
            speed = self.speeds[int(rng.integers(len(self.speeds)))] if len(self.speeds) > 1 else self.speeds[0]
            changed = change_speed(torch.from_numpy(audio), speed).numpy()
            piece, at = self.cut(changed, size, rng)
            row = place(piece, at, size)
            rows += self.augmented([row], audios, (*key, index), rng) if self.augment is not None else [row]
        return torch.stack(rows)

    def draw_size(self, rng: np.random.Generator) -> int:
        """Samples of a batch: a multiple of 0.1 s, for which the augmentation's Fourier transforms are fast."""
        return int(rng.uniform(*self.seconds) * 10) * (SAMPLE_RATE_HZ // 10)

    def cut(self, audio: Floats, size: int, rng: np.random.Generator) -> tuple[Floats, int]:
        """A random piece of (N,), and where it goes in a row of ``size`` samples."""
        margins = rng.uniform(0, self.margin_s, 2) * (rng.random() < self.margin_chance)
        longest_s = self.seconds[0] / 4 if self.margin_share is None else self.margin_share * size / SAMPLE_RATE_HZ
        before, after = (int(margin * SAMPLE_RATE_HZ) for margin in np.minimum(margins, longest_s))
        left = size - before - after
        start = rng.integers(0, max(1, len(audio) - left + 1))
        piece = audio[start : start + left]
        return piece, before + int(rng.integers(0, left - len(piece) + 1))

    def augmented(
        self, versions: Sequence[Tensor], voices: Sequence[Floats], key: tuple[int, ...], rng: np.random.Generator
    ) -> list[Tensor]:
        """The versions of one utterance with the same babble, channel, room and noise; (N,) each."""
        assert self.augment is not None
        babble, snr_db = rng.random() < self.babble_chance, rng.uniform(*self.augment.options.noise_snr_db)
        others = rng.choice(len(voices), min(3, len(voices)), replace=False)
        if babble:
            noise = torch.from_numpy(np.sum([np.resize(voices[other], len(versions[0])) for other in others], axis=0))
            versions = [add_noise(version, noise, snr_db) for version in versions]
        return [self.augment(version, key=key) for version in versions]


def place(piece: Floats, at: int, size: int) -> Tensor:
    """(size,): a piece (N,) with silence before and after, beginning at sample `at`."""
    return torch.from_numpy(np.pad(piece, (at, size - at - len(piece))))


def speech_span(audio: Floats) -> tuple[int, int]:
    """(start, end) in samples of an utterance (N,) without the silence around it, which studios leave a second of.

    By level alone: from the first to the last stretch of 0.1 s that is loud enough, and 50 ms on either side.
    """
    frames = len(audio) // LEVEL_FRAME
    if frames < 11:
        return 0, len(audio)
    power = np.square(audio[: frames * LEVEL_FRAME].reshape(frames, LEVEL_FRAME)).mean(1)
    level_db = 10 * np.log10(np.convolve(power, np.ones(11) / 11, "same") + 1e-10)
    loud = np.flatnonzero(level_db > np.percentile(level_db, 95) + EDGE_DB)
    margin = 5 * LEVEL_FRAME
    return max(0, int(loud[0]) * LEVEL_FRAME - margin), min(len(audio), (int(loud[-1]) + 1) * LEVEL_FRAME + margin)
