"""`kibun bench …`: what the models can do on data with known truth. Heavy imports happen inside the commands."""

import typer

bench_app = typer.Typer(help="Run benchmarks with known truth.", no_args_is_help=True)


@bench_app.callback()
def _bench() -> None:
    """Run benchmarks with known truth."""
