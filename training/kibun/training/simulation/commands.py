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
    quick: Annotated[bool, typer.Option("--quick", help="Less data, 3 worlds, 1 seed: 2 minutes on 2 cores.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="As sound, through a small HuBERT; 1 world, 1 seed.")] = False,
    worlds: Annotated[int | None, typer.Option(min=1, help="Number of worlds, from 0 on; default 5.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, from 0 on; default 3.")] = None,
    profiles: Annotated[int | None, typer.Option(help="Speakers to train on; default 1000, as sound 600.")] = None,
    utterances: Annotated[int | None, typer.Option(help="Of each speaker; default 24, with --quick 12.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; does not change the figures.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON object to this file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the heads into this .png, .svg or .pdf.")] = None,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """The paper's heads on simulated data with known ground truth, in which traits change what cues mean.

    Several worlds, each with rules of its own, held-out speakers with new voices, ceilings by Monte Carlo, a control in
    which traits only shift valence, CA with as many parameters as TICN-CA. It shows the mechanism, not the gain on
    IEMOCAP. With --audio, utterances are rendered as short voiced tones and encoded by a HuBERT of 4 convolutions and
    3 layers, pre-trained to recognise cues, then frozen; traits are inaudible there.

    --json: worlds, a list: world (its seed) and its figures by name, each with mean, sd and values (by seed); pooled:
    the same figures over worlds (values: means of worlds); parameters of each head; verdicts: claim, unit, bounds,
    required (all, most or no), values and held (by world), mean, sd, holds; seeds, options, seconds, note, passed.
    Names of figures: baseline, concat, ca, ca_acoustic, ca_wide, ca_deep, ticn_ca, ticn_ca_acoustic, shuffled,
    shuffled_at_test, traits_only, ceilings.*, control.*, noise.*, personality.*, predicted.*, heard.*, constant.*,
    truth.mixed, cue_accuracy.

    Exit code 0 where every claim holds in as many worlds as it is required to (all, or more than half), 1 where one
    does not, 2 for bad options. Progress goes to standard error: a bar on a terminal, otherwise lines.
    """
    if quick and audio:
        fail("--quick and --audio exclude each other: choose one")
    check_one_form(as_json=as_json, as_markdown=as_markdown)
    import dataclasses

    from kibun.training.evaluation.report_table import show
    from kibun.training.progress import Progress
    from kibun.training.simulation.data import AUDIO, QUICK, SimulationOptions
    from kibun.training.simulation.paper import jobs_for, run_jobs
    from kibun.training.simulation.summary import summarise
    from kibun.training.simulation.tables import to_tables

    options, default_worlds, default_seeds = SimulationOptions(), 5, 3
    if quick:
        options, default_worlds, default_seeds = QUICK, 3, 1
    elif audio:
        options, default_worlds, default_seeds = AUDIO, 1, 1
    try:
        options = dataclasses.replace(
            options,
            profiles=options.profiles if profiles is None else profiles,
            utterances=options.utterances if utterances is None else utterances,
        )
    except ValueError as error:
        fail(str(error))
    if out is not None and not out.parent.is_dir():
        fail(f"--out: no such folder: {out.parent}; make it first")
    if plot is not None:
        from kibun.training.evaluation.plots import PlotError, check_path, save

        try:
            check_path(plot)
        except PlotError as error:
            fail(f"--plot: {error}")
        from kibun.training.simulation.plot import draw  # needs matplotlib: known now, not after minutes
    started = time.monotonic()
    todo = jobs_for(range(worlds or default_worlds), range(seeds or default_seeds))
    measured = run_jobs(todo, options, jobs or os.cpu_count() or 1, Progress())
    payload = summarise(measured, options, time.monotonic() - started)
    if out is not None:
        out.write_text(json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    if plot is not None:
        save(draw(payload), plot)
    show(to_tables(payload), as_json=as_json, as_markdown=as_markdown, payload=payload)
    if not payload["passed"]:
        raise typer.Exit(1)
