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
        self._growth = 1 / self._decay  # at most 8 for the longest frames
        self.reset()

    def remove(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The next frames, (k, frame_samples), k >= 1, without their offset; a copy."""
        if self._before is None:
            self._before = float(np.add.reduce(frames[0])) / frames.shape[1]
        steps = np.empty(frames.shape)
        np.subtract(frames[:, 1:], frames[:, :-1], out=steps[:, 1:], dtype=np.float64)
        steps[0, 0] = float(frames[0, 0]) - self._before
        np.subtract(frames[1:, 0], frames[:-1, -1], out=steps[1:, 0], dtype=np.float64)
        filtered = np.cumsum(np.multiply(steps, self._growth, out=steps), axis=1, out=steps)
        filtered *= self._decay
        for row in filtered:  # what was left of the frame before
            row += self._decay * (_KEEP * self._left)
            self._left = float(row[-1])
        self._before = float(frames[-1, -1])
        return filtered.astype(np.float32)

    def reset(self) -> None:
        """Forgets all audio so far."""
        self._before = None  # the last sample
        self._left = 0.0  # and what became of it
