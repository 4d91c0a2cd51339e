"""`kibun eval labels`. Heavy imports happen inside the command."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from kibun.training.errors import check_one_form, fail
from kibun.training.options import JsonOption, MarkdownOption

QUICK_SEEDS, QUICK_SIGMAS = "0", ".8"


class Estimated(enum.StrEnum):
    """The dimensions to estimate."""

    VALENCE = "valence"
    AROUSAL = "arousal"
    BOTH = "both"


def labels(
    features: Annotated[Path, typer.Option(help="features.npy: (N, D), a row of numbers for each utterance.")],
    labels: Annotated[
        Path,
        typer.Option(help=".csv, .tsv or .jsonl, N rows: dialogue, speaker, valence, arousal, traits; session, id."),
    ],
    dimension: Annotated[Estimated, typer.Option(help="What is estimated.")] = Estimated.BOTH,
    splits: Annotated[
        str, typer.Option(help="loso: leave one session out; paper, or another splits file by name or path.")
    ] = "loso",
    seeds: Annotated[str, typer.Option(help="Of nets, heads, shuffles and noise: 0,1,2.")] = "0,1,2",
    sigma: Annotated[str, typer.Option(help="Standard deviations of noise on true traits, 1..7 scale.")] = ".4,.8,1.6",
    quick: Annotated[bool, typer.Option("--quick", help=f"Seed {QUICK_SEEDS} and sigma {QUICK_SIGMAS} alone.")] = False,
    nets: Annotated[bool, typer.Option(help="Small nets beside the linear models.")] = True,
    heads: Annotated[bool, typer.Option(help="Traits predicted by kibun's own heads.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Also draw the scores with their intervals: .png, .svg, .pdf.")] = (
        None
    ),
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """What given and predicted traits add to any features: linear models and small nets with their controls.

    Within a dialogue, a speaker's rows come in the order spoken. docs/experiments.md explains rows and --json.
    """
    check_one_form(as_json=as_json, as_markdown=as_markdown)
    from kibun.models.types import EMOTIONS
    from kibun.training.corpora.label_table import read_features, read_label_table
    from kibun.training.evaluation import plots
    from kibun.training.evaluation.report_table import show
    from kibun.training.experiments.labels.folds import make_folds, warnings_about
    from kibun.training.experiments.labels.study import LabelOptions, run_study
    from kibun.training.experiments.labels.tables import LabelReport
    from kibun.training.experiments.options import as_numbers, as_seeds

    def progress(line: str) -> None:
        typer.echo(line, err=True)

    try:
        if plot is not None:
            plots.check_path(plot)
        options = LabelOptions(
            emotions=EMOTIONS if dimension is Estimated.BOTH else (dimension.value,),
            seeds=tuple(as_seeds(QUICK_SEEDS if quick else seeds)),
            sigmas=tuple(as_numbers(QUICK_SIGMAS if quick else sigma, "--sigma")),
            settings=heads,
            nets=nets,
        )
        table = read_label_table(labels, options.emotions)
        array = read_features(features, len(table.items))
        folds = make_folds(table, splits)
        warnings = tuple(warnings_about(table, folds))
        for warning in warnings:
            progress(f"warning: {warning}")
        results = run_study(array, table, folds, options, progress)
        facts = {
            "features": str(features),
            "labels": str(labels),
            "splits": splits,
            "utterances": len(table.items),
            "size": array.shape[1],
            "conversations": len({item.conversation for item in table.items}),
        }
        report = LabelReport(results, options, facts, warnings)
        if plot is not None:
            plots.save(plots.interval_bars(report.bars(), f"{labels.name}, {splits}: CCC with 95 % interval"), plot)
    except (ValueError, OSError) as error:  # of labels, features, splits or options, or of the disk
        fail(str(error))
    show(report.tables(), report.plain(), as_json=as_json, as_markdown=as_markdown)
