"""Crops of utterances: one length, margins, speeds, the same for the same key; and where speech begins and ends."""

import numpy as np
import torch

from kibun.training.audio.augment import ROOMS, Augment
from kibun.training.audio.crops import Crops, speech_span


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=int(seconds * 16_000))).astype(np.float32)


def test_a_batch_has_one_length_and_depends_on_its_key() -> None:
    audios = [speech(seconds, index) for index, seconds in enumerate((0.6, 2.0, 5.0))]
    crops = Crops((1.2, 2.4), Augment(ROOMS), speeds=(0.9, 1.0, 1.1))
    one, again, other = crops(audios, (0, 1)), crops(audios, (0, 1)), crops(audios, (0, 2))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert one.shape[0] == 3
    assert 1.2 * 16_000 <= one.shape[1] <= 2.4 * 16_000
    assert torch.isfinite(one).all()


def test_speed_is_changed_before_the_cut() -> None:
    tone = np.sin(2 * np.pi * 400 * np.arange(64_000) / 16_000).astype(np.float32)

    def hz(speeds: tuple[float, ...]) -> float:
        row = Crops((2.0, 2.01), margin_chance=0.0, speeds=speeds)([tone], (0,))[0]
        assert len(row) == 32_000
        return float(np.abs(np.fft.rfft(row.numpy())).argmax()) / 2

    assert (hz((1.0,)), hz((1.1,)), hz((0.9,))) == (400, 440, 360)


def test_silence_around_speech_is_found() -> None:
    hiss = 1e-4 * np.random.default_rng(1).normal(size=16_000)
    audio = np.concatenate([hiss, speech(1.0), hiss[:8_000]]).astype(np.float32)
    start, end = speech_span(audio)
    assert 14_000 <= start <= 16_000
    assert 32_000 <= end <= 34_000
    pause = np.concatenate([speech(0.5), np.zeros(8_000, np.float32), speech(0.5)])
    assert speech_span(pause) == (0, len(pause))  # a pause within is speech's own
    for short in (np.zeros(0, np.float32), speech(0.05), np.zeros(16_000, np.float32)):
        assert speech_span(short) == (0, len(short))
