"""Estimates as immutable values, on the scales of the service: emotion 1..5, traits 1..7."""

import enum
from dataclasses import dataclass, fields
from typing import Self

from google.protobuf.duration_pb2 import Duration

from kibun.v1 import speech_analysis_pb2 as pb

EMOTION_MIN, EMOTION_NEUTRAL, EMOTION_MAX = 1.0, 3.0, 5.0
TRAIT_MIN, TRAIT_MAX = 1.0, 7.0


class PersonalitySource(enum.StrEnum):
    """What a personality estimate was made from."""

    UNSPECIFIED = "unspecified"
    # The caller gave the traits.
    GIVEN = "given"
    # One utterance.
    UTTERANCE = "utterance"
    # Mean of the estimates of single utterances.
    UTTERANCE_AVERAGE = "utterance_average"
    # All utterances of the participant in this conversation, by the conversation head.
    CONVERSATION = "conversation"

    @classmethod
    def from_proto(cls, number: int) -> "PersonalitySource":
        """A number that this SDK does not know (a newer server) reads as UNSPECIFIED."""
        return _SOURCES.get(number, cls.UNSPECIFIED)


class EndReason(enum.StrEnum):
    """What closed an utterance or a turn."""

    UNSPECIFIED = "unspecified"
    SILENCE = "silence"
    MAX_DURATION = "max_duration"
    CLIENT_END_OF_TURN = "client_end_of_turn"
    HALF_CLOSE = "half_close"

    @classmethod
    def from_proto(cls, number: int) -> "EndReason":
        """A number that this SDK does not know (a newer server) reads as UNSPECIFIED."""
        return _END_REASONS.get(number, cls.UNSPECIFIED)

    def to_proto(self) -> pb.EndReason:
        return _END_REASON_NUMBERS[self]


_SOURCES: dict[int, PersonalitySource] = {
    pb.PERSONALITY_SOURCE_GIVEN: PersonalitySource.GIVEN,
    pb.PERSONALITY_SOURCE_UTTERANCE: PersonalitySource.UTTERANCE,
    pb.PERSONALITY_SOURCE_UTTERANCE_AVERAGE: PersonalitySource.UTTERANCE_AVERAGE,
    pb.PERSONALITY_SOURCE_CONVERSATION: PersonalitySource.CONVERSATION,
}
_END_REASON_NUMBERS: dict[EndReason, pb.EndReason] = {
    EndReason.UNSPECIFIED: pb.END_REASON_UNSPECIFIED,
    EndReason.SILENCE: pb.END_REASON_SILENCE,
    EndReason.MAX_DURATION: pb.END_REASON_MAX_DURATION,
    EndReason.CLIENT_END_OF_TURN: pb.END_REASON_CLIENT_END_OF_TURN,
    EndReason.HALF_CLOSE: pb.END_REASON_HALF_CLOSE,
}
_END_REASONS: dict[int, EndReason] = {number: reason for reason, number in _END_REASON_NUMBERS.items()}


@dataclass(frozen=True)
class Emotion:
    """Valence and arousal, 1..5 with 3 neutral (the scale of IEMOCAP's annotations)."""

    valence: float
    arousal: float

    @classmethod
    def from_proto(cls, message: pb.EmotionEstimate) -> Self:
        return cls(valence=message.valence, arousal=message.arousal)

    def normalized(self) -> "Emotion":
        """The same on -1..1 with 0 neutral: (x - 3) / 2, clipped."""
        half = (EMOTION_MAX - EMOTION_MIN) / 2
        return Emotion(
            valence=_clip((self.valence - EMOTION_NEUTRAL) / half, -1.0, 1.0),
            arousal=_clip((self.arousal - EMOTION_NEUTRAL) / half, -1.0, 1.0),
        )


@dataclass(frozen=True)
class Traits:
    """Big Five traits as perceived from speech, 1..7 (the scale of the TIPI questionnaire)."""

    openness: float
    conscientiousness: float
    extraversion: float
    agreeableness: float
    neuroticism: float

    @classmethod
    def from_proto(cls, message: pb.BigFiveTraits) -> Self:
        return cls(
            openness=message.openness,
            conscientiousness=message.conscientiousness,
            extraversion=message.extraversion,
            agreeableness=message.agreeableness,
            neuroticism=message.neuroticism,
        )

    def to_proto(self) -> pb.BigFiveTraits:
        return pb.BigFiveTraits(
            openness=self.openness,
            conscientiousness=self.conscientiousness,
            extraversion=self.extraversion,
            agreeableness=self.agreeableness,
            neuroticism=self.neuroticism,
        )

    def as_tuple(self) -> tuple[float, float, float, float, float]:
        """In the order openness, conscientiousness, extraversion, agreeableness, neuroticism."""
        return (
            self.openness,
            self.conscientiousness,
            self.extraversion,
            self.agreeableness,
            self.neuroticism,
        )

    def normalized(self) -> "Traits":
        """The same on 0..1: (x - 1) / 6, clipped."""
        span = TRAIT_MAX - TRAIT_MIN
        return Traits(*(_clip((value - TRAIT_MIN) / span, 0.0, 1.0) for value in self.as_tuple()))


TRAITS = tuple(field.name for field in fields(Traits))


@dataclass(frozen=True)
class PersonalityEstimate:
    """Apparent traits with the evidence behind them."""

    traits: Traits
    source: PersonalitySource
    # Utterances and seconds of speech that the estimate was made from.
    utterance_count: int
    speech_s: float
    # Root-mean-square error per trait on held-out speakers with this much evidence (1..7 scale); None: unknown.
    expected_error: Traits | None

    @classmethod
    def from_proto(cls, message: pb.PersonalityEstimate) -> Self:
        return cls(
            traits=Traits.from_proto(message.traits),
            source=PersonalitySource.from_proto(message.source),
            utterance_count=message.utterance_count,
            speech_s=seconds(message.speech_duration),
            expected_error=Traits.from_proto(message.expected_error) if message.HasField("expected_error") else None,
        )

    def normalized(self) -> "PersonalityEstimate":
        """The same with traits on 0..1; the expected error, a difference, is divided by the width of the scale."""
        error = self.expected_error
        span = TRAIT_MAX - TRAIT_MIN
        return PersonalityEstimate(
            traits=self.traits.normalized(),
            source=self.source,
            utterance_count=self.utterance_count,
            speech_s=self.speech_s,
            expected_error=None if error is None else Traits(*(value / span for value in error.as_tuple())),
        )


def seconds(duration: Duration) -> float:
    """A protobuf Duration as seconds."""
    return duration.seconds + duration.nanos / 1e9


def emotion_or_none(message: "pb.UtteranceResult | pb.TurnResult") -> Emotion | None:
    """The emotion of a result, or None where the server left it unset: disabled, or too little speech."""
    return Emotion.from_proto(message.emotion) if message.HasField("emotion") else None


def personality_or_none(
    message: "pb.UtteranceResult | pb.TurnResult | pb.PersonalityUpdate | pb.Participant",
) -> PersonalityEstimate | None:
    """The personality of a result, or None where the server left it unset."""
    return PersonalityEstimate.from_proto(message.personality) if message.HasField("personality") else None


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
