"""Ratings of several raters, and the plain form of a measure of their agreement."""

import numpy as np
from numpy.typing import NDArray


def rated(seed: int, targets: int = 40, raters: int = 5, noise: float = 0.7, bias: float = 0.4) -> NDArray[np.float64]:
    """(targets, raters) scores around 4: targets differ in worth, raters in strictness."""
    rng = np.random.default_rng(seed)
    worth, strictness = rng.normal(4, 1, (targets, 1)), rng.normal(0, bias, (1, raters))
    return worth + strictness + rng.normal(0, noise, (targets, raters))


def plain_kappa(categories: NDArray[np.int64]) -> float:
    """Fleiss 1971, step by step."""
    n, k = categories.shape
    agreements, shares = [], dict.fromkeys(np.unique(categories).tolist(), 0.0)
    for row in categories.tolist():
        agreements.append(sum(a == b for i, a in enumerate(row) for j, b in enumerate(row) if i != j) / (k * (k - 1)))
        for category in row:
            shares[category] += 1 / (n * k)
    chance = sum(share**2 for share in shares.values())
    return float((np.mean(agreements) - chance) / (1 - chance))
