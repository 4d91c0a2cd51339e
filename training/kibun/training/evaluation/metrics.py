"""The measures: concordance, correlation, errors, agreement between raters. Lists in, floats out, never NaN.

scipy, statsmodels and jiwer are imported by the measures that need them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000  # of a bootstrap


def ccc(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Concordance correlation coefficient with population moments (ddof 0).

    2 cov / (var + var + (mean - mean)^2), Lin, Biometrics 1989. 0.0 where one side is constant and the other is not;
    1.0 where both are the same constant. Raises ValueError for empty or unequal lengths.
    """
    x, y = _pair(predicted, truth)
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    denominator = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    return 1.0 if denominator == 0 else 2 * covariance / denominator


def rmse(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Root mean square error, in the unit of the scores."""
    x, y = _pair(predicted, truth)
    return float(np.sqrt(np.mean((x - y) ** 2)))


def auc(high: ArrayLike, low: ArrayLike) -> float:
    """Area under the ROC curve: chance that a random member of ``high`` scores above one of ``low``; ties count half.

    Raises ValueError if either is empty.
    """
    x, y = np.asarray(high, dtype=float), np.asarray(low, dtype=float)
    if not x.size or not y.size:
        raise ValueError("auc needs at least one score on either side")
    below = np.sort(y)
    counts = np.searchsorted(below, x, "left") + np.searchsorted(below, x, "right")
    return float(counts.mean() / (2 * y.size))


def pearson(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """(r, p): Pearson's correlation and its two-sided p-value against r = 0, assuming independent pairs.

    Raises ValueError for unequal lengths, fewer than three pairs, or a side that is constant (r is undefined there).
    """
    from scipy.stats import pearsonr

    x, y = _pair(first, second)
    if x.size < 3:
        raise ValueError(f"a correlation needs at least 3 pairs, got {x.size}")
    if not _varies(x) or not _varies(y):
        raise ValueError("a correlation needs two sides that vary; one is constant")
    result = pearsonr(x, y)
    return float(result.statistic), float(result.pvalue)


def icc2k(ratings: ArrayLike) -> float:
    """ICC(2,k), absolute agreement of the mean of all raters, of (N targets, K raters) scores; at most 1.

    (MSR - MSE) / (MSR + (MSC - MSE) / N), Shrout & Fleiss, Psychological Bulletin 1979; ICC(A,k) of McGraw & Wong
    1996. Raises ValueError for fewer than two targets or raters, and where no score differs from another.
    """
    table = _ratings(ratings)
    rows, columns, error = mean_squares(table)
    return (rows - error) / _not_zero(rows + (columns - error) / len(table))


def icc3k(ratings: ArrayLike) -> float:
    """ICC(3,k), consistency of the mean of all raters, of (N targets, K raters) scores; at most 1.

    (MSR - MSE) / MSR, Shrout & Fleiss 1979; ICC(C,k) of McGraw & Wong 1996. Raises as `icc2k` does, and where all
    targets have the same mean.
    """
    rows, _, error = mean_squares(_ratings(ratings))
    return (rows - error) / _not_zero(rows)


def icc2k_interval(ratings: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of ICC(2,k), from F with Satterthwaite's degrees of freedom.

    Shrout & Fleiss 1979, p. 424, for one rater, stepped up to K raters by Spearman & Brown. Raises as `icc2k` does.
    """
    from scipy.stats import f

    table = _ratings(ratings)
    n, k = table.shape
    rows, columns, error = mean_squares(table)
    if columns == 0 and error == 0:
        return 1.0, 1.0  # raters agree on every score
    single = (rows - error) / _not_zero(rows + (k - 1) * error + k * (columns - error) / n)
    a = k * single / (n * (1 - single))
    b = 1 + k * single * (n - 1) / (n * (1 - single))
    freedom = (a * columns + b * error) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
    above, below = f.ppf((1 + level) / 2, n - 1, freedom), f.ppf((1 + level) / 2, freedom, n - 1)
    noise = k * columns + (k * n - k - n) * error
    low = n * (rows - above * error) / (above * noise + n * rows)
    high = n * (below * rows - error) / (noise + n * below * rows)
    return float(k * low / (1 + (k - 1) * low)), float(k * high / (1 + (k - 1) * high))


def fleiss_kappa(categories: ArrayLike) -> float:
    """Fleiss' kappa of (N targets, K raters) categories: agreement beyond chance, 1 at best, 0 at chance.

    Raises ValueError for fewer than two targets or raters, and where all ratings name one category (undefined).
    """
    from statsmodels.stats.inter_rater import aggregate_raters
    from statsmodels.stats.inter_rater import fleiss_kappa as kappa

    table = _ratings(np.asarray(categories, dtype=np.float64))
    return float(kappa(aggregate_raters(table)[0], method="fleiss"))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Words substituted, deleted and inserted over words of the references, over the whole corpus; can exceed 1.

    Case and punctuation count: normalise both sides alike first. Raises ValueError for unequal numbers of
    utterances, and where no reference has a word.
    """
    import jiwer

    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses: give one for each")
    if not any(reference.split() for reference in references):
        raise ValueError("word error rate needs at least one reference with a word in it")
    return float(jiwer.wer(list(references), list(hypotheses)))


def mean_squares(ratings: NDArray[np.float64]) -> tuple[float, float, float]:
    """(between targets, between raters, residual) of the two-way analysis of variance without replication.

    ratings: (N targets, K raters), one score per cell, both at least 2.
    """
    n, k = ratings.shape
    mean = ratings.mean()
    target = ratings.mean(axis=1) - mean  # (N,)
    rater = ratings.mean(axis=0) - mean  # (K,)
    residual = ratings - mean - target[:, None] - rater[None, :]  # (N, K)
    rows = float(k * (target**2).sum() / (n - 1))
    columns = float(n * (rater**2).sum() / (k - 1))
    error = float((residual**2).sum() / ((n - 1) * (k - 1)))
    # Remainders of rounding count as zero: a ratio of two of them would be noise.
    dust = n * k * (8 * np.finfo(np.float64).eps * float(np.abs(ratings).max())) ** 2
    rows, columns, error = (0.0 if square <= dust else square for square in (rows, columns, error))
    return rows, columns, error


def _pair(predicted: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not x.size:
        raise ValueError(f"expected two equally long, non-empty lists of scores, got shapes {x.shape} and {y.shape}")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError("scores must be finite numbers; there is a NaN or an infinity among them")
    return x, y


def _ratings(ratings: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"expected (targets, raters) with at least 2 of each, got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("every rater must have scored every target; there are gaps or values that are not finite")
    if (table == table.flat[0]).all():
        raise ValueError("agreement is undefined where all ratings are the same")
    return table


def _not_zero(denominator: float) -> float:
    if denominator == 0:
        raise ValueError("agreement is undefined: the targets' mean scores do not differ")
    return denominator


def _varies(scores: NDArray[np.float64]) -> bool:
    return bool((scores != scores[0]).any())


def quantile_interval(values: Sequence[float], share: float) -> tuple[float | None, float | None]:
    """95 % interval of a quantile, from the order of the values alone; share: 0..1.

    None: an end that so few values do not tell. The 99th percentile of 100 values has no upper one.
    """
    from scipy.stats import quantile_test

    if not len(values):
        return None, None
    found = quantile_test(np.asarray(values), p=share).confidence_interval(0.95)
    low, high = (None if np.isnan(end) else float(end) for end in (found.low, found.high))
    return low, high
