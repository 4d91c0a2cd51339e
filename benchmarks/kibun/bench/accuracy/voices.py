"""Voices with known phrase boundaries: phrases cut exactly out of clean speech, laid out with pauses, noise on top.

Sources: espeak-ng (required), flite (used if installed) and recordings given by path. The boundaries come from the
energy of the clean phrase, before any noise is added.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from kibun.bench.support.speech_like import FloatArray, Layout
from kibun.models.types import SAMPLE_RATE_HZ

_WINDOW = 80  # 5 ms: how finely energy is looked at
_FLOOR_DB = -40.0  # below the loudest window by this much is not speech
_ABOVE_FLOOR_DB = 9.0  # in a recording, only what stands out from its noise floor by this much is
_GAP_SAMPLES = 2_400  # silence of 150 ms or more ends a phrase; shorter is a stop consonant
_SHORTEST = 4_800  # 300 ms

# Five languages, short sentences of various shapes.
_ESPEAK = (
    ("en-us", 165, 50, ("Please bring the small box to the kitchen", "I had not thought of that", "Seven")),
    ("en-gb+f3", 175, 60, ("What a lovely morning it is", "She sells fresh fish", "Stop that right now")),
    ("ja+f2", 170, 65, ("きょうは とても いい てんき ですね", "はい", "どこへ いきますか")),
    ("de+m3", 160, 40, ("Das ist ein schöner Tag", "Ja bitte", "Ich weiß nicht wo er ist")),
    ("fr+f4", 170, 60, ("Je ne sais pas encore", "Bonjour à tous", "Il fait très froid ce soir")),
    ("es+m5", 180, 45, ("Vamos a la playa mañana", "Claro que sí", "No me gusta este ruido")),
)
_SUFFIXES = (".wav", ".flac", ".ogg", ".raw")
_FLITE = ("slt", "rms", "awb", "kal16")
_FLITE_TEXTS = (
    "The quick report was finished last night",
    "Nobody told me about the party",
    "Yes of course",
    "Fifty ships sailed past the southern shore",
)


@dataclass(frozen=True)
class SpeakerPhrases:
    """The clean phrases of one speaker, float32 (N,) each, 16 kHz, speech from the first sample to the last."""

    name: str
    phrases: tuple[FloatArray, ...]


def phrases_of(audio: FloatArray, recorded: bool = False) -> list[tuple[int, int]]:
    """(start, end) in samples of stretches of clean sound without a silence of 150 ms, by energy in 5 ms windows.

    recorded: the sound has a noise floor, which the threshold must clear.
    """
    windows = len(audio) // _WINDOW
    energy = (audio[: windows * _WINDOW].reshape(windows, _WINDOW).astype(np.float64) ** 2).mean(axis=1)
    threshold = float(energy.max(initial=0.0)) * 10 ** (_FLOOR_DB / 10)
    if recorded:
        threshold = max(threshold, float(np.percentile(energy, 5)) * 10 ** (_ABOVE_FLOOR_DB / 10))
    loud = np.flatnonzero(energy > threshold)
    if loud.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(loud) * _WINDOW >= _GAP_SAMPLES)
    starts = loud[np.concatenate(([0], breaks + 1))] * _WINDOW
    ends = (loud[np.concatenate((breaks, [loud.size - 1]))] + 1) * _WINDOW
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b - a >= _SHORTEST]


def _phrases(audio: FloatArray, recorded: bool = False) -> list[FloatArray]:
    cut = []
    ramp = np.linspace(0, 1, 32, dtype=np.float32)  # 2 ms: no click at the cut
    for start, end in phrases_of(audio, recorded):
        phrase = audio[start:end].copy()
        phrase[:32] *= ramp
        phrase[-32:] *= ramp[::-1]
        cut.append(phrase)
    return cut


def read_audio(path: Path) -> FloatArray:
    """Mono 16 kHz float32 of a sound file; `.raw` is 16-bit little-endian, 8 kHz (16 kHz if its name says 16)."""
    if path.suffix == ".raw":
        data, rate = np.fromfile(path, "<i2").astype(np.float32) / 32768, 8_000
    else:
        data, rate = soundfile.read(path, dtype="float32")
    mono = data if data.ndim == 1 else data.mean(axis=1)
    resampled: FloatArray = soxr.resample(mono, rate, SAMPLE_RATE_HZ).astype(np.float32)
    return resampled


def espeak_voices() -> list[SpeakerPhrases]:
    """Rendered voices. Raises RuntimeError without espeak-ng."""
    if shutil.which("espeak-ng") is None:
        raise RuntimeError("espeak-ng is needed: apt-get install espeak-ng")
    voices = []
    for name, speed, pitch, texts in _ESPEAK:
        base = ["espeak-ng", "-v", name, "-s", str(speed), "-p", str(pitch)]
        voices.append(_rendered(name, [[*base, "-w", "OUT", text] for text in texts]))
    return voices


def flite_voices() -> list[SpeakerPhrases]:
    """Voices built from recorded humans; none if flite is not installed."""
    if shutil.which("flite") is None:
        return []
    return [
        _rendered(name, [["flite", "-voice", name, "-o", "OUT", "-t", text] for text in _FLITE_TEXTS])
        for name in _FLITE
    ]


def recorded_voices(paths: Sequence[Path]) -> list[SpeakerPhrases]:
    """One voice per file, or per folder of files, of clean recordings."""
    voices = []
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES) if path.is_dir() else [path]
        phrases = [phrase for file in files for phrase in _phrases(read_audio(file), recorded=True)]
        voices.append(SpeakerPhrases(path.stem, tuple(phrases)))
    return voices


def _rendered(name: str, commands: list[list[str]]) -> SpeakerPhrases:
    phrases: list[FloatArray] = []
    with tempfile.TemporaryDirectory() as folder:
        for index, command in enumerate(commands):
            out = Path(folder) / f"{index}.wav"
            subprocess.run([str(out) if word == "OUT" else word for word in command], check=True)
            phrases += _phrases(read_audio(out))
    return SpeakerPhrases(name, tuple(phrases))


def lay_out(voice: SpeakerPhrases, seconds: float, rng: np.random.Generator, speech_dbfs: float = -26.0) -> Layout:
    """Phrases in random order at an RMS of speech_dbfs, pauses of 0.3..2 s, one second of silence first."""
    pieces, speech = [np.zeros(SAMPLE_RATE_HZ, np.float32)], []
    position = SAMPLE_RATE_HZ
    order: list[int] = []
    while position < seconds * SAMPLE_RATE_HZ:
        order = order or [int(i) for i in rng.permutation(len(voice.phrases))]
        phrase = voice.phrases[order.pop()]
        phrase = phrase * np.float32(10 ** (speech_dbfs / 20) / rms(phrase))
        pause = np.zeros(int(rng.uniform(0.3, 2.0) * SAMPLE_RATE_HZ), np.float32)
        speech.append((position, position + len(phrase)))
        position += len(phrase) + len(pause)
        pieces += [phrase, pause]
    return Layout(np.concatenate(pieces), tuple(speech))


def rms(audio: FloatArray) -> float:
    """Root mean square, ±1 full scale."""
    return float(np.sqrt(np.mean(audio.astype(np.float64) ** 2)))


def noise(kind: str, samples: int, rng: np.random.Generator, others: list[SpeakerPhrases]) -> FloatArray:
    """White, pink, or babble of six other voices; float32 (samples,), RMS 1."""
    if kind == "babble":
        made = np.zeros(samples)
        for _ in range(6):
            voice = others[int(rng.integers(len(others)))]
            talk: list[FloatArray] = []
            while sum(map(len, talk)) < samples + SAMPLE_RATE_HZ:
                phrase = voice.phrases[int(rng.integers(len(voice.phrases)))]
                talk.append(phrase / np.float32(rms(phrase)))
            made += np.concatenate(talk)[(skip := int(rng.integers(SAMPLE_RATE_HZ))) : skip + samples]
    else:
        made = rng.standard_normal(samples)
        if kind == "pink":
            spectrum = np.fft.rfft(made)
            frequency = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ), 20.0)
            made = np.fft.irfft(spectrum / np.sqrt(frequency), samples)
    out = made.astype(np.float32)
    return out / np.float32(rms(out))


def add_noise(
    scene: Layout, kind: str, snr_db: float, rng: np.random.Generator, others: list[SpeakerPhrases]
) -> Layout:
    """The scene with noise under all of it. SNR: RMS of the speech itself against the RMS of the noise."""
    speech = np.concatenate([scene.audio[a:b] for a, b in scene.speech])
    level = rms(speech) * 10 ** (-snr_db / 20)
    noisy = scene.audio + np.float32(level) * noise(kind, len(scene.audio), rng, others)
    return Layout(noisy, scene.speech)
