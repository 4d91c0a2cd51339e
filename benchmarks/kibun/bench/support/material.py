"""Utterances for benchmarks of the server: as long as people's, the same in every process and every run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kibun.bench.support.speech_like import speech_like
from kibun.models.types import SAMPLE_RATE_HZ

Pcm = npt.NDArray[np.int16]
"""LINEAR16 samples at 16 kHz, (N,)."""

CHUNK = SAMPLE_RATE_HZ // 10  # samples of one message


def utterances(count: int, shortest_s: float, longest_s: float) -> list[Pcm]:
    """Speech-like utterances from the shortest to the longest, each longer by the same factor, as lengths in dialogue
    are skewed; speech from the first to the last sample, so that voice activity detection leaves them whole.
    """
    lengths = np.geomspace(shortest_s, longest_s, count)
    return [np.round(32767 * speech_like(float(s), seed=n)).astype(np.int16) for n, s in enumerate(lengths)]


def write(path: Path, material: Sequence[Pcm]) -> None:
    """For `read` in another process; path: .npz."""
    np.savez(path, *material)


def read(path: Path) -> list[Pcm]:
    """What `write` has written."""
    with np.load(path) as stored:
        return [stored[f"arr_{index}"] for index in range(len(stored.files))]
