"""How often a wrong encoding or number of channels is noticed, and how often a right one is suspected.

Every recording goes through every good path, and is declared wrong in every way; each is one stream of a few seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from kibun.bench.support.encodings import ENCODERS, alaw, interleave, linear16, mulaw
from kibun.bench.support.speech_like import FloatArray, lay_out
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.declaration import DeclarationCheck
from kibun.server.audio.decoder import AudioDecoder, AudioError, AudioFormat, alaw_table, mulaw_table
from kibun.training.evaluation.report_table import Cell, Row, Table

SECONDS = 8.0
RATES_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
REFUSED = "refused"
_PUSH_BYTES = 4_096

GoodPath = Callable[[FloatArray, int], FloatArray]  # samples and their rate → samples of that rate


def resample(audio: FloatArray, from_hz: int, to_hz: int) -> FloatArray:
    """(n,) → (n * to_hz / from_hz,)."""
    if from_hz == to_hz:
        return audio
    resampled: FloatArray = soxr.resample(audio, from_hz, to_hz, quality="HQ")
    return resampled


def _band(audio: FloatArray, rate: int, low_hz: float, high_hz: float) -> FloatArray:
    spectrum, hz = np.fft.rfft(audio), np.fft.rfftfreq(len(audio), 1 / rate)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    kept: FloatArray = np.fft.irfft(spectrum, len(audio)).astype(np.float32)
    return kept


def _telephone(audio: FloatArray, rate: int) -> FloatArray:
    return resample(_band(resample(audio, rate, 8_000), 8_000, 300, 3_400), 8_000, rate)


def _gated(audio: FloatArray, rate: int) -> FloatArray:
    """Digital silence where it is quiet, as a conference or a codec sends."""
    size = rate // 50
    frames = audio[: len(audio) // size * size].reshape(-1, size)
    loud = np.abs(frames).max(axis=1, keepdims=True) > 0.05 * np.abs(audio).max(initial=0)
    gated: FloatArray = (frames * loud).ravel()
    return gated


def _interpolated(audio: FloatArray, rate: int) -> FloatArray:
    """Resampled from half the rate by drawing lines, as simple programs do."""
    half = resample(audio, rate, rate // 2)
    return np.interp(np.arange(2 * len(half) - 1) / 2, np.arange(len(half)), half).astype(np.float32)


def _noisy(audio: FloatArray, rate: int) -> FloatArray:
    level = max(float(audio.std()), 1e-3)
    return audio + np.random.default_rng(0).normal(0, level, len(audio)).astype(np.float32)


def _with_tones(audio: FloatArray, rate: int) -> FloatArray:
    """With what converters and USB add at a quarter and at half of the rate."""
    n = np.arange(len(audio))
    tones: FloatArray = (0.02 * np.cos(np.pi / 2 * n + 0.3) + 0.01 * (-1.0) ** n).astype(np.float32)
    return audio * 0.5 + tones


#: What may happen to audio that is declared as it is, at 16 kHz.
PATHS: dict[str, GoodPath] = {
    "as it is": lambda audio, rate: audio,
    "level × 0.1": lambda audio, rate: audio * 0.1,
    "level × 0.003": lambda audio, rate: audio * 0.003,
    "clipped, × 10": lambda audio, rate: (audio * 10).clip(-1, 1),
    "clipped, × 100": lambda audio, rate: (audio * 100).clip(-1, 1),
    "offset of 0.1": lambda audio, rate: audio * 0.5 + 0.1,
    "quiet, offset of 0.4": lambda audio, rate: audio * 0.05 + 0.4,
    "telephone band": _telephone,
    "below 2 kHz": lambda audio, rate: _band(audio, rate, 0, 2_000),
    "above 3 kHz": lambda audio, rate: _band(audio, rate, 3_000, rate / 2),
    "digital silence between": _gated,
    "white noise, 0 dB": _noisy,
    "tones of a converter": _with_tones,
    "lines between half the samples": _interpolated,
    "mu-law, decoded": lambda audio, rate: mulaw_table()[mulaw(audio)],
    "A-law, decoded": lambda audio, rate: alaw_table()[alaw(audio)],
    "8 bits": lambda audio, rate: np.round(audio * 127).astype(np.float32) * (256 / 32767),
    "8 bits × 257": lambda audio, rate: np.round(audio * 127).astype(np.float32) * (257 / 32767),
    "8 bits, floor": lambda audio, rate: (np.floor(np.round(audio * 40) / 128 * 32767) / 32767).astype(np.float32),
}


def _sounds() -> dict[str, FloatArray]:
    """Sound that is no speech, at 16 kHz."""
    rng, length = np.random.default_rng(0), round(SECONDS * SAMPLE_RATE_HZ)
    t = np.arange(length) / SAMPLE_RATE_HZ
    made = {
        f"tone of {hz} Hz": 0.3 * np.sin(2 * np.pi * hz * t + 0.2) for hz in (220, 1_000, 3_990, 4_000, 7_000, 7_900)
    }
    made |= {f"square wave of {hz} Hz": 0.5 * np.sign(np.sin(2 * np.pi * hz * t)) for hz in (100, 333)}
    made |= {f"saw of {hz} Hz": 0.4 * (2 * ((t * hz) % 1) - 1) for hz in (100, 150)}
    made |= {f"white noise of {level:g}": rng.normal(0, level, length).clip(-1, 1) for level in (1e-4, 0.01, 0.1, 0.6)}
    return {name: sound.astype(np.float32) for name, sound in made.items()} | {
        "full-scale square wave": np.sign(np.sin(2 * np.pi * 333 * t)).astype(np.float32),
        "brown noise": (np.cumsum(rng.normal(0, 0.003, length)) * 0.1).astype(np.float32),
        "sweep": (0.5 * np.sin(2 * np.pi * (100 * t + 500 * t * t))).astype(np.float32),
        "beeps of 4 kHz": (0.4 * np.sin(2 * np.pi * 4_000 * t) * ((t * 4).astype(int) % 2 == 0)).astype(np.float32),
        "chord": (0.1 * np.sin(2 * np.pi * np.outer((262, 330, 392, 523), t)).sum(axis=0)).astype(np.float32),
        "impulses": ((np.arange(length) % 160 == 0) * 0.7).astype(np.float32),
    }


#: Declared encoding → what is sent instead. Those of FLOAT32 that are no floats are refused by their range.
ENCODINGS: dict[str, tuple[str, ...]] = {
    "linear16": tuple(name for name in ENCODERS if name != "linear16"),
    "float32": tuple(name for name in ENCODERS if not name.startswith("float32") or name == "float32be"),
    "mulaw": tuple(name for name in ENCODERS if name != "mulaw"),
    "alaw": tuple(name for name in ENCODERS if name != "alaw"),
}

#: A recording and another one, of one length → two channels.
CHANNELS: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "alike": lambda one, other: interleave(one, one),
    "alike but for noise at −40 dB": lambda one, other: interleave(_hissing(one, 1), _hissing(one, 2)),
    "right × 0.7": lambda one, other: interleave(one, 0.7 * one),
    "right × 0.3": lambda one, other: interleave(one, 0.3 * one),
    "right 2 samples late": lambda one, other: interleave(one[2:], one[:-2]),
    "right 30 samples late": lambda one, other: interleave(one[30:], one[:-30]),
    "right inverted": lambda one, other: interleave(one, -one),
    "right silent": lambda one, other: interleave(one, np.zeros_like(one)),
    "left with noise alone": lambda one, other: interleave(_hissing(np.zeros_like(one), 3), one),
    "two speakers": interleave,
}


def _hissing(audio: FloatArray, seed: int) -> FloatArray:
    level = 0.01 * max(float(audio.std()), 1e-2)
    return audio + np.random.default_rng(seed).normal(0, level, len(audio)).astype(np.float32)


def suspected(raw: bytes, encoding: Any, rate_hz: int) -> str:
    """What a stream's bytes are taken for: "" if nothing is said, REFUSED where the decoder ends the stream."""
    form = AudioFormat(encoding, rate_hz)
    if encoding == "float32":  # the others accept all bytes
        decoder = AudioDecoder(form)
        try:
            decoder.decode(raw)
        except AudioError:
            return REFUSED
    check = DeclarationCheck(form)
    for begin in range(0, len(raw), _PUSH_BYTES):
        if found := check.push(raw[begin : begin + _PUSH_BYTES]):
            return found.likely
    found = check.end_turn()
    return found.likely if found else ""


def measure(recordings: Sequence[Path], *, quick: bool, every: int = 1) -> tuple[dict[str, Any], list[Table]]:
    """Shares of streams, as JSON and as tables. Every so many of the recordings; without any, generated speech.

    Raises RuntimeError if nothing can be read.
    """
    material = _material(recordings, quick=quick, every=every)
    good, alarms = _good(material, quick=quick)
    wrong = _wrong(material, quick=quick)
    streams, suspicions = sum(good.values()), sum(alarms.values())
    payload = {
        "recordings": len(material),
        "good_streams": streams,
        "false_alarms": suspicions,
        "false_alarms_by_path": dict(alarms),
        "noticed": wrong,
        "cpu_ms_per_stream": round(_cost_ms(material), 2),
        "seconds": SECONDS,
    }
    paths = [Row(name, (Cell(count), Cell(alarms[name]))) for name, count in good.items()]
    rows = [
        Row(f"{declared}: {sent}", (Cell(100 * share["noticed"]), Cell(100 * share["named"])))
        for declared, kinds in wrong.items()
        for sent, share in kinds.items()
    ]
    note = f"{len(material)} recordings, at most {SECONDS:g} s of each; refused streams count as noticed and named"
    return payload, [
        Table(
            f"Declared as it is: {suspicions} of {streams} streams suspected",
            ("path", "streams", "alarms"),
            tuple(paths),
            digits=0,
        ),
        Table("Declared wrong, % of streams", ("declared: sent", "noticed", "named"), tuple(rows), (note,), digits=1),
    ]


Material = list[tuple[FloatArray, int]]  # samples and their rate


def _material(recordings: Sequence[Path], *, quick: bool, every: int) -> Material:
    material: Material = []
    for path in audio_files(recordings)[::every][: 8 if quick else None]:
        audio, rate = soundfile.read(path, frames=-1, dtype="float32", always_2d=True)
        mono = audio.mean(axis=1)[: round(SECONDS * rate)]
        if len(mono) >= rate:
            material.append((mono, rate))
    if recordings and not material:
        raise RuntimeError(
            "no recording of a second or more found; name WAV, FLAC, Ogg or MP3 files or folders of them"
        )
    if not recordings:
        for seed in range(4 if quick else 24):
            parts: list[Any] = [("silence", 0.3), ("speech", 1.4), ("silence", 0.5), ("speech", 1.2)]
            scene = lay_out(parts, f0=90 + 10 * seed, seed=7 * seed, noise_rms=10 ** -(2.5 + seed % 3 / 2))
            material.append((scene.audio, SAMPLE_RATE_HZ))
    return material


def audio_files(recordings: Sequence[Path]) -> list[Path]:
    """The given files and those in the given folders, as far as they may be read."""
    found = [path for given in recordings for path in (sorted(given.rglob("*")) if given.is_dir() else [given])]
    return [path for path in found if path.suffix.lower() in (".wav", ".flac", ".ogg", ".mp3")]


def _good(material: Material, *, quick: bool) -> tuple[Counter[str], Counter[str]]:
    """Streams, and those suspected, by what happened to the audio."""
    streams: Counter[str] = Counter()
    alarms: Counter[str] = Counter()

    def count(name: str, raw: bytes, encoding: str, rate_hz: int) -> None:
        streams[name] += 1
        alarms[name] += suspected(raw, encoding, rate_hz) not in ("", REFUSED)

    for audio, rate in material:
        at_16 = resample(audio, rate, SAMPLE_RATE_HZ)
        for name, path in PATHS.items():
            count(name, ENCODERS["linear16"](path(at_16, SAMPLE_RATE_HZ)), "linear16", SAMPLE_RATE_HZ)
        for rate_hz in (16_000, 48_000) if quick else RATES_HZ:
            resampled = resample(audio, rate, rate_hz)
            for sent in ("linear16", "float32", "float32 of 16", "mulaw", "alaw"):
                encoding = sent.split()[0]
                count(f"{sent}, {rate_hz} Hz", ENCODERS[sent](resampled), encoding, rate_hz)
    for name, sound in _sounds().items():
        for encoding in ("linear16", "float32", "mulaw", "alaw"):
            count(name, ENCODERS[encoding](sound), encoding, SAMPLE_RATE_HZ)
    return streams, alarms


def _wrong(material: Material, *, quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Share of streams noticed, and of those whose likely declaration is the true one, by declared and sent."""
    found: dict[str, dict[str, Counter[str]]] = {}

    def count(declared: str, sent: str, likely: str, raw: bytes, encoding: str, rate_hz: int) -> None:
        seen = suspected(raw, encoding, rate_hz)
        kinds = found.setdefault(declared, {}).setdefault(sent, Counter())
        kinds.update(["streams"] + ["noticed"] * (seen != "") + ["named"] * (seen in (likely, REFUSED)))

    for rate_hz in (16_000,) if quick else (8_000, 16_000, 48_000):
        resampled = [resample(audio, rate, rate_hz) for audio, rate in material]
        for audio, other in pairwise([*resampled, resampled[0]]):
            for encoding, kinds in ENCODINGS.items():
                for sent in kinds:
                    count(encoding, sent, sent.split()[0], ENCODERS[sent](audio), encoding, rate_hz)
            for encoding in ("linear16", "float32", "mulaw", "alaw"):
                for name, mixed in CHANNELS.items():
                    raw = ENCODERS[encoding](mixed(audio, other))
                    count(f"{encoding}, stereo", name, "stereo", raw, encoding, rate_hz)
    return {
        declared: {
            sent: {key: round(seen[key] / seen["streams"], 4) for key in ("noticed", "named")}
            for sent, seen in kinds.items()
        }
        for declared, kinds in found.items()
    }


def _cost_ms(material: Material) -> float:
    """CPU of the check alone, in ms for a stream of 16-bit samples at 16 kHz."""
    raws = [linear16(resample(audio, rate, SAMPLE_RATE_HZ)).tobytes() for audio, rate in material]
    began = time.process_time()
    for raw in raws:
        suspected(raw, "linear16", SAMPLE_RATE_HZ)
    return (time.process_time() - began) / len(raws) * 1e3
