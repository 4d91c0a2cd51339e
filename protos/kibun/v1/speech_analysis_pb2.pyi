from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AudioEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIO_ENCODING_UNSPECIFIED: _ClassVar[AudioEncoding]
    AUDIO_ENCODING_LINEAR16: _ClassVar[AudioEncoding]
    AUDIO_ENCODING_MULAW: _ClassVar[AudioEncoding]
    AUDIO_ENCODING_FLOAT32: _ClassVar[AudioEncoding]
    AUDIO_ENCODING_ALAW: _ClassVar[AudioEncoding]

class PersonalitySource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERSONALITY_SOURCE_UNSPECIFIED: _ClassVar[PersonalitySource]
    PERSONALITY_SOURCE_GIVEN: _ClassVar[PersonalitySource]
    PERSONALITY_SOURCE_UTTERANCE: _ClassVar[PersonalitySource]
    PERSONALITY_SOURCE_UTTERANCE_AVERAGE: _ClassVar[PersonalitySource]
    PERSONALITY_SOURCE_CONVERSATION: _ClassVar[PersonalitySource]

class EndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_REASON_UNSPECIFIED: _ClassVar[EndReason]
    END_REASON_SILENCE: _ClassVar[EndReason]
    END_REASON_MAX_DURATION: _ClassVar[EndReason]
    END_REASON_CLIENT_END_OF_TURN: _ClassVar[EndReason]
    END_REASON_HALF_CLOSE: _ClassVar[EndReason]
AUDIO_ENCODING_UNSPECIFIED: AudioEncoding
AUDIO_ENCODING_LINEAR16: AudioEncoding
AUDIO_ENCODING_MULAW: AudioEncoding
AUDIO_ENCODING_FLOAT32: AudioEncoding
AUDIO_ENCODING_ALAW: AudioEncoding
PERSONALITY_SOURCE_UNSPECIFIED: PersonalitySource
PERSONALITY_SOURCE_GIVEN: PersonalitySource
PERSONALITY_SOURCE_UTTERANCE: PersonalitySource
PERSONALITY_SOURCE_UTTERANCE_AVERAGE: PersonalitySource
PERSONALITY_SOURCE_CONVERSATION: PersonalitySource
END_REASON_UNSPECIFIED: EndReason
END_REASON_SILENCE: EndReason
END_REASON_MAX_DURATION: EndReason
END_REASON_CLIENT_END_OF_TURN: EndReason
END_REASON_HALF_CLOSE: EndReason

class AudioConfig(_message.Message):
    __slots__ = ("encoding", "sample_rate_hertz", "audio_channel_count")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    AUDIO_CHANNEL_COUNT_FIELD_NUMBER: _ClassVar[int]
    encoding: AudioEncoding
    sample_rate_hertz: int
    audio_channel_count: int
    def __init__(self, encoding: _Optional[_Union[AudioEncoding, str]] = ..., sample_rate_hertz: _Optional[int] = ..., audio_channel_count: _Optional[int] = ...) -> None: ...

class EndpointingConfig(_message.Message):
    __slots__ = ("vad_aggressiveness", "min_speech_duration", "utterance_end_silence", "max_utterance_duration", "end_of_turn_silence", "speech_start_timeout")
    VAD_AGGRESSIVENESS_FIELD_NUMBER: _ClassVar[int]
    MIN_SPEECH_DURATION_FIELD_NUMBER: _ClassVar[int]
    UTTERANCE_END_SILENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_UTTERANCE_DURATION_FIELD_NUMBER: _ClassVar[int]
    END_OF_TURN_SILENCE_FIELD_NUMBER: _ClassVar[int]
    SPEECH_START_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    vad_aggressiveness: int
    min_speech_duration: _duration_pb2.Duration
    utterance_end_silence: _duration_pb2.Duration
    max_utterance_duration: _duration_pb2.Duration
    end_of_turn_silence: _duration_pb2.Duration
    speech_start_timeout: _duration_pb2.Duration
    def __init__(self, vad_aggressiveness: _Optional[int] = ..., min_speech_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., utterance_end_silence: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_utterance_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., end_of_turn_silence: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., speech_start_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AnalysisFeatures(_message.Message):
    __slots__ = ("disable_emotion", "disable_personality", "interim_results", "interim_interval", "enable_voice_activity_events", "disable_eager_finals", "exclude_from_personality")
    DISABLE_EMOTION_FIELD_NUMBER: _ClassVar[int]
    DISABLE_PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    INTERIM_RESULTS_FIELD_NUMBER: _ClassVar[int]
    INTERIM_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    ENABLE_VOICE_ACTIVITY_EVENTS_FIELD_NUMBER: _ClassVar[int]
    DISABLE_EAGER_FINALS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FROM_PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    disable_emotion: bool
    disable_personality: bool
    interim_results: bool
    interim_interval: _duration_pb2.Duration
    enable_voice_activity_events: bool
    disable_eager_finals: bool
    exclude_from_personality: bool
    def __init__(self, disable_emotion: bool = ..., disable_personality: bool = ..., interim_results: bool = ..., interim_interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., enable_voice_activity_events: bool = ..., disable_eager_finals: bool = ..., exclude_from_personality: bool = ...) -> None: ...

class StreamingAnalyzeConfig(_message.Message):
    __slots__ = ("audio_config", "conversation_id", "participant_id", "turn_id", "features", "endpointing_config", "model", "require_existing_conversation", "given_personality", "audio_start_offset", "audio_start_time", "conversation_ttl", "resume_turn", "resume_after", "resume_finals", "resume_final_count")
    AUDIO_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTING_CONFIG_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_EXISTING_CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    GIVEN_PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    AUDIO_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    AUDIO_START_TIME_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_TTL_FIELD_NUMBER: _ClassVar[int]
    RESUME_TURN_FIELD_NUMBER: _ClassVar[int]
    RESUME_AFTER_FIELD_NUMBER: _ClassVar[int]
    RESUME_FINALS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FINAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    audio_config: AudioConfig
    conversation_id: str
    participant_id: str
    turn_id: str
    features: AnalysisFeatures
    endpointing_config: EndpointingConfig
    model: str
    require_existing_conversation: bool
    given_personality: BigFiveTraits
    audio_start_offset: _duration_pb2.Duration
    audio_start_time: _timestamp_pb2.Timestamp
    conversation_ttl: _duration_pb2.Duration
    resume_turn: bool
    resume_after: EndReason
    resume_finals: _containers.RepeatedCompositeFieldContainer[UtteranceResult]
    resume_final_count: int
    def __init__(self, audio_config: _Optional[_Union[AudioConfig, _Mapping]] = ..., conversation_id: _Optional[str] = ..., participant_id: _Optional[str] = ..., turn_id: _Optional[str] = ..., features: _Optional[_Union[AnalysisFeatures, _Mapping]] = ..., endpointing_config: _Optional[_Union[EndpointingConfig, _Mapping]] = ..., model: _Optional[str] = ..., require_existing_conversation: bool = ..., given_personality: _Optional[_Union[BigFiveTraits, _Mapping]] = ..., audio_start_offset: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., audio_start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., conversation_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., resume_turn: bool = ..., resume_after: _Optional[_Union[EndReason, str]] = ..., resume_finals: _Optional[_Iterable[_Union[UtteranceResult, _Mapping]]] = ..., resume_final_count: _Optional[int] = ...) -> None: ...

class EndOfTurn(_message.Message):
    __slots__ = ("next_turn_id",)
    NEXT_TURN_ID_FIELD_NUMBER: _ClassVar[int]
    next_turn_id: str
    def __init__(self, next_turn_id: _Optional[str] = ...) -> None: ...

class StreamingAnalyzeRequest(_message.Message):
    __slots__ = ("streaming_config", "audio_content", "end_of_turn")
    STREAMING_CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUDIO_CONTENT_FIELD_NUMBER: _ClassVar[int]
    END_OF_TURN_FIELD_NUMBER: _ClassVar[int]
    streaming_config: StreamingAnalyzeConfig
    audio_content: bytes
    end_of_turn: EndOfTurn
    def __init__(self, streaming_config: _Optional[_Union[StreamingAnalyzeConfig, _Mapping]] = ..., audio_content: _Optional[bytes] = ..., end_of_turn: _Optional[_Union[EndOfTurn, _Mapping]] = ...) -> None: ...

class StreamingAnalyzeResponse(_message.Message):
    __slots__ = ("sequence_number", "audio_received", "audio_processed", "stream_started", "speech_event", "utterance_result", "personality_update", "turn_result", "stream_warning", "stream_ended", "stream_progress")
    SEQUENCE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    AUDIO_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    AUDIO_PROCESSED_FIELD_NUMBER: _ClassVar[int]
    STREAM_STARTED_FIELD_NUMBER: _ClassVar[int]
    SPEECH_EVENT_FIELD_NUMBER: _ClassVar[int]
    UTTERANCE_RESULT_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_UPDATE_FIELD_NUMBER: _ClassVar[int]
    TURN_RESULT_FIELD_NUMBER: _ClassVar[int]
    STREAM_WARNING_FIELD_NUMBER: _ClassVar[int]
    STREAM_ENDED_FIELD_NUMBER: _ClassVar[int]
    STREAM_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    sequence_number: int
    audio_received: _duration_pb2.Duration
    audio_processed: _duration_pb2.Duration
    stream_started: StreamStarted
    speech_event: SpeechEvent
    utterance_result: UtteranceResult
    personality_update: PersonalityUpdate
    turn_result: TurnResult
    stream_warning: StreamWarning
    stream_ended: StreamEnded
    stream_progress: StreamProgress
    def __init__(self, sequence_number: _Optional[int] = ..., audio_received: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., audio_processed: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., stream_started: _Optional[_Union[StreamStarted, _Mapping]] = ..., speech_event: _Optional[_Union[SpeechEvent, _Mapping]] = ..., utterance_result: _Optional[_Union[UtteranceResult, _Mapping]] = ..., personality_update: _Optional[_Union[PersonalityUpdate, _Mapping]] = ..., turn_result: _Optional[_Union[TurnResult, _Mapping]] = ..., stream_warning: _Optional[_Union[StreamWarning, _Mapping]] = ..., stream_ended: _Optional[_Union[StreamEnded, _Mapping]] = ..., stream_progress: _Optional[_Union[StreamProgress, _Mapping]] = ...) -> None: ...

class StreamStarted(_message.Message):
    __slots__ = ("request_id", "conversation_id", "participant_id", "turn_id", "model", "conversation_created", "prior_utterance_count", "effective_config", "max_stream_duration", "idle_timeout", "max_audio_content_bytes", "synthetic_model")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_CREATED_FIELD_NUMBER: _ClassVar[int]
    PRIOR_UTTERANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_CONFIG_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_DURATION_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_AUDIO_CONTENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_MODEL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    conversation_id: str
    participant_id: str
    turn_id: str
    model: str
    conversation_created: bool
    prior_utterance_count: int
    effective_config: StreamingAnalyzeConfig
    max_stream_duration: _duration_pb2.Duration
    idle_timeout: _duration_pb2.Duration
    max_audio_content_bytes: int
    synthetic_model: bool
    def __init__(self, request_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., participant_id: _Optional[str] = ..., turn_id: _Optional[str] = ..., model: _Optional[str] = ..., conversation_created: bool = ..., prior_utterance_count: _Optional[int] = ..., effective_config: _Optional[_Union[StreamingAnalyzeConfig, _Mapping]] = ..., max_stream_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., idle_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_audio_content_bytes: _Optional[int] = ..., synthetic_model: bool = ...) -> None: ...

class SpeechEvent(_message.Message):
    __slots__ = ("type", "offset", "turn_id")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[SpeechEvent.Type]
        TYPE_SPEECH_ACTIVITY_BEGIN: _ClassVar[SpeechEvent.Type]
        TYPE_SPEECH_ACTIVITY_END: _ClassVar[SpeechEvent.Type]
        TYPE_START_OF_TURN: _ClassVar[SpeechEvent.Type]
        TYPE_END_OF_TURN: _ClassVar[SpeechEvent.Type]
        TYPE_NO_SPEECH_TIMEOUT: _ClassVar[SpeechEvent.Type]
    TYPE_UNSPECIFIED: SpeechEvent.Type
    TYPE_SPEECH_ACTIVITY_BEGIN: SpeechEvent.Type
    TYPE_SPEECH_ACTIVITY_END: SpeechEvent.Type
    TYPE_START_OF_TURN: SpeechEvent.Type
    TYPE_END_OF_TURN: SpeechEvent.Type
    TYPE_NO_SPEECH_TIMEOUT: SpeechEvent.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    type: SpeechEvent.Type
    offset: _duration_pb2.Duration
    turn_id: str
    def __init__(self, type: _Optional[_Union[SpeechEvent.Type, str]] = ..., offset: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., turn_id: _Optional[str] = ...) -> None: ...

class EmotionEstimate(_message.Message):
    __slots__ = ("valence", "arousal")
    VALENCE_FIELD_NUMBER: _ClassVar[int]
    AROUSAL_FIELD_NUMBER: _ClassVar[int]
    valence: float
    arousal: float
    def __init__(self, valence: _Optional[float] = ..., arousal: _Optional[float] = ...) -> None: ...

class BigFiveTraits(_message.Message):
    __slots__ = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
    OPENNESS_FIELD_NUMBER: _ClassVar[int]
    CONSCIENTIOUSNESS_FIELD_NUMBER: _ClassVar[int]
    EXTRAVERSION_FIELD_NUMBER: _ClassVar[int]
    AGREEABLENESS_FIELD_NUMBER: _ClassVar[int]
    NEUROTICISM_FIELD_NUMBER: _ClassVar[int]
    openness: float
    conscientiousness: float
    extraversion: float
    agreeableness: float
    neuroticism: float
    def __init__(self, openness: _Optional[float] = ..., conscientiousness: _Optional[float] = ..., extraversion: _Optional[float] = ..., agreeableness: _Optional[float] = ..., neuroticism: _Optional[float] = ...) -> None: ...

class PersonalityEstimate(_message.Message):
    __slots__ = ("traits", "source", "utterance_count", "speech_duration", "expected_error", "expected_error_of_mean", "condition_weight")
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    UTTERANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SPEECH_DURATION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ERROR_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ERROR_OF_MEAN_FIELD_NUMBER: _ClassVar[int]
    CONDITION_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    traits: BigFiveTraits
    source: PersonalitySource
    utterance_count: int
    speech_duration: _duration_pb2.Duration
    expected_error: BigFiveTraits
    expected_error_of_mean: BigFiveTraits
    condition_weight: BigFiveTraits
    def __init__(self, traits: _Optional[_Union[BigFiveTraits, _Mapping]] = ..., source: _Optional[_Union[PersonalitySource, str]] = ..., utterance_count: _Optional[int] = ..., speech_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., expected_error: _Optional[_Union[BigFiveTraits, _Mapping]] = ..., expected_error_of_mean: _Optional[_Union[BigFiveTraits, _Mapping]] = ..., condition_weight: _Optional[_Union[BigFiveTraits, _Mapping]] = ...) -> None: ...

class UtteranceResult(_message.Message):
    __slots__ = ("utterance_id", "turn_id", "is_final", "start_offset", "end_offset", "analyzed_duration", "emotion", "personality", "condition", "end_reason", "covers_speech_so_far")
    UTTERANCE_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_FIELD_NUMBER: _ClassVar[int]
    START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ANALYZED_DURATION_FIELD_NUMBER: _ClassVar[int]
    EMOTION_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    END_REASON_FIELD_NUMBER: _ClassVar[int]
    COVERS_SPEECH_SO_FAR_FIELD_NUMBER: _ClassVar[int]
    utterance_id: str
    turn_id: str
    is_final: bool
    start_offset: _duration_pb2.Duration
    end_offset: _duration_pb2.Duration
    analyzed_duration: _duration_pb2.Duration
    emotion: EmotionEstimate
    personality: PersonalityEstimate
    condition: PersonalityEstimate
    end_reason: EndReason
    covers_speech_so_far: bool
    def __init__(self, utterance_id: _Optional[str] = ..., turn_id: _Optional[str] = ..., is_final: bool = ..., start_offset: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., end_offset: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., analyzed_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., emotion: _Optional[_Union[EmotionEstimate, _Mapping]] = ..., personality: _Optional[_Union[PersonalityEstimate, _Mapping]] = ..., condition: _Optional[_Union[PersonalityEstimate, _Mapping]] = ..., end_reason: _Optional[_Union[EndReason, str]] = ..., covers_speech_so_far: bool = ...) -> None: ...

class PersonalityUpdate(_message.Message):
    __slots__ = ("participant_id", "personality", "revision")
    PARTICIPANT_ID_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    participant_id: str
    personality: PersonalityEstimate
    revision: int
    def __init__(self, participant_id: _Optional[str] = ..., personality: _Optional[_Union[PersonalityEstimate, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class TurnResult(_message.Message):
    __slots__ = ("turn_id", "start_offset", "end_offset", "utterance_count", "speech_duration", "emotion", "personality", "end_reason", "missing_before", "missing_utterance_count")
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    UTTERANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SPEECH_DURATION_FIELD_NUMBER: _ClassVar[int]
    EMOTION_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    END_REASON_FIELD_NUMBER: _ClassVar[int]
    MISSING_BEFORE_FIELD_NUMBER: _ClassVar[int]
    MISSING_UTTERANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    start_offset: _duration_pb2.Duration
    end_offset: _duration_pb2.Duration
    utterance_count: int
    speech_duration: _duration_pb2.Duration
    emotion: EmotionEstimate
    personality: PersonalityEstimate
    end_reason: EndReason
    missing_before: _duration_pb2.Duration
    missing_utterance_count: int
    def __init__(self, turn_id: _Optional[str] = ..., start_offset: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., end_offset: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., utterance_count: _Optional[int] = ..., speech_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., emotion: _Optional[_Union[EmotionEstimate, _Mapping]] = ..., personality: _Optional[_Union[PersonalityEstimate, _Mapping]] = ..., end_reason: _Optional[_Union[EndReason, str]] = ..., missing_before: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., missing_utterance_count: _Optional[int] = ...) -> None: ...

class StreamWarning(_message.Message):
    __slots__ = ("reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class StreamProgress(_message.Message):
    __slots__ = ("settled_offset",)
    SETTLED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    settled_offset: _duration_pb2.Duration
    def __init__(self, settled_offset: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StreamEnded(_message.Message):
    __slots__ = ("reason", "audio_received", "speech_duration", "conversation", "non_speech_duration", "dropped_duration")
    REASON_FIELD_NUMBER: _ClassVar[int]
    AUDIO_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SPEECH_DURATION_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    NON_SPEECH_DURATION_FIELD_NUMBER: _ClassVar[int]
    DROPPED_DURATION_FIELD_NUMBER: _ClassVar[int]
    reason: str
    audio_received: _duration_pb2.Duration
    speech_duration: _duration_pb2.Duration
    conversation: Conversation
    non_speech_duration: _duration_pb2.Duration
    dropped_duration: _duration_pb2.Duration
    def __init__(self, reason: _Optional[str] = ..., audio_received: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., speech_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., non_speech_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., dropped_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Participant(_message.Message):
    __slots__ = ("participant_id", "personality", "mean_emotion", "last_emotion", "turn_count", "utterance_count", "speech_duration", "given_personality", "missing_utterance_count")
    PARTICIPANT_ID_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    MEAN_EMOTION_FIELD_NUMBER: _ClassVar[int]
    LAST_EMOTION_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    UTTERANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SPEECH_DURATION_FIELD_NUMBER: _ClassVar[int]
    GIVEN_PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    MISSING_UTTERANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    participant_id: str
    personality: PersonalityEstimate
    mean_emotion: EmotionEstimate
    last_emotion: EmotionEstimate
    turn_count: int
    utterance_count: int
    speech_duration: _duration_pb2.Duration
    given_personality: BigFiveTraits
    missing_utterance_count: int
    def __init__(self, participant_id: _Optional[str] = ..., personality: _Optional[_Union[PersonalityEstimate, _Mapping]] = ..., mean_emotion: _Optional[_Union[EmotionEstimate, _Mapping]] = ..., last_emotion: _Optional[_Union[EmotionEstimate, _Mapping]] = ..., turn_count: _Optional[int] = ..., utterance_count: _Optional[int] = ..., speech_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., given_personality: _Optional[_Union[BigFiveTraits, _Mapping]] = ..., missing_utterance_count: _Optional[int] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("conversation_id", "state", "create_time", "update_time", "expire_time", "participants", "model", "synthetic_model")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Conversation.State]
        STATE_ACTIVE: _ClassVar[Conversation.State]
        STATE_COMPLETED: _ClassVar[Conversation.State]
    STATE_UNSPECIFIED: Conversation.State
    STATE_ACTIVE: Conversation.State
    STATE_COMPLETED: Conversation.State
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_MODEL_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    state: Conversation.State
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    participants: _containers.RepeatedCompositeFieldContainer[Participant]
    model: str
    synthetic_model: bool
    def __init__(self, conversation_id: _Optional[str] = ..., state: _Optional[_Union[Conversation.State, str]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., participants: _Optional[_Iterable[_Union[Participant, _Mapping]]] = ..., model: _Optional[str] = ..., synthetic_model: bool = ...) -> None: ...

class AnalyzeRequest(_message.Message):
    __slots__ = ("config", "audio_content")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUDIO_CONTENT_FIELD_NUMBER: _ClassVar[int]
    config: StreamingAnalyzeConfig
    audio_content: bytes
    def __init__(self, config: _Optional[_Union[StreamingAnalyzeConfig, _Mapping]] = ..., audio_content: _Optional[bytes] = ...) -> None: ...

class AnalyzeResponse(_message.Message):
    __slots__ = ("request_id", "utterances", "turn_result", "conversation", "warnings", "synthetic_model")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    UTTERANCES_FIELD_NUMBER: _ClassVar[int]
    TURN_RESULT_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_MODEL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    utterances: _containers.RepeatedCompositeFieldContainer[UtteranceResult]
    turn_result: TurnResult
    conversation: Conversation
    warnings: _containers.RepeatedCompositeFieldContainer[StreamWarning]
    synthetic_model: bool
    def __init__(self, request_id: _Optional[str] = ..., utterances: _Optional[_Iterable[_Union[UtteranceResult, _Mapping]]] = ..., turn_result: _Optional[_Union[TurnResult, _Mapping]] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., warnings: _Optional[_Iterable[_Union[StreamWarning, _Mapping]]] = ..., synthetic_model: bool = ...) -> None: ...

class GetConversationRequest(_message.Message):
    __slots__ = ("conversation_id",)
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    def __init__(self, conversation_id: _Optional[str] = ...) -> None: ...

class GetConversationResponse(_message.Message):
    __slots__ = ("conversation",)
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    conversation: Conversation
    def __init__(self, conversation: _Optional[_Union[Conversation, _Mapping]] = ...) -> None: ...

class CompleteConversationRequest(_message.Message):
    __slots__ = ("conversation_id",)
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    def __init__(self, conversation_id: _Optional[str] = ...) -> None: ...

class CompleteConversationResponse(_message.Message):
    __slots__ = ("conversation",)
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    conversation: Conversation
    def __init__(self, conversation: _Optional[_Union[Conversation, _Mapping]] = ...) -> None: ...

class DeleteConversationRequest(_message.Message):
    __slots__ = ("conversation_id", "allow_missing")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    allow_missing: bool
    def __init__(self, conversation_id: _Optional[str] = ..., allow_missing: bool = ...) -> None: ...

class DeleteConversationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServiceInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServiceInfoResponse(_message.Message):
    __slots__ = ("server_version", "models", "scales", "audio_encodings", "min_sample_rate_hertz", "max_sample_rate_hertz", "model_sample_rate_hertz", "max_audio_content_bytes", "max_stream_duration", "idle_timeout", "max_concurrent_streams", "active_stream_count", "default_endpointing_config", "server_time")
    class Model(_message.Message):
        __slots__ = ("name", "version", "is_default", "supports_emotion", "supports_personality", "supports_conversation_personality", "synthetic", "requires_given_personality", "notice", "license", "untrained", "fingerprint")
        NAME_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
        SUPPORTS_EMOTION_FIELD_NUMBER: _ClassVar[int]
        SUPPORTS_PERSONALITY_FIELD_NUMBER: _ClassVar[int]
        SUPPORTS_CONVERSATION_PERSONALITY_FIELD_NUMBER: _ClassVar[int]
        SYNTHETIC_FIELD_NUMBER: _ClassVar[int]
        REQUIRES_GIVEN_PERSONALITY_FIELD_NUMBER: _ClassVar[int]
        NOTICE_FIELD_NUMBER: _ClassVar[int]
        LICENSE_FIELD_NUMBER: _ClassVar[int]
        UNTRAINED_FIELD_NUMBER: _ClassVar[int]
        FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
        name: str
        version: str
        is_default: bool
        supports_emotion: bool
        supports_personality: bool
        supports_conversation_personality: bool
        synthetic: bool
        requires_given_personality: bool
        notice: str
        license: str
        untrained: bool
        fingerprint: str
        def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., is_default: bool = ..., supports_emotion: bool = ..., supports_personality: bool = ..., supports_conversation_personality: bool = ..., synthetic: bool = ..., requires_given_personality: bool = ..., notice: _Optional[str] = ..., license: _Optional[str] = ..., untrained: bool = ..., fingerprint: _Optional[str] = ...) -> None: ...
    class Scale(_message.Message):
        __slots__ = ("dimension", "min", "max", "neutral")
        DIMENSION_FIELD_NUMBER: _ClassVar[int]
        MIN_FIELD_NUMBER: _ClassVar[int]
        MAX_FIELD_NUMBER: _ClassVar[int]
        NEUTRAL_FIELD_NUMBER: _ClassVar[int]
        dimension: str
        min: float
        max: float
        neutral: float
        def __init__(self, dimension: _Optional[str] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., neutral: _Optional[float] = ...) -> None: ...
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    AUDIO_ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    MIN_SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    MODEL_SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    MAX_AUDIO_CONTENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_DURATION_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_STREAMS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_STREAM_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_ENDPOINTING_CONFIG_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    models: _containers.RepeatedCompositeFieldContainer[GetServiceInfoResponse.Model]
    scales: _containers.RepeatedCompositeFieldContainer[GetServiceInfoResponse.Scale]
    audio_encodings: _containers.RepeatedScalarFieldContainer[AudioEncoding]
    min_sample_rate_hertz: int
    max_sample_rate_hertz: int
    model_sample_rate_hertz: int
    max_audio_content_bytes: int
    max_stream_duration: _duration_pb2.Duration
    idle_timeout: _duration_pb2.Duration
    max_concurrent_streams: int
    active_stream_count: int
    default_endpointing_config: EndpointingConfig
    server_time: _timestamp_pb2.Timestamp
    def __init__(self, server_version: _Optional[str] = ..., models: _Optional[_Iterable[_Union[GetServiceInfoResponse.Model, _Mapping]]] = ..., scales: _Optional[_Iterable[_Union[GetServiceInfoResponse.Scale, _Mapping]]] = ..., audio_encodings: _Optional[_Iterable[_Union[AudioEncoding, str]]] = ..., min_sample_rate_hertz: _Optional[int] = ..., max_sample_rate_hertz: _Optional[int] = ..., model_sample_rate_hertz: _Optional[int] = ..., max_audio_content_bytes: _Optional[int] = ..., max_stream_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., idle_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_concurrent_streams: _Optional[int] = ..., active_stream_count: _Optional[int] = ..., default_endpointing_config: _Optional[_Union[EndpointingConfig, _Mapping]] = ..., server_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchConversationRequest(_message.Message):
    __slots__ = ("conversation_id", "include_past", "require_existing_conversation")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PAST_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_EXISTING_CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    include_past: bool
    require_existing_conversation: bool
    def __init__(self, conversation_id: _Optional[str] = ..., include_past: bool = ..., require_existing_conversation: bool = ...) -> None: ...

class WatchConversationResponse(_message.Message):
    __slots__ = ("participant_id", "turn_id", "past", "watch_started", "event", "watch_gap", "watch_ended")
    PARTICIPANT_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    WATCH_STARTED_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    WATCH_GAP_FIELD_NUMBER: _ClassVar[int]
    WATCH_ENDED_FIELD_NUMBER: _ClassVar[int]
    participant_id: str
    turn_id: str
    past: bool
    watch_started: WatchStarted
    event: StreamingAnalyzeResponse
    watch_gap: WatchGap
    watch_ended: WatchEnded
    def __init__(self, participant_id: _Optional[str] = ..., turn_id: _Optional[str] = ..., past: bool = ..., watch_started: _Optional[_Union[WatchStarted, _Mapping]] = ..., event: _Optional[_Union[StreamingAnalyzeResponse, _Mapping]] = ..., watch_gap: _Optional[_Union[WatchGap, _Mapping]] = ..., watch_ended: _Optional[_Union[WatchEnded, _Mapping]] = ...) -> None: ...

class WatchStarted(_message.Message):
    __slots__ = ("request_id", "conversation", "past_response_count")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    PAST_RESPONSE_COUNT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    conversation: Conversation
    past_response_count: int
    def __init__(self, request_id: _Optional[str] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., past_response_count: _Optional[int] = ...) -> None: ...

class WatchGap(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class WatchEnded(_message.Message):
    __slots__ = ("reason", "conversation")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    reason: str
    conversation: Conversation
    def __init__(self, reason: _Optional[str] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ...) -> None: ...
