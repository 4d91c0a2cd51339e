"""Voice activity detectors behind one small Protocol: is there speech in this frame?

A detector has state (noise model, recurrent state), so every stream needs its own; `reset` makes it as new.

Which one (figures: benchmarks/detection.md)? `webrtc` is the default: in quiet it loses nothing of a phrase, at any
level from -12 to -66 dBFS, where Silero loses 0.2 % and more (weak first sounds); at 20 dB SNR both lose 0.1 %, at
10 dB it loses 0.6 % and Silero 0.4 %; it decides 5-120 ms sooner and costs a tenth of the CPU. Choose `silero` where
people talk in the background or things knock and rattle: WebRTC's detector takes both for speech, Silero hardly ever.

To add one: a class with these three members in a new module, a name in `VadName`, a line in `make_vad`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from kibun.server.audio.vad_silero import SileroVad
from kibun.server.audio.vad_webrtc import WebRtcVad

__all__ = ["SILERO_THRESHOLDS", "SileroVad", "Vad", "VadName", "WebRtcVad", "make_vad"]

VadName = Literal["webrtc", "silero"]

#: Silero's thresholds for the contract's aggressiveness 0..3.
SILERO_THRESHOLDS = (0.2, 0.3, 0.5, 0.7)


class Vad(Protocol):
    """The detector of one stream. Not thread-safe."""

    @property
    def frame_samples(self) -> int:
        """Samples per frame at 16 kHz."""

    def decide(self, frames: npt.NDArray[np.float32]) -> list[bool]:
        """Returns, for each of the frames, (k, frame_samples) within about ±1, whether it holds speech.

        The decisions do not depend on how the frames are divided among calls.
        """

    def reset(self) -> None:
        """Forgets all audio so far."""


def make_vad(name: VadName, aggressiveness: int) -> Vad:
    """Makes one stream's detector. aggressiveness: 0 (takes most for speech) .. 3; sets Silero's threshold.

    Raises:
        ValueError: unknown name, aggressiveness out of range.
        ModuleNotFoundError: the detector's extra is not installed; the message names it.
    """
    if aggressiveness not in range(4):
        raise ValueError(f"aggressiveness must be 0..3, not {aggressiveness}")
    if name == "webrtc":
        return WebRtcVad(aggressiveness)
    if name == "silero":
        return SileroVad(SILERO_THRESHOLDS[aggressiveness])
    raise ValueError(f"vad must be 'webrtc' or 'silero', not {name!r}")
