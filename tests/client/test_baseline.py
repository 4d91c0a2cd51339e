"""Emotion relative to a participant's earlier utterances: causal, by participant, silent while it knows too little."""

import numpy as np
import pytest

from kibun.client import Emotion, RelativeEmotion, SpeakerBaseline


def test_difference_from_the_mean_of_the_earlier_ones() -> None:
    baseline = SpeakerBaseline(min_utterances=2)
    said = [Emotion(2.0, 3.0), Emotion(3.0, 4.0), Emotion(4.0, 2.0), Emotion(3.0, 3.0)]
    assert [baseline.add("a", each) for each in said] == [
        None,
        None,
        RelativeEmotion(1.5, -1.5, 2),
        RelativeEmotion(0.0, 0.0, 3),
    ]


def test_participants_have_their_own_and_an_offset_drops_out() -> None:
    rng = np.random.default_rng(0)
    said = [Emotion(*map(float, pair)) for pair in rng.uniform(2, 3, (8, 2))]
    baseline = SpeakerBaseline()
    for each in said:
        one = baseline.add("one", each)
        other = baseline.add("other", Emotion(each.valence + 0.75, each.arousal - 0.5))
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (other.valence, other.arousal) == pytest.approx((one.valence, one.arousal))
            assert one.utterance_count == other.utterance_count >= 3


def test_nothing_that_comes_later_counts() -> None:
    said = [Emotion(2.0 + n / 10, 3.0) for n in range(6)]
    short, long = SpeakerBaseline(), SpeakerBaseline()
    before = [short.add("a", each) for each in said[:4]]
    assert [long.add("a", each) for each in said][:4] == before


def test_interims_are_compared_and_do_not_count() -> None:
    baseline = SpeakerBaseline(min_utterances=1)
    assert baseline.compare("a", Emotion(2.0, 3.0)) is None
    baseline.add("a", Emotion(2.0, 3.0))
    assert [baseline.compare("a", Emotion(3.0, 2.0)) for _ in range(2)] == [RelativeEmotion(1.0, -1.0, 1)] * 2
    assert baseline.add("a", Emotion(3.0, 2.0)) == RelativeEmotion(1.0, -1.0, 1)


def test_it_needs_at_least_one_earlier_utterance() -> None:
    with pytest.raises(ValueError, match="min_utterances is 0"):
        SpeakerBaseline(min_utterances=0)
