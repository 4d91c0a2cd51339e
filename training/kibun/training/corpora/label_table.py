"""Features and labels of the same utterances: an array, a row each, and a table that names dialogue and speaker."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import EMOTIONS, TRAIT_SCALE, TRAITS, Traits
from kibun.training.corpora.iemocap_files import dialogue_session
from kibun.training.corpora.manifest import EMOTION_RANGE, Item
from kibun.training.corpora.report import raise_problems
from kibun.training.corpora.tipi import SHORT_NAMES, correct_dialogue
from kibun.training.corpora.user_tables import TableRow, needed_text, number, read_table
from kibun.training.errors import ManifestError

MOST_FEATURES, MOST_ROWS = 4096, 1_000_000
_ROWS_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Labelled utterances, without audio. groups: the session of each; None if the table has none."""

    items: tuple[Item, ...]
    groups: tuple[str, ...] | None


def read_label_table(path: Path, emotions: Sequence[str] = EMOTIONS) -> LabelTable:
    """The table's utterances in its order: .csv or .tsv with a header, or .jsonl.

    Columns: dialogue, speaker, those of ``emotions``, and the five traits by name or as OP, CO, EX, AG, NE, none of
    them empty; optionally id (default: the number of the row, from 0) and session. Without the latter, IEMOCAP's
    dialogue ids tell the session.

    Raises:
        ManifestError: the table cannot be read, or columns are missing.
        CorpusError: cells are empty or out of range, an id is there twice, or a speaker's traits or session differ
            within a dialogue; it lists all.
    """
    columns, rows = read_table(path)
    named = _columns(path, columns, emotions)
    problems: list[str] = []
    items: list[Item] = []
    groups: list[str | None] = []
    first: dict[object, tuple[str, Any]] = {}
    for index, row in enumerate(rows):
        try:
            item, group = _item(row, index, named), _group(row)
        except ManifestError as error:
            problems.append(str(error))
            continue
        items.append(item)
        groups.append(group)
        problems += _contradictions(row.where, item, group, first)
    raise_problems(f"{path}: cannot be used as labels", problems)
    known = [group for group in groups if group is not None]
    return LabelTable(tuple(items), tuple(known) if len(known) == len(items) else None)


def read_features(path: Path, rows: int) -> NDArray[np.float32]:
    """(rows, D) features of a .npy file, of any kind of number.

    Raises ManifestError: no such file, another shape, values that are not finite or no numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such file; write one with numpy.save: a row for each utterance") from error
    except (OSError, ValueError, EOFError) as error:
        # numpy takes what has no header for a pickle, and advises to load it: not said here.
        reason = "no array of numbers in numpy's .npy format" + ("" if "pickle" in str(error) else f" ({error})")
        raise ManifestError(f"{path}: {reason}; write one with numpy.save: a row for each utterance") from error
    if not isinstance(array, np.ndarray):
        raise ManifestError(f"{path}: holds several arrays; write one (N, D) with numpy.save")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ManifestError(f"{path}: has the shape {array.shape}, must be (N, D): a row for each utterance")
    if array.dtype.kind not in "fiub":
        raise ManifestError(f"{path}: holds values of type {array.dtype}, must hold real numbers")
    if len(array) != rows:
        raise ManifestError(f"{path}: has {len(array):,} rows, but the labels have {rows:,}; both need the same rows")
    if array.shape[1] > MOST_FEATURES or rows > MOST_ROWS:
        raise ManifestError(
            f"{path}: is {array.shape}, must have at most {MOST_ROWS:,} rows and {MOST_FEATURES:,} columns"
        )
    for start in range(0, rows, _ROWS_AT_ONCE):
        with np.errstate(over="ignore"):  # too large for float32: reported as not finite
            block = np.asarray(array[start : start + _ROWS_AT_ONCE], dtype=np.float32)
        if not np.isfinite(block).all():
            row, column = np.argwhere(~np.isfinite(block))[0]
            raise ManifestError(
                f"{path}: row {start + row}, column {column} is {array[start + row, column]}; all values must be finite"
                " float32 numbers: replace or leave out the utterance or the feature"
            )
    return np.array(array, dtype=np.float32, order="C")


def _columns(path: Path, columns: Sequence[str], emotions: Sequence[str]) -> Mapping[str, str]:
    """The column of each field of `Item` and trait."""
    named = {field: field for field in ("dialogue", "speaker", *emotions)}
    for trait in TRAITS:
        found = [name for name in (trait, SHORT_NAMES[trait]) if name in columns]
        if len(found) > 1:
            raise ManifestError(f"{path}:1: columns {found[0]!r} and {found[1]!r} are the same trait")
        named[trait] = found[0] if found else trait
    missing = [column for column in named.values() if column not in columns]
    if missing:
        short = ", ".join(SHORT_NAMES.values())
        raise ManifestError(
            f"{path}:1: no column {', '.join(map(repr, missing))}; needed are {', '.join(named)} (traits also as"
            f" {short}); there are {', '.join(columns)}"
        )
    return named


def _item(row: TableRow, index: int, named: Mapping[str, str]) -> Item:
    name = str(index) if row.cells.get("id") is None else str(row.cells["id"]).strip()
    valence, arousal = (_needed(row, field, *EMOTION_RANGE) if field in named else None for field in EMOTIONS)
    traits = tuple(_needed(row, named[trait], *TRAIT_SCALE) for trait in TRAITS)
    speaker, dialogue = needed_text(row, "speaker"), _dialogue(row)
    return Item(name, Path(name), speaker, dialogue, valence=valence, arousal=arousal, traits=cast(Traits, traits))


def _dialogue(row: TableRow) -> str:
    """IEMOCAP's ids in IEMOCAP's spelling, which splits have; others as they are."""
    name = needed_text(row, "dialogue")
    return name if dialogue_session(name) is None else correct_dialogue(name)


def _needed(row: TableRow, column: str, low: float, high: float) -> float:
    value = number(row, column, low, high)
    if value is None:
        raise ManifestError(f"{row.where}: column {column!r} is empty, and needed")
    return value


def _group(row: TableRow) -> str | None:
    if "session" not in row.cells:
        session = dialogue_session(needed_text(row, "dialogue"))
        return None if session is None else f"session {session}"
    value = row.cells["session"]
    return f"session {value}" if isinstance(value, int) else f"session {needed_text(row, 'session')}"


def _contradictions(where: str, item: Item, group: str | None, first: dict[object, tuple[str, Any]]) -> Iterator[str]:
    """Problems with what must be unique, or the same in a whole speaker-conversation or dialogue."""
    was, _ = first.setdefault(("id", item.id), (where, None))
    if was != where:
        yield f"{where}: column 'id' is {item.id!r}, as in {was}; ids must be unique"
    owner = f"speaker {item.speaker!r} of dialogue {item.dialogue!r}"
    same: tuple[tuple[str, object, object, Callable[[Any], str]], ...] = (
        ("traits", item.conversation, item.traits, lambda value: f"traits of {owner} are {value}"),
        ("session", item.dialogue, group, lambda value: f"session of dialogue {item.dialogue!r} is {value!r}"),
    )
    for field, key, value, words in same:
        was, before = first.setdefault((field, key), (where, value))
        if before != value:
            yield f"{where}: {words(value)}, but {before!r} in {was}; they must be the same throughout"
