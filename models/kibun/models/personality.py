"""Apparent Big Five traits, from one utterance and from all utterances of a speaker so far.

Setting 1 is `PersonalityHead` on one utterance vector, setting 2 the mean of setting 1 over a speaker's utterances,
setting 3 `ConversationHead` over the vectors. All three need the vectors alone, so an utterance is encoded once and
stored as a float16 vector. Every estimate is computed from the vector *as stored*: `round_to_stored` comes first, so a
history that is read back from a store gives the same estimates.

Source: Gao et al., "Bridging Speech Emotion Recognition and Personality", IEEE TAC 2025. Its conversation head is not
described in full; ours is one small Transformer layer and an attention pool.
"""

from typing import cast

import torch
from torch import Tensor, nn

from kibun.models.layers import Linear, ScaleLinear, TransformerLayer


class PersonalityHead(nn.Module):
    """Five traits from an utterance vector (the mean of its frames)."""

    def __init__(self, size: int, *, centre: float) -> None:
        super().__init__()
        self.out = ScaleLinear(size, 5, centre=centre)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., H) -> (..., 5), not limited to the scale."""
        return self.out(vectors)  # type: ignore[no-any-return]


class Familiarity(nn.Module):
    """How much utterance vectors are like those that the traits were learnt from, 0..1.

    What a trait is worth (`kibun.models.evidence`) was measured on voices like those of training, and says nothing of
    others: on those, traits are noise with a weight. So each vector's Mahalanobis distance from the training vectors is
    held against the distances of training speakers that mean and covariance do not come from: 1 up to their median, 0
    from their 90th percentile on, and a line between: familiar voices lose a little, so that unlike ones are nothing
    gained by chance (docs/appendix/conditioning.md has other limits). What each vector has counts as their mean.
    """

    REACH = 0.5, 0.9  # quantiles
    RIDGE = 0.05  # share of a sphere in the covariance: directions that training hardly has prove no strangeness

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.whiten = nn.Parameter(torch.zeros(size, size).fill_diagonal_(1), requires_grad=False)
        self.reach = nn.Parameter(torch.tensor([1.0, 2.0]), requires_grad=False)  # distances of 1 and of 0

    @torch.no_grad()
    def fit(self, vectors: Tensor, others: Tensor) -> None:
        """vectors: (N, D) that give mean and covariance. others: (M, D), of other speakers."""
        x = vectors.double()
        mean = x.mean(dim=0)
        covariance = torch.cov(x.T, correction=0)
        size = len(mean)
        sphere = torch.eye(size, dtype=x.dtype, device=x.device) * covariance.diagonal().mean().clamp(min=1e-12)
        covariance = (1 - self.RIDGE) * covariance + self.RIDGE * sphere
        self.mean.copy_(mean)
        self.whiten.copy_(torch.linalg.cholesky(torch.linalg.inv(covariance)) / size**0.5)
        quantiles = torch.tensor(self.REACH, dtype=self.mean.dtype, device=self.mean.device)
        self.reach.copy_(torch.quantile(self._distance(others.to(self.mean)), quantiles))

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., K, D) -> (...): the mean over the K vectors of a speaker."""
        near, far = self.reach
        share = (far - self._distance(vectors)) / (far - near).clamp(min=1e-6)
        return cast(Tensor, share.clamp(0, 1).mean(dim=-1))

    def _distance(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (...): 1 at the root mean square of the vectors of `fit`."""
        return cast(Tensor, ((vectors - self.mean) @ self.whiten).norm(dim=-1))


class ConversationHead(nn.Module):
    """Five traits from the set of a speaker's utterance vectors.

    It has no positional encoding: personality does not depend on the order of utterances, and those of parallel streams
    may finish in any order. It is causal because it is given past utterances only.
    """

    def __init__(
        self, size: int, *, inner: int, heads: int, dropout: float, centre: float, familiarity: bool = False
    ) -> None:
        """familiarity: whether it knows which vectors its traits were learnt from."""
        super().__init__()
        self.familiarity = Familiarity(size) if familiarity else None
        self.project = Linear(size, inner)
        self.layer = TransformerLayer(inner, heads, 2 * inner, dropout)
        self.score = Linear(inner, 1)
        self.out = ScaleLinear(inner, 5, centre=centre)

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Estimate the traits of B speakers.

        Args:
            vectors: (B, K, H), K >= 1, already rounded (`round_to_stored`).
            mask: (B, K) bool, True where there is an utterance, at least one per row; None: all.

        Returns:
            (B, 5), not limited to the scale.
        """
        x = self.layer(self.project(vectors), mask)  # (B, K, d)
        score = self.score(x)  # (B, K, 1)
        if mask is not None:
            score = score.masked_fill(~mask[:, :, None], float("-inf"))
        pooled = (score.softmax(dim=1) * x).sum(dim=1)  # (B, d)
        return self.out(pooled)  # type: ignore[no-any-return]  # (B, 5)

    def causal(self, vectors: Tensor) -> Tensor:
        """The traits that would have been served after each utterance of one conversation.

        Args:
            vectors: (K, H) of one speaker, in the order spoken, already rounded.

        Returns:
            (K, 5): row k uses utterances 0..k only.
        """
        count = vectors.shape[0]
        so_far = torch.ones(count, count, dtype=torch.bool, device=vectors.device).tril()  # (K, K)
        return self.forward(vectors.expand(count, -1, -1), so_far)


def round_to_stored(vectors: Tensor) -> Tensor:
    """Round vectors (..., H) to float16, in which they are stored, without changing their dtype.

    Gradients pass unchanged (straight-through).
    """
    rounded = vectors.detach().to(torch.float16).to(vectors.dtype)
    return vectors + (rounded - vectors).detach() if vectors.requires_grad else rounded
