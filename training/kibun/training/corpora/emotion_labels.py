"""IEMOCAP's valence and arousal joined with PA-IEMOCAP's traits, from label files alone: no audio is needed.

The emotion labels are a table with an utterance a row, as they are published in many places, or the files of
EmoEvaluation. Everything else follows from an utterance's id: dialogue, speaker, gender.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from kibun.models.types import EMOTIONS
from kibun.training.corpora.iemocap import EXPECTED, GENDERS
from kibun.training.corpora.iemocap_files import Notes, dialogue_session, parse_id, read_evaluations
from kibun.training.corpora.manifest import EMOTION_RANGE, Item
from kibun.training.corpora.report import raise_problems
from kibun.training.corpora.tipi import correct_dialogue, read_ocean
from kibun.training.corpora.user_tables import TableRow, needed_text, number, read_table
from kibun.training.errors import ManifestError

# Names that published tables of IEMOCAP use, in lower case; the first is ours, and goes before the others.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "utterance", "utterance_id", "turn_name", "wav_file", "name", "file", "path"),
    "valence": ("valence", "val", "v"),
    "arousal": ("arousal", "activation", "act", "aro", "a"),
}


@dataclasses.dataclass(frozen=True)
class LabelFiles:
    """Utterances with labels but without audio (their ``path`` is their id), and what a reader should know of them."""

    items: tuple[Item, ...]
    warnings: tuple[str, ...]


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
    named = {}
    for field, names in COLUMNS.items():
        found = [column for column in columns if column.lower() in names]
        found = [field] if field in found else found
        if len(found) != 1:
            fault = f"the columns {', '.join(found)} are the same" if found else f"no column {field!r}"
            raise ManifestError(f"{path}:1: {fault}; name one of them {' or '.join(names)}; there are {list(columns)}")
        named[field] = found[0]
    for row in rows:
        try:
            name = PurePosixPath(needed_text(row, named["id"]).replace("\\", "/")).name.removesuffix(".wav")
            valence, arousal = (_label(row, named[field]) for field in EMOTIONS)
        except ManifestError as error:
            problems.append(str(error))
            continue
        yield row.where, correct_dialogue(name), valence, arousal


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
