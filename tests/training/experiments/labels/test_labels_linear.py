"""Linear models by sums over blocks, against least squares with the whole design matrix at hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kibun.training.experiments.labels import linear
from kibun.training.experiments.labels.folds import LabelFold
from kibun.training.experiments.labels.linear import RIDGES, SMALL_RIDGE, Scaling, features, fit_linear, products

Array = NDArray[np.float64]


def fold(rows: int, train: int, parts: int = 3) -> LabelFold:
    """The first rows are train, in parts of neighbours."""
    inside, test = np.arange(train), np.arange(train, rows)
    part = np.full(rows, -1)
    part[:train] = np.arange(train) * parts // train
    return LabelFold("a fold", inside, inside, inside, test, part)


def plain_ridge(x: Array, y: Array, penalty: Array) -> Array:
    """(1 + p, K) weights by the textbook, with an intercept without penalty."""
    one = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    return np.linalg.solve(one.T @ one + np.diag([0.0, *penalty]), one.T @ y)


def test_many_rows_give_ordinary_least_squares() -> None:
    rng = np.random.default_rng(0)
    x = (5 + 3 * rng.normal(size=(900, 4))).astype(np.float32)
    x[:, 2] = 7.0  # a constant column
    y = x[:, :2] @ np.array([[0.5, 0.0], [0.2, -1.0]]) + 0.1 * rng.normal(size=(900, 2)) + 30
    the = fold(900, 700)
    scaling = Scaling.of(x, the.train)
    model = fit_linear(features(x, scaling), y, the)
    assert model.ridges == ((SMALL_RIDGE, 0.0),) * 2
    ones = np.concatenate([np.ones((900, 1)), x[:, [0, 1, 3]]], axis=1)
    ordinary = np.linalg.lstsq(ones[:700], y[:700], rcond=None)[0]
    assert model.predict(the.test) == pytest.approx(ones[700:] @ ordinary, abs=0.02)
    exact = plain_ridge(scaling(x[:700]), y[:700], np.full(4, SMALL_RIDGE))
    assert model.weights == pytest.approx(exact, abs=1e-6)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 5)).astype(np.float32), rng.normal(size=(300, 1))
    the = fold(300, 200)
    whole = fit_linear(features(x, Scaling.of(x, the.train)), y, the)
    monkeypatch.setattr(linear, "_CELLS_AT_ONCE", 40)
    parted = fit_linear(features(x, Scaling.of(x, the.train)), y, the)
    assert parted.weights == pytest.approx(whole.weights)
    assert parted.predict(the.test) == pytest.approx(whole.predict(the.test))


def test_few_rows_choose_the_ridge_that_fits_parts_left_out() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(130, 30)).astype(np.float32)
    y = np.stack([x @ rng.normal(size=30) / 5 + rng.normal(size=130), rng.normal(size=130)], axis=1)
    the = fold(130, 90)
    scaling = Scaling.of(x, the.train)
    model = fit_linear(features(x, scaling), y, the)
    errors = np.zeros((len(RIDGES), 2))
    for rest, part in the.without_parts():
        for index, ridge in enumerate(RIDGES):
            weights = plain_ridge(scaling(x[rest]), y[rest], np.full(30, ridge))
            errors[index] += ((weights[0] + scaling(x[part]) @ weights[1:] - y[part]) ** 2).sum(axis=0)
    best = tuple((RIDGES[index], 0.0) for index in errors.argmin(axis=0))
    assert model.ridges == best
    assert best[0] != best[1]  # noise wants more of it
    assert best[1][0] > SMALL_RIDGE


def test_products_have_a_ridge_of_their_own() -> None:
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(1200, 4)).astype(np.float32), rng.normal(size=(1200, 2))
    y = np.stack([x[:, 0] + x[:, 1] * t[:, 1], x[:, 0] + t[:, 0]], axis=1) + 0.3 * rng.normal(size=(1200, 2))
    the = fold(1200, 900)
    one, other = features(x, Scaling.of(x, the.train)), features(t, Scaling.of(t, the.train))
    assert products(one, other)(np.array([5])) == pytest.approx(
        np.outer(one(np.array([5])), other(np.array([5]))).reshape(1, 8)
    )
    model = fit_linear(linear.side_by_side(one, other), y, the, products(one, other))
    (_, with_product), (main, without) = model.ridges
    assert main == SMALL_RIDGE
    assert with_product < 100 < without
    assert abs(model.weights[1 + 6 + 3, 0]) == pytest.approx(1, abs=0.1)  # of x1 and t1
    residual = model.predict(the.test) - y[the.test]
    assert residual.std(axis=0) == pytest.approx([0.3, 0.3], abs=0.04)


def test_wide_features_are_turned_to_their_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    hidden = rng.normal(size=(400, 2))
    x = (hidden @ rng.normal(size=(2, 12)) + 0.01 * rng.normal(size=(400, 12))).astype(np.float32)
    the = fold(400, 300)
    scaling = Scaling.of(x, the.train)
    assert linear.narrowed(x, scaling, the.train) == pytest.approx(scaling(x), abs=1e-5)
    monkeypatch.setattr(linear, "WIDEST", 2)
    found = linear.narrowed(x, scaling, the.train)[:300]
    assert found.shape == (300, 2)
    assert found.T @ found / 300 == pytest.approx(np.eye(2), abs=1e-5)
    explained = found @ np.linalg.lstsq(found, hidden[:300] - hidden[:300].mean(axis=0), rcond=None)[0]
    assert np.abs(explained - hidden[:300] + hidden[:300].mean(axis=0)).max() < 0.1
