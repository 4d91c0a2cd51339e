"""Options of a stream as immutable values, and how they are written into the request."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self, TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kibun.client.checks import check_fields
from kibun.client.errors import ErrorDetails, InvalidRequestError
from kibun.client.estimates import EndReason, Traits
from kibun.client.replay import FinalsReceived
from kibun.v1 import speech_analysis_pb2 as pb

Encoding = Literal["linear16", "float32", "mulaw", "alaw"]

_ENCODINGS: dict[str, pb.AudioEncoding] = {
    "linear16": pb.AUDIO_ENCODING_LINEAR16,
    "float32": pb.AUDIO_ENCODING_FLOAT32,
    "mulaw": pb.AUDIO_ENCODING_MULAW,
    "alaw": pb.AUDIO_ENCODING_ALAW,
}
BYTES_PER_SAMPLE: dict[str, int] = {"linear16": 2, "float32": 4, "mulaw": 1, "alaw": 1}


@dataclass(frozen=True)
class Features:
    """What to estimate, and which other events to send."""

    emotion: bool = True
    personality: bool = True
    # Estimates of an utterance while it is still being spoken.
    interim_results: bool = False
    # Time between interims in ms; None: the server's geometric times, which cost far less.
    interim_interval_ms: int | None = None
    # SpeechEvents for the beginning and end of speech.
    voice_activity_events: bool = False
    # Analyse in the silence that may end an utterance, so that its final is there when it ends. The results are the
    # same without it, only later; it saves work where nobody waits for them, as for recordings.
    eager_finals: bool = True
    # Estimate what is said, but do not count it towards traits over the conversation, nor as history of later
    # utterances: for audio that holds more than the participant's own voice.
    exclude_from_personality: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def to_proto(self) -> pb.AnalysisFeatures:
        return pb.AnalysisFeatures(
            disable_emotion=not self.emotion,
            disable_personality=not self.personality,
            interim_results=self.interim_results,
            interim_interval=_duration_ms(self.interim_interval_ms),
            enable_voice_activity_events=self.voice_activity_events,
            disable_eager_finals=not self.eager_finals,
            exclude_from_personality=self.exclude_from_personality,
        )


@dataclass(frozen=True)
class Endpointing:
    """How the server cuts audio into utterances and turns; None leaves the server's default."""

    # 0 (takes most for speech) to 3 (least); the server's default is 2.
    vad_aggressiveness: int | None = None
    min_speech_ms: int | None = None
    # Silence that closes an utterance.
    utterance_end_silence_ms: int | None = None
    # An utterance longer than this is cut.
    max_utterance_ms: int | None = None
    # Silence after which the server ends the turn itself; None: only the client ends turns.
    end_of_turn_silence_ms: int | None = None
    # NO_SPEECH_TIMEOUT event when nothing was said for this long.
    speech_start_timeout_ms: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def to_proto(self) -> pb.EndpointingConfig:
        return pb.EndpointingConfig(
            vad_aggressiveness=self.vad_aggressiveness,
            min_speech_duration=_duration_ms(self.min_speech_ms),
            utterance_end_silence=_duration_ms(self.utterance_end_silence_ms),
            max_utterance_duration=_duration_ms(self.max_utterance_ms),
            end_of_turn_silence=_duration_ms(self.end_of_turn_silence_ms),
            speech_start_timeout=_duration_ms(self.speech_start_timeout_ms),
        )


@dataclass(frozen=True)
class StreamConfig:
    """Everything that opens a stream. Audio is mono.

    Raises InvalidRequestError, as the other options do, naming a field of the wrong type; ranges are the server's to
    judge.
    """

    conversation_id: str = ""
    participant_id: str = "user"
    # Id of the (first) turn; "": the server makes one.
    turn_id: str = ""
    # 8000..48000; the server resamples.
    sample_rate_hz: int = 16000
    encoding: Encoding = "linear16"
    features: Features = field(default_factory=Features)
    endpointing: Endpointing = field(default_factory=Endpointing)
    # "": the server's default.
    model: str = ""
    # Fail with NotFoundError rather than start afresh when the server does not know conversation_id.
    require_existing_conversation: bool = False
    # Known traits of the participant; emotion is conditioned on them in place of predicted ones. The server keeps them
    # for the participant's later turns of the conversation, until others are given.
    given_personality: Traits | None = None
    # Added to every time of the results.
    audio_start_offset_s: float = 0.0
    # Wall-clock time of the first sample (timezone-aware), if known.
    audio_start_time: datetime | None = None
    # The turn's connection was lost, maybe together with its result: answer it once more rather than refuse it.
    resume_turn: bool = False
    # `end_reason` of the final of the utterance that ends at audio_start_offset_s; None: there is none.
    resume_after: EndReason | None = None
    # The finals of the turn that have arrived: a server that has lost some takes them from here. None: unknown.
    resume_finals: FinalsReceived | None = field(default=None, repr=False)
    # How long the server keeps the conversation after its last stream; None: the server's default.
    conversation_ttl_s: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.given_personality is not None:
            check_fields(self.given_personality, "given_personality.")
        if self.audio_start_time is not None and self.audio_start_time.tzinfo is None:
            raise _invalid("audio_start_time", "audio_start_time needs a timezone: datetime.now(timezone.utc)")

    @classmethod
    def of_turn(cls, conversation_id: str, participant_id: str, turn_id: str, options: "TurnOptions") -> Self:
        """The configuration of one turn. Raises TypeError for an option that does not exist."""
        known = TurnOptions.__annotations__
        if unknown := options.keys() - known.keys():
            raise TypeError(f"a turn has no option {min(unknown)!r}; it has {', '.join(known)}")
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        given["require_existing_conversation"] = given.pop("require_existing", False)
        return cls(conversation_id=conversation_id, participant_id=participant_id, turn_id=turn_id, **given)

    @property
    def bytes_per_second(self) -> int:
        return self.sample_rate_hz * BYTES_PER_SAMPLE[self.encoding]

    def to_proto(self) -> pb.StreamingAnalyzeConfig:
        return pb.StreamingAnalyzeConfig(
            audio_config=pb.AudioConfig(
                encoding=_ENCODINGS[self.encoding],
                sample_rate_hertz=self.sample_rate_hz,
                audio_channel_count=1,
            ),
            conversation_id=self.conversation_id,
            participant_id=self.participant_id,
            turn_id=self.turn_id,
            features=self.features.to_proto(),
            endpointing_config=self.endpointing.to_proto(),
            model=self.model,
            require_existing_conversation=self.require_existing_conversation,
            given_personality=None if self.given_personality is None else self.given_personality.to_proto(),
            audio_start_offset=_duration_s(self.audio_start_offset_s),
            audio_start_time=_timestamp(self.audio_start_time),
            resume_turn=self.resume_turn,
            resume_after=None if self.resume_after is None else self.resume_after.to_proto(),
            resume_finals=self.resume_finals.latest if self.resume_finals else (),
            resume_final_count=self.resume_finals.count if self.resume_finals else None,
            conversation_ttl=None if self.conversation_ttl_s is None else _duration_s(self.conversation_ttl_s),
        )


class TurnOptions(TypedDict, total=False):
    """Keyword options of `AsyncConversation.turn` and `Conversation.turn`, as described in `StreamConfig`.

    None, or leaving one out, means the default of `StreamConfig`. `require_existing` is its
    `require_existing_conversation`.
    """

    sample_rate_hz: int
    encoding: Encoding
    features: Features | None
    endpointing: Endpointing | None
    model: str
    given_personality: Traits | None
    require_existing: bool
    audio_start_offset_s: float
    audio_start_time: datetime | None
    conversation_ttl_s: float | None


@dataclass(frozen=True)
class RetryPolicy:
    """What a turn does when the connection is lost (UNAVAILABLE): reopen, replay what has no final yet."""

    # How many connections in a row may be lost without a new final before the error is raised; one that lasted ten
    # seconds starts the count again. For a server that was never reached: how often to try. 1: never reconnect.
    max_attempts: int = 5
    # How long to wait for a server that was there before, or that is loading, draining or full: until it has restarted,
    # or another one answers at the same address.
    give_up_after_s: float = 60.0
    # Pauses between attempts grow from the first to the longest, with up to a quarter added at random. If the server
    # sends a time to wait (RetryInfo), the pause is that long, but not longer than the longest.
    initial_backoff_s: float = 0.2
    backoff_multiplier: float = 2.0
    max_backoff_s: float = 2.0
    # Audio without a final that a turn keeps for replay; a loss with more than that raises an error.
    replay_limit_s: float = 120.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in vars(self).items():
            if value < 0:
                raise _invalid(name, f"{name} must not be negative, and is {value!r}")

    def backoff_s(self, failures: int) -> float:
        """Seconds to wait after an attempt that failed, `failures` in a row before it."""
        # The exponent is bounded, as the power would overflow.
        return min(self.initial_backoff_s * self.backoff_multiplier ** min(failures, 30), self.max_backoff_s)


def _duration_ms(value: int | None) -> Duration | None:
    return None if value is None else _duration_s(value / 1000)


def _duration_s(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e9))  # also a negative one: the server, not the SDK, refuses it
    return duration


def _timestamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(value)
    return timestamp


def _invalid(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, ErrorDetails(reason="INVALID_OPTION", fields={name: message}))
