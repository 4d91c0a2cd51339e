"""`kibun plot …`: the paper's figures, and the curves of a run. Heavy imports happen inside the commands."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from kibun.training.errors import fail

plot_app = typer.Typer(help="Draw the paper's figures, and the curves of a run.", no_args_is_help=True)

OutOption = Annotated[Path, typer.Option("--out", help="Picture to write: .png, .svg or .pdf.")]


@plot_app.command()
def hexbin(
    predictions: Annotated[Path, typer.Option(help="Predictions file of a run, such as predictions-test.jsonl.")],
    out: OutOption,
    dimension: Annotated[str, typer.Option(help="valence, arousal, or a trait (openness, …).")] = "valence",
    estimate: Annotated[
        str | None,
        typer.Option(help="Of a trait: utterance_traits, average_traits, conversation_traits or causal_traits."),
    ] = None,
    title: Annotated[str, typer.Option(help="Start of the title; default: the dimension.")] = "",
) -> None:
    """Predicted against true, as hexagons by density (Figures 2 and 4)."""
    from kibun.training.evaluation import plots
    from kibun.training.evaluation.predictions import check_figure, read_predictions

    with _picture(out):
        check_figure(dimension, estimate)
        plots.save(plots.hexbin(read_predictions(predictions), dimension, estimate, title), out)


@plot_app.command()
def multitask(
    table: Annotated[
        Path,
        typer.Option(help='JSON: {"single": {"valence": {"mean": .7, "sd": .01}, …}, "multitask": {the same names}}.'),
    ],
    out: OutOption,
) -> None:
    """CCC of one model per task beside the multi-task model, with sd over seeds (Figure 3)."""
    from kibun.training.evaluation import plots

    with _picture(out):
        try:
            results = json.loads(table.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not even UTF-8
            fail(f"{table}: not JSON ({error})")
        plots.save(plots.multitask(results, str(table)), out)


@plot_app.command()
def heard(
    out: OutOption,
    bundle: Annotated[str | None, typer.Option(help="Bundle, folder or name: its expected error.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Or a predictions file with causal traits.")] = None,
) -> None:
    """Error of the traits against the number of utterances so far."""
    from kibun.models.building.facts import read_facts
    from kibun.models.files import resolve_bundle
    from kibun.training.evaluation import plots
    from kibun.training.evaluation.predictions import read_predictions

    with _picture(out):
        if bundle is not None and predictions is None:
            facts = read_facts(resolve_bundle(bundle))
            note = " (synthetic speech)" if facts.synthetic else ""
            drawn = plots.error_by_count(
                [(row.utterance_count, row.error) for row in facts.evidence or ()],
                f"Expected error of {facts.name}{note}",
            )
        elif predictions is not None and bundle is None:
            errors, measured = plots.measured_errors(read_predictions(predictions))
            drawn = plots.error_by_count(errors, f"Error of the traits, {predictions.name}", measured)
        else:
            fail("give either --bundle or --predictions")
        plots.save(drawn, out)


@plot_app.command()
def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of `kibun train`, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture: .png, .svg or .pdf. Default: curves.png in the run's folder.")
    ] = None,
) -> None:
    """Training loss and dev CCC of a run, evaluation by evaluation."""
    from kibun.training.evaluation import plots
    from kibun.training.runs.folder import LOG, read_log

    path = folder / "curves.png" if out is None else out
    with _picture(path):
        if not (folder / LOG).is_file():
            fail(f"{folder / LOG}: missing; give the folder of a run of `kibun train pr|ser|mtl`")
        plots.save(plots.curves(read_log(folder), folder.resolve().name), path)


@contextlib.contextmanager
def _picture(out: Path) -> Iterator[None]:
    """End with an error, or report that OUT was written; its suffix is checked before anything is read."""
    from kibun.training.evaluation.plots import check_path

    try:
        check_path(out)
        yield
    except (ValueError, OSError) as error:  # of the plot, the predictions or the bundle, or of the disk
        fail(str(error))
    typer.echo(f"wrote {out}")
