"""Emotion heads: one dimension, valence or arousal, from encoder frames and the speaker's Big Five traits.

Source: Gao et al., "Bridging Speech Emotion Recognition and Personality", IEEE TAC 2025: the baseline, two simpler ways
of conditioning (Concat, CA) and the temporal interaction condition network with cross attention (TICN-CA). The paper
does not give all sizes; ours add 11.43 M parameters to HuBERT-base's 94.40 M, +12.10 % where it reports +12.1 %.

Every head maps frames (B, T, H) and traits (B, 5) to (B,), not limited to the scale. It masks padding. It is given all
five traits on their public scale and selects those that it uses, so that callers need not know which.

Traits enter as z = (traits − centre) / scale, with the mean and the deviation of a population. The raw values of 1..7
that the paper feeds are all far from 0: at the start they make P two to three times as long as the frames beside it
(table), and training adds to that. P starts without offset: P(centre) = 0, so that of a speaker of whom nothing is
known the frames are all there is.

| length of P / length of a frame beside it, new heads | Concat | CA | TICN-CA |
|---|---|---|---|
| raw traits, P with offset, H = 96 | 2.44 | 2.48 | 2.48 |
| raw traits, P with offset, H = 768 | 2.48 | 2.47 | 2.52 |
| as here, H = 96 | 0.54 | 0.54 | 0.54 |
| as here, H = 768 | 0.55 | 0.55 | 0.55 |

(Means over 20 seeds; frames of unit variance, as LayerNorm makes them; traits of mean 4.2 and deviation 0.8; TICN-CA's
frames after its acoustic Linear.)
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kibun.models.frames import Frames
from kibun.models.layers import Attention, Linear, ScaleLinear, TransformerLayer, ZeroLinear
from kibun.models.types import HEADS, NEUTRAL_TRAITS, TRAITS, HeadName, Query


class Condition(nn.Module):
    """The traits that a head uses, standardised: z = (traits − centre) / scale."""

    def __init__(self, indices: Sequence[int], centre: Sequence[float], scale: Sequence[float]) -> None:
        """indices: (K,) of TRAITS. centre, scale: (5,), on the public scale."""
        super().__init__()
        self.indices = list(indices)
        # No buffers: transformers loads models by ways on which those that are not stored lose their values.
        self.centre = [float(centre[k]) for k in self.indices]
        self.scale = [float(scale[k]) for k in self.indices]

    def forward(self, traits: Tensor) -> Tensor:
        """(B, 5) on the public scale -> (B, K)."""
        return (traits[:, self.indices] - traits.new_tensor(self.centre)) / traits.new_tensor(self.scale)


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

    def __init__(self, size: int, *, condition: Condition, centre: float) -> None:
        super().__init__()
        self.condition = condition
        self.personality = ZeroLinear(len(condition.indices), size)
        self.out = ScaleLinear(2 * size, 1, centre=centre)

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """frames (B, T, H), traits (B, 5) -> (B,)."""
        personality = self.personality(self.condition(traits))  # (B, H)
        return self.out(torch.cat([frames.mean(), personality], dim=1)).squeeze(1)  # type: ignore[no-any-return]


class Ca(nn.Module):
    """Cross attention between H and the one token P = Linear(traits -> H), mean pool, linear.

    The paper says which side asks, and that the reverse was unsatisfactory, but in the copy at hand the symbols are not
    legible to us, so both are there; the default is P. With query "acoustic" the softmax is over a single key, and the
    output does not depend on the audio.
    """

    def __init__(
        self, size: int, *, heads: int, query: Query, dropout: float, condition: Condition, centre: float
    ) -> None:
        super().__init__()
        self.query = query
        self.condition = condition
        self.personality = ZeroLinear(len(condition.indices), size)
        self.cross_attention = Attention(size, heads, dropout)
        self.out = ScaleLinear(size, 1, centre=centre)

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """frames (B, T, H), traits (B, 5) -> (B,)."""
        personality = self.personality(self.condition(traits))[:, None]  # (B, 1, H)
        if self.query == "personality":
            pooled = self.cross_attention(personality, frames.hidden, frames.mask).squeeze(1)  # (B, H)
        else:
            attended = self.cross_attention(frames.hidden, personality, None)  # (B, T, H)
            pooled = Frames(attended, frames.lengths).mean()  # (B, H)
        return self.out(pooled).squeeze(1)  # type: ignore[no-any-return]


class TicnCa(nn.Module):
    """Temporal interaction of traits and frames, cross attention, masked mean pool, linear."""

    def __init__(
        self, size: int, *, heads: int, ff: int, query: Query, dropout: float, condition: Condition, centre: float
    ) -> None:
        super().__init__()
        self.query = query
        self.condition = condition
        self.traits = nn.ModuleList([ZeroLinear(1, size) for _ in condition.indices])
        self.fuse = ZeroLinear(len(condition.indices) * size, size)
        self.acoustic = Linear(size, size)
        self.interaction = TransformerLayer(size, heads, ff, dropout)
        self.cross_attention = Attention(size, heads, dropout)
        self.out = ScaleLinear(size, 1, centre=centre)

    def embed(self, traits: Tensor) -> Tensor:
        """P: traits (B, 5) on the public scale -> (B, H)."""
        condition = self.condition(traits)  # (B, K)
        embedded = [linear(condition[:, k : k + 1]) for k, linear in enumerate(self.traits)]  # K of (B, H)
        return self.fuse(torch.cat(embedded, dim=1))  # type: ignore[no-any-return]  # (B, K H) -> (B, H)

    def forward(self, frames: Frames, traits: Tensor) -> Tensor:
        """Estimate one emotion dimension.

        Args:
            frames: (B, T, H) of this dimension's tail.
            traits: (B, 5) on the public scale, 1..7, in the order of `kibun.models.types.TRAITS`.

        Returns:
            (B,), not limited to the scale.
        """
        mask = frames.mask  # (B, T)
        personality = self.embed(traits)  # (B, H)
        acoustic = self.acoustic(frames.hidden)  # (B, T, H)
        interacted = self.interaction(acoustic + personality[:, None, :], mask)  # P repeated over T -> (B, T, H)
        # Both sides have T tokens, so either can be the query.
        query, memory = (interacted, acoustic) if self.query == "personality" else (acoustic, interacted)
        attended = self.cross_attention(query, memory, mask)  # (B, T, H)
        pooled = Frames(attended, frames.lengths).mean()  # (B, H)
        return self.out(pooled).squeeze(1)  # type: ignore[no-any-return]  # (B,)


@torch.no_grad()
def restandardise(head: nn.Module, centre: Sequence[float], scale: Sequence[float]) -> None:
    """Change what a conditioned head's traits are standardised by, (5,) each, and its weights so that estimates stay.

    What P is at the new centre moves out of it, where the head allows that: in TICN-CA that P is the query of into the
    bias of the acoustic side, and back out of that side's keys and values.
    """
    condition = head.condition
    if not isinstance(condition, Condition):
        return
    new = Condition(condition.indices, centre, scale)
    shift = torch.tensor(new.centre).sub(torch.tensor(condition.centre)).div(torch.tensor(condition.scale))  # (K,)
    ratio = torch.tensor(new.scale).div(torch.tensor(condition.scale))
    if isinstance(head, TicnCa):
        for k, linear in enumerate(cast(Iterable[nn.Linear], head.traits)):
            linear.bias.add_(linear.weight[:, 0] * shift[k])
            linear.weight.mul_(ratio[k])
    else:
        personality = cast(nn.Linear, head.personality)
        personality.bias.add_(personality.weight @ shift)
        personality.weight.mul_(ratio)
    head.condition = new
    if isinstance(head, TicnCa) and head.query == "personality":
        constant = head.fuse(torch.cat([linear.bias for linear in cast(Iterable[nn.Linear], head.traits)]))  # (H,)
        for linear in (*cast(Iterable[nn.Linear], head.traits), head.fuse):
            linear.bias.zero_()
        head.acoustic.bias.add_(constant)
        for side in (head.cross_attention.key, head.cross_attention.value):
            side.bias.sub_(side.weight @ constant)


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
    condition_centre: Sequence[float] = NEUTRAL_TRAITS,
    condition_scale: Sequence[float] = (1.0,) * len(TRAITS),
) -> nn.Module:
    """Make the emotion head of this name.

    Args:
        name: one of HEADS.
        size: H of the frames.
        heads, ff, query: of the attention and of TICN's Transformer layer; ignored by heads without them.
        centre: the middle of the emotion scale, where estimates start.
        traits: those of TRAITS that a conditioned head uses.
        condition_centre, condition_scale: (5,), mean and deviation of the traits, by which they are standardised.

    Raises:
        ValueError: an unknown name or trait, or a size that is not a multiple of `heads`.
    """
    condition = Condition([TRAITS.index(trait) for trait in traits], condition_centre, condition_scale)
    match name:
        case "baseline":
            return Baseline(size, centre=centre)
        case "regression":
            return Regression(size, dropout=dropout, centre=centre)
        case "concat":
            return Concat(size, condition=condition, centre=centre)
        case "ca":
            return Ca(size, heads=heads, query=query, dropout=dropout, condition=condition, centre=centre)
        case "ticn-ca":
            return TicnCa(size, heads=heads, ff=ff, query=query, dropout=dropout, condition=condition, centre=centre)
        case _:
            raise ValueError(f"head is {name!r}, allowed are {', '.join(HEADS)}")
