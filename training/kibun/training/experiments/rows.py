"""The lines of tables that estimate emotion: trained models, models tested with other traits, and the control rows.

A line is an `Entry`: which runs it needs, and what it says of a column's test utterances. The controls belong in every
table that conditions on traits, because a gain of conditioning can come from the traits alone, without any audio.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.corpora.tipi import SHORT_NAMES
from kibun.training.evaluation.predictions import Prediction
from kibun.training.evaluation.report_table import STARS_NOTE
from kibun.training.experiments.run_store import Runs
from kibun.training.experiments.scores import Draws, Line, Score, score
from kibun.training.experiments.study import SHUFFLED, TRUTH, UNCONDITIONED, Place, Study
from kibun.training.runs.config import ConfigError, RunConfig, TraitOptions
from kibun.training.runs.trait_source import predicted_traits, true_traits

TITLES = {"baseline": "baseline", "regression": "regression", "concat": "Concat", "ca": "CA", "ticn-ca": "TICN-CA"}
PUBLISHED_FOR = ("paper", "paper_2to5")  # splits whose test half is the paper's

CONTROL_NOTES = (
    "traits only: linear regression from the true traits to the emotion, fitted on train; it hears nothing. Where"
    " traits were rated from the conversations whose emotion is estimated, as in PA-IEMOCAP, it shows how much of a"
    " gain needs no audio.",
    "shuffled traits: trained, chosen and tested with each profile's traits exchanged for those of another one.",
)
STARS_AGAINST = (
    "Stars: better or worse than the baseline by paired cluster bootstrap over speaker-conversations, seeds averaged;"
    f" {STARS_NOTE}; not corrected for the number of lines."
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A dimension and a split, with their utterances."""

    name: str
    place: Place
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    warnings: tuple[str, ...]

    @property
    def truth(self) -> NDArray[np.float64]:
        """(N,) labels of test."""
        return np.array([getattr(item, self.place.dimension) for item in self.test], np.float64)

    @property
    def clusters(self) -> list[tuple[str, ...]]:
        """N speaker-conversations of test."""
        return [item.conversation for item in self.test]


Needs = Callable[[Place, int], list[RunConfig]]
Estimates = Callable[[Column, int], Draws]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line to be. needs: the runs of a place and seed. estimates: what they say of a column's test.

    seeds: None for those of the study. published: by dimension, with the paper's splits.
    """

    label: str
    about: Mapping[str, Any]
    needs: Needs
    estimates: Estimates
    seeds: tuple[int, ...] | None = None
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)


def read_column(study: Study, place: Place, name: str) -> Column:
    """The utterances of a place, every one with its label and with traits.

    Raises ManifestError for labels, traits or splits that are missing, ConfigError where there is too little to judge.
    """
    from kibun.training.runs.run import read_corpus

    corpus = read_corpus(study.mtl(place, study.seeds[0]))  # which needs emotion and traits
    for split, items in corpus.items.items():
        profiles = len({item.conversation for item in items})
        if profiles < 2:
            raise ConfigError(
                f"{study.emotion.manifest}: split {split!r} has one speaker-conversation; shuffled traits and the"
                " bootstrap need two or more"
            )
    return Column(name, place, tuple(corpus.items["train"]), tuple(corpus.items["test"]), corpus.warnings)


def trained(
    study: Study,
    runs: Runs,
    head: str,
    condition_on: Sequence[str] = TRAITS,
    *,
    label: str | None = None,
    traits: TraitOptions = TRUTH,
    published: Mapping[str, float] | None = None,
) -> Entry:
    """A model as it was trained and tested."""

    def needs(place: Place, seed: int) -> list[RunConfig]:
        return [study.ser(place, seed, head, condition_on, traits)]

    def estimates(column: Column, seed: int) -> Draws:
        rows = runs.predictions(needs(column.place, seed)[0], column.test)
        return [np.array([getattr(row.predicted, column.place.dimension) for row in rows], np.float64)]

    about: dict[str, Any] = {"model": head}
    if head not in UNCONDITIONED:
        about |= {"traits": list(condition_on), "trained_with": traits.source, "tested_with": traits.source}
    return Entry(label or _label(head, condition_on), about, needs, estimates, published=published or {})


def tested_with_predicted(study: Study, runs: Runs, head: str, setting: str, label: str) -> Entry:
    """Trained with true traits, tested with those that the personality run of the same seed predicts."""

    def needs(place: Place, seed: int) -> list[RunConfig]:
        return [study.pr(seed, place.splits), study.ser(place, seed, head)]

    def estimates(column: Column, seed: int) -> Draws:
        (rows,) = hear_with_predicted(study, runs, head, [setting], column, seed)
        return [np.array([getattr(row.predicted, column.place.dimension) for row in rows], np.float64)]

    about = {"model": head, "traits": list(TRAITS), "trained_with": "truth", "tested_with": setting}
    return Entry(label, about, needs, estimates)


def hear_with_predicted(
    study: Study, runs: Runs, head: str, settings: Sequence[str], column: Column, seed: int
) -> list[list[Prediction]]:
    """What a model trained with true traits says of test with the predicted ones of each setting; encoded once."""
    personality = runs.folder_of(study.pr(seed, column.place.splits))
    conditions = {f"predicted-{setting}": predicted_traits(column.test, personality, setting) for setting in settings}
    return list(runs.under(study.ser(column.place, seed, head), column.test, conditions).values())


def trained_with_predicted(study: Study, runs: Runs, head: str, setting: str, label: str) -> Entry:
    """Trained, chosen and tested with the traits that the personality run of the same seed predicts."""

    def needs(place: Place, seed: int) -> list[RunConfig]:
        personality = study.pr(seed, place.splits)
        source = TraitOptions("predicted", run=str(runs.folder_of(personality)), setting=setting)
        return [personality, study.ser(place, seed, head, TRAITS, source)]

    def estimates(column: Column, seed: int) -> Draws:
        rows = runs.predictions(needs(column.place, seed)[1], column.test)
        return [np.array([getattr(row.predicted, column.place.dimension) for row in rows], np.float64)]

    about = {"model": head, "traits": list(TRAITS), "trained_with": setting, "tested_with": setting}
    return Entry(label, about, needs, estimates)


def controls(study: Study, runs: Runs, shuffled: Sequence[str]) -> list[Entry]:
    """`traits only`, and a line of shuffled traits for each of these conditioned heads."""
    rows = [Entry("traits only", {"model": "traits only", "traits": list(TRAITS)}, _nothing, _traits_only, seeds=(0,))]
    rows += [trained(study, runs, head, label=f"{TITLES[head]}, shuffled traits", traits=SHUFFLED) for head in shuffled]
    return rows


def plan(study: Study, places: Sequence[Place], entries: Sequence[Entry]) -> list[RunConfig]:
    """All runs of these lines, each after those that it needs, seed after seed."""
    return [
        config
        for seed in study.seeds
        for place in places
        for entry in entries
        if entry.seeds is None
        for config in entry.needs(place, seed)
    ]


def fill(study: Study, runs: Runs, columns: Sequence[Column], entries: Sequence[Entry]) -> list[Line]:
    """The lines, each compared with the first entry, which is the baseline."""
    baseline = {column: [entries[0].estimates(column, seed) for seed in study.seeds] for column in columns}
    lines = []
    for entry in entries:
        scores: dict[str, Score] = {}
        for column in columns:
            seeds = entry.seeds or study.seeds
            published = entry.published if column.place.splits in PUBLISHED_FOR else {}
            scores[column.name] = score(
                column.truth,
                column.clusters,
                [entry.estimates(column, seed) for seed in seeds],
                None if entry is entries[0] else baseline[column],
                published=published.get(column.place.dimension),
                runs=names(runs, entry, column.place, seeds),
            )
        lines.append(Line(entry.label, entry.about, scores))
    return lines


def names(runs: Runs, entry: Entry, place: Place, seeds: Sequence[int]) -> list[str]:
    """Names of the runs that a line's figure comes from."""
    return [runs.name(config) for seed in seeds for config in entry.needs(place, seed)]


def check_heads(heads: Sequence[str], option: str, *, conditioned: bool = False) -> None:
    """ConfigError for a head that does not exist, or, with `conditioned`, that does not look at traits."""
    allowed = [head for head in TITLES if not (conditioned and head in UNCONDITIONED)]
    for head in heads:
        if head not in allowed:
            kind = "conditioned model" if conditioned else "model"
            raise ConfigError(f"{option}: {head!r} is no {kind}; allowed are {', '.join(allowed)}")


def check_settings(settings: Sequence[str], option: str, allowed: Sequence[str]) -> None:
    """ConfigError for a value that the option does not know."""
    for setting in settings:
        if setting not in allowed:
            raise ConfigError(f"{option}: {setting!r} is unknown; allowed are {', '.join(allowed)}")


def _label(head: str, condition_on: Sequence[str]) -> str:
    if head in UNCONDITIONED:
        return TITLES[head]
    which = "all" if tuple(condition_on) == TRAITS else "+".join(SHORT_NAMES[trait] for trait in condition_on)
    return f"{TITLES[head]}, {which}"


def _nothing(_place: Place, _seed: int) -> list[RunConfig]:
    return []


def _traits_only(column: Column, _seed: int) -> Draws:
    """Least squares with an intercept from (N, 5) true traits of train, applied to test."""
    train, test = (
        np.column_stack([np.ones(len(items)), true_traits(items).astype(np.float64)])
        for items in (column.train, column.test)
    )
    labels = np.array([getattr(item, column.place.dimension) for item in column.train], np.float64)
    weights = np.linalg.lstsq(train, labels, rcond=None)[0]  # (6,)
    return [test @ weights]
