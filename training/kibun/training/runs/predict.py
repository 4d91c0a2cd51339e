"""A trained model's estimates of utterances as they would be served: float32, within the scales, vectors rounded."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kibun.models.bundle import KibunModel
from kibun.models.frames import Frames
from kibun.models.personality import round_to_stored
from kibun.models.types import EMOTIONS, Traits
from kibun.training.corpora.manifest import Item, conversations
from kibun.training.evaluation.predictions import Estimate, Prediction
from kibun.training.runs.ctc import transcripts
from kibun.training.runs.task_model import TaskModel
from kibun.training.runs.utterances import Utterances

BATCH = 8  # utterances of similar length; padding comes after the convolutions and is masked


@dataclasses.dataclass(frozen=True)
class Output:
    """One utterance after one forward: vector (H,) float16 and emotion where the run has them, and the transcript."""

    vector: NDArray[np.float16] | None
    emotion: float | None
    text: str


@torch.inference_mode()
def run_model(
    model: TaskModel,
    utterances: Utterances,
    indices: Sequence[int] | None = None,
    done: Callable[[int], None] = lambda _count: None,
) -> dict[int, Output]:
    """The model's output for utterances (all by default), by index; leaves the model in evaluation mode.

    done: called with how many were run, batch after batch.
    """
    model.train(False)
    dimension = model.run.dimension
    outputs: dict[int, Output] = {}
    for rows in _batches(utterances, indices):
        tail = model.kibun.tail(model.task_name)(utterances.encode(model.kibun, rows))  # (B, T, H)
        texts = transcripts(model.ctc(tail.hidden), tail)
        vectors: list[NDArray[np.float16] | None] = [None] * len(rows)
        if model.kibun.config.supports_personality:
            vectors = list(tail.mean().to(torch.float16).cpu().numpy())
        emotion: list[float | None] = [None] * len(rows)
        if dimension is not None:
            condition = torch.from_numpy(utterances.condition[rows]).to(tail.hidden.device)
            values = model.kibun.emotion_heads[dimension](tail, condition)
            emotion = values.clamp(*model.kibun.config.emotion_scale).tolist()
        fields = zip(rows, vectors, emotion, texts, strict=True)
        done(len(rows))
        outputs |= {row: Output(vector, value, text) for row, vector, value, text in fields}
    return outputs


def vectors_of(outputs: Mapping[int, Output]) -> NDArray[np.float16]:
    """(N, H) of all utterances, in their order; of a run that estimates traits."""
    return np.stack([cast(NDArray[np.float16], outputs[row].vector) for row in range(len(outputs))])


@torch.inference_mode()
def emotion_under(
    model: KibunModel, utterances: Utterances, dimension: str, conditions: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """One emotion dimension under several assignments of traits, each utterance encoded once.

    conditions: S arrays (N, 5). Returns (S, N), limited to the scale.
    """
    model.train(False)
    estimates = np.zeros((len(conditions), len(utterances)))
    for rows in _batches(utterances, None):
        tail: Frames = model.tail(dimension)(utterances.encode(model, rows))  # (B, T, H)
        for at, condition in enumerate(conditions):
            traits = torch.from_numpy(condition[rows]).to(tail.hidden.device)
            values = model.emotion_heads[dimension](tail, traits).clamp(*model.config.emotion_scale)
            estimates[at, rows] = values.double().cpu().numpy()
    return estimates


@torch.inference_mode()
def trait_estimates(model: KibunModel, items: Sequence[Item], vectors: NDArray[np.float16]) -> list[Estimate]:
    """Settings 1 to 3 of every utterance from the vectors (N, H) of whole conversations.

    The order within a conversation is that of `items`.
    """
    estimates: list[Estimate] = [Estimate()] * len(items)
    for rows in conversations(items).values():
        stored = torch.from_numpy(vectors[rows].astype(np.float32)).to(model.device)  # (K, H)
        alone = _limited(model, model.utterance_traits(stored))  # (K, 5)
        average = _limited(model, model.utterance_traits(stored).mean(dim=0, keepdim=True))[0]
        causal = _limited(model, model.conversation_head.causal(round_to_stored(stored)))  # (K, 5)
        for at, row in enumerate(rows):
            estimates[row] = Estimate(
                utterance_traits=alone[at],
                average_traits=average,
                conversation_traits=causal[-1],
                causal_traits=causal[at],
                heard=at + 1,
            )
    return estimates


def as_predictions(model: TaskModel, items: Sequence[Item], outputs: Mapping[int, Output]) -> list[Prediction]:
    """Predictions of whole conversations, truth beside them, in the order of `items`."""
    estimates: list[Estimate] = [Estimate()] * len(items)
    if model.kibun.config.supports_personality:
        estimates = trait_estimates(model.kibun, items, vectors_of(outputs))
    if (dimension := model.run.dimension) is not None:
        changes: list[dict[str, Any]] = [{dimension: outputs[row].emotion} for row in range(len(items))]
        estimates = [dataclasses.replace(old, **change) for old, change in zip(estimates, changes, strict=True)]
    return [prediction(item, estimate) for item, estimate in zip(items, estimates, strict=True)]


def prediction(item: Item, estimate: Estimate) -> Prediction:
    """An estimate beside the truth of its utterance."""
    return Prediction(
        id=item.id,
        dialogue=item.dialogue,
        speaker=item.speaker,
        gender=item.gender,
        traits=item.traits,
        predicted=estimate,
        **{name: getattr(item, name) for name in EMOTIONS},
    )


def _batches(utterances: Utterances, indices: Sequence[int] | None) -> Iterator[list[int]]:
    wanted = list(range(len(utterances)) if indices is None else indices)
    sizes = utterances.sizes()
    wanted.sort(key=lambda index: int(sizes[index]))
    for start in range(0, len(wanted), BATCH):
        yield wanted[start : start + BATCH]


def _limited(model: KibunModel, values: Tensor) -> list[Traits]:
    low, high = model.config.trait_scale
    return [cast(Traits, tuple(row)) for row in values.clamp(low, high).tolist()]
