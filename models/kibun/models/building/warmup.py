"""A first inference: proves that the weights work here and pays first-call costs before anyone waits for them."""

import dataclasses

import numpy as np

from kibun.models.model import KibunModel
from kibun.models.types import NEUTRAL_TRAITS, SAMPLE_RATE_HZ, Analysis, Utterance


def warm_up(model: KibunModel, samples: int = SAMPLE_RATE_HZ) -> Analysis:
    """Analyse the same seeded noise twice, with one earlier utterance and given traits.

    Args:
        samples: length of the noise at 16 kHz; raised to the fewest that the model takes.

    Raises:
        ArithmeticError: estimates are not finite, or two equal calls differ.
    """
    noise = np.random.default_rng(0).standard_normal(max(samples, model.min_samples)).astype(np.float32) * 0.1
    history = np.zeros((1, model.vector_size), np.float16)
    request = Utterance(noise, history, given_traits=NEUTRAL_TRAITS)
    first, second = (model.analyze([request])[0] for _ in range(2))
    if not np.array_equal(first.vector, second.vector) or _estimates(first) != _estimates(second):
        raise ArithmeticError("two equal calls gave different answers")
    return first


def _estimates(analysis: Analysis) -> list[object]:
    fields = [field.name for field in dataclasses.fields(analysis) if field.name != "vector"]
    return [getattr(analysis, name) for name in fields]
