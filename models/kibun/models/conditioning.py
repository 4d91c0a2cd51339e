"""Emotion heads: one dimension, valence or arousal, from encoder frames and the speaker's Big Five traits.

Source: Gao et al., "Bridging Speech Emotion Recognition and Personality", IEEE TAC 2025: the baseline, two simpler ways
of conditioning (Concat, CA) and the temporal interaction condition network with cross attention (TICN-CA). The paper
does not give all sizes; ours add 11.43 M parameters to HuBERT-base's 94.40 M, +12.10 % where it reports +12.1 %.

Every head maps frames (B, T, H) and traits (B, 5) to (B,), not limited to the scale. It masks padding. It is given all
five traits and selects those that it uses, so that callers need not know which.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kibun.models.hubert import Frames
from kibun.models.layers import Attention, Linear, ScaleLinear, TransformerLayer
from kibun.models.types import TRAITS

Query = Literal["personality", "acoustic"]
HeadName = Literal["baseline", "regression", "concat", "ca", "ticn-ca"]

HEADS: tuple[HeadName, ...] = ("baseline", "regression", "concat", "ca", "ticn-ca")


class Baseline(nn.Module):
    """No traits: y = W · mean(H)."""

    def __init__(self, size: int, *, centre: float) -> None:
        super().__init__()
        self.out = ScaleLinear(size, 1, centre=centre)

    def forward(self, frames: Frames, traits: Tensor | None) -> Tensor:
        """frames (B, T, H), traits ignored -> (B,)."""
        return self.out(frames.mean()).squeeze(1)  # type: ignore[no-any-return]


class Regression(nn.Module):
    """No traits: a hidden layer between mean and output, as in public checkpoints for dimensional emotion.

    Source: Wagner et al., "Dawn of the transformer era in speech emotion recognition", IEEE TPAMI 2023, whose head is
    mean pool, Linear, tanh, Linear.
    """

    def __init__(self, size: int, *, dropout: float, centre: float) -> None:
        super().__init__()
        self.dense = Linear(size, size)
        self.dropout = nn.Dropout(dropout)
        self.out = ScaleLinear(size, 1, centre=centre)

    def forward(self, frames: Frames, traits: Tensor | None) -> Tensor:
        """frames (B, T, H), traits ignored -> (B,)."""
        hidden = torch.tanh(self.dense(self.dropout(frames.mean())))  # (B, H)
        return self.out(self.dropout(hidden)).squeeze(1)  # type: ignore[no-any-return]


class Concat(nn.Module):
    """y = W · [mean(H); P] with P = Linear(traits -> H)."""

    def __init__(self, size: int, *, indices: Sequence[int], centre: float) -> None:
        super().__init__()
        self.indices = list(indices)
        self.personality = Linear(len(self.indices), size)
        self.out = ScaleLinear(2 * size, 1, centre=centre)

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """frames (B, T, H), traits (B, 5) -> (B,)."""
        personality = self.personality(traits[:, self.indices])  # (B, H)
        return self.out(torch.cat([frames.mean(), personality], dim=1)).squeeze(1)  # type: ignore[no-any-return]


class Ca(nn.Module):
    """Cross attention between H and the one token P = Linear(traits -> H), mean pool, linear.

    The paper says which side asks, and that the reverse was unsatisfactory, but in the copy at hand the symbols are not
    legible to us, so both are there; the default is P. With query "acoustic" the softmax is over a single key, and the
    output does not depend on the audio.
    """

    def __init__(
        self, size: int, *, heads: int, query: Query, dropout: float, indices: Sequence[int], centre: float
    ) -> None:
        super().__init__()
        self.query = query
        self.indices = list(indices)
        self.personality = Linear(len(self.indices), size)
        self.cross_attention = Attention(size, heads, dropout)
        self.out = ScaleLinear(size, 1, centre=centre)

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """frames (B, T, H), traits (B, 5) -> (B,)."""
        personality = self.personality(traits[:, self.indices])[:, None]  # (B, 1, H)
        if self.query == "personality":
            pooled = self.cross_attention(personality, frames.hidden, frames.mask).squeeze(1)  # (B, H)
        else:
            attended = self.cross_attention(frames.hidden, personality, None)  # (B, T, H)
            pooled = Frames(attended, frames.lengths).mean()  # (B, H)
        return self.out(pooled).squeeze(1)  # type: ignore[no-any-return]


class TicnCa(nn.Module):
    """Temporal interaction of traits and frames, cross attention, masked mean pool, linear."""

    def __init__(
        self,
        size: int,
        *,
        heads: int,
        ff: int,
        query: Query,
        dropout: float,
        centre: float,
        indices: Sequence[int] = range(len(TRAITS)),
    ) -> None:
        super().__init__()
        self.query = query
        self.indices = list(indices)
        self.traits = nn.ModuleList([Linear(1, size) for _ in self.indices])
        self.fuse = Linear(len(self.indices) * size, size)
        self.acoustic = Linear(size, size)
        self.interaction = TransformerLayer(size, heads, ff, dropout)
        self.cross_attention = Attention(size, heads, dropout)
        self.out = ScaleLinear(size, 1, centre=centre)

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """Estimate one emotion dimension.

        Args:
            frames: (B, T, H) of this dimension's tail.
            traits: (B, 5) on the 1..7 scale, unnormalised, in the order of `kibun.models.types.TRAITS`.

        Returns:
            (B,), not limited to the scale.
        """
        mask = frames.mask  # (B, T)
        embedded = [linear(traits[:, k : k + 1]) for linear, k in zip(self.traits, self.indices, strict=True)]
        personality = self.fuse(torch.cat(embedded, dim=1))  # (B, 5 H) -> (B, H)
        acoustic = self.acoustic(frames.hidden)  # (B, T, H)
        interacted = self.interaction(acoustic + personality[:, None, :], mask)  # P repeated over T -> (B, T, H)
        # Both sides have T tokens, so either can be the query.
        query, memory = (interacted, acoustic) if self.query == "personality" else (acoustic, interacted)
        attended = self.cross_attention(query, memory, mask)  # (B, T, H)
        pooled = Frames(attended, frames.lengths).mean()  # (B, H)
        return self.out(pooled).squeeze(1)  # type: ignore[no-any-return]  # (B,)


def make_head(
    name: HeadName,
    size: int,
    *,
    heads: int = 4,
    ff: int = 2048,
    query: Query = "personality",
    dropout: float = 0.1,
    centre: float = 3.0,
    traits: Sequence[str] = TRAITS,
) -> nn.Module:
    """Make the emotion head of this name.

    Args:
        name: one of HEADS.
        size: H of the frames.
        heads, ff, query: of the attention and of TICN's Transformer layer; ignored by heads without them.
        centre: the middle of the emotion scale, where estimates start.
        traits: those of TRAITS that a conditioned head uses.

    Raises:
        ValueError: an unknown name or trait, or a size that is not a multiple of `heads`.
    """
    indices = [TRAITS.index(trait) for trait in traits]
    match name:
        case "baseline":
            return Baseline(size, centre=centre)
        case "regression":
            return Regression(size, dropout=dropout, centre=centre)
        case "concat":
            return Concat(size, indices=indices, centre=centre)
        case "ca":
            return Ca(size, heads=heads, query=query, dropout=dropout, indices=indices, centre=centre)
        case "ticn-ca":
            return TicnCa(size, heads=heads, ff=ff, query=query, dropout=dropout, centre=centre, indices=indices)
        case _:
            raise ValueError(f"head is {name!r}, allowed are {', '.join(HEADS)}")
