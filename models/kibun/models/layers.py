"""Linear, attention and Transformer layers that the heads are built from."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A Linear with PyTorch's initialisation, also inside a transformers model, which would use a deviation of 0.02."""


class ZeroLinear(Linear):
    """A Linear that starts without offset: zero in, zero out."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.bias)


class ScaleLinear(Linear):
    """A Linear whose outputs start at the centre of their scale, so that training need not find it first."""

    def __init__(self, size: int, outputs: int, *, centre: float) -> None:
        self.centre = centre  # before nn.Linear.__init__, which resets the parameters
        super().__init__(size, outputs)

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.constant_(self.bias, self.centre)


class Attention(nn.Module):
    """Multi-head attention with separate inputs for the query and for key and value."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        if size % heads:
            raise ValueError(f"size {size} is not a multiple of {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.query = Linear(size, size)
        self.key = Linear(size, size)
        self.value = Linear(size, size)
        self.out = Linear(size, size)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from query (B, Q, H) to memory (B, K, H); mask (B, K) is True where memory is real."""
        q = self._split(self.query(query))  # (B, heads, Q, H / heads)
        k = self._split(self.key(memory))  # (B, heads, K, H / heads)
        v = self._split(self.value(memory))  # (B, heads, K, H / heads)
        allowed = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, K)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # (B, Q, H)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, self.heads, -1).transpose(1, 2)  # (B, L, H) -> (B, heads, L, H / heads)


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and LayerNorm (Vaswani et al., 2017)."""

    def __init__(self, size: int, heads: int, ff: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(size, heads, dropout)
        self.norm1 = nn.LayerNorm(size)
        self.feed_forward = nn.Sequential(Linear(size, ff), nn.ReLU(), nn.Dropout(dropout), Linear(ff, size))
        self.norm2 = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, L, H), mask (B, L) True where real -> (B, L, H)."""
        x = self.norm1(x + self.dropout(self.attention(x, x, mask)))  # (B, L, H)
        return self.norm2(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]  # (B, L, H)
