"""Rows of `kibun analyze`: one per utterance, the same columns in every format."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console
from rich.text import Text

from kibun.client.commands.report import compact_table
from kibun.client.estimates import TRAITS, Traits
from kibun.client.events import PersonalityUpdate, StreamStarted, UtteranceResult

Row = dict[str, str | float | int | bool | None]

# None (an empty cell) where nothing was estimated: too little speech, or a model that does not estimate it.
COLUMNS = (
    "file",
    "utterance_id",
    "start_s",
    "end_s",
    "analyzed_s",
    # Scale 1..5, 3 neutral.
    "valence",
    "arousal",
    # Apparent traits of the speaker from all utterances up to this one, scale 1..7, and their evidence.
    *TRAITS,
    *(f"{name}_error" for name in TRAITS),
    "utterance_count",
    "speech_s",
    # Apparent traits from this utterance alone.
    *(f"utterance_{name}" for name in TRAITS),
    # What emotion was conditioned on: given traits, or predicted ones of some kind.
    "condition_source",
    "model",
    "synthetic_model",
)


def row_of(path: Path, final: UtteranceResult, update: PersonalityUpdate | None, started: StreamStarted) -> Row:
    """The row of one utterance; `update` is what was known of the speaker after it."""
    known = update.personality if update else None
    emotion = final.emotion
    row: Row = {
        "file": str(path),
        "utterance_id": final.utterance_id,
        "start_s": final.start_s,
        "end_s": final.end_s,
        "analyzed_s": final.analyzed_s,
        "valence": None if emotion is None else emotion.valence,
        "arousal": None if emotion is None else emotion.arousal,
        "utterance_count": None if known is None else known.utterance_count,
        "speech_s": None if known is None else known.speech_s,
        "condition_source": None if final.condition is None else final.condition.source.value,
        "model": started.model,
        "synthetic_model": started.synthetic_model,
    }
    row |= _traits("{}", known.traits if known else None)
    row |= _traits("{}_error", known.expected_error if known else None)
    row |= _traits("utterance_{}", final.personality.traits if final.personality else None)
    return {column: row[column] for column in COLUMNS}


def _traits(pattern: str, traits: Traits | None) -> Row:
    return {pattern.format(name): None if traits is None else getattr(traits, name) for name in TRAITS}


class Rows(Protocol):
    """Where rows go."""

    def write(self, rows: Sequence[Row]) -> None:
        """Takes the rows of one file."""
        ...

    def finish(self) -> None:
        """Is called once, after the last file."""
        ...


class JsonRows:
    """One JSON object per line."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file or sys.stdout

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            print(json.dumps(_rounded(row), ensure_ascii=False), file=self._file, flush=True)

    def finish(self) -> None: ...


class CsvRows:
    """CSV with a header."""

    def __init__(self, file: TextIO | None) -> None:
        self._writer = csv.DictWriter(file or sys.stdout, COLUMNS, lineterminator="\n")
        self._has_header = False

    def write(self, rows: Sequence[Row]) -> None:
        if not self._has_header:  # not before the first file: a server that cannot be reached leaves no header behind
            self._writer.writeheader()
            self._has_header = True
        self._writer.writerows(_rounded(row) for row in rows)

    def finish(self) -> None: ...


class TableRows:
    """A table for people, printed at the end; it leaves out columns that the other formats have."""

    def __init__(self, file: TextIO | None) -> None:
        self._console = Console(file=file, width=120) if file else Console()
        self._rows: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        self._rows.extend(rows)

    def finish(self) -> None:
        table = compact_table()
        table.add_column("file", overflow="fold")
        for heading in ("seconds", "valence", "arousal", *(name[0].upper() for name in TRAITS), "heard"):
            table.add_column(heading, justify="right", no_wrap=True)
        folder = _common_folder([str(row["file"]) for row in self._rows])
        last_file: object = None
        for row in self._rows:
            numbers = [_cell(row[name]) for name in ("valence", "arousal", *TRAITS)]
            heard = "–" if row["speech_s"] is None else f"{row['utterance_count']} utt., {row['speech_s']:.0f} s"
            file = "" if row["file"] == last_file else os.path.relpath(str(row["file"]), folder)
            last_file = row["file"]
            table.add_row(Text(file), f"{row['start_s']:.1f}–{row['end_s']:.1f}", *numbers, heard)
        self._console.print(table)


def _common_folder(files: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]) if files else ""


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _rounded(row: Row) -> Row:
    # Estimates are 32-bit floats: further digits carry no information.
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
