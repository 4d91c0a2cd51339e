"""`kibun bench paper`: every head, in several worlds and with several seeds, spread over processes.

Each job draws its own data from its world and seed and runs on one thread, so the figures do not depend on how many
processes share the work. The best epoch is chosen on dev, nothing on test, and the settings are the same for all heads.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from kibun.training.evaluation.metrics import ccc
from kibun.training.progress import Progress
from kibun.training.simulation import audio as simulated_audio
from kibun.training.simulation.data import SimulationOptions, Splits, draw_splits
from kibun.training.simulation.evidence import on_heard_traits
from kibun.training.simulation.heads import EmotionEstimator, RowName, fit_head
from kibun.training.simulation.personality import by_speaker, fit_personality, mean_ccc
from kibun.training.simulation.world import make_world
from kibun.training.simulation.world_ceilings import ceilings

ROWS: tuple[RowName, ...] = get_args(RowName)
CONTROL_ROWS: tuple[RowName, ...] = ("baseline", "concat", "ca", "ticn-ca")
SIGMAS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6)  # of Table VII
PERSONALITY_EVIDENCE = 1.0
MAIN_WEIGHT = 18
# How long a job takes, roughly, relative to the quickest.
WEIGHTS: dict[RowName, int] = {
    "baseline": 1,
    "concat": 1,
    "ca": 2,
    "ca-acoustic": 2,
    "ca-wide": 3,
    "ca-deep": 4,
    "ticn-ca": 5,
    "ticn-ca-acoustic": 5,
}


@dataclasses.dataclass(frozen=True)
class HeadJob:
    """One head to train: with interaction or in the control, on true traits or on those of other speakers."""

    world: int
    seed: int
    row: RowName
    interaction: bool = True
    shuffled: bool = False

    @property
    def is_main(self) -> bool:
        """Whether it is the paper's TICN-CA: also measured on other traits, with ceilings beside it."""
        return self.row == "ticn-ca" and not self.shuffled

    @property
    def weight(self) -> int:
        """How long it takes, roughly."""
        return MAIN_WEIGHT if self.is_main and self.interaction else WEIGHTS[self.row]

    @property
    def name(self) -> str:
        """The name of its CCC in the results."""
        name = "shuffled" if self.shuffled else self.row.replace("-", "_")
        return name if self.interaction else f"control.{name}"


Figures = dict[str, float]
"""Figures on test by name; parts of a name are separated by dots."""


def jobs_for(worlds: Sequence[int], seeds: Sequence[int]) -> list[HeadJob]:
    """Everything to be trained, the longest first so that processes end together."""
    jobs = []
    for world in worlds:
        for seed in seeds:
            jobs += [HeadJob(world, seed, row) for row in ROWS]
            jobs += [HeadJob(world, seed, row, interaction=False) for row in CONTROL_ROWS]
            jobs.append(HeadJob(world, seed, "ticn-ca", shuffled=True))
    return sorted(jobs, key=lambda job: -job.weight)


def run_jobs(
    jobs: Sequence[HeadJob], options: SimulationOptions, processes: int, progress: Progress | None = None
) -> dict[tuple[int, int], Figures]:
    """Figures by world and seed."""
    progress = progress or Progress(shown=False)
    figures: dict[tuple[int, int], Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.audio:
            seeds = sorted({job.seed for job in jobs})
            with progress.stage("trunks", len(seeds)) as stage:
                for _ in _done(simulated_audio.prepare, [(options, seed, Path(folder)) for seed in seeds], processes):
                    stage.advance()
        with progress.stage("heads", len(jobs)) as stage:
            for job, measured in _done(measure, [(job, options, Path(folder)) for job in jobs], processes):
                figures.setdefault((job.world, job.seed), {}).update(measured)
                stage.advance()
    return figures


def _done(work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], processes: int) -> Iterator[Any]:
    """Results of all calls as they finish, each computed on one thread."""
    if processes == 1 or not calls:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (work(*call) for call in calls)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(work, *call) for call in calls]):
            yield future.result()


def measure(job: HeadJob, options: SimulationOptions, folder: Path) -> tuple[HeadJob, Figures]:
    """Train one head and measure it on test. folder: of `simulated_audio.prepare`, where options.audio."""
    encoder = None
    if options.audio:
        splits = simulated_audio.load_splits(options, job.world, job.seed, folder, interaction=job.interaction)
        encoder = simulated_audio.TailEncoder(options, job.seed, folder)
    else:
        splits = draw_splits(options, job.world, job.seed, interaction=job.interaction)
    if job.shuffled:
        splits = Splits(*(each.shuffled(job.seed) for each in (splits.train, splits.dev, splits.test)))
    model = fit_head(job.row, splits.train, splits.dev, options, job.seed, encoder=encoder)
    figures = {job.name: model.ccc(splits.test)}
    if job.is_main:
        world = make_world(job.world, interaction=job.interaction)
        bound = dataclasses.asdict(ceilings(world, splits.test.scenes, job.seed))
        prefix = "ceilings" if job.interaction else "control.ceilings"
        figures |= {f"{prefix}.{name}": value for name, value in bound.items()}
        if job.interaction:
            figures |= _on_other_traits(model, splits, job.seed)
            if options.audio:
                figures["cue_accuracy"] = simulated_audio.cue_accuracy(job.seed, folder)
            else:
                figures |= _on_predicted_traits(model, splits, options, job)
    return job, figures


def _on_other_traits(model: EmotionEstimator, splits: Splits, seed: int) -> Figures:
    """A head trained on true traits, tested on shuffled and noisy ones; traits alone."""
    test = splits.test
    figures = {"shuffled_at_test": model.ccc(test.shuffled(seed)), "traits_only": _traits_only(splits)}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(test.traits.shape, generator=generator)  # one draw, scaled: less chance between sigmas
    return figures | {f"noise.{sigma:g}": model.ccc(test.with_traits(test.traits + sigma * noise)) for sigma in SIGMAS}


def _on_predicted_traits(model: EmotionEstimator, splits: Splits, options: SimulationOptions, job: HeadJob) -> Figures:
    """Personality at every setting, on frames that show traits, and valence by a head that is given the estimates."""
    test = splits.test
    # The same scenes, in frames that show traits.
    audible = draw_splits(options, job.world, job.seed, interaction=True, evidence=PERSONALITY_EVIDENCE)
    personality = fit_personality(audible.train, audible.dev, options, job.seed)
    on_dev, on_test = (personality.predict(by_speaker(each)) for each in (audible.dev, audible.test))
    figures = {}
    for name, traits in on_test.by_setting(on_dev, audible.dev.true_traits).items():
        figures[f"personality.{name}"] = mean_ccc(traits, test.traits)
        figures[f"predicted.{name}"] = model.ccc(test.with_traits(traits))
    return figures | on_heard_traits(model, personality, splits, audible, options, job.seed)


def _traits_only(splits: Splits) -> float:
    """CCC of a least-squares line from the traits, without audio."""
    columns = [np.column_stack([each.traits, np.ones(len(each.traits))]) for each in (splits.train, splits.test)]
    line = np.linalg.lstsq(columns[0], splits.train.valence.numpy(), rcond=None)[0]
    return ccc(columns[1] @ line, splits.test.valence.numpy())
