"""A user's own table of utterances in CSV, TSV or JSONL, read with file and line so that errors can name them."""

import csv
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kibun.training.corpora.lines import as_float, json_objects
from kibun.training.errors import ManifestError

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row. An empty cell of CSV or TSV is None."""

    where: str  # file:line
    cells: Mapping[str, Any]


class CellError(ManifestError):
    """One cell cannot be used."""

    def __init__(self, where: str, column: str, what: str) -> None:
        super().__init__(f"{where}: column {column!r} {what}")


def read_table(path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    """(columns, rows) of a .csv or .tsv with a header, or of a .jsonl with an object a line, all UTF-8.

    Raises:
        ManifestError: another kind of file, unreadable, empty, a line that is not JSON, a column twice in the header,
            or a line with more or fewer cells than the header.
    """
    if path.suffix not in (*SEPARATORS, ".jsonl"):
        raise ManifestError(f"{path}: must be a .csv, .tsv or .jsonl file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if path.suffix == ".jsonl":
        rows = [TableRow(where, cells) for where, cells in json_objects(path, text, ManifestError)]
    else:
        rows = list(_csv_rows(path, text))
    if not rows:
        raise ManifestError(f"{path}: has no utterances")
    return tuple(dict.fromkeys(column for row in rows for column in row.cells)), rows


def text(row: TableRow, column: str) -> str | None:
    """A cell as stripped text, None where absent. Raises CellError for a number or blank text."""
    value = row.cells.get(column)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise CellError(row.where, column, f"must be text, is {value!r}")
    return value.strip()


def needed_text(row: TableRow, column: str) -> str:
    """A cell as text. Raises CellError where it is absent."""
    value = text(row, column)
    if value is None:
        raise CellError(row.where, column, "is empty, and needed")
    return value


def number(row: TableRow, column: str, low: float, high: float, hint: str = "") -> float | None:
    """A cell as a number from ``low`` to ``high``, None where absent. Raises CellError for anything else."""
    value = row.cells.get(column)
    if value is None:
        return None
    parsed = math.nan if isinstance(value, bool) else as_float(value)
    if not low <= parsed <= high:  # false for NaN as well
        raise CellError(row.where, column, f"must be a number from {low:g} to {high:g}, is {value!r}{hint}")
    return parsed


def _csv_rows(path: Path, content: str) -> Iterator[TableRow]:
    reader = csv.reader(content.splitlines(keepends=True), delimiter=SEPARATORS[path.suffix], strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise ManifestError(f"{path}:1: column {twice[0]!r} is there twice")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}:{reader.line_num}"
            if len(cells) != len(header):
                fix = "put text with a separator in it into double quotes"
                raise ManifestError(f"{where}: has {len(cells)} cells, the header has {len(header)}; {fix}")
            # An empty cell stays in the row, so that its column is known to exist.
            yield TableRow(
                where, {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True)}
            )
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}: not CSV ({error})") from error
