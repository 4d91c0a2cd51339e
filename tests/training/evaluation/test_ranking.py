"""Ranking of acted emotions: against plain definitions, ties, offsets of speakers, and what cannot be measured."""

import numpy as np
import pytest

from kibun.training.evaluation.metrics import auc
from kibun.training.evaluation.ranking import rank
from tests.support import present

EMOTIONS = ("angry", "calm", "disgusted", "happy", "sad")


def corpus(seed: int, speakers: int, size: int) -> tuple[np.ndarray, list[str], list[str]]:
    rng = np.random.default_rng(seed)
    names = [f"s{number}" for number in rng.integers(0, speakers, size)]
    return rng.integers(0, 9, size).astype(float), list(rng.choice(EMOTIONS, size)), names


def test_area_is_that_of_all_pairs_with_ties() -> None:
    scores, emotions, speakers = corpus(0, 5, 200)
    found = present(rank(scores, emotions, speakers, "arousal"))
    upper, lower = np.isin(emotions, ["angry", "happy"]), np.isin(emotions, ["calm", "sad"])
    assert found.auc == pytest.approx(auc(scores[upper], scores[lower]))
    assert found.utterances == upper.sum() + lower.sum()
    assert found.speakers == 5
    own = [np.array(speakers) == name for name in set(speakers)]
    assert found.within == pytest.approx(np.mean([auc(scores[upper & one], scores[lower & one]) for one in own]))
    assert present(found.low) < found.auc < present(found.high)
    assert found == rank(scores, emotions, speakers, "arousal")


def test_valence_compares_happiness_with_the_negative_emotions() -> None:
    found = present(rank([5, 1, 2, 9], ["happy", "angry", "disgusted", "calm"], ["a"] * 4, "valence"))
    assert (found.auc, found.utterances) == (1.0, 3)
    assert (found.low, found.high) == (None, None)


def test_an_offset_of_a_voice_lowers_the_area_but_not_that_within_speakers() -> None:
    emotions, speakers = ["angry", "calm"] * 20, [f"s{number // 2}" for number in range(40)]
    offset = np.repeat(np.random.default_rng(0).normal(0, 3, 20), 2)
    found = present(rank(offset + np.tile([1.0, 0.0], 20), emotions, speakers, "arousal"))
    assert found.within == 1.0
    assert found.auc < 0.75


def test_the_interval_covers_the_truth_over_draws_of_speakers() -> None:
    # Each voice has its own offset, so utterances are no independent draws; an interval over utterances would miss.
    hit = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shift = np.repeat(rng.normal(0, 1, 20), 20)
        high = np.tile([1.0, 0.0], 200)
        scores = high + shift + rng.normal(0, 1, 400)
        emotions = ["angry" if each else "calm" for each in high]
        found = present(rank(scores, emotions, [f"s{number // 20}" for number in range(400)], "arousal"))
        hit += present(found.low) <= 0.691 <= present(found.high)  # Phi(1 / 2)
    assert hit >= 50


def test_without_both_sides_there_is_nothing_to_rank() -> None:
    assert rank([1.0, 2.0], ["angry", None], ["a", "b"], "arousal") is None
    assert rank([1.0, 2.0], ["neutral", "surprised"], ["a", "b"], "valence") is None
    apart = present(rank([2.0, 1.0], ["angry", "calm"], ["a", "b"], "arousal"))
    assert (apart.auc, apart.within) == (1.0, None)
