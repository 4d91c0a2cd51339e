"""`kibun eval conditioning|personality|emotion|noise|loso|multitask`: tables of many runs, one command each.

A command trains what its table needs and `--runs` does not hold yet, evaluates on test, and prints the table. Heavy
imports happen inside the commands.
"""

import dataclasses
import enum
import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from kibun.training.errors import check_one_form, fail
from kibun.training.options import JsonOption, MarkdownOption

if TYPE_CHECKING:
    from kibun.training.experiments.run_store import RunStore
    from kibun.training.experiments.scores import CommandOutput
    from kibun.training.experiments.study import Study
    from kibun.training.runs.config import RunConfig

TraitSets = Annotated[
    str, typer.Option("--traits", help="each: OP, CO, EX, AG and NE singly; all: the five; or some by name.")
]
Model = Annotated[str, typer.Option("--model", help="The conditioned model: concat, ca or ticn-ca.")]


class TrainWith(enum.StrEnum):
    """The traits that a model tested with predicted ones is trained with."""

    TRUTH = "truth"
    SAME = "same"


class Experiment(Protocol):
    """A table of runs."""

    def plan(self) -> "list[RunConfig]":
        """The runs that it needs, in the order to train them."""

    def evaluate(self) -> "CommandOutput":
        """The table, from finished runs."""


@dataclasses.dataclass(frozen=True)
class Shared:
    """The options that tables of runs share, in the order of their help; a command's own come after `runs`."""

    config: Annotated[str, typer.Option("--config", help="TOML of the settings all runs share, or a recipe: iemocap.")]
    runs: Annotated[
        Path,
        typer.Option("--runs", help="Folder of runs. Finished ones are not trained again, interrupted ones continue."),
    ]
    out: Annotated[
        Path | None, typer.Option(help="Also write the JSON here; `kibun plot multitask --table` draws it.")
    ] = None
    manifest: Annotated[Path | None, typer.Option("--manifest", help="manifest.jsonl, instead of the TOML file's.")] = (
        None
    )
    pr_config: Annotated[
        str | None, typer.Option("--pr-config", help="TOML of the personality runs, where it differs from --config.")
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting on top of the files: training.epochs=10. Repeatable."),
    ] = None
    seeds: Annotated[str, typer.Option("--seeds", help="One run for each seed; mean ± sd are over the seeds.")] = (
        "0,1,2"
    )
    dimension: Annotated[str, typer.Option("--dimension", help="valence, arousal, or both.")] = "valence,arousal"
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and which are finished; train nothing.")] = (
        False
    )
    as_json: JsonOption = False
    as_markdown: MarkdownOption = False


def table_command(
    *optional: Literal["out", "pr_config", "dimension"],
) -> Callable[[Callable[..., Experiment]], Callable[..., None]]:
    """Turn `make(study, runs, own options)` into a command that also has the options of `Shared`.

    optional: those of the three that the command has; the others are left at their defaults.
    """

    def decorate(make: Callable[..., Experiment]) -> Callable[..., None]:
        left_out = {"out", "pr_config", "dimension"}.difference(optional)
        shared = [
            parameter.replace(kind=parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(Shared).parameters.items()
            if name not in left_out
        ]
        own = list(inspect.signature(make).parameters.values())[2:]
        parameters = [*shared[:2], *own, *shared[2:]]

        @functools.wraps(make)
        def command(**options: Any) -> None:
            own_options = {parameter.name: options.pop(parameter.name) for parameter in own}
            _run(Shared(**options), functools.partial(make, **own_options))

        typed: Any = command  # typer reads its options from the signature and the annotations
        typed.__signature__ = inspect.Signature(parameters)
        typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def add_experiment_commands(app: typer.Typer) -> None:
    """Add the commands of tables IV to VIII and Figure 3."""
    for command in (conditioning, personality, emotion, noise, loso, multitask):
        app.command()(command)


@table_command("dimension")
def conditioning(
    study: "Study",
    runs: "RunStore",
    *,
    models: Annotated[
        str, typer.Option(help="Of baseline, regression, concat, ca, ticn-ca. The baseline is always there.")
    ] = "baseline,concat,ca,ticn-ca",
    traits: TraitSets = "each,all",
    shuffled: Annotated[
        str | None,
        typer.Option(help="Models of the control rows with shuffled traits, or all; default: the last of --models."),
    ] = None,
) -> Experiment:
    """Emotion by way of conditioning, on true traits, singly and together (Table IV)."""
    from kibun.training.experiments.options import as_trait_sets, as_words
    from kibun.training.experiments.table_conditioning import conditioning as table

    controls = None if shuffled is None else as_words(shuffled, "--shuffled")
    return table(study, runs, as_words(models, "--models"), as_trait_sets(traits), controls)


@table_command()
def personality(
    study: "Study",
    runs: "RunStore",
    *,
    setting: Annotated[
        str | None, typer.Option(help="1, 2, 3, or several; default: all, and causal setting 3.")
    ] = None,
    causal: Annotated[
        bool, typer.Option("--causal", help="Also causal setting 3 (from the utterances so far).")
    ] = False,
) -> Experiment:
    """Personality from speech: CCC and error of settings 1, 2, 3 and causal 3 (Table V)."""
    from kibun.training.experiments.options import as_settings
    from kibun.training.experiments.table_personality import personality as table

    return table(study, runs, as_settings(setting, causal=causal))


@table_command("pr_config", "dimension")
def emotion(
    study: "Study",
    runs: "RunStore",
    *,
    traits_from: Annotated[
        str, typer.Option(help="Of setting1, setting2, setting3, causal3 (predicted) and oracle (true).")
    ] = "setting1,setting2,setting3,causal3,oracle",
    train_with: Annotated[TrainWith, typer.Option(help="truth; or same: the predicted traits.")] = TrainWith.TRUTH,
    traits: TraitSets = "each,all",
    model: Model = "ticn-ca",
) -> Experiment:
    """Emotion conditioned on predicted traits, singly and together (Table VI)."""
    from kibun.training.experiments.options import as_trait_sets, as_words
    from kibun.training.experiments.table_conditioning import emotion as table

    sources, sets = as_words(traits_from, "--traits-from"), as_trait_sets(traits)
    return table(study, runs, model, sources, sets, train_with=train_with.value)


@table_command("dimension")
def noise(
    study: "Study",
    runs: "RunStore",
    *,
    sigma: Annotated[str, typer.Option(help="Standard deviations on the 1..7 scale.")] = "0,.1,.2,.4,.8,1.2,1.6",
    draws: Annotated[int, typer.Option(min=1, help="Draws of noise to average over.")] = 5,
    model: Model = "ticn-ca",
) -> Experiment:
    """Emotion conditioned on true traits with noise (Table VII)."""
    from kibun.training.experiments.options import as_numbers
    from kibun.training.experiments.table_conditioning import noise as table

    return table(study, runs, model, as_numbers(sigma, "--sigma"), draws)


@table_command("pr_config", "dimension")
def loso(
    study: "Study",
    runs: "RunStore",
    *,
    folds: Annotated[
        str, typer.Option(help="Splits, by name or path, in place of the settings' own.")
    ] = "loso_1,loso_2,loso_3,loso_4,loso_5",
    traits_from: Annotated[str, typer.Option(help="As in `kibun eval emotion`.")] = "oracle,setting3",
    model: Model = "ticn-ca",
) -> Experiment:
    """Baseline and conditioned model, leave one session out (Table VIII)."""
    from kibun.training.experiments.options import as_words
    from kibun.training.experiments.table_conditioning import loso as table

    return table(study, runs, model, as_words(folds, "--folds"), as_words(traits_from, "--traits-from"))


@table_command("out", "pr_config", "dimension")
def multitask(
    study: "Study",
    runs: "RunStore",
    *,
    setting: Annotated[str, typer.Option(help="Of the traits: 1, 2 or 3.")] = "1",
    traits: Annotated[
        str,
        typer.Option("--traits", help="each: a multi-task model per trait; all: one for the five; or some by name."),
    ] = "each",
) -> Experiment:
    """One model per task beside multi-task models, one per trait (Figure 3)."""
    from kibun.training.experiments.options import as_settings, as_trait_sets
    from kibun.training.experiments.table_multitask import multitask as table
    from kibun.training.runs.config import ConfigError

    chosen = as_settings(setting, causal=False)
    if len(chosen) > 1:
        raise ConfigError(f"--setting: {setting!r}: choose one of 1, 2, 3")
    return table(study, runs, chosen[0], as_trait_sets(traits))


def _run(shared: Shared, make: "Callable[[Study, RunStore], Experiment]") -> None:
    """Check the options, train the missing runs, evaluate, print."""
    check_one_form(as_json=shared.as_json, as_markdown=shared.as_markdown)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fail("a table trains its runs in one process; without torchrun, give each GPU a command with its own --seeds")
    from kibun.training.evaluation.report_table import show
    from kibun.training.experiments.options import as_dimensions, as_seeds
    from kibun.training.experiments.run_store import RunStore
    from kibun.training.experiments.study import read_study

    runs = RunStore(shared.runs, lambda line: typer.echo(line, err=True))
    try:
        study = read_study(
            shared.config,
            personality=shared.pr_config,
            manifest=shared.manifest,
            settings=shared.settings or (),
            seeds=as_seeds(shared.seeds),
            dimensions=as_dimensions(shared.dimension),
        )
        experiment = make(study, runs)
        if shared.dry_run:
            _list(runs, experiment.plan(), shared)
            return
        runs.train(experiment.plan())
        result = experiment.evaluate()
        if shared.out is not None:
            shared.out.write_text(json.dumps(result.plain(), allow_nan=False, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:  # of settings, corpus, bundle or predictions, or of the disk
        fail(str(error))
    tables = [report.table() for report in result.reports]
    show(tables, as_json=shared.as_json, as_markdown=shared.as_markdown, payload=result.plain())


def _list(runs: "RunStore", configs: "Sequence[RunConfig]", shared: Shared) -> None:
    """Print the runs of a table, once each."""
    from kibun.training.evaluation.report_table import Cell, Row, Table, show

    states = {runs.name(config): runs.state(config) for config in configs}
    missing = sum(state != "finished" for state in states.values())
    rows = tuple(Row(name, (Cell(state),)) for name, state in states.items())
    notes = (f"{len(states)} runs, {missing} to train. One that was begun goes on where it was cut off.",)
    payload = {"missing": missing, "runs": [{"name": name, "state": state} for name, state in states.items()]}
    table = Table(f"Runs in {shared.runs}", ("run", "state"), rows, notes)
    show([table], as_json=shared.as_json, as_markdown=shared.as_markdown, payload=payload)
