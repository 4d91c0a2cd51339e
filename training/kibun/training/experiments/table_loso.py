"""Table VIII: leave one session out. Each fold is trained and tested by itself; then the folds together."""

import dataclasses
import statistics
from collections.abc import Sequence

import numpy as np

from kibun.training.experiments import notes as said
from kibun.training.experiments.rows import (
    CONTROL_NOTES,
    STARS_AGAINST,
    TITLES,
    Column,
    Entry,
    check_heads,
    check_settings,
    controls,
    fill,
    names,
    plan,
    read_column,
    tested_with_predicted,
    trained,
)
from kibun.training.experiments.run_store import Runs
from kibun.training.experiments.scores import Draws, Line, Report, Result, Score, score
from kibun.training.experiments.study import Place, Study, find_splits
from kibun.training.experiments.table_conditioning import TRAITS_FROM, in_words
from kibun.training.runs.config import ConfigError, RunConfig

FOLDS = ("loso_1", "loso_2", "loso_3", "loso_4", "loso_5")
MEAN, POOLED = "mean of folds", "pooled"


@dataclasses.dataclass(frozen=True)
class Loso:
    """One report for each dimension; columns: the folds, the mean of their CCCs, the CCC over all their utterances."""

    study: Study
    runs: Runs
    folds: tuple[str, ...]
    columns: dict[str, tuple[Column, ...]]  # by dimension, one for each fold
    entries: tuple[Entry, ...]

    def plan(self) -> list[RunConfig]:
        """The runs that it needs, in the order to train them."""
        places = [column.place for columns in self.columns.values() for column in columns]
        return plan(self.study, places, self.entries)

    def evaluate(self) -> Result:
        """The table, from finished runs."""
        everything = [column for columns in self.columns.values() for column in columns]
        warnings = tuple(
            dict.fromkeys(f"{column.name}: {warning}" for column in everything for warning in column.warnings)
        )
        reports = tuple(self._report(dimension, columns, warnings) for dimension, columns in self.columns.items())
        return Result("VIII", reports, warnings, {**said.facts(self.study), "folds": list(self.folds)})

    def _report(self, dimension: str, columns: tuple[Column, ...], warnings: tuple[str, ...]) -> Report:
        lines = fill(self.study, self.runs, columns, self.entries)
        pooled = self._pooled(columns)
        lines = [
            Line(line.label, line.about, {**line.scores, MEAN: _mean(line, columns), POOLED: pooled[line.label]})
            for line in lines
        ]
        tested = sum(len(column.test) for column in columns)
        profiles = sum(len(set(column.clusters)) for column in columns)
        notes = (
            f"Test: {tested} utterances of {profiles} speaker-conversations in {len(columns)} folds."
            f" {said.spread(self.study)}",
            STARS_AGAINST,
            f"{POOLED}: one CCC over the test utterances of all folds; {MEAN}: of their CCCs, without a test.",
            "No figures of the paper's table are at hand; none are shown.",
            *CONTROL_NOTES,
            *said.closing(self.study, warnings),
        )
        names = (*(column.name for column in columns), MEAN, POOLED)
        return Report(dimension, f"Table VIII: {dimension}, leave one session out", "CCC", names, tuple(lines), notes)

    def _pooled(self, columns: Sequence[Column]) -> dict[str, Score]:
        """The score of each line over all folds' utterances together."""
        truth = np.concatenate([column.truth for column in columns])
        clusters = [cluster for column in columns for cluster in column.clusters]
        baseline = [self._together(self.entries[0], columns, seed) for seed in self.study.seeds]
        return {
            entry.label: score(
                truth,
                clusters,
                [self._together(entry, columns, seed) for seed in entry.seeds or self.study.seeds],
                None if entry is self.entries[0] else baseline,
                runs=[
                    name
                    for column in columns
                    for name in names(self.runs, entry, column.place, entry.seeds or self.study.seeds)
                ],
            )
            for entry in self.entries
        }

    def _together(self, entry: Entry, columns: Sequence[Column], seed: int) -> Draws:
        return [np.concatenate([entry.estimates(column, seed)[0] for column in columns])]


def loso(study: Study, runs: Runs, head: str, folds: Sequence[str], traits_from: Sequence[str]) -> Loso:
    """Baseline, and one head trained with true traits and tested with true and with predicted ones, fold by fold.

    folds: names or paths of splits, which take the place of the settings' own.
    Raises ConfigError for an unknown head or setting, no such splits, and folds that test an utterance twice; errors of
    the corpus as `read_column` does.
    """
    check_heads([head], "--model", conditioned=True)
    check_settings(traits_from, "--traits-from", tuple(TRAITS_FROM))
    splits = [find_splits(fold) for fold in folds]
    entries = [trained(study, runs, "baseline")]
    for name in traits_from:
        if name == "oracle":
            entries.append(trained(study, runs, head, label=f"{TITLES[head]}, true traits"))
        else:
            label = f"{TITLES[head]}, {in_words(name)}"
            entries.append(tested_with_predicted(study, runs, head, TRAITS_FROM[name], label))
    entries += controls(study, runs, [head])
    columns = {
        dimension: tuple(
            read_column(study, Place(dimension, where), fold) for fold, where in zip(folds, splits, strict=True)
        )
        for dimension in study.dimensions
    }
    _check_disjoint(columns[study.dimensions[0]])
    return Loso(study, runs, tuple(folds), columns, tuple(entries))


def _mean(line: Line, columns: Sequence[Column]) -> Score:
    """Mean over the folds for each seed."""
    folds = [line.scores[column.name] for column in columns]
    values = tuple(statistics.fmean(values) for values in zip(*(fold.values for fold in folds), strict=True))
    return Score(values, runs=tuple(name for fold in folds for name in fold.runs))


def _check_disjoint(columns: Sequence[Column]) -> None:
    first: dict[str, str] = {}
    for column in columns:
        for item in column.test:
            if item.id in first:
                raise ConfigError(
                    f"--folds: utterance {item.id!r} is tested by {first[item.id]} and by {column.name}; pooled figures"
                    " need folds without common test utterances"
                )
            first[item.id] = column.name
