"""`kibun synth world`. Heavy imports happen inside the command."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kibun.training.errors import fail


def world(
    out: Annotated[Path, typer.Option(help="Folder to write to; created if missing.")],
    audio: Annotated[bool, typer.Option("--audio", help="Audio and manifest.jsonl; without: world.npz only.")] = False,
    dialogues: Annotated[int, typer.Option(help="Dialogues, of two speakers each.")] = 200,
    utterances: Annotated[int, typer.Option(help="Utterances of each speaker in a dialogue.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of speakers and utterances.")] = 0,
    world_seed: Annotated[int, typer.Option("--world", help="Seed of the rules that make valence.")] = 0,
    interaction: Annotated[
        bool, typer.Option("--interaction/--no-interaction", help="Whether traits change what cues mean.")
    ] = True,
    evidence: Annotated[float, typer.Option(help="How audible traits are; 0: not at all.")] = 1.0,
    audio_format: Annotated[str, typer.Option("--format", help="flac or wav, 16 bit, 16 kHz.")] = "flac",
    jobs: Annotated[int, typer.Option(min=1, help="Processes; does not change the result.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Make a corpus with known ground truth, in which traits change what a voice's cues mean for valence.

    With --audio, cues are short voiced tones; the corpus then trains and tests like any other, and corpus.json has
    the highest CCC that valence can reach. Without, the scenes and frames at feature level go into world.npz.
    """
    from rich.console import Console
    from rich.progress import Progress

    from kibun.training.simulation.world_corpus import WorldCorpusOptions, write_world_audio, write_world_features

    try:
        options = WorldCorpusOptions(
            dialogues, utterances, seed, world_seed, interaction, evidence, audio_format=audio_format
        )
        if audio:
            with Progress(console=Console(stderr=True), disable=as_json) as progress:
                task = progress.add_task("rendering", total=dialogues)
                written = write_world_audio(out, options, jobs, lambda count: progress.advance(task, count))
        else:
            written = write_world_features(out, options)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or out}: cannot be written ({error.strerror}); give --out another folder")
    summary = {"path": str(written), "utterances": 2 * dialogues * utterances}
    typer.echo(json.dumps(summary) if as_json else f"wrote {written}")
