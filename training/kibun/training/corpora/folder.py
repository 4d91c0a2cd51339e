"""A manifest made from a user's own table of utterances: columns checked, scales converted, audio files read."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kibun.models.types import EMOTION_SCALE, EMOTIONS, TRAIT_SCALE, TRAITS
from kibun.training.audio.reading import audio_seconds
from kibun.training.corpora.lines import Scale, rescale
from kibun.training.corpora.manifest import EMOTION_RANGE
from kibun.training.corpora.report import (
    CorpusReport,
    Progress,
    Row,
    count,
    no_progress,
    raise_problems,
    stored_path,
    write_corpus,
)
from kibun.training.corpora.splits import SPLITS, split_speakers
from kibun.training.corpora.tipi import OCEAN_COLUMNS, SHORT_NAMES
from kibun.training.corpora.user_tables import CellError, TableRow, needed_text, number, read_table, text
from kibun.training.errors import ManifestError

NEEDED = ("path", "speaker", "dialogue")
TEXTS = ("emotion", "corpus", "license")
KNOWN = {*NEEDED, "id", "text", *EMOTIONS, "gender", "split", *TEXTS, "traits", *TRAITS, *OCEAN_COLUMNS}
GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """How a table is read. Scales are the table's own (lowest, highest); None: 1..5 for emotion and 1..7 for traits."""

    emotion_scale: Scale | None = None
    trait_scale: Scale | None = None
    shares: tuple[float, float, float] | None = None  # of train, dev and test, by speaker; None: the table's split
    seed: int = 0
    decode: bool = False  # read every audio file in full, not only its header

    def __post_init__(self) -> None:
        for name, scale in (("emotion scale", self.emotion_scale), ("trait scale", self.trait_scale)):
            if scale is not None and not scale[0] < scale[1]:
                raise ManifestError(f"{name} must be its lowest and its highest value, rising, is {scale}")


def prepare_folder(
    table: Path, out: Path, options: FolderOptions | None = None, progress: Progress = no_progress
) -> CorpusReport:
    """Write the manifest ``out`` and its report from a table with the columns path, speaker and dialogue.

    Optional columns: id, text, valence, arousal, gender, split, emotion, corpus, license, and the five traits by
    name or as OP, CO, EX, AG, NE.
    Audio paths are relative to the table's folder. An empty cell is an absent value. Rows keep their order: within a
    dialogue it must be the order in which they were spoken, since traits are estimated from earlier utterances.

    Raises:
        ManifestError: the table cannot be read at all, or cannot be split by speaker as asked.
        CorpusError: cells or audio files cannot be used; it lists all of them, and nothing is written.
    """
    options = options or FolderOptions()
    if out.resolve() == table.resolve():
        raise ManifestError(f"{out}: is the table itself; write the manifest to another file")
    columns, read = read_table(table)
    problems = _column_problems(table, columns, options)
    raise_problems(f"{table}: cannot be made into a manifest", problems)
    readers = _readers(table.parent, out.parent, options)
    rows: list[Row] = []
    for row in read:
        rows.append(_row(row, readers, problems))
        progress(len(rows), len(read))
    if not problems:
        _check_together(read, rows, problems)
    raise_problems(f"{table}: cannot be made into a manifest", problems)
    if options.shares is not None:
        homes = split_speakers([(row["dialogue"], row["speaker"]) for row in rows], options.shares, options.seed)
        rows = [{**row, "split": homes[row["speaker"]]} for row in rows]
    report = _report(rows, columns, out, options)
    write_corpus(out, rows, report)
    return report


def _column_problems(table: Path, columns: Sequence[str], options: FolderOptions) -> list[str]:
    found = [f"{table}:1: no column {name!r}, there are {', '.join(columns)}" for name in NEEDED if name not in columns]
    named = {trait: [name for name in (trait, SHORT_NAMES[trait]) if name in columns] for trait in TRAITS}
    found += [
        f"{table}:1: columns {names[0]!r} and {names[1]!r} are the same trait"
        for names in named.values()
        if len(names) > 1
    ]
    missing = [trait for trait, names in named.items() if not names]
    if 0 < len(missing) < len(TRAITS):
        found.append(f"{table}:1: has some of the traits but no column {missing[0]!r}; give all five or none")
    if options.shares is not None and "split" in columns:
        found.append(f"{table}:1: has a column 'split' already; remove it, or do not ask for another split")
    return found


def _readers(folder: Path, out_folder: Path, options: FolderOptions) -> dict[str, Callable[[TableRow], Any]]:
    """A reader for each field of a manifest; it raises ManifestError, naming the cell."""
    return {
        "id": lambda row: text(row, "id") or needed_text(row, "path"),
        "path": lambda row: stored_path(folder / needed_text(row, "path"), out_folder),
        "speaker": lambda row: needed_text(row, "speaker"),
        "dialogue": lambda row: needed_text(row, "dialogue"),
        "gender": _gender,
        "split": _split,
        "text": lambda row: "" if row.cells.get("text") == "" else text(row, "text"),
        "valence": lambda row: _emotion(row, "valence", options.emotion_scale),
        "arousal": lambda row: _emotion(row, "arousal", options.emotion_scale),
        "traits": lambda row: _traits(row, options.trait_scale),
        "seconds": lambda row: _seconds(row, folder, options.decode),
        **{field: partial(text, column=field) for field in TEXTS},
    }


def _row(row: TableRow, readers: dict[str, Callable[[TableRow], Any]], problems: list[str]) -> Row:
    """A line of the manifest; problems with it are added to ``problems``."""
    made: Row = {}
    for field, read in readers.items():
        try:
            made[field] = read(row)
        except ManifestError as error:
            if str(error) not in problems[-3:]:  # three fields come from the column 'path'
                problems.append(str(error))
    return made


def _seconds(row: TableRow, folder: Path, decode: bool) -> float:
    audio = folder / needed_text(row, "path")
    try:
        return round(audio_seconds(audio, decode), 4)
    except ManifestError as error:
        raise ManifestError(f"{row.where}: column 'path': {error}") from error


def _gender(row: TableRow) -> str | None:
    value = text(row, "gender")
    return GENDERS.get(value.lower(), value) if value is not None else None


def _split(row: TableRow) -> str | None:
    value = text(row, "split")
    if value is not None and value not in SPLITS:
        raise CellError(row.where, "split", f"must be one of {', '.join(SPLITS)}, is {value!r}")
    return value


def _emotion(row: TableRow, name: str, scale: Scale | None) -> float | None:
    hint = "; if its scale is not 1..5, give it with --emotion-scale LOW,HIGH" if scale is None else ""
    value = number(row, name, *(scale or EMOTION_RANGE), hint)
    return value if value is None or scale is None else rescale(value, scale, EMOTION_SCALE)


def _traits(row: TableRow, scale: Scale | None) -> dict[str, float] | None:
    """All five traits or None, from a column for each or from an object ``traits`` as manifests have it."""
    cells = row.cells.get("traits")
    if cells is not None and not isinstance(cells, dict):
        raise CellError(row.where, "traits", f"must be an object with {', '.join(TRAITS)}, is {cells!r}")
    source = TableRow(row.where, {**row.cells, **(cells or {})})
    hint = "; if its scale is not 1..7, give it with --trait-scale LOW,HIGH" if scale is None else ""
    columns = {trait: trait if trait in source.cells else SHORT_NAMES[trait] for trait in TRAITS}
    values = {trait: number(source, column, *(scale or TRAIT_SCALE), hint) for trait, column in columns.items()}
    given = {trait: value for trait, value in values.items() if value is not None}
    if not given:
        return None
    empty = [columns[trait] for trait in TRAITS if trait not in given]
    if empty:
        other = columns[next(iter(given))]
        raise CellError(row.where, empty[0], f"is empty, but {other!r} is not; give all five or none")
    return {trait: value if scale is None else rescale(value, scale, TRAIT_SCALE) for trait, value in given.items()}


def _check_together(read: Sequence[TableRow], rows: Sequence[Row], problems: list[str]) -> None:
    """Check that ids are unique, a conversation has one set of traits, and a speaker one gender and one split."""
    first: dict[tuple[str, ...], tuple[str, Any]] = {}
    for source, row in zip(read, rows, strict=True):
        where, speaker, conversation = source.where, row["speaker"], (row["dialogue"], row["speaker"])
        earlier = first.setdefault(("id", row["id"]), (where, None))
        if earlier[0] != where:
            fix = "ids must be unique; without a column 'id' the path is the id"
            problems.append(f"{where}: column 'id' is {row['id']!r}, as in {earlier[0]}; {fix}")
        for column, key, owner in (
            ("traits", conversation, f"speaker {speaker!r} of dialogue {row['dialogue']!r}"),
            ("gender", (speaker,), f"speaker {speaker!r}"),
            ("split", (speaker,), f"speaker {speaker!r}"),
        ):
            if row[column] is None:
                continue
            earlier = first.setdefault((column, *key), (where, row[column]))
            if earlier[1] != row[column]:
                was = f"{row[column]!r}, but {earlier[1]!r} in {earlier[0]}"
                problems.append(f"{where}: column {column!r} of {owner} is {was}; it must be the same throughout")


def _report(rows: Sequence[Row], columns: Sequence[str], out: Path, options: FolderOptions) -> CorpusReport:
    unused = [column for column in columns if column not in KNOWN]
    found = {
        "emotion_scale": list(options.emotion_scale or EMOTION_SCALE),
        "trait_scale": list(options.trait_scale or TRAIT_SCALE),
        "unused_columns": unused,
        "split_seed": options.seed if options.shares is not None else None,
    }
    warnings = [f"column {column!r} is not known and not used" for column in unused]
    if options.emotion_scale is None:
        for name in EMOTIONS:
            values = [row[name] for row in rows if row[name] is not None]
            if values and max(values) <= 1:
                warnings.append(f"no {name} is above 1: if its scale is 0..1, give --emotion-scale 0,1")
    traits = [value for row in rows for value in (row["traits"] or {}).values()]
    if options.trait_scale is None and traits and max(traits) <= 5:
        warnings.append("no trait is above 5: if their scale is 1..5, give --trait-scale 1,5")
    split = "split" if any(row["split"] is not None for row in rows) else None
    return CorpusReport("folder", str(out), **count(rows, split), found=found, ignored=(), warnings=tuple(warnings))
