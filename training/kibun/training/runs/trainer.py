"""Training with transformers' Trainer: `TaskModel`, two learning rates, best dev CCC kept, the same after a kill.

What a run has done so far stands in its log and its last checkpoint. An evaluation appends one line to the log, and
where it is the best so far, writes the bundle; a resumed run goes back to the checkpoint, forgets the lines after it,
and does the same steps again. Several processes (torchrun) share a step's micro-batches and average their gradients:
the optimizer sees the same as with one process.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from kibun.models._transformers import quiet
from kibun.models.types import TRAITS
from kibun.training._transformers import Trainer, TrainerCallback, TrainingArguments
from kibun.training.evaluation.metrics import ccc, word_error_rate
from kibun.training.runs.config import RunConfig
from kibun.training.runs.ctc import spell
from kibun.training.runs.folder import BUNDLE, CHECKPOINTS, CTC, LOG, PART, read_log
from kibun.training.runs.predict import Heard, hear, trait_estimates
from kibun.training.runs.task_model import TaskModel
from kibun.training.runs.trunk_cache import why_off
from kibun.training.runs.utterances import BucketBatches, Collate, Utterances


class Fit(Trainer):
    """One run; `train_to_the_end` is what to call. All processes of a run make one each."""

    def __init__(
        self,
        model: TaskModel,
        config: RunConfig,
        train: Utterances,
        dev: Utterances,
        folder: Path,
        prepare: Callable[["Fit"], None] = lambda _fit: None,
    ) -> None:
        """prepare: called when the weights that training goes on from are loaded, before any audio is read."""
        self.run, self.folder, self.dev = config, folder, dev
        self.parts: dict[str, list[float]] = {}  # losses since the last evaluation
        self.evaluated = -1
        options = config.training
        arguments = _arguments(config, folder)
        # One device a process: Trainer would wrap the model in DataParallel wherever it sees several GPUs.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        accumulation, left = divmod(options.batch, options.micro_batch * arguments.world_size)
        if left or not accumulation:
            raise ValueError(
                f"training.batch is {options.batch}: {arguments.world_size} processes with training.micro_batch ="
                f" {options.micro_batch} cannot share it evenly; make it a multiple of their product"
            )
        arguments.gradient_accumulation_steps = accumulation
        self.batches = BucketBatches(
            train.sizes(),
            options.micro_batch,
            epochs=options.epochs,
            seed=options.seed,
            per_step=options.batch // options.micro_batch,
        )
        every = math.ceil(self.batches.steps_per_epoch / options.evaluations_per_epoch)
        arguments.max_steps = min(
            options.epochs * self.batches.steps_per_epoch, options.max_steps or options.epochs * 10**9
        )
        arguments.warmup_steps = round(options.warmup * arguments.max_steps)
        arguments.eval_steps = arguments.save_steps = min(every, arguments.max_steps)
        super().__init__(model=model, args=arguments, train_dataset=train, eval_dataset=dev)
        self.add_callback(_LastStep())
        self.add_callback(_Prepare(lambda: prepare(self)))

    @property
    def task_model(self) -> TaskModel:
        """The model itself, without what wraps it for several processes."""
        return cast(TaskModel, self.model)

    def train_to_the_end(self) -> None:
        """Train, going on from the last checkpoint if there is one; afterwards BUNDLE holds the best evaluation."""
        checkpoint = last_checkpoint(self.folder)
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0
        lines = [line for line in read_log(self.folder) if line["step"] <= step]
        self.accelerator.wait_for_everyone()  # all have read before one writes
        if self.is_world_process_zero():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (self.folder / LOG).write_text(text, encoding="utf-8")
        self.accelerator.wait_for_everyone()
        if step < self.args.max_steps and not self._patience_is_over(lines):
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        self.accelerator.wait_for_everyone()

    # ---- what Trainer asks for ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All batches of the run in order, so that a resumed run only has to skip."""
        collate = Collate(self.run.dimension, traits=self.run.task != "ser")
        loader = DataLoader(cast(Utterances, self.train_dataset), batch_sampler=self.batches, collate_fn=collate)
        return cast(DataLoader[Any], self.accelerator.prepare(loader))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with the learning rates of backbone and heads."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.task_model.parameter_groups())
        return self.optimizer

    def compute_loss(  # type: ignore[override]
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_unused: Any
    ) -> Any:
        """The loss of one micro-batch; its parts are noted for the log."""
        losses = model(**inputs)
        for name, value in losses.items():
            self.parts.setdefault(name, []).append(float(value.detach()))
        return (losses["loss"], losses) if return_outputs else losses["loss"]

    def evaluate(self, *_unused: Any, **_also_unused: Any) -> dict[str, float]:
        """Figures on dev, spread over the processes; one line in the log; the bundle if they are the best so far."""
        if self.evaluated == self.state.global_step:  # the last step is also the end of training
            return {}
        self.evaluated = self.state.global_step
        figures = self._dev_figures()
        line = {
            "step": self.state.global_step,
            "epoch": round(self.state.global_step / self.batches.steps_per_epoch, 3),
            "loss": {name: round(float(np.mean(values)), 5) for name, values in self.parts.items()},
            "dev": {name: round(value, 5) for name, value in figures.items()},
            "seconds": round(time.monotonic() - self.started, 1),
            "trunk": why_off(self.run) or "kept",
        }
        self.parts.clear()
        before = read_log(self.folder)
        self.accelerator.wait_for_everyone()  # all have read before one writes
        if self.is_world_process_zero():
            if not before or figures["score"] > max(other["dev"]["score"] for other in before):
                self._keep()
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._to_tensorboard(line)
        if self._patience_is_over([*before, line]):
            self.control.should_training_stop = True
        self.accelerator.wait_for_everyone()
        return {"eval_score": figures["score"]}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with a clock for the log."""
        self.started = time.monotonic()
        with quiet():
            return super().train(*args, **kwargs)

    def log(self, *_unused: Any, **_also_unused: Any) -> None:
        """Nothing: `evaluate` writes the log, and standard output belongs to the command."""

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _dev_figures(self) -> dict[str, float]:
        from accelerate.utils import gather_object

        mine = range(self.args.process_index, len(self.dev), self.args.world_size)
        heard = hear(self.task_model, self.dev, list(mine))
        if self.args.world_size > 1:
            heard = dict(gather_object(list(heard.items())))
        return dev_figures(self.task_model, self.dev, heard)

    def _patience_is_over(self, lines: list[dict[str, Any]]) -> bool:
        scores = [line["dev"]["score"] for line in lines]
        return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= self.run.training.patience

    def _keep(self) -> None:
        """Write bundle and CTC head aside, then move them into place: a kill leaves the old ones or the new."""
        model = self.task_model
        model.kibun.config.trained = True
        fresh, kept = self.folder / (BUNDLE + PART), self.folder / BUNDLE
        shutil.rmtree(fresh, ignore_errors=True)
        with quiet():
            model.kibun.save_pretrained(fresh)
        save_file({name: value.contiguous() for name, value in model.ctc.state_dict().items()}, fresh / CTC)
        (fresh / CTC).replace(self.folder / CTC)
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)

    def _to_tensorboard(self, line: dict[str, Any]) -> None:
        if not self.run.training.tensorboard:
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder / "tensorboard")) as writer:
            for group in ("loss", "dev"):
                for name, value in line[group].items():
                    writer.add_scalar(f"{group}/{name}", value, line["step"])


class _LastStep(TrainerCallback):
    """Evaluate after the last step too."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


class _Prepare(TrainerCallback):
    """Calls something once, when Trainer has loaded what it goes on from."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self.prepare = prepare

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.prepare()


def dev_figures(model: TaskModel, utterances: Utterances, heard: dict[int, Heard]) -> dict[str, float]:
    """CCC of what the run estimates, per utterance; `score` chooses the best; `wer` where there is text."""
    items, figures, scores = utterances.items, {}, []
    if model.run.dimension is not None:
        truth = [getattr(item, model.run.dimension) for item in items]
        figures[model.run.dimension] = ccc([cast(float, heard[row].emotion) for row in range(len(items))], truth)
        scores.append(figures[model.run.dimension])
    if model.kibun.config.supports_personality:
        vectors = np.stack([cast(Any, heard[row].vector) for row in range(len(items))])
        estimates = trait_estimates(model.kibun, items, vectors)
        alone = np.array([estimate.utterance_traits for estimate in estimates])  # (N, 5)
        traits = np.array([item.traits for item in items])
        figures |= {trait: ccc(alone[:, k], traits[:, k]) for k, trait in enumerate(TRAITS)}
        scores.append(float(np.mean([figures[trait] for trait in TRAITS])))
    figures["score"] = float(np.mean(scores))
    if (wer := transcript_error(utterances, heard)) is not None:
        figures["wer"] = wer
    return figures


def transcript_error(utterances: Utterances, heard: dict[int, Heard]) -> float | None:
    """WER of the greedy transcripts over the utterances that have words; None where none has."""
    pairs = [(spell(item.text or ""), heard[row].text) for row, item in enumerate(utterances.items)]
    pairs = [pair for pair in pairs if pair[0]]
    return word_error_rate([said for said, _ in pairs], [got for _, got in pairs]) if pairs else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole: Trainer writes its state last."""
    whole = [path.parent for path in (folder / CHECKPOINTS).glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _arguments(config: RunConfig, folder: Path) -> Any:
    options = config.training
    cuda = torch.cuda.is_available()
    bf16 = options.precision == "bf16" or (options.precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=1,  # the sampler goes through all of them
        per_device_train_batch_size=options.micro_batch,
        learning_rate=options.head_learning_rate,
        lr_scheduler_type=options.schedule if options.schedule != "constant" else "constant_with_warmup",
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        seed=options.seed,
        bf16=bf16,
        use_cpu=not cuda,
        ddp_backend="gloo" if not cuda and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_timeout=7200,  # the first process predicts every utterance at the end, the others wait
        remove_unused_columns=False,
        disable_tqdm=False,
    )
