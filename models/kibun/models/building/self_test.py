"""A first inference, which shows whether a bundle's weights work on this machine."""

from dataclasses import astuple

import numpy as np

from kibun.models.model import KibunModel
from kibun.models.types import SAMPLE_RATE_HZ, Analysis, faint_noise


def self_test(model: KibunModel) -> Analysis:
    """Analyse the same second of noise twice.

    Raises:
        ArithmeticError: estimates are not finite, or two equal calls differ.
    """
    request = faint_noise(model.vector_size, max(SAMPLE_RATE_HZ, model.min_samples))
    first, second = (model.analyze([request])[0] for _ in range(2))
    if not all(map(np.array_equal, astuple(first), astuple(second))):
        raise ArithmeticError("two equal calls gave different estimates")
    return first
