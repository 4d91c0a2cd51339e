"""Figures of a model on held-out speakers through `analyze`, the call that is served, utterance by utterance."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kibun.models.bundle import KibunModel, Utterance
from kibun.models.types import EMOTIONS, TRAITS, Traits
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.metrics import UTTERANCE_COUNTS, ccc, error_by_count
from kibun.training.evaluation.predictions import Estimate, Prediction
from kibun.training.runs.predict import prediction


def analyze_causally(model: KibunModel, items: Sequence[Item], batch_size: int = 32) -> list[Prediction]:
    """Play every speaker's utterances in the order given; histories grow as they would in a conversation."""
    model.train(False)
    queues: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        queues[item.speaker].append(item)
    histories = {name: np.zeros((0, model.vector_size), dtype=np.float16) for name in queues}
    predictions: list[Prediction] = []
    for turn in range(max(map(len, queues.values()))):
        names = [name for name, queue in queues.items() if len(queue) > turn]
        for start in range(0, len(names), batch_size):
            some = names[start : start + batch_size]
            requests = [Utterance(load_audio(queues[name][turn].path), histories[name]) for name in some]
            for name, answer in zip(some, model.analyze(requests), strict=True):
                histories[name] = np.concatenate([histories[name], answer.vector[None]])
                estimate = Estimate(
                    valence=answer.valence,
                    arousal=answer.arousal,
                    utterance_traits=answer.utterance_traits,
                    causal_traits=answer.conversation_traits,
                    heard=turn + 1,
                )
                predictions.append(prediction(queues[name][turn], estimate))
    return predictions


def emotion_ccc(rows: Sequence[Prediction]) -> dict[str, float]:
    """CCC of each emotion dimension that the model has, over all utterances."""
    names = [name for name in EMOTIONS if getattr(rows[0].predicted, name) is not None]
    return {name: ccc(*np.array([_values(row, name) for row in rows]).T) for name in names}


def trait_ccc(rows: Sequence[Prediction]) -> dict[str, float]:
    """CCC of each trait at conversation level, after all utterances of a speaker."""
    return {trait: ccc(*np.array([_values(row, trait) for row in _last(rows)]).T) for trait in TRAITS}


def expected_error(
    rows: Sequence[Prediction], counts: Sequence[int] = UTTERANCE_COUNTS
) -> tuple[tuple[int, Traits], ...]:
    """(utterances heard, RMSE per trait) at conversation level, for every count that some speaker reaches."""
    estimates = [row.predicted for row in rows]
    return error_by_count(
        [estimate.heard for estimate in estimates],
        [estimate.causal_traits for estimate in estimates],
        [row.traits for row in rows],
        counts,
    )


def ccc_spread(rows: Sequence[Prediction], name: str, seed: int = 0, draws: int = 500) -> float:
    """Standard deviation of the CCC of an emotion dimension or a trait over bootstrap draws of whole speakers."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in _last(rows) if name in TRAITS else rows:
        groups[row.speaker].append(_values(row, name))
    pairs = [np.array(group) for group in groups.values()]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([pairs[index] for index in rng.integers(0, len(pairs), len(pairs))])
        values.append(ccc(drawn[:, 0], drawn[:, 1]))
    return float(np.std(values))


def _values(row: Prediction, name: str) -> tuple[float, float]:
    """Estimate and truth of an emotion dimension, or of a trait at conversation level."""
    if name in EMOTIONS:
        return getattr(row.predicted, name), getattr(row, name)
    estimate, truth = row.predicted.causal_traits, row.traits
    assert estimate is not None
    assert truth is not None
    return estimate[TRAITS.index(name)], truth[TRAITS.index(name)]


def _last(rows: Sequence[Prediction]) -> list[Prediction]:
    """The last utterance of every speaker; rows are in that order."""
    return list({row.speaker: row for row in rows}.values())
