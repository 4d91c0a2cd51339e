"""WebRTC's Gaussian-mixture detector (package webrtcvad-wheels), freed of its dependence on the recording level.

By itself it has three weaknesses (measured, benchmarks/detection.md): it takes steady noise above -32 dBFS for speech
for ever, speech below -50 dBFS for silence, and the 100 ms after speech for speech. A gain before it, which brings the
noise floor to where the detector works, removes the first two; a level gate after it the third.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import webrtcvad

from kibun.models.types import SAMPLE_RATE_HZ


class WebRtcVad:
    """The detector of one stream, with its gain and gate."""

    #: A new detector takes the first 60-180 ms of steady sound for speech. For this long its decision counts only where
    #: the sound stands out from its floor.
    _WARM_UP_SAMPLES = 2_880
    _STANDS_OUT = 10 ** (6 / 10)

    def __init__(self, aggressiveness: int = 2, frame_ms: int = 20) -> None:
        """aggressiveness: 0 (takes most for speech) to 3 (least); frame_ms: 10, 20 or 30."""
        if aggressiveness not in range(4):
            raise ValueError(f"aggressiveness must be 0..3, not {aggressiveness}")
        if frame_ms not in (10, 20, 30):
            raise ValueError(f"frame_ms must be 10, 20 or 30, not {frame_ms}")
        self.frame_samples = frame_ms * SAMPLE_RATE_HZ // 1000
        self._aggressiveness = aggressiveness
        self._frame_ms = frame_ms
        self.reset()

    def decide(self, frames: npt.NDArray[np.float32]) -> list[bool]:
        """As `Vad.decide`. Raises ValueError for another shape."""
        # Checked here because webrtcvad takes any number of bytes without complaint.
        if frames.ndim != 2 or frames.shape[1] != self.frame_samples:
            raise ValueError(f"frames must have shape (k, {self.frame_samples}), not {frames.shape}")
        # Not np.dot: a BLAS may round by the memory's alignment, and so by how the stream came in pieces.
        sums = np.add.reduce(np.square(frames), axis=1).tolist()
        energies = [value / self.frame_samples for value in sums]
        gains, audible = self._gains(energies)
        scaled = frames * gains[:, None]
        np.minimum(np.maximum(scaled, -32768.0, out=scaled), 32767.0, out=scaled)
        pcm, size = scaled.astype(np.int16).tobytes(), 2 * self.frame_samples
        decisions = []
        for number, energy in enumerate(energies):
            speech = self._vad.is_speech(pcm[number * size : (number + 1) * size], SAMPLE_RATE_HZ)
            decisions.append(bool(speech and audible[number] and self._gate.lets_pass(energy)))
        return decisions

    def _gains(self, energies: list[float]) -> tuple[npt.NDArray[np.float32], list[bool]]:
        """Factors that scale the frames to 16-bit samples, (k,), and which frames may be speech despite the warm-up."""
        gains, audible = [], []
        for energy in energies:
            gains.append(32767.0 * self._gain.amplitude_for(energy))
            audible.append(self._warm_up <= 0 or energy > self._STANDS_OUT * self._gain.floor)
            if self._warm_up > 0:
                self._warm_up -= self.frame_samples
        return np.array(gains, np.float32), audible

    def reset(self) -> None:
        """Forgets all audio so far."""
        self._vad = webrtcvad.Vad(self._aggressiveness)
        self._warm_up = self._WARM_UP_SAMPLES
        self._gain = _FloorGain(self._frame_ms)
        self._gate = _LevelGate(self._frame_ms)


class _FloorGain:
    """Amplification that brings the noise floor, the lowest level of the last four seconds, to -54..-40 dBFS.

    Speech rarely goes on for four seconds without a dip; where it does not stop, the floor is the level of its dips.
    """

    _LOWEST = 10 ** (-54 / 10)  # energy, of full scale 1
    _HIGHEST = 10 ** (-40 / 10)
    _MOST = 10 ** (18 / 10)  # so that digital silence is not amplified without bound
    _BLOCKS = 4
    _BLOCK_MS = 1_000
    _SMOOTHING = 0.3  # share of the newest frame: a single quiet frame is no floor

    def __init__(self, frame_ms: int) -> None:
        self._frames_per_block = self._BLOCK_MS // frame_ms
        self._frames = 0
        self.floor = 1e-12  # energy
        self._smooth = -1.0  # none yet
        self._lows = [math.inf] * self._BLOCKS  # lowest energy in each of the last blocks, newest first

    def amplitude_for(self, energy: float) -> float:
        """Factor for the amplitudes of the next frame, whose mean square is `energy`; it counts towards the floor."""
        self._smooth = energy if self._smooth < 0 else self._smooth + self._SMOOTHING * (energy - self._smooth)
        if self._frames == self._frames_per_block:
            self._lows = [math.inf, *self._lows[:-1]]
            self._frames = 0
        self._frames += 1
        self._lows[0] = min(self._lows[0], self._smooth)
        self.floor = floor = max(min(self._lows), 1e-12)
        if floor > self._HIGHEST:
            return math.sqrt(self._HIGHEST / floor)
        if floor < self._LOWEST:
            return math.sqrt(min(self._LOWEST / floor, self._MOST))
        return 1.0


class _LevelGate:
    """Closes on frames 23 dB below the level of the speech before them, once there were 300 ms of speech."""

    _OPEN_MS = 300
    _RATIO = 10 ** (-23 / 10)
    _LEARN_MS = 500.0  # time constant of the level
    _FORGET_MS = 3_000.0  # and of its fall while nothing passes, so that one bang does not silence what follows

    def __init__(self, frame_ms: int) -> None:
        self._open_frames = self._OPEN_MS // frame_ms
        self._learn = math.exp(-frame_ms / self._LEARN_MS)
        self._forget = math.exp(-frame_ms / self._FORGET_MS)
        self._passed = 0
        self._level = 0.0  # mean energy of what passed, weighted towards the latest

    def lets_pass(self, energy: float) -> bool:
        """Whether the gate is open for the next frame, whose mean square is `energy`."""
        if self._passed >= self._open_frames and energy < self._RATIO * self._level:
            self._level *= self._forget
            return False
        keep = min(self._learn, self._passed / (self._passed + 1))  # a plain mean at first
        self._level = keep * self._level + (1 - keep) * energy
        self._passed += 1
        return True
