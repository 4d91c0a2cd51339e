"""Small nets: what each kind can learn, and that members do not depend on each other."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kibun.training.evaluation.metrics import ccc
from kibun.training.experiments.labels import nets
from kibun.training.experiments.labels.folds import LabelFold
from kibun.training.experiments.labels.linear import Scaling
from kibun.training.experiments.labels.nets import NetData, NetName, StackedNet, fit_nets

Array = NDArray[np.float64]


def world(rows: int = 1600, seed: int = 0) -> tuple[NDArray[np.float32], Array, Array, LabelFold]:
    """Features, traits on 1..7, and two targets: a sum of a cue and a trait, and the product of the two."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(rows, 6)).astype(np.float32), rng.normal(size=(rows, 5))
    targets = np.stack([x[:, 0] + z[:, 1], x[:, 0] * z[:, 1]], axis=1) + 0.2 * rng.normal(size=(rows, 2)) + 3
    train, test = np.arange(rows - 400), np.arange(rows - 400, rows)
    fold = LabelFold("a fold", train, train[:-200], train[-200:], test, np.where(np.arange(rows) < rows - 400, 0, -1))
    return x, 4 + z, targets, fold


def scores(name: NetName, members: tuple[tuple[int, int], ...] = ((0, 0), (0, 1)), **shape: Any) -> list[float]:
    x, traits, targets, fold = world(**shape)
    data = NetData(x, Scaling.of(traits, fold.train), targets, members)
    found = fit_nets(name, data, [traits] * len(members), fold)(fold.test)
    return [ccc(each, targets[fold.test, index]) for each, (_, index) in zip(found, members, strict=True)]


@pytest.mark.parametrize(
    ("name", "sum_of", "product"),
    [
        ("acoustics", (0.5, 0.8), (-0.1, 0.1)),
        ("traits", (0.5, 0.8), (-0.1, 0.1)),
        ("concat", (0.9, 1), (0.3, 1)),
        ("modulation", (0.9, 1), (0.8, 1)),
        ("ca", (0.3, 1), (0.3, 1)),
    ],
)
def test_each_net_learns_what_it_can(name: NetName, sum_of: tuple[float, float], product: tuple[float, float]) -> None:
    found = scores(name)
    for score, (low, high) in zip(found, (sum_of, product), strict=True):
        assert low <= score <= high


@pytest.mark.parametrize("name", ["modulation", "ca"])
def test_a_seed_gives_the_same_net_in_any_company(name: NetName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "EPOCHS", 4)
    torch.manual_seed(5)
    alone = scores(name, ((1, 0),), rows=700)
    torch.manual_seed(6)
    among = scores(name, ((0, 0), (0, 1), (1, 0), (1, 1)), rows=700)
    assert among[2] == pytest.approx(alone[0], abs=1e-5)
    assert len({round(score, 4) for score in among}) == 4


def test_attention_gets_every_feature_and_traits_decide_where_it_looks() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    for size in (2, 7, 8, 19):
        net = StackedNet("ca", size, generators)
        x = torch.randn(2, 3, size, requires_grad=True)
        traits = torch.randn(2, 3, 5, requires_grad=True)
        net(x, traits).sum().backward()
        assert x.grad is not None
        assert traits.grad is not None
        assert (x.grad.abs().sum(dim=(0, 1)) > 0).all()
        assert traits.grad.abs().sum() > 0


def test_the_weights_of_the_best_epoch_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a patience that is never used up, the nets end with the best score that they had on dev."""
    x, traits, targets, fold = world(700)
    monkeypatch.setattr(nets, "EPOCHS", 12)
    seen: list[list[float]] = []
    keep = nets._Best.keep

    def watched(self: nets._Best, found: list[float]) -> bool:
        seen.append(found)
        return keep(self, found)

    monkeypatch.setattr(nets._Best, "keep", watched)
    data = NetData(x, Scaling.of(traits, fold.train), targets, ((0, 0), (0, 1)))
    on_dev = fit_nets("acoustics", data, [traits] * 2, fold)(fold.dev)
    for index in range(2):
        best = max(scores[index] for scores in seen)
        assert ccc(on_dev[index], targets[fold.dev, index]) == pytest.approx(best, abs=1e-6)
