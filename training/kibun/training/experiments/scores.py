"""Tables of runs: scores by seed with their significance, lines, reports, and their printed and JSON forms."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.report_table import Cell, Row, Table
from kibun.training.evaluation.significance import Comparison, compare

Draws = list[NDArray[np.float64]]  # estimates of one trained model for N utterances, (N,) for each draw of noise


@dataclasses.dataclass(frozen=True)
class Score:
    """One figure of a table.

    values: one for each seed; one alone where nothing is random. comparison: with the baseline of the line, if any.
    runs: names of the run folders that it comes from.
    """

    values: tuple[float, ...]
    comparison: Comparison | None = None
    published: float | None = None
    runs: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds, ddof 1; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def cell(self) -> Cell:
        """The cell that prints as `mean ± sd **`."""
        stars = self.comparison.stars if self.comparison is not None else ""
        return Cell.of_seeds(self.values, stars=stars, published=self.published)

    def plain(self) -> dict[str, Any]:
        """{"mean", "sd", "values", "runs"} and, where there are, "comparison" and "published"."""
        filled: dict[str, Any] = {"mean": self.mean, "sd": self.sd, "values": list(self.values)}
        if self.comparison is not None:
            filled["comparison"] = {**dataclasses.asdict(self.comparison), "stars": self.comparison.stars}
        if self.published is not None:
            filled["published"] = self.published
        return {**filled, "runs": list(self.runs)}


@dataclasses.dataclass(frozen=True)
class ScoreLine:
    """A line of a report. about: its fields in JSON. scores: by column; a column without one shows "–"."""

    label: str
    about: Mapping[str, Any]
    scores: Mapping[str, Score]


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """One table. figure: what its scores are, "CCC" or "RMSE". name: identifies it in JSON."""

    name: str
    title: str
    figure: str
    columns: tuple[str, ...]
    lines: tuple[ScoreLine, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """The table for the terminal and for Markdown."""
        rows = [
            Row(line.label, tuple(_cell(line.scores.get(column)) for column in self.columns)) for line in self.lines
        ]
        return Table(self.title, (self.figure, *self.columns), tuple(rows), self.notes, digits=3)

    def plain(self) -> dict[str, Any]:
        """{"name", "title", "figure", "columns", "rows": [{"label", …, "scores": {column: …}}], "notes"}."""
        rows = [
            {
                "label": line.label,
                **line.about,
                "scores": {column: score.plain() for column, score in line.scores.items()},
            }
            for line in self.lines
        ]
        head = {"name": self.name, "title": self.title, "figure": self.figure, "columns": list(self.columns)}
        return {**head, "rows": rows, "notes": list(self.notes)}


@dataclasses.dataclass(frozen=True)
class CommandOutput:
    """Everything that a command prints: reports, warnings for the reader, and further fields of the JSON."""

    table: str
    reports: tuple[ScoreTable, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """{"table", …facts, "warnings", "reports"}."""
        reports = [report.plain() for report in self.reports]
        return {"table": self.table, **self.facts, "warnings": list(self.warnings), "reports": reports}


def score(
    truth: NDArray[np.float64],
    clusters: Sequence[tuple[str, ...]],
    seeds: Sequence[Draws],
    against: Sequence[Draws] | None = None,
    *,
    published: float | None = None,
    runs: Sequence[str] = (),
) -> Score:
    """CCC of each seed's estimates with the truth (N,); of several draws, the mean of their CCCs.

    against: estimates to compare with by paired bootstrap over the clusters (N names), by the mean CCC over seeds and
    draws. Raises ValueError as `compare` does.
    """
    values = tuple(math.fsum(ccc(draw, truth) for draw in draws) / len(draws) for draws in seeds)
    comparison = None
    if against is not None:
        sides = [np.stack([draw for draws in side for draw in draws]) for side in (seeds, against)]
        comparison = compare(sides[0], sides[1], truth, clusters)
    return Score(values, comparison, published, tuple(runs))


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of several scores, seed by seed."""
    values = tuple(map(statistics.fmean, zip(*(one.values for one in scores), strict=True)))
    return Score(values, runs=tuple(dict.fromkeys(name for one in scores for name in one.runs)))


def _cell(found: Score | None) -> Cell:
    return Cell(None) if found is None else found.cell()
