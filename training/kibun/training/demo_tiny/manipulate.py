"""Real recordings made to sound more or less aroused: pitch, rate and spectral tilt, one at a time or together.

For testing whether a model's arousal follows the cues in voices that were never generated. Plain signal processing in
numpy; levels are small enough that speech stays natural.
"""

from typing import Literal

import numpy as np
import soxr

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.demo_tiny.effects import apply_gain_db, tilt_gain_db

Cue = Literal["pitch", "rate", "tilt", "all"]
CUES: tuple[Cue, ...] = ("pitch", "rate", "tilt", "all")

SEMITONES_PER_LEVEL = 1.5
RATE_PER_LEVEL = 2**0.15  # 11 %
TILT_PER_LEVEL = 1.2  # dB per octave


def manipulate(audio: np.ndarray, cue: Cue, level: float) -> np.ndarray:
    """``audio`` (N,) at 16 kHz made ``level`` steps more (or, below 0, less) aroused in one cue or in all."""
    audio = np.asarray(audio, dtype=np.float64)
    if cue in ("pitch", "all"):
        audio = shift_pitch(audio, SEMITONES_PER_LEVEL * level)
    if cue in ("rate", "all"):
        audio = change_rate(audio, RATE_PER_LEVEL**level)
    if cue in ("tilt", "all"):
        audio = change_tilt(audio, TILT_PER_LEVEL * level)
    return np.asarray(limit_band(audio), dtype=np.float32)


def change_rate(audio: np.ndarray, factor: float) -> np.ndarray:
    """Speak ``factor`` times as fast at the same pitch (waveform-similarity overlap-add).

    Source: Verhelst and Roelands, ICASSP 1993. Frames of 40 ms, moved by up to 8 ms to where they fit best.
    """
    frame, hop, reach = 640, 320, 128
    window = np.hanning(frame + 1)[:frame]
    count = max(1, int((len(audio) / factor - frame) // hop) + 1)
    padded = np.concatenate([np.zeros(reach), audio, np.zeros(2 * frame + 2 * reach)])
    output = np.zeros(count * hop + frame)
    weight = np.zeros_like(output)
    previous = reach
    for index in range(count):
        wanted = reach + round(index * hop * factor)
        best = wanted
        if index:
            # Where the signal looks most like what would have followed the last frame.
            target = padded[previous + hop : previous + hop + frame]
            region = padded[wanted - reach : wanted + reach + frame]
            best = wanted - reach + int(np.argmax(np.correlate(region, target, "valid")))
        output[index * hop : index * hop + frame] += window * padded[best : best + frame]
        weight[index * hop : index * hop + frame] += window
        previous = best
    return output / np.maximum(weight, 0.1)


def shift_pitch(audio: np.ndarray, semitones: float) -> np.ndarray:
    """Raise or lower the pitch and leave formants and rate as they are."""
    factor = 2 ** (semitones / 12)
    if factor == 1:
        return audio
    slower = change_rate(audio, 1 / factor)
    shifted = soxr.resample(slower, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)
    return _restore_formants(shifted, factor)


def change_tilt(audio: np.ndarray, db_per_octave: float) -> np.ndarray:
    """Tilt the spectrum around 1 kHz, between 100 Hz and 6 kHz."""
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ)
    return apply_gain_db(audio, tilt_gain_db(frequencies, db_per_octave, (100.0, 6000.0)))


def cut_at_pauses(audio: np.ndarray, shortest_s: float = 1.8, longest_s: float = 3.4) -> list[np.ndarray]:
    """Cut (N,) at its quietest moments into pieces of about two to three seconds; a short rest is dropped."""
    energy = np.convolve(audio**2, np.ones(1600) / 1600, "same")
    pieces, start = [], 0
    while len(audio) - start >= 1.5 * SAMPLE_RATE_HZ:
        low, high = start + int(shortest_s * SAMPLE_RATE_HZ), start + int(longest_s * SAMPLE_RATE_HZ)
        end = len(audio) if high >= len(audio) else low + int(np.argmin(energy[low:high]))
        loud = np.flatnonzero(energy[start:end] > 1e-3 * energy[start:end].max())
        pieces.append(audio[start + loud[0] : start + loud[-1] + 1])
        start = end
    return pieces


def limit_band(audio: np.ndarray, highest_hz: float = 6400.0) -> np.ndarray:
    """Lowering the pitch by resampling leaves nothing above 6.7 kHz: so let no version have more."""
    spectrum = np.fft.rfft(audio)
    spectrum *= 1 / (1 + np.exp((np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ) - highest_hz) / 60))
    return np.fft.irfft(spectrum, n=len(audio))


def _restore_formants(audio: np.ndarray, factor: float) -> np.ndarray:
    """Undo what resampling by ``factor`` did to the spectral envelope, frame by frame (cepstral smoothing)."""
    frame, hop = 512, 128
    window = np.hanning(frame + 1)[:frame]
    padded = np.concatenate([np.zeros(frame), audio, np.zeros(frame)])
    starts = range(0, len(padded) - frame, hop)
    spectra = np.fft.rfft(np.stack([padded[s : s + frame] * window for s in starts]))  # (T, 257)
    cepstra = np.fft.irfft(np.log(np.abs(spectra) + 1e-6))  # (T, 512)
    cepstra[:, 30:-29] = 0  # keep what changes slowly over frequency: the envelope
    envelope = np.fft.rfft(cepstra).real  # (T, 257), natural log
    # Not up to the last bins: the resampling filter has emptied them.
    bins = np.minimum(np.arange(envelope.shape[1]) * factor, 0.93 * (envelope.shape[1] - 1))
    left = np.minimum(bins.astype(int), envelope.shape[1] - 2)
    wanted = envelope[:, left] * (1 - (bins - left)) + envelope[:, left + 1] * (bins - left)
    frames = np.fft.irfft(spectra * np.exp(np.clip(wanted - envelope, -2.5, 2.5)), n=frame) * window
    output, weight = np.zeros(len(padded)), np.zeros(len(padded))
    for index, start in enumerate(starts):
        output[start : start + frame] += frames[index]
        weight[start : start + frame] += window**2
    return (output / np.maximum(weight, 0.1))[frame:-frame]
