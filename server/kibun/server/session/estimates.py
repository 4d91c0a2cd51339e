"""Makes the estimates that a client sees of a model's analysis and the participant's earlier records. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import Analysis, ConditionSource, Traits
from kibun.server.conversation.state import Participant, UtteranceRecord
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.events import Emotion, Personality


def expected_error(model: ModelInfo, utterance_count: int) -> Traits | None:
    """RMSE per trait on held-out speakers with this many utterances; None if unknown."""
    rows = [error for count, error in model.expected_error or () if count <= utterance_count]
    return rows[-1] if rows else None


def history(records: Iterable[UtteranceRecord], vector_size: int) -> NDArray[np.float16]:
    """The vectors of the analysed records, oldest first, (K, D) float16; K may be 0."""
    vectors = [r.vector for r in records if r.vector is not None]
    return np.stack(vectors) if vectors else np.zeros((0, vector_size), np.float16)


def emotion(analysis: Analysis) -> Emotion | None:
    """The utterance's emotion; None unless both dimensions were estimated."""
    if analysis.valence is None or analysis.arousal is None:
        return None
    return Emotion(analysis.valence, analysis.arousal)


def of_utterance(model: ModelInfo, analysis: Analysis, samples: int) -> Personality | None:
    """Traits from this utterance of `samples` samples alone (setting 1); None if not estimated."""
    if analysis.utterance_traits is None:
        return None
    return Personality(analysis.utterance_traits, "utterance", 1, samples, expected_error(model, 1))


def condition(model: ModelInfo, analysis: Analysis, known: Participant, samples: int) -> Personality | None:
    """The traits that emotion was conditioned on, with the evidence behind them; None if on none."""
    if analysis.condition_traits is None or analysis.condition_source is None:
        return None
    source = analysis.condition_source
    if source == "given":
        return Personality(analysis.condition_traits, source, 0, 0)
    alone = source == "utterance"
    count = 1 if alone else len(known.analysed) + 1
    speech = samples if alone else known.speech + samples
    return Personality(analysis.condition_traits, source, count, speech, expected_error(model, count))


def conversation_traits(analysis: Analysis) -> tuple[Traits | None, ConditionSource]:
    """The best traits over the conversation that the model estimates, and their source."""
    if analysis.conversation_traits is not None:
        return analysis.conversation_traits, "conversation"
    return analysis.average_traits, "average"


def of_participant(model: ModelInfo | None, participant: Participant) -> Personality | None:
    """The participant's latest traits over the conversation; None before the first.

    `model`: None if it is no longer loaded; then the expected error is unknown.
    """
    latest = participant.latest
    if latest is None or latest.traits is None:
        return None
    count = len(participant.analysed)
    error = expected_error(model, count) if model else None
    return Personality(latest.traits, latest.traits_source, count, participant.speech, error)


def given(participant: Participant) -> Personality | None:
    """The traits that a client gave for the participant, without evidence; None if it gave none."""
    return Personality(participant.given_traits, "given", 0, 0) if participant.given_traits else None


def mean_emotion(records: Iterable[UtteranceRecord]) -> Emotion | None:
    """The records' mean, weighted by their speech; None without any estimate."""
    pairs = [(r.emotion, r.speech) for r in records if r.emotion is not None]
    total = sum(weight for _, weight in pairs)
    if not total:
        return None
    return Emotion(*(sum(value[i] * weight for value, weight in pairs) / total for i in (0, 1)))
