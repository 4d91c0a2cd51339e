"""State of conversations and the description of a service, as immutable values."""

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp

from kibun.client.estimates import Emotion, PersonalityEstimate, Traits, enum_member, if_set, seconds
from kibun.v1 import speech_analysis_pb2 as pb


class State(enum.StrEnum):
    """State of a conversation."""

    UNSPECIFIED = "unspecified"
    ACTIVE = "active"
    COMPLETED = "completed"


@dataclass(frozen=True)
class ParticipantState:
    """What a conversation knows about one speaker. Estimates are None until there was enough speech."""

    participant_id: str
    personality: PersonalityEstimate | None
    mean_emotion: Emotion | None
    last_emotion: Emotion | None
    turn_count: int
    utterance_count: int
    speech_s: float
    # Traits that a client gave. `personality` is estimated from speech, and equals these where nothing is estimated.
    given_personality: Traits | None = None
    # Utterances, at least, whose finals arrived and were lost with a server since: nothing above counts them.
    missing_utterance_count: int = 0

    @classmethod
    def from_proto(cls, message: pb.Participant) -> Self:
        return cls(
            participant_id=message.participant_id,
            personality=if_set(message, "personality", PersonalityEstimate.from_proto),
            mean_emotion=if_set(message, "mean_emotion", Emotion.from_proto),
            last_emotion=if_set(message, "last_emotion", Emotion.from_proto),
            turn_count=message.turn_count,
            utterance_count=message.utterance_count,
            speech_s=seconds(message.speech_duration),
            given_personality=if_set(message, "given_personality", Traits.from_proto),
            missing_utterance_count=message.missing_utterance_count,
        )


@dataclass(frozen=True)
class ConversationState:
    """State of one conversation on the server."""

    conversation_id: str
    state: State
    # UTC; None where the server did not send it.
    create_time: datetime | None
    update_time: datetime | None
    expire_time: datetime | None
    participants: tuple[ParticipantState, ...]
    model: str
    # The model learnt from generated speech and tells you nothing about real people; also False where the server no
    # longer has the model.
    synthetic_model: bool = False

    @classmethod
    def from_proto(cls, message: pb.Conversation) -> Self:
        return cls(
            conversation_id=message.conversation_id,
            state=enum_member(State, pb.Conversation.State, "STATE_", message.state),
            create_time=if_set(message, "create_time", _time),
            update_time=if_set(message, "update_time", _time),
            expire_time=if_set(message, "expire_time", _time),
            participants=tuple(ParticipantState.from_proto(participant) for participant in message.participants),
            model=message.model,
            synthetic_model=message.synthetic_model,
        )

    def participant(self, participant_id: str) -> ParticipantState:
        """State of one participant. Raises KeyError if they have not spoken yet."""
        for participant in self.participants:
            if participant.participant_id == participant_id:
                return participant
        raise KeyError(participant_id)


@dataclass(frozen=True)
class ModelDescription:
    """A model that the server offers."""

    name: str
    version: str
    is_default: bool
    supports_emotion: bool
    supports_personality: bool
    supports_conversation_personality: bool
    # Trained on generated speech: for trying the software, tells you nothing about real people.
    synthetic: bool
    # Emotion needs traits that the model does not estimate: give them with a participant's first turn.
    requires_given_personality: bool = False
    # What people should know about its estimates; may be empty.
    notice: str = ""
    # Of the weights, as an SPDX expression; empty: not stated.
    license: str = ""
    # Its heads are random: its estimates mean nothing.
    untrained: bool = False
    # Of all that its estimates depend on besides the request: where it is the same, the same audio gets the same
    # results again, on a machine alike. Empty: of an older server.
    fingerprint: str = ""

    @classmethod
    def from_proto(cls, message: pb.GetServiceInfoResponse.Model) -> Self:
        return cls(
            name=message.name,
            version=message.version,
            is_default=message.is_default,
            supports_emotion=message.supports_emotion,
            supports_personality=message.supports_personality,
            supports_conversation_personality=message.supports_conversation_personality,
            synthetic=message.synthetic,
            requires_given_personality=message.requires_given_personality,
            notice=message.notice,
            license=message.license,
            untrained=message.untrained,
            fingerprint=message.fingerprint,
        )


@dataclass(frozen=True)
class Scale:
    """Range of one estimated dimension."""

    dimension: str
    min: float
    max: float
    neutral: float

    @classmethod
    def from_proto(cls, message: pb.GetServiceInfoResponse.Scale) -> Self:
        return cls(dimension=message.dimension, min=message.min, max=message.max, neutral=message.neutral)


@dataclass(frozen=True)
class ServiceInfo:
    """What a server offers, and its limits."""

    server_version: str
    models: tuple[ModelDescription, ...]
    scales: tuple[Scale, ...]
    # Names as `StreamConfig.encoding` takes them.
    encodings: tuple[str, ...]
    min_sample_rate_hz: int
    max_sample_rate_hz: int
    model_sample_rate_hz: int
    max_audio_content_bytes: int
    max_stream_s: float
    idle_timeout_s: float
    max_concurrent_streams: int
    active_stream_count: int
    # Its clock when it answered, in UTC; None: of an older server.
    server_time: datetime | None = None

    @classmethod
    def from_proto(cls, message: pb.GetServiceInfoResponse) -> Self:
        prefix = "AUDIO_ENCODING_"
        return cls(
            server_version=message.server_version,
            models=tuple(ModelDescription.from_proto(model) for model in message.models),
            scales=tuple(Scale.from_proto(scale) for scale in message.scales),
            encodings=tuple(
                pb.AudioEncoding.Name(number).removeprefix(prefix).lower()
                for number in message.audio_encodings
                if number in pb.AudioEncoding.values()
            ),
            min_sample_rate_hz=message.min_sample_rate_hertz,
            max_sample_rate_hz=message.max_sample_rate_hertz,
            model_sample_rate_hz=message.model_sample_rate_hertz,
            max_audio_content_bytes=message.max_audio_content_bytes,
            max_stream_s=seconds(message.max_stream_duration),
            idle_timeout_s=seconds(message.idle_timeout),
            max_concurrent_streams=message.max_concurrent_streams,
            active_stream_count=message.active_stream_count,
            server_time=_time(message.server_time) if message.HasField("server_time") else None,
        )


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
