"""Pairs of recordings that differ in one cue."""

import numpy as np
import pytest
import torch

from kibun.training.demo_tiny.effects import EFFORT_DB_PER_OCTAVE
from kibun.training.demo_tiny.pairs import Change, draw_change, make_pair
from kibun.training.demo_tiny.speakers import AROUSAL_WEIGHTS, PITCH_SEMITONES, RATE_OCTAVES
from kibun.training.losses import pair_loss


def test_a_change_is_worth_what_the_generator_makes_of_it() -> None:
    assert Change(PITCH_SEMITONES, 0, 0).arousal() == pytest.approx(1.1 * AROUSAL_WEIGHTS["pitch"])
    assert Change(0, -RATE_OCTAVES, 0).arousal() == pytest.approx(-1.1 * AROUSAL_WEIGHTS["rate"])
    assert Change(0, 0, 2 * EFFORT_DB_PER_OCTAVE).arousal() == pytest.approx(2.2 * AROUSAL_WEIGHTS["effort"])
    rng = np.random.default_rng(0)
    drawn = [draw_change(rng) for _ in range(400)]
    cues = np.array([(change.semitones, change.rate_octaves, change.db_per_octave) for change in drawn])
    for cue in range(3):  # each alone at times, up and down
        alone = cues[(cues[:, [c for c in range(3) if c != cue]] == 0).all(1), cue]
        assert len(alone) > 30
        assert (alone > 0).any()
        assert (alone < 0).any()
    assert (cues != 0).all(1).sum() > 100


def test_a_pair_has_one_length_and_one_band_and_differs_in_the_cue() -> None:
    time_s = np.arange(32_000) / 16_000
    tone = np.sum([np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 30)], axis=0).astype(np.float32)
    same, copy = make_pair(tone, Change(0, 0, 0))
    assert np.array_equal(same, copy)
    one, other = make_pair(tone, Change(0, 0.4, 0))
    assert len(one) == len(other) == pytest.approx(32_000 / 2**0.4, abs=900)
    assert np.allclose(one[2000:-2000], tone[2000 : len(one) - 2000], atol=0.02)
    one, other = make_pair(tone, Change(0, 0, -2.0))
    before, after = (np.abs(np.fft.rfft(x)) for x in (one, other))
    assert 20 * np.log10(after[3840] / before[3840] / (after[1920] / before[1920])) == pytest.approx(-2.0, abs=0.05)


def test_pair_loss_wants_the_right_change_of_arousal_and_none_of_valence() -> None:
    truth = torch.linspace(-1, 1, 9)
    assert float(pair_loss(truth, truth, torch.zeros(9))) == pytest.approx(0, abs=1e-6)
    assert float(pair_loss(truth, truth, torch.ones(9))) == pytest.approx(0.2)
    assert float(pair_loss(-truth, truth, torch.zeros(9))) > float(pair_loss(0 * truth, truth, torch.zeros(9))) > 0.9
