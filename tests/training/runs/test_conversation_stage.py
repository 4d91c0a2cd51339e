"""The conversation head, trained on stored vectors."""

from pathlib import Path

import numpy as np

from kibun.training.runs.config import from_dict
from kibun.training.runs.conversation_stage import Vectors, train_conversation_head
from kibun.training.runs.trait_source import true_traits
from tests.support.task_models import items, task_model


def test_the_conversation_head_learns_what_no_single_utterance_shows(world: Path) -> None:
    """Each vector shows a trait with much noise; the mean of many shows it well."""
    model = task_model(world, "pr").kibun
    rng = np.random.default_rng(0)

    def split(count: int, each: int) -> Vectors:
        some = items(count, each)
        traits = true_traits(some)
        vectors = np.zeros((len(some), model.vector_size), np.float16)
        vectors[:, :5] = (traits - 4) / 2 + rng.normal(0, 1.0, traits.shape)
        return Vectors(some, vectors)

    config = from_dict("pr", {"manifest": "m", "training": {"conversation_steps": 150}}, Path("/"))
    score = train_conversation_head(model, split(120, 8), split(20, 8), config)
    assert score > 0.6
