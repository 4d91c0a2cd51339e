"""IEMOCAP's valence and arousal joined with PA-IEMOCAP's traits, from label files alone: no audio is needed.

The emotion labels are a table with an utterance a row, as they are published in many places, or the files of
EmoEvaluation. Everything else follows from an utterance's id: dialogue, speaker, gender. A table may also hold the
traits itself, as the one that the authors of PA-IEMOCAP publish beside their scripts.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from kibun.models.types import EMOTIONS, TRAIT_SCALE, TRAITS, Traits
from kibun.training.corpora.iemocap import EXPECTED, GENDERS
from kibun.training.corpora.iemocap_files import Notes, dialogue_session, parse_id, read_evaluations
from kibun.training.corpora.manifest import EMOTION_RANGE, Item
from kibun.training.corpora.report import raise_problems
from kibun.training.corpora.tipi import SHORT_NAMES, correct_dialogue, read_ocean
from kibun.training.corpora.user_tables import TableRow, needed_text, number, read_table
from kibun.training.errors import ManifestError

# Names that published tables of IEMOCAP use, in lower case; the first is ours, and goes before the others.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "utterance", "utterance_id", "turn_name", "wav_file", "name", "file", "path"),
    "valence": ("valence", "val", "v"),
    "arousal": ("arousal", "activation", "act", "aro", "a"),
    "gender": ("gender", "sex"),
    **{trait: (trait, SHORT_NAMES[trait].lower()) for trait in TRAITS},
}
_GENDERS = {"m": "male", "male": "male", "f": "female", "female": "female"}


@dataclasses.dataclass(frozen=True)
class LabelFiles:
    """Utterances with labels but without audio (their ``path`` is their id), and what a reader should know of them.

    profiled: whether it is known who speaks in which conversation; if not, every utterance stands alone.
    """

    items: tuple[Item, ...]
    warnings: tuple[str, ...]
    profiled: bool = True


def read_label_files(emotion: Path, ocean: Path) -> LabelFiles:
    """The utterances of ``emotion`` with the traits of ``ocean``, PA-IEMOCAP's ocean.csv, whose ids are corrected.

    emotion: a table (.csv, .tsv, .jsonl) with the columns id, valence, arousal or a name of COLUMNS for them; or
    a folder: IEMOCAP's own, without audio or with it, or one of EmoEvaluation's text files. An utterance whose speaker
    has no traits keeps None.

    Raises:
        LabelError: ocean.csv cannot be used.
        CorpusError: an id is none of IEMOCAP's or is there twice, or a label is missing or no number; it lists all.
        ManifestError: the table cannot be read, or a column is missing.
    """
    profiles = {profile: traits for profile, (_where, traits) in read_ocean(ocean).items()}
    problems: list[str] = []
    warnings: list[str] = []
    read = _evaluations(emotion, problems, warnings) if emotion.is_dir() else _rows(emotion, problems)
    items: list[Item] = []
    first: dict[str, str] = {}
    for where, name, valence, arousal in read:
        identity = parse_id(name)
        if identity is None:
            problems.append(f"{where}: {name!r} is no utterance id of IEMOCAP, such as Ses01F_impro01_F000")
        elif first.setdefault(name, where) != where:
            problems.append(f"{where}: {name} is also in {first[name]}; keep one of the two")
        else:
            gender = GENDERS[identity.letter]
            traits = profiles.get((identity.dialogue, gender[0]))
            items.append(
                Item(
                    name, Path(name), identity.speaker, identity.dialogue,
                    valence=valence, arousal=arousal, traits=traits, gender=gender,
                )
            )  # fmt: skip
    raise_problems(f"{emotion}: cannot be used as emotion labels", problems)
    return LabelFiles(tuple(items), (*warnings, *_oddities(items, profiles)))


def read_whole_table(path: Path) -> LabelFiles:
    """The utterances of a table (.csv, .tsv, .jsonl) that holds their traits itself.

    Columns: valence, arousal and the five traits, each under its name or one of COLUMNS, in any case; optionally
    gender (m, f, male, female), and who speaks: id, one of IEMOCAP's, or speaker and dialogue (a speaker alone counts
    as one conversation).

    Raises:
        CorpusError: an id is none of IEMOCAP's, or a cell is missing or out of range; it lists all.
        ManifestError: the table cannot be read, or a column is missing.
    """
    columns, rows = read_table(path)
    named = _named(path, columns, (*EMOTIONS, *TRAITS), ("gender", "id"))
    profiled = "id" in named or "speaker" in columns
    problems: list[str] = []
    items: list[Item] = []
    for index, row in enumerate(rows):
        try:
            items.append(_whole(row, index, named, columns))
        except ManifestError as error:
            problems.append(str(error))
    raise_problems(f"{path}: cannot be used as labels", problems)
    return LabelFiles(tuple(items), (), profiled)


def _whole(row: TableRow, index: int, named: Mapping[str, str], columns: Sequence[str]) -> Item:
    traits = tuple(number(row, named[trait], *TRAIT_SCALE) for trait in TRAITS)
    if None in traits:
        raise ManifestError(f"{row.where}: column {named[TRAITS[traits.index(None)]]!r} is empty, and needed")
    gender = None
    if "gender" in named:
        gender = _GENDERS.get(needed_text(row, named["gender"]).lower())
        if gender is None:
            raise ManifestError(
                f"{row.where}: column {named['gender']!r} is {row.cells[named['gender']]!r},"
                " allowed are m, f, male and female"
            )
    name, dialogue, speaker = str(index), str(index), str(index)
    if "id" in named:
        name = _utterance_id(row, named["id"])
        identity = parse_id(name)
        if identity is None:
            raise ManifestError(f"{row.where}: {name!r} is no utterance id of IEMOCAP, such as Ses01F_impro01_F000")
        dialogue, speaker, gender = identity.dialogue, identity.speaker, GENDERS[identity.letter]
    elif "speaker" in columns:
        speaker = needed_text(row, "speaker")
        dialogue = needed_text(row, "dialogue") if "dialogue" in columns else speaker
    valence, arousal = (_label(row, named[field]) for field in EMOTIONS)
    return Item(
        name, Path(name), speaker, dialogue,
        valence=valence, arousal=arousal, traits=cast(Traits, traits), gender=gender,
    )  # fmt: skip


def _oddities(items: Sequence[Item], profiles: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Counts that differ from the whole corpus, and profiles without an utterance."""
    heard = {(item.dialogue, str(item.gender)[0]) for item in items}
    counted = {"utterances": len(items), "dialogues": len({name for name, _ in heard}), "profiles": len(heard)}
    for (name, size), expected in zip(counted.items(), EXPECTED.values(), strict=True):
        if size != expected:
            yield f"{name}: {size:,}, the whole corpus has {expected:,}"
    if silent := sorted(set(profiles) - heard):
        yield f"profiles with traits but no utterance: {len(silent)} ({' '.join(silent[0])} first)"


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[str, str, float | None, float | None]]:
    """(file:line, id, valence, arousal) of a table. An id may be written as a file's path."""
    columns, rows = read_table(path)
    named = _named(path, columns, ("id", *EMOTIONS))
    for row in rows:
        try:
            name = _utterance_id(row, named["id"])
            valence, arousal = (_label(row, named[field]) for field in EMOTIONS)
        except ManifestError as error:
            problems.append(str(error))
            continue
        yield row.where, name, valence, arousal


def _named(path: Path, columns: Sequence[str], needed: Sequence[str], welcome: Sequence[str] = ()) -> Mapping[str, str]:
    """The column of each field, by its names in COLUMNS; those that are only welcome may be absent."""
    named = {}
    for field in (*needed, *welcome):
        names = COLUMNS[field]
        found = [column for column in columns if column.lower() in names]
        found = [field] if field in found else found
        if not found and field in welcome:
            continue
        if len(found) != 1:
            fault = f"the columns {', '.join(found)} are the same" if found else f"no column {field!r}"
            raise ManifestError(f"{path}:1: {fault}; name one of them {' or '.join(names)}; there are {list(columns)}")
        named[field] = found[0]
    return named


def _utterance_id(row: TableRow, column: str) -> str:
    """An id, which may be written as a file's path and with a misspelt dialogue."""
    return correct_dialogue(PurePosixPath(needed_text(row, column).replace("\\", "/")).name.removesuffix(".wav"))


def _label(row: TableRow, column: str) -> float | None:
    return number(row, column, *EMOTION_RANGE)


def _evaluations(
    folder: Path, problems: list[str], warnings: list[str]
) -> Iterator[tuple[str, str, float | None, float | None]]:
    """(file:line, id, valence, arousal) from EmoEvaluation's files; the folder's own, or those of its sessions."""
    paths = [
        path
        for pattern in ("Session*/dialog/EmoEvaluation/*.txt", "dialog/EmoEvaluation/*.txt", "*.txt")
        for path in sorted(folder.glob(pattern))
        if not path.name.startswith(".") and dialogue_session(path.stem) is not None
    ]
    if not paths:
        hint = "name the folder that holds Session1 to Session5, or one of files such as Ses01F_impro01.txt"
        raise ManifestError(f"{folder}: has no file of EmoEvaluation; {hint}")
    notes = Notes(problems, warnings)
    for path in paths:
        for each in read_evaluations(path, notes):
            yield each.where, each.id, each.valence, each.arousal
    if notes.unknown_lines:
        warnings.append(f"lines of unknown kind: {len(notes.unknown_lines)} ({notes.unknown_lines[0]} first)")
