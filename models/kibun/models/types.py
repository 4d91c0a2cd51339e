"""What goes into and comes out of the one call, `KibunModel.analyze`. Needs numpy only."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
"""Rate of all audio that a model or a VAD reads. The client SDK, which imports none of this, may send other rates."""

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
EMOTIONS = ("valence", "arousal")
TRAIT_SCALE, EMOTION_SCALE = (1.0, 7.0), (1.0, 5.0)
"""Lowest and highest value. A model may have other scales, which its config names."""

CONDITIONED = ("concat", "ca", "ticn-ca")
"""Emotion heads that need traits; the others ignore them."""

Traits = tuple[float, float, float, float, float]
"""In the order of TRAITS, on the scale of the Ten-Item Personality Inventory, 1..7."""

NEUTRAL_TRAITS: Traits = (4.0, 4.0, 4.0, 4.0, 4.0)
"""The middle of the scale."""

ConditionSource = Literal["given", "utterance", "average", "conversation"]
"""Where the traits came from that emotion was conditioned on."""


@dataclass(frozen=True, eq=False, slots=True)
class Utterance:
    """One utterance to analyse, and what is already known about who says it.

    audio: (N,) float32 samples at 16 kHz, full scale +-1; at least `KibunModel.min_samples` of them.
    history: (K, D) float16 vectors of the speaker's earlier utterances, in any order; K may be 0.
    given_traits: known traits of the speaker, 1..7; they condition emotion in place of predicted ones.
    emotion, personality: which estimates are wanted. The vector is always made.
    """

    audio: NDArray[np.float32]
    history: NDArray[np.float16]
    given_traits: Traits | None = None
    emotion: bool = True
    personality: bool = True

    @property
    def seconds(self) -> float:
        """Duration of the audio in seconds."""
        return len(self.audio) / SAMPLE_RATE_HZ


@dataclass(frozen=True, eq=False, slots=True)
class Analysis:
    """Estimates for one utterance; None where not wanted or not supported. Always within the scales.

    vector: (D,) float16, to be handed back in the history of later utterances; (0,) for a model without personality.
    utterance_traits: setting 1, this utterance alone, 1..7.
    average_traits: setting 2, mean of setting 1 over the history and this utterance, 1..7.
    conversation_traits: setting 3, history and this utterance together, 1..7.
    condition_traits, condition_source: the traits that emotion was conditioned on, and where they came from.
    valence, arousal: 1..5, 3 neutral.
    """

    vector: NDArray[np.float16]
    utterance_traits: Traits | None = None
    average_traits: Traits | None = None
    conversation_traits: Traits | None = None
    condition_traits: Traits | None = None
    condition_source: ConditionSource | None = None
    valence: float | None = None
    arousal: float | None = None
