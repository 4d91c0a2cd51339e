"""Voices at a wrong sample rate are noticed where that is possible; voices at the right one are not suspected."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kibun.bench.accuracy.declarations import resample
from kibun.bench.accuracy.declared_rates import GOOD, joined, suspected
from kibun.bench.support.speech_like import FloatArray, speech_like
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio import voice_speed
from kibun.server.audio.voice_speed import VoiceSpeed

COMMON_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
T = np.arange(24 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ


@cache
def voice(f0: float = 140) -> FloatArray:
    return speech_like(24, f0=f0, seed=round(f0))


@pytest.mark.parametrize("f0", [100, 140, 180])
def test_generated_voices_at_the_declared_rate_are_not_suspected(f0: float) -> None:
    assert [hz for hz in COMMON_HZ if suspected(resample(voice(f0), SAMPLE_RATE_HZ, hz), hz)] == []


@pytest.mark.parametrize("f0", [100, 140])
@pytest.mark.parametrize("true_hz", [44_100, 48_000])
def test_a_slow_voice_is_noticed(f0: float, true_hz: int) -> None:
    assert suspected(resample(voice(f0), SAMPLE_RATE_HZ, true_hz), 16_000) in (44_100, 48_000)


@pytest.mark.parametrize(("true_hz", "declared_hz"), [(16_000, 48_000), (8_000, 24_000)])
def test_a_fast_voice_is_noticed(true_hz: int, declared_hz: int) -> None:
    found = suspected(resample(voice(180), SAMPLE_RATE_HZ, true_hz), declared_hz)
    assert found is not None
    assert found < declared_hz


def test_seven_seconds_are_enough_at_the_end_of_a_turn_and_five_are_not() -> None:
    slow = resample(voice(), SAMPLE_RATE_HZ, 48_000)
    assert suspected(slow[: 7 * SAMPLE_RATE_HZ], 16_000) is not None
    assert suspected(slow[: 5 * SAMPLE_RATE_HZ], 16_000) is None


def test_what_is_found_and_where_does_not_depend_on_how_samples_are_sent() -> None:
    slow = np.concatenate([np.zeros(9_999, np.float32), resample(voice(), SAMPLE_RATE_HZ, 48_000)])

    def run(sizes: list[int]) -> tuple[int | None, int, float | None]:
        speed, at = VoiceSpeed(16_000), 0
        for number in range(len(slow)):
            piece = slow[at : at + sizes[number % len(sizes)]]
            if (found := speed.push(piece)) is not None:
                return found, speed.position, speed.octaves()
            at += len(piece)
        return None, 0, None

    expected = run([len(slow)])
    assert expected[0] is not None
    for sizes in ([160], [1_600], [1, 4_801, 17_600, 33, 0, 70_000], [17_599]):
        assert run(sizes) == expected


def test_frames_that_are_too_quiet_to_count_are_left_out_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses under noise, whose frames alone would pass for periodic as the voice does."""
    pause = 0.002 * speech_like(0.5, f0=90, seed=3)
    audio = np.concatenate([np.concatenate([speech_like(0.7, f0=150, seed=i), pause]) for i in range(9)])
    whole, partly = VoiceSpeed(SAMPLE_RATE_HZ), VoiceSpeed(SAMPLE_RATE_HZ)
    with monkeypatch.context() as patched:
        patched.setattr(voice_speed, "_LOUDEST", 10**9)  # there is never enough to leave any out
        whole.push(audio)
    partly.push(audio)
    every, some = (np.concatenate(speed._pitches) for speed in (whole, partly))
    left_out = some[:, 1] == 0
    assert 0.15 < left_out.mean() < 0.5
    assert (every[left_out, 1] > 0.7).any()
    assert np.array_equal(every[~left_out], some[~left_out])
    assert partly.octaves() == whole.octaves()
    assert whole.octaves() is not None


@pytest.mark.parametrize(
    ("hz", "least", "most"), [(60, 0.99, 1.01), (1_400, 0.95, 1.01), (2_500, 0, 0.01), (7_000, 0, 0.01)]
)
def test_pitch_is_sought_below_2_khz(hz: float, least: float, most: float) -> None:
    tone = np.sin(2 * np.pi * hz * T[:17_600] + 1).astype(np.float32)
    heard = voice_speed._at_4_khz(tone, 16_960)
    assert len(heard) == 4_240
    assert least <= np.sqrt(2) * heard.std() <= most


def test_one_voice_is_told_once_and_three_windows_are_enough() -> None:
    slow = resample(voice(), SAMPLE_RATE_HZ, 48_000)
    speed = VoiceSpeed(16_000)
    assert speed.push(slow) is not None
    assert speed.settled
    assert speed.push(slow) is None
    assert speed.end_turn() is None
    usual = VoiceSpeed(16_000)
    for _ in range(2):
        assert not usual.settled
        assert usual.push(voice()) is None
    assert usual.settled


@pytest.mark.parametrize("path", [name for name in GOOD if not name.startswith("voice and pace")])
def test_what_happens_to_good_audio_is_no_reason_for_a_doubt(path: str) -> None:
    assert suspected(GOOD[path](voice(140), SAMPLE_RATE_HZ), SAMPLE_RATE_HZ) is None


def sounds() -> dict[str, FloatArray]:
    """Sound without a voice, at 16 kHz."""
    rng = np.random.default_rng(0)
    notes = {"bass": [41, 49, 55, 62, 73], "melody": [523, 587, 659, 784, 880]}
    found: dict[str, Any] = {"silence": 0 * T, "offset": 0 * T + 0.2, "noise": rng.normal(0, 0.1, len(T))}
    found |= {f"tone of {hz}": 0.3 * np.sin(2 * np.pi * hz * T) for hz in (30, 50, 440, 900)}
    found |= {f"saw of {hz}": 0.4 * (2 * ((T * hz) % 1) - 1) for hz in (35, 100, 500)}
    for name, scale in notes.items():
        for seconds in (0.1, 0.4, 1.5):
            pitch = rng.choice(scale, len(T))[(T / seconds).astype(int)]
            strokes = np.exp(-3 * (T % seconds) / seconds)
            found[f"{name}, {seconds} s"] = 0.3 * strokes * (2 * ((np.cumsum(pitch) / SAMPLE_RATE_HZ) % 1) - 1)
    found["siren"] = 0.3 * np.sin(2 * np.pi * np.cumsum(700 + 200 * np.sin(2 * np.pi * 3 * T)) / SAMPLE_RATE_HZ)
    found["engine"] = 0.3 * np.sign(np.sin(2 * np.pi * np.cumsum(40 + 10 * np.sin(T)) / SAMPLE_RATE_HZ))
    found["clicks"] = (rng.random(len(T)) < 1e-3) * 0.7
    return {name: sound.astype(np.float32) for name, sound in found.items()}


def test_sound_without_a_voice_is_not_suspected() -> None:
    for name, sound in sounds().items():
        assert suspected(sound, SAMPLE_RATE_HZ) is None, name


def test_real_voices(shared_data: Path) -> None:
    """Meetings, read and acted speech: none suspected; most that are almost three times too slow, or fast, noticed."""
    files = [path for path in sorted(shared_data.rglob("*")) if path.suffix in (".wav", ".flac", ".ogg")]
    streams = list(joined(files[::9], every=16))
    assert len(streams) >= 5
    slow = fast = 0
    for audio, rate in streams:
        for path in ("as it is", "telephone band", "voice and pace × 1.25", "voice and pace ÷ 1.2", "room"):
            changed = GOOD[path](resample(audio, rate, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
            assert suspected(changed, SAMPLE_RATE_HZ) is None, path
        slow += suspected(resample(audio, rate, 48_000), 16_000) is not None
        fast += suspected(resample(audio, rate, 16_000), 48_000) is not None
    assert slow >= 0.5 * len(streams)
    assert fast >= 0.5 * len(streams)
