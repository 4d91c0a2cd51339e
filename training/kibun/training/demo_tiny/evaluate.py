"""Figures of a model on held-out speakers through `analyze`, the call that is served, utterance by utterance."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kibun.models.bundle import KibunModel, Utterance
from kibun.models.types import EMOTIONS, TRAITS
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.predictions import Estimate, Prediction, ccc_of, pairs_of
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


def ccc_as_served(rows: Sequence[Prediction]) -> dict[str, float]:
    """CCC of the emotion dimensions, over all utterances, and of the traits, after the last utterance of a speaker."""
    emotions = [name for name in EMOTIONS if getattr(rows[0].predicted, name) is not None]
    return {name: ccc_of(*_scored(rows, name)) for name in (*emotions, *TRAITS)}


def ccc_spread(rows: Sequence[Prediction], name: str, seed: int = 0, draws: int = 500) -> float:
    """Standard deviation of the CCC of an emotion dimension or a trait over bootstrap draws of whole speakers."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for estimate, truth, row in zip(*pairs_of(*_scored(rows, name)), strict=True):
        groups[row.speaker].append((estimate, truth))
    pairs = [np.array(group) for group in groups.values()]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([pairs[index] for index in rng.integers(0, len(pairs), len(pairs))])
        values.append(ccc(drawn[:, 0], drawn[:, 1]))
    return float(np.std(values))


def _scored(rows: Sequence[Prediction], name: str) -> tuple[Sequence[Prediction], str, str | None]:
    """The arguments of `pairs_of`: all utterances for an emotion dimension, the last of each speaker for a trait."""
    if name in EMOTIONS:
        return rows, name, None
    return list({row.speaker: row for row in rows}.values()), name, "causal_traits"
