"""A first inference: proves that the weights work here, before anyone relies on them."""

import numpy as np

from kibun.models.model import KibunModel
from kibun.models.types import SAMPLE_RATE_HZ, Analysis, faint_noise


def warm_up(model: KibunModel) -> Analysis:
    """Analyse the same second of noise twice.

    Raises:
        ArithmeticError: estimates are not finite, or two equal calls differ.
    """
    request = faint_noise(model.vector_size, max(SAMPLE_RATE_HZ, model.min_samples))
    first, second = (model.analyze([request])[0] for _ in range(2))
    if not np.array_equal(first.vector, second.vector) or first.numbers() != second.numbers():
        raise ArithmeticError("two equal calls gave different answers")
    return first
