"""The last stretch of a stream's samples, addressed by their position in the stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kibun.models.types import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]


class SampleBuffer:
    """Grows and shrinks with what must be kept. Positions are those of the stream, the first sample's is 0."""

    _SMALLEST = SAMPLE_RATE_HZ  # samples: one second, 64 kB

    def __init__(self) -> None:
        self._data = np.empty(self._SMALLEST, np.float32)
        self._first = 0  # stream position of _data[0]
        self._kept = 0  # positions before this may be overwritten
        self._end = 0  # stream position after the last sample

    def append(self, samples: FloatArray) -> None:
        """Add the stream's next samples, (n,)."""
        needed = self._end - self._first + len(samples)
        if needed > len(self._data):
            self._move(self._end - self._kept + len(samples))
        offset = self._end - self._first
        self._data[offset : offset + len(samples)] = samples
        self._end += len(samples)

    def drop_before(self, position: int) -> None:
        """Samples before `position` will not be asked for again."""
        self._kept = position

    def view(self, start: int, end: int) -> FloatArray:
        """Samples [start, end), valid until the next `append`."""
        return self._data[start - self._first : end - self._first]

    def copy(self, start: int, end: int) -> FloatArray:
        """Samples [start, end), the caller's own."""
        return self.view(start, end).copy()

    def _move(self, needed: int) -> None:
        """Bring what is kept to the front, in twice the memory needed, so that moves are rare."""
        kept = self.view(self._kept, self._end)
        size = max(self._SMALLEST, 2 * needed)
        fits = size <= len(self._data) <= 2 * size
        data = self._data if fits else np.empty(size, np.float32)
        data[: len(kept)] = kept
        self._data, self._first = data, self._kept
