from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Head(_message.Message):
    __slots__ = ("incarnation", "version", "model", "create_time", "update_time", "ttl_s", "completed", "participants")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    version: int
    model: str
    create_time: float
    update_time: float
    ttl_s: float
    completed: bool
    participants: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, incarnation: _Optional[str] = ..., version: _Optional[int] = ..., model: _Optional[str] = ..., create_time: _Optional[float] = ..., update_time: _Optional[float] = ..., ttl_s: _Optional[float] = ..., completed: bool = ..., participants: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Participant(_message.Message):
    __slots__ = ("participant_id", "revision", "given_traits", "openings", "utterances", "finished_turns", "dropped", "earlier", "more_turns", "bundle")
    PARTICIPANT_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    GIVEN_TRAITS_FIELD_NUMBER: _ClassVar[int]
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    UTTERANCES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_TURNS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    MORE_TURNS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    participant_id: str
    revision: int
    given_traits: _containers.RepeatedScalarFieldContainer[float]
    openings: _containers.RepeatedCompositeFieldContainer[Opening]
    utterances: Entries
    finished_turns: Entries
    dropped: Totals
    earlier: _containers.RepeatedCompositeFieldContainer[Turn]
    more_turns: int
    bundle: str
    def __init__(self, participant_id: _Optional[str] = ..., revision: _Optional[int] = ..., given_traits: _Optional[_Iterable[float]] = ..., openings: _Optional[_Iterable[_Union[Opening, _Mapping]]] = ..., utterances: _Optional[_Union[Entries, _Mapping]] = ..., finished_turns: _Optional[_Union[Entries, _Mapping]] = ..., dropped: _Optional[_Union[Totals, _Mapping]] = ..., earlier: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ..., more_turns: _Optional[int] = ..., bundle: _Optional[str] = ...) -> None: ...

class Totals(_message.Message):
    __slots__ = ("utterances", "speech", "weight", "valence", "arousal", "missing")
    UTTERANCES_FIELD_NUMBER: _ClassVar[int]
    SPEECH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    VALENCE_FIELD_NUMBER: _ClassVar[int]
    AROUSAL_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    utterances: int
    speech: int
    weight: int
    valence: bytes
    arousal: bytes
    missing: int
    def __init__(self, utterances: _Optional[int] = ..., speech: _Optional[int] = ..., weight: _Optional[int] = ..., valence: _Optional[bytes] = ..., arousal: _Optional[bytes] = ..., missing: _Optional[int] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("turn_id", "totals", "start", "end", "missing_before")
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    MISSING_BEFORE_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    totals: Totals
    start: int
    end: int
    missing_before: int
    def __init__(self, turn_id: _Optional[str] = ..., totals: _Optional[_Union[Totals, _Mapping]] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., missing_before: _Optional[int] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("turn_id", "when", "offset", "settled", "resumes")
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    WHEN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    when: float
    offset: int
    settled: int
    resumes: bool
    def __init__(self, turn_id: _Optional[str] = ..., when: _Optional[float] = ..., offset: _Optional[int] = ..., settled: _Optional[int] = ..., resumes: bool = ...) -> None: ...

class Entries(_message.Message):
    __slots__ = ("next", "runs")
    NEXT_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    next: int
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, next: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Utterance(_message.Message):
    __slots__ = ("utterance_id", "turn_id", "start", "end", "speech", "vector", "emotion", "traits", "traits_source", "reason", "bundle")
    UTTERANCE_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SPEECH_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    EMOTION_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    TRAITS_SOURCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    utterance_id: str
    turn_id: str
    start: int
    end: int
    speech: int
    vector: bytes
    emotion: _containers.RepeatedScalarFieldContainer[float]
    traits: _containers.RepeatedScalarFieldContainer[float]
    traits_source: str
    reason: str
    bundle: str
    def __init__(self, utterance_id: _Optional[str] = ..., turn_id: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., speech: _Optional[int] = ..., vector: _Optional[bytes] = ..., emotion: _Optional[_Iterable[float]] = ..., traits: _Optional[_Iterable[float]] = ..., traits_source: _Optional[str] = ..., reason: _Optional[str] = ..., bundle: _Optional[str] = ...) -> None: ...

class FinishedTurn(_message.Message):
    __slots__ = ("turn_id",)
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    def __init__(self, turn_id: _Optional[str] = ...) -> None: ...
