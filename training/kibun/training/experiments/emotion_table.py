"""Tables whose rows estimate emotion: models by the traits that they are trained and tested with, and control rows.

The controls belong in every table that conditions on traits, because conditioning can gain from the traits alone,
without any audio.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.corpora.tipi import SHORT_NAMES
from kibun.training.evaluation.predictions import pairs_of
from kibun.training.experiments import notes
from kibun.training.experiments.run_store import RunStore
from kibun.training.experiments.scores import CommandOutput, Draws, Score, ScoreLine, ScoreTable, mean_score, score
from kibun.training.experiments.study import UNCONDITIONED, Place, Study
from kibun.training.runs.config import SETTINGS, ConfigError, RunConfig, Source, TraitOptions
from kibun.training.runs.trait_source import add_noise, predicted_traits, true_traits

TITLES = {"baseline": "baseline", "regression": "regression", "concat": "Concat", "ca": "CA", "ticn-ca": "TICN-CA"}

CONTROL_NOTES = (
    "traits only: linear regression from the true traits to the emotion, fitted on train, without any audio. Where"
    " traits were rated from the conversations whose emotion is estimated, as in PA-IEMOCAP, it shows how much of a"
    " gain needs no audio.",
    "shuffled traits: trained, chosen and tested with each profile's traits exchanged for those of another one.",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row: an emotion head, and the traits it is trained and tested with.

    head: None for a linear regression from the true traits, without audio.
    condition_on: the traits that a conditioned head sees.
    trained_with: "truth", "shuffled", or one of SETTINGS, predicted by the personality run of the same seed.
    tested_with: the same, or "noisy" (sigma, draws) or one of SETTINGS after training with the truth.
    sigma: standard deviation of the noise on the 1..7 scale. draws: number of draws that the figure is the mean of.
    """

    label: str
    head: str | None
    condition_on: tuple[str, ...] = TRAITS
    trained_with: str = "truth"
    tested_with: str = "truth"
    sigma: float = 0.0
    draws: int = 0

    @property
    def about(self) -> dict[str, Any]:
        """Fields of the row in JSON."""
        if self.head is None:
            return {"model": self.label, "traits": list(TRAITS)}
        if self.head in UNCONDITIONED:
            return {"model": self.head}
        traits = {"trained_with": self.trained_with, "tested_with": self.tested_with}
        noise = {"sigma": self.sigma} if self.tested_with == "noisy" else {}
        return {"model": self.head, "traits": list(self.condition_on), **traits, **noise}


@dataclasses.dataclass(frozen=True)
class Fold:
    """A dimension and splits, with the utterances of train and test. warnings: about the splits."""

    place: Place
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Column:
    """Scores over the test utterances of all folds together; `averaged`: the mean of the folds' scores instead."""

    name: str
    folds: tuple[Fold, ...]
    averaged: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One report of a table."""

    name: str
    title: str
    columns: tuple[Column, ...]


@dataclasses.dataclass(frozen=True)
class EmotionTable:
    """A table of emotion. The first entry is the baseline, which the others are compared with.

    fold_names: names of the folds where the table has its own, instead of the settings' splits.
    """

    table: str
    study: Study
    runs: RunStore
    entries: tuple[Entry, ...]
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
    fold_names: tuple[str, ...] = ()

    def plan(self) -> list[RunConfig]:
        """The runs that it needs, each after those that it needs itself, seed after seed."""
        return [
            config
            for seed in self.study.seeds
            for fold in self._folds
            for entry in self.entries
            for config in self._needs(entry, fold.place, seed)
        ]

    def evaluate(self) -> CommandOutput:
        """The table, from finished runs."""
        self._test_with_other_traits()
        warnings = tuple(dict.fromkeys(warning for fold in self._folds for warning in fold.warnings))
        facts = {"folds": list(self.fold_names)} if self.fold_names else {}
        reports = tuple(self._report(sheet, warnings) for sheet in self.sheets)
        return CommandOutput(self.table, reports, warnings, {**notes.facts(self.study), **facts})

    @property
    def _folds(self) -> list[Fold]:
        return list({fold.place: fold for sheet in self.sheets for c in sheet.columns for fold in c.folds}.values())

    def _needs(self, entry: Entry, place: Place, seed: int) -> list[RunConfig]:
        """The runs of a row; the last one estimates the emotion."""
        if entry.head is None:
            return []
        personality = self.study.pr(seed, place.splits)
        traits = TraitOptions(source=cast(Source, entry.trained_with))
        if entry.trained_with in SETTINGS:
            run = str(self.runs.folder_of(personality))
            traits = TraitOptions("predicted", run=run, setting=entry.trained_with)
        emotion = self.study.ser(place, seed, entry.head, entry.condition_on, traits)
        return [personality, emotion] if entry.tested_with in SETTINGS else [emotion]

    def _other_traits(self, entry: Entry, fold: Fold, seed: int) -> dict[str, NDArray[np.float32]]:
        """(N, 5) traits of test by name that the trained model is tested with; none: those it was trained with."""
        if entry.trained_with == entry.tested_with:
            return {}
        if entry.tested_with == "noisy":
            truth = true_traits(fold.test)
            draws = range(entry.draws if entry.sigma else 0)
            return {f"noise{entry.sigma:g}-draw{k}": add_noise(fold.test, truth, entry.sigma, k) for k in draws}
        run = self.runs.folder_of(self.study.pr(seed, fold.place.splits))
        return {f"predicted-{entry.tested_with}": predicted_traits(fold.test, run, entry.tested_with)}

    def _test_with_other_traits(self) -> None:
        """Test each model with the traits of all of its rows at once, so that it encodes an utterance only once."""
        for fold in self._folds:
            for seed in self.study.seeds:
                wanted: dict[str, tuple[RunConfig, dict[str, NDArray[np.float32]]]] = {}
                for entry in self.entries:
                    for model in self._needs(entry, fold.place, seed)[-1:]:
                        traits = self._other_traits(entry, fold, seed)
                        wanted.setdefault(self.runs.name(model), (model, {}))[1].update(traits)
                for model, traits in wanted.values():
                    self.runs.under(model, fold.test, traits)

    def _estimates(self, entry: Entry, fold: Fold, seed: int) -> Draws:
        if entry.head is None:
            return [_regression(fold)]
        model = self._needs(entry, fold.place, seed)[-1]
        if traits := self._other_traits(entry, fold, seed):
            draws = list(self.runs.under(model, fold.test, traits).values())
        else:
            draws = [self.runs.predictions(model, fold.test)]
        return [pairs_of(rows, fold.place.dimension)[0] for rows in draws]

    def _report(self, sheet: Sheet, warnings: tuple[str, ...]) -> ScoreTable:
        columns = sheet.columns
        baselines = [[self._together(self.entries[0], c, seed) for seed in self.study.seeds] for c in columns]
        lines = []
        for entry in self.entries:
            against = [None] * len(columns) if entry is self.entries[0] else baselines
            scores = {c.name: self._score(entry, c, base) for c, base in zip(columns, against, strict=True)}
            lines.append(ScoreLine(entry.label, entry.about, scores))
        size = notes.test_size([item for fold in columns[-1].folds for item in fold.test])
        in_folds = f" in {len(self.fold_names)} folds" if self.fold_names else ""
        below = (
            f"{size}{in_folds}. {notes.spread(self.study)}",
            notes.STARS_AGAINST.format("baseline"),
            *self.notes,
            *CONTROL_NOTES,
            *notes.closing(self.study, warnings),
        )
        report = ScoreTable(sheet.name, sheet.title, "CCC", tuple(c.name for c in columns), tuple(lines), below)
        splits = [fold.place.splits for column in columns for fold in column.folds]
        return notes.beside_published(report, self.table, splits, f"{sheet.name}, " if self.fold_names else "")

    def _score(self, entry: Entry, column: Column, baseline: Sequence[Draws] | None) -> Score:
        """The score, compared with the baseline's estimates of each seed; a mean over folds is not compared."""
        if column.averaged:
            return mean_score([self._score(entry, Column(column.name, (fold,)), None) for fold in column.folds])
        seeds = self.study.seeds if entry.head is not None else (0,)  # nothing in a regression is random
        place = column.folds[0].place
        return score(
            np.concatenate([_truth(fold.test, place.dimension) for fold in column.folds]),
            [item.conversation for fold in column.folds for item in fold.test],
            [self._together(entry, column, seed) for seed in seeds],
            baseline,
            runs=[
                self.runs.name(config)
                for fold in column.folds
                for seed in seeds
                for config in self._needs(entry, fold.place, seed)
            ],
        )

    def _together(self, entry: Entry, column: Column, seed: int) -> Draws:
        """Each draw's estimates of all folds of a column, one after the other."""
        folds = [self._estimates(entry, fold, seed) for fold in column.folds]
        return [np.concatenate(draws) for draws in zip(*folds, strict=True)]


def conditioned(head: str, traits: tuple[str, ...]) -> Entry:
    """A head trained and tested with these true traits."""
    return Entry(f"{TITLES[head]}, {short(traits)}", head, traits)


def short(traits: tuple[str, ...]) -> str:
    """A set of traits as a row names it: "all", or "OP"."""
    return "all" if traits == TRAITS else "+".join(SHORT_NAMES[trait] for trait in traits)


def controls(*heads: str) -> list[Entry]:
    """`traits only`, and a row of shuffled traits for each of these conditioned heads."""
    shuffled = [
        Entry(f"{TITLES[head]}, shuffled traits", head, trained_with="shuffled", tested_with="shuffled")
        for head in heads
    ]
    return [Entry("traits only", None), *shuffled]


def read_fold(study: Study, place: Place, name: str | None = None) -> Fold:
    """The utterances of a place, every one labelled with its emotion and with traits. name: begins each warning.

    Raises ManifestError for labels, traits or splits that are missing, ConfigError where there is too little to judge.
    """
    from kibun.training.runs.run import read_corpus

    corpus = read_corpus(study.mtl(place, study.seeds[0]))  # which needs emotion and traits
    for split, items in corpus.items.items():
        if len({item.conversation for item in items}) < 2:
            raise ConfigError(
                f"{study.emotion.manifest}: split {split!r} has one speaker-conversation; shuffled traits and the"
                " bootstrap need two or more"
            )
    warnings = tuple(warning if name is None else f"{name}: {warning}" for warning in corpus.warnings)
    return Fold(place, tuple(corpus.items["train"]), tuple(corpus.items["test"]), warnings)


def _truth(items: tuple[Item, ...], dimension: str) -> NDArray[np.float64]:
    """(N,) labels."""
    return np.array([getattr(item, dimension) for item in items], np.float64)


def _regression(fold: Fold) -> NDArray[np.float64]:
    """(N,) emotion of test by least squares with an intercept from train's (M, 5) true traits."""
    train, test = (
        np.column_stack([np.ones(len(items)), true_traits(items).astype(np.float64)])
        for items in (fold.train, fold.test)
    )
    weights = np.linalg.lstsq(train, _truth(fold.train, fold.place.dimension), rcond=None)[0]  # (6,)
    estimates: NDArray[np.float64] = test @ weights
    return estimates
