"""Small nets on one vector of features and five traits: one hidden layer, several nets at once.

The nets of all seeds and emotions are trained side by side, as the members of one batch of matrix products; no member
depends on another, so that a seed gives the same net in any company. AdamW on the squared error of standardised
targets; each member keeps the weights of its best epoch, by CCC on dev.

- acoustics: relu(W x); traits: relu(W t); concat: relu(W [x; t])
- modulation: relu((1 + g(t)) * W x + b(t)), feature-wise scale and shift (Perez et al., "FiLM", AAAI 2018)
- ca: a single vector is a single key, over which softmax is 1 whatever the traits; so the features are cut into parts,
  each of which is a token, and the traits ask for them by cross attention with four heads
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kibun.training.evaluation.metrics import ccc
from kibun.training.experiments.labels.folds import LabelFold, Rows
from kibun.training.experiments.labels.linear import Scaling

NetName = Literal["acoustics", "traits", "concat", "modulation", "ca"]

HIDDEN = 64
TOKENS, TOKEN_SIZE, ATTENTION_HEADS = 8, 32, 4
STEPS_PER_EPOCH, SMALLEST_BATCH = 32, 32
EPOCHS, PATIENCE = 40, 6
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
_CELLS_AT_ONCE = 20_000_000


class StackedLinear(nn.Module):
    """E separate linear layers: (E, B, inputs) -> (E, B, outputs). Each starts as torch's Linear does."""

    def __init__(self, inputs: int, outputs: int, generators: Sequence[torch.Generator], scale: float = 1.0) -> None:
        super().__init__()
        bound = scale / math.sqrt(inputs)

        def start(*shape: int) -> Tensor:
            return torch.stack([torch.empty(shape).uniform_(-bound, bound, generator=each) for each in generators])

        self.weight = nn.Parameter(start(inputs, outputs))  # (E, inputs, outputs)
        self.bias = nn.Parameter(start(1, outputs))  # (E, 1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(E, B, inputs) -> (E, B, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight)


class StackedNet(nn.Module):
    """E nets of one kind: (E, B, D) features and (E, B, 5) traits -> (E, B)."""

    def __init__(self, name: NetName, size: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.name = name
        if name == "ca":
            self.token_width = -(-size // min(TOKENS, size))
            self.tokens = -(-size // self.token_width)
            self.embed = nn.ModuleList(
                [StackedLinear(self.token_width, TOKEN_SIZE, generators) for _ in range(self.tokens)]
            )
            self.query, self.key, self.value = (
                StackedLinear(inputs, TOKEN_SIZE, generators) for inputs in (5, TOKEN_SIZE, TOKEN_SIZE)
            )
            self.mixed = StackedLinear(TOKEN_SIZE, HIDDEN, generators)
        else:
            inputs = {"acoustics": size, "traits": 5, "concat": size + 5, "modulation": size}[name]
            self.hidden = StackedLinear(inputs, HIDDEN, generators)
        if name == "modulation":
            self.scale_and_shift = StackedLinear(5, 2 * HIDDEN, generators, scale=0.1)  # near no modulation at first
        self.out = StackedLinear(HIDDEN, 1, generators)

    def forward(self, x: Tensor, traits: Tensor) -> Tensor:
        """Estimates (E, B), standardised as the targets are."""
        match self.name:
            case "ca":
                hidden = self.mixed(self._attend(x, traits))
            case "modulation":
                scale, shift = self.scale_and_shift(traits).chunk(2, dim=2)  # (E, B, hidden) each
                hidden = (1 + scale) * self.hidden(x) + shift
            case "acoustics":
                hidden = self.hidden(x)
            case "traits":
                hidden = self.hidden(traits)
            case _:
                hidden = self.hidden(torch.cat([x, traits], dim=2))
        return self.out(torch.relu(hidden)).squeeze(2)  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, traits: Tensor) -> Tensor:
        """Cross attention of the traits' query with the tokens: (E, B, TOKEN_SIZE)."""
        members, batch, size = x.shape
        padded = torch.nn.functional.pad(x, (0, self.tokens * self.token_width - size))
        parts = torch.split(padded, self.token_width, dim=2)
        tokens = torch.stack([embed(part) for embed, part in zip(self.embed, parts, strict=True)], dim=2)
        flat = torch.relu(tokens).flatten(1, 2)  # (E, B * T, token)

        def heads(values: Tensor, length: int) -> Tensor:
            split = values.view(members * batch, length, ATTENTION_HEADS, -1)
            return split.transpose(1, 2)  # (E * B, heads, length, token / heads)

        query = heads(self.query(traits), 1)
        key, value = heads(self.key(flat), self.tokens), heads(self.value(flat), self.tokens)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)  # (E * B, heads, 1, …)
        return mixed.reshape(members, batch, TOKEN_SIZE)


@dataclasses.dataclass(frozen=True)
class NetData:
    """What the nets of a fold are given.

    array: (N, D) standardised features; targets: (N, K); members: (seed, target) of each.
    """

    array: NDArray[np.float32]
    of_traits: Scaling
    targets: NDArray[np.float64]
    members: tuple[tuple[int, int], ...]


def tokens_possible(size: int) -> bool:
    """Whether cross attention has anything to choose from."""
    return size > 1


def fit_nets(
    name: NetName, data: NetData, traits: Sequence[NDArray[np.float64]], fold: LabelFold
) -> Callable[[Rows], NDArray[np.float64]]:
    """Train the members; what is returned estimates rows: (n,) -> (E, n).

    traits: (N, 5) of each member, on 1..7.
    """
    condition = torch.tensor(np.stack([data.of_traits(values) for values in traits]), dtype=torch.float32)  # (E, N, 5)
    target = Scaling.of(data.targets, fold.train)
    chosen = [index for _seed, index in data.members]
    truth = torch.tensor(target(data.targets)[:, chosen].T, dtype=torch.float32)  # (E, N)
    generators = [torch.Generator().manual_seed(1000 * seed + index) for seed, index in data.members]
    net = StackedNet(name, data.array.shape[1], generators)
    sees_audio = name != "traits"
    array = torch.from_numpy(data.array)

    def inputs(rows: Tensor) -> tuple[Tensor, Tensor]:
        """(E, B) rows -> features (E, B, D) and traits (E, B, 5)."""
        x = array[rows] if sees_audio else torch.empty(0)
        return x, torch.gather(condition, 1, rows[:, :, None].expand(-1, -1, 5))

    @torch.no_grad()
    def estimate(rows: Rows) -> NDArray[np.float64]:
        size = max(1, _CELLS_AT_ONCE // (len(generators) * max(HIDDEN, data.array.shape[1])))
        parts = [net(*inputs(part.expand(len(generators), -1))) for part in torch.split(torch.from_numpy(rows), size)]
        found = torch.cat(parts, dim=1).numpy().astype(np.float64)  # (E, n)
        return found * target.scale[chosen, None] + target.mean[chosen, None]

    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    best, waited = _Best(net, len(generators)), 0
    for _epoch in range(EPOCHS):
        for rows in _batches(fold.fit, generators):
            optimizer.zero_grad()
            loss = (net(*inputs(rows)) - torch.gather(truth, 1, rows)).square().mean(dim=1).sum()
            loss.backward()
            optimizer.step()
        found = estimate(fold.dev)
        better = best.keep([ccc(found[e], data.targets[fold.dev, index]) for e, index in enumerate(chosen)])
        waited = 0 if better else waited + 1
        if waited == PATIENCE:
            break
    best.restore()
    return estimate


def _batches(rows: Rows, generators: Sequence[torch.Generator]) -> Iterator[Tensor]:
    """The (E, B) rows of STEPS_PER_EPOCH steps, in an order of its own for each member; few rows come several times."""
    size = max(SMALLEST_BATCH, -(-len(rows) // STEPS_PER_EPOCH))
    times = max(1, STEPS_PER_EPOCH * size // len(rows))
    orders = [torch.cat([torch.randperm(len(rows), generator=each) for _ in range(times)]) for each in generators]
    yield from torch.split(torch.from_numpy(rows)[torch.stack(orders)], size, dim=1)


class _Best:
    """The weights of each member's best epoch."""

    def __init__(self, net: StackedNet, members: int) -> None:
        self.net = net
        self.scores = [-math.inf] * members
        self.weights = {name: weights.clone() for name, weights in net.state_dict().items()}

    def keep(self, scores: Sequence[float]) -> bool:
        """Keep the members that score better than before; whether there are any."""
        better = [member for member, score in enumerate(scores) if score > self.scores[member]]
        for member in better:
            self.scores[member] = scores[member]
            for name, weights in self.net.state_dict().items():
                self.weights[name][member] = weights[member]
        return bool(better)

    def restore(self) -> None:
        self.net.load_state_dict(self.weights)
