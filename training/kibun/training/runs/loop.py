"""The training loop: one model, gradients from several micro-batches and processes, the best on dev saved.

What a run has done so far is in its log and its last checkpoint. An evaluation appends one line to the log and, where
it is the best so far, saves the model; a resumed run goes back to the checkpoint, drops the lines after it, and takes
the same steps again: a step's micro-batches depend on its number alone. Several processes (torchrun) share the
micro-batches of a step and average their gradients, so the optimizer sees the same as with one process.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, send_to_device, set_seed
from torch import nn

from kibun.models.files import one_line, written_atomically
from kibun.models.weights import not_finite
from kibun.training._transformers import get_scheduler
from kibun.training.progress import Progress
from kibun.training.runs.folder import CHECKPOINT, LOG, read_log

LARGEST_GRADIENT = 1.0  # norm to which gradients are clipped


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `train` trains, for how long, and what it calls."""

    model: nn.Module  # forward(**batch) returns {"loss": (), and the parts of it that go into the log}
    optimizer: torch.optim.Optimizer
    batch: Callable[[int], dict[str, Any]]  # the arguments of the model's forward for the run's Nth micro-batch, from 0
    per_step: int  # micro-batches of one optimizer step, over all processes
    steps: int
    evaluate_every: int  # steps; after the last one as well
    evaluate: Callable[[], dict[str, float]]  # figures on dev, with "score"; called by all processes together
    save: Callable[[], None]  # store the weights as the best so far; called by the first process
    schedule: str = "linear"  # of the learning rate: "linear", "cosine" or "constant"
    warmup: float = 0.1  # share of the steps
    patience: int | None = None  # evaluations without a better score after which training stops
    seed: int = 0  # of dropout
    bf16: bool = False
    tensorboard: bool = False
    steps_per_epoch: int | None = None  # to log the epoch
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # fields of every log line


def new_accelerator() -> Accelerator:
    """One device for each process: its GPU, or the CPU."""
    # The first process predicts every utterance at the end while the others wait.
    waiting = InitProcessGroupKwargs(timeout=datetime.timedelta(hours=2))
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waiting])


def train(
    plan: Plan,
    folder: Path,
    accelerator: Accelerator,
    loaded: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> None:
    """Train to the end, from the last checkpoint in `folder` if there is one. All processes of a run call it.

    loaded: called once the weights to continue from are in the model, before the first step. progress: default: shown
    by the first process of each machine.

    Raises ValueError where the processes cannot share the micro-batches of a step evenly.
    """
    share, rest = divmod(plan.per_step, accelerator.num_processes)
    if rest:
        raise ValueError(
            f"{accelerator.num_processes} processes cannot share {plan.per_step} micro-batches a step evenly: make"
            " training.batch a multiple of training.micro_batch times the number of processes"
        )
    file = folder / CHECKPOINT
    checkpoint = _read_checkpoint(file) if file.is_file() else None
    start = checkpoint["step"] if checkpoint is not None else 0
    log = [line for line in read_log(folder) if line["step"] <= start]
    accelerator.wait_for_everyone()  # all have read before one writes
    if accelerator.is_main_process:
        (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    if start >= plan.steps or _no_longer_better(log, plan.patience):
        return

    set_seed(plan.seed)
    model, optimizer = accelerator.prepare(plan.model), plan.optimizer
    name = plan.schedule if plan.schedule != "constant" else "constant_with_warmup"
    schedule = get_scheduler(name, optimizer, round(plan.warmup * plan.steps), plan.steps)
    if checkpoint is not None:
        try:
            _restore(checkpoint, plan, schedule, accelerator.process_index)
        except Exception as error:  # of torch, whose modules and optimizers each raise their own types
            raise _unusable(file, error) from error
    loaded()

    progress = progress or Progress(shown=accelerator.is_local_main_process)
    started = time.monotonic()
    with progress.stage("training", plan.steps) as stage:
        stage.advance(start)
        losses: list[dict[str, float]] = []  # of the micro-batches since the last evaluation
        for step in range(start + 1, plan.steps + 1):
            model.train()
            first = (step - 1) * plan.per_step + accelerator.process_index
            for number in range(share):
                batch = plan.batch(first + number * accelerator.num_processes)
                last = number == share - 1
                # Processes average their gradients once a step.
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=plan.bf16):
                        parts = model(**send_to_device(batch, accelerator.device))
                    accelerator.backward(parts["loss"] / share)
                losses.append({part: float(value.detach()) for part, value in parts.items()})
            accelerator.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            stage.advance()

            if step % plan.evaluate_every == 0 or step == plan.steps:
                model.eval()
                stage.note("evaluating")
                log.append(_evaluated(plan, folder, log, step, losses, time.monotonic() - started, accelerator))
                losses.clear()
                progress.line(_described(log, plan))
                stage.note("")
                _save(file, step, plan, schedule, accelerator)
                if _no_longer_better(log, plan.patience):
                    break


def _evaluated(
    plan: Plan,
    folder: Path,
    log: Sequence[Mapping[str, Any]],
    step: int,
    losses: Sequence[Mapping[str, float]],
    seconds: float,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Evaluate on dev, save the model if it is the best so far, and write and return the line of the log.

    Raises ValueError where the weights are no longer numbers.
    """
    if name := not_finite(plan.model.state_dict().items()):
        raise ValueError(f"training has diverged by step {step}: {name} holds NaN or infinity; lower the learning rate")
    figures = plan.evaluate()
    line = {
        "step": step,
        **({"epoch": round(step / plan.steps_per_epoch, 3)} if plan.steps_per_epoch else {}),
        "loss": {part: round(float(np.mean([each[part] for each in losses])), 5) for part in losses[0]},
        "dev": {figure: round(value, 5) for figure, value in figures.items()},
        "seconds": round(seconds, 1),
        **plan.notes,
    }
    if accelerator.is_main_process:
        if all(figures["score"] > before["dev"]["score"] for before in log):
            plan.save()
        with (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if plan.tensorboard:
            _to_tensorboard(folder, line)
    return line


def _described(log: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """The last evaluation in one line: where, the loss since the one before, and how it compares with the best."""
    line, scores = log[-1], [each["dev"]["score"] for each in log]
    where = f"step {line['step']} of {plan.steps}"
    if "epoch" in line and plan.steps_per_epoch:
        where = f"epoch {line['epoch']:g} of {math.ceil(plan.steps / plan.steps_per_epoch)}, {where}"
    since = len(scores) - 1 - int(np.argmax(scores))
    patience = "" if plan.patience is None else f" of {plan.patience}"
    better = "best so far" if since == 0 else f"not better for {since}{patience} evaluations"
    return f"{where}: loss {line['loss']['loss']:.4f}, dev score {scores[-1]:.4f}, {better}"


def _no_longer_better(log: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether as many evaluations as `patience` came after the best one."""
    scores = [line["dev"]["score"] for line in log]
    return bool(scores) and patience is not None and len(scores) - 1 - int(np.argmax(scores)) >= patience


def _save(file: Path, step: int, plan: Plan, schedule: Any, accelerator: Accelerator) -> None:
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    random = gather_object([(torch.get_rng_state(), gpu)])  # of each process
    if accelerator.is_main_process:
        parts = {"model": plan.model, "optimizer": plan.optimizer, "schedule": schedule}
        with written_atomically(file) as draft:
            torch.save({"step": step, "random": random, **{k: part.state_dict() for k, part in parts.items()}}, draft)
    accelerator.wait_for_everyone()


def _read_checkpoint(file: Path) -> dict[str, Any]:
    """Only tensors and plain values are read. Raises ValueError if the file is damaged."""
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if type(checkpoint["step"]) is not int:
            raise TypeError("its step is no number")
    except Exception as error:  # of torch's many readers
        raise _unusable(file, error) from error
    return checkpoint


def _unusable(file: Path, error: Exception) -> ValueError:
    fix = "remove it, and the run is trained again from its start"
    return ValueError(f"{file}: damaged, or not of this run ({one_line(error)}): {fix}")


def _restore(checkpoint: Mapping[str, Any], plan: Plan, schedule: Any, process: int) -> None:
    for name, part in (("model", plan.model), ("optimizer", plan.optimizer), ("schedule", schedule)):
        part.load_state_dict(checkpoint[name])
    if process < len(checkpoint["random"]):  # else there were fewer processes before
        cpu, gpu = checkpoint["random"][process]
        torch.set_rng_state(cpu)
        if gpu is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(gpu)


def _to_tensorboard(folder: Path, line: Mapping[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for group in ("loss", "dev"):
            for name, value in line[group].items():
                writer.add_scalar(f"{group}/{name}", value, line["step"])
