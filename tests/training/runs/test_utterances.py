"""Batches of similar length, and audio that depends on seed, epoch and index alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from kibun.training.corpora.manifest import load_manifest
from kibun.training.runs.utterances import BucketBatches, ConversationBatches, Utterances, make_augmentation
from tests.support import present


def test_batches_are_of_similar_length_and_every_epoch_uses_each_utterance_once() -> None:
    sizes = np.random.default_rng(0).integers(8000, 160_000, 1003)
    batches = BucketBatches(sizes, 4, epochs=3, seed=7, per_step=2)
    order = list(batches)
    assert len(order) == len(batches) == 3 * 125 * 2
    for epoch in range(3):
        seen = Counter(index for batch in order[epoch * 250 : (epoch + 1) * 250] for e, index in batch if e == epoch)
        assert len(seen) == 1000
        assert set(seen.values()) == {1}
    spread = np.mean([np.ptp(sizes[[index for _e, index in batch]]) for batch in order])
    shuffled = np.mean([np.ptp(row) for row in np.random.default_rng(1).permutation(sizes)[:1000].reshape(-1, 4)])
    assert spread < shuffled / 10
    lengths = [sizes[batch[0][1]] for batch in order[:250]]
    assert abs(np.corrcoef(lengths, np.arange(250))[0, 1]) < 0.2, "long and short batches are mixed"
    assert order == list(BucketBatches(sizes, 4, epochs=3, seed=7, per_step=2))
    assert order != list(BucketBatches(sizes, 4, epochs=3, seed=8, per_step=2))
    with pytest.raises(ValueError, match="do not fill one batch of 2000"):
        BucketBatches(sizes, 4, epochs=1, seed=0, per_step=500)


@pytest.mark.parametrize("augment", ["none", "perturb", "rooms"])
def test_what_is_random_about_an_utterance_hangs_on_seed_epoch_and_index(world: Path, augment: str) -> None:
    def examples(seed: int) -> Utterances:
        some = load_manifest(world / "corpus" / "manifest.jsonl")
        condition = np.zeros((len(some), 5), np.float32)
        return Utterances(
            some,
            condition,
            min_samples=400,
            seed=seed,
            crop_seconds=0.25,
            augmentation=make_augmentation(augment),
        )

    one, two, other = examples(0), examples(0), examples(1)
    keys = [(0, 3), (1, 3), (1, 4)]
    first = [present(one[key].audio) for key in keys]
    later = [present(two[key].audio) for key in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, later, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], present(other[(0, 3)].audio))
    assert all(torch.isfinite(audio).all() for audio in first)


def test_audio_comes_back_bit_for_bit_and_is_never_too_short(world: Path) -> None:
    import soundfile

    some = load_manifest(world / "corpus" / "manifest.jsonl")[:3]
    utterances = Utterances(some, np.zeros((3, 5), np.float32), min_samples=20_000)
    for row, item in enumerate(some):
        audio = soundfile.read(item.path, dtype="float32")[0]
        for _again in range(2):
            read = utterances.read(row)
            assert np.array_equal(read[: len(audio)], audio)
            assert not read[len(audio) :].any()
            assert len(read) == 20_000
    assert utterances.sizes().tolist() == [round(item.seconds * 16_000) for item in some if item.seconds]


def test_a_batch_of_a_conversation_is_a_random_part_of_one_profile() -> None:
    profiles = [[0, 1, 2, 3, 4, 5, 6], [7], [8, 9, 10, 11]]
    batches = ConversationBatches(profiles, 3, epochs=40, seed=5, per_step=2)
    assert (batches.steps_per_epoch, len(batches)) == (3, 240), "3 + 1 + 2 parts make an epoch"
    drawn = [batches[number] for number in range(len(batches))]
    assert [epoch for part in drawn for epoch, _ in part] == sorted(epoch for part in drawn for epoch, _ in part)
    owners = []
    for part in drawn:
        rows = [row for _, row in part]
        (owner,) = [at for at, profile in enumerate(profiles) if set(rows) <= set(profile)]
        assert len(set(rows)) == len(rows)
        owners.append((owner, len(rows)))
    assert set(owners) == {(0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (2, 2), (2, 3)}
    assert [owner for owner, _ in owners].count(0) == 120
    assert {row for part in drawn for _, row in part} == set(range(12))
    again = ConversationBatches(profiles, 3, epochs=40, seed=5, per_step=2)
    assert [again[number] for number in (200, 3)] == [drawn[200], drawn[3]], "a batch depends on its number alone"
    with pytest.raises(ValueError, match="6 parts of training conversations do not fill a step of 8"):
        ConversationBatches(profiles, 3, epochs=1, seed=0, per_step=8)
