"""Tables for the terminal and as Markdown. Every command that prints a table uses this."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.console

NOTHING = "–"

# (p, its mark), strictest first.
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
STARS_NOTE = "* p < .05, ** p < .01, *** p < .001"


def stars(p: float | None) -> str:
    """`*` for p below .05, `**` below .01, `***` below .001, else the empty string."""
    return "" if p is None else next((mark for limit, mark in STARS if p < limit), "")


@dataclass(frozen=True)
class Cell:
    """One figure or word of a table.

    value: floats are shown with the table's digits, whole numbers and words as they are, None as "–".
    sd: standard deviation over seeds, shown as `value ± sd`.
    stars: mark of significance.
    interval: confidence interval, shown as `value [low, high]`.
    published: the paper's figure, shown beside ours.
    """

    value: float | int | str | None
    sd: float | None = None
    stars: str = ""
    interval: tuple[float, float] | None = None
    published: float | None = None

    def __post_init__(self) -> None:
        numbers = [self.value, self.sd, self.published, *(self.interval or ())]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"a cell holds finite numbers only, got {self!r}; use None")

    @classmethod
    def of_seeds(cls, values: Sequence[float], *, stars: str = "", published: float | None = None) -> "Cell":
        """Mean over seeds, with the sample standard deviation (ddof 1) where there are at least two."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), sd, stars, published=published)


@dataclass(frozen=True)
class Row:
    """A row of a table: its label and one cell for each column."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A titled table.

    columns: header of the labels, then one for each cell of a row.
    notes: sentences below the table: meaning of marks, what was left out, what is not shown.
    digits: decimals of its figures; published figures are compared after rounding to them.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    digits: int = 2

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns) - 1:
                raise ValueError(f"{self.title}: row {row.label!r} has {len(row.cells)} cells for {self.columns[1:]}")

    def with_published(self) -> "Table":
        """The table as printed: below each row with a published figure, that figure and the difference.

        Both figures are rounded before subtracting, so that 0 means "equal to the published digits".
        """
        rows: list[Row] = []
        for row in self.rows:
            rows.append(row)
            if any(cell.published is not None for cell in row.cells):
                rows.append(Row("  published", tuple(Cell(cell.published) for cell in row.cells)))
                rows.append(Row("  difference", tuple(self._difference(cell) for cell in row.cells)))
        return Table(self.title, self.columns, tuple(rows), self.notes, self.digits)

    def text(self, cell: Cell) -> str:
        """A cell as text: `0.71 ± 0.02 **`."""
        if cell.value is None:
            return NOTHING
        if not isinstance(cell.value, float):
            return f"{cell.value}{cell.stars}"
        text = self._number(cell.value)
        if cell.sd is not None:
            text += f" ± {self._number(cell.sd)}"
        if cell.interval is not None:
            text += " [{}, {}]".format(*map(self._number, cell.interval))
        return f"{text} {cell.stars}" if cell.stars else text

    def _number(self, value: float) -> str:
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # + 0.0: no minus before a zero

    def _difference(self, cell: Cell) -> Cell:
        if cell.published is None or not isinstance(cell.value, float):
            return Cell(None)
        difference = round(round(cell.value, self.digits) - round(cell.published, self.digits), self.digits)
        return Cell(f"{difference:+.{self.digits}f}" if difference else self._number(0.0))


def to_rich(table: Table) -> "rich.console.Group":
    """The table for the terminal: title, table, and notes below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = table.with_published()
    drawn = RichTable(box=box.SIMPLE_HEAD)
    drawn.add_column(shown.columns[0], overflow="fold")
    for column in shown.columns[1:]:
        drawn.add_column(column, justify="right", overflow="fold")
    for row in shown.rows:
        style = "dim" if row.label.startswith("  ") else ""
        drawn.add_row(Text(row.label), *(Text(shown.text(cell)) for cell in row.cells), style=style)
    title = Text(shown.title, style="bold")  # apart from the table: it may be wider
    return Group(title, drawn, *(Text(f" {note}", style="dim") for note in shown.notes))


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown: title, table, notes."""
    shown = table.with_published()
    lines = [f"**{_escape(shown.title)}**", ""]
    lines.append("| " + " | ".join(map(_escape, shown.columns)) + " |")
    lines.append("|---|" + "--:|" * (len(shown.columns) - 1))
    for row in shown.rows:
        label = "&nbsp;&nbsp;" + row.label.strip() if row.label.startswith("  ") else row.label
        lines.append("| " + " | ".join([_escape(label), *(_escape(shown.text(cell)) for cell in row.cells)]) + " |")
    if shown.notes:
        lines += ["", *(f"{_escape(note)}  " for note in shown.notes[:-1]), _escape(shown.notes[-1])]
    return "\n".join(lines)


def show(
    tables: Sequence[Table], payload: Mapping[str, Any], *, as_json: bool = False, as_markdown: bool = False
) -> None:
    """Print tables on standard output: for the terminal, as Markdown, or their payload as JSON and nothing else.

    Raises ValueError if both other forms are asked for, and for NaN in the payload.
    """
    if as_json and as_markdown:
        raise ValueError("--json and --markdown exclude each other: choose one")
    if as_json:
        print(json.dumps(payload, allow_nan=False, indent=2, ensure_ascii=False))
    elif as_markdown:
        print("\n\n".join(to_markdown(table) for table in tables))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        drawn = [to_rich(table) for table in tables]
        if not console.is_terminal:  # a file has no width to fold at
            widths = [console.measure(part, options=console.options.update(max_width=10_000)).maximum for part in drawn]
            console.width = max(console.width, *widths)
        for part in drawn:
            console.print(part)


def _escape(text: str) -> str:
    """Escape stars and bars, which Markdown would interpret."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
