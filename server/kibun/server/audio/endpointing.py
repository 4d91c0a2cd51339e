"""Options and events of the segmenter."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kibun.server.audio.sample_buffer import Samples


class EndpointingError(ValueError):
    """An option out of range. `field`: its name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


@dataclass(frozen=True)
class EndpointingOptions:
    """When speech begins and ends an utterance or a turn. Durations in milliseconds.

    The defaults are chosen by measurements on recorded meetings and on clean phrases (benchmarks/detection.md).

    Raises:
        EndpointingError: a value out of range.
    """

    vad_aggressiveness: int = 2  # 0 (takes most for speech) .. 3 (least)
    min_speech_ms: int = 120  # speech that begins an utterance; less is a click
    utterance_end_silence_ms: int = 500  # silence that ends it
    max_utterance_ms: int = 20_000  # longer ones are cut
    end_of_turn_silence_ms: int | None = None  # silence after the last utterance that ends the turn
    speech_start_timeout_ms: int | None = None  # silence from the turn's start until NoSpeechTimeout
    pre_roll_ms: int = 450  # audio before the first speech frame that belongs to the utterance
    hang_over_ms: int = 200  # and after the last speech frame, at most utterance_end_silence_ms

    def __post_init__(self) -> None:
        _check_range("vad_aggressiveness", self.vad_aggressiveness, 0, 3)
        _check_range("min_speech_ms", self.min_speech_ms, 0, 2_000)
        _check_range("utterance_end_silence_ms", self.utterance_end_silence_ms, 100, 10_000)
        _check_range("max_utterance_ms", self.max_utterance_ms, 1_000, 60_000)
        _check_range("pre_roll_ms", self.pre_roll_ms, 0, 1_000)
        _check_range("hang_over_ms", self.hang_over_ms, 0, 1_000)
        if self.end_of_turn_silence_ms is not None:
            _check_range("end_of_turn_silence_ms", self.end_of_turn_silence_ms, 100, 600_000)
            if self.end_of_turn_silence_ms < self.utterance_end_silence_ms:
                raise EndpointingError(
                    "end_of_turn_silence_ms",
                    f"must be at least utterance_end_silence_ms ({self.utterance_end_silence_ms}), "
                    f"not {self.end_of_turn_silence_ms}: lower that one too",
                )
        if self.speech_start_timeout_ms is not None:
            _check_range("speech_start_timeout_ms", self.speech_start_timeout_ms, 100, 600_000)


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise EndpointingError(field, f"must be {low}..{high}, not {value}")


class EndReason(Enum):
    """Why an utterance ended."""

    SILENCE = "silence"
    MAX_DURATION = "max_duration"
    CLIENT_END_OF_TURN = "client_end_of_turn"
    HALF_CLOSE = "half_close"


# Events. Positions and lengths are 16 kHz samples since the start of the stream.


@dataclass(frozen=True)
class SpeechBegin:
    """An utterance has begun for certain. position: start of its first speech frame."""

    position: int


@dataclass(frozen=True)
class SpeechEnd:
    """An utterance has ended, other than by a forced cut. position: end of its last speech frame."""

    position: int


@dataclass(frozen=True)
class NoSpeechTimeout:
    """speech_start_timeout has passed without speech since the turn started. Once per turn."""

    position: int


@dataclass(frozen=True)
class TurnSilence:
    """end_of_turn_silence has passed since SpeechEnd. The next turn begins; its timers count from `position`."""

    position: int


@dataclass(frozen=True, eq=False)
class SpeechSegment:
    """The audio of an utterance: samples [start, end) of the stream, float32 (end - start,). Segments never overlap."""

    start: int
    end: int
    audio: Samples
    speech_samples: int  # of them in frames that the VAD took for speech
    reason: EndReason
    replay_from: int  # a stream that resumes here gives this segment again, at or before `start`


SegmenterEvent = SpeechBegin | SpeechEnd | NoSpeechTimeout | TurnSilence | SpeechSegment
