"""Table I: how far the six raters of PA-IEMOCAP agree on each trait.

For each trait score, the rater farthest from the mean is dropped (the first on ties), which leaves five; ICC(2,k) and
ICC(3,k) are of their mean. For Fleiss' kappa, a score above the median of the published ones counts as "high".
Since the dropped rater differs between profiles, the columns of the analysis of variance are positions, not persons.
Dropping the farthest raises every figure, so the untrimmed figures are shown as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAITS
from kibun.training.corpora.tipi import SHORT_NAMES, LabelError, Profile, read_ocean, read_tipi, trait_scores
from kibun.training.evaluation.metrics import DRAWS, fleiss_kappa, icc2k, icc2k_interval, icc3k
from kibun.training.evaluation.paper_figures import AGREEMENT, AVERAGE, UNTRIMMED_ICC2K, UNTRIMMED_KAPPA
from kibun.training.evaluation.report_table import Cell, Row, Table

FIGURES = ("icc2k", "icc3k", "kappa")


@dataclass(frozen=True)
class Agreement:
    """Agreement on one trait, or the average over the traits."""

    icc2k: float
    icc3k: float
    kappa: float
    icc2k_ci95: tuple[float, float]


@dataclass(frozen=True)
class TableOne:
    """Agreement by trait, and "average". trimmed: without the farthest rater, as published; untrimmed: all six.

    draws: of the bootstrap for the average's interval. unlike: published scores that are not the mean of their raters,
    0 unless the files are of different releases.
    """

    trimmed: Mapping[str, Agreement]
    untrimmed: Mapping[str, Agreement]
    profiles: int
    draws: int
    unlike: int


def read_scores(tipi: Path, ocean: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """((P, 6, 5) scores of each rater, (P, 5) published traits), 1..7, of the sorted profiles in the order of TRAITS.

    Raises LabelError: a file cannot be used, or the files have different profiles.
    """
    items, traits = read_tipi(tipi), read_ocean(ocean)
    _check_same(tipi, ocean, set(items), set(traits))
    profiles = sorted(items)
    scores = np.stack([trait_scores(items[profile]) for profile in profiles])
    return scores, np.array([traits[profile][1] for profile in profiles])


def drop_farthest(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, R) scores -> (P, R - 1), each row without the score farthest from its mean, the first on ties.

    Scores are multiples of 0.5, so equal distances are equal in floating point as well.
    """
    distance = np.abs(scores - scores.mean(axis=1, keepdims=True))
    kept = np.arange(scores.shape[1]) != distance.argmax(axis=1)[:, None]  # argmax takes the first of equals
    left: NDArray[np.float64] = scores[kept].reshape(len(scores), -1)
    return left


def table_one(scores: NDArray[np.float64], published: NDArray[np.float64], *, draws: int = DRAWS) -> TableOne:
    """Agreement of (P, R, 5) scores; kappa splits at the median of each column of (P, 5) published traits."""
    medians = np.median(published, axis=0)
    trimmed = [drop_farthest(scores[:, :, index]) for index in range(len(TRAITS))]
    whole = [scores[:, :, index] for index in range(len(TRAITS))]
    return TableOne(
        _agreements(trimmed, medians, draws),
        _agreements(whole, medians, draws),
        len(scores),
        draws,
        _unlike_means(scores, published),
    )


def to_table(result: TableOne) -> Table:
    """The table as in the paper: a row for each figure, a column for each trait."""
    names = (*TRAITS, AVERAGE)

    def row(label: str, figure: str) -> Row:
        cells = [
            Cell(getattr(result.trimmed[name], figure), published=getattr(AGREEMENT[name], figure)) for name in names
        ]
        return Row(label, tuple(cells))

    def untrimmed(label: str, figure: str, published: float | None) -> Row:
        cells = [Cell(getattr(result.untrimmed[name], figure)) for name in TRAITS]
        return Row(label, (*cells, Cell(getattr(result.untrimmed[AVERAGE], figure), published=published)))

    warning = f"{result.unlike} published scores are not the mean of their raters: give both files of one release."
    bounds = [result.trimmed[name].icc2k_ci95 for name in names]
    return Table(
        "Table I: agreement of the raters on each trait",
        ("", *SHORT_NAMES.values(), "avg"),
        (
            row("ICC(2,k)", "icc2k"),
            Row("  95 % from", tuple(Cell(low) for low, _ in bounds)),
            Row("  95 % to", tuple(Cell(high) for _, high in bounds)),
            row("ICC(3,k)", "icc3k"),
            row("Fleiss' kappa", "kappa"),
            untrimmed("ICC(2,k), all six raters", "icc2k", UNTRIMMED_ICC2K),
            untrimmed("kappa, all six raters", "kappa", UNTRIMMED_KAPPA),
        ),
        (
            f"{result.profiles} profiles; per trait score the rater farthest from the mean is dropped, five remain.",
            "kappa: high is above the median of the published scores.",
            f"Interval of ICC(2,k): from F per trait; of the average by bootstrap over profiles, {result.draws} draws.",
            "Dropping the farthest rater raises agreement by itself; the last lines are without it.",
            *([warning] if result.unlike else []),
        ),
    )


def to_payload(result: TableOne) -> dict[str, Any]:
    """JSON by trait and "average": `icc2k`, `icc3k`, `kappa`, `icc2k_ci95`, `untrimmed`, `published`, `profiles`."""
    return {
        name: {
            **_figures(agreement),
            "icc2k_ci95": list(agreement.icc2k_ci95),
            "untrimmed": _figures(result.untrimmed[name]),
            "published": _figures(AGREEMENT[name]),
            "profiles": result.profiles,
        }
        for name, agreement in result.trimmed.items()
    }


def _figures(agreement: object) -> dict[str, float]:
    """Those that the paper has as well."""
    return {figure: getattr(agreement, figure) for figure in FIGURES}


def _agreements(scores: list[NDArray[np.float64]], medians: NDArray[np.float64], draws: int) -> dict[str, Agreement]:
    """Agreement by trait and "average". scores: a (P, R) table for each trait; medians: (5,)."""
    found = {
        trait: Agreement(icc2k(table), icc3k(table), fleiss_kappa(table > median), icc2k_interval(table))
        for trait, table, median in zip(TRAITS, scores, medians, strict=True)
    }
    average = {name: float(np.mean([getattr(one, name) for one in found.values()])) for name in FIGURES}
    return {**found, AVERAGE: Agreement(**average, icc2k_ci95=_average_interval(scores, draws))}


def _average_interval(scores: list[NDArray[np.float64]], draws: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the traits' mean ICC(2,k): percentiles over draws of whole profiles, with all traits and raters.

    The traits of a profile are not independent, so the five intervals cannot be combined.
    """
    profiles = len(scores[0])
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(profiles, np.full(profiles, 1 / profiles), draws).astype(np.float64)  # (draws, P)
    low, high = np.quantile(np.mean([weighted_icc2k(table, weights) for table in scores], axis=0), [0.025, 0.975])
    return float(low), float(high)


def weighted_icc2k(scores: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws,) ICC(2,k) of (P, R) scores where each profile counts as often as its (draws, P) weight.

    Computed from sums of squares, so that a draw costs one row of a matrix product; `metrics.icc2k` is the plain form.
    """
    profiles, raters = scores.shape
    centred = scores - scores.mean()  # keeps the sums small and exact
    columns = weights @ centred / profiles  # (draws, R) mean of each column
    correction = profiles * raters * columns.mean(axis=1) ** 2
    rows = weights @ centred.sum(axis=1) ** 2 / raters - correction
    between = profiles * (columns**2).sum(axis=1) - correction
    residual = weights @ (centred**2).sum(axis=1) - correction - rows - between
    target, rater = rows / (profiles - 1), between / (raters - 1)  # mean squares
    error = residual / ((profiles - 1) * (raters - 1))
    icc: NDArray[np.float64] = (target - error) / (target + (rater - error) / profiles)
    return icc


def _check_same(tipi: Path, ocean: Path, rated: set[Profile], scored: set[Profile]) -> None:
    for file, lacking in ((ocean, rated - scored), (tipi, scored - rated)):
        if lacking:
            names = ", ".join(" ".join(profile) for profile in sorted(lacking)[:5])
            raise LabelError(
                f"{file}: field 'dialogue_id': {len(lacking)} profiles of the other file are missing: {names};"
                " give both files of one release"
            )


def _unlike_means(scores: NDArray[np.float64], published: NDArray[np.float64]) -> int:
    """The number of published scores that are not the mean of their raters, to their 3 decimals."""
    return int((np.abs(scores.mean(axis=1) - published) > 0.00051).sum())
