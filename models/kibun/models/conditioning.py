"""TICN-CA: valence or arousal from frames, conditioned on the speaker's Big Five traits.

Source: Gao et al., "Bridging Speech Emotion Recognition and Personality", IEEE TAC 2025 (temporal interaction condition
network with cross attention). The sizes of its parts are not all in the text; ours add +11.43 M parameters to
HuBERT-base's 94.40 M, +12.10 % where the paper reports +12.1 %.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from kibun.models.hubert import Frames
from kibun.models.layers import Attention, Linear, ScaleLinear, TransformerLayer

Query = Literal["personality", "acoustic"]


class TicnCa(nn.Module):
    """Temporal interaction of traits and frames, cross attention, masked mean pool, linear."""

    def __init__(self, size: int, *, heads: int, ff: int, query: Query, dropout: float, centre: float) -> None:
        super().__init__()
        self.query = query
        self.traits = nn.ModuleList([Linear(1, size) for _ in range(5)])
        self.fuse = Linear(5 * size, size)
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
        embedded = [linear(traits[:, k : k + 1]) for k, linear in enumerate(self.traits)]  # 5 of (B, H)
        personality = self.fuse(torch.cat(embedded, dim=1))  # (B, 5 H) -> (B, H)
        acoustic = self.acoustic(frames.hidden)  # (B, T, H)
        interacted = self.interaction(acoustic + personality[:, None, :], mask)  # P repeated over T -> (B, T, H)
        # Both sides have T tokens, so either may ask.
        query, memory = (interacted, acoustic) if self.query == "personality" else (acoustic, interacted)
        attended = self.cross_attention(query, memory, mask)  # (B, T, H)
        pooled = Frames(attended, frames.lengths).mean()  # (B, H)
        return self.out(pooled).squeeze(1)  # type: ignore[no-any-return]  # (B,)
