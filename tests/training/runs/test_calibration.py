"""Who of dev chooses the model, who measures what its traits are worth, and which voices are familiar."""

import dataclasses

import numpy as np
import pytest
import torch

from kibun.models.personality import Familiarity
from kibun.training.runs.calibration import evidence, halves
from kibun.training.runs.heard import Heard
from tests.support.task_models import items


def test_no_speaker_of_dev_both_chooses_and_calibrates() -> None:
    dev = items(9, each=3)
    divided = halves(dev)
    choosing, apart = ({dev[row].speaker for row in rows} for rows in (divided.choose, divided.calibrate))
    assert not choosing & apart
    assert len(apart) == 4
    assert sorted((*divided.choose, *divided.calibrate)) == list(range(len(dev)))
    backwards = halves(dev[::-1])
    assert {dev[::-1][row].speaker for row in backwards.calibrate} == apart


def test_few_speakers_are_divided_by_conversation_and_fewer_not_at_all() -> None:
    dev = [dataclasses.replace(item, speaker=f"s{n % 2}", dialogue=f"d{n // 2}") for n, item in enumerate(items(12, 1))]
    divided = halves(dev)
    assert not {dev[row].conversation for row in divided.choose} & {dev[row].conversation for row in divided.calibrate}
    assert "voices in common" in divided.note
    alone = halves(dev[:3])
    assert (alone.choose, alone.calibrate) == ((0, 1, 2), ())
    assert "not measured" in alone.note


def test_a_trait_whose_error_is_above_that_of_the_mean_has_no_weight() -> None:
    some = items(40, each=1)
    truth = np.array([item.traits for item in some], np.float32)
    centre = truth.mean(axis=0)
    estimated = np.stack([centre + 0.5 * (truth - centre), centre - (truth - centre)])
    heard = Heard(
        tuple(item.id for item in some), np.array([[1], [2]]).repeat(40, 1), estimated, np.ones((2, 40), np.float32)
    )
    first, second = evidence([heard], some, tuple(map(float, centre)))
    assert (first.utterance_count, second.utterance_count) == (1, 2)
    assert first.weight == (1.0,) * 5, "twice too cautious, and never more than as it is"
    assert second.weight == (0.0,) * 5
    assert all(error > mean for error, mean in zip(second.error, second.error_of_mean or (), strict=True))
    condition = heard.condition((first, second), tuple(map(float, centre)))
    np.testing.assert_allclose(condition.traits[0], estimated[0], atol=1e-5)
    np.testing.assert_allclose(condition.traits[1], np.tile(centre, (40, 1)), atol=1e-5)


def test_familiar_vectors_count_and_strange_ones_do_not() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(12, 12)
    known = Familiarity(12)
    known.fit(torch.randn(500, 12) @ mixing, torch.randn(500, 12) @ mixing)
    like = torch.randn(1, 400, 12) @ mixing
    assert float(known(like)) == pytest.approx(0.72, abs=0.1)
    assert float(known(like + 8 * mixing[0])) == pytest.approx(0, abs=0.02)
    each = torch.stack([known(vector[None]) for vector in like[0]])
    assert float(known(like)) == pytest.approx(float(each.mean()), abs=1e-5)
    assert float(each.max()) == 1
