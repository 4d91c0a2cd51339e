"""Traits that are known from elsewhere, such as a questionnaire: read from the command line, CSV or JSON lines.

CSV: a header with `openness`, `conscientiousness`, `extraversion`, `agreeableness`, `neuroticism` and a column that
names the person or file; further columns are left alone. JSON lines: objects with the same names. Scale 1..7 (TIPI).
"""

import csv
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kibun.client.audio_file import shown
from kibun.client.errors import InputError
from kibun.client.estimates import TRAIT_MAX, TRAIT_MIN, TRAITS, Traits

SUFFIXES = (".csv", ".jsonl")
_SCALE = f"{TRAIT_MIN:g} to {TRAIT_MAX:g}"


def parse_traits(text: str) -> Traits:
    """Traits from "O,C,E,A,N". Raises InputError."""
    values = text.split(",")
    if len(values) != len(TRAITS):
        raise InputError(
            f"--traits {text!r}: five numbers {_SCALE} are expected, as in 4.5,5,3,6,2 ({', '.join(TRAITS)}), or the "
            f"name of a {' or '.join(SUFFIXES)} file"
        )
    return Traits(*(_number("--traits", name, value) for name, value in zip(TRAITS, values, strict=True)))


def load_traits(path: Path, keys: Sequence[str]) -> dict[str, Traits]:
    """Traits by owner, in the order of the file. Raises InputError naming line and field.

    `keys`: names of the column that names the person or file; the first that a row has counts.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except FileNotFoundError:
        raise InputError(f"no such file: {shown(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)} cannot be read as text: give a .csv or .jsonl file ({error})") from error
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{shown(path)}: traits are read from .csv or .jsonl, not from {path.suffix or 'a file without suffix'}"
        )
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)
    found: dict[str, Traits] = {}
    for line, row in rows:
        where = f"{shown(path)}, line {line}"
        key = next((str(row[name]).strip() for name in keys if row.get(name) not in (None, "")), None)
        if key is None:
            raise InputError(f"{where}: the row does not name whose traits these are: {' or '.join(keys)} is expected")
        if key in found:
            raise InputError(f"{where}: {key!r} already has traits, from an earlier line: keep one of the two")
        found[key] = Traits(*(_number(where, name, row.get(name)) for name in TRAITS))
    if not found:
        raise InputError(f"{shown(path)} holds no traits")
    return found


def match_files(files: Iterable[Path], traits: Mapping[str, Traits]) -> dict[Path, Traits]:
    """Traits of each file that has some: by its path, its name with or without suffix, or the folder it is in."""
    # Names of files may be decomposed (macOS), those typed into a table mostly are not.
    composed = {unicodedata.normalize("NFC", key): value for key, value in traits.items()}
    matched = {}
    for file in files:
        for name in (str(file), file.name, file.stem, _folder(file)):
            if (key := unicodedata.normalize("NFC", name)) in composed:
                matched[file] = composed[key]
                break
    return matched


def _folder(file: Path) -> str:
    try:
        return file.resolve().parent.name
    except (OSError, RuntimeError):  # a link that leads back to itself: the file will be told
        return file.parent.name


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    header = [name.strip().lower() for name in reader.fieldnames or ()]
    if missing := [name for name in TRAITS if name not in header]:
        raise InputError(
            f"{shown(path)}, line 1: no column {', '.join(missing)}: the five traits, and whose they are, are expected"
        )
    reader.fieldnames = header
    for row in reader:
        yield reader.line_num, row


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise InputError(f"{shown(path)}, line {line}: invalid JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise InputError(f"{shown(path)}, line {line}: an object is expected, one per line")
        yield line, row


def _number(where: str, name: str, value: Any) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not TRAIT_MIN <= number <= TRAIT_MAX:  # also refuses NaN
        raise InputError(f"{where}: {name} must be a number {_SCALE} (TIPI scale), not {value!r}")
    return number
