"""From a model's result and what was known before to the estimates that a client sees. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import Analysis, ConditionSource, Traits
from kibun.server.conversation.state import Participant, UtteranceRecord, weighted_emotion
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.events import Emotion, Personality


def expected_error(model: ModelInfo, utterance_count: int) -> Traits | None:
    """RMSE per trait on held-out speakers with this much evidence: the row of the largest count not above it."""
    rows = [error for count, error in model.expected_error or () if count <= utterance_count]
    return rows[-1] if rows else None


def history(records: Iterable[UtteranceRecord], vector_size: int) -> NDArray[np.float16]:
    """(K, D): the vectors of the analysed records, oldest first."""
    vectors = [r.vector for r in records if r.vector is not None]
    return np.stack(vectors) if vectors else np.zeros((0, vector_size), np.float16)


def emotion(result: Analysis) -> Emotion | None:
    if result.valence is None or result.arousal is None:
        return None
    return Emotion(result.valence, result.arousal)


def of_utterance(model: ModelInfo, result: Analysis, samples: int) -> Personality | None:
    """Traits from this utterance alone (setting 1)."""
    if result.utterance_traits is None:
        return None
    return Personality(result.utterance_traits, "utterance", 1, samples, expected_error(model, 1))


def condition(model: ModelInfo, result: Analysis, known: Participant, samples: int) -> Personality | None:
    """The traits that the emotion was conditioned on, with the evidence behind them."""
    if result.condition_traits is None or result.condition_source is None:
        return None
    source = result.condition_source
    if source == "given":
        return Personality(result.condition_traits, source, 0, 0)
    alone = source == "utterance"
    count = 1 if alone else len(known.analysed) + 1
    speech = samples if alone else known.speech + samples
    return Personality(result.condition_traits, source, count, speech, expected_error(model, count))


def conversation_traits(result: Analysis) -> tuple[Traits | None, ConditionSource]:
    """The best traits over the conversation that this model gives, and their source."""
    if result.conversation_traits is not None:
        return result.conversation_traits, "conversation"
    return result.average_traits, "average"


def of_participant(model: ModelInfo | None, participant: Participant) -> Personality | None:
    """Latest conversation-level traits. `model` None (its bundle is no longer loaded): without expected error."""
    latest = participant.latest
    if latest is None or latest.traits is None:
        return None
    count = len(participant.analysed)
    error = expected_error(model, count) if model else None
    return Personality(latest.traits, latest.traits_source, count, participant.speech, error)


def given(participant: Participant) -> Personality | None:
    """Traits that a client gave: no evidence of ours is behind them."""
    return Personality(participant.given_traits, "given", 0, 0) if participant.given_traits else None


def mean_emotion(records: Iterable[UtteranceRecord]) -> Emotion | None:
    pair = weighted_emotion(records)
    return Emotion(*pair) if pair else None
