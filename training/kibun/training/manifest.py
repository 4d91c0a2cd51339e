"""The JSONL manifest of a corpus: one utterance a line, checked before anything is trained on it."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile

from kibun.models.types import TRAITS, Traits

SAMPLE_RATE_HZ = 16_000
SPLITS = ("train", "dev", "test")


class ManifestError(ValueError):
    """A manifest cannot be used; the message names file, line, field and the fix."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One utterance. Emotion 1..5 and traits 1..7 by convention; corpora may reach a little beyond."""

    path: Path
    speaker: str
    dialogue: str
    split: str
    text: str
    arousal: float
    valence: float
    traits: Traits


def load_manifest(path: Path) -> list[Item]:
    """Read and check a manifest; audio paths are relative to it.

    Raises:
        ManifestError: unreadable, a line that is not JSON, a missing or wrong field, a missing audio file, or a
            speaker who is in two splits.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); make one with `kibun synth speech`") from error
    items = [_item(f"{path}:{number}", line, path.parent) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise ManifestError(f"{path}: has no utterances")
    homes: dict[str, str] = {}
    for number, item in enumerate(items, 1):
        if homes.setdefault(item.speaker, item.split) != item.split:
            raise ManifestError(
                f"{path}:{number}: field 'split': speaker {item.speaker!r} is in {item.split!r} and in"
                f" {homes[item.speaker]!r}; keep each speaker in one split"
            )
    return items


def load_audio(item: Item) -> np.ndarray:
    """(N,) int16 mono at 16 kHz. Raises ManifestError for another rate or several channels."""
    audio, rate_hz = soundfile.read(item.path, dtype="int16")
    if rate_hz != SAMPLE_RATE_HZ or audio.ndim != 1:
        raise ManifestError(f"{item.path}: must be mono at {SAMPLE_RATE_HZ} Hz, is {rate_hz} Hz: convert it first")
    return np.asarray(audio, dtype=np.int16)


def _item(where: str, line: str, folder: Path) -> Item:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ManifestError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: must be a JSON object, is {type(row).__name__}")
    split = _text(where, row, "split")
    if split not in SPLITS:
        raise ManifestError(f"{where}: field 'split' is {split!r}, must be one of {', '.join(SPLITS)}")
    traits = row.get("traits")
    if not isinstance(traits, dict):
        raise ManifestError(f"{where}: field 'traits' must be an object with {', '.join(TRAITS)}")
    audio = folder / _text(where, row, "path")
    if not audio.is_file():
        raise ManifestError(f"{where}: field 'path': no such file {str(audio)!r}")
    return Item(
        path=audio,
        speaker=_text(where, row, "speaker"),
        dialogue=_text(where, row, "dialogue"),
        split=split,
        text=_text(where, row, "text"),
        arousal=_number(where, row, "arousal", 0.0, 6.0),
        valence=_number(where, row, "valence", 0.0, 6.0),
        traits=cast(Traits, tuple(_number(where, traits, trait, 1.0, 7.0) for trait in TRAITS)),
    )


def _text(where: str, row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or (not value and field != "text"):
        raise ManifestError(f"{where}: field {field!r} must be a non-empty string, is {value!r}")
    return value


def _number(where: str, row: dict[str, Any], field: str, low: float, high: float) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ManifestError(f"{where}: field {field!r} must be a number from {low:g} to {high:g}, is {value!r}")
    return float(value)
