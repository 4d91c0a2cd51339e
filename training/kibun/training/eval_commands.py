"""`kibun eval …`: the paper's tables. Heavy imports happen inside the commands."""

import dataclasses
import enum
from pathlib import Path
from typing import Annotated

import typer

from kibun.training.errors import check_one_form, fail
from kibun.training.experiments.commands import add_experiment_commands
from kibun.training.experiments.labels.commands import labels
from kibun.training.options import JsonOption, MarkdownOption

eval_app = typer.Typer(help="Compute the paper's tables.", no_args_is_help=True)


class CorrelationUnit(enum.StrEnum):
    """The unit that is one point of a correlation."""

    UTTERANCE = "utterance"
    CONVERSATION = "conversation"


class By(enum.StrEnum):
    """The groups that a table is split by."""

    GENDER = "gender"


@eval_app.command()
def agreement(
    tipi: Annotated[Path, typer.Option(help="tipi_labels.csv of PA-IEMOCAP: ten items from six raters.")],
    ocean: Annotated[Path, typer.Option(help="ocean.csv of PA-IEMOCAP: the published trait scores.")],
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Agreement of the raters on each trait, beside the published figures (Table I).

    Per trait score the rater farthest from the mean is dropped. --json: one object with the five traits and "average",
    each with icc2k, icc3k, kappa, icc2k_ci95 (of the average: bootstrap over profiles), untrimmed, published, profiles.
    """
    check_one_form(as_json=as_json, as_markdown=as_markdown)
    from kibun.training.evaluation.agreement import read_scores, table_one, to_payload, to_table
    from kibun.training.evaluation.report_table import show

    try:
        result = table_one(*read_scores(tipi, ocean))
    except ValueError as error:
        fail(str(error))
    if result.unlike:
        typer.echo(f"warning: {result.unlike} scores of {ocean} are not the mean of the raters of {tipi}", err=True)
    show([to_table(result)], as_json=as_json, as_markdown=as_markdown, payload=to_payload(result))


@eval_app.command()
def correlations(
    level: Annotated[
        CorrelationUnit, typer.Option(help="What a point is; of a conversation: each speaker's mean emotion.")
    ],
    manifest: Annotated[
        Path | None, typer.Option(help="manifest.jsonl of a corpus with traits, valence and arousal.")
    ] = None,
    emotion: Annotated[
        Path | None,
        typer.Option(
            help="Or, without audio, IEMOCAP's labels: a table with id, valence, arousal, or the folder of Session1 to"
            " 5 or EmoEvaluation, each with --ocean; or a table with the traits in it."
        ),
    ] = None,
    ocean: Annotated[Path | None, typer.Option(help="PA-IEMOCAP's ocean.csv, for labels without traits.")] = None,
    by: Annotated[By | None, typer.Option(help="Also report male and female speakers separately.")] = None,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Correlations of traits and emotion (Table II: utterances, Table III: conversations).

    From a manifest, or from the public label files of IEMOCAP and PA-IEMOCAP alone.

    --json: one object with all, male and female, each with n, left_out, and per trait valence and arousal with r and p.
    """
    check_one_form(as_json=as_json, as_markdown=as_markdown)
    from kibun.training.corpora.emotion_labels import read_label_files, read_whole_table
    from kibun.training.corpora.manifest import load_manifest
    from kibun.training.evaluation.correlations import correlate, to_payload, to_tables
    from kibun.training.evaluation.report_table import show

    try:
        if manifest is not None and ocean is None and emotion is None:
            items = load_manifest(manifest, require=())
        elif manifest is None and emotion is not None:
            if ocean is None and emotion.is_dir():
                fail(f"{emotion} holds no traits: give PA-IEMOCAP's ocean.csv with --ocean")
            labels = read_whole_table(emotion) if ocean is None else read_label_files(emotion, ocean)
            if level is CorrelationUnit.CONVERSATION and not labels.profiled:
                fail(f"{emotion} does not say who speaks: --level conversation needs a column id or speaker")
            items = list(labels.items)
            for warning in labels.warnings:
                typer.echo(f"warning: {warning}", err=True)
        else:
            fail("give either --manifest, or --emotion, with --ocean unless the table holds the traits")
        result = correlate(items, level.value)
    except ValueError as error:
        fail(str(error))
    tables = to_tables(result, by_gender=by is By.GENDER)
    show(tables, as_json=as_json, as_markdown=as_markdown, payload=to_payload(result))


@eval_app.command()
def compare(
    first: Annotated[list[Path], typer.Option(help="Predictions file of the first model; again for each seed.")],
    second: Annotated[list[Path], typer.Option(help="Predictions file of the second model; again for each seed.")],
    dimension: Annotated[str, typer.Option(help="valence, arousal, or a trait (openness, …).")] = "valence",
    estimate: Annotated[
        str | None,
        typer.Option(help="Of a trait: utterance_traits, average_traits, conversation_traits or causal_traits."),
    ] = None,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap draws.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Whether two models differ in CCC: paired cluster bootstrap over speaker-conversations."""
    check_one_form(as_json=as_json, as_markdown=as_markdown)
    from kibun.training.evaluation.predictions import check_figure, read_predictions
    from kibun.training.evaluation.report_table import show
    from kibun.training.evaluation.significance import compare_predictions, to_table

    try:
        check_figure(dimension, estimate)
        ours, theirs = ([read_predictions(path) for path in side] for side in (first, second))
        result = compare_predictions(ours, theirs, dimension, estimate, draws=draws, seed=seed)
    except ValueError as error:
        fail(str(error))
    payload = {**dataclasses.asdict(result), "stars": result.stars}
    show([to_table(result, dimension)], as_json=as_json, as_markdown=as_markdown, payload=payload)


add_experiment_commands(eval_app)
eval_app.command()(labels)
