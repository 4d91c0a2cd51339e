"""The bootstrap against a plain loop, on data without a difference, and on data with one."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.significance import compare

Array = NDArray[np.float64]


def world(seed: int, clusters: int = 20, each: int = 15, better: float = 1.0) -> tuple[Array, Array, Array, list[str]]:
    """Two models that share what makes a speaker hard; `better` scales the second one's own noise per utterance."""
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(clusters), each)
    truth = 3 + 0.6 * rng.normal(size=clusters)[member] + 0.7 * rng.normal(size=len(member))
    shared = 3 + 0.6 * (truth - 3) + 0.3 * rng.normal(size=clusters)[member]
    first, second = (
        shared + 0.3 * rng.normal(size=clusters)[member] + 0.5 * size * rng.normal(size=len(member))
        for size in (1.0, better)
    )
    return first, second, truth, [f"speaker {index}" for index in member]


def plain(first: list[Array], second: list[Array], truth: Array, names: list[str], draws: int, seed: int) -> Array:
    """The definition: put together the drawn clusters' utterances, and score both models on them."""
    groups = [np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)]
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(draws):
        times = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)))
        rows = np.concatenate([group for group, count in zip(groups, times, strict=True) for _ in range(count)])
        scores = [np.mean([ccc(run[rows], truth[rows]) for run in side]) for side in (first, second)]
        differences.append(scores[0] - scores[1])
    return np.array(differences)


@pytest.mark.parametrize("runs", [1, 3])
def test_the_bootstrap_equals_a_plain_loop(runs: int) -> None:
    first, second, truth, names = world(0)
    rng = np.random.default_rng(9)
    sides = [[side + 0.05 * rng.normal(size=side.size) for _ in range(runs)] for side in (first, second)]
    order = rng.permutation(truth.size)  # utterances of a cluster need not be neighbours
    shuffled = [[run[order] for run in side] for side in sides]
    first_runs, second_runs = shuffled
    clusters = [names[index] for index in order]
    result = compare(np.stack(first_runs), np.stack(second_runs), truth[order], clusters, draws=300, seed=4)

    differences = plain(first_runs, second_runs, truth[order], clusters, 300, 4)
    whole = [float(np.mean([ccc(run, truth) for run in side])) for side in sides]
    error = differences.std(ddof=1) * np.sqrt(20 / 19)
    assert (result.first, result.second) == pytest.approx(tuple(whole))
    assert result.difference == pytest.approx(whole[0] - whole[1])
    assert result.p == pytest.approx(2 * student.sf(abs(result.difference) / error, 19))
    assert (result.low, result.high) == pytest.approx(
        (result.difference - student.ppf(0.975, 19) * error, result.difference + student.ppf(0.975, 19) * error)
    )
    assert (result.clusters, result.points, result.draws) == (20, 300, 300)


def test_folds_are_scored_apart_and_their_clusters_drawn_apart() -> None:
    """Independent folds: the error of the mean of two is that of each, added in squares and halved."""
    worlds = [world(seed, clusters=30) for seed in (5, 6)]
    first, second, truth = (np.concatenate([each[part] for each in worlds]) for part in range(3))
    truth[450:] += 1.5  # pooled, the level of the second fold would count; apart, it is only an error of the level
    first[450:] += 1.5
    second[450:] += 1.5
    names = [f"{fold} {name}" for fold, each in enumerate(worlds) for name in each[3]]
    folds = [0] * 450 + [1] * 450
    both = compare(first, second, truth, names, folds=folds, draws=4000)
    alone = [compare(*each) for each in worlds]
    assert both.first == pytest.approx(np.mean([each.first for each in alone]))
    assert both.difference == pytest.approx(np.mean([each.difference for each in alone]))
    pooled = compare(first, second, truth, names)
    assert pooled.first > both.first + 0.05
    margins = [(each.high - each.low) / student.ppf(0.975, 29) for each in alone]
    width = (both.high - both.low) / student.ppf(0.975, 58)
    assert width == pytest.approx(np.hypot(*margins) / 2, rel=0.08)
    with pytest.raises(ValueError, match="'0 speaker 0' is in two folds, 0 and 1"):
        compare(first, second, truth, names, folds=[0, 1] * 450)
    with pytest.raises(ValueError, match="needs at least 2 speaker-conversations and 2 draws, got 1"):
        compare(first[:30], second[:30], truth[:30], names[:30], folds=[0] * 15 + [1] * 15)


def test_a_seed_decides_the_result_and_sides_mirror() -> None:
    first, second, truth, names = world(1)
    result = compare(first, second, truth, names, draws=600, seed=1)
    assert result == compare(first, second, truth, names, draws=600, seed=1)
    assert result.p != compare(first, second, truth, names, draws=600, seed=2).p
    mirrored = compare(second, first, truth, names, draws=600, seed=1)
    assert (mirrored.difference, mirrored.low, mirrored.high) == pytest.approx(
        (-result.difference, -result.high, -result.low)
    )
    assert mirrored.p == pytest.approx(result.p)


def test_a_real_difference_gets_stars_and_equal_models_get_none() -> None:
    first, second, truth, names = world(2, better=2.5)
    result = compare(first, second, truth, names)
    assert result.stars == "***"
    assert 0 < result.low < result.difference < result.high
    same = compare(first, first, truth, names)
    assert (same.difference, same.low, same.high, same.p, same.stars) == (0, 0, 0, 1, "")


def test_clusters_matter() -> None:
    """One speaker on whom a model fails is one observation, not fifty."""
    rng = np.random.default_rng(3)
    truth = rng.normal(3, 1, 500)
    names = [f"speaker {index // 50}" for index in range(500)]
    second = truth + 0.3 * rng.normal(size=500)
    first = second.copy()
    first[:50] += 1.5 * rng.normal(size=50)
    assert compare(first, second, truth, list(range(500))).p < 0.001
    assert compare(first, second, truth, names).p > 0.05


@pytest.mark.parametrize("clusters", [28, pytest.param(100, marks=pytest.mark.slow)])
def test_equal_models_are_called_different_as_often_as_p_says(clusters: int) -> None:
    verdicts, covered = [], []
    for seed in range(400):
        result = compare(*world(seed, clusters), draws=600)
        verdicts.append(result.p < 0.05)
        covered.append(result.low <= 0 <= result.high)
    assert 0.015 <= np.mean(verdicts) <= 0.085  # three standard errors about .05
    assert np.mean(covered) == pytest.approx(1 - np.mean(verdicts))


def test_the_interval_covers_a_difference_that_is_there() -> None:
    truth_of_it = np.mean([ccc(f, y) - ccc(s, y) for f, s, y, _ in (world(k, 2000, better=1.5) for k in range(10, 14))])
    covered = []
    for seed in range(300):
        result = compare(*world(seed, 40, better=1.5), draws=600)
        covered.append(result.low <= truth_of_it <= result.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_utterances_are_summed_once_however_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, truth, names = world(5, clusters=300, each=34)
    summed: list[int] = []
    bincount = np.bincount

    def counted(member: NDArray[np.intp], weights: Array) -> Array:
        summed.append(len(member))
        return np.asarray(bincount(member, weights), np.float64)

    monkeypatch.setattr(np, "bincount", counted)
    compare(first, second, truth, names, draws=2000)
    assert summed == [300 * 34] * 12  # six moments of each model's utterances: a draw costs 300 clusters, not 10,200


def test_wrong_shapes_and_values_are_refused() -> None:
    first, second, truth, names = world(6)
    with pytest.raises(ValueError, match="one entry for each utterance"):
        compare(first[1:], second, truth, names)
    with pytest.raises(ValueError, match="at least 2 speaker-conversations"):
        compare(first, second, truth, ["one"] * len(truth))
    with pytest.raises(ValueError, match="finite"):
        compare(np.where(first > 3, np.nan, first), second, truth, names)
