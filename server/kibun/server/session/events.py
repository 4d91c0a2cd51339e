"""The requests that go into a session and the events that come out of it, as plain values.

Positions and lengths are samples at 16 kHz; positions count from `StreamOptions.start_offset` at the stream's first
sample. Scales: valence and arousal 1..5, traits 1..7. Events have the names of the messages that they become.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kibun.models.types import ConditionSource, Evidence, Traits
from kibun.server.audio.decoder import AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions, EndReason
from kibun.server.conversation.state import NOTHING_TOLD, Conversation, Told
from kibun.server.conversation.store import Key
from kibun.server.errors import Failure
from kibun.server.inference.backend import ModelInfo

CONVERSATION_TTL_S = 1800.0

SpeechType = Literal["activity_begin", "activity_end", "turn_start", "turn_end", "no_speech_timeout"]

# ---- in


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """A validated `StreamingAnalyzeConfig` with every default filled in."""

    tenant: str
    conversation_id: str
    participant_id: str
    turn_id: str
    model: str
    audio: AudioFormat
    endpointing: EndpointingOptions
    emotion: bool = True
    personality: bool = True
    interims: bool = False
    interim_interval: int | None = None  # samples; None: geometric times 1, 2.5, 6.25, 15.6 s
    voice_activity_events: bool = False
    eager: bool = True  # analyse in the silence that may end an utterance
    counts_for_traits: bool = True  # over the conversation; else finals are estimated, and no more
    require_existing: bool = False
    given_traits: Traits | None = None  # None: those given for the participant before, if any
    start_offset: int = 0
    resumes: bool = False  # the turn after a lost connection; the turn may have its result already
    told: Told = NOTHING_TOLD  # what the client has of the turn that it resumes
    resumes_after: EndReason | None = None  # why the utterance ended that ends at start_offset, as the client knows it
    ttl_s: float = CONVERSATION_TTL_S
    ttl_asked: bool = False  # the client set ttl_s; otherwise an existing conversation keeps its own
    warnings: tuple[StreamWarning, ...] = ()  # about what the request asks for and will not get

    @property
    def key(self) -> Key:
        """The conversation's, in the store."""
        return self.tenant, self.conversation_id


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one stream, in seconds."""

    max_stream_s: float = 4 * 3600.0
    warn_before_end_s: float = 60.0
    idle_timeout_s: float = 600.0
    max_backlog_s: float = 60.0  # audio of finished utterances that may wait for analysis
    max_messages_per_s: float = 1000.0  # throttled beyond: small chunks cost as much as large ones
    backlog_timeout_s: float = 30.0  # a stream is ended if its full backlog does not shrink for this long


@dataclass(frozen=True, slots=True)
class Audio:
    """Bytes in the stream's encoding; may end within a sample."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """Ends the open utterance and the turn. Empty `next_turn_id`: the server makes one."""

    next_turn_id: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that was refused: the stream ends with `failure`, once all that came before is answered."""

    failure: Failure


Request = Audio | EndOfTurn | Refused

# ---- out


@dataclass(frozen=True, slots=True)
class Emotion:
    valence: float
    arousal: float


@dataclass(frozen=True, slots=True)
class Personality:
    """Traits and the evidence behind them.

    evidence: what such traits are worth after as many utterances, in voices like those of training. weight: how much
    each counted in the one estimate of emotion that these traits are the condition of.
    """

    traits: Traits
    source: ConditionSource
    utterance_count: int
    speech: int
    evidence: Evidence | None = None
    weight: Traits | None = None


@dataclass(frozen=True, slots=True)
class StreamStarted:
    turn_id: str
    created: bool
    prior_utterances: int
    ttl_s: float  # the conversation's
    given_traits: Traits | None = None  # the participant's, of this request or an earlier one
    opened: float = 0.0  # when the turn was, as its `Opening` in the store has it


@dataclass(frozen=True, slots=True)
class SpeechEvent:
    type: SpeechType
    position: int
    turn_id: str


@dataclass(frozen=True, slots=True)
class UtteranceResult:
    """An interim or the final estimate of an utterance. `reason` is None for interims.

    covers_speech_so_far: an interim made in the silence after speech that is still going on.
    """

    utterance_id: str
    turn_id: str
    is_final: bool
    start: int
    end: int
    analyzed: int
    emotion: Emotion | None
    personality: Personality | None
    condition: Personality | None
    reason: EndReason | None
    covers_speech_so_far: bool = False


@dataclass(frozen=True, slots=True)
class PersonalityUpdate:
    participant_id: str
    personality: Personality
    revision: int


@dataclass(frozen=True, slots=True)
class TurnResult:
    turn_id: str
    start: int
    end: int
    utterance_count: int
    speech: int
    emotion: Emotion | None
    personality: Personality | None
    reason: EndReason | None  # None: not known any more, of a turn that the store had
    missing: int = 0  # utterances, at least, whose finals were sent and that are lost; in no other field
    missing_before: int = 0  # where they began, at the latest


@dataclass(frozen=True, slots=True)
class StreamWarning:
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """Audio before `settled` has its finals, all sent before this event, or belongs to no utterance.

    A stream that resumes exactly there gives the same events from there on.
    """

    settled: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """`received` = `speech` + `non_speech` + `dropped`, to the sample."""

    reason: str
    received: int
    speech: int
    non_speech: int
    dropped: int
    conversation: Conversation
    model: ModelInfo


Event = (
    StreamStarted
    | SpeechEvent
    | UtteranceResult
    | PersonalityUpdate
    | TurnResult
    | StreamWarning
    | StreamProgress
    | StreamEnded
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An event, with the samples received and processed at the moment when it is sent.

    number: 0, 1, … within the stream. turn_id: of the turn that it belongs to, whether the event names it or not.
    """

    event: Event
    received: int
    processed: int
    number: int
    turn_id: str
