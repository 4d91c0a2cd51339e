"""Held-out figures of a model, through `analyze`: the very call that is served, causally, utterance by utterance."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import numpy as np

from kibun.models.bundle import Analysis, KibunModel, Utterance
from kibun.models.types import TRAITS, Traits
from kibun.training.demo_tiny.data import Example
from kibun.training.evaluation.metrics import UTTERANCE_COUNTS, ccc, error_by_count


@dataclasses.dataclass(frozen=True)
class Heard:
    """One utterance as the service would answer it: after ``count`` utterances of its speaker, this one included."""

    example: Example
    count: int
    answer: Analysis


def analyze_causally(model: KibunModel, examples: Sequence[Example], batch_size: int = 32) -> list[Heard]:
    """Play every speaker's utterances in the order given; histories grow as they would in a conversation."""
    model.train(False)
    queues: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        queues[example[1].speaker].append(example)
    histories = {name: np.zeros((0, model.vector_size), dtype=np.float16) for name in queues}
    heard: list[Heard] = []
    for turn in range(max(map(len, queues.values()))):
        names = [name for name, queue in queues.items() if len(queue) > turn]
        for start in range(0, len(names), batch_size):
            some = names[start : start + batch_size]
            requests = [Utterance(queues[name][turn][0].astype(np.float32) / 32768.0, histories[name]) for name in some]
            for name, answer in zip(some, model.analyze(requests), strict=True):
                histories[name] = np.concatenate([histories[name], answer.vector[None]])
                heard.append(Heard(queues[name][turn], turn + 1, answer))
    return heard


def emotion_ccc(heard: Sequence[Heard]) -> dict[str, float]:
    """CCC of each emotion dimension over all utterances."""
    return {
        name: ccc([getattr(h.answer, name) for h in heard], [getattr(h.example[1], name) for h in heard])
        for name in ("valence", "arousal")
        if getattr(heard[0].answer, name) is not None
    }


def trait_ccc(heard: Sequence[Heard]) -> dict[str, float]:
    """CCC of each trait at conversation level, after all that a speaker said."""
    last = _last(heard)
    predicted = np.array([h.answer.conversation_traits for h in last])  # (S, 5)
    truth = np.array([h.example[1].traits for h in last])  # (S, 5)
    return {trait: ccc(predicted[:, k], truth[:, k]) for k, trait in enumerate(TRAITS)}


def expected_error(heard: Sequence[Heard], counts: Sequence[int] = UTTERANCE_COUNTS) -> tuple[tuple[int, Traits], ...]:
    """(utterances heard, RMSE per trait) at conversation level, for every count that some speaker reaches."""
    predicted = [h.answer.conversation_traits for h in heard]
    return error_by_count([h.count for h in heard], predicted, [h.example[1].traits for h in heard], counts)


def ccc_spread(heard: Sequence[Heard], name: str, seed: int = 0, draws: int = 500) -> float:
    """Standard deviation of the CCC of an emotion dimension or a trait over bootstrap draws of whole speakers."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for h in heard if name not in TRAITS else _last(heard):
        groups[h.example[1].speaker].append(_estimate_and_truth(h, name))
    pairs = [np.array(group) for group in groups.values()]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([pairs[index] for index in rng.integers(0, len(pairs), len(pairs))])
        values.append(ccc(drawn[:, 0], drawn[:, 1]))
    return float(np.std(values))


def _estimate_and_truth(heard: Heard, name: str) -> tuple[float, float]:
    item = heard.example[1]
    if name not in TRAITS:
        return getattr(heard.answer, name), getattr(item, name)
    at = TRAITS.index(name)
    return cast(Traits, heard.answer.conversation_traits)[at], cast(Traits, item.traits)[at]


def _last(heard: Sequence[Heard]) -> list[Heard]:
    final: dict[str, Heard] = {}
    for h in heard:
        if h.count >= (final[h.example[1].speaker].count if h.example[1].speaker in final else 0):
            final[h.example[1].speaker] = h
    return list(final.values())
