"""Augmentation: its key alone decides, and each change does what it says."""

import pytest
import torch

from kibun.training.audio.augment import Augment, AugmentOptions, change_speed
from tests.support.training_audio import tone

STILL = AugmentOptions(speeds=(1.0,), noise_chance=0.0, mask_count=0)


def test_the_key_alone_decides() -> None:
    waveform = torch.from_numpy(tone(300, 16_000))
    options = AugmentOptions(noise_chance=1.0)
    perturb = Augment(options)
    first = [perturb(waveform, key=(7, epoch, index)) for epoch in range(2) for index in range(3)]
    torch.manual_seed(99)
    again = Augment(options)
    keys = [(7, epoch, index) for epoch in range(2) for index in range(3)]
    for key, before in reversed(list(zip(keys, first, strict=True))):
        assert torch.equal(again(waveform, key=key), before)
    state = torch.get_rng_state()
    different = [perturb(waveform, key=key) for key in ((7, 0, 0), (8, 0, 0), (7, 1, 0), (7, 0, 1), (7, 0))]
    assert torch.equal(torch.get_rng_state(), state)
    for one in range(5):
        for other in range(one):
            assert not torch.equal(different[one], different[other])
    assert torch.equal(waveform, torch.from_numpy(tone(300, 16_000)))


@pytest.mark.parametrize("speed", [0.9, 0.95, 1.0, 1.1, 1.15, 1.25])
def test_speed_moves_pitch_and_length_by_exactly_its_factor(speed: float) -> None:
    perturb = Augment(AugmentOptions(speeds=(speed,), noise_chance=0.0, mask_count=0))
    size = 16_001
    waveform = torch.from_numpy(tone(1000, 16_000, 2.0)[:size])
    faster = perturb(waveform, key=(0,))
    assert faster.shape == (-(-size * 100 // round(speed * 100)),)
    # The phase of the tone stays in step over the whole length: sampling is exact, not nearly so.
    expected = 0.5 * torch.sin(2 * torch.pi * 1000 * speed * torch.arange(len(faster), dtype=torch.float64) / 16_000)
    assert (faster - expected)[200:-200].abs().max() < 0.01


def test_noise_has_the_given_ratio_and_tilt() -> None:
    waveform = torch.from_numpy(tone(500, 16_000, 1.0))
    for snr_db, tilt in ((0.0, 0.0), (20.0, 1.0)):
        options = AugmentOptions(
            (1.0,), noise_chance=1.0, noise_snr_db=(snr_db, snr_db), noise_tilt=(tilt, tilt), mask_count=0
        )
        noise = Augment(options)(waveform, key=(1, 2)) - waveform
        measured = 10 * torch.log10(waveform.square().sum() / noise.square().sum())
        assert float(measured) == pytest.approx(snr_db, abs=0.01)
        power = torch.fft.rfft(noise).abs().square()  # 1 Hz a bin
        falls_db = 10 * torch.log10(power[900:1100].mean() / power[3600:4400].mean())  # two octaves
        assert float(falls_db) == pytest.approx(12.04 * tilt, abs=1.5)
    silence = Augment(AugmentOptions(noise_chance=1.0))(torch.zeros(4000), key=(1,))
    assert not silence.isnan().any()


def test_masks_silence_short_stretches_and_gain_is_gain() -> None:
    waveform = torch.ones(16_000)
    options = AugmentOptions((1.0,), noise_chance=0.0, mask_count=3, mask_s=0.05)
    gaps = [int((Augment(options)(waveform, key=(index,)) == 0).sum()) for index in range(60)]
    assert 0 in gaps
    assert 800 < max(gaps) <= 3 * 801
    short = Augment(AugmentOptions((1.0,), noise_chance=0.0, mask_count=1, mask_s=1.0, mask_share=0.5))
    assert all(short(torch.ones(100), key=(index,)).sum() >= 49 for index in range(20))
    loud = Augment(AugmentOptions((1.0,), noise_chance=0.0, mask_count=0, gain_db=(-6.0206, -6.0206)))
    assert torch.allclose(loud(waveform, key=(1,)), waveform / 2, atol=1e-4)
    assert torch.equal(Augment(STILL)(waveform, key=(3,)), waveform)


def test_speeds_and_noise_occur_with_their_probabilities() -> None:
    waveform = torch.from_numpy(tone(500, 16_000, 0.1))
    perturb = Augment(AugmentOptions(speeds=(0.9, 1.0), noise_chance=0.25, mask_count=0))
    made = [perturb(waveform, key=(0, index)) for index in range(400)]
    slower = change_speed(waveform, 0.9)
    assert sum(len(one) > 1600 for one in made) / 400 == pytest.approx(0.5, abs=0.08)
    clean = [one for one in made if torch.equal(one, waveform if len(one) == 1600 else slower)]
    assert len(clean) / 400 == pytest.approx(0.75, abs=0.07)


def test_wrong_options_are_refused() -> None:
    for changes in (
        {"speeds": (0.905,)},
        {"speeds": (3.0,)},
        {"speeds": ()},
        {"noise_snr_db": (20.0, 10.0)},
        {"noise_chance": 1.5},
        {"mask_count": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(changes))):
            AugmentOptions(**changes)
