"""Rows as tables that programs read: JSON lines, CSV, TSV and Parquet."""

import csv
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from kibun.client.errors import InputError
from kibun.client.installation import install_command, is_there
from kibun.client.recordings.rows import COLUMNS, SUMMARY_COLUMNS, FileResult, Row, RowsBy, rounded, rows_by
from kibun.client.standard_streams import printable

if TYPE_CHECKING:
    import pandas

# Of columns that hold something other than a float.
_TEXTS = (
    *("file", "status", "reason", "message", "participant", "turn_id", "utterance_id"),
    *("no_better_than_mean", "condition_source", "model"),
)
_KINDS = {
    **dict.fromkeys(_TEXTS, "string"),
    **dict.fromkeys(("utterance_count", "participant_count"), "Int64"),
    "synthetic_model": "boolean",
}


class ResultOutput(Protocol):
    """Where results go."""

    def write(self, result: FileResult) -> None:
        """Takes the result of one file."""
        ...

    def finish(self) -> None:
        """Is called once, after the last file, also where Ctrl-C ends it."""
        ...


def need(what: str, *packages: str) -> None:
    """Raises InputError, with the command that installs them, where packages are missing that `what` needs."""
    if missing := [name for name in packages if not is_there(name)]:
        raise InputError(f"{what} needs {' and '.join(missing)}: {install_command('analyze')}")


def columns(by: RowsBy) -> tuple[str, ...]:
    """Names of the columns, in order."""
    return COLUMNS if by is RowsBy.UTTERANCE else SUMMARY_COLUMNS


class JsonRows:
    """One JSON object per line."""

    def __init__(self, file: TextIO | None, by: RowsBy = RowsBy.UTTERANCE) -> None:
        self._file = file or sys.stdout
        self._by = by

    def write(self, result: FileResult) -> None:
        for row in rows_by(result, self._by):
            print_json(rounded(row), self._file)

    def finish(self) -> None: ...


def print_json(values: Mapping[str, object], output: TextIO) -> None:
    """Prints one line; where the output is not UTF-8, in ASCII."""
    is_utf8 = (output.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(values, ensure_ascii=not is_utf8), file=output, flush=True)


class CsvRows:
    """CSV, or TSV, with a header."""

    def __init__(self, file: TextIO | None, by: RowsBy = RowsBy.UTTERANCE, delimiter: str = ",") -> None:
        self._output = file or sys.stdout
        self._by = by
        self._to_terminal = self._output.isatty()
        self._writer = csv.DictWriter(self._output, columns(by), lineterminator="\n", delimiter=delimiter)
        self._has_header = False

    def write(self, result: FileResult) -> None:
        if not self._has_header:  # not before the first file: a server that cannot be reached leaves no header behind
            self._writer.writeheader()
            self._has_header = True
        for row in map(rounded, rows_by(result, self._by)):
            if self._to_terminal:
                row["file"] = printable(str(row["file"]))
            self._writer.writerow(row)
        self._output.flush()  # what is done stays, whatever ends the run

    def finish(self) -> None: ...


class ParquetRows:
    """A Parquet file, written at the end."""

    def __init__(self, path: Path, by: RowsBy = RowsBy.UTTERANCE) -> None:
        self._path = path
        self._by = by
        self._rows: list[Row] = []

    def write(self, result: FileResult) -> None:
        self._rows += map(rounded, rows_by(result, self._by))

    def finish(self) -> None:
        whole = self._path.with_name(f".{self._path.name}.part")
        frame_of(self._rows, columns(self._by)).to_parquet(whole, index=False)
        os.replace(whole, self._path)


def frame_of(rows: list[Row], names: tuple[str, ...]) -> "pandas.DataFrame":
    """A DataFrame with a type per column that does not depend on which cells are empty."""
    import pandas

    def column(name: str) -> Any:
        return pandas.array([row[name] for row in rows], dtype=_KINDS.get(name, "float64"))

    return pandas.DataFrame({name: column(name) for name in names})
