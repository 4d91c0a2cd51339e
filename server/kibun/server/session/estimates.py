"""Makes the estimates that a client sees of a model's analysis and the participant's earlier records. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import Analysis, ConditionSource, Traits
from kibun.server.conversation.state import Participant, Totals, UtteranceRecord
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.events import Emotion, Personality


def usable(model: ModelInfo, participant: Participant) -> list[UtteranceRecord]:
    """The records with a vector that this very bundle made, or may have made (records of older servers don't say)."""
    size, bundles = model.vector_size, ("", model.bundle)
    return [r for r in participant.records if r.vector is not None and r.vector.size == size and r.bundle in bundles]


def unusable(model: ModelInfo, participant: Participant) -> int:
    """The number of records whose vector another bundle made."""
    return sum(r.vector is not None for r in participant.records) - len(usable(model, participant))


def history(model: ModelInfo, participant: Participant) -> NDArray[np.float16]:
    """The usable vectors, oldest first, (K, D) float16; K may be 0."""
    vectors = [r.vector for r in usable(model, participant) if r.vector is not None]
    return np.stack(vectors) if vectors else np.zeros((0, model.vector_size), np.float16)


def emotion(analysis: Analysis) -> Emotion | None:
    """The utterance's emotion; None unless both dimensions were estimated."""
    if analysis.valence is None or analysis.arousal is None:
        return None
    return Emotion(analysis.valence, analysis.arousal)


def of_utterance(model: ModelInfo, analysis: Analysis, samples: int) -> Personality | None:
    """Traits from this utterance of `samples` samples alone (setting 1); None if not estimated."""
    if analysis.utterance_traits is None:
        return None
    return Personality(analysis.utterance_traits, "utterance", 1, samples, model.evidence_after(1))


def condition(model: ModelInfo, analysis: Analysis, known: Participant, samples: int) -> Personality | None:
    """The traits that emotion was conditioned on, with evidence and weight; None if on none."""
    if analysis.condition_traits is None or analysis.condition_source is None:
        return None
    source = analysis.condition_source
    if source == "given":
        return Personality(analysis.condition_traits, source, 0, 0)
    earlier = [] if source == "utterance" else usable(model, known)
    count, speech = len(earlier) + 1, sum(r.speech for r in earlier) + samples
    worth = model.evidence_after(count)
    return Personality(analysis.condition_traits, source, count, speech, worth, analysis.condition_weight)


def conversation_traits(analysis: Analysis) -> tuple[Traits | None, ConditionSource]:
    """The best traits over the conversation that the model estimates, and their source."""
    if analysis.conversation_traits is not None:
        return analysis.conversation_traits, "conversation"
    return analysis.average_traits, "average"


def of_participant(model: ModelInfo, participant: Participant) -> Personality | None:
    """The participant's latest traits over the conversation, by this very bundle; None before the first."""
    return _latest(usable(model, participant), model)


def last_known(model: ModelInfo | None, participant: Participant) -> Personality | None:
    """The participant's latest traits over the conversation, by whatever bundle; None before the first.

    `model`: None if it is no longer loaded. The expected error is unknown where another bundle made them.
    """
    if model is not None and (estimate := of_participant(model, participant)):
        return estimate
    last = next((r for r in reversed(participant.records) if r.traits is not None), None)
    return _latest([r for r in participant.records if last and r.vector is not None and r.bundle == last.bundle], None)


def _latest(records: Sequence[UtteranceRecord], model: ModelInfo | None) -> Personality | None:
    """The latest traits in these records, which are all the evidence behind them."""
    for r in reversed(records):
        if r.traits is not None:
            worth = model.evidence_after(len(records)) if model else None
            return Personality(r.traits, r.traits_source, len(records), sum(r.speech for r in records), worth)
    return None


def given(participant: Participant) -> Personality | None:
    """The traits that a client gave for the participant, without evidence; None if it gave none."""
    return Personality(participant.given_traits, "given", 0, 0) if participant.given_traits else None


def mean_emotion(totals: Totals) -> Emotion | None:
    """The utterances' mean, weighted by their speech; None without any estimate."""
    mean = totals.emotion
    return Emotion(*mean) if mean else None


def last_emotion(participant: Participant) -> Emotion | None:
    """Of the latest utterance that has one."""
    return next((Emotion(*r.emotion) for r in reversed(participant.records) if r.emotion), None)
