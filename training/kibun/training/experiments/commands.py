"""`kibun eval conditioning|personality|emotion|noise|loso|multitask`: tables of many runs, one command each.

A command trains what its table needs and `--runs` does not hold yet, evaluates on test, and prints the table. Heavy
imports happen inside the commands.
"""

import dataclasses
import enum
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from kibun.training.errors import fail

if TYPE_CHECKING:
    from kibun.training.experiments.run_store import Runs
    from kibun.training.experiments.scores import Result
    from kibun.training.experiments.study import Study
    from kibun.training.runs.config import RunConfig

Config = Annotated[str, typer.Option("--config", help="TOML of the settings all runs share, or a recipe: iemocap.")]
RunsFolder = Annotated[
    Path, typer.Option("--runs", help="Folder of runs. What it holds is not trained again; what was cut off goes on.")
]
Manifest = Annotated[Path | None, typer.Option("--manifest", help="manifest.jsonl, instead of the TOML file's.")]
PrConfig = Annotated[
    str | None, typer.Option("--pr-config", help="TOML of the personality runs, where it differs from --config.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting on top of the files: training.epochs=10. Repeatable.")
]
Seeds = Annotated[str, typer.Option("--seeds", help="One run of everything for each; mean ± sd are over them.")]
Dimensions = Annotated[str, typer.Option("--dimension", help="valence, arousal, or both.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the runs and which are finished; train nothing.")]
Model = Annotated[str, typer.Option("--model", help="The conditioned model: concat, ca or ticn-ca.")]

THREE = "0,1,2"
BOTH = "valence,arousal"


class TrainWith(enum.StrEnum):
    """Whose traits a model is trained with, that is tested with predicted ones."""

    TRUTH = "truth"
    SAME = "same"


class Experiment(Protocol):
    """A table of runs."""

    def plan(self) -> "list[RunConfig]":
        """The runs that it needs, in the order to train them."""

    def evaluate(self) -> "Result":
        """The table, from finished runs."""


@dataclasses.dataclass(frozen=True)
class Common:
    """The options that all of these commands have."""

    config: str
    runs: Path
    manifest: Path | None
    pr_config: str | None
    settings: Sequence[str] | None
    seeds: str
    dimensions: str
    as_json: bool
    as_markdown: bool
    dry_run: bool


def add_experiment_commands(app: typer.Typer) -> None:
    """Add the commands of tables IV to VIII and Figure 3."""
    for command in (conditioning, personality, emotion, noise, loso, multitask):
        app.command()(command)


def conditioning(
    config: Config,
    runs: RunsFolder,
    models: Annotated[
        str, typer.Option(help="Of baseline, regression, concat, ca, ticn-ca. The baseline is always there.")
    ] = "baseline,concat,ca,ticn-ca",
    traits: Annotated[
        str, typer.Option(help="each: OP, CO, EX, AG and NE singly; all: the five; or some by name.")
    ] = "each,all",
    shuffled: Annotated[
        str | None,
        typer.Option(help="Models of the control rows with shuffled traits, or all; default: the last of --models."),
    ] = None,
    manifest: Manifest = None,
    settings: Settings = None,
    seeds: Seeds = THREE,
    dimension: Dimensions = BOTH,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Emotion by way of conditioning, on true traits, singly and together (Table IV)."""
    common = Common(config, runs, manifest, None, settings, seeds, dimension, as_json, as_markdown, dry_run)

    def make(study: "Study", folder: "Runs") -> Experiment:
        from kibun.training.experiments.options import as_trait_sets, as_words
        from kibun.training.experiments.table_conditioning import conditioning as table

        controls = None if shuffled is None else as_words(shuffled, "--shuffled")
        return table(study, folder, as_words(models, "--models"), as_trait_sets(traits), controls)

    _run(common, make)


def personality(
    config: Config,
    runs: RunsFolder,
    setting: Annotated[
        str | None, typer.Option(help="1, 2, 3, or several; default: all, and causal setting 3.")
    ] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Setting 3 from what was heard so far, too.")] = False,
    manifest: Manifest = None,
    settings: Settings = None,
    seeds: Seeds = THREE,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Personality from speech: CCC and error of settings 1, 2, 3 and causal 3 (Table V)."""
    common = Common(config, runs, manifest, None, settings, seeds, BOTH, as_json, as_markdown, dry_run)

    def make(study: "Study", folder: "Runs") -> Experiment:
        from kibun.training.experiments.options import as_settings
        from kibun.training.experiments.table_personality import personality as table

        return table(study, folder, as_settings(setting, causal=causal))

    _run(common, make)


def emotion(
    config: Config,
    runs: RunsFolder,
    traits_from: Annotated[
        str, typer.Option(help="Of setting1, setting2, setting3, causal3 (predicted) and oracle (true).")
    ] = "setting1,setting2,setting3,causal3,oracle",
    train_with: Annotated[TrainWith, typer.Option(help="truth; or same: the predicted traits.")] = TrainWith.TRUTH,
    model: Model = "ticn-ca",
    manifest: Manifest = None,
    pr_config: PrConfig = None,
    settings: Settings = None,
    seeds: Seeds = THREE,
    dimension: Dimensions = BOTH,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Emotion conditioned on predicted traits (Table VI)."""
    common = Common(config, runs, manifest, pr_config, settings, seeds, dimension, as_json, as_markdown, dry_run)

    def make(study: "Study", folder: "Runs") -> Experiment:
        from kibun.training.experiments.options import as_words
        from kibun.training.experiments.table_conditioning import emotion as table

        return table(study, folder, model, as_words(traits_from, "--traits-from"), train_with=train_with.value)

    _run(common, make)


def noise(
    config: Config,
    runs: RunsFolder,
    sigma: Annotated[str, typer.Option(help="Standard deviations on the 1..7 scale.")] = "0,.1,.2,.4,.8,1.2,1.6",
    draws: Annotated[int, typer.Option(min=1, help="Draws of noise that a figure is the mean of.")] = 5,
    model: Model = "ticn-ca",
    manifest: Manifest = None,
    settings: Settings = None,
    seeds: Seeds = THREE,
    dimension: Dimensions = BOTH,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Emotion conditioned on true traits with noise (Table VII)."""
    common = Common(config, runs, manifest, None, settings, seeds, dimension, as_json, as_markdown, dry_run)

    def make(study: "Study", folder: "Runs") -> Experiment:
        from kibun.training.experiments.options import as_numbers
        from kibun.training.experiments.table_conditioning import noise as table

        return table(study, folder, model, as_numbers(sigma, "--sigma"), draws)

    _run(common, make)


def loso(
    config: Config,
    runs: RunsFolder,
    folds: Annotated[
        str, typer.Option(help="Splits, by name or path; they take the place of the settings' own.")
    ] = "loso_1,loso_2,loso_3,loso_4,loso_5",
    traits_from: Annotated[str, typer.Option(help="As in `kibun eval emotion`.")] = "oracle,setting3",
    model: Model = "ticn-ca",
    manifest: Manifest = None,
    pr_config: PrConfig = None,
    settings: Settings = None,
    seeds: Seeds = THREE,
    dimension: Dimensions = BOTH,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Baseline and conditioned model, leave one session out (Table VIII)."""
    common = Common(config, runs, manifest, pr_config, settings, seeds, dimension, as_json, as_markdown, dry_run)

    def make(study: "Study", folder: "Runs") -> Experiment:
        from kibun.training.experiments.options import as_words
        from kibun.training.experiments.table_loso import loso as table

        return table(study, folder, model, as_words(folds, "--folds"), as_words(traits_from, "--traits-from"))

    _run(common, make)


def multitask(
    config: Config,
    runs: RunsFolder,
    setting: Annotated[str, typer.Option(help="Of the traits: 1, 2 or 3.")] = "1",
    out: Annotated[
        Path | None, typer.Option(help="Also write the JSON here; `kibun plot multitask --table` draws it.")
    ] = None,
    manifest: Manifest = None,
    pr_config: PrConfig = None,
    settings: Settings = None,
    seeds: Seeds = THREE,
    dimension: Dimensions = BOTH,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """One model per task beside the multi-task model (Figure 3)."""
    common = Common(config, runs, manifest, pr_config, settings, seeds, dimension, as_json, as_markdown, dry_run)

    def make(study: "Study", folder: "Runs") -> Experiment:
        from kibun.training.experiments.options import as_settings
        from kibun.training.experiments.table_multitask import multitask as table
        from kibun.training.runs.config import ConfigError

        chosen = as_settings(setting, causal=False)
        if len(chosen) > 1:
            raise ConfigError(f"--setting: {setting!r}: choose one of 1, 2, 3")
        return table(study, folder, chosen[0])

    _run(common, make, out)


def _run(common: Common, make: "Callable[[Study, Runs], Experiment]", out: Path | None = None) -> None:
    """Check, train what is missing, evaluate, print."""
    if common.as_json and common.as_markdown:
        fail("--json and --markdown exclude each other: choose one")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fail("a table trains its runs in one process; without torchrun, give each GPU a command with its own --seeds")
    from kibun.models.files import BundleError
    from kibun.training.corpora.manifest import ManifestError
    from kibun.training.evaluation.predictions import PredictionsError
    from kibun.training.evaluation.report_table import show
    from kibun.training.experiments.options import as_dimensions, as_seeds
    from kibun.training.experiments.run_store import Runs
    from kibun.training.experiments.study import read_study
    from kibun.training.runs.config import ConfigError

    runs = Runs(common.runs, lambda line: typer.echo(line, err=True))
    try:
        study = read_study(
            common.config,
            personality=common.pr_config,
            manifest=common.manifest,
            settings=common.settings or (),
            seeds=as_seeds(common.seeds),
            dimensions=as_dimensions(common.dimensions),
        )
        experiment = make(study, runs)
        if common.dry_run:
            _list(runs, experiment.plan(), common)
            return
        runs.train(experiment.plan())
        result = experiment.evaluate()
        if out is not None:
            out.write_text(json.dumps(result.plain(), allow_nan=False, indent=2) + "\n", encoding="utf-8")
    except (ConfigError, ManifestError, BundleError, PredictionsError, ValueError, OSError) as error:
        fail(str(error))
    tables = [report.table() for report in result.reports]
    show(tables, as_json=common.as_json, as_markdown=common.as_markdown, payload=result.plain())


def _list(runs: "Runs", configs: "Sequence[RunConfig]", common: Common) -> None:
    """The runs of a table, once each."""
    from kibun.training.evaluation.report_table import Cell, Row, Table, show

    states = {runs.name(config): runs.state(config) for config in configs}
    missing = sum(state != "finished" for state in states.values())
    rows = tuple(Row(name, (Cell(state),)) for name, state in states.items())
    notes = (f"{len(states)} runs, {missing} to train. One that was begun goes on where it was cut off.",)
    payload = {"missing": missing, "runs": [{"name": name, "state": state} for name, state in states.items()]}
    table = Table(f"Runs in {common.runs}", ("run", "state"), rows, notes)
    show([table], as_json=common.as_json, as_markdown=common.as_markdown, payload=payload)
