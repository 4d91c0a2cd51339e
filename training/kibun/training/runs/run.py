"""One training run, from configuration to a finished folder: train, finish the traits, predict, report."""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from kibun.models._transformers import quiet
from kibun.models.bundle import KibunModel
from kibun.models.files import joint_license, one_line
from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item, conversations, read_manifest
from kibun.training.corpora.splits import SPLITS
from kibun.training.evaluation.predictions import write_predictions
from kibun.training.progress import Progress
from kibun.training.runs.calibration import Halves, evidence, halves, learn_familiarity
from kibun.training.runs.card import data_license, run_card
from kibun.training.runs.config import ConfigError, RunConfig, TrainingOptions, identity, load_config, write_config
from kibun.training.runs.conversation_stage import FOLDS, Vectors, out_of_fold, train_conversation_head
from kibun.training.runs.figures import dev_figures, split_figures, transcript_error
from kibun.training.runs.folder import (
    BUNDLE,
    CHECKPOINT,
    CTC,
    FIGURES,
    PART,
    RUN_CONFIG,
    finish_bundle_swap,
    heard_file,
    is_finished,
    predictions_file,
    read_figures,
    read_log,
)
from kibun.training.runs.heard import replay
from kibun.training.runs.loop import Plan, new_accelerator, train
from kibun.training.runs.predict import Output, as_predictions, run_model, vectors_of
from kibun.training.runs.task_model import TaskModel, new_task_model
from kibun.training.runs.trait_source import Mixed, condition_traits, population
from kibun.training.runs.trunk_cache import TrunkCache, cache_off_reason, cache_root, fill
from kibun.training.runs.utterances import BucketBatches, ConversationBatches, Utterances, collate, make_augmentation

MOST_AUGMENTED = 2000  # training utterances that are changed to learn which vectors are familiar


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The utterances of a run by split, and warnings for its reader.

    halves: which of dev choose the model, and which calibrate its traits; None: all of them choose.
    """

    items: dict[str, list[Item]]
    warnings: tuple[str, ...]
    halves: Halves | None = None

    @property
    def choosing(self) -> Sequence[int]:
        """Rows of dev that choose."""
        return range(len(self.items["dev"])) if self.halves is None else self.halves.choose


def train_run(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train a run, or what is left of it, and return its figures; a finished one is only read.

    Args:
        config: what to train. folder: created if missing; if a run was begun there, it has to be of the same config.

    Raises:
        ConfigError, ManifestError, BundleError, ValueError: naming what cannot be used and the fix.
    """
    _open(config, folder)
    if is_finished(folder):
        return read_figures(folder)
    corpus = read_corpus(config)
    model = new_task_model(config, config.name or folder.name, population(corpus.items["train"]))
    splits = {split: _utterances(config, items, model) for split, items in corpus.items.items()}
    accelerator = new_accelerator()
    progress = Progress(shown=accelerator.is_local_main_process)
    train(
        _plan(config, folder, model, splits, corpus.choosing, accelerator),
        folder,
        accelerator,
        # The trunk is then that of the checkpoint, if there is one.
        loaded=lambda: use_cached_frames(
            config,
            folder,
            model.kibun,
            list(splits.values()),
            # Processes of one machine share its disk; those of another fill that one's.
            share=(accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
            ready=accelerator.wait_for_everyone,
            progress=progress,
        ),
        progress=progress,
    )
    figures: dict[str, Any] = {}
    if accelerator.is_main_process:
        figures = _finish(config, folder, corpus, splits, accelerator.device, progress)
    accelerator.wait_for_everyone()
    return figures


def _plan(
    config: RunConfig,
    folder: Path,
    model: TaskModel,
    splits: Mapping[str, Utterances],
    choosing: Sequence[int],
    accelerator: Accelerator,
) -> Plan:
    """What the loop does for this configuration. choosing: rows of dev that choose the best model."""
    options, train_split, dev = config.training, splits["train"], splits["dev"]
    batches = _batches(config, train_split)

    def evaluate() -> dict[str, float]:
        mine = choosing[accelerator.process_index :: accelerator.num_processes]
        outputs = gather_object(list(run_model(model, dev, mine).items()))
        return dev_figures(model, dev, dict(outputs), choosing)

    return Plan(
        model=model,
        optimizer=torch.optim.AdamW(model.parameter_groups()),
        batch=lambda number: collate(
            [train_split[key] for key in batches[number]], config.dimension, traits=config.task != "ser"
        ),
        per_step=batches.per_step,
        steps=min(options.epochs * batches.steps_per_epoch, options.max_steps or sys.maxsize),
        evaluate_every=math.ceil(batches.steps_per_epoch / options.evaluations_per_epoch),
        evaluate=evaluate,
        save=lambda: _save_best(model, folder),
        schedule=options.schedule,
        warmup=options.warmup,
        patience=options.patience,
        seed=options.seed,
        bf16=_bf16(options.precision),
        tensorboard=options.tensorboard,
        steps_per_epoch=batches.steps_per_epoch,
        notes={"trunk": cache_off_reason(config) or "kept"},
    )


def _batches(config: RunConfig, utterances: Utterances) -> BucketBatches | ConversationBatches:
    options = config.training
    order = {"epochs": options.epochs, "seed": options.seed, "per_step": options.batch // options.micro_batch}
    if options.conversation == "through_tail":
        profiles = list(conversations(utterances.items).values())
        return ConversationBatches(profiles, options.conversation_utterances, **order)
    return BucketBatches(utterances.sizes(), options.micro_batch, **order)


def _bf16(precision: str) -> bool:
    return precision == "bf16" or (precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _save_best(model: TaskModel, folder: Path) -> None:
    """Write bundle and CTC head aside, then move them into place: a kill leaves the old ones or the new."""
    # A bundle of some of the traits is not to be served as if it estimated all.
    model.kibun.config.trained = model.run.model.traits == TRAITS
    fresh = _write_bundle(model.kibun, folder)
    save_file({name: value.contiguous() for name, value in model.ctc.state_dict().items()}, fresh / CTC)
    (fresh / CTC).replace(folder / CTC)
    shutil.rmtree(folder / BUNDLE, ignore_errors=True)
    fresh.rename(folder / BUNDLE)


def _write_bundle(kibun: KibunModel, folder: Path) -> Path:
    """The folder of a new bundle, beside the one that it is to replace."""
    fresh = folder / (BUNDLE + PART)
    shutil.rmtree(fresh, ignore_errors=True)
    with quiet():
        kibun.save_pretrained(fresh)
    return fresh


def read_corpus(config: RunConfig) -> Corpus:
    """The manifest's utterances by split. Raises ManifestError where a label that the run needs is missing."""
    require = {"path", *(["split"] if config.splits is None else [])}
    if config.task != "ser":
        require.add("traits")
    if config.dimension is not None:
        require.add(config.dimension)
    manifest = read_manifest(config.manifest, require=require, splits=config.splits)
    items: dict[str, list[Item]] = {split: [item for item in manifest.items if item.split == split] for split in SPLITS}
    for split, some in items.items():
        if not some:
            raise ConfigError(f"{config.manifest}: split {split!r} has no utterances; train, dev and test are needed")
    warnings = list(manifest.warnings())
    divided = None
    if config.task != "ser" and config.training.calibrate and config.model.traits == TRAITS:
        divided = halves(items["dev"])
    if divided is not None and not divided.calibrate:
        warnings.append(divided.note)
    return Corpus(items, tuple(warnings), divided)


def load_run(folder: Path, device: str | torch.device | None = None) -> TaskModel:
    """The trained model of a run folder, in evaluation mode. Raises ConfigError where there is none."""
    finish_bundle_swap(folder)
    if not (folder / RUN_CONFIG).is_file() or not (folder / BUNDLE).is_dir():
        raise ConfigError(
            f"{folder}: not a run of `kibun train pr|ser|mtl`, or none that has got to its first evaluation"
        )
    config = load_config(None, folder / RUN_CONFIG)
    with quiet():
        kibun: KibunModel = KibunModel.from_pretrained(folder / BUNDLE)
    model = TaskModel(kibun, config)
    try:
        model.ctc.load_state_dict(load_file(folder / CTC))
    except Exception as error:  # OSError, and types of safetensors and torch
        raise ConfigError(f"{folder / CTC}: damaged, or not of this run ({one_line(error)}): train it again") from error
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
            finish_bundle_swap(folder)
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
    options, mixed = config.training, None
    if config.task == "ser" and model.kibun.config.conditioned:
        mean = cast(Sequence[float], model.kibun.config.condition_centre)
        condition = condition_traits(items, config.traits, options.seed, mean)
        if config.traits.source == "mixed" and items[0].split == "train":
            mixed = Mixed(items, config.traits, epochs=options.epochs, seed=options.seed, mean=mean)
    else:
        condition = np.zeros((len(items), len(TRAITS)), np.float32)  # no head of this run looks at it
    return Utterances(
        items,
        condition,
        min_samples=model.kibun.min_samples,
        seed=options.seed,
        # Both are for training alone: who evaluates reads utterances as they are.
        crop_seconds=options.crop_seconds,
        augmentation=make_augmentation(options.augment),
        condition_at=mixed,
    )


def use_cached_frames(
    config: RunConfig,
    run: Path,
    kibun: KibunModel,
    splits: Sequence[Utterances],
    *,
    share: tuple[int, int] = (0, 1),
    ready: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> None:
    """Compute the frozen trunk's frames that are not on disk, and have the utterances read all of them there.

    Args:
        share, ready, progress: as of `trunk_cache.fill`; progress also gets the reason where a run caches none.

    Raises ConfigError: the disk has too little free space.
    """
    progress = progress or Progress(shown=False)
    if (reason := cache_off_reason(config)) is not None:
        progress.line(f"frames of the trunk are computed anew every epoch: {reason}")
        return
    cache = TrunkCache(cache_root(config, run), kibun, config.training.trunk_cache_dtype)
    sounds = [sound for utterances in splits for sound in utterances.to_cache()]
    fill(cache, kibun, sounds, share=share, ready=ready, progress=progress)
    ready()
    for utterances in splits:
        utterances.use_cache(cache)


def _finish(
    config: RunConfig,
    folder: Path,
    corpus: Corpus,
    splits: dict[str, Utterances],
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """From the best weights to predictions, figures, expected error and card."""
    model = load_run(folder, device)
    use_cached_frames(config, folder, model.kibun, list(splits.values()))  # where nothing was left to train
    with progress.stage("predicting", sum(map(len, splits.values()))) as stage:
        outputs = {split: run_model(model, utterances, done=stage.advance) for split, utterances in splits.items()}
    if model.kibun.config.supports_personality:
        _finish_traits(config, folder, corpus, model, outputs, progress)
    predictions = {split: as_predictions(model, corpus.items[split], outputs[split]) for split in SPLITS}
    figures: dict[str, Any] = {
        "task": config.task,
        "dimension": config.dimension,
        "evaluations": len(read_log(folder)),
        "best_step": max(read_log(folder), key=lambda line: (line["dev"]["score"], -line["step"]))["step"],
        "warnings": list(corpus.warnings),
        "utterances": {split: len(items) for split, items in corpus.items.items()},
    }
    for split in ("dev", "test"):
        figures[split] = split_figures(predictions[split], config.model.traits)
        if (wer := transcript_error(corpus.items[split], outputs[split])) is not None:
            figures[split]["wer"] = wer
    if corpus.halves is not None:
        figures["calibration"] = corpus.halves.note
    data = data_license(config, corpus.items)
    model.kibun.config.license = joint_license([model.kibun.config.license or data, data])
    model.kibun.card = run_card(config, model.kibun, figures, corpus.items)
    _write_bundle(model.kibun.to("cpu"), folder)  # type: ignore[arg-type]
    for split in SPLITS:
        write_predictions(predictions_file(folder, split), predictions[split])
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    finish_bundle_swap(folder)
    for checkpoint in folder.glob(f"*{CHECKPOINT}*"):  # and what kills have left of others
        checkpoint.unlink()
    return figures


def _finish_traits(
    config: RunConfig,
    folder: Path,
    corpus: Corpus,
    model: TaskModel,
    outputs: Mapping[str, Mapping[int, Output]],
    progress: Progress,
) -> None:
    """Train the conversation head, measure what its traits are worth, and store what emotion is conditioned on."""
    kibun, options, items = model.kibun, config.training, corpus.items
    of = {split: Vectors(some, vectors_of(outputs[split])) for split, some in items.items()}
    if options.conversation == "frozen":
        choosing = list(corpus.choosing)
        chosen = Vectors([items["dev"][row] for row in choosing], of["dev"].vectors[choosing])
        with progress.stage("conversation head", options.conversation_steps) as stage:
            train_conversation_head(kibun, of["train"], chosen, config, step=stage.advance)
    if corpus.halves is None:
        return
    head, centre = kibun.conversation_head, cast(Sequence[float], kibun.config.condition_centre)
    apart = [items["dev"][row] for row in corpus.halves.calibrate]
    measured_on, known = [Vectors(apart, of["dev"].vectors[list(corpus.halves.calibrate)])], [of["train"]]
    if options.calibrate_augment != "none":
        some = np.random.default_rng([options.seed, 6]).permutation(len(items["train"]))[:MOST_AUGMENTED]
        known = [Vectors([items["train"][row] for row in some], of["train"].vectors[some])]
        for part in (measured_on, known):
            part.append(_through_rooms(kibun, part[0].items, options))
    learn_familiarity(kibun, known, options.seed)
    if apart:
        replayed = [replay(kibun, head, part.items, part.vectors, options.seed) for part in measured_on]
        kibun.evidence = evidence(replayed, apart, centre)
    heard = {split: replay(kibun, head, of[split].items, of[split].vectors, None) for split in ("dev", "test")}
    with progress.stage("conversation heads without some speakers", FOLDS * options.conversation_steps) as stage:
        heard["train"] = out_of_fold(kibun, of["train"], config, step=stage.advance)
    for split, some_heard in heard.items():
        some_heard.condition(kibun.evidence, centre).write(heard_file(folder, split))


def _through_rooms(kibun: KibunModel, items: Sequence[Item], options: TrainingOptions) -> Vectors:
    """The vectors of these utterances as other rooms, channels and microphones make them."""
    nothing = np.zeros((len(items), len(TRAITS)), np.float32)
    utterances = Utterances(
        items,
        nothing,
        min_samples=kibun.min_samples,
        seed=options.seed,
        augmentation=make_augmentation(options.calibrate_augment),
    )
    vectors = [torch.zeros(0, kibun.vector_size)]
    with torch.inference_mode():
        for row in range(len(items)):
            audio = cast(torch.Tensor, utterances[0, row].audio).to(kibun.device)
            vectors.append(kibun.vectors(kibun.personality_frames([audio], kibun.encode([audio]))).cpu())
    return Vectors(items, torch.cat(vectors).to(torch.float16).numpy())
