"""Trains emotion heads on simulated frames: those of `kibun.models.conditioning`, and two larger CAs beside them.

In front of every head is the same small encoder, which sees a frame and the two before it, as the layers of HuBERT
would see a frame in its context. Loss: 1 - CCC, plus a little squared error. Adam, with a learning rate that rises and
falls; the result is the epoch with the best CCC on dev.

TICN-CA has more than four times the parameters of CA, so a gain over CA could be size alone. `WideCa` and `DeepCa` have
as many as TICN-CA, and like CA they let traits ask, but never mix with the frames.
"""

from collections.abc import Callable, Iterator
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kibun.models.conditioning import TicnCa, make_head
from kibun.models.frames import Frames
from kibun.models.types import HeadName
from kibun.training.evaluation.metrics import ccc
from kibun.training.fit import fit
from kibun.training.losses import emotion_loss
from kibun.training.simulation.data import SimulationOptions, UtteranceSet

RowName = Literal["baseline", "concat", "ca", "ca-acoustic", "ca-wide", "ca-deep", "ticn-ca", "ticn-ca-acoustic"]
"""A head of the models, with P or (-acoustic) the frames as the query of its cross attention; a larger CA."""

ATTENTION_HEADS = 4
EVALUATION_BATCH = 2048
CONTEXT = 3  # frames: this one and those before


class Encoder(nn.Module):
    """(B, T, H) frames to (B, T, H), each from a frame and the two before it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.context = nn.Linear(CONTEXT * size, 2 * size)
        self.out = nn.Linear(2 * size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        length = frames.shape[1]
        padded = F.pad(frames, (0, 0, CONTEXT - 1, 0))  # silence before the first frame
        context = torch.cat([padded[:, index : index + length] for index in range(CONTEXT)], dim=2)  # (B, T, 3 H)
        return self.norm(self.out(torch.relu(self.context(context))))  # type: ignore[no-any-return]


class WideCa(nn.Module):
    """CA of twice the width, behind a Linear to that width: within 1 % of TICN-CA's parameters at sizes 32 and 64."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.widen = nn.Linear(size, 2 * size)
        self.head = make_head("ca", 2 * size, heads=ATTENTION_HEADS, dropout=0.0)

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """frames (B, T, H), traits (B, 5) -> (B,)."""
        return cast(Tensor, self.head(Frames(self.widen(frames.hidden), frames.lengths), traits))


class DeepCa(nn.Module):
    """CA over TICN's Transformer layer: all of TICN-CA's parts, but traits are the query alone, not added to frames."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.parts = cast(TicnCa, make_head("ticn-ca", size, heads=ATTENTION_HEADS, ff=2 * size, dropout=0.0))

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """frames (B, T, H), traits (B, 5) -> (B,)."""
        parts, mask = self.parts, frames.mask  # (B, T)
        hidden = parts.interaction(parts.acoustic(frames.hidden), mask)  # (B, T, H)
        pooled = parts.cross_attention(parts.embed(traits)[:, None], hidden, mask).squeeze(1)  # (B, H)
        return parts.out(pooled).squeeze(1)  # type: ignore[no-any-return]


def new_head(row: RowName, size: int) -> nn.Module:
    """The untrained head of a row: frames (B, T, size) and traits (B, 5) to (B,)."""
    match row:
        case "ca-wide":
            return WideCa(size)
        case "ca-deep":
            return DeepCa(size)
        case _:
            name = cast(HeadName, row.removesuffix("-acoustic"))
            query: Literal["personality", "acoustic"] = "acoustic" if row.endswith("-acoustic") else "personality"
            return make_head(name, size, heads=ATTENTION_HEADS, ff=2 * size, query=query, dropout=0.0)


def parameters(row: RowName, size: int) -> int:
    """Number of the parameters of a row's head, without the encoder that is the same for all."""
    return sum(weight.numel() for weight in new_head(row, size).parameters())


class EmotionEstimator(nn.Module):
    """Encoder and emotion head: (B, T, H) frames and (B, 5) traits to (B,). encoder: None for a new `Encoder`."""

    def __init__(self, row: RowName, size: int, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder or Encoder(size)
        self.head = new_head(row, size)

    def forward(self, frames: Tensor, traits: Tensor) -> Tensor:
        """(B, T, H) frames, (B, 5) traits on 1..7 -> (B,), not limited to the scale."""
        hidden = self.encoder(frames)
        return cast(Tensor, self.head(Frames(hidden, (hidden.shape[1],) * len(hidden)), traits))

    @torch.no_grad()
    def estimate(self, utterances: UtteranceSet) -> Tensor:
        """(N,) estimates."""
        self.eval()
        batches = zip(
            torch.split(utterances.frames, EVALUATION_BATCH),
            torch.split(utterances.traits, EVALUATION_BATCH),
            strict=True,
        )
        return torch.cat([self(frames, traits) for frames, traits in batches])

    def ccc(self, utterances: UtteranceSet) -> float:
        """CCC of the estimates with valence."""
        return ccc(self.estimate(utterances).numpy(), utterances.valence.numpy())


def fit_head(
    row: RowName,
    train: UtteranceSet,
    dev: UtteranceSet,
    options: SimulationOptions,
    seed: int,
    encoder: nn.Module | None = None,
    traits_of: Callable[[int], Tensor] | None = None,
) -> EmotionEstimator:
    """The estimator of the best epoch on dev.

    traits_of: the traits to train on in each epoch, (N, 5), counted from 0; None: those of `train`.
    """
    torch.manual_seed(seed)
    model = EmotionEstimator(row, options.size, encoder)
    shuffle = torch.Generator().manual_seed(seed)
    size = len(train.valence)
    batches = max(1, size // options.batch)
    traits = train.traits

    def epochs() -> Iterator[tuple[Tensor, ...]]:
        nonlocal traits
        for epoch in range(options.epochs):
            if traits_of is not None:
                traits = traits_of(epoch)
            yield torch.randperm(size, generator=shuffle).chunk(batches)

    fit(
        model,
        torch.optim.Adam(model.parameters(), options.learning_rate, fused=True),
        epochs(),
        lambda rows: emotion_loss(model(train.frames[rows], traits[rows]), train.valence[rows]),
        lambda: model.ccc(dev),
        steps=options.epochs * batches,
        patience=options.patience,
    )
    return model
