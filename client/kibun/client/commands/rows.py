"""Rows of `kibun analyze`: one per utterance, the same columns in every format."""

import csv
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kibun.client.audio_file import as_text
from kibun.client.commands.report import compact_table, print_json, widen
from kibun.client.estimates import TRAITS, Traits
from kibun.client.events import PersonalityUpdate, StreamStarted, UtteranceResult
from kibun.client.standard_streams import printable

Row = dict[str, str | float | int | bool | None]

# None (an empty cell) where nothing was estimated: too little speech, or a model that does not estimate it.
COLUMNS = (
    # As named or found; bytes that are not UTF-8 as \xNN.
    "file",
    # ok: the whole file was analysed; no_speech: it was, and holds no utterance; incomplete: it was cut off or damaged,
    # and what is there was analysed; failed: it was not analysed. A file without utterances has one row, without them.
    "status",
    # Stable name of why the status is not ok, and the sentence.
    "reason",
    "message",
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
    # Names of the traits whose error is not below that of guessing the mean for everyone, by spaces; they are worth
    # nothing. None: none is, or it is unknown.
    "no_better_than_mean",
    "utterance_count",
    "speech_s",
    # Apparent traits from this utterance alone.
    *(f"utterance_{name}" for name in TRAITS),
    # What emotion was conditioned on: given traits, or predicted ones of some kind.
    "condition_source",
    "model",
    "synthetic_model",
)
# The table shows at most this many utterances, the first and last ones of each file.
MOST_UTTERANCES_SHOWN = 40


@dataclass(frozen=True)
class FileStatus:
    """What became of a file: see `COLUMNS`."""

    status: str
    reason: str = ""
    message: str = ""


def row_without(path: Path, status: FileStatus, started: StreamStarted | None = None) -> Row:
    """The row of a file in which no utterance was found or that failed."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= _of_file(path, status)
    if started is not None:
        row |= {"model": started.model, "synthetic_model": started.synthetic_model}
    return row


def _of_file(path: Path, status: FileStatus) -> Row:
    return {
        "file": as_text(path),
        "status": status.status,
        "reason": status.reason or None,
        "message": status.message or None,
    }


def row_of(
    path: Path, status: FileStatus, final: UtteranceResult, update: PersonalityUpdate | None, started: StreamStarted
) -> Row:
    """The row of one utterance; `update` is what was known of the speaker after it."""
    known = update.personality if update else None
    emotion = final.emotion
    row: Row = _of_file(path, status) | {
        "utterance_id": final.utterance_id,
        "start_s": final.start_s,
        "end_s": final.end_s,
        "analyzed_s": final.analyzed_s,
        "valence": None if emotion is None else emotion.valence,
        "arousal": None if emotion is None else emotion.arousal,
        "no_better_than_mean": (" ".join(known.no_better_than_mean) if known else "") or None,
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
            print_json(_rounded(row), self._file)

    def finish(self) -> None: ...


class CsvRows:
    """CSV with a header."""

    def __init__(self, file: TextIO | None) -> None:
        output = file or sys.stdout
        self._to_terminal = output.isatty()
        self._writer = csv.DictWriter(output, COLUMNS, lineterminator="\n")
        self._has_header = False

    def write(self, rows: Sequence[Row]) -> None:
        if not self._has_header:  # not before the first file: a server that cannot be reached leaves no header behind
            self._writer.writeheader()
            self._has_header = True
        for row in map(_rounded, rows):
            if self._to_terminal:
                row["file"] = printable(str(row["file"]))
            self._writer.writerow(row)

    def finish(self) -> None: ...


class TableRows:
    """Tables for people, printed at the end: utterances, as far as they are few, and a summary of each file.

    They leave out columns that the other formats have.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._console = Console(file=file, width=120) if file else Console()
        widen(self._console)
        self._rows: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        self._rows.extend(rows)

    def finish(self) -> None:
        # One file may be named twice, so they are told apart by where they stand.
        files = [list(rows) for _file, rows in itertools.groupby(self._rows, key=lambda row: row["file"])]
        if not files:
            return
        folder = _common_folder([str(rows[0]["file"]) for rows in files])
        spoken = [rows for rows in files if rows[0]["utterance_id"] is not None]
        share = MOST_UTTERANCES_SHOWN // max(len(spoken), 1) // 2 * 2
        utterances = sum(len(rows) for rows in spoken)
        few = utterances <= MOST_UTTERANCES_SHOWN
        if spoken and (few or share >= 4):
            for rows in spoken:
                self._console.print(Text(_name(rows, folder), style="bold"))
                self._console.print(_utterance_table(rows, len(rows) if few else share))
        if not few:
            self._console.print(
                f"{utterances} utterances: -f csv or -f jsonl has a row for each", markup=False, highlight=False
            )
        self._console.print(_summary_table(files, folder))
        self._console.print(Text(_LEGEND, style="dim"))


_LEGEND = "valence, arousal: means, 1..5, 3 neutral; OCEAN: apparent traits after the last utterance, 1..7"


def _name(rows: Sequence[Row], folder: str) -> str:
    file = str(rows[0]["file"])
    return printable(os.path.relpath(file, folder) if folder else file)


def _utterance_table(rows: Sequence[Row], most: int) -> Table:
    table = compact_table()
    for heading, width in (("seconds", 13), ("valence", 7), ("arousal", 7), *((name[0].upper(), 4) for name in TRAITS)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("heard", justify="right", no_wrap=True, min_width=14)
    for number, row in enumerate(rows):
        if len(rows) > most and most // 2 <= number < len(rows) - most // 2:
            if number == most // 2:
                table.add_row(f"… {len(rows) - most} more …")
            continue
        numbers = [_cell(row[name]) for name in ("valence", "arousal", *TRAITS)]
        heard = "–" if row["speech_s"] is None else f"{row['utterance_count']} utt., {row['speech_s']:.0f} s"
        table.add_row(f"{row['start_s']:.1f}–{row['end_s']:.1f}", *numbers, heard)
    return table


def _summary_table(files: Sequence[Sequence[Row]], folder: str) -> Table:
    table = compact_table()
    table.add_column("file", overflow="fold", min_width=16)
    for heading in ("utt.", "speech", "valence", "arousal", *(name[0].upper() for name in TRAITS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for rows in files:
        spoken = [row for row in rows if row["utterance_id"] is not None]
        speech_s = sum(_number(row["end_s"]) - _number(row["start_s"]) for row in spoken)
        means = [_cell(_mean([row[name] for row in spoken])) for name in ("valence", "arousal")]
        last = next((row for row in reversed(spoken) if row[TRAITS[0]] is not None), None)
        traits = [_cell(None if last is None else last[name]) for name in TRAITS]
        status = str(rows[0]["status"]).replace("_", " ")
        name = Text(_name(rows, folder))
        if status != "ok":
            name.append(f" ({status})", style="yellow")
        table.add_row(name, str(len(spoken)), f"{speech_s:.0f} s", *means, *traits)
    return table


def _mean(values: Sequence[object]) -> float | None:
    numbers = [_number(value) for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _common_folder(files: list[str]) -> str:
    """The folder that all lie in, "" where one is standard input or it is the current one."""
    if "-" in files:
        return ""
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _rounded(row: Row) -> Row:
    # Estimates are 32-bit floats: further digits carry no information.
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
