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

from kibun.models.types import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]

#: Formant frequencies in Hz of six vowels (a, e, i, o, u, er), an adult's.
_VOWELS = np.array(
    [
        [730, 1090, 2440, 3400],
        [530, 1840, 2480, 3500],
        [270, 2290, 3010, 3600],
        [570, 840, 2410, 3300],
        [300, 870, 2240, 3300],
        [490, 1350, 1690, 3300],
    ],
    np.float64,
)
_BANDWIDTHS_HZ = (70.0, 90.0, 130.0, 200.0)


def speech_like(seconds: float, rate: int = SAMPLE_RATE_HZ, f0: float = 120, seed: int = 0) -> FloatArray:
    """Continuous babble, shape (round(seconds * rate),), peak 0.3, speech from the first to the last sample.

    seconds: duration, > 0; rate: Hz; f0: mean pitch in Hz, 80..300. The same arguments always give the same samples.
    WebRTC's detector calls 95-100 % of it speech, Silero 86-100 % (both nearly all of it between 100 and 260 Hz).
    """
    total = round(seconds * rate)
    rng = np.random.default_rng(seed)
    vowels = _VOWELS * (f0 / 120) ** 0.3  # a higher voice comes from a shorter throat
    sound = np.zeros(total + rate)
    made, phase, vowel = 0, 0.0, int(rng.integers(len(_VOWELS)))
    while made < total:
        following = int(rng.integers(len(_VOWELS)))
        length = int(rng.uniform(0.14, 0.3) * rate)
        pitch = f0 * float(rng.uniform(0.85, 1.2))
        syllable, phase = _syllable(length, rate, pitch, phase, (vowels[vowel], vowels[following]), rng)
        sound[made : made + length] += syllable
        made, vowel = made + length, following
    sound = sound[:total]
    # Ends rise and fall within 5 ms: audible speech reaches the very boundary, yet without a click.
    edge = min(int(0.005 * rate), total // 2)
    if edge:
        ramp = np.linspace(0.2, 1.0, edge)
        sound[:edge] *= ramp
        sound[-edge:] *= ramp[::-1]
    peak = float(np.abs(sound).max(initial=1e-9))
    return (0.3 / peak * sound).astype(np.float32)


def _syllable(
    length: int,
    rate: int,
    pitch: float,
    phase: float,
    vowels: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float64], float]:
    """One vowel that glides into another after a noisy start, (length,); and the pitch phase to go on from."""
    time = np.arange(length) / rate
    contour = pitch * (1.08 - 0.6 * time + 0.01 * np.cumsum(rng.standard_normal(length)) / np.sqrt(length))
    cycles = phase + np.cumsum(contour) / rate
    pulses = np.diff(np.floor(cycles), prepend=np.floor(phase))  # one unit impulse per glottal closure
    noise = rng.standard_normal(length)
    frequency = np.asarray(np.fft.rfftfreq(2 * length, 1 / rate), np.float64)
    glottis = 1 / (1 + 1j * frequency / 250) ** 2 * (1 + 1j * frequency / 900)  # falls, lips radiate
    hiss = frequency**2 / (frequency**2 + 3_000**2) * np.fft.rfft(noise * np.exp(-time / 0.03), 2 * length)
    voice = np.fft.rfft(pulses + 0.02 * noise, 2 * length) * glottis
    sounds = [np.fft.irfft(voice * _vocal_tract(frequency, vowel), 2 * length)[:length] for vowel in vowels]
    glide = np.clip(1.6 * np.arange(length) / length - 0.4, 0, 1)
    mixed: npt.NDArray[np.float64] = (1 - glide) * sounds[0] / np.abs(sounds[0]).max() + glide * sounds[1] / np.abs(
        sounds[1]
    ).max()
    envelope = 0.1 + 0.9 * np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 0.7
    consonant = np.fft.irfft(hiss, 2 * length)[:length]
    consonant *= 0.25 / np.abs(consonant).max()
    return (mixed * envelope + consonant) * float(rng.uniform(0.6, 1.0)), float(cycles[-1])


def _vocal_tract(frequency: npt.NDArray[np.float64], formants: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
    """Four resonances one after the other, (bins,)."""
    response: npt.NDArray[np.complex128] = np.ones(len(frequency), np.complex128)
    for centre, bandwidth in zip(formants, _BANDWIDTHS_HZ, strict=True):
        response *= centre**2 / (centre**2 - frequency**2 + 1j * frequency * bandwidth)
    return response


@dataclass(frozen=True)
class Layout:
    """Audio and where it contains speech."""

    audio: FloatArray  # (samples,)
    speech: tuple[tuple[int, int], ...]  # (start, end) in samples, end exclusive


def lay_out(
    parts: list[tuple[Literal["silence", "speech"], float]],
    rate: int = SAMPLE_RATE_HZ,
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
