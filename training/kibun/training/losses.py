"""Losses, each a mean over the batch."""

import torch
from torch import Tensor

SMALLEST_CCC_BATCH = 8


def ccc_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 - CCC of one batch, (B,) and (B,) -> (); population moments.

    Raises ValueError below eight: the concordance of a few points is degenerate.
    """
    if predicted.numel() < SMALLEST_CCC_BATCH:
        raise ValueError(f"the CCC loss needs a batch of at least {SMALLEST_CCC_BATCH}, got {predicted.numel()}")
    x, y = predicted - predicted.mean(), truth - truth.mean()
    spread = x.square().mean() + y.square().mean() + (predicted.mean() - truth.mean()).square()
    return 1 - 2 * (x * y).mean() / spread.clamp(min=1e-8)


def emotion_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 - CCC plus a little squared error, which keeps the scale when a batch happens to be uniform."""
    return ccc_loss(predicted, truth) + 0.1 * (predicted - truth).square().mean()


def pair_loss(change: Tensor, truth: Tensor, elsewhere: Tensor) -> Tensor:
    """For pairs of one utterance and its changed version, each (P,): the change of arousal that was estimated, what it
    should be, and the change of valence, which should be none."""
    return emotion_loss(change, truth) + 0.2 * elsewhere.square().mean()


def trait_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Squared error on the 1..7 scale; (..., 5)."""
    return torch.nn.functional.mse_loss(predicted, truth)
