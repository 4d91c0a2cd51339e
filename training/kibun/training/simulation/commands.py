"""`kibun bench paper`: the models on simulated data with known ground truth. Heavy imports are inside the command."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from kibun.training.errors import check_one_form, fail
from kibun.training.options import JsonOption, MarkdownOption


def paper(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer utterances and epochs: minutes on two cores.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="As sound, through a small HuBERT; half an hour.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")] = 3,
    profiles: Annotated[int | None, typer.Option(help="Speakers to train on; default 1000, as sound 600.")] = None,
    world: Annotated[int, typer.Option(help="Seed of the rules by which cues and traits make valence.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; does not change the figures.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON object to this file.")] = None,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """The paper's heads on simulated data with known ground truth, in which traits change what cues mean.

    Held-out speakers with new voices, ceilings by Monte Carlo, a control in which traits only shift valence.
    --json: baseline, concat, ca, ticn_ca, shuffled, shuffled_at_test, traits_only, each with mean, sd and values (by
    seed); ceilings (none, additive, full); control (the heads, ceilings, and gain = TICN-CA minus the better of
    baseline and Concat, whose mean and sd are also control's own); personality; predicted; noise; heard; verdicts. It
    shows the mechanism, not the gain on IEMOCAP. With --audio, scenes are rendered as short voiced tones and encoded by
    a HuBERT of 4 convolutions and 3 layers, pre-trained to recognise cues, then frozen; traits are inaudible there.
    Exit code 1 where a required verdict does not hold.
    """
    if quick and audio:
        fail("--quick and --audio exclude each other: choose one")
    check_one_form(as_json=as_json, as_markdown=as_markdown)
    import dataclasses

    from rich.console import Console
    from rich.progress import Progress

    from kibun.training.evaluation.report_table import show
    from kibun.training.simulation.data import AUDIO, QUICK, SimulationOptions
    from kibun.training.simulation.paper import jobs_for, run_jobs
    from kibun.training.simulation.summary import summarise, to_tables

    options = QUICK if quick else AUDIO if audio else SimulationOptions()
    try:
        options = dataclasses.replace(options, world=world, profiles=profiles or options.profiles)
    except ValueError as error:
        fail(str(error))
    if out is not None and not out.parent.is_dir():
        fail(f"--out: no such folder: {out.parent}; make it first")
    started = time.monotonic()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=1.0)
        by_seed = run_jobs(
            jobs_for(range(seeds)), options, jobs or os.cpu_count() or 1, lambda share: progress.advance(task, share)
        )
    payload = summarise(by_seed, options, time.monotonic() - started)
    if out is not None:
        out.write_text(json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    show(to_tables(payload), as_json=as_json, as_markdown=as_markdown, payload=payload)
    if not payload["passed"]:
        raise typer.Exit(1)
