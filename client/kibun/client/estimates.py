"""Estimates as immutable values, on the scales of the service: emotion 1..5, traits 1..7."""

import enum
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from kibun.v1 import speech_analysis_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

T = TypeVar("T")
E = TypeVar("E", bound=enum.StrEnum)

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
        return enum_member(cls, pb.PersonalitySource, "PERSONALITY_SOURCE_", number)


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
        return enum_member(cls, pb.EndReason, "END_REASON_", number)

    def to_proto(self) -> pb.EndReason:
        return cast(pb.EndReason, pb.EndReason.Value(f"END_REASON_{self.name}"))


@dataclass(frozen=True)
class Emotion:
    """Valence and arousal, 1..5 with 3 neutral (the scale of IEMOCAP's annotations).

    Absolute values move with the corpus that the model learnt from and with the microphone: compare within a speaker.
    """

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
        return cls(*(getattr(message, name) for name in TRAITS))

    def to_proto(self) -> pb.BigFiveTraits:
        return pb.BigFiveTraits(**asdict(self))

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
    # The same error of guessing the population's mean for everyone; None: unknown. See `no_better_than_mean`.
    expected_error_of_mean: Traits | None = None
    # Of `UtteranceResult.condition`, where its traits were heard over the conversation: 0..1, how much of each heard
    # trait is in it, the rest being the population's mean; 0: it is not used. None: given traits or those of other
    # sources, which count in full, or an estimate that is no condition.
    condition_weight: Traits | None = None

    @classmethod
    def from_proto(cls, message: pb.PersonalityEstimate) -> Self:
        return cls(
            traits=Traits.from_proto(message.traits),
            source=PersonalitySource.from_proto(message.source),
            utterance_count=message.utterance_count,
            speech_s=seconds(message.speech_duration),
            expected_error=if_set(message, "expected_error", Traits.from_proto),
            expected_error_of_mean=if_set(message, "expected_error_of_mean", Traits.from_proto),
            condition_weight=if_set(message, "condition_weight", Traits.from_proto),
        )

    @property
    def no_better_than_mean(self) -> tuple[str, ...]:
        """Traits whose expected error is not below that of guessing the mean: not to be read as they are.

        Empty also where the errors are unknown.
        """
        if self.expected_error is None or self.expected_error_of_mean is None:
            return ()
        errors = zip(TRAITS, self.expected_error.as_tuple(), self.expected_error_of_mean.as_tuple(), strict=True)
        return tuple(name for name, error, of_mean in errors if error >= of_mean)

    def normalized(self) -> "PersonalityEstimate":
        """The same with traits on 0..1; expected errors, which are differences, are divided by the scale's width."""
        return replace(
            self,
            traits=self.traits.normalized(),
            expected_error=_per_span(self.expected_error),
            expected_error_of_mean=_per_span(self.expected_error_of_mean),
        )


def _per_span(error: Traits | None) -> Traits | None:
    """A difference on the trait scale as one on 0..1."""
    return None if error is None else Traits(*(value / (TRAIT_MAX - TRAIT_MIN) for value in error.as_tuple()))


def seconds(duration: Duration) -> float:
    """A protobuf Duration as seconds: the float nearest to it, so that 7.94 s read and print as 7.94."""
    return (duration.seconds * 10**9 + duration.nanos) / 10**9


def if_set(message: Message, name: str, read: Callable[[Any], T]) -> T | None:
    """Field `name` of a message, converted by `read`; None where the server left it unset."""
    return read(getattr(message, name)) if message.HasField(name) else None


def enum_member(cls: type[E], contract: "EnumTypeWrapper", prefix: str, number: int) -> E:
    """The member of `cls` for a number of the contract's enum, whose names are those of `cls` behind `prefix`.

    A number that this SDK does not know (a newer server) reads as UNSPECIFIED.
    """
    try:
        return cls(contract.Name(number).removeprefix(prefix).lower())
    except ValueError:
        return cls("unspecified")


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
