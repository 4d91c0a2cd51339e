"""`kibun bench paper`: every head, several seeds, in the world and in its control, spread over processes.

Each job makes its own data from its seed and runs on one thread, so the figures do not depend on how many processes
share the work. Nothing is chosen on test: dev keeps the best epoch, and the settings are the same for every head.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
import torch

from kibun.models.conditioning import HeadName
from kibun.training.bench_data import BenchOptions, Splits, draw_splits
from kibun.training.bench_heads import Estimator, fit_head
from kibun.training.bench_personality import by_speaker, causal_curve, fit_personality, trait_ccc
from kibun.training.metrics import ccc
from kibun.training.world import make_world
from kibun.training.world_ceilings import ceilings

HEADS: tuple[HeadName, ...] = ("baseline", "concat", "ca", "ticn-ca")
SIGMAS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6)  # of Table VII
PERSONALITY_EVIDENCE = 1.0
# How long a job takes, roughly, beside the quickest.
WEIGHTS = {"baseline": 1, "concat": 1, "ca": 2, "ticn-ca": 4}


@dataclasses.dataclass(frozen=True)
class Job:
    """One head to train: in the world or in its control, on true traits or on those of other speakers."""

    seed: int
    head: HeadName
    interaction: bool = True
    shuffled: bool = False

    @property
    def is_main(self) -> bool:
        """TICN-CA as the paper has it: also measured on other traits than the true ones, and told the ceilings."""
        return self.head == "ticn-ca" and not self.shuffled

    @property
    def name(self) -> str:
        """What its CCC is called in the results."""
        name = "shuffled" if self.shuffled else self.head.replace("-", "_")
        return name if self.interaction else f"control.{name}"


Figures = dict[str, float]
"""Measured on test, by name; parts of a name are separated by dots."""


def jobs_for(seeds: Sequence[int]) -> list[Job]:
    """Everything to be trained, the longest first so that processes end together."""
    jobs = [Job(seed, head, interaction) for seed in seeds for head in HEADS for interaction in (True, False)]
    jobs += [Job(seed, "ticn-ca", shuffled=True) for seed in seeds]
    return sorted(jobs, key=lambda job: (-WEIGHTS[job.head], not job.is_main, not job.interaction))


def run_jobs(
    jobs: Sequence[Job],
    options: BenchOptions,
    processes: int,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[int, Figures]:
    """Figures by seed. `progress` is called with the share of the work that came to an end."""
    whole = sum(WEIGHTS[job.head] for job in jobs)
    by_seed: dict[int, Figures] = {}
    for job, figures in _finished(jobs, options, processes):
        by_seed.setdefault(job.seed, {}).update(figures)
        progress(WEIGHTS[job.head] / whole)
    return by_seed


def _finished(jobs: Sequence[Job], options: BenchOptions, processes: int) -> Iterator[tuple[Job, Figures]]:
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from ((job, measure(job, options)) for job in jobs)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(measure, job, options): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def measure(job: Job, options: BenchOptions) -> Figures:
    """Train one head and measure it on test."""
    splits = draw_splits(options, job.seed, interaction=job.interaction)
    if job.shuffled:
        splits = Splits(*(each.shuffled(job.seed) for each in (splits.train, splits.dev, splits.test)))
    model = fit_head(job.head, splits.train, splits.dev, options, job.seed)
    figures = {job.name: model.ccc(splits.test)}
    if job.is_main:
        world = make_world(options.world, interaction=job.interaction)
        bound = dataclasses.asdict(ceilings(world, splits.test.scenes, job.seed))
        prefix = "ceilings" if job.interaction else "control.ceilings"
        figures |= {f"{prefix}.{name}": value for name, value in bound.items()}
        if job.interaction:
            figures |= _on_other_traits(model, splits, options, job.seed)
    return figures


def _on_other_traits(model: Estimator, splits: Splits, options: BenchOptions, seed: int) -> Figures:
    """A head trained on true traits, tested on shuffled, noisy and predicted ones; personality; traits alone."""
    test = splits.test
    figures = {"shuffled_at_test": model.ccc(test.shuffled(seed)), "traits_only": _traits_only(splits)}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(test.traits.shape, generator=generator)  # one draw, scaled: less chance between sigmas
    figures |= {f"noise.{sigma:g}": model.ccc(test.with_traits(test.traits + sigma * noise)) for sigma in SIGMAS}

    heard = draw_splits(options, seed, interaction=True, evidence=PERSONALITY_EVIDENCE)  # the same scenes
    personality = fit_personality(heard.train, heard.dev, options, seed)
    predicted = personality.predict(by_speaker(heard.test))
    truth = torch.from_numpy(test.scenes.traits).float()  # (P, 5)
    figures |= {f"personality.{name}": value for name, value in trait_ccc(predicted, truth).items()}
    figures |= {f"heard.{count}": value for count, value in enumerate(causal_curve(predicted, truth), 1)}
    for name, traits in predicted.of_utterances().items():
        figures[f"predicted.{name}"] = model.ccc(test.with_traits(traits))
    return figures


def _traits_only(splits: Splits) -> float:
    """CCC of a least-squares line from the traits, without audio."""
    columns = [np.column_stack([each.traits, np.ones(len(each.traits))]) for each in (splits.train, splits.test)]
    line = np.linalg.lstsq(columns[0], splits.train.valence.numpy(), rcond=None)[0]
    return ccc(columns[1] @ line, splits.test.valence.numpy())
