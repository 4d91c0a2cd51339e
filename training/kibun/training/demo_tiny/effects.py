"""Signal processing after the synthesizer: vocal tract length, effort, smile, consonants, tremor, creak and breath.

All filters are zero-phase gains over the whole utterance, applied in the frequency domain.
"""

import numpy as np
import soxr

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.demo_tiny.espeak import ESPEAK_RATE_HZ
from kibun.training.demo_tiny.speakers import Cues, Speaker

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


def smile_gain_db(frequencies_hz: np.ndarray, smile: float) -> np.ndarray:
    """A resonance an octave wide at 3 kHz, 4 dB per unit: spread lips make a voice ring there."""
    return np.asarray(4.0 * smile * np.exp(-(np.log2(np.maximum(frequencies_hz, 1.0) / 3000.0) ** 2) / 0.18))


def roughen(audio: np.ndarray, harshness: float, rng: np.random.Generator) -> np.ndarray:
    """Irregular beating of the level at 25 to 50 Hz: the creak of a harsh voice."""
    time_s = np.arange(len(audio)) / SAMPLE_RATE_HZ
    depth = float(np.clip(0.12 + 0.25 * harshness, 0.0, 0.8))
    knots = np.arange(0, time_s[-1] + 0.2, 0.1)
    drift = np.interp(time_s, knots, rng.normal(0, 1, len(knots)))
    return audio * (1 + depth * np.sin(2 * np.pi * rng.uniform(25, 50) * time_s + drift))


def tremble(audio: np.ndarray, neuroticism: float, rng: np.random.Generator) -> np.ndarray:
    """A tremor of the level at 8 to 12 Hz, deeper for a neurotic speaker; slower ones drown in the syllables."""
    time_s = np.arange(len(audio)) / SAMPLE_RATE_HZ
    depth = float(np.clip(0.35 + 0.25 * neuroticism, 0.0, 0.85))
    return audio * (1 + depth * np.sin(2 * np.pi * (rng.uniform(8, 12) * time_s + rng.random())))


def articulate(audio: np.ndarray, openness: float) -> np.ndarray:
    """Crisp consonants: where the band above 3 kHz holds most of the energy, 5 dB louder per unit."""
    high = apply_gain_db(audio, np.where(np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ) < 3000.0, -80.0, 0.0))
    share = _level(high) / (_level(high) + _level(audio - high) + 1e-9)  # 0 in vowels, 1 in a sharp "s" or "t"
    return np.asarray(audio * 10 ** (5.0 * openness * share / 20))


def breathe(audio: np.ndarray, breath: float, rng: np.random.Generator) -> np.ndarray:
    """Aspiration: noise above 2.5 kHz that follows the voice's level; ``breath`` 0 is -34 dB, each 10 is +8 dB.

    Above 2.5 kHz, so that it masks little of the band that reveals vocal effort.
    """
    noise = rng.normal(0, 1, len(audio)) * _level(audio)
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ)
    noise = np.fft.irfft(np.fft.rfft(noise) / (1 + (2500.0 / np.maximum(frequencies, 1.0)) ** 2), n=len(audio))
    return audio + noise * 10 ** ((min(0.8 * breath, 28.0) - 34.0) / 20)


def _level(audio: np.ndarray) -> np.ndarray:
    """Root mean square over 30 ms around each sample, (N,) -> (N,)."""
    energy = np.concatenate([np.zeros(241), np.cumsum(audio**2), np.full(240, np.sum(audio**2))])
    return np.asarray(np.sqrt(np.maximum(energy[480 : 480 + len(audio)] - energy[: len(audio)], 0.0) / 480))


def finish(audio: np.ndarray, speaker: Speaker, cues: Cues, rng: np.random.Generator) -> np.ndarray:
    """espeak-ng's output → 16 kHz float32 of this speaker at this effort, peak 0.5."""
    # Played faster by the formant scale: shorter vocal tract, and pitch and rate rise back to what was asked for.
    audio = soxr.resample(audio, ESPEAK_RATE_HZ * speaker.formant_scale, SAMPLE_RATE_HZ)
    audio = audio[: len(audio) - len(audio) % 800]  # whole twentieths of a second: quick to transform
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ)
    gain = tilt_gain_db(frequencies, speaker.tilt_db_per_octave)
    gain += tilt_gain_db(frequencies, EFFORT_DB_PER_OCTAVE * cues.effort, speaker.effort_band_hz)
    gain += smile_gain_db(frequencies, cues.smile)
    audio = apply_gain_db(audio, gain + colour_gain_db(frequencies, speaker.filter_db))
    audio = articulate(audio, speaker.traits[0])
    audio = roughen(tremble(audio, speaker.traits[4], rng), cues.harshness, rng)
    audio = breathe(audio, speaker.breath * 2 ** (-0.25 * cues.effort), rng)
    return np.asarray(audio * (0.5 / max(float(np.abs(audio).max()), 1e-6)), dtype=np.float32)
