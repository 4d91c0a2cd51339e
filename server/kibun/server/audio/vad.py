"""Voice activity detectors behind one small Protocol: is there speech in this frame?

A detector has state (noise model, recurrent state), so every stream needs its own; `reset` makes it as new.

Which one (figures: benchmarks/detection.md)? `silero`, the default: on recorded meetings its utterances hold a twelfth
of what is not speech, and no breath or knock. `webrtc` takes half of it, and so decides seconds late; it costs less,
and suits voices that are not people's. A constant offset bothers neither.

To add one: a class with these three members in a new module, a name in `VadName`, a line in `make_vad`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from kibun.server.audio.vad_silero import SileroVad
from kibun.server.audio.vad_webrtc import WebRtcVad

__all__ = ["SILERO_THRESHOLDS", "SileroVad", "Vad", "VadName", "WebRtcVad", "make_vad"]

VadName = Literal["silero", "webrtc"]

#: Silero's thresholds for the contract's aggressiveness 0..3: where speech begins, and below which it ends.
SILERO_THRESHOLDS = ((0.2, 0.05), (0.3, 0.1), (0.4, 0.15), (0.6, 0.3))


class Vad(Protocol):
    """The detector of one stream. Not thread-safe."""

    @property
    def frame_samples(self) -> int:
        """Samples per frame at 16 kHz."""

    def decide(self, frames: npt.NDArray[np.float32]) -> list[bool]:
        """Returns, for each of the frames, (k, frame_samples) within about ±1, whether it holds speech.

        The decisions do not depend on how the frames are divided among calls, nor on a constant offset.
        """

    def reset(self) -> None:
        """Forgets all audio so far."""


def make_vad(name: VadName, aggressiveness: int) -> Vad:
    """Makes one stream's detector. aggressiveness: 0 (takes most for speech) .. 3; sets Silero's thresholds.

    Raises:
        ValueError: unknown name, aggressiveness out of range.
        ModuleNotFoundError: the detector's package is not installed; the message names it.
    """
    if aggressiveness not in range(4):
        raise ValueError(f"aggressiveness must be 0..3, not {aggressiveness}")
    if name == "webrtc":
        return WebRtcVad(aggressiveness)
    if name == "silero":
        return SileroVad(*SILERO_THRESHOLDS[aggressiveness])
    raise ValueError(f"vad must be 'silero' or 'webrtc', not {name!r}")
