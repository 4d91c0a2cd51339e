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


@synth_app.command()
def speech(
    out: Annotated[Path, typer.Option(help="Folder for audio and manifest.jsonl; created if missing.")],
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
    out: Annotated[Path, typer.Option(help="Folder for dialogue.flac and dialogue.json; created if missing.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same dialogue.")] = 0,
) -> None:
    """Render the demo's two-speaker dialogue."""
    from kibun.training.demo_tiny.dialogue import render_dialogue
    from kibun.training.demo_tiny.espeak import EspeakError

    try:
        typer.echo(f"wrote {render_dialogue(out, seed)}")
    except EspeakError as error:
        fail(str(error))


@train_app.command("demo-tiny")
def demo_tiny(
    out: Annotated[Path, typer.Option(help="Folder for corpus, runs and bundle.")],
    quick: Annotated[bool, typer.Option("--quick", help="A small corpus, few steps: to see it work.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Weights, batches and augmentation.")] = 0,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "4",
    jobs: Annotated[int, typer.Option(min=1, help="Processes that render; does not change the result.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of training; 0: torch's choice.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object and nothing else.")
    ] = False,
) -> None:
    """Make the bundle demo-tiny from nothing: render a corpus, train a small HuBERT and three runs, build, measure.

    Needs espeak-ng. Started again, it goes on where it was cut off.
    """
    import torch

    from kibun.training.demo_tiny import recipe
    from kibun.training.demo_tiny.espeak import EspeakError

    if threads:
        torch.set_num_threads(threads)
    command = f"kibun train demo-tiny --out {out.name}{' --quick' if quick else ''} --seed {seed} --version {version}"
    try:
        figures = recipe.make_demo_tiny(
            out,
            recipe.QUICK if quick else recipe.FULL,
            version=version,
            seed=seed,
            command=f"{command} --threads {threads}",
            jobs=jobs,
            report=lambda step: typer.echo(f"{step} …", err=True),
        )
    except (EspeakError, ValueError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(figures))
        return
    typer.echo("CCC on test: " + ", ".join(f"{name} {value:.3f}" for name, value in figures["test_ccc"].items()))
    typer.echo(f"wrote {figures['bundle']}; `kibun serve --model {figures['bundle']}` serves it")


@train_app.command()
def voices(
    manifest: Annotated[list[Path], typer.Option(help="Manifest of recordings, as by `train prepare`; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder for nets and bundle; created if missing.")],
    synthetic: Annotated[
        list[Path] | None, typer.Option(help="Manifest of generated speech, as by `synth speech`; repeatable.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "voices",
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    license_file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Text of the licence and attributions, to go into the bundle as LICENSE."
        ),
    ] = None,
    start: Annotated[
        str, typer.Option(help="Bundle whose trunk the nets begin with; '' for random weights.")
    ] = "demo-tiny",
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. [default: the recipe's]")] = None,
    check_steps: Annotated[
        int | None, typer.Option(min=1, help="Of each net that leaves voices out. [default: the recipe's]")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Also train nets that leave a corpus or the test speakers out, for the card's figures.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps: to see it work.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Weights, batches and augmentation.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of training; 0: torch's choice.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object and nothing else.")
    ] = False,
) -> None:
    """Make a bundle for valence and arousal from recordings of people: train, leave corpora out, measure, build.

    Every utterance needs valence and arousal. Started again, it goes on where it was cut off.
    """
    import dataclasses

    import torch

    from kibun.training.evaluation.report_table import show
    from kibun.training.voices import recipe
    from kibun.training.voices.corpora import read_corpora
    from kibun.training.voices.measure import Figures, table

    if threads:
        torch.set_num_threads(threads)
    options = dataclasses.replace(recipe.QUICK if quick else recipe.FULL, start=start or None)
    options = dataclasses.replace(options, steps=steps or options.steps, check_steps=check_steps or options.check_steps)
    manifests = [*(("--manifest", path) for path in manifest), *(("--synthetic", path) for path in synthetic or ())]
    said = " ".join(f"{flag} {path.resolve().parent.name}/{path.name}" for flag, path in manifests)
    command = f"kibun train voices {said} --out {out.name} --name {name} --version {version} --seed {seed}"
    command += f" --start '{start}' --steps {options.steps} --check-steps {options.check_steps} --threads {threads}"
    command += " --quick" if quick else ""
    try:
        figures = recipe.make_voices(
            out,
            read_corpora(manifest, synthetic or ()),
            options,
            name=name,
            version=version,
            seed=seed,
            command=command,
            license_text=license_file.read_text(encoding="utf-8") if license_file else None,
            measure=measure,
            report=lambda step: typer.echo(f"{step} …", err=True),
        )
    except ValueError as error:  # corpora, bundles
        fail(str(error))
    if found := {label: Figures.from_json(content) for label, content in figures["figures"].items()}:
        tables = [table(f"{name}: voices not heard", found)]
        show(tables, figures, as_json=as_json)
    elif as_json:
        typer.echo(json.dumps(figures))
    if not as_json:
        typer.echo(f"wrote {figures['bundle']}; `kibun serve --model {figures['bundle']}` serves it")
