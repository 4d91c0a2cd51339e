"""Predictions of a made-up model, for the tests of everything that reads them."""

from typing import cast

import numpy as np

from kibun.models.types import Traits
from kibun.training.evaluation.predictions import Estimate, Prediction


def utterances(count: int = 12, offset: float = 0.0) -> list[Prediction]:
    """Utterances of four conversation profiles in turn: valence estimated with noise and this offset, traits exactly.

    Causal traits are 4 throughout; arousal and average traits have neither label nor estimate.
    """
    rng = np.random.default_rng(7)
    found = []
    for index in range(count):
        valence, traits = float(rng.normal(3, 1)), cast(Traits, tuple(rng.uniform(1, 7, 5).tolist()))
        estimate = Estimate(
            valence=valence + offset + float(rng.normal()),
            conversation_traits=traits,
            causal_traits=(4.0, 4.0, 4.0, 4.0, 4.0),
            heard=index // 4 + 1,
        )
        found.append(
            Prediction(
                id=f"u{index}",
                dialogue=f"d{index % 2}",
                speaker=f"s{index % 4}",
                predicted=estimate,
                gender="female",
                valence=valence,
                traits=traits,
            )
        )
    return found
