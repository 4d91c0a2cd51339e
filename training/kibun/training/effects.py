"""What follows the synthesizer, from the settings: vocal tract length, the speaker's filter, vocal effort.

All filters are zero-phase gains over the whole utterance, applied in the frequency domain.
"""

import numpy as np
import soxr

from kibun.training.espeak import ESPEAK_RATE_HZ
from kibun.training.speakers import Cues, Speaker

SAMPLE_RATE_HZ = 16_000
EFFORT_DB_PER_OCTAVE = 1.7


def tilt_gain_db(
    frequencies_hz: np.ndarray, db_per_octave: float, band_hz: tuple[float, float] = (100.0, 5000.0)
) -> np.ndarray:
    """A straight line over log frequency within ``band_hz``, flat outside, 0 dB at 1 kHz."""
    return np.asarray(db_per_octave * np.log2(np.clip(frequencies_hz, *band_hz) / 1000.0))


def colour_gain_db(frequencies_hz: np.ndarray, gains_db: tuple[float, ...]) -> np.ndarray:
    """Gains at log-spaced frequencies from 150 Hz to 7 kHz, interpolated."""
    knots = np.geomspace(150.0, 7000.0, len(gains_db))
    return np.asarray(np.interp(np.log(np.maximum(frequencies_hz, 1.0)), np.log(knots), gains_db))


def apply_gain_db(audio: np.ndarray, gain_db: np.ndarray) -> np.ndarray:
    """Multiply the spectrum of ``audio`` (N,) by ``gain_db`` (N // 2 + 1,)."""
    return np.fft.irfft(np.fft.rfft(audio) * 10 ** (gain_db / 20), n=len(audio))


def finish(audio: np.ndarray, speaker: Speaker, cues: Cues) -> np.ndarray:
    """espeak-ng's output → 16 kHz float32 of this speaker at this effort, peak 0.5."""
    # Played faster by the formant scale: shorter vocal tract, and pitch and rate rise back to what was asked for.
    audio = soxr.resample(audio, ESPEAK_RATE_HZ * speaker.formant_scale, SAMPLE_RATE_HZ)
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ)
    gain = tilt_gain_db(frequencies, speaker.tilt_db_per_octave)
    gain += tilt_gain_db(frequencies, EFFORT_DB_PER_OCTAVE * cues.effort, speaker.effort_band_hz)
    audio = apply_gain_db(audio, gain + colour_gain_db(frequencies, speaker.filter_db))
    return np.asarray(audio * (0.5 / max(float(np.abs(audio).max()), 1e-6)), dtype=np.float32)
