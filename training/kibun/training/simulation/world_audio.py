"""The simulation as sound: each cue a short voiced tone, each speaker with a different voice.

A cue type is a pitch contour and a vowel, its intensity the loudness, and with it vocal effort: louder is brighter, as
in real voices, so that intensity survives normalisation per utterance. A steady floor of noise does the same. What a
voice adds (pitch, length of the vocal tract, a random equaliser) is independent of traits.

Traits are also audible in the manner of speaking, each in a different feature, under noise that is new in every
utterance: one utterance reveals little about a speaker, many reveal much. With `evidence` 0 they are inaudible.
"""

import dataclasses

import numpy as np

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.simulation.world import CUE_NAMES, SEGMENTS, Floats, Integers

CUE_SECONDS = 0.26
GAP_SECONDS = 0.04
FLOOR = 0.003  # rms of the steady noise, full scale 1; cues have about 0.02 to 0.15

# By cue type, as in CUE_NAMES: pitch in semitones at even times of the cue, and three formants in Hz.
CONTOURS = ((-4, 0, 4), (4, 0, -4), (-3, 5, -3), (4, -4, 4), (0, 0, 0))
FORMANTS_HZ = ((270, 2290, 3010), (730, 1090, 2440), (530, 1840, 2480), (300, 870, 2240), (570, 840, 2410))
BANDWIDTHS_HZ = (80.0, 100.0, 140.0)
MANNER_SPREAD = 1.2  # sd, in units of a trait, of what hides a trait in one utterance's manner


@dataclasses.dataclass(frozen=True)
class Voice:
    """A speaker's timbre: mean pitch, formants relative to an average vocal tract, and an equaliser in dB."""

    pitch_hz: float
    formant_scale: float
    equaliser_db: Floats  # (8,) at even frequencies from 0 to 8 kHz
    gender: str


def draw_voice(rng: np.random.Generator) -> Voice:
    """Draw a voice."""
    gender = "female" if rng.random() < 0.5 else "male"
    pitch_hz, scale = (200.0, 1.1) if gender == "female" else (115.0, 0.95)
    return Voice(
        pitch_hz=float(pitch_hz * 2 ** (0.15 * rng.normal())),
        formant_scale=float(scale * 2 ** (0.05 * rng.normal())),
        equaliser_db=3.0 * rng.normal(size=8),
        gender=gender,
    )


def draw_manner(rng: np.random.Generator, z: Floats, evidence: float) -> Floats:
    """(5,) strength with which each trait shows in one utterance; 0 is average."""
    return evidence * (z + MANNER_SPREAD * rng.normal(size=5))


def render(voice: Voice, cues: Integers, intensity: Floats, manner: Floats, rng: np.random.Generator) -> Floats:
    """One utterance, (N,) at 16 kHz within ±1: cues and intensity (4,), manner (5,) as of `draw_manner`.

    In the order of TRAITS, manner shows as the width of the pitch contour, shorter gaps between cues, faster cues,
    less breath, and tremor. Without manner every utterance lasts 1.2 s.
    """
    width, gap, speed, breath, tremor = manner
    cue_samples = round(SAMPLE_RATE_HZ * CUE_SECONDS * 2 ** (-0.12 * np.clip(speed, -4, 4)))
    gap_samples = round(SAMPLE_RATE_HZ * GAP_SECONDS * 2 ** (-0.4 * np.clip(gap, -4, 4)))
    tremor_semitones = 0.35 * 2 ** (0.5 * np.clip(tremor, -4, 4)) if tremor else 0.0
    breathiness = 0.06 * 2 ** (-0.6 * np.clip(breath, -4, 4))
    audio = np.zeros(SEGMENTS * (cue_samples + gap_samples))
    for index in range(SEGMENTS):
        cue = int(cues[index])
        at = np.linspace(0, 2, cue_samples)
        semitones = np.interp(at, (0, 1, 2), CONTOURS[cue]) * 2 ** (0.15 * np.clip(width, -4, 4))
        time_s = np.arange(cue_samples) / SAMPLE_RATE_HZ
        semitones = semitones + tremor_semitones * np.sin(2 * np.pi * (7 * time_s + rng.random()))
        pulses = _pulses(voice.pitch_hz * 2 ** (semitones / 12), rng)
        tone = _voiced(pulses + breathiness * rng.normal(size=cue_samples), voice, cue, float(intensity[index]))
        start = index * (cue_samples + gap_samples) + gap_samples // 2
        audio[start : start + cue_samples] = 0.15 * intensity[index] * tone
    audio = _equalised(audio, voice.equaliser_db) + FLOOR * rng.normal(size=len(audio))
    return np.asarray(np.clip(audio, -1.0, 1.0))


def cue_text(cues: Integers) -> str:
    """The names of the cues, (4,), for recognition to learn."""
    return " ".join(CUE_NAMES[int(cue)] for cue in cues)


def _pulses(pitch_hz: Floats, rng: np.random.Generator) -> Floats:
    """Glottal pulses at this pitch, (N,); each is shared between the two samples that it falls between."""
    cycles = np.cumsum(pitch_hz) / SAMPLE_RATE_HZ + rng.random()
    places = np.flatnonzero(np.diff(np.floor(cycles), prepend=np.floor(cycles[0])))
    late = (cycles[places] % 1) * SAMPLE_RATE_HZ / pitch_hz[places]  # samples since the pulse, 0..1
    pulses = np.zeros(len(pitch_hz) + 1)
    pulses[places] += 1 - late
    pulses[places - 1] += late
    return pulses[:-1]


def _voiced(source: Floats, voice: Voice, cue: int, intensity: float) -> Floats:
    """The source through glottis and vocal tract, unit rms, faded at both ends; (N,) -> (N,)."""
    from scipy.signal import lfilter

    # Vocal effort: a whisper of a tone falls off steeply, a shout hardly.
    sound = lfilter([1.0], [1.0, -(0.97 - 0.35 * intensity)], source)
    for centre_hz, bandwidth_hz in zip(FORMANTS_HZ[cue], BANDWIDTHS_HZ, strict=True):
        radius = np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE_HZ)
        angle = 2 * np.pi * min(centre_hz * voice.formant_scale, 7000.0) / SAMPLE_RATE_HZ
        poles = [1.0, -2 * radius * np.cos(angle), radius**2]
        sound = lfilter([sum(poles)], poles, sound)
    fade = min(len(sound) // 4, SAMPLE_RATE_HZ // 100)
    ramp = np.minimum(1.0, np.minimum(np.arange(len(sound)), np.arange(len(sound))[::-1]) / fade)
    return np.asarray(ramp * sound / np.sqrt(np.mean(sound**2)))


def _equalised(audio: Floats, gains_db: Floats) -> Floats:
    """The speaker's spectral colour, as a gain that is smooth over frequency, at the same level."""
    spectrum = np.fft.rfft(audio)
    gain = 10 ** (np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, len(gains_db)), gains_db) / 20)
    coloured = np.fft.irfft(spectrum * gain, len(audio))
    return np.asarray(coloured * np.sqrt(np.mean(audio**2) / np.mean(coloured**2)))
