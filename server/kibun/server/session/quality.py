"""Warns a client of faults in its audio: in each utterance, and in all of a turn, be there an utterance or not.

Pure functions of the samples, so the warnings do not depend on how a client splits its audio. The estimates are still
made, but may be worth little. Measured on two recordings of speech, 1.5 s at a time, and on synthetic sounds: the
middle half of the levels spreads over 3.9 dB and more in speech, and over less than 0.5 dB in tones, chords and noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.session.events import StreamWarning

CLIPPED = 0.98  # of full scale; G.711's loudest codes lie there
CLIPPED_SHARE = 0.01  # of the samples
OFFSET = 0.02  # of full scale, …
OFFSET_SHARE = 0.5  # … and of the sound's own level (RMS)
STEADY_DB = 0.7  # between the upper and the lower quartile of the levels
LEVEL_SAMPLES = SAMPLE_RATE_HZ // 20  # a level is that of 50 ms
MIN_LEVELS = 30  # shorter sound gets no warning: it may be one long vowel
AUDIBLE = 1e-3  # of the loudest level's power: 30 dB below
QUIET = 2**-12  # of full scale, from peak to peak: what is left of a microphone that is switched off
LONG_ENOUGH = SAMPLE_RATE_HZ  # of a turn, to say anything of it

_ONES = np.ones(LEVEL_SAMPLES, np.float32)


def warnings(audio: npt.NDArray[np.float32]) -> list[StreamWarning]:
    """The faults of an utterance, each at most once. `audio`: (n,) at 16 kHz, ±1, n > 0."""
    top, bottom = float(audio.max()), float(audio.min())
    if top == bottom:
        return [StreamWarning("AUDIO_CONSTANT", "all samples of an utterance have one value; check the microphone")]
    found = []
    if max(top, -bottom) >= CLIPPED:
        share = np.count_nonzero(np.abs(audio) >= CLIPPED) / len(audio)
        if share >= CLIPPED_SHARE:
            text = f"{share:.0%} of an utterance's samples are at full scale; turn the microphone's gain down"
            found.append(StreamWarning("AUDIO_CLIPPED", text, {"share": f"{share:.3f}"}))
    mean, powers = _levels(audio)
    if abs(mean) >= OFFSET and mean * mean >= OFFSET_SHARE**2 * powers.mean():
        text = f"an utterance's samples are off zero by {mean:+.2f} of full scale; remove the DC offset"
        found.append(StreamWarning("AUDIO_DC_OFFSET", text, {"offset": f"{mean:.3f}"}))
    if _steady(powers):
        text = "an utterance's level changes as little as that of a tone, music or noise; it may not be speech"
        found.append(StreamWarning("AUDIO_STEADY", text))
    return found


class TurnLevels:
    """Sums over a turn's audio, whatever is speech in it."""

    def __init__(self) -> None:
        self.samples = 0
        self._sum, self._power, self._clipped = 0.0, 0.0, 0
        self._top, self._bottom = -np.inf, np.inf

    def add(self, audio: npt.NDArray[np.float32]) -> None:
        """`audio`: the turn's next samples, (n,) at 16 kHz, ±1."""
        if not len(audio):
            return
        # The ufuncs themselves: what numpy wraps around them takes as long as they do.
        top, bottom = float(np.maximum.reduce(audio)), float(np.minimum.reduce(audio))
        self.samples += len(audio)
        self._sum += float(np.add.reduce(audio, dtype=np.float64))
        self._power += float(audio @ audio)
        self._top, self._bottom = max(top, self._top), min(bottom, self._bottom)
        if max(top, -bottom) >= CLIPPED:
            self._clipped += int(np.count_nonzero(np.abs(audio) >= CLIPPED))

    def faults(self) -> list[StreamWarning]:
        """The faults of the turn so far, each at most once; none of less than a second."""
        if self.samples < LONG_ENOUGH:
            return []
        if self._top == self._bottom:
            text = "all samples so far have one value; check the microphone, and that it is not muted"
            return [StreamWarning("AUDIO_CONSTANT", text)]
        found = []
        if self._top - self._bottom < QUIET:
            peak_db = 20 * np.log10((self._top - self._bottom) / 2)
            text = (
                f"nothing so far was louder than {peak_db:.0f} dBFS; check the microphone, its gain, and that it is on"
            )
            found.append(StreamWarning("AUDIO_QUIET", text, {"peak_dbfs": f"{peak_db:.1f}"}))
        if (share := self._clipped / self.samples) >= CLIPPED_SHARE:
            text = f"{share:.0%} of the samples so far are at full scale; turn the microphone's gain down"
            found.append(StreamWarning("AUDIO_CLIPPED", text, {"share": f"{share:.3f}"}))
        mean = self._sum / self.samples
        if abs(mean) >= OFFSET and mean * mean >= OFFSET_SHARE**2 * (self._power / self.samples - mean * mean):
            text = f"the samples so far are off zero by {mean:+.2f} of full scale; remove the DC offset"
            found.append(StreamWarning("AUDIO_DC_OFFSET", text, {"offset": f"{mean:.3f}"}))
        return found


def _levels(audio: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.float32]]:
    """The mean of the samples, and the power of each 50 ms without that mean, (levels,). `audio`: (n,)."""
    size = min(LEVEL_SAMPLES, len(audio))
    pieces = audio[: len(audio) // size * size].reshape(-1, size)  # (levels, samples)
    mean = float((pieces @ _ONES[:size]).mean()) / size  # a matrix product sums four times as fast as `sum`
    powers: npt.NDArray[np.float32] = np.einsum("ij,ij->i", pieces, pieces) / size - mean * mean
    return mean, powers


def _steady(powers: npt.NDArray[np.float32]) -> bool:
    """Whether the level hardly changes, apart from silence around the sound. `powers`: (levels,)."""
    powers = np.sort(powers)
    audible = powers[np.searchsorted(powers, AUDIBLE * powers[-1]) :]
    if len(audible) < MIN_LEVELS or audible[0] <= 0:
        return False
    lower, upper = audible[len(audible) // 4], audible[-len(audible) // 4]
    return bool(10 * np.log10(upper / lower) < STEADY_DB)
