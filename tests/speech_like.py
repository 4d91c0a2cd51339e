"""Speech-like sound with known boundaries, made from numpy alone.

Not language, but close enough for voice activity detectors: glottal pulses with a wandering pitch through
moving formants, grouped into syllables with short consonant noise between. Used where a test needs "someone
speaks from here to there" and no recording or synthesiser may be assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

#: Formant frequencies in Hz of five vowels (a, e, i, o, u), an adult's.
_VOWELS = np.array(
    [[730, 1090, 2440], [530, 1840, 2480], [270, 2290, 3010], [570, 840, 2410], [300, 870, 2240]], np.float64
)
_BANDWIDTHS_HZ = (80.0, 100.0, 140.0)


def speech_like(seconds: float, rate: int = 16_000, f0: float = 120, seed: int = 0) -> FloatArray:
    """Continuous babble, shape (round(seconds * rate),), peak 0.3, speech from the first to the last sample.

    seconds: duration, > 0; rate: Hz; f0: mean pitch in Hz; the same arguments always give the same samples.
    """
    total = round(seconds * rate)
    rng = np.random.default_rng(seed)
    pieces: list[FloatArray] = []
    made, phase = 0, 0.0
    while made < total:
        length = int(rng.uniform(0.12, 0.28) * rate)
        pitch = f0 * float(rng.uniform(0.85, 1.25))
        syllable, phase = _syllable(length, rate, pitch, phase, _VOWELS[rng.integers(5)], rng)
        pieces.append(syllable)
        made += length
    sound = np.concatenate(pieces)[:total] if pieces else np.empty(0)
    # Ends rise and fall within 5 ms: audible speech reaches the very boundary, yet without a click.
    edge = min(int(0.005 * rate), total // 2)
    if edge:
        ramp = np.linspace(0.2, 1.0, edge)
        sound[:edge] *= ramp
        sound[-edge:] *= ramp[::-1]
    peak = float(np.abs(sound).max(initial=1e-9))
    return (0.3 / peak * sound).astype(np.float32)


def _syllable(
    length: int, rate: int, pitch: float, phase: float, formants: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, float]:
    """One vowel with a noisy start, (length,), and the pitch phase to go on from."""
    time = np.arange(length) / rate
    contour = pitch * (1 + 0.06 * np.sin(2 * np.pi * 2.5 * time) - 0.1 * time)
    cycles = phase + np.cumsum(contour) / rate
    pulses = np.diff(np.floor(cycles), prepend=np.floor(phase))  # one unit impulse per glottal closure
    noise = rng.standard_normal(length)
    onset = np.exp(-time / 0.02)  # consonant: noise that fades within some 20 ms
    source = pulses + 0.012 * noise + 0.15 * noise * onset
    spectrum = np.fft.rfft(source, 2 * length)
    frequency = np.fft.rfftfreq(2 * length, 1 / rate)
    response = np.zeros_like(frequency)
    for centre, bandwidth, gain in zip(formants, _BANDWIDTHS_HZ, (1.0, 0.6, 0.3), strict=True):
        response += gain / (1 + ((frequency - centre) / bandwidth) ** 2)
    response += 0.01
    voiced = np.fft.irfft(spectrum * response, 2 * length)[:length]
    envelope = 0.55 + 0.45 * np.sin(np.pi * (np.arange(length) + 0.5) / length)
    return voiced * envelope, float(cycles[-1])


@dataclass(frozen=True)
class Layout:
    """Sound and where in it somebody speaks."""

    audio: FloatArray  # (samples,)
    speech: tuple[tuple[int, int], ...]  # (start, end) in samples, end exclusive


def lay_out(
    parts: list[tuple[Literal["silence", "speech"], float]],
    rate: int = 16_000,
    f0: float = 120,
    seed: int = 0,
    noise_rms: float = 1e-4,
) -> Layout:
    """Silence and speech in turn, over a faint steady noise, with the truth about where speech is.

    parts: ("silence" | "speech", seconds); noise_rms: of the white noise under it all (room tone).
    """
    pieces: list[FloatArray] = []
    speech: list[tuple[int, int]] = []
    position = 0
    for index, (kind, seconds) in enumerate(parts):
        length = round(seconds * rate)
        if kind == "speech":
            pieces.append(speech_like(seconds, rate, f0, seed + index))
            speech.append((position, position + length))
        else:
            pieces.append(np.zeros(length, np.float32))
        position += length
    audio = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    noise = np.random.default_rng(seed).standard_normal(len(audio)) * noise_rms
    return Layout((audio + noise).astype(np.float32), tuple(speech))
