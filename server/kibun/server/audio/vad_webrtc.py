"""WebRTC's Gaussian-mixture detector (package webrtcvad-wheels)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import webrtcvad

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.offset import OffsetRemover


class WebRtcVad:
    """The detector of one stream."""

    def __init__(self, aggressiveness: int = 2, frame_ms: int = 20) -> None:
        """aggressiveness: 0 (takes most for speech) to 3 (least); frame_ms: 10, 20 or 30."""
        if aggressiveness not in range(4):
            raise ValueError(f"aggressiveness must be 0..3, not {aggressiveness}")
        if frame_ms not in (10, 20, 30):
            raise ValueError(f"frame_ms must be 10, 20 or 30, not {frame_ms}")
        self.frame_samples = frame_ms * SAMPLE_RATE_HZ // 1000
        self._aggressiveness = aggressiveness
        self._offset = OffsetRemover(self.frame_samples)
        self.reset()

    def decide(self, frames: npt.NDArray[np.float32]) -> list[bool]:
        """As `Vad.decide`. Raises ValueError for another shape."""
        # Checked here because webrtcvad takes any number of bytes without complaint.
        if frames.ndim != 2 or frames.shape[1] != self.frame_samples:
            raise ValueError(f"frames must have shape (k, {self.frame_samples}), not {frames.shape}")
        scaled = self._offset.remove(frames)
        scaled *= 32767.0
        np.minimum(np.maximum(scaled, -32768.0, out=scaled), 32767.0, out=scaled)
        pcm, size = scaled.astype(np.int16).tobytes(), 2 * self.frame_samples
        return [
            bool(self._vad.is_speech(pcm[begin : begin + size], SAMPLE_RATE_HZ)) for begin in range(0, len(pcm), size)
        ]

    def reset(self) -> None:
        """Forgets all audio so far."""
        self._vad = webrtcvad.Vad(self._aggressiveness)
        self._offset.reset()
