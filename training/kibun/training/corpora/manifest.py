"""The JSONL manifest of a corpus: one utterance a line, checked before anything is trained on it.

A line is an object with ``path`` (relative to the manifest's folder, or absolute), ``speaker`` and ``dialogue``, and
optionally ``id`` (default: the path as written), ``split``, ``text``, ``valence`` and ``arousal`` (1..5), ``traits``
(an object with the five names, 1..7), ``gender``, ``seconds``, ``emotion`` (a category), ``corpus``, ``license``. Other
fields are ignored, null counts as absent.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from kibun.models.files import NOT_STATED, joint_license
from kibun.models.types import TRAIT_SCALE, TRAITS, Traits
from kibun.training.corpora.lines import json_objects
from kibun.training.corpora.splits import SPLITS, read_splits, resolve_splits
from kibun.training.errors import ManifestError

MANIFEST_NAME = "manifest.jsonl"  # of the corpora that we make
TEXTS = ("gender", "emotion", "corpus", "license")
OPTIONAL = ("path", "split", "text", "valence", "arousal", "traits", "seconds", *TEXTS)
EMOTION_RANGE = (0.0, 6.0)  # the scale is 1..5, but IEMOCAP's means of raters reach 0.5 and 5.5


@dataclasses.dataclass(frozen=True)
class Item:
    """One utterance; None for labels that the corpus lacks. Emotion on 1..5 (but see EMOTION_RANGE), traits on 1..7."""

    id: str
    path: Path
    speaker: str
    dialogue: str
    split: str | None = None
    text: str | None = None
    valence: float | None = None
    arousal: float | None = None
    traits: Traits | None = None
    gender: str | None = None
    seconds: float | None = None
    emotion: str | None = None
    corpus: str | None = None
    license: str | None = None

    @property
    def conversation(self) -> tuple[str, str]:
        """(dialogue, speaker), which has one personality profile."""
        return self.dialogue, self.speaker


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The utterances of a manifest, and the effects of a splits file.

    left_out: number of utterances whose dialogue is in no split. absent: dialogues that the splits file names and the
    manifest lacks. shared_speakers: those in both dev and test, which only a splits file may have.
    """

    items: tuple[Item, ...]
    left_out: int = 0
    absent: tuple[str, ...] = ()
    shared_speakers: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """What a reader of results made with this manifest should know."""
        lines = []
        if self.left_out:
            lines.append(f"utterances left out, their dialogue being in no split: {self.left_out}")
        if self.absent:
            lines.append(
                f"dialogues of the splits that the manifest lacks: {len(self.absent)} ({self.absent[0]} first)"
            )
        if self.shared_speakers:
            names = ", ".join(self.shared_speakers)
            lines.append(f"dev and test share the speakers {names}: the model is chosen on voices that it is tested on")
        return lines


def license_of(items: Iterable[Item]) -> str:
    """`joint_license` of all utterances, in alphabetical order; "not stated" where none states one."""
    return joint_license(sorted({item.license or NOT_STATED for item in items})) or NOT_STATED


def conversations(items: Sequence[Item]) -> dict[tuple[str, str], list[int]]:
    """Rows of each conversation profile, in the order of `items`."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(item.conversation, []).append(row)
    return rows


def is_generated(manifest: Path) -> bool:
    """Whether the corpus is synthetic: `kibun synth` leaves corpus.json beside the manifest."""
    return manifest.with_name("corpus.json").is_file()


def load_manifest(path: Path, *, require: Collection[str] = ("path",), splits: str | Path | None = None) -> list[Item]:
    """The utterances of a manifest; `read_manifest` also returns what the splits left out."""
    return list(read_manifest(path, require=require, splits=splits).items)


def read_manifest(path: Path, *, require: Collection[str] = ("path",), splits: str | Path | None = None) -> Manifest:
    """Read and check a manifest.

    ``require``: fields of `OPTIONAL` that every utterance must have; ``path`` means that the audio file must exist.
    ``splits``: a name or path as for `read_splits`, used instead of the field ``split``.

    Raises:
        ManifestError: unreadable, a line that is not JSON, a missing or wrong field, an id that occurs twice, a missing
            audio file, or a speaker in train and also in dev or test (without ``splits``: in any two).
    """
    unknown = set(require) - set(OPTIONAL)
    if unknown:
        raise ValueError(f"require: {sorted(unknown)} are no fields of a manifest; known: {', '.join(OPTIONAL)}")
    read = _read(path, set(require) - ({"split"} if splits is not None else set()))
    if splits is None:
        _check_speakers(read, None)
        return Manifest(tuple(item for _where, item in read))
    homes = read_splits(splits)
    placed = [
        (where, dataclasses.replace(item, split=homes[item.dialogue])) for where, item in read if item.dialogue in homes
    ]
    file = resolve_splits(splits)
    if not placed:
        raise ManifestError(f"{path}: no dialogue of it is in {file} (the manifest has {read[0][1].dialogue!r})")
    shared = _check_speakers(placed, file)
    absent = homes.keys() - {item.dialogue for _where, item in placed}
    return Manifest(tuple(item for _where, item in placed), len(read) - len(placed), tuple(sorted(absent)), shared)


def _read(path: Path, require: set[str]) -> list[tuple[str, Item]]:
    """(file:line, utterance) of every line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        fix = "make one with `kibun train prepare` from a corpus or with `kibun synth speech`"
        raise ManifestError(f"{path}: cannot be read ({reason}); {fix}") from error
    read = [(where, _item(where, row, path.parent, require)) for where, row in json_objects(path, text, ManifestError)]
    if not read:
        raise ManifestError(f"{path}: has no utterances")
    first: dict[str, str] = {}
    for where, item in read:
        if first.setdefault(item.id, where) != where:
            fix = "ids must be unique; without field 'id' the path is the id"
            raise ManifestError(f"{where}: field 'id': {item.id!r} is also in {first[item.id]}; {fix}")
    return read


def _check_speakers(read: Sequence[tuple[str, Item]], splits: Path | None) -> tuple[str, ...]:
    """Speakers in dev and in test by a splits file; ManifestError for any other speaker who is in two splits."""
    by = f" by {splits}" if splits is not None else ""
    homes: dict[str, set[str]] = {}
    for where, item in read:
        if item.split is None:
            continue
        before = homes.setdefault(item.speaker, {item.split})
        if item.split not in before and (splits is None or "train" in {item.split, *before}):
            raise ManifestError(
                f"{where}: field 'split': speaker {item.speaker!r} is in {item.split!r} and in"
                f" {', '.join(map(repr, sorted(before)))}{by}; keep each speaker in one split"
            )
        before.add(item.split)
    return tuple(sorted(speaker for speaker, there in homes.items() if len(there) > 1))


def _item(where: str, row: Mapping[str, Any], folder: Path, require: set[str]) -> Item:
    for field in sorted(require):
        if row.get(field) is None:
            raise ManifestError(f"{where}: field {field!r} is missing, and needed here")
    relative = _text(where, row, "path")
    audio = folder / relative
    if "path" in require and not audio.is_file():
        raise ManifestError(f"{where}: field 'path': no such file {str(audio)!r}")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise ManifestError(f"{where}: field 'split' is {split!r}, must be one of {', '.join(SPLITS)}")
    has = {field for field in (*OPTIONAL, "id") if row.get(field) is not None}
    return Item(
        id=_text(where, row, "id") if "id" in has else relative,
        path=audio,
        speaker=_text(where, row, "speaker"),
        dialogue=_text(where, row, "dialogue"),
        split=split,
        text=_text(where, row, "text", may_be_empty=True) if "text" in has else None,
        valence=_number(where, row, "valence", *EMOTION_RANGE) if "valence" in has else None,
        arousal=_number(where, row, "arousal", *EMOTION_RANGE) if "arousal" in has else None,
        traits=_traits(where, row["traits"]) if "traits" in has else None,
        seconds=_number(where, row, "seconds", 0.0, float("inf")) if "seconds" in has else None,
        **{field: _text(where, row, field) if field in has else None for field in TEXTS},
    )


def _traits(where: str, traits: Any) -> Traits:
    if not isinstance(traits, dict):
        raise ManifestError(f"{where}: field 'traits' must be an object with {', '.join(TRAITS)}")
    return cast(Traits, tuple(_number(where, traits, trait, *TRAIT_SCALE) for trait in TRAITS))


def _text(where: str, row: Mapping[str, Any], field: str, may_be_empty: bool = False) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise ManifestError(f"{where}: field {field!r} must be a non-empty string, is {value!r}")
    return value


def _number(where: str, row: Mapping[str, Any], field: str, low: float, high: float) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ManifestError(f"{where}: field {field!r} must be a number from {low:g} to {high:g}, is {value!r}")
    return float(value)
