"""How often a wrong sample rate is noticed from the samples, and how often a right one is suspected.

A stream is up to 24 s of one speaker: where a folder's `labels.csv` names speakers, their recordings follow each other.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from kibun.bench.accuracy.declarations import PATHS, GoodPath, audio_files, resample
from kibun.bench.support.encodings import linear16
from kibun.bench.support.speech_like import FloatArray, speech_like
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import AudioDecoder, AudioFormat
from kibun.server.audio.voice_speed import VoiceSpeed
from kibun.training.evaluation.report_table import Cell, Row, Table

SECONDS = 24
_SHORTEST = 7  # seconds
_PUSH = 1_600  # samples

#: True rate → what it is declared as.
PAIRS = (
    *((44_100, 16_000), (48_000, 16_000), (32_000, 16_000), (24_000, 16_000), (22_050, 16_000)),
    *((11_025, 16_000), (8_000, 16_000), (48_000, 8_000), (22_050, 8_000), (16_000, 8_000)),
    *((16_000, 22_050), (8_000, 22_050), (16_000, 44_100), (22_050, 44_100), (8_000, 48_000), (16_000, 48_000)),
    *((24_000, 48_000), (44_100, 48_000)),
)


def _quicker(by: float) -> GoodPath:
    return lambda audio, rate: resample(audio, round(rate * by), rate)


def _hum(hz: float) -> GoodPath:
    def add(audio: FloatArray, rate: int) -> FloatArray:
        t = np.arange(len(audio)) / rate
        tones = sum(np.sin(2 * np.pi * hz * k * t + k) / k for k in range(1, 5))
        hummed: FloatArray = (audio + 0.3 * audio.std() * np.asarray(tones)).astype(np.float32)
        return hummed

    return add


def _echoing(audio: FloatArray, rate: int) -> FloatArray:
    """In a room in which sound takes half a second to fall by 60 dB."""
    n = np.arange(rate // 2)
    room = np.random.default_rng(1).normal(0, 1, len(n)) * 10 ** (-3 * n / len(n))
    room[0] = 6
    size = 1 << (len(audio) + len(n)).bit_length()
    heard = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(room, size))[: len(audio)]
    echoing: FloatArray = (heard / max(np.abs(heard).max(), 1e-9) / 2).astype(np.float32)
    return echoing


def _with_pauses(audio: FloatArray, rate: int) -> FloatArray:
    """Two seconds of silence after every three."""
    parts = [audio[begin : begin + 3 * rate] for begin in range(0, len(audio), 3 * rate)]
    return np.concatenate([np.pad(part, (0, 2 * rate)) for part in parts])


def _noise_at(db: float) -> GoodPath:
    def add(audio: FloatArray, rate: int) -> FloatArray:
        noise = np.random.default_rng(2).normal(0, 1, len(audio)) * audio.std() * 10 ** (-db / 20)
        noisy: FloatArray = (audio + noise).astype(np.float32)
        return noisy

    return add


#: What may happen to speech whose rate is declared rightly, at 16 kHz.
GOOD: dict[str, GoodPath] = {
    **PATHS,
    "voice and pace × 1.25": _quicker(1.25),
    "voice and pace ÷ 1.2": _quicker(1 / 1.2),
    "hum of 50 Hz": _hum(50),
    "hum of 60 Hz": _hum(60),
    "room": _echoing,
    "pauses": _with_pauses,
    "white noise, 20 dB": _noise_at(20),
    "white noise, 10 dB": _noise_at(10),
}


def suspected(audio: FloatArray, declared_hz: int) -> int | None:
    """The rate that is suspected of samples which are declared as of `declared_hz`, sent in messages as one turn."""
    decoder, speed = AudioDecoder(AudioFormat("linear16", declared_hz)), VoiceSpeed(declared_hz)
    raw = linear16(audio)
    for begin in range(0, len(raw), _PUSH):
        if found := speed.push(decoder.decode(raw[begin : begin + _PUSH].tobytes())):
            return found
    return speed.push(decoder.flush()) or speed.end_turn()


def measure(recordings: Sequence[Path], *, quick: bool, every: int) -> tuple[dict[str, Any], list[Table]]:
    """Shares of streams, as JSON and as tables; of generated speech without recordings.

    Where no speaker has seven seconds, there is no stream and no table.
    """
    streams = list(joined(audio_files(recordings), every))[: 4 if quick else None]
    if recordings and not streams:
        return {"streams": 0}, []
    streams = streams or _generated(1 if quick else 8)
    good: dict[str, dict[str, int]] = {}
    wrong: dict[str, dict[str, float]] = {}
    for audio, rate in streams:
        at_16 = resample(audio, rate, SAMPLE_RATE_HZ)
        for name, path in GOOD.items():
            _count(good, name, suspected(path(at_16, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ))
        for hz in (8_000, 22_050, 44_100, 48_000):
            _count(good, f"{hz} Hz", suspected(resample(audio, rate, hz), hz))
    for true_hz, declared_hz in PAIRS[:2] if quick else PAIRS:
        found = [suspected(resample(audio, rate, true_hz), declared_hz) for audio, rate in streams]
        noticed, named = np.mean([hz is not None for hz in found]), np.mean([hz == true_hz for hz in found])
        wrong[f"{true_hz} as {declared_hz}"] = {"noticed": round(float(noticed), 4), "named": round(float(named), 4)}
    total, alarms = (sum(row[key] for row in good.values()) for key in ("streams", "alarms"))
    payload = {"streams": len(streams), "good_streams": total, "false_alarms": alarms, "good": good, "noticed": wrong}
    rows = [Row(name, (Cell(row["streams"]), Cell(row["alarms"]))) for name, row in good.items()]
    shares = [Row(name, (Cell(100 * row["noticed"]), Cell(100 * row["named"]))) for name, row in wrong.items()]
    title = f"Sample rate declared as it is: {alarms} of {total} streams suspected"
    return payload, [
        Table(title, ("path", "streams", "alarms"), tuple(rows), digits=0),
        Table("Sample rate declared wrong, % of streams", ("sent as", "noticed", "named"), tuple(shares), digits=1),
    ]


def _count(good: dict[str, dict[str, int]], name: str, found: int | None) -> None:
    row = good.setdefault(name, {"streams": 0, "alarms": 0})
    row["streams"] += 1
    row["alarms"] += found is not None


def _generated(count: int) -> list[tuple[FloatArray, int]]:
    return [(speech_like(SECONDS, f0=110 + 20 * n, seed=n), SAMPLE_RATE_HZ) for n in range(count)]


def joined(files: Sequence[Path], every: int) -> Iterator[tuple[FloatArray, int]]:
    """Every so many of the streams that the files make."""
    parts: dict[tuple[str, int], list[FloatArray]] = {}
    made = 0
    for path in files:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        held = parts.setdefault((_speaker(path), rate), [])
        held.append(audio.mean(axis=1))
        if sum(map(len, held)) >= SECONDS * rate:
            if made % every == 0:
                yield np.concatenate(held)[: SECONDS * rate], rate
            made += 1
            held.clear()
    for (_, rate), held in parts.items():
        if sum(map(len, held)) >= _SHORTEST * rate:
            if made % every == 0:
                yield np.concatenate(held), rate
            made += 1


def _speaker(path: Path) -> str:
    for folder in (path.parent, path.parent.parent):
        if found := _speakers(folder).get(path.name):
            return found
    return str(path)


@cache
def _speakers(folder: Path) -> dict[str, str]:
    """Name of a recording → its speaker, from the folder's `labels.csv`."""
    labels = folder / "labels.csv"
    if not labels.is_file():
        return {}
    with labels.open(newline="", encoding="utf-8") as rows:
        return {Path(row["file"]).name: row["speaker"] for row in csv.DictReader(rows) if "speaker" in row}
