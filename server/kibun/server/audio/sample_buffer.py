"""The latest samples of a stream, addressed by their position in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kibun.models.types import SAMPLE_RATE_HZ

Samples = npt.NDArray[np.float32]
"""(n,): mono audio at 16 kHz, full scale ±1."""


class SampleBuffer:
    """Grows and shrinks with what is still needed. Positions count from 0, the stream's first sample."""

    _SMALLEST = SAMPLE_RATE_HZ  # samples: one second, 64 kB

    def __init__(self) -> None:
        self._data = np.empty(self._SMALLEST, np.float32)
        self._first = 0  # stream position of _data[0]
        self._needed_from = 0  # stream position before which samples may be overwritten
        self._end = 0  # stream position after the last sample

    def append(self, samples: Samples) -> None:
        """Adds the stream's next samples, (n,)."""
        needed = self._end - self._first + len(samples)
        if needed > len(self._data):
            self._move(self._end - self._needed_from + len(samples))
        offset = self._end - self._first
        self._data[offset : offset + len(samples)] = samples
        self._end += len(samples)

    def drop_before(self, position: int) -> None:
        """Allows all samples before `position` to be overwritten."""
        self._needed_from = position

    def view(self, start: int, end: int) -> Samples:
        """Samples [start, end) of the stream, (end - start,), without a copy: valid until the next `append`."""
        return self._data[start - self._first : end - self._first]

    def copy(self, start: int, end: int) -> Samples:
        """A copy of samples [start, end) of the stream, (end - start,)."""
        return self.view(start, end).copy()

    def _move(self, needed: int) -> None:
        """Moves what is still needed to the front, of twice the memory needed, so that moves are rare."""
        needed_samples = self.view(self._needed_from, self._end)
        size = max(self._SMALLEST, 2 * needed)
        fits = size <= len(self._data) <= 2 * size
        data = self._data if fits else np.empty(size, np.float32)
        data[: len(needed_samples)] = needed_samples
        self._data, self._first = data, self._needed_from
