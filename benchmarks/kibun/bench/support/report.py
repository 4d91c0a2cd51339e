"""What a benchmark returns, and how it is shown: a table, one JSON object, a figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from kibun.training.evaluation.report_table import Table, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """payload: the object that --json prints, machine included. draw: makes the figure; needs matplotlib."""

    payload: dict[str, Any]
    tables: tuple[Table, ...]
    draw: "Callable[[], Figure]"


def run(measure: Callable[[], Report], *, as_json: bool, plot: Path | None) -> dict[str, Any]:
    """Measure, then show; the payload. A plot that could not be written is refused before anything is measured."""
    if plot is not None:
        from kibun.training.evaluation.plots import STYLE, PlotError, check_path, save

        try:
            check_path(plot)
        except PlotError as error:
            fail(f"--plot: {error}")
        import matplotlib  # fails now if it is missing, not after minutes of measuring
    report = measure()
    if plot is not None:
        with matplotlib.rc_context(STYLE):  # text takes its size when it is made
            save(report.draw(), plot)
    show(report.tables, as_json=as_json, payload=report.payload)
    return report.payload


def fail(message: str) -> NoReturn:
    """Say what is wrong with an option and how to put it right; exit code 2."""
    typer.echo(f"kibun bench: {message}", err=True)
    raise typer.Exit(2)
