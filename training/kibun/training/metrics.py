"""The figures: concordance correlation, root mean square error, area under the ROC curve. Numpy only."""

import numpy as np
from numpy.typing import ArrayLike


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
    """Chance that a random member of ``high`` scores above one of ``low``; ties count half."""
    x, y = np.asarray(high, dtype=float), np.asarray(low, dtype=float)
    if not x.size or not y.size:
        raise ValueError("auc needs at least one score on either side")
    above = (x[:, None] > y[None, :]).mean()
    equal = (x[:, None] == y[None, :]).mean()
    return float(above + equal / 2)


def _pair(predicted: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not x.size:
        raise ValueError(f"expected two equally long, non-empty lists of scores, got shapes {x.shape} and {y.shape}")
    return x, y
