"""Every model with every kind of traits on every fold, and what they score."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kibun.training.corpora.label_table import LabelTable
from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.significance import Comparison, compare
from kibun.training.experiments.labels import linear
from kibun.training.experiments.labels.folds import LabelFold, Rows
from kibun.training.experiments.labels.nets import NetData, NetName, fit_nets, tokens_possible
from kibun.training.experiments.labels.trait_heads import CrossFitted
from kibun.training.experiments.labels.trait_sources import (
    PREDICTED,
    RIDGE,
    SHUFFLED,
    TRUE,
    TraitQuality,
    TraitSources,
    noise_source,
    trait_quality,
)

Floats = NDArray[np.float64]
Form = Literal["linear", "net"]
NONE = "none"

ACOUSTICS, TRAITS_ONLY, BOTH, PRODUCTS, OWN_RIDGE, MODULATION, CA = (
    "acoustics",
    "traits only",
    "both",
    "audio × traits",
    "audio × traits, own ridge",
    "modulation",
    "CA",
)
NETS: dict[str, NetName] = {
    ACOUSTICS: "acoustics",
    TRAITS_ONLY: "traits",
    BOTH: "concat",
    MODULATION: "modulation",
    CA: "ca",
}


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """A model, and the traits that it gets on test; trained_with: those on train, if others."""

    form: Form
    model: str
    traits: str
    trained_with: str


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """seeds: of nets, heads, shuffles and noise. sigmas: of the noise. settings: whether kibun's heads predict traits.

    nets: whether there are small nets.
    """

    emotions: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    sigmas: tuple[float, ...] = (0.4, 0.8, 1.6)
    settings: bool = True
    nets: bool = True


@dataclasses.dataclass(frozen=True)
class RowScore:
    """What a row scored on one emotion. values: by seed, the mean CCC over folds. folds: by fold, the mean over seeds.

    pooled: CCC of all test utterances together, mean over seeds. against_nothing: the mean CCC over folds, with its
    interval, as a comparison with a constant, whose CCC is 0.
    """

    row: ModelRow
    emotion: str
    values: tuple[float, ...]
    folds: tuple[float, ...]
    pooled: float
    against_nothing: Comparison


@dataclasses.dataclass(frozen=True)
class RowDifference:
    """Whether the first row scores better than the second, by the mean CCC over folds."""

    name: str
    first: ModelRow
    second: ModelRow
    emotion: str
    comparison: Comparison


@dataclasses.dataclass(frozen=True)
class LabelResults:
    """scores and differences of all emotions; qualities: of predicted and noisy traits."""

    folds: tuple[LabelFold, ...]
    scores: tuple[RowScore, ...]
    differences: tuple[RowDifference, ...]
    qualities: dict[str, TraitQuality]
    left_out: tuple[str, ...]


def rows_of(options: LabelOptions, features: int) -> list[ModelRow]:
    """The rows, in the order of their computation."""
    forms: tuple[Form, ...] = ("linear", "net") if options.nets else ("linear",)
    sources = [RIDGE, *(PREDICTED[1:] if options.settings else ()), *map(noise_source, options.sigmas)]
    rows: list[ModelRow] = []
    for form in forms:
        interacting = [PRODUCTS, OWN_RIDGE]
        if form == "net":
            interacting = [MODULATION, *([CA] if tokens_possible(features) else [])]
        rows.append(ModelRow(form, ACOUSTICS, NONE, NONE))
        rows += [
            ModelRow(form, model, source, source)
            for model in (TRAITS_ONLY, BOTH, *interacting)
            for source in (TRUE, SHUFFLED)
        ]
        rows += [ModelRow(form, model, source, source) for source in sources for model in (BOTH, interacting[0])]
        if form == "linear":
            rows += [ModelRow(form, BOTH, source, TRUE) for source in sources]
    return rows


def run_study(
    array: NDArray[np.float32],
    labels: LabelTable,
    folds: Sequence[LabelFold],
    options: LabelOptions,
    progress: Callable[[str], None],
) -> LabelResults:
    """Fit and score everything. array: (N, D) features, finite; progress: called with a line for each step."""
    items = labels.items
    targets = np.array([[getattr(item, emotion) for emotion in options.emotions] for item in items], dtype=np.float64)
    heads = CrossFitted(array, items) if options.settings else None
    sources = TraitSources(array, items, options.seeds, options.sigmas, heads)
    rows = rows_of(options, array.shape[1])
    estimates: dict[ModelRow, list[Floats]] = {row: [] for row in rows}  # by fold, (seeds, K, n) of test
    traits: dict[str, list[list[Floats]]] = {}
    for number, fold in enumerate(folds, 1):
        where = f"fold {number} of {len(folds)}, {fold.name}"
        progress(f"{where}: traits of {len(fold.train):,} utterances of train, {len(fold.test):,} of test")
        found = sources.of_fold(fold)
        for source, arrays in found.items():
            traits.setdefault(source, []).append(arrays)
        models = _FoldModels(array, found[TRUE][0], targets, fold, options.seeds)
        for count, row in enumerate(rows, 1):
            if count % 8 == 1:
                progress(f"{where}: row {count} of {len(rows)}")
            estimates[row].append(models.estimate(row, found))
    progress("scores and their intervals")
    scoring = _Scoring(labels, folds, targets, options.emotions, estimates)
    qualities = {
        source: trait_quality(source, items, folds, arrays)
        for source, arrays in traits.items()
        if source not in (TRUE, SHUFFLED)
    }
    left_out = (
        ()
        if tokens_possible(array.shape[1])
        else ("CA is left out: one feature is one key, over which softmax is 1 whatever the traits.",)
    )
    return LabelResults(tuple(folds), tuple(scoring.scores()), tuple(scoring.differences(rows)), qualities, left_out)


class _FoldModels:
    """Fits the rows of one fold."""

    def __init__(
        self, array: NDArray[np.float32], truth: Floats, targets: Floats, fold: LabelFold, seeds: Sequence[int]
    ) -> None:
        self.fold, self.targets, self.seeds = fold, targets, seeds
        scaling = linear.Scaling.of(array, fold.train)
        # Predicted traits are scaled as true ones are: an estimate that hardly varies must not be blown up.
        self.of_traits = linear.Scaling.of(truth, fold.train)
        self.x = linear.features(array, scaling)
        narrow = linear.narrowed(array, scaling, fold.train)
        self.multiplied: linear.Columns = lambda rows: narrow[rows].astype(np.float64)
        members = tuple((seed, index) for seed in seeds for index in range(targets.shape[1]))
        self.data = NetData(narrow, self.of_traits, targets, members)

    def estimate(self, row: ModelRow, sources: dict[str, list[Floats]]) -> Floats:
        """(seeds, K, n) estimates of test; one seed where none is used."""
        none = [np.zeros((len(self.targets), 5))]
        train = sources.get(row.trained_with, none)
        test = sources.get(row.traits, none)
        if train is not test:
            both = np.isin(np.arange(len(self.targets)), self.fold.test)[:, None]
            train = [np.where(both, after, before) for before, after in zip(itertools.cycle(train), test)]
        return self._nets(row, train) if row.form == "net" else np.stack([self._linear(row, each) for each in train])

    def _linear(self, row: ModelRow, traits: Floats) -> Floats:
        """(K, n)."""
        t = linear.features(traits, self.of_traits)
        both = linear.side_by_side(self.x, t)
        products = linear.products(self.multiplied, t)
        own = products if row.model == OWN_RIDGE else None
        columns = {
            ACOUSTICS: self.x,
            TRAITS_ONLY: t,
            BOTH: both,
            PRODUCTS: linear.side_by_side(both, products),
            OWN_RIDGE: both,
        }[row.model]
        return linear.fit_linear(columns, self.targets, self.fold, own).predict(self.fold.test).T

    def _nets(self, row: ModelRow, traits: Sequence[Floats]) -> Floats:
        """(seeds, K, n)."""
        by_seed = dict(zip(self.seeds, itertools.cycle(traits)))
        each = [by_seed[seed] for seed, _index in self.data.members]
        found = fit_nets(NETS[row.model], self.data, each, self.fold)(self.fold.test)  # (seeds * K, n)
        return found.reshape(len(self.seeds), self.targets.shape[1], -1)


class _Scoring:
    """Scores rows on the test utterances of all folds together."""

    def __init__(
        self,
        labels: LabelTable,
        folds: Sequence[LabelFold],
        targets: Floats,
        emotions: Sequence[str],
        estimates: dict[ModelRow, list[Floats]],
    ) -> None:
        rows: Rows = np.concatenate([fold.test for fold in folds])
        self.emotions, self.truth = emotions, targets[rows].T  # (K, n)
        self.folds = [index for index, fold in enumerate(folds) for _ in fold.test]
        self.clusters = [labels.items[row].conversation for row in rows]
        self.estimates = {row: np.concatenate(parts, axis=2) for row, parts in estimates.items()}  # (seeds, K, n)

    def scores(self) -> Iterator[RowScore]:
        edges = np.flatnonzero(np.diff(self.folds)) + 1
        for (k, emotion), (row, found) in itertools.product(enumerate(self.emotions), self.estimates.items()):
            of_folds = np.array(
                [
                    [
                        ccc(part, true)
                        for part, true in zip(np.split(seed[k], edges), np.split(self.truth[k], edges), strict=True)
                    ]
                    for seed in found
                ]
            )  # (seeds, folds)
            pooled = float(np.mean([ccc(seed[k], self.truth[k]) for seed in found]))
            yield RowScore(
                row, emotion, tuple(of_folds.mean(axis=1).tolist()), tuple(of_folds.mean(axis=0).tolist()), pooled,
                self._compare(k, found, np.zeros_like(found[:1])),
            )  # fmt: skip

    def differences(self, rows: Sequence[ModelRow]) -> Iterator[RowDifference]:
        pairs = [(name, first, second) for name, first, second in compared(rows)]
        for (k, emotion), (name, first, second) in itertools.product(enumerate(self.emotions), pairs):
            comparison = self._compare(k, self.estimates[first], self.estimates[second])
            yield RowDifference(name, first, second, emotion, comparison)

    def _compare(self, k: int, first: Floats, second: Floats) -> Comparison:
        return compare(first[:, k], second[:, k], self.truth[k], self.clusters, folds=self.folds)


def compared(rows: Sequence[ModelRow]) -> Iterator[tuple[str, ModelRow, ModelRow]]:
    """(name, first, second) of the differences that matter: what traits, interaction and predictions add."""
    for form in dict.fromkeys(row.form for row in rows):
        mine = {(row.model, row.traits): row for row in rows if row.form == form and row.traits == row.trained_with}
        acoustics, both = mine[ACOUSTICS, NONE], mine[BOTH, TRUE]
        yield "both − acoustics", both, acoustics
        yield "both − traits only", both, mine[TRAITS_ONLY, TRUE]
        interacting = PRODUCTS if form == "linear" else MODULATION
        for model in (interacting, OWN_RIDGE, CA):
            if (model, TRUE) in mine:
                yield f"{model} − both", mine[model, TRUE], both
        for model in (BOTH, *((PRODUCTS, OWN_RIDGE) if form == "linear" else (MODULATION,))):
            yield f"{model}, shuffled − acoustics", mine[model, SHUFFLED], acoustics
        for (model, source), row in mine.items():
            if source in PREDICTED or source.startswith("noise_"):
                yield f"{model}, {source} − acoustics", row, acoustics
    for row in rows:
        if row.traits != row.trained_with:
            name = f"{row.model}, {row.traits}, trained with true − acoustics"
            yield name, row, next(other for other in rows if other.model == ACOUSTICS and other.form == row.form)
