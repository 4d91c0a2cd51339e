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


@bench_app.command()
def serve(
    quick: Quick = False,
    as_json: Json = False,
    plot: Plot = None,
    model: Annotated[
        str | None, typer.Option(help="Bundle to measure; default: HuBERT-base's size, random weights.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of each load: more finals, steadier percentiles.", min=1)
    ] = None,
) -> None:
    """A real server beside the bare encoder loop; its latency at 20, 60, 90 and 300 % load; start-up and memory.

    Linux only. --json: served_over_bare; final_latency_ms (p50, p95, p99 at 60 % load); refused (share under threefold
    load; refused_count is the number), overload (p95 of what was admitted, ratio_to_60, refusal_ms of the slowest);
    finals_lost; throughput, by_load, start, machine.
    """
    from kibun.bench import report, serve
    from kibun.bench.child import ChildError
    from kibun.client.server_process import ServerStartError
    from kibun.models.files import BundleError, resolve_bundle

    try:
        if model is not None:
            resolve_bundle(model)
        report.run(lambda: serve.measure(model, quick=quick, seconds=seconds), as_json=as_json, plot=plot)
    except BundleError as error:
        report.fail(f"--model: {error}")
    except (ChildError, ServerStartError, serve.MeasurementError) as error:
        typer.echo(f"kibun bench serve: {error}", err=True)
        raise typer.Exit(1) from error
