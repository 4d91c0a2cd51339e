"""Input and output of `KibunModel.analyze`. Needs numpy only."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
"""Rate of all audio that a model or a VAD reads. Clients may send other rates: the server resamples."""

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
EMOTIONS = ("valence", "arousal")
TRAIT_SCALE, EMOTION_SCALE = (1.0, 7.0), (1.0, 5.0)
"""Lowest and highest value. A model may have other scales, which its config names."""

HeadName = Literal["baseline", "regression", "concat", "ca", "ticn-ca"]
HEADS: tuple[HeadName, ...] = ("baseline", "regression", "concat", "ca", "ticn-ca")
"""Emotion heads, of `kibun.models.conditioning`."""

Query = Literal["personality", "acoustic"]
"""Which side asks in a head's cross attention."""

CONDITIONED = ("concat", "ca", "ticn-ca")
"""Emotion heads that need traits; the others ignore them."""

Traits = tuple[float, float, float, float, float]
"""In the order of TRAITS, on the scale of the Ten-Item Personality Inventory, 1..7."""

NEUTRAL_TRAITS: Traits = (4.0, 4.0, 4.0, 4.0, 4.0)
"""The middle of the scale."""

FULL_WEIGHT: Traits = (1.0, 1.0, 1.0, 1.0, 1.0)

Pooling = Literal["mean", "layers", "attentive"]
POOLINGS: tuple[Pooling, ...] = ("mean", "layers", "attentive")
"""How a readout (kibun.models.readout) makes one vector of frames."""

ConditionSource = Literal["given", "utterance", "average", "conversation"]
"""Where the traits that emotion was conditioned on came from."""

Precision = Literal["auto", "fp32", "bf16"]
"""Of a served model's matrix products; "auto" is decided by `kibun.models.precision`."""


@dataclass(frozen=True, eq=False, slots=True)
class Utterance:
    """One utterance to analyse, and what is already known about its speaker.

    audio: (N,) float32 samples at 16 kHz, full scale ±1; N is at least `KibunModel.min_samples`.
    history: (K, D) float16 vectors of the speaker's earlier utterances, in any order; K may be 0.
    given_traits: known traits of the speaker, 1..7; emotion is conditioned on them in place of predicted ones.
    emotion, personality: which estimates are wanted. The vector is always returned.
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

    def check(self, *, vector_size: int, min_samples: int, max_samples: int | None = None) -> None:
        """Raise ValueError, which names the field, unless the arrays have the dtype, shape and finite values above.

        vector_size: D that the model takes. Whether the traits suit a model is up to `kibun.models.analysis`.
        """
        audio, history = self.audio, self.history
        if audio.ndim != 1 or audio.dtype != np.float32:
            raise ValueError(f"audio is {audio.dtype} {audio.shape}, it has to be float32 (samples,), mono 16 kHz")
        if len(audio) < min_samples:
            raise ValueError(f"audio has {len(audio)} samples, at least {min_samples} are needed")
        if max_samples is not None and len(audio) > max_samples:
            raise ValueError(f"audio has {len(audio)} samples, at most {max_samples} are allowed")
        if not np.isfinite(audio).all():
            raise ValueError("audio contains NaN or infinity")
        fits = history.ndim == 2 and history.shape[1] == vector_size and history.dtype == np.float16
        if not fits and not (history.ndim == 2 and len(history) == 0):
            wanted = f"float16 (utterances, {vector_size})"
            raise ValueError(f"history is {history.dtype} {history.shape}, it has to be {wanted}")
        if not np.isfinite(history).all():
            raise ValueError("history contains NaN or infinity")


@dataclass(frozen=True, eq=False, slots=True)
class Analysis:
    """Estimates for one utterance, always within their scales; None where not wanted or not supported.

    vector: (D,) float16, to be passed in the history of later utterances; (0,) for a model without personality.
    utterance_traits: setting 1, this utterance alone, 1..7.
    average_traits: setting 2, mean of setting 1 over the history and this utterance, 1..7.
    conversation_traits: setting 3, history and this utterance together, 1..7.
    condition_traits, condition_source: the traits that emotion was conditioned on, and where they came from.
    condition_weight: 0..1, how much each of conversation_traits counts in condition_traits, the rest being the
        population's mean: what it is worth after so many utterances, times how familiar the voice is. None where
        condition_source is another, whose traits count in full.
    valence, arousal: 1..5, 3 neutral.
    """

    vector: NDArray[np.float16]
    utterance_traits: Traits | None = None
    average_traits: Traits | None = None
    conversation_traits: Traits | None = None
    condition_traits: Traits | None = None
    condition_source: ConditionSource | None = None
    condition_weight: Traits | None = None
    valence: float | None = None
    arousal: float | None = None

    def numbers(self) -> list[float]:
        """Every estimate that there is, without the vector."""
        groups = (self.utterance_traits, self.average_traits, self.conversation_traits, self.condition_traits)
        numbers = [value for group in groups if group is not None for value in group]
        return numbers + [value for value in (self.valence, self.arousal) if value is not None]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What conversation-level traits after `utterance_count` utterances are worth, measured on held-out speakers.

    error: root-mean-square error of each trait on the trait scale.
    error_of_mean: that of guessing the population's mean for each of the same speakers; None: not recorded.
    weight: 0..1, how much each heard trait counts in the condition of emotion; see `kibun.models.evidence`.
    """

    utterance_count: int
    error: Traits
    error_of_mean: Traits | None = None
    weight: Traits = FULL_WEIGHT


def faint_noise(vector_size: int, samples: int = SAMPLE_RATE_HZ) -> Utterance:
    """The same seeded noise every time, one earlier utterance and neutral traits: something that any model can analyse.

    samples: length of the audio, (samples,). vector_size: D of the history, (1, D).
    """
    noise = np.random.default_rng(0).normal(0, 0.01, samples).astype(np.float32)
    return Utterance(noise, np.zeros((1, vector_size), np.float16), NEUTRAL_TRAITS)
