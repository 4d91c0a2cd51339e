"""`kibun eval …` and `kibun plot …`: the paper's tables and figures. Heavy imports happen inside the commands."""

import typer

eval_app = typer.Typer(help="Compute the paper's tables.", no_args_is_help=True)
plot_app = typer.Typer(help="Draw the paper's figures.", no_args_is_help=True)


@eval_app.callback()
def _eval() -> None:
    """Compute the paper's tables."""


@plot_app.callback()
def _plot() -> None:
    """Draw the paper's figures."""
