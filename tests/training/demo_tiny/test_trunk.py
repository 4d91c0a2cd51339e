"""Training of the trunk: batches of crops."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from kibun.training.audio.augment import ROOMS, Augment
from kibun.training.demo_tiny.pairs import Change
from kibun.training.demo_tiny.trunk import LabelledCrops, SpeakerBatches, TrunkOptions
from tests.support.tiny_items import item


def test_a_batch_of_the_trunk_depends_on_seed_and_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = []
    for index in range(6):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.normal(size=20_000), 16_000)
        items.append(item(str(index % 3), tmp_path / f"{index}.wav"))
    options = TrunkOptions(speakers=3, crop_seconds=(1.0, 1.2))
    one, two, other = (SpeakerBatches(items, dataclasses.replace(options, seed=seed)) for seed in (0, 0, 1))
    first, second = one.draw(0), one.draw(1)
    for batch, again in ((second, two.draw(1)), (first, two.draw(0))):
        assert batch.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in batch.items())
    assert first["input_values"].shape[0] == 6
    assert first["changed"].shape[0] == first["arousal_change"].shape[0] == 3
    for different in (second, other.draw(0)):
        assert first["input_values"].shape != different["input_values"].shape or not torch.equal(
            first["input_values"], different["input_values"]
        )


def test_crops_are_equally_long_with_silent_margins() -> None:
    examples = [(np.full(size, 0.1, np.float32), item("s")) for size in (16_000, 40_000, 80_000)]
    crops = LabelledCrops((1.5, 2.5), margin_chance=1.0)
    starts = []
    for step in range(20):
        batch = crops.batch(examples, (0, step))
        audio = batch["input_values"]
        assert audio.shape[0] == 3
        assert 1.5 * 16_000 <= audio.shape[1] <= 2.5 * 16_000
        assert batch["arousal"].tolist() == [3.5] * 3
        assert batch["traits"].shape == (3, 5)
        speech = audio > 0
        assert 0.5 * 16_000 <= int(speech[0].sum()) <= 16_000  # margins may leave less room than the utterance is long
        starts.append(int(speech[2].int().argmax()))
    assert max(starts) > 1600
    assert max(starts) <= 0.5 * 16_000


def test_both_of_a_pair_get_the_same_crop_margins_channel_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    examples = [((0.1 * rng.normal(size=40_000)).astype(np.float32), item("s")) for _ in range(6)]

    def collate(change: Change, babble_chance: float = 0.0) -> dict[str, torch.Tensor]:
        monkeypatch.setattr("kibun.training.demo_tiny.trunk.draw_change", lambda _rng: change)
        crops = LabelledCrops((1.5, 2.5), Augment(ROOMS), babble_chance=babble_chance, pair_every=2)
        return crops.batch(examples, (2, 1))

    for babble_chance in (0.0, 1.0):
        nothing = collate(Change(0, 0, 0), babble_chance)
        assert nothing["arousal_change"].tolist() == [0, 0, 0]
        assert torch.equal(nothing["changed"], nothing["input_values"][::2])
        assert not torch.allclose(nothing["input_values"][1::2], nothing["input_values"][::2])
    assert not torch.allclose(nothing["input_values"], collate(Change(0, 0, 0))["input_values"], atol=0.1)
    nothing, tilted = collate(Change(0, 0, 0)), collate(Change(0, 0, 2.0))
    assert tilted["arousal_change"].tolist() == pytest.approx([Change(0, 0, 2.0).arousal()] * 3)
    assert torch.allclose(tilted["input_values"], nothing["input_values"], atol=1e-5)
    assert not torch.allclose(tilted["changed"], nothing["changed"], atol=0.1)
