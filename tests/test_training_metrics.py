"""Figures against values worked out by hand and against an independent formula."""

import numpy as np
import pytest
import torch

from kibun.training.losses import ccc_loss
from kibun.training.metrics import auc, ccc, rmse


def test_ccc_by_hand() -> None:
    # x = 1 2 3, y = 2 2 5: means 2 and 3, variances 2/3 and 2, covariance 1: 2 / (2/3 + 2 + 1) = 6/11.
    assert ccc([1, 2, 3], [2, 2, 5]) == pytest.approx(6 / 11)


def test_ccc_is_pearson_times_bias_correction() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, 400)
    y = 0.6 * x + rng.normal(1, 0.5, 400)
    ratio = x.std() / y.std()
    shift = (x.mean() - y.mean()) / np.sqrt(x.std() * y.std())
    independent = np.corrcoef(x, y)[0, 1] * 2 / (ratio + 1 / ratio + shift**2)
    assert ccc(x, y) == pytest.approx(independent, abs=1e-12)


@pytest.mark.parametrize(("x", "y", "expected"), [([2, 2], [2, 2], 1.0), ([2, 2], [1, 3], 0.0), ([1, 3], [3, 1], -1.0)])
def test_ccc_of_constants_and_opposites(x: list[float], y: list[float], expected: float) -> None:
    assert ccc(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [1.0, 2.0])])
def test_ccc_refuses_what_it_cannot_compare(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="equally long"):
        ccc(x, y)


def test_ccc_loss_is_one_minus_ccc() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=16), rng.normal(size=16)
    assert float(ccc_loss(torch.tensor(x), torch.tensor(y))) == pytest.approx(1 - ccc(x, y))


def test_ccc_loss_refuses_tiny_batches() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        ccc_loss(torch.zeros(7), torch.ones(7))


def test_rmse_and_auc_by_hand() -> None:
    assert rmse([1, 2], [1, 4]) == pytest.approx(np.sqrt(2))
    assert auc([3, 2], [1, 2]) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="either side"):
        auc([], [1])
