"""The emotion head of public checkpoints, in all its forms: a pool over time, perhaps hidden layers, outputs.

Pools: the mean of the last frames; the mean of a weighted sum of all layers' frames, as `use_weighted_layer_sum` of
transformers has it (Yang et al., "SUPERB", Interspeech 2021); attentive statistics (Okabe et al., Interspeech 2018).

Outputs: the dimension itself, or categories, whose probabilities are weights of their points on the dimension.

kibun does not train it: it holds what `kibun models build --emotion` finds.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kibun.models.frames import Frames
from kibun.models.layers import Linear, ScaleLinear
from kibun.models.types import Pooling

LEAST_VARIANCE = 1e-5  # as in the Odyssey 2024 baseline


class Readout(nn.Module):
    """One emotion dimension from frames; traits are ignored."""

    def __init__(
        self, size: int, *, pooling: Pooling, states: int, hidden: int, points: Sequence[float] | None, centre: float
    ) -> None:
        """Make a head with random weights.

        Args:
            size: H of the frames.
            states: of the encoder, one more than its layers: pooling "layers" weighs them.
            hidden: number of hidden layers, each Linear, LayerNorm, ReLU.
            points: (C,) the dimension's value for each category; None: the output is the dimension.
            centre: where a dimension starts.
        """
        super().__init__()
        self.pooling, self.points = pooling, None if points is None else [float(point) for point in points]
        width = size
        if pooling == "layers":
            self.layer_weights = nn.Parameter(torch.zeros(states))
        elif pooling == "attentive":
            self.project, self.attention = Linear(size, size), nn.Parameter(nn.init.uniform_(torch.empty(size), -1, 1))
            width = 2 * size
        widths = [width, *[size] * hidden]
        self.hidden = nn.ModuleList(
            [nn.Sequential(Linear(before, size), nn.LayerNorm(size), nn.ReLU()) for before in widths[:-1]]
        )
        if self.points is None:
            self.out = ScaleLinear(widths[-1], 1, centre=centre)
        else:
            self.out = ScaleLinear(widths[-1], len(self.points), centre=0.0)

    def forward(self, frames: Frames, traits: Tensor | None) -> Tensor:
        """frames (B, T, H), traits ignored -> (B,)."""
        pooled = self._pooled(frames)  # (B, H) or (B, 2 H)
        for layer in self.hidden:
            pooled = layer(pooled)  # (B, H)
        outputs = self.out(pooled)  # (B, 1) or (B, C)
        if self.points is None:
            return cast(Tensor, outputs.squeeze(1))
        return cast(Tensor, outputs.softmax(dim=1) @ outputs.new_tensor(self.points))

    def _pooled(self, frames: Frames) -> Tensor:
        if self.pooling == "mean":
            return frames.mean()
        if self.pooling == "layers":
            if frames.layer_means is None:
                raise RuntimeError("this head reads all layers, and these frames come without those below")
            return torch.einsum("l,blh->bh", self.layer_weights.softmax(dim=0), frames.layer_means)
        score = torch.tanh(self.project(frames.hidden)) @ self.attention  # (B, T)
        if (mask := frames.mask) is not None:
            score = score.masked_fill(~mask, float("-inf"))
        weight = score.softmax(dim=1)[:, :, None]  # (B, T, 1)
        # Beyond an utterance's end values are arbitrary, and zero times infinity is none.
        hidden = frames.hidden if mask is None else frames.hidden.masked_fill(~mask[:, :, None], 0.0)
        mean = (weight * hidden).sum(dim=1)  # (B, H)
        variance = (weight * hidden.square()).sum(dim=1) - mean.square()
        return torch.cat([mean, variance.clamp(min=LEAST_VARIANCE).sqrt()], dim=1)
