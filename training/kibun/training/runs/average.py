"""A moving average of a model's weights, which generalises better than the last ones of a short training."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class MovingAverage(nn.Module, Generic[M]):
    """A copy of a model that follows its weights; short at the start, so that it follows early on."""

    def __init__(self, model: M, decay: float) -> None:
        """decay: of the average after many steps, 0..1."""
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: M) -> None:
        """After each optimizer step."""
        steps = int(self.updates.add_(1))
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for average, new in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(new, 1 - decay)
