"""Training with a frozen trunk: frames kept on disk against computed ones, batches by length against shuffled.

One epoch is what `kibun train pr` does for one: every utterance once, forward, backward and AdamW's steps. The four
ways to go through it take turns, on one thread, which a busy neighbour disturbs least. Random weights: speed does not
hang on what they are.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch

from kibun.bench.support import machine
from kibun.bench.support.report import Report
from kibun.bench.support.speech_like import speech_like
from kibun.bench.support.timing import interleaved, ratio
from kibun.models.bundle import KibunConfig, KibunModel
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.report_table import Cell, Row, Table
from kibun.training.runs.config import RunConfig
from kibun.training.runs.predict import run_model
from kibun.training.runs.task_model import TaskModel
from kibun.training.runs.trunk_cache import TrunkCache, fill
from kibun.training.runs.utterances import BucketBatches, Key, Utterances, collate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH, MICRO_BATCH = 16, 8  # utterances of a step and of a forward
COUNT = 16  # utterances of the corpus
SHORTEST_S, LONGEST_S = 0.8, 5.0  # of them
EPOCHS = 30  # of a whole run, training.epochs' default
SMALL: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "conv_dim": [128] * 7,
}
"""HuBERT-base's parts, strides and positions, a quarter of its width and two thirds of its depth."""

DEV = 0.1  # utterances of dev for each that is trained on
COMPUTED, KEPT = "frames computed", "frames kept"
SHUFFLED, BY_LENGTH = "batches shuffled", "batches by length"
WAYS = {f"{frames}, {batches}": (frames, batches) for batches in (SHUFFLED, BY_LENGTH) for frames in (COMPUTED, KEPT)}
PLAIN, KEPT_SHUFFLED, COMPUTED_BY_LENGTH, BEST = WAYS
EVALUATION_COMPUTED, EVALUATION_KEPT = f"evaluation, {COMPUTED}", f"evaluation, {KEPT}"
FILLING = "filling, once"


@dataclass(frozen=True)
class TrainingFigures:
    """One size of model. times: seconds per round, by what was gone through `audio_s` of audio for."""

    size: str
    audio_s: float
    times: dict[str, list[float]]
    kept_bytes: int
    loss_difference: dict[str, float]  # by what is kept: largest difference of a batch's loss

    def ratio(self, fast: str, slow: str) -> float:
        """How many times faster, median over the rounds."""
        return ratio(self.times, slow, fast)

    def hours_per_hour(self, what: str) -> float:
        """Audio hours that an hour goes through: the plain loop's median times the ratio."""
        return self.audio_s / statistics.median(self.times[PLAIN]) * self.ratio(what, PLAIN)

    @property
    def whole_run(self) -> float:
        """How many times faster a run of EPOCHS epochs is than the plain loop: filling, an evaluation after each epoch.

        Dev is taken to be a tenth of what is trained on.
        """
        cost = {what: 1 / self.ratio(what, PLAIN) for what in self.times}
        plain = EPOCHS * (1 + DEV * cost[EVALUATION_COMPUTED])
        return plain / ((1 + DEV) * cost[FILLING] + EPOCHS * (cost[BEST] + DEV * cost[EVALUATION_KEPT]))


def measure(*, quick: bool) -> Report:
    """Measure the small model, and unless `quick`, HuBERT-base's size too."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = [_measure("small", SMALL, Path(folder) / "small", rounds=3)]
        if not quick:
            results.append(_measure("hubert-base", {}, Path(folder) / "base", rounds=2))
    payload: dict[str, Any] = {"machine": machine.describe(), "batch": BATCH, "micro_batch": MICRO_BATCH}
    payload |= _as_json(results[-1]) | {"sizes": {result.size: _as_json(result) for result in results}}
    return Report(payload, tuple(map(_table, results)), lambda: _draw(results))


def _as_json(measured: TrainingFigures) -> dict[str, Any]:
    return {
        "size": measured.size,
        "audio_s": measured.audio_s,
        "ratio": measured.ratio(BEST, PLAIN),
        "ratio_kept": measured.ratio(BEST, COMPUTED_BY_LENGTH),
        "ratio_by_length": measured.ratio(COMPUTED_BY_LENGTH, PLAIN),
        "ratio_evaluation": measured.ratio(EVALUATION_KEPT, EVALUATION_COMPUTED),
        "ratio_whole_run": measured.whole_run,
        "filling_over_plain_epoch": measured.ratio(PLAIN, FILLING),
        "hours_per_hour": {what: measured.hours_per_hour(what) for what in measured.times},
        "kept_bytes_per_audio_s": measured.kept_bytes / measured.audio_s,
        "loss_difference": measured.loss_difference,
    }


def _measure(size: str, hubert: dict[str, Any], folder: Path, *, rounds: int) -> TrainingFigures:
    torch.manual_seed(0)
    model = TaskModel(
        KibunModel(KibunConfig(hubert=hubert, tasks=("personality",), head_dropout=0.0)), RunConfig("pr", folder)
    )
    items = _corpus(folder / "audio")
    computed, kept = _utterances(model, items), _utterances(model, items)
    for row in range(COUNT):
        computed.read(row)  # the plain loop also keeps audio in memory
    cache = TrunkCache(folder / "frames", model.kibun)
    fill(cache, model.kibun, kept.to_cache())
    kept.use_cache(cache)
    utterances = {COMPUTED: computed, KEPT: kept}
    batches = {
        SHUFFLED: _shuffled(),
        BY_LENGTH: list(BucketBatches(computed.sizes(), MICRO_BATCH, epochs=1, seed=0, per_step=1)),
    }
    optimizer = torch.optim.AdamW(model.parameter_groups())
    paths: dict[str, Callable[[], object]] = {
        way: functools.partial(_epoch, model, optimizer, utterances[frames], batches[order])
        for way, (frames, order) in WAYS.items()
    }
    paths[EVALUATION_COMPUTED] = lambda: run_model(model, computed)
    paths[EVALUATION_KEPT] = lambda: run_model(model, kept)
    paths[FILLING] = lambda: _fill_anew(model, items, folder)
    return TrainingFigures(
        size,
        audio_s=float(computed.sizes().sum()) / SAMPLE_RATE_HZ,
        times=interleaved(paths, rounds),
        kept_bytes=sum(map(cache.size, kept.sounds())),
        loss_difference=_loss_difference(model, computed, kept, folder, batches[BY_LENGTH]),
    )


def _utterances(model: TaskModel, items: Sequence[Item]) -> Utterances:
    return Utterances(items, np.zeros((len(items), 5), np.float32), min_samples=model.kibun.min_samples)


def _fill_anew(model: TaskModel, items: Sequence[Item], folder: Path) -> None:
    """All that a run does before its first epoch: checksums of weights and audio, the trunk, the disk."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        fill(TrunkCache(Path(fresh), model.kibun), model.kibun, _utterances(model, items).to_cache())


def _corpus(folder: Path) -> list[Item]:
    """Speech-like utterances, their lengths skewed as in dialogue; labels and words are made up."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    items = []
    for number, seconds in enumerate(rng.permutation(np.geomspace(SHORTEST_S, LONGEST_S, COUNT))):
        path = folder / f"{number}.wav"
        audio = speech_like(float(seconds), seed=number)
        soundfile.write(path, audio, SAMPLE_RATE_HZ, subtype="PCM_16")
        words = " ".join(rng.choice(["I", "SEE", "WHAT", "YOU", "MEAN"], max(1, int(seconds * 2))))
        traits = tuple(map(float, rng.uniform(2, 6, 5)))
        duration = len(audio) / SAMPLE_RATE_HZ
        item = Item(f"{number}", path, "s", "d", "train", traits=traits, text=words, seconds=duration)  # type: ignore[arg-type]
        items.append(item)
    return items


def _shuffled() -> list[list[Key]]:
    order = np.random.default_rng(0).permutation(COUNT).reshape(-1, MICRO_BATCH)
    return [[(0, int(index)) for index in batch] for batch in order]


def _epoch(
    model: TaskModel, optimizer: torch.optim.Optimizer, utterances: Utterances, batches: Sequence[list[Key]]
) -> None:
    model.train(True)
    accumulate = BATCH // MICRO_BATCH
    for number, keys in enumerate(batches, 1):
        loss = model(**collate([utterances[key] for key in keys], None, traits=True))["loss"] / accumulate
        loss.backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


@torch.inference_mode()
def _loss_difference(
    model: TaskModel, computed: Utterances, kept: Utterances, folder: Path, batches: Iterable[list[Key]]
) -> dict[str, float]:
    """Largest difference between a batch's losses, relative; from frames kept as float32 and as float16."""
    model.train(False)
    halved = _utterances(model, computed.items)
    cache = TrunkCache(folder / "frames", model.kibun, "float16")
    fill(cache, model.kibun, halved.to_cache())
    halved.use_cache(cache)
    worst = {"float32": 0.0, "float16": 0.0}
    for keys in batches:
        alike = [collate([some[key] for key in keys], None, traits=True) for some in (computed, kept, halved)]
        losses = [float(model(**batch)["loss"]) for batch in alike]
        for name, loss in zip(worst, losses[1:], strict=True):
            worst[name] = max(worst[name], abs(loss - losses[0]) / losses[0])
    return worst


def _table(measured: TrainingFigures) -> Table:
    rows = tuple(
        Row(what, (Cell(measured.hours_per_hour(what)), Cell(measured.ratio(what, PLAIN)))) for what in measured.times
    )
    differences = measured.loss_difference
    return Table(
        f"Training, {measured.size}",
        ("one epoch", "audio hours per hour", "times the plain loop"),
        rows,
        (
            f"A run of {EPOCHS} epochs, filling and evaluations (dev a tenth of train) included, counted from the"
            f" above: {measured.whole_run:.2f} times as fast as the plain loop.",
            f"Kept: {measured.kept_bytes / measured.audio_s / 1000:.0f} kB per audio second as float32, half of it as"
            " float16."
            f" Largest relative difference of a batch's loss from computed frames: {differences['float32']:.1e}, as"
            f" float16 {differences['float16']:.1e}.",
            f"{measured.audio_s:.0f} s of audio in utterances of {SHORTEST_S:g} to {LONGEST_S:g} s; batches of {BATCH},"
            f" {MICRO_BATCH} a forward; one thread.",
        ),
    )


def _draw(results: Sequence[TrainingFigures]) -> Figure:
    """Time of one epoch by way, as a share of the plain loop's."""
    from kibun.training.evaluation.plots import COLOURS, canvas, legend_beside

    drawn, axes = canvas((12.0, 4.8))
    width = 0.8 / len(results)
    for number, result in enumerate(results):
        shares = [100 / result.ratio(what, PLAIN) for what in result.times]
        places = np.arange(len(shares)) + (number - (len(results) - 1) / 2) * width
        bars = axes.bar(
            places,
            shares,
            width * 0.94,
            color=COLOURS[number],
            edgecolor="black",
            hatch=("", "//")[number],
            label=result.size,
        )
        axes.bar_label(bars, [f"{share:.0f}" for share in shares], padding=2, fontsize=10)
    axes.set_xticks(np.arange(len(results[0].times)), [_folded(what) for what in results[0].times], fontsize=9)
    axes.set_ylabel("time (% of an epoch of the plain loop)")
    axes.set_title("Time of a training epoch with a frozen trunk, by what is kept and how batches are made", loc="left")
    legend_beside(axes, title="model")
    return drawn


def _folded(what: str) -> str:
    return what.replace(", ", ",\n")
