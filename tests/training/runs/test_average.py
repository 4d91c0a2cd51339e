"""The moving average of weights, against its definition."""

import numpy as np
import torch
from torch import nn

from kibun.training.runs.average import MovingAverage


def test_the_average_follows_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = MovingAverage(model, decay=0.5)
    before = [parameter.clone() for parameter in average.model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for _ in range(9):
        average.update(model)
    assert int(average.updates) == 9
    decay = float(np.prod([min(0.5, (1 + n) / (10 + n)) for n in range(1, 10)]))
    for old, new in zip(before, average.model.parameters(), strict=True):
        torch.testing.assert_close(new, old + 1 - decay)
        assert not new.requires_grad
