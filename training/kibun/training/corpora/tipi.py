"""The published annotations of PA-IEMOCAP: ten TIPI items from six raters, and the traits computed from them.

A profile is one speaker of one dialogue, keyed (dialogue id, "f" or "m").
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAIT_SCALE, TRAITS, Traits
from kibun.training.corpora.lines import as_float

RATERS, ITEMS = 6, 10
GENDERS = ("f", "m")

# Items counted from 1, in the order of TRAITS: (scored directly, scored in reverse).
ITEM_PAIRS = ((5, 10), (3, 8), (1, 6), (7, 2), (4, 9))
# Columns of ocean.csv, in the order of TRAITS.
OCEAN_COLUMNS = ("OP", "CO", "EX", "AG", "NE")
SHORT_NAMES = dict(zip(TRAITS, OCEAN_COLUMNS, strict=True))

Profile = tuple[str, str]


class LabelError(ValueError):
    """A file of annotations cannot be used. The message names file, line, field and the fix."""


def correct_dialogue(name: str) -> str:
    """IEMOCAP's own spelling of a dialogue id: 29 ids are published as `Ses01M_script1_1` for `Ses01M_script01_1`."""
    return re.sub(r"script(\d)_", r"script0\1_", name)


def read_tipi(path: Path) -> dict[Profile, NDArray[np.float64]]:
    """(6 raters, 10 items) of every profile, 1..7, from `dialogue_id,gender,tipi,rater1,…,rater6`; ids are corrected.

    Raises LabelError: the file is unreadable, or a column or item is missing, a value outside 1..7, an item repeated.
    """
    raters = tuple(f"rater{number}" for number in range(1, RATERS + 1))
    table: dict[Profile, NDArray[np.float64]] = {}
    for where, row in _rows(path, ("dialogue_id", "gender", "tipi", *raters)):
        number = row["tipi"].strip()
        if number not in map(str, range(1, ITEMS + 1)):
            raise LabelError(f"{where}: field 'tipi' is {number!r}, must be an item from 1 to {ITEMS}")
        items = table.setdefault(_profile(where, row), np.full((RATERS, ITEMS), np.nan))
        column = items[:, int(number) - 1]  # a view: writing it fills the profile
        if not np.isnan(column).all():
            raise LabelError(f"{where}: item {number} of this profile was given before; keep one of the two lines")
        column[:] = [_score(where, row, rater) for rater in raters]
    for (dialogue, gender), items in table.items():
        missing = [str(index + 1) for index in range(ITEMS) if np.isnan(items[:, index]).any()]
        if missing:
            raise LabelError(f"{path}: {dialogue} {gender}: field 'tipi': items {', '.join(missing)} are missing")
    return table


def trait_scores(items: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, 10) items -> (…, 5) traits in the order of TRAITS, 1..7: `(a - b + 8) / 2` with b the reversed item."""
    straight = [pair[0] - 1 for pair in ITEM_PAIRS]
    reverse = [pair[1] - 1 for pair in ITEM_PAIRS]
    return (items[..., straight] - items[..., reverse] + 8) / 2


def read_ocean(path: Path) -> dict[Profile, tuple[str, Traits]]:
    """(file:line, traits on 1..7) of every profile from `dialogue_id,gender,EX,AG,CO,NE,OP`; ids are corrected.

    Raises LabelError: the file is unreadable, or a column is missing, a value outside 1..7, a profile repeated.
    """
    table: dict[Profile, tuple[str, Traits]] = {}
    for where, row in _rows(path, ("dialogue_id", "gender", *OCEAN_COLUMNS)):
        profile = _profile(where, row)
        if profile in table:
            raise LabelError(f"{where}: profile {' '.join(profile)} was given before; keep one of the two lines")
        table[profile] = where, cast(Traits, tuple(_score(where, row, column) for column in OCEAN_COLUMNS))
    return table


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(file:line, row) of every line after the header. Raises LabelError unless all `columns` exist and are filled."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read ({error}); name the CSV file of PA-IEMOCAP") from error
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise LabelError(f"{path}:1: no column {', '.join(missing)}; the header must be {','.join(columns)}")
    empty = True
    for row in reader:
        empty = False
        where = f"{path}:{reader.line_num}"
        for column in columns:
            if not row[column]:
                raise LabelError(f"{where}: field {column!r} is empty")
        yield where, row
    if empty:
        raise LabelError(f"{path}: has a header but no lines")


def _profile(where: str, row: dict[str, str]) -> Profile:
    gender = row["gender"].strip().lower()
    if gender not in GENDERS:
        raise LabelError(f"{where}: field 'gender' is {row['gender']!r}, must be one of {', '.join(GENDERS)}")
    return correct_dialogue(row["dialogue_id"].strip()), gender


def _score(where: str, row: dict[str, str], column: str) -> float:
    value = as_float(row[column])
    low, high = TRAIT_SCALE
    if not low <= value <= high:  # false for NaN as well
        raise LabelError(f"{where}: field {column!r} is {row[column]!r}, must be a number from {low:g} to {high:g}")
    return value
