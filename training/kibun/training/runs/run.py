"""One training run, from configuration to a finished folder: train, finish the traits, predict, report."""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file

from kibun.models._transformers import quiet
from kibun.models.bundle import KibunModel
from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item, is_generated, read_manifest
from kibun.training.corpora.splits import SPLITS
from kibun.training.evaluation.metrics import ccc, error_by_count
from kibun.training.evaluation.predictions import Prediction, write_predictions
from kibun.training.runs.card import run_card
from kibun.training.runs.config import ConfigError, RunConfig, identity, load_config, write_config
from kibun.training.runs.conversation_stage import Vectors, train_conversation_head
from kibun.training.runs.folder import (
    BUNDLE,
    CHECKPOINTS,
    CTC,
    FIGURES,
    PART,
    RUN_CONFIG,
    is_finished,
    predictions_file,
    read_figures,
    read_log,
    settle,
)
from kibun.training.runs.predict import as_predictions, hear
from kibun.training.runs.task_model import TaskModel, new_task_model
from kibun.training.runs.trainer import Fit, transcript_error
from kibun.training.runs.trait_source import condition_traits
from kibun.training.runs.trunk_cache import TrunkCache, fill, root_of, why_off
from kibun.training.runs.utterances import Utterances, make_augmentation


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The utterances of a run by split, and what its reader should be warned of."""

    items: dict[str, list[Item]]
    warnings: tuple[str, ...]


def train_run(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train a run, or what is left of it, and return its figures; a finished one is only read.

    Args:
        config: what to train. folder: made if need be; if a run was begun there, it has to be of the same config.

    Raises:
        ConfigError, ManifestError, BundleError, ValueError: naming what cannot be used and the fix.
    """
    _open(config, folder)
    if is_finished(folder):
        return read_figures(folder)
    corpus = read_corpus(config)
    model = new_task_model(config, config.name or folder.name)
    splits = {split: _utterances(config, items, model) for split, items in corpus.items.items()}
    fit = Fit(
        model,
        config,
        splits["train"],
        splits["dev"],
        folder,
        lambda fit: keep_frames(config, folder, fit.task_model.kibun, list(splits.values()), fit),
    )
    fit.train_to_the_end()
    figures: dict[str, Any] = {}
    if fit.is_world_process_zero():
        figures = _finish(config, folder, corpus, splits, fit.args.device)
    fit.accelerator.wait_for_everyone()
    return figures


def read_corpus(config: RunConfig) -> Corpus:
    """The manifest's utterances by split. Raises ManifestError where a label that the run needs is missing."""
    require = {"path", *(["split"] if config.splits is None else [])}
    if config.task != "ser":
        require.add("traits")
    if config.dimension is not None:
        require.add(config.dimension)
    manifest = read_manifest(config.manifest, require=require, splits=config.splits)
    items = {split: [item for item in manifest.items if item.split == split] for split in SPLITS}
    for split, some in items.items():
        if not some:
            raise ConfigError(f"{config.manifest}: split {split!r} has no utterances; train, dev and test are needed")
    return Corpus(items, tuple(manifest.warnings()))


def load_run(folder: Path, device: str | torch.device | None = None) -> TaskModel:
    """The trained model of a run folder, in evaluation mode. Raises ConfigError where there is none."""
    settle(folder)
    if not (folder / RUN_CONFIG).is_file() or not (folder / BUNDLE).is_dir():
        raise ConfigError(
            f"{folder}: not a run of `kibun train pr|ser|mtl`, or none that has got to its first evaluation"
        )
    config = load_config(None, folder / RUN_CONFIG)
    with quiet():
        kibun: KibunModel = KibunModel.from_pretrained(folder / BUNDLE)
    model = TaskModel(kibun, config)
    model.ctc.load_state_dict(load_file(folder / CTC))
    model.train(False)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def _open(config: RunConfig, folder: Path) -> None:
    """Begin a run folder, or check that the run begun there is this one."""
    file = folder / RUN_CONFIG
    first = int(os.environ.get("RANK", "0")) == 0
    while not first and not file.is_file():
        time.sleep(0.1)  # the first process begins the folder, or fails and ends all of them
    if file.is_file():
        if first:
            settle(folder)
        before = load_config(config.task, file)
        if identity(before) != identity(config):
            raise ConfigError(
                f"{folder}: holds a run with other settings ({', '.join(_differences(before, config))}):"
                " name another folder, or remove this one"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: exists and is not the folder of a run: name another one")
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, file)


def _differences(a: RunConfig, b: RunConfig) -> list[str]:
    def flat(content: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in content.items():
            values |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
        return values

    left, right = flat(identity(a)), flat(identity(b))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def _utterances(config: RunConfig, items: Sequence[Item], model: TaskModel) -> Utterances:
    if config.task == "ser" and model.kibun.config.conditioned:
        condition = condition_traits(items, config.traits, config.training.seed)
    else:
        condition = np.zeros((len(items), len(TRAITS)), np.float32)  # no head of this run looks at it
    options = config.training
    return Utterances(
        items,
        condition,
        min_samples=model.kibun.min_samples,
        seed=options.seed,
        # Both are for training alone: who evaluates reads utterances as they are.
        crop_seconds=options.crop_seconds,
        augmentation=make_augmentation(options.augment),
    )


def keep_frames(
    config: RunConfig, run: Path, kibun: KibunModel, splits: Sequence[Utterances], fit: Fit | None = None
) -> None:
    """Have the frozen trunk's frames of all utterances on disk, or say why not. fit: fills with its other processes.

    Raises ConfigError: the disk has too little room.
    """
    first = fit is None or fit.is_local_process_zero()
    reason = why_off(config)
    if reason is not None:
        if first and fit is not None:
            _say(f"frames of the trunk are computed anew every epoch: {reason}")
        return
    cache = TrunkCache(root_of(config, run), kibun, config.training.trunk_cache_dtype)
    barrier: Callable[[], Any] = (lambda: None) if fit is None else fit.accelerator.wait_for_everyone
    # Processes of one machine share its disk; those of another fill that one's.
    share = (0, 1) if fit is None else (fit.args.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    fill(
        cache,
        kibun,
        [sound for utterances in splits for sound in utterances.to_keep()],
        share=share,
        ready=barrier,
        say=_say if first and fit is not None else lambda _line: None,
    )
    barrier()
    for utterances in splits:
        utterances.keep(cache)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # standard output belongs to the command


def _finish(
    config: RunConfig, folder: Path, corpus: Corpus, splits: dict[str, Utterances], device: torch.device
) -> dict[str, Any]:
    """From the best weights to predictions, figures, expected error and card."""
    model = load_run(folder, device)
    keep_frames(config, folder, model.kibun, list(splits.values()))  # a run that had nothing left to train has not
    heard = {split: hear(model, utterances) for split, utterances in splits.items()}
    if model.kibun.config.supports_personality:
        vectors = {
            split: Vectors(
                corpus.items[split], np.stack([cast(Any, heard[split][row].vector) for row in range(len(some))])
            )
            for split, some in corpus.items.items()
        }
        train_conversation_head(model.kibun, vectors["train"], vectors["dev"], config.training)
    predictions = {split: as_predictions(model, corpus.items[split], heard[split]) for split in SPLITS}
    figures: dict[str, Any] = {
        "task": config.task,
        "dimension": config.dimension,
        "evaluations": len(read_log(folder)),
        "best_step": max(read_log(folder), key=lambda line: (line["dev"]["score"], -line["step"]))["step"],
        "warnings": list(corpus.warnings),
        "utterances": {split: len(items) for split, items in corpus.items.items()},
    }
    for split in ("dev", "test"):
        figures[split] = split_figures(predictions[split])
        if (wer := transcript_error(splits[split], heard[split])) is not None:
            figures[split]["wer"] = wer
    if model.kibun.config.supports_personality:
        told = predictions["dev"]
        model.kibun.expected_error = error_by_count(
            [row.predicted.heard for row in told],
            [row.predicted.causal_traits for row in told],
            [row.traits for row in told],
        )
    model.kibun.config.synthetic |= config.synthetic or is_generated(config.manifest)
    model.kibun.card = run_card(config, model.kibun, figures, corpus.items)
    fresh = folder / (BUNDLE + PART)
    shutil.rmtree(fresh, ignore_errors=True)
    with quiet():
        model.kibun.to("cpu").save_pretrained(fresh)  # type: ignore[arg-type]
    for split in SPLITS:
        write_predictions(predictions_file(folder, split), predictions[split])
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    settle(folder)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return figures


def split_figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """CCC of all that a run estimates; of traits, settings 1 and causal 3 per utterance, 2 and 3 per conversation."""
    figures: dict[str, Any] = {}
    for name in ("valence", "arousal"):
        pairs = [(getattr(row.predicted, name), getattr(row, name)) for row in predictions]
        if all(value is not None for pair in pairs for value in pair):
            figures[name] = ccc([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    if predictions[0].predicted.utterance_traits is not None:
        last = {row.conversation: row for row in predictions}
        for setting, field, rows in (
            ("utterance", "utterance_traits", list(predictions)),
            ("average", "average_traits", list(last.values())),
            ("conversation", "conversation_traits", list(last.values())),
            ("causal", "causal_traits", list(predictions)),
        ):
            estimates = np.array([getattr(row.predicted, field) for row in rows])
            truth = np.array([row.traits for row in rows])
            each = {trait: ccc(estimates[:, k], truth[:, k]) for k, trait in enumerate(TRAITS)}
            figures[setting] = {**each, "mean": float(np.mean(list(each.values())))}
    return figures
