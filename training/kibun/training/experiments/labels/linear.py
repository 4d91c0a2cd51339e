"""Linear models by least squares with a ridge, from sums over blocks of rows: no design matrix is kept.

Features are standardised on train, and so are traits, by the true ones; products are those of standardised columns.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from kibun.training.experiments.labels.folds import LabelFold, Rows

Floats = NDArray[np.float64]
Columns = Callable[[Rows], Floats]  # (n,) row numbers -> (n, p) columns of a model

SMALL_RIDGE = 1.0  # on standardised columns and sums of squares: next to nothing at thousands of rows
ENOUGH_ROWS = 20  # rows of train per column, from which on the small ridge is enough
RIDGES = tuple(float(10**power) for power in range(8))
WIDEST = 128  # columns that are multiplied with traits or given to nets; of wider features principal components
_CELLS_AT_ONCE = 5_000_000


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation (ddof 0) of each column; 1 for a column that is constant."""

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, array: NDArray[np.floating], rows: Rows) -> "Scaling":
        """Of these rows of (N, D)."""
        total = np.zeros(array.shape[1])
        for some in _blocks(rows, array.shape[1]):
            total += array[some].sum(axis=0, dtype=np.float64)
        mean = total / len(rows)
        squares = np.zeros(array.shape[1])
        for some in _blocks(rows, array.shape[1]):
            squares += ((array[some] - mean) ** 2).sum(axis=0)
        spread = np.sqrt(squares / len(rows))
        return cls(mean, np.where(spread > 1e-7 * np.abs(mean), spread, 1.0))

    def __call__(self, values: NDArray[np.floating]) -> Floats:
        """(n, D) -> (n, D)."""
        return (values - self.mean) / self.scale


def features(array: NDArray[np.floating], scaling: Scaling) -> Columns:
    """The columns of an array, standardised."""
    return lambda rows: scaling(array[rows])


def side_by_side(*parts: Columns) -> Columns:
    """[x; t]."""
    return lambda rows: np.concatenate([part(rows) for part in parts], axis=1)


def products(first: Columns, second: Columns) -> Columns:
    """x ⊗ t: every column of the one times every column of the other."""

    def columns(rows: Rows) -> Floats:
        one, other = first(rows), second(rows)
        return (one[:, :, None] * other[:, None, :]).reshape(len(rows), -1)

    return columns


def narrowed(array: NDArray[np.float32], scaling: Scaling, train: Rows) -> NDArray[np.float32]:
    """(N, D) standardised features, or of more than WIDEST their leading principal components on train.

    Components have a standard deviation of 1 on train, and come with the largest first.
    """
    columns, everyone = features(array, scaling), np.arange(len(array))
    turned = columns
    if array.shape[1] > WIDEST:
        gram = _Sums.of(columns, np.zeros((len(array), 0)), train).gram[1:, 1:]  # of centred columns
        squares, directions = np.linalg.eigh(gram)
        spread = np.sqrt(squares[: -WIDEST - 1 : -1].clip(min=0.0) / len(train))
        leading = directions[:, : -WIDEST - 1 : -1] / np.where(spread > 1e-6, spread, 1.0)  # (D, WIDEST)

        def turned(rows: Rows) -> Floats:
            return columns(rows) @ leading

    return np.concatenate([turned(rows).astype(np.float32) for rows in _blocks(everyone, array.shape[1])])


@dataclasses.dataclass(frozen=True)
class LinearModel:
    """Weights (1 + p, K), the first of them the intercepts. ridges: of each target, of columns and of products."""

    columns: Columns
    weights: Floats
    ridges: tuple[tuple[float, float], ...]

    def predict(self, rows: Rows) -> Floats:
        """(n, K)."""
        width = len(self.weights)
        return np.concatenate([_with_one(self.columns(some)) @ self.weights for some in _blocks(rows, width)])


def fit_linear(columns: Columns, targets: Floats, fold: LabelFold, multiplied: Columns | None = None) -> LinearModel:
    """Least squares of targets (N, K) on train, on the columns and, with a ridge of their own, on those multiplied.

    The ridge of the columns is SMALL_RIDGE where train has ENOUGH_ROWS rows for each of them; otherwise, and for
    those multiplied always, it is the one of RIDGES with the least squared error on parts of train that were left
    out, over all parts, for each target by itself.
    """
    rows = fold.train
    width = columns(rows[:1]).shape[1]
    everything = columns if multiplied is None else side_by_side(columns, multiplied)
    sums = _Sums.of(everything, targets, rows)
    extra = len(sums.gram) - 1 - width
    enough = len(rows) >= ENOUGH_ROWS * width
    parts = []
    if extra or not enough:
        parts = [_Sums.of(everything, targets, part) for _rest, part in fold.without_parts()]
    count = targets.shape[1]
    chosen = [SMALL_RIDGE] * count
    if not enough:
        chosen = _choose(
            sums.first(width), [part.first(width) for part in parts], lambda r: [np.full(width, r)] * count
        )
    penalties = [np.full(width, ridge) for ridge in chosen]
    of_products = [0.0] * count
    if extra:

        def both(ridge: float) -> list[Floats]:
            return [np.concatenate([main, np.full(extra, ridge)]) for main in penalties]

        of_products = _choose(sums, parts, both)
        penalties = [both(ridge)[target] for target, ridge in enumerate(of_products)]
    return LinearModel(everything, sums.solve(penalties), tuple(zip(chosen, of_products, strict=True)))


@dataclasses.dataclass(frozen=True)
class _Sums:
    """All that least squares needs of some rows: sums of products of the columns, after a column of ones, and targets.

    gram: (1 + p, 1 + p); cross: (1 + p, K); squares: (K,).
    """

    gram: Floats
    cross: Floats
    squares: Floats

    @classmethod
    def of(cls, columns: Columns, targets: Floats, rows: Rows) -> "_Sums":
        width = 1 + columns(rows[:1]).shape[1]
        gram, cross = np.zeros((width, width)), np.zeros((width, targets.shape[1]))
        for some in _blocks(rows, width):
            block = _with_one(columns(some))
            gram += block.T @ block
            cross += block.T @ targets[some]
        return cls(gram, cross, (targets[rows] ** 2).sum(axis=0))

    def first(self, width: int) -> "_Sums":
        """Of the first columns alone."""
        return _Sums(self.gram[: 1 + width, : 1 + width], self.cross[: 1 + width], self.squares)

    def without(self, part: "_Sums") -> "_Sums":
        """Of the other rows."""
        return _Sums(self.gram - part.gram, self.cross - part.cross, self.squares - part.squares)

    def solve(self, penalties: Sequence[Floats]) -> Floats:
        """Weights (1 + p, K), with a ridge on each column (p,) for each target; none on the intercept."""
        count, totals = self.gram[0, 0], self.gram[0, 1:]
        covariance = self.gram[1:, 1:] - np.outer(totals, totals) / count
        right = self.cross[1:] - np.outer(totals, self.cross[0]) / count  # (p, K)
        slopes = np.empty_like(right)
        alike: dict[bytes, list[int]] = {}  # targets with the same penalty need one factorisation
        for target, penalty in enumerate(penalties):
            alike.setdefault(penalty.tobytes(), []).append(target)
        for targets in alike.values():
            penalty = penalties[targets[0]]
            slopes[:, targets] = solve(covariance + np.diag(penalty), right[:, targets], assume_a="pos")
        return np.concatenate([(self.cross[:1] - totals[None] @ slopes) / count, slopes])

    def errors(self, weights: Floats) -> Floats:
        """(K,) sums of squared errors."""
        fitted = (weights * (self.gram @ weights)).sum(axis=0)
        return self.squares - 2 * (weights * self.cross).sum(axis=0) + fitted  # type: ignore[no-any-return]


def _choose(sums: _Sums, parts: Sequence[_Sums], penalties: Callable[[float], list[Floats]]) -> list[float]:
    """The ridge of each target with the least error on parts by what is fitted on the others."""
    errors = np.zeros((len(RIDGES), len(sums.squares)))
    for part in parts:
        rest = sums.without(part)
        for index, ridge in enumerate(RIDGES):
            errors[index] += part.errors(rest.solve(penalties(ridge)))
    return [RIDGES[index] for index in errors.argmin(axis=0)]


def _with_one(block: Floats) -> Floats:
    return np.concatenate([np.ones((len(block), 1)), block], axis=1)


def _blocks(rows: Rows, width: int) -> list[Rows]:
    return np.split(rows, range(size := max(1, _CELLS_AT_ONCE // width), len(rows), size))
