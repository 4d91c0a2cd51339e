"""What arrives on a stream, as immutable values: one class per kind of response.

All times are seconds from the start of the turn's audio (plus `audio_start_offset_s` where one was given).
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from kibun.client.estimates import (
    Emotion,
    EndReason,
    PersonalityEstimate,
    enum_member,
    if_set,
    seconds,
)
from kibun.client.resources import ConversationState
from kibun.v1 import speech_analysis_pb2 as pb


class SpeechEventType(enum.StrEnum):
    """Kinds of `SpeechEvent`."""

    UNSPECIFIED = "unspecified"
    SPEECH_ACTIVITY_BEGIN = "speech_activity_begin"
    SPEECH_ACTIVITY_END = "speech_activity_end"
    START_OF_TURN = "start_of_turn"
    END_OF_TURN = "end_of_turn"
    NO_SPEECH_TIMEOUT = "no_speech_timeout"


@dataclass(frozen=True, kw_only=True)
class Event:
    """What every response carries. In results of the unary `analyze` these fields keep their zeros."""

    # 0-based, gap-free within one connection; starts again after a reconnect (see StreamStarted.reconnects).
    sequence_number: int = 0
    # Audio of this connection that the server had received and analysed when it answered.
    audio_received_s: float = 0.0
    audio_processed_s: float = 0.0
    # The response as received; None in results of the unary `analyze`.
    response: pb.StreamingAnalyzeResponse | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class StreamStarted(Event):
    """The server accepted the stream."""

    request_id: str
    conversation_id: str
    participant_id: str
    turn_id: str
    model: str
    # False: state of earlier turns was found and is in use.
    conversation_created: bool
    prior_utterance_count: int
    max_stream_s: float
    idle_timeout_s: float
    # Largest audio message that the server takes, in bytes; 0: unknown.
    max_audio_content_bytes: int
    # True: trained on generated speech; its estimates tell you nothing about real people.
    synthetic_model: bool
    # How often the SDK had reopened this turn after losing the connection; set by the SDK.
    reconnects: int = 0


@dataclass(frozen=True, kw_only=True)
class SpeechEvent(Event):
    """Speech or a turn began or ended."""

    type: SpeechEventType
    offset_s: float
    turn_id: str


@dataclass(frozen=True, kw_only=True)
class UtteranceResult(Event):
    """Estimates for one utterance; interims (`is_final` False) come before its one final."""

    utterance_id: str
    turn_id: str
    is_final: bool
    start_s: float
    end_s: float
    # Speech that the estimates were made from.
    analyzed_s: float
    # None: disabled, or too little speech.
    emotion: Emotion | None
    # From this utterance alone.
    personality: PersonalityEstimate | None
    # Traits that the emotion was conditioned on.
    condition: PersonalityEstimate | None
    end_reason: EndReason
    # An interim made in the silence after speech, of all that was said so far: if nobody goes on, the final has
    # the same estimates. Act on it at once if you know that the turn has ended.
    covers_speech_so_far: bool = False


@dataclass(frozen=True, kw_only=True)
class PersonalityUpdate(Event):
    """Traits of the participant from all utterances so far; follows each final."""

    participant_id: str
    personality: PersonalityEstimate
    revision: int


@dataclass(frozen=True, kw_only=True)
class TurnResult(Event):
    """Result of a whole turn; after its last final."""

    turn_id: str
    start_s: float
    end_s: float
    utterance_count: int
    speech_s: float
    emotion: Emotion | None
    personality: PersonalityEstimate | None
    end_reason: EndReason
    # Utterances, at least, whose finals arrived and were lost with a server since: nothing above counts them. They
    # began before `missing_before_s`.
    missing_utterance_count: int = 0
    missing_before_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class StreamWarning(Event):
    """A condition that the caller should know about but that does not stop the stream."""

    reason: str
    message: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StreamProgress(Event):
    """Audio before `settled_s` has its finals, or belongs to no utterance: it need not be kept for a replay."""

    settled_s: float


@dataclass(frozen=True, kw_only=True)
class StreamEnded(Event):
    """Last event of a stream that did not fail: received = speech + non-speech + dropped."""

    reason: str
    total_audio_s: float
    speech_s: float
    non_speech_s: float
    # Audio of utterances too short to estimate from; a warning named each.
    dropped_s: float
    conversation: ConversationState


@dataclass(frozen=True, kw_only=True)
class WatchStarted(Event):
    """The server accepted the watch."""

    request_id: str
    # As it was then; None: nobody had spoken yet, and the watch waits.
    conversation: ConversationState | None
    # How many events of the past the server then sends.
    past_response_count: int
    # How often the SDK had opened this watch again after losing the connection; set by the SDK.
    reconnects: int = 0


@dataclass(frozen=True, kw_only=True)
class WatchGap(Event):
    """Something is missing here; finals and results that the store holds follow.

    Reasons: SLOW_WATCHER, OTHER_SERVERS_LOST, OTHER_SERVERS_BACK, OTHER_SERVERS_MISSED.
    """

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class WatchEnded(Event):
    """Last event of a watch that did not fail: the conversation was completed or deleted."""

    # "COMPLETED" or "DELETED".
    reason: str
    # As it was completed; None: it was deleted.
    conversation: ConversationState | None


@dataclass(frozen=True)
class AnalyzeResult:
    """Result of `analyze`: a whole recording in one request."""

    request_id: str
    utterances: tuple[UtteranceResult, ...]
    turn_result: TurnResult
    conversation: ConversationState
    # What a stream would have warned of.
    warnings: tuple[StreamWarning, ...] = ()
    # True: trained on generated speech; its estimates tell you nothing about real people.
    synthetic_model: bool = False

    @classmethod
    def from_proto(cls, message: pb.AnalyzeResponse) -> Self:
        return cls(
            request_id=message.request_id,
            utterances=tuple(utterance_result(utterance) for utterance in message.utterances),
            turn_result=turn_result(message.turn_result),
            conversation=ConversationState.from_proto(message.conversation),
            warnings=tuple(_stream_warning(warning) for warning in message.warnings),
            synthetic_model=message.synthetic_model,
        )


def event_from_response(response: pb.StreamingAnalyzeResponse, *, reconnects: int = 0) -> Event | None:
    """The event that a response stands for; None for a kind that this SDK does not know (a newer server).

    An update without traits says nothing, and is None as well: a trait of 0 would be an estimate that no one made.
    """
    kind = response.WhichOneof("streaming_response")
    if kind is None or (kind == "personality_update" and not response.personality_update.HasField("personality")):
        return None
    event = _CONVERTERS[kind](getattr(response, kind))
    if isinstance(event, StreamStarted):
        event = replace(event, reconnects=reconnects)
    return replace(
        event,
        sequence_number=response.sequence_number,
        audio_received_s=seconds(response.audio_received),
        audio_processed_s=seconds(response.audio_processed),
        response=response,
    )


def watched_event(response: pb.WatchConversationResponse, *, reconnects: int = 0) -> Event | None:
    """The event in what a watch received; None for a kind that this SDK does not know."""
    match response.WhichOneof("watch_response"):
        case "event":
            return event_from_response(response.event)
        case "watch_started":
            started = response.watch_started
            return WatchStarted(
                request_id=started.request_id,
                conversation=if_set(started, "conversation", ConversationState.from_proto),
                past_response_count=started.past_response_count,
                reconnects=reconnects,
            )
        case "watch_gap":
            return WatchGap(reason=response.watch_gap.reason, message=response.watch_gap.message)
        case "watch_ended":
            ended = response.watch_ended
            conversation = if_set(ended, "conversation", ConversationState.from_proto)
            return WatchEnded(reason=ended.reason, conversation=conversation)
    return None


def is_droppable(event: Event) -> bool:
    """Whether the event may be left out where too many wait: interims and speech events, never finals or results."""
    if isinstance(event, UtteranceResult):
        return not event.is_final
    return isinstance(event, SpeechEvent | StreamProgress)


def utterance_result(message: pb.UtteranceResult) -> UtteranceResult:
    """An `UtteranceResult` from its message, with zeros in the fields of `Event`."""
    return UtteranceResult(
        utterance_id=message.utterance_id,
        turn_id=message.turn_id,
        is_final=message.is_final,
        start_s=seconds(message.start_offset),
        end_s=seconds(message.end_offset),
        analyzed_s=seconds(message.analyzed_duration),
        emotion=if_set(message, "emotion", Emotion.from_proto),
        personality=if_set(message, "personality", PersonalityEstimate.from_proto),
        condition=if_set(message, "condition", PersonalityEstimate.from_proto),
        end_reason=EndReason.from_proto(message.end_reason),
        covers_speech_so_far=message.covers_speech_so_far,
    )


def turn_result(message: pb.TurnResult) -> TurnResult:
    """A `TurnResult` from its message, with zeros in the fields of `Event`."""
    return TurnResult(
        turn_id=message.turn_id,
        start_s=seconds(message.start_offset),
        end_s=seconds(message.end_offset),
        utterance_count=message.utterance_count,
        speech_s=seconds(message.speech_duration),
        emotion=if_set(message, "emotion", Emotion.from_proto),
        personality=if_set(message, "personality", PersonalityEstimate.from_proto),
        end_reason=EndReason.from_proto(message.end_reason),
        missing_utterance_count=message.missing_utterance_count,
        missing_before_s=if_set(message, "missing_before", seconds),
    )


def _stream_started(message: pb.StreamStarted) -> StreamStarted:
    return StreamStarted(
        request_id=message.request_id,
        conversation_id=message.conversation_id,
        participant_id=message.participant_id,
        turn_id=message.turn_id,
        model=message.model,
        conversation_created=message.conversation_created,
        prior_utterance_count=message.prior_utterance_count,
        max_stream_s=seconds(message.max_stream_duration),
        idle_timeout_s=seconds(message.idle_timeout),
        max_audio_content_bytes=message.max_audio_content_bytes,
        synthetic_model=message.synthetic_model,
    )


def _speech_event(message: pb.SpeechEvent) -> SpeechEvent:
    return SpeechEvent(
        type=enum_member(SpeechEventType, pb.SpeechEvent.Type, "TYPE_", message.type),
        offset_s=seconds(message.offset),
        turn_id=message.turn_id,
    )


def _personality_update(message: pb.PersonalityUpdate) -> PersonalityUpdate:
    return PersonalityUpdate(
        participant_id=message.participant_id,
        personality=PersonalityEstimate.from_proto(message.personality),
        revision=message.revision,
    )


def _stream_warning(message: pb.StreamWarning) -> StreamWarning:
    return StreamWarning(reason=message.reason, message=message.message, metadata=dict(message.metadata))


def _stream_progress(message: pb.StreamProgress) -> StreamProgress:
    return StreamProgress(settled_s=seconds(message.settled_offset))


def _stream_ended(message: pb.StreamEnded) -> StreamEnded:
    return StreamEnded(
        reason=message.reason,
        total_audio_s=seconds(message.audio_received),
        speech_s=seconds(message.speech_duration),
        non_speech_s=seconds(message.non_speech_duration),
        dropped_s=seconds(message.dropped_duration),
        conversation=ConversationState.from_proto(message.conversation),
    )


_CONVERTERS: dict[str, Callable[[Any], Event]] = {
    "stream_started": _stream_started,
    "speech_event": _speech_event,
    "utterance_result": utterance_result,
    "personality_update": _personality_update,
    "turn_result": turn_result,
    "stream_warning": _stream_warning,
    "stream_progress": _stream_progress,
    "stream_ended": _stream_ended,
}
