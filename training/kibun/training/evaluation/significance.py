"""Whether one model is better than another: a paired cluster bootstrap of the difference of their CCCs.

Utterances of one speaker in one conversation resemble each other, so whole speaker-conversations are drawn, with
replacement, and both models are scored on the same draw. The standard error is the standard deviation of the
differences over the draws, times sqrt(C / (C - 1)) for C clusters; the difference is tested by Student's t with C - 1
degrees of freedom. Plain percentiles of the draws are too narrow at the 28 clusters of a test half of session 1: at a
nominal 5 % they called 7.0 % of equal models different, this 3.5 % (measured on 400 synthetic data sets).

Runs of several seeds count as one model, whose CCC is the mean over its runs. The test asks whether the difference
would hold for other speakers and conversations; the spread between seeds is no part of p.

Where the figure is the mean over the folds of a cross-validation, clusters are drawn within each fold, the factor is
sqrt(C / (C - F)) for F folds, and there are C - F degrees of freedom.

CCC needs only sums over a draw: each cluster is reduced to six moments once, so a draw costs a row of a matrix product.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kibun.training.evaluation.metrics import DRAWS
from kibun.training.evaluation.predictions import Prediction, PredictionsError, align, pairs_of, units_of
from kibun.training.evaluation.report_table import STARS_NOTE, Cell, Row, Table, stars

_DRAWS_AT_ONCE = 250  # limits the memory of the weights


@dataclass(frozen=True)
class Comparison:
    """CCC of two models on the same points; `difference` is first - second, low..high its 95 % interval.

    CCC of several folds is their mean. p: two-sided, against no difference. first, second: mean over the runs of each.
    points: scored utterances, or conversations where traits of a whole conversation are compared.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    clusters: int
    points: int
    draws: int

    @property
    def stars(self) -> str:
        """* below .05, ** below .01, *** below .001."""
        return stars(self.p)


def compare(
    first: ArrayLike,
    second: ArrayLike,
    truth: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    folds: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare predictions of two models.

    first, second: (N,) or (runs, N) predictions; truth: (N,); clusters: N names, for instance (dialogue, speaker).
    folds: N names; CCC is then that of each fold, averaged. None: all points are one fold.
    The same seed gives the same result. Raises ValueError for unequal lengths, values that are not finite, a cluster in
    two folds, and fewer than two clusters in a fold, or draws.
    """
    target = np.asarray(truth, dtype=np.float64)
    runs = [np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in (first, second)]
    if target.ndim != 1 or any(side.shape != (len(side), len(clusters)) for side in (*runs, target[None])):
        raise ValueError(
            f"predictions {runs[0].shape} and {runs[1].shape}, truth {target.shape} and {len(clusters)} clusters"
            " must have one entry for each utterance"
        )
    if not all(np.isfinite(values).all() for values in (*runs, target)):
        raise ValueError("predictions and truth must be finite numbers")
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    parts = _parts(clusters, names, folds)
    if min(map(len, parts)) < 2 or draws < 2:
        fewest = min(map(len, parts))
        raise ValueError(f"needs at least 2 speaker-conversations and 2 draws, got {fewest} and {draws}")
    member = np.array([names[name] for name in clusters])
    # By fold and run, the moments (C, 6) of the fold's clusters.
    moments = [[_moments(run, target, member) for run in side] for side in runs]
    sides = [[[run[part] for run in side] for part in parts] for side in moments]
    whole = [np.mean([_mean_ccc(fold, np.ones((1, len(fold[0]))))[0] for fold in side]) for side in sides]
    spread = float(np.std(_differences(sides, draws, seed), ddof=1))
    difference = float(whole[0] - whole[1])
    low, high, p = student_interval(difference, spread, len(names), len(names) - len(parts))
    return Comparison(float(whole[0]), float(whole[1]), difference, low, high, p, len(names), target.size, draws)


def student_interval(difference: float, spread: float, clusters: int, freedom: int) -> tuple[float, float, float]:
    """(low, high, p): the 95 % interval of a difference, and p against none, from its spread over draws of clusters.

    spread: standard deviation of the difference over the draws. freedom: clusters less the folds they are in.
    """
    from scipy.stats import t as student

    error = spread * float(np.sqrt(clusters / freedom))
    p = 1.0 if difference == 0 else 0.0  # if the difference is the same in every draw
    if error > 0:
        p = float(2 * student.sf(abs(difference) / error, freedom))
    margin = error * float(student.ppf(0.975, freedom))
    return difference - margin, difference + margin, p


def compare_predictions(
    first: Sequence[Sequence[Prediction]],
    second: Sequence[Sequence[Prediction]],
    figure: str,
    field: str | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare the runs (one predictions file each, one per training seed) of two models over speaker-conversations.

    figure, field: as for `pairs_of`; traits of PROFILE_FIELDS count once for each conversation.
    Raises PredictionsError unless all files have the same utterances and truths.
    """
    if not first or not second:
        raise PredictionsError("a comparison needs at least one predictions file on either side")
    base = first[0]
    units = {unit.id for unit in units_of(base, field)}
    values: list[list[NDArray[np.float64]]] = [[], []]
    for side, runs in zip(values, (first, second), strict=True):
        for run in runs:
            counted = [other for _, other in align(base, run) if other.id in units]
            side.append(pairs_of(counted, figure, field)[0])
    _, truth, there = pairs_of([unit for unit in base if unit.id in units], figure, field)
    clusters = [prediction.conversation for prediction in there]
    return compare(np.stack(values[0]), np.stack(values[1]), truth, clusters, draws=draws, seed=seed)


def to_table(result: Comparison, figure: str) -> Table:
    """A table of one row: both models' CCC, the difference with its interval, p."""
    cells = (
        Cell(result.first),
        Cell(result.second),
        Cell(result.difference, stars=result.stars, interval=(result.low, result.high)),
        Cell(f"{result.p:.2g}"),
    )
    notes = (
        f"{result.points} scores of {result.clusters} speaker-conversations; 95 % interval and p by paired"
        f" cluster bootstrap, {result.draws} draws.",
        STARS_NOTE,
    )
    columns = ("CCC", "first", "second", "first - second", "p")
    return Table("Do the two models differ?", columns, (Row(figure, cells),), notes, digits=3)


def _parts(
    clusters: Sequence[Hashable], names: Mapping[Hashable, int], folds: Sequence[Hashable] | None
) -> list[NDArray[np.intp]]:
    """The numbers of the clusters of each fold."""
    home: dict[Hashable, Hashable] = {}
    for cluster, fold in zip(clusters, folds or [None] * len(clusters), strict=True):
        if home.setdefault(cluster, fold) != fold:
            raise ValueError(f"speaker-conversation {cluster!r} is in two folds, {home[cluster]!r} and {fold!r}")
    return [
        np.array([names[cluster] for cluster, its in home.items() if its == fold])
        for fold in dict.fromkeys(home.values())
    ]


def _differences(
    sides: Sequence[Sequence[Sequence[NDArray[np.float64]]]], draws: int, seed: int
) -> NDArray[np.float64]:
    """(draws,) differences of the models' CCCs, each on clusters drawn with replacement within each fold."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        total = np.zeros(count)
        for first, second in zip(*sides, strict=True):
            size = len(first[0])
            weights = rng.multinomial(size, np.full(size, 1 / size), count).astype(np.float64)  # (count, C)
            total += _mean_ccc(first, weights) - _mean_ccc(second, weights)
        parts.append(total / len(sides[0]))
    return np.concatenate(parts)


def _moments(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], member: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(C, 6): count, sums, sums of squares and sum of products of each cluster, of (N,) values.

    Shifting both sides does not change CCC; shifting by the truth's mean keeps the sums small and exact.
    """
    x, y = predicted - truth.mean(), truth - truth.mean()
    parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(member, part) for part in parts], axis=1)


def _mean_ccc(runs: Sequence[NDArray[np.float64]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws,) mean CCC over runs, with each cluster counted as often as its weight, (draws, C)."""
    total = np.zeros(len(weights))
    for moments in runs:
        sums = weights @ moments  # (draws, 6)
        mean_x, mean_y, square_x, square_y, product = (sums[:, 1:] / sums[:, :1]).T
        covariance = product - mean_x * mean_y
        denominator = square_x - mean_x**2 + square_y - mean_y**2 + (mean_x - mean_y) ** 2
        same = denominator <= 1e-12 * (square_x + square_y)  # both sides the same constant: 1, as in `metrics.ccc`
        total += np.where(same, 1.0, 2 * covariance / np.where(same, 1.0, denominator))
    return total / len(runs)
