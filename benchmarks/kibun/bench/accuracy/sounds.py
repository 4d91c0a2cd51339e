"""Sounds that are not speech, generated: what a room, a body and an instrument make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kibun.bench.support.speech_like import FloatArray
from kibun.models.types import SAMPLE_RATE_HZ

_Sound = npt.NDArray[np.float64]
EVENTS = 40
_EVERY_S = {"breath": 2.0, "music, plucked": 0.35, "music, chords": 0.8}


def scenes(events: int = EVENTS, seed: int = 0) -> dict[str, FloatArray]:
    """Each sound `events` times over room tone at -70 dBFS: one second apart, breaths two; the music goes on."""
    rng = np.random.default_rng(seed)
    makers: dict[str, Callable[[], _Sound]] = {
        "clicks, 5 ms": lambda: 0.3 * rng.standard_normal(80),
        "knocks": lambda: _burst(rng, 0.3, 0.03, 0.3),
        "key taps": lambda: np.concatenate([_burst(rng, 0.1, 0.008, 0.07) for _ in range(3)]),
        "thuds, 120 Hz": lambda: 0.4 * np.exp(-_time(0.3) / 0.06) * np.sin(2 * np.pi * 120 * _time(0.3)),
        "beeps, 1 kHz": lambda: 0.2 * np.sin(2 * np.pi * 1_000 * _time(0.3)),
        "breath": lambda: _breath(rng),
        "plucked strings": lambda: _string(rng, float(rng.choice([110, 147, 196, 247, 330])), 0.9),
        "music, plucked": lambda: _string(rng, 220 * 2 ** (int(rng.choice([0, 2, 4, 5, 7, 9, 11, 12])) / 12), 1.2),
        "music, chords": lambda: _chord(220 * 2 ** (int(rng.choice([0, 5, 7, 9])) / 12)),
    }
    made = {}
    for name, make in makers.items():
        step = round(_EVERY_S.get(name, 1.0) * SAMPLE_RATE_HZ)
        scene = 3e-4 * rng.standard_normal(events * step + 2 * SAMPLE_RATE_HZ)
        for event in range(events):
            sound = make()
            scene[event * step + 8_000 :][: len(sound)] += sound
        made[name] = np.clip(scene, -1, 1).astype(np.float32)
    return made


def _time(seconds: float) -> _Sound:
    return np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _burst(rng: np.random.Generator, level: float, decay_s: float, seconds: float) -> _Sound:
    time = _time(seconds)
    return np.asarray(level * np.exp(-time / decay_s) * rng.standard_normal(len(time)))


def _breath(rng: np.random.Generator) -> _Sound:
    """Noise through the open mouth, 300 Hz to 3 kHz, that swells and falls within 0.7 s."""
    time = _time(0.7)
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE_HZ)
    shape = 1 / (1 + (300 / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / 3_000) ** 4)
    noise = np.fft.irfft(spectrum * shape, len(time))
    return np.asarray(0.03 * noise / noise.std() * np.sin(np.pi * time / 0.7) ** 2)


def _string(rng: np.random.Generator, pitch_hz: float, seconds: float) -> _Sound:
    """Karplus and Strong: a burst of noise in a delay line that loses its high frequencies."""
    samples, period = round(seconds * SAMPLE_RATE_HZ), round(SAMPLE_RATE_HZ / pitch_hz)
    lines = [rng.uniform(-1, 1, period)]
    while len(lines) * period < samples:
        lines.append(0.498 * (lines[-1] + np.roll(lines[-1], 1)))
    return np.asarray(0.2 * np.concatenate(lines)[:samples])


def _chord(root_hz: float) -> _Sound:
    time = _time(0.8)
    notes = [root_hz * 2 ** (step / 12) for step in (0, 4, 7)]
    sound = sum(np.sin(2 * np.pi * note * part * time) / part for note in notes for part in (1, 2, 3, 4))
    return np.asarray(0.05 * sound * np.minimum(1, time / 0.02) * np.exp(-time / 0.6))
