"""What a run is measured by: CCC of all that it estimates, and the word error rate of its CTC head."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from kibun.models.types import EMOTIONS, TRAITS
from kibun.training.corpora.manifest import Item, conversations
from kibun.training.evaluation.metrics import ccc, word_error_rate
from kibun.training.evaluation.predictions import Prediction, units_of
from kibun.training.runs.ctc import spell
from kibun.training.runs.predict import Output, trait_estimates, vectors_of
from kibun.training.runs.task_model import TaskModel
from kibun.training.runs.trait_source import FIELD_OF_SETTING
from kibun.training.runs.utterances import Utterances


def dev_figures(
    model: TaskModel, utterances: Utterances, outputs: Mapping[int, Output], choosing: Sequence[int]
) -> dict[str, float]:
    """CCC of what the run estimates, per utterance; `wer` where there is text.

    `score` chooses the best: the emotion's CCC, also of a multi-task model; without emotion, the mean of setting 1's
    traits, or of setting 3's over whole conversations (`conversation`) where that is trained through the tail.

    choosing: the utterances that count, whole conversations; the only ones that `outputs` needs.
    """
    items, figures = [utterances.items[row] for row in choosing], dict[str, float]()
    outputs = {at: outputs[row] for at, row in enumerate(choosing)}
    rows = list(outputs.values())
    if (dimension := model.run.dimension) is not None:
        truth = [getattr(item, dimension) for item in items]
        figures[dimension] = ccc([cast(float, row.emotion) for row in rows], truth)
        figures["score"] = figures[dimension]
    if model.kibun.config.supports_personality:
        estimates = trait_estimates(model.kibun, items, vectors_of(outputs))
        alone = [estimate.utterance_traits for estimate in estimates]
        traits = _trait_figures(alone, [item.traits for item in items], model.run.model.traits)
        mean = traits.pop("mean")
        if model.through_tail:
            last = [rows[-1] for rows in conversations(items).values()]
            whole = [estimates[row].conversation_traits for row in last]
            mean = _trait_figures(whole, [items[row].traits for row in last], model.run.model.traits)["mean"]
            figures["conversation"] = mean
        figures |= traits
        figures.setdefault("score", mean)
    if (wer := transcript_error(items, outputs)) is not None:
        figures["wer"] = wer
    return figures


def transcript_error(items: Sequence[Item], outputs: Mapping[int, Output]) -> float | None:
    """WER of the greedy transcripts over the utterances that have words; None where none has."""
    pairs = [(spell(item.text or ""), outputs[row].text) for row, item in enumerate(items)]
    pairs = [pair for pair in pairs if pair[0]]
    return word_error_rate([text for text, _ in pairs], [got for _, got in pairs]) if pairs else None


def split_figures(predictions: Sequence[Prediction], traits: Sequence[str]) -> dict[str, Any]:
    """CCC of all that a run estimates; of traits, settings 1 and causal 3 per utterance, 2 and 3 per conversation."""
    figures: dict[str, Any] = {}
    for name in EMOTIONS:
        pairs = [(getattr(row.predicted, name), getattr(row, name)) for row in predictions]
        if all(value is not None for pair in pairs for value in pair):
            figures[name] = ccc([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    for setting, field in FIELD_OF_SETTING.items():
        rows = units_of(predictions, field)
        estimates = [getattr(row.predicted, field) for row in rows]
        if None not in estimates:
            figures[setting] = _trait_figures(estimates, [row.traits for row in rows], traits)
    return figures


def _trait_figures(estimates: Sequence[Any], truth: Sequence[Any], traits: Sequence[str]) -> dict[str, float]:
    """CCC of each of these traits and their mean; (N, 5) and (N, 5)."""
    ours, theirs = np.array(estimates), np.array(truth)
    each = {trait: ccc(ours[:, k], theirs[:, k]) for k, trait in enumerate(TRAITS) if trait in traits}
    return {**each, "mean": float(np.mean(list(each.values())))}
