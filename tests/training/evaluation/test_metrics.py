"""Metrics against values computed by hand, against independent libraries, and against properties that always hold."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike, NDArray

from kibun.training.evaluation.metrics import (
    auc,
    ccc,
    fleiss_kappa,
    icc2k,
    icc2k_interval,
    icc3k,
    mean_squares,
    pearson,
    quantile_interval,
    rmse,
    word_error_rate,
)
from kibun.training.losses import ccc_loss
from tests.support.ratings import plain_kappa, rated

# Six targets, four judges: table 2 of Shrout & Fleiss 1979, who print ICC(2,4) = .62 and ICC(3,4) = .91 for it.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)

quick = settings(max_examples=60)
halves = st.integers(2, 14).map(lambda value: value / 2)  # what trait scores of a rater look like


def tables(low: int = 3, high: int = 12) -> st.SearchStrategy[NDArray[np.float64]]:
    shapes = st.tuples(st.integers(low, high), st.integers(2, 6))
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=halves))


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


@pytest.mark.parametrize("count", [3, 10, 1000])
def test_ccc_is_torchmetrics_with_its_ddof_corrected(count: int) -> None:
    from torchmetrics.functional.regression import concordance_corrcoef

    rng = np.random.default_rng(count)
    x = rng.normal(3, 1, count)
    y = 0.6 * x + rng.normal(1, 0.5, count)
    theirs = float(concordance_corrcoef(torch.tensor(x), torch.tensor(y)))
    # They divide (co)variances by N - 1 and the squared difference of means by nothing; ours divides by N.
    covariance, spread = np.cov(x, y, ddof=1)[0, 1], x.var(ddof=1) + y.var(ddof=1)
    gap = (x.mean() - y.mean()) ** 2
    assert theirs == pytest.approx(2 * covariance / (spread + gap))
    assert ccc(x, y) == pytest.approx(theirs * (spread + gap) / (spread + gap * count / (count - 1)))


def test_ccc_of_a_constant_is_zero_where_torchmetrics_gives_nan() -> None:
    from torchmetrics.functional.regression import concordance_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(float(concordance_corrcoef(torch.full((4,), 2.0), torch.tensor([1.0, 2.0, 3.0, 4.0]))))
    assert ccc([2, 2, 2, 2], [1, 2, 3, 4]) == 0


@quick
@given(arrays(np.float64, st.integers(2, 30), elements=st.floats(-5, 5)), st.integers(0, 2**32 - 1))
def test_ccc_is_symmetric_bounded_and_unchanged_by_common_units(x: NDArray[np.float64], seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=len(x))
    value = ccc(x, y)
    assert -1 - 1e-9 <= value <= 1 + 1e-9
    assert ccc(y, x) == pytest.approx(value, abs=1e-12)
    assert ccc(3 * x + 2, 3 * y + 2) == pytest.approx(value, abs=1e-9)
    assert ccc(x, x) == 1
    if x.std() > 1e-3 and y.std() > 1e-3:
        assert abs(value) <= abs(np.corrcoef(x, y)[0, 1]) + 1e-9


@pytest.mark.parametrize(("x", "y", "expected"), [([2, 2], [2, 2], 1.0), ([2, 2], [1, 3], 0.0), ([1, 3], [3, 1], -1.0)])
def test_ccc_of_constants_and_opposites(x: list[float], y: list[float], expected: float) -> None:
    assert ccc(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [1.0, 2.0])])
def test_ccc_refuses_empty_and_unequal_lengths(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="equally long"):
        ccc(x, y)


@pytest.mark.parametrize("figure", [ccc, rmse, pearson])
def test_a_figure_of_nan_is_refused(figure: Callable[[list[float], list[float]], object]) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        figure([1, 2, float("nan")], [1, 2, 3])


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


@pytest.mark.parametrize("count", [3, 8, 300])
def test_pearson_is_the_t_test_of_the_slope(count: int) -> None:
    from scipy.stats import linregress

    rng = np.random.default_rng(count)
    x = rng.normal(size=count)
    y = 0.3 * x + rng.normal(size=count)
    line = linregress(x, y)
    assert pearson(x, y) == pytest.approx((np.corrcoef(x, y)[0, 1], line.pvalue))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [([1, 2], [2, 1], "at least 3"), ([1, 1, 1], [1, 2, 3], "constant"), ([1, 2, 3], [5, 5, 5], "constant")],
)
def test_pearson_refuses_where_r_is_undefined(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pearson(x, y)


def test_icc_of_the_published_example() -> None:
    rows, columns, error = mean_squares(SHROUT_FLEISS)
    assert (round(rows, 2), round(columns, 2), round(error, 2)) == (11.24, 32.49, 1.02)  # their table 3
    assert round(icc2k(SHROUT_FLEISS), 2) == 0.62
    assert round(icc3k(SHROUT_FLEISS), 2) == 0.91


@pytest.mark.parametrize("case", ["published", "good", "poor", "none", "two raters"])
def test_icc_and_its_interval_equal_pingouins(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas
    import pingouin

    ratings = {
        "published": SHROUT_FLEISS,
        "good": rated(0),
        "poor": rated(1, noise=2, bias=2),
        "none": np.random.default_rng(2).normal(size=(30, 4)),
        "two raters": rated(3, targets=7, raters=2),
    }[case]
    monkeypatch.setitem(pingouin.options, "round.column.CI95", None)  # it rounds to two decimals otherwise
    long = pandas.DataFrame([(i, j, score) for (i, j), score in np.ndenumerate(ratings)], columns=["t", "r", "s"])
    theirs = pingouin.intraclass_corr(long, "t", "r", "s").set_index("Type")
    assert icc2k(ratings) == pytest.approx(theirs.loc["ICC(A,k)", "ICC"], abs=1e-9)
    assert icc3k(ratings) == pytest.approx(theirs.loc["ICC(C,k)", "ICC"], abs=1e-9)
    assert icc2k_interval(ratings) == pytest.approx(tuple(theirs.loc["ICC(A,k)", "CI95"]), abs=1e-6)


@quick
@given(tables(), st.permutations(range(6)))
def test_icc_is_invariant_as_agreement_and_consistency_demand(ratings: NDArray[np.float64], order: list[int]) -> None:
    rows, _, error = mean_squares(ratings)
    if rows == 0 or rows < error / 2:  # undefined, or so low that a ratio of remainders is compared
        return
    columns = [column for column in order if column < ratings.shape[1]]
    shifted = ratings + np.arange(ratings.shape[1])  # stricter raters do not harm consistency
    assert icc3k(shifted) == pytest.approx(icc3k(ratings), abs=1e-9)
    for figure in (icc2k, icc3k):
        value = figure(ratings)
        assert value <= 1 + 1e-12
        assert figure(ratings[::-1][:, columns]) == pytest.approx(value, abs=1e-9)
        assert figure(2 * ratings + 1) == pytest.approx(value, abs=1e-9)
    if icc3k(ratings) > 0:
        assert icc2k(ratings + 50 * np.arange(ratings.shape[1])) < icc3k(ratings)


def test_icc_of_perfect_agreement() -> None:
    same = np.repeat([[1.0], [4.5], [6.1]], 4, axis=1)
    assert (icc2k(same), icc3k(same), icc2k_interval(same)) == (1, 1, (1, 1))


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([[1, 2, 3]], "at least 2"),
        ([[1], [2]], "at least 2"),
        ([1, 2, 3], "at least 2"),
        ([[1, np.nan], [2, 3]], "every rater"),
        ([[4, 4], [4, 4]], "all ratings are the same"),
        ([[0.1, 0.3], [0.3, 0.1]], "do not differ"),
    ],
)
def test_icc_refuses_ratings_where_it_is_undefined(ratings: ArrayLike, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        icc3k(ratings)


@quick
@given(arrays(np.int64, st.tuples(st.integers(2, 12), st.integers(2, 6)), elements=st.integers(0, 2)))
def test_fleiss_kappa_equals_its_definition(categories: NDArray[np.int64]) -> None:
    if (categories == categories.flat[0]).all():
        with pytest.raises(ValueError, match="the same"):
            fleiss_kappa(categories)
    else:
        assert fleiss_kappa(categories) == pytest.approx(plain_kappa(categories), abs=1e-9)


def test_word_error_rate_by_hand() -> None:
    # one substitution and one insertion against three words, then one deletion against one
    assert word_error_rate(["a b c", "d"], ["a x c y", ""]) == pytest.approx(3 / 4)
    assert word_error_rate(["", "a b"], ["noise", "a b"]) == pytest.approx(1 / 2)  # an empty transcript keeps its words


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [(["a"], [], "1 references but 0"), ([], [], "at least one"), (["", " "], ["a", "b"], "at least one")],
)
def test_word_error_rate_refuses_unequal_or_wordless_input(
    references: list[str], hypotheses: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        word_error_rate(references, hypotheses)


def test_the_interval_of_a_quantile_holds_it_as_often_as_it_says() -> None:
    """Of 200 samples of known distribution; and its ends are those of a table of the binomial distribution."""
    assert quantile_interval([float(n) for n in range(1, 101)], 0.5) == (40.0, 61.0)
    random = np.random.default_rng(0)
    truth = float(np.log(20))  # the 95th percentile of an exponential distribution
    held = 0
    for _ in range(200):
        low, high = quantile_interval(random.exponential(size=150).tolist(), 0.95)
        held += (low or 0) <= truth <= (math.inf if high is None else high)
    assert 180 <= held <= 200


def test_an_end_that_so_few_values_do_not_tell_is_none() -> None:
    low, high = quantile_interval([float(n) for n in range(100)], 0.99)
    assert low is not None
    assert low < 99
    assert high is None
    assert quantile_interval([1.0, 2.0, 3.0], 0.5) == (None, None)
    assert quantile_interval([], 0.5) == (None, None)
