"""`kibun bench paper`: every head, several seeds, with interaction and in the control, spread over processes.

Each job draws its own data from its seed and runs on one thread, so the figures do not depend on how many processes
share the work. The best epoch is chosen on dev, nothing on test, and the settings are the same for every head.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kibun.models.conditioning import HeadName
from kibun.training.evaluation.metrics import ccc
from kibun.training.simulation import audio as simulated_audio
from kibun.training.simulation.data import SimulationOptions, Splits, draw_splits
from kibun.training.simulation.heads import EmotionEstimator, fit_head
from kibun.training.simulation.personality import by_speaker, causal_curve, fit_personality, trait_ccc
from kibun.training.simulation.world import make_world
from kibun.training.simulation.world_ceilings import ceilings

PAPER_HEADS: tuple[HeadName, ...] = ("baseline", "concat", "ca", "ticn-ca")
SIGMAS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6)  # of Table VII
PERSONALITY_EVIDENCE = 1.0
# How long a job takes, roughly, relative to the quickest.
TRUNK_WEIGHT = 4
WEIGHTS = {"baseline": 1, "concat": 1, "ca": 2, "ticn-ca": 4}


@dataclasses.dataclass(frozen=True)
class HeadJob:
    """One head to train: with interaction or in the control, on true traits or on those of other speakers."""

    seed: int
    head: HeadName
    interaction: bool = True
    shuffled: bool = False

    @property
    def is_main(self) -> bool:
        """Whether it is the paper's TICN-CA: also measured on other traits, with ceilings beside it."""
        return self.head == "ticn-ca" and not self.shuffled

    @property
    def name(self) -> str:
        """The name of its CCC in the results."""
        name = "shuffled" if self.shuffled else self.head.replace("-", "_")
        return name if self.interaction else f"control.{name}"


Figures = dict[str, float]
"""Figures on test by name; parts of a name are separated by dots."""


def jobs_for(seeds: Sequence[int]) -> list[HeadJob]:
    """Everything to be trained, the longest first so that processes end together."""
    jobs = [HeadJob(seed, head, interaction) for seed in seeds for head in PAPER_HEADS for interaction in (True, False)]
    jobs += [HeadJob(seed, "ticn-ca", shuffled=True) for seed in seeds]
    return sorted(jobs, key=lambda job: (-WEIGHTS[job.head], not job.is_main, not job.interaction))


def run_jobs(
    jobs: Sequence[HeadJob],
    options: SimulationOptions,
    processes: int,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[int, Figures]:
    """Figures by seed. `progress` is called with the share of the work, 0..1, that has just ended."""
    seeds = sorted({job.seed for job in jobs}) if options.audio else []
    whole = sum(WEIGHTS[job.head] for job in jobs) + TRUNK_WEIGHT * len(seeds)
    by_seed: dict[int, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in _done(simulated_audio.prepare, [(options, seed, Path(folder)) for seed in seeds], processes):
            progress(TRUNK_WEIGHT / whole)
        for job, figures in _done(measure, [(job, options, Path(folder)) for job in jobs], processes):
            by_seed.setdefault(job.seed, {}).update(figures)
            progress(WEIGHTS[job.head] / whole)
    return by_seed


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
        splits = simulated_audio.load_splits(options, job.seed, folder, interaction=job.interaction)
        encoder = simulated_audio.TailEncoder(options, job.seed, folder)
    else:
        splits = draw_splits(options, job.seed, interaction=job.interaction)
    if job.shuffled:
        splits = Splits(*(each.shuffled(job.seed) for each in (splits.train, splits.dev, splits.test)))
    model = fit_head(job.head, splits.train, splits.dev, options, job.seed, encoder=encoder)
    figures = {job.name: model.ccc(splits.test)}
    if job.is_main:
        world = make_world(options.world, interaction=job.interaction)
        bound = dataclasses.asdict(ceilings(world, splits.test.scenes, job.seed))
        prefix = "ceilings" if job.interaction else "control.ceilings"
        figures |= {f"{prefix}.{name}": value for name, value in bound.items()}
        if job.interaction:
            figures |= _on_other_traits(model, splits, job.seed)
            if options.audio:
                figures["cue_accuracy"] = simulated_audio.cue_accuracy(job.seed, folder)
            else:
                figures |= _on_predicted_traits(model, splits, options, job.seed)
    return job, figures


def _on_other_traits(model: EmotionEstimator, splits: Splits, seed: int) -> Figures:
    """A head trained on true traits, tested on shuffled and noisy ones; traits alone."""
    test = splits.test
    figures = {"shuffled_at_test": model.ccc(test.shuffled(seed)), "traits_only": _traits_only(splits)}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(test.traits.shape, generator=generator)  # one draw, scaled: less chance between sigmas
    return figures | {f"noise.{sigma:g}": model.ccc(test.with_traits(test.traits + sigma * noise)) for sigma in SIGMAS}


def _on_predicted_traits(model: EmotionEstimator, splits: Splits, options: SimulationOptions, seed: int) -> Figures:
    """Personality at every setting, on frames that show traits, and valence by a head that is given the estimates."""
    test = splits.test
    audible = draw_splits(options, seed, interaction=True, evidence=PERSONALITY_EVIDENCE)  # the same scenes
    personality = fit_personality(audible.train, audible.dev, options, seed)
    predicted = personality.predict(by_speaker(audible.test))
    truth = test.true_traits  # (P, 5)
    figures = {f"personality.{name}": value for name, value in trait_ccc(predicted, truth).items()}
    figures |= {f"heard.{count}": value for count, value in enumerate(causal_curve(predicted, truth), 1)}
    for name, traits in predicted.of_utterances().items():
        figures[f"predicted.{name}"] = model.ccc(test.with_traits(traits))
    return figures


def _traits_only(splits: Splits) -> float:
    """CCC of a least-squares line from the traits, without audio."""
    columns = [np.column_stack([each.traits, np.ones(len(each.traits))]) for each in (splits.train, splits.test)]
    line = np.linalg.lstsq(columns[0], splits.train.valence.numpy(), rcond=None)[0]
    return ccc(columns[1] @ line, splits.test.valence.numpy())
