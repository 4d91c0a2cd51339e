"""The small training loop: it learns, keeps the best epoch, and stops when dev no longer gets better."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kibun.training.fit import fit


def line() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    return nn.Linear(3, 1), x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def test_it_learns_and_says_how_well() -> None:
    model, x, y = line()

    def error() -> float:
        return float((model(x) - y).detach().square().mean())

    before = error()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    best = fit(
        model,
        optimizer,
        (torch.arange(64).chunk(4) for _ in range(20)),
        lambda rows: (model(x[rows]) - y[rows]).square().mean(),
        lambda: -error(),
        steps=80,
    )
    assert -best == error() < before / 50
    assert not model.training
    assert optimizer.param_groups[0]["lr"] < 1e-4, "the schedule has come to its end"


def test_it_keeps_the_best_epoch_and_stops_when_patience_is_over() -> None:
    model, x, y = line()
    scores = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    drawn: list[int] = []
    weights: list[Tensor] = []

    def epochs() -> Iterator[list[int]]:
        for epoch in range(5):
            drawn.append(epoch)
            yield [epoch]

    def score() -> float:
        assert not model.training
        weights.append(model.weight.detach().clone())
        return next(scores)

    best = fit(
        model,
        torch.optim.SGD(model.parameters(), 0.01),
        epochs(),
        lambda _row: (model(x) - y).square().mean(),
        score,
        steps=5,
        patience=2,
    )
    assert best == 3.0
    assert drawn == [0, 1, 2, 3], "two epochs without a better score, and no more"
    assert torch.equal(model.weight, weights[1])
    assert not torch.equal(model.weight, weights[3])
