"""The table of `kibun analyze`, for people: it fits 80 columns, however long names and recordings are."""

import os
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kibun.client.estimates import TRAITS
from kibun.client.recordings.rows import FileResult, Row, RowsBy, number, rows_by, summary
from kibun.client.standard_streams import printable

# The tables show at most this many utterances; recordings with more than their share are shown in stretches.
MOST_UTTERANCES_SHOWN = 40
_MOST_STRETCHES = 12
_STRETCHES_S = (10, 30, 60, 120, 300, 600, 900, 1800, 3600)
_DIMENSIONS = ("valence", "arousal", *TRAITS)
# A narrower terminal breaks the lines: the tables keep all of their columns.
_NARROWEST = 80
_LEGEND = "valence, arousal: means, 1..5, 3 neutral; OCEAN: traits heard by the end, 1..7"
# Of the summary, what the numbers and the gaps between them take.
_NUMBERS_WIDTH = 52
_SPEAKER_WIDTH = 10


class Tables:
    """Printed at the end: the utterances of each file, or stretches where they are many, and a summary of every file.

    They leave out columns that the other formats have. A FileResult stands for a file, as one may be named twice.
    """

    def __init__(self, file: TextIO | None, by: RowsBy) -> None:
        self._console = Console(file=file, width=80) if file else Console()
        self._console.width = max(self._console.width, _NARROWEST)
        self._by = by
        self._results: list[FileResult] = []

    def write(self, result: FileResult) -> None:
        self._results.append(result)

    def finish(self) -> None:
        if not self._results:
            return
        folder = _common_folder([str(result.rows[0]["file"]) for result in self._results])
        if self._by is RowsBy.UTTERANCE:
            self._print_utterances(folder)
        self._console.print(self._summary(folder))
        self._console.print(Text(_LEGEND, style="dim"))

    def _print_utterances(self, folder: str) -> None:
        spoken = [result for result in self._results if result.utterances]
        utterances = sum(len(result.utterances) for result in spoken)
        share = MOST_UTTERANCES_SHOWN if utterances <= MOST_UTTERANCES_SHOWN else _MOST_STRETCHES
        if len(spoken) * min(share, utterances / max(len(spoken), 1)) <= MOST_UTTERANCES_SHOWN:
            for result in spoken:
                self._console.print(Text(shortened(_name(result, folder), self._console.width), style="bold"))
                self._console.print(_utterances(result, share))
        if utterances > MOST_UTTERANCES_SHOWN:
            self._console.print(
                f"{utterances} utterances: -f csv or -f jsonl has a row for each", markup=False, highlight=False
            )

    def _summary(self, folder: str) -> Table:
        by = RowsBy.FILE if self._by is RowsBy.FILE else RowsBy.SPEAKER
        rows = [(result, row) for result in self._results for row in rows_by(result, by)]
        several = by is RowsBy.SPEAKER and any(len(result.participants) > 1 for result in self._results)
        width = self._console.width - _NUMBERS_WIDTH - several * (_SPEAKER_WIDTH + 1)
        table = _compact_table()
        table.add_column("file", no_wrap=True, min_width=16)
        if several:
            table.add_column("speaker", no_wrap=True)
        for heading in ("utt.", "speech", "valence", "arousal", *(name[0].upper() for name in TRAITS)):
            table.add_column(heading, justify="right", no_wrap=True)
        before: FileResult | None = None
        for result, row in rows:
            state = "" if row["status"] == "ok" else f" ({str(row['status']).replace('_', ' ')})"
            name = Text(shortened(_name(result, folder), width - len(state)) if result is not before else "")
            name.append(state if result is not before else "", style="yellow")
            before = result
            speaker = [shortened(printable(str(row["participant"] or "–")), _SPEAKER_WIDTH)] * several
            figures = [str(row["utterance_count"]), f"{number(row['speech_s']):.0f} s"]
            table.add_row(name, *speaker, *figures, *(_cell(row[dimension]) for dimension in _DIMENSIONS))
        return table


def shortened(text: str, width: int) -> str:
    """Text of at most `width` cells: what is too long loses its middle, as paths tell most at their ends."""
    if cell_len(text) <= width:
        return text
    head = chop_cells(text, max((width - 1) // 3, 1))[0]
    tail = ""
    for character in reversed(text):
        if cell_len(head) + 1 + cell_len(character + tail) > width:
            break
        tail = character + tail
    return f"{head}…{tail}"


def _compact_table() -> Table:
    """Ten columns of numbers fit into 80 characters."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)


def _utterances(result: FileResult, most: int) -> Table:
    """A row per utterance, or per stretch of time where they are more than `most`."""
    rows = result.utterances
    several = len(result.participants) > 1
    table = _compact_table()
    table.add_column("seconds" if len(rows) <= most else "time", justify="right", no_wrap=True, min_width=13)
    if several:
        table.add_column("speaker", no_wrap=True)
    for heading, width in (("valence", 7), ("arousal", 7), *((name[0].upper(), 3) for name in TRAITS)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column(
        "heard" if len(rows) <= most else "utt.", justify="right", no_wrap=True, min_width=14 - 2 * several
    )
    if len(rows) > most:
        for stretch, of_stretch in _stretches(result):
            for who in dict.fromkeys(row["participant"] for row in of_stretch):
                of_speaker = [row for row in of_stretch if row["participant"] == who]
                means = summary(of_speaker, 1)
                cells = [_cell(means[dimension]) for dimension in _DIMENSIONS]
                speaker = [shortened(printable(str(who)), _SPEAKER_WIDTH)] * several
                table.add_row(stretch, *speaker, *cells, str(len(of_speaker)))
                stretch = ""
        return table
    for row in rows:
        heard = "–" if row["speech_s"] is None else f"{row['utterance_count']} utt., {row['speech_s']:.0f} s"
        speaker = [shortened(printable(str(row["participant"])), _SPEAKER_WIDTH)] * several
        cells = [_cell(row[dimension]) for dimension in _DIMENSIONS]
        table.add_row(f"{row['start_s']:.1f}–{row['end_s']:.1f}", *speaker, *cells, heard)
    return table


def _stretches(result: FileResult) -> Iterator[tuple[str, list[Row]]]:
    """Stretches of equal length in which somebody speaks, with their utterances."""
    rows = result.utterances
    end_s = max(number(row["end_s"]) for row in rows)
    length_s = next((length_s for length_s in _STRETCHES_S if end_s / length_s <= _MOST_STRETCHES), 7200)
    for at in range(int(end_s // length_s) + 1):
        start_s = at * length_s
        if here := [row for row in rows if start_s <= number(row["start_s"]) < start_s + length_s]:
            yield f"{_clock(start_s)}–{_clock(start_s + length_s)}", here


def _clock(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _name(result: FileResult, folder: str) -> str:
    file = str(result.rows[0]["file"])
    return printable(os.path.relpath(file, folder) if folder else file)


def _common_folder(files: Sequence[str]) -> str:
    """The folder that all lie in, "" where one is standard input or it is the current one."""
    if "-" in files:
        return ""
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
