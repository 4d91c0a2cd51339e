"""Folds of utterances: leave one session out, or a splits file."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kibun.training.corpora.label_table import LabelTable
from kibun.training.corpora.manifest import Item
from kibun.training.corpora.splits import read_splits, resolve_splits
from kibun.training.errors import ManifestError

LOSO = "loso"
FEWEST_PARTS, MOST_PARTS = 3, 5
FEWEST_PROFILES = {"train": 4, "test": 2}
DEV_SHARE = 0.2  # of training dialogues, where the splits have no dev part

Rows = NDArray[np.intp]


@dataclasses.dataclass(frozen=True)
class LabelFold:
    """Row numbers of one fold, rising.

    train: what linear models are fitted on. fit, dev: what nets are trained on, and what chooses their best epoch; dev
    is a part of train, or the splits' own. test: what is scored. parts: of every row that of train which it belongs to,
    -1 outside; a part is some sessions, or some dialogues where train has fewer than three sessions.
    """

    name: str
    train: Rows
    fit: Rows
    dev: Rows
    test: Rows
    parts: NDArray[np.intp]

    def without_parts(self) -> Iterator[tuple[Rows, Rows]]:
        """(the other parts of train, a part) for each."""
        for part in np.unique(self.parts[self.train]):
            inside = self.parts[self.train] == part
            yield self.train[~inside], self.train[inside]


def make_folds(labels: LabelTable, splits: str) -> list[LabelFold]:
    """One fold for each session, or the one of a splits file (by name or path, as for a manifest).

    Raises ManifestError: fewer than two sessions, too few speaker-conversations in train or test, or no such splits.
    """
    found = list(_sessions(labels) if splits == LOSO else _splits(labels, splits))
    for fold in found:
        for name, rows in (("train", fold.train), ("test", fold.test)):
            count, fewest = len({labels.items[row].conversation for row in rows}), FEWEST_PROFILES[name]
            if count < fewest:
                raise ManifestError(f"{fold.name}: {name} has {count} speaker-conversations, needs {fewest} or more")
    return found


def warnings_about(labels: LabelTable, folds: Sequence[LabelFold]) -> Iterator[str]:
    """What a reader of the results should know."""
    shared: set[str] = set()
    for fold in folds:
        train, test = ({labels.items[row].speaker for row in rows} for rows in (fold.train, fold.test))
        shared |= train & test
    if shared:
        names = ", ".join(sorted(shared)[:3]) + (", …" if len(shared) > 3 else "")
        yield f"speakers of the same name in train and test ({names}): if they are the same people, scores are too high"
    beside = len(labels.items) - len(set().union(*(fold.test for fold in folds), *(fold.train for fold in folds)))
    outside = beside - len(set().union(*(np.setdiff1d(fold.dev, fold.train) for fold in folds)))
    if outside > 0:
        yield f"utterances of dialogues that the splits do not name, left out: {outside}"
    for fold in folds:
        own = np.setdiff1d(fold.dev, fold.train)
        both = {labels.items[row].speaker for row in own} & {labels.items[row].speaker for row in fold.test}
        if both:
            names = ", ".join(sorted(both))
            yield f"dev and test share the speakers {names}: nets are chosen on voices that they are tested on"


def _sessions(labels: LabelTable) -> Iterator[LabelFold]:
    if labels.groups is None:
        raise ManifestError(
            "leaving one session out needs sessions: add a column 'session' to the labels; only IEMOCAP's dialogue ids"
            " tell it by themselves"
        )
    groups = np.array(labels.groups)
    names = sorted(set(labels.groups))
    if len(names) < 2:
        raise ManifestError(f"leaving one session out needs two sessions or more, the labels have {names}")
    for name in names:
        train, test = np.flatnonzero(groups != name), np.flatnonzero(groups == name)
        yield _fold(f"without {name}", labels, train, None, test)


def _splits(labels: LabelTable, splits: str) -> Iterator[LabelFold]:
    homes, file = read_splits(splits), resolve_splits(splits)
    home = np.array([homes.get(item.dialogue, "") for item in labels.items])
    train, dev, test = (np.flatnonzero(home == name) for name in ("train", "dev", "test"))
    if not len(train) or not len(test):
        there = labels.items[0].dialogue
        raise ManifestError(f"{file}: names no dialogue of train or of test that the labels have (such as {there!r})")
    yield _fold(splits, labels, train, dev if len(dev) else None, test)


def _fold(name: str, labels: LabelTable, train: Rows, dev: Rows | None, test: Rows) -> LabelFold:
    groups = [labels.groups[row] for row in train] if labels.groups is not None else []
    units = groups if len(set(groups)) >= FEWEST_PARTS else units_of([labels.items[row] for row in train])
    number = {name: index for index, name in enumerate(sorted(set(units)))}
    parts = np.full(len(labels.items), -1)
    parts[train] = [number[unit] * min(len(number), MOST_PARTS) // len(number) for unit in units]
    if dev is not None:
        return LabelFold(name, train, train, dev, test, parts)
    fit, dev = split_dev(labels.items, train)
    return LabelFold(name, train, fit, dev, test, parts)


def split_dev(items: Sequence[Item], rows: Rows) -> tuple[Rows, Rows]:
    """(fit, dev): a fifth of the dialogues apart, at least one, always the same ones for the same rows."""
    units = np.array(units_of([items[row] for row in rows]))
    names = np.unique(units)
    count = max(1, round(DEV_SHARE * len(names)))
    chosen = np.random.default_rng(0).choice(names, count, replace=False)
    inside = np.isin(units, chosen)
    return rows[~inside], rows[inside]


def units_of(items: Sequence[Item]) -> list[str]:
    """What is kept together within train: dialogues, or speaker-conversations where there are fewer than four."""
    dialogues = [item.dialogue for item in items]
    return dialogues if len(set(dialogues)) >= 4 else [f"{item.dialogue}\n{item.speaker}" for item in items]
