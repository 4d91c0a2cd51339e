"""`kibun bench …`. Each command measures in a module of its own, imported only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from kibun.training.bench_commands import paper

bench_app = typer.Typer(help="Measure speed and exactness, and models against known truth.", no_args_is_help=True)

Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds and lengths: within a minute on two cores.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the figure into this .png, .svg or .pdf.")]


@bench_app.callback()
def _bench() -> None:
    """Measure speed and exactness, and models against known truth."""


bench_app.command()(paper)
