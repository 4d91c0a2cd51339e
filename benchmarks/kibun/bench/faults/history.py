"""What clients of a fault run saw, as plain values: written down by `faults_clients`, read by `faults_checker`.

Positions and lengths are samples at 16 kHz, on the turn's own clock: 0 is the first sample that was pushed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kibun.client.errors import KibunError
from kibun.client.estimates import PersonalityEstimate
from kibun.client.events import Event, StreamEnded, StreamStarted, StreamWarning, TurnResult, UtteranceResult
from kibun.client.resources import ParticipantState
from kibun.models.types import SAMPLE_RATE_HZ

Estimates = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """The server accepted a call: the first, or one that resumes the turn at `offset`."""

    offset: int
    created: bool  # the conversation was unknown


@dataclass(frozen=True, slots=True)
class Interim:
    utterance_id: str


@dataclass(frozen=True, slots=True)
class Final:
    utterance_id: str
    start: int
    end: int
    analyzed: int
    reason: str
    estimates: Estimates


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """The turn's result."""

    turn_id: str
    utterance_count: int
    speech: int
    estimates: Estimates
    missing: int = 0  # utterances that it says were lost


@dataclass(frozen=True, slots=True)
class Accounting:
    """The last word of a stream."""

    received: int
    speech: int
    non_speech: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Other:
    """Speech events, updates of personality, warnings: no promise depends on them."""

    kind: str  # class, or reason of a warning


What = Opened | Interim | Final | TurnOutcome | Accounting | Other


@dataclass(frozen=True, slots=True)
class Seen:
    """One event."""

    at_s: float  # since the run began
    call: int  # 0, 1, …: connections of the turn
    number: int  # within the call
    received: int  # of this call, from the event's envelope
    what: What


@dataclass(frozen=True, slots=True)
class TurnError:
    """The error that ended a turn."""

    at_s: float
    kind: str  # class
    code: str  # of gRPC; "": the SDK's own
    reason: str
    text: str


@dataclass(slots=True)
class TurnHistory:
    """One turn of one client."""

    client: str
    turn_id: str
    pushed: int = 0  # samples
    hands_over: bool = False  # finals, where it resumes: then none is ever missing
    seen: list[Seen] = field(default_factory=list)
    error: TurnError | None = None
    hung: str | None = None  # what was waited for
    refusals: int = 0  # times that it was refused and came back at the time given

    def of(self, kind: type) -> list[Seen]:
        """Events of one kind."""
        return [seen for seen in self.seen if isinstance(seen.what, kind)]

    @property
    def reconnects(self) -> int:
        """Times that the turn was resumed."""
        return max(len(self.of(Opened)) - 1, 0)


@dataclass(slots=True)
class ClientHistory:
    """All turns of one client, and the final state of its participant on the server."""

    client: str
    turns: list[TurnHistory] = field(default_factory=list)
    remembered: tuple[int, int, int, Estimates] | None = None  # utterances, turns, samples of speech, estimates
    error: TurnError | None = None  # of asking for it
    hung: str | None = None


def record(event: Event, at_s: float, call: int) -> Seen:
    """An event, in the form in which a history stores it."""
    what: What
    match event:
        case StreamStarted():
            offset = event.response.stream_started.effective_config.audio_start_offset if event.response else None
            offset_s = offset.seconds + offset.nanos / 1e9 if offset else 0.0
            what = Opened(_samples(offset_s), event.conversation_created)
        case UtteranceResult(is_final=False):
            what = Interim(event.utterance_id)
        case UtteranceResult():
            what = _final(event)
        case TurnResult():
            estimates = (*_emotion(event), *_personality(event))
            speech, missing = _samples(event.speech_s), event.missing_utterance_count
            what = TurnOutcome(event.turn_id, event.utterance_count, speech, estimates, missing)
        case StreamEnded():
            parts = (event.total_audio_s, event.speech_s, event.non_speech_s, event.dropped_s)
            what = Accounting(*map(_samples, parts))
        case StreamWarning():
            what = Other(event.reason)
        case _:
            what = Other(type(event).__name__)
    return Seen(at_s, call, event.sequence_number, _samples(event.audio_received_s), what)


def remembered(state: ParticipantState) -> tuple[int, int, int, Estimates]:
    """What a server keeps about a participant."""
    emotion = state.mean_emotion
    estimates = (emotion.valence, emotion.arousal) if emotion else (None, None)
    personality = state.personality.traits.as_tuple() if state.personality else ()
    return state.utterance_count, state.turn_count, _samples(state.speech_s), (*estimates, *personality)


def fault(error: BaseException, at_s: float) -> TurnError:
    """An error, in the form in which a history stores it."""
    if isinstance(error, KibunError):
        return TurnError(at_s, type(error).__name__, error.code, error.reason, error.message)
    return TurnError(at_s, type(error).__name__, "", "", repr(error))


def _final(event: UtteranceResult) -> Final:
    condition = _traits(event.condition)
    return Final(
        event.utterance_id,
        _samples(event.start_s),
        _samples(event.end_s),
        _samples(event.analyzed_s),
        str(event.end_reason),
        (*_emotion(event), *_personality(event), *condition),
    )


def _emotion(event: UtteranceResult | TurnResult) -> Estimates:
    return (event.emotion.valence, event.emotion.arousal) if event.emotion else (None, None)


def _personality(event: UtteranceResult | TurnResult) -> Estimates:
    return _traits(event.personality)


def _traits(estimate: PersonalityEstimate | None) -> Estimates:
    return estimate.traits.as_tuple() if estimate else ()


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ)
