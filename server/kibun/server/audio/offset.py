"""Removes a constant offset (DC), as cheap microphones add, and what is slower than any voice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: One-pole high-pass at 10 Hz: an offset is gone within some 50 ms, and leaves no tail in the pause after speech.
_KEEP = 0.996


class OffsetRemover:
    """A high-pass over the frames of one stream. It begins at the first frame's mean, so that an offset makes no step.

    The result does not depend on how the frames are divided among calls.
    """

    _before: float | None
    _left: float

    def __init__(self, frame_samples: int) -> None:
        self._decay = _KEEP ** np.arange(frame_samples)
        self._last_decay = float(self._decay[-1])
        self._growth = 1 / self._decay  # at most 8 for the longest frames
        self.reset()

    def remove(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The next frames, (k, frame_samples), k >= 1, without their offset; a copy."""
        count, size = frames.shape
        if self._before is None:
            self._before = float(np.add.reduce(frames[0])) / size
        samples = np.empty(count * size + 1)
        samples[0] = self._before
        samples[1:] = frames.reshape(-1)
        self._before = float(samples[-1])
        filtered = np.subtract(samples[1:], samples[:-1]).reshape(count, size)
        filtered *= self._growth
        np.add.accumulate(filtered, axis=1, out=filtered)
        filtered *= self._decay
        carried = []  # what was left of the frame before
        for own in filtered[:, -1].tolist():
            carried.append(_KEEP * self._left)
            self._left = own + self._last_decay * carried[-1]
        filtered += np.multiply.outer(carried, self._decay)
        return filtered.astype(np.float32)

    def reset(self) -> None:
        """Forgets all audio so far."""
        self._before = None  # the last sample
        self._left = 0.0  # and what became of it
