"""`kibun synth …` and `kibun train …`. Heavy imports happen inside the commands, so that help is instant."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kibun.training.corpora.commands import prepare_app
from kibun.training.errors import fail
from kibun.training.runs.commands import add_fit_commands
from kibun.training.simulation.world_commands import world

synth_app = typer.Typer(help="Generate labelled speech.", no_args_is_help=True)
synth_app.command()(world)
train_app = typer.Typer(help="Train models.", no_args_is_help=True)
train_app.add_typer(prepare_app, name="prepare")
add_fit_commands(train_app)


@synth_app.callback()
def _synth() -> None:
    """Generate labelled speech: with espeak-ng, or in a world with known truth."""


@train_app.callback()
def _train() -> None:
    """Train models."""


@synth_app.command()
def speech(
    out: Annotated[Path, typer.Option(help="Folder for audio and manifest.jsonl; made if need be.")],
    utterances: Annotated[int, typer.Option(min=1, help="How many utterances.")] = 6000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same corpus.")] = 0,
    per_speaker: Annotated[int, typer.Option(min=1, help="Utterances of each speaker.")] = 12,
    min_seconds: Annotated[float, typer.Option(help="Shortest utterance aimed at.")] = 1.5,
    max_seconds: Annotated[float, typer.Option(help="Longest utterance; longer ones are cut.")] = 4.5,
    audio_format: Annotated[str, typer.Option("--format", help="flac or wav, 16 bit, 16 kHz.")] = "flac",
    jobs: Annotated[int, typer.Option(min=1, help="Processes; does not change the result.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Render a corpus whose arousal, valence and trait labels come from the generator's settings."""
    from rich.progress import Progress

    from kibun.training.demo_tiny.corpus import CorpusOptions, render_corpus
    from kibun.training.demo_tiny.espeak import EspeakError

    try:
        options = CorpusOptions(utterances, per_speaker, seed, min_seconds, max_seconds, audio_format=audio_format)
        with Progress(disable=as_json) as progress:
            task = progress.add_task("rendering", total=utterances)
            manifest = render_corpus(out, options, jobs, lambda count: progress.advance(task, count))
    except (EspeakError, ValueError) as error:
        fail(str(error))
    typer.echo(json.dumps({"manifest": str(manifest), "utterances": utterances}) if as_json else f"wrote {manifest}")


@synth_app.command()
def dialogue(
    out: Annotated[Path, typer.Option(help="Folder for dialogue.flac and dialogue.json; made if need be.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same dialogue.")] = 0,
) -> None:
    """Render the demo's two-speaker dialogue."""
    from kibun.training.demo_tiny.dialogue import render_dialogue
    from kibun.training.demo_tiny.espeak import EspeakError

    try:
        typer.echo(f"wrote {render_dialogue(out, seed)}")
    except EspeakError as error:
        fail(str(error))


@train_app.command()
def tiny(
    manifest: Annotated[Path, typer.Option(help="manifest.jsonl of a corpus with traits and emotion.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1400,
    seed: Annotated[int, typer.Option(help="Weights, batches and augmentation.")] = 0,
    start_from: Annotated[Path | None, typer.Option(help="Weights to start with: a bundle, or WORK/best.")] = None,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="Highest learning rate.")] = 1e-3,
    evaluations: Annotated[int, typer.Option(min=1, help="How often dev is evaluated.")] = 4,
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "demo-tiny",
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's choice.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for log.jsonl; default OUT-work.")] = None,
) -> None:
    """Train a small HuBERT for `kibun train pr` and `ser` to start from, with all tasks on it at once."""
    import torch

    from kibun.training.demo_tiny.recipe import train_tiny
    from kibun.training.demo_tiny.trainer import TrainOptions
    from kibun.training.errors import ManifestError

    if threads:
        torch.set_num_threads(threads)
    options = TrainOptions(steps=steps, seed=seed, evaluations=evaluations, learning_rate=learning_rate)
    command = f"kibun train tiny --manifest {manifest.parent.name}/{manifest.name} --out {out.name} --steps {steps}"
    command += f" --seed {seed} --evaluations {evaluations} --name {name} --version {version} --threads {threads}"
    command += f" --learning-rate {learning_rate:g}"
    command += f" --start-from {start_from}" if start_from is not None else ""
    work = work or out.with_name(out.name + "-work")
    try:
        figures = train_tiny(manifest, out, work, options, name, version, (command,), start_from)
    except (ManifestError, ValueError) as error:
        fail(str(error))
    typer.echo(json.dumps(figures))
