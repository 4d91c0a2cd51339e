"""One small training loop for heads on data that is in memory: no devices, no checkpoints, no log."""

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: Iterable[Iterable[Batch]],
    loss: Callable[[Batch], Tensor],
    score: Callable[[], float] | None = None,
    *,
    steps: int,
    warmup: float = 0.1,
    patience: int | None = None,
) -> float:
    """Train `model` in place, leave it in evaluation mode with the weights of its best epoch, and return their score.

    Args:
        epochs: the batches of each epoch, drawn as training gets to them.
        loss: the loss of one batch, ().
        score: called after each epoch with the model in evaluation mode; higher is better. None: keep the last epoch.
        steps: length of the schedule, in which the learning rate of `optimizer` rises for the share `warmup` and falls.
        patience: epochs without a better score after which training stops; None: never.
    """
    highest = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps, pct_start=warmup)
    best, best_epoch, best_weights = float("-inf"), 0, copy.deepcopy(model.state_dict())
    for epoch, batches in enumerate(epochs):
        model.train(True)
        for batch in batches:
            optimizer.zero_grad()
            loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.train(False)
        if score is None:
            continue
        if (value := score()) > best:
            best, best_epoch, best_weights = value, epoch, copy.deepcopy(model.state_dict())
        elif patience is not None and epoch - best_epoch >= patience:
            break
    if score is not None:
        model.load_state_dict(best_weights)
    return best
