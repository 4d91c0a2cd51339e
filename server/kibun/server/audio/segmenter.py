"""Finds utterances in samples: a VAD and a machine of four states, whose only clock is the sample count.

    quiet ──speech──> starting ──min_speech of it──> speaking ──non-speech──> stopping
      ^                  │                              ^                        │
      └──silence─────────┘                              └──speech (restart)──────┤
      └──────────────────── utterance_end_silence ──────────────────────────────┘

An utterance starts `pre_roll_ms` before its first speech frame and ends `hang_over_ms` after its last one; it
never reaches into the one before. At `max_utterance_ms` it is cut, at the longest pause of its last quarter if
there was one; the next then starts exactly at the cut, already in `speaking`, so that nothing is lost.

**Restartable.** When an utterance closes, the VAD is reset and everything after the utterance's end is read
again; in a long quiet the same happens every few seconds, with the last half second read again, so that the
detector has settled before anything new is decided. So what follows depends only on the audio from the latest
restart on: a client that lost its connection and replays from the end of the last utterance (`resume_after` its
reason) or from `settled` gets the same events, sample for sample. What the restarts cost: benchmarks/detection.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import (
    EndpointingOptions,
    EndReason,
    NoSpeechTimeout,
    SegmenterEvent,
    SpeechBegin,
    SpeechEnd,
    SpeechSegment,
    TurnSilence,
)
from kibun.server.audio.sample_buffer import SampleBuffer, Samples
from kibun.server.audio.vad import Vad

_SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
#: Silence after which a burst of sound that has not become an utterance is dropped.
_START_GAP_MS = 100
#: In `stopping`, speech must last this long to interrupt the silence: single frames are false alarms.
_RESTART_MS = 60
#: In quiet the detector is restarted this often, and reads this much again, or the pre-roll if that is longer.
_QUIET_RESTART_MS = 4_000
_LEAD_MS = 500
#: A forced cut looks for a pause in this last share of the longest utterance.
_CUT_WINDOW = 0.25
_PUSH_SAMPLES = SAMPLE_RATE_HZ  # longer pushes are taken in such pieces, so that the buffer stays small


class _State(Enum):
    QUIET = "quiet"
    STARTING = "starting"
    SPEAKING = "speaking"
    STOPPING = "stopping"


# Reading a member of an Enum class runs Python code: here it would be done ten times per frame.
_QUIET, _STARTING, _SPEAKING, _STOPPING = _State


@dataclass(frozen=True)
class _Pause:
    """Silence within an open utterance."""

    start: int
    end: int
    speech_samples: int  # of the utterance before the pause

    @property
    def middle(self) -> int:
        return (self.start + self.end) // 2


class Segmenter:
    """Finds the utterances of one stream; the events do not depend on how the samples are divided among `push` calls.

    Not thread-safe. Memory: twice the open utterance, at most max_utterance, and a second or two.
    """

    def __init__(
        self, options: EndpointingOptions, vad: Vad, resume_after: EndReason | None = None, silence: int = 0
    ) -> None:
        """resume_after: why the turn's last utterance ended, `silence` samples before the stream begins.

        None: nothing is known to have been said in the turn before.
        """
        self.options = options
        self.position = 0  # samples pushed
        self._vad = vad
        self._frame = vad.frame_samples
        # Set by _restart: where reading began, the next frame, the open or possible utterance, its speech.
        self._origin = self._cursor = self._start = self._first_speech = self._speech_end = 0
        self._speech_samples = self._speech_to_limit = 0  # all of it; what the longest utterance can hold
        self._run = 0  # speech up to the cursor without a break
        self._pause: _Pause | None = None
        self._state = _QUIET
        # Set by _start_turn.
        self._turn_start = self._silent_since = self._timer_at = 0
        self._turn_spoke = self._timed_out = False
        self._min_speech = max(options.min_speech_ms * _SAMPLES_PER_MS, 1)
        self._end_silence = options.utterance_end_silence_ms * _SAMPLES_PER_MS
        self._max_utterance = options.max_utterance_ms * _SAMPLES_PER_MS
        self._pre_roll = options.pre_roll_ms * _SAMPLES_PER_MS
        self._lead = max(_LEAD_MS * _SAMPLES_PER_MS, self._pre_roll)
        self._hang_over = min(options.hang_over_ms * _SAMPLES_PER_MS, self._end_silence)
        self._turn_silence = _samples_or_none(options.end_of_turn_silence_ms)
        self._start_timeout = _samples_or_none(options.speech_start_timeout_ms)
        self._buffer = SampleBuffer()
        self.settled = 0
        """A stream that resumes here gives the same events from here on, and nothing before is missing. Never falls.

        It does not pass audio that a timer of the turn still counts.
        """
        self._start_turn(0)
        self._restart(0, resume_after if silence == 0 else None)
        self._turn_spoke = resume_after is not None
        if resume_after is not None:
            self._silent_since = -silence - (self._hang_over if resume_after is EndReason.SILENCE else 0)

    @property
    def open_start(self) -> int | None:
        """Start of the utterance that is being spoken, in samples, once it is certain to be one; else None."""
        certain = self._state in (_SPEAKING, _STOPPING) and self._speech_samples > 0  # none yet: after a forced cut
        return self._start if certain else None

    @property
    def complete_until(self) -> int | None:
        """End of the open utterance, in samples, if the silence that has begun ends it: where its segment will end.

        None while somebody speaks, and until all audio up to there has come.
        """
        end = self._speech_end + self._hang_over
        silent = self._state is _STOPPING and self._speech_samples > 0
        return end if silent and end <= min(self.position, self._start + self._max_utterance) else None

    @property
    def needed_from(self) -> int:
        """Everything before this sample belongs to a segment that was given out, or to none. Never falls."""
        if self._state is _QUIET:
            return max(self._cursor - self._pre_roll, self._origin)
        return self._start

    @property
    def _read_again_from(self) -> int:
        """What a restart may need, too."""
        if self._state in (_QUIET, _STARTING):
            return max(self._cursor - self._lead - _START_GAP_MS * _SAMPLES_PER_MS, self._origin)
        return self._start

    def open_audio(self, until: int) -> Samples:
        """A copy of the open utterance's audio from `open_start` to sample `until`, (until - open_start,).

        Raises:
            ValueError: no utterance is open, or `until` lies outside it or beyond `position`.
        """
        if self.open_start is None or not self.open_start <= until <= self.position:
            raise ValueError(f"no open utterance up to sample {until}")
        return self._buffer.copy(self._start, until)

    def push(self, samples: Samples) -> list[SegmenterEvent]:
        """Takes the next samples, (n,), and returns what was found in them, in order."""
        events: list[SegmenterEvent] = []
        for first in range(0, len(samples), _PUSH_SAMPLES):
            piece = samples[first : first + _PUSH_SAMPLES]
            self._buffer.append(piece)
            self.position += len(piece)
            while self._cursor + self._frame <= self.position:
                self._read(events)
            self._buffer.drop_before(min(self.needed_from, self._read_again_from))
        return events

    def flush(self, reason: EndReason) -> list[SegmenterEvent]:
        """Ends the turn at the latest sample and returns the events of the utterance that this closes, if any.

        The next turn may follow at once.
        """
        events: list[SegmenterEvent] = []
        if self._state in (_SPEAKING, _STOPPING):
            if self._state is _SPEAKING:
                # The samples short of a frame are the tail of what is being said.
                self._speech_end = min(self.position, self._start + self._max_utterance)
                self._speech_samples += self._speech_end - self._cursor
            self._close(min(self._speech_end + self._hang_over, self.position), reason, events)
        self._start_turn(self.position)
        self._restart(self.position, None)
        self.settled = self.position
        self._buffer.drop_before(self.position)
        return events

    def _read(self, events: list[SegmenterEvent]) -> None:
        """Reads all whole frames that have come, or up to a restart, which discards what the VAD decided beyond it."""
        frames = (self.position - self._cursor) // self._frame
        samples = self._buffer.view(self._cursor, self._cursor + frames * self._frame)
        for speech in self._vad.decide(samples.reshape(frames, self._frame)):
            self._step(speech, events)
            if self._cursor == self._origin:
                return

    def _step(self, speech: bool, events: list[SegmenterEvent]) -> None:
        """Moves on by one frame, which the VAD took for speech or not."""
        start = self._cursor
        self._cursor = end = start + self._frame
        self._run = self._run + self._frame if speech else 0
        if self._state is _QUIET and speech:
            self._state = _STARTING
            self._start = max(start - self._pre_roll, self._origin)
            self._first_speech, self._speech_end = start, start
            self._speech_samples = self._speech_to_limit = 0
        if self._state is _STARTING:
            self._step_starting(speech, end, events)
        elif self._state is _SPEAKING:
            self._step_speaking(speech, end)
        elif self._state is _STOPPING:
            self._step_stopping(speech, end, events)
        if self._state in (_SPEAKING, _STOPPING):
            if end - self._start >= self._max_utterance:
                self._cut(events)
        elif self._cursor > self._origin:  # otherwise an utterance has just closed: nothing was read since
            self._check_timers(end, events)
            self._restart_in_quiet()

    def _step_starting(self, speech: bool, end: int, events: list[SegmenterEvent]) -> None:
        if speech:
            self._add_speech(self._frame, end)
            if self._speech_samples >= self._min_speech:
                self._state = _SPEAKING
                self._turn_spoke = True
                events.append(SpeechBegin(self._first_speech))
        elif end - self._speech_end >= _START_GAP_MS * _SAMPLES_PER_MS:
            self._state = _QUIET

    def _step_speaking(self, speech: bool, end: int) -> None:
        if speech:
            self._add_speech(self._frame, end)
        else:
            self._state = _STOPPING

    def _step_stopping(self, speech: bool, end: int, events: list[SegmenterEvent]) -> None:
        if speech and self._run >= _RESTART_MS * _SAMPLES_PER_MS:
            self._remember_pause(end - self._run)
            self._add_speech(self._run, end)
            self._state = _SPEAKING
        elif end - self._run - self._speech_end >= self._end_silence:  # a run under way is not yet silence
            self._close(self._speech_end + self._hang_over, EndReason.SILENCE, events)

    def _add_speech(self, samples: int, end: int) -> None:
        self._speech_samples += samples
        self._speech_to_limit += max(min(samples, self._start + self._max_utterance - end + samples), 0)
        self._speech_end = end

    def _remember_pause(self, end: int) -> None:
        """Remembers the pause from the last speech to `end`, if it is the longest within reach of a forced cut."""
        pause = _Pause(self._speech_end, end, self._speech_samples)
        if pause.middle - self._start < (1 - _CUT_WINDOW) * self._max_utterance:
            return
        if self._pause is None or pause.end - pause.start >= self._pause.end - self._pause.start:
            self._pause = pause

    def _cut(self, events: list[SegmenterEvent]) -> None:
        """Ends the utterance at its longest late pause, or else exactly at the maximum."""
        limit = self._start + self._max_utterance
        if self._state is _STOPPING:
            self._remember_pause(limit)
        end, self._speech_samples = limit, self._speech_to_limit  # it may have taken long to be certain of the speech
        if self._pause is not None:
            end, self._speech_samples = self._pause.middle, self._pause.speech_samples
        if self._speech_samples > 0:  # none: the pre-roll fills it
            self._emit(end, EndReason.MAX_DURATION, events)
        self._restart(end, EndReason.MAX_DURATION)

    def _close(self, end: int, reason: EndReason, events: list[SegmenterEvent]) -> None:
        end = min(end, self._start + self._max_utterance)  # it may have been reached within this very frame
        events.append(SpeechEnd(self._speech_end))
        self._silent_since = self._speech_end
        if self._speech_samples > 0:  # none: nothing was said after a forced cut
            self._emit(end, reason, events)
        self._restart(end, reason)

    def _emit(self, end: int, reason: EndReason, events: list[SegmenterEvent]) -> None:
        audio = self._buffer.copy(self._start, end)
        events.append(SpeechSegment(self._start, end, audio, self._speech_samples, reason, self.settled))
        self.settled = end

    def _restart(self, origin: int, after: EndReason | None) -> None:
        """Reads on from `origin` as if the stream began there."""
        self._vad.reset()
        self._cursor = self._origin = self._start = origin
        self._first_speech = self._speech_end = origin
        self._speech_samples = self._speech_to_limit = self._run = 0
        self._pause = None
        self._state = _SPEAKING if after is EndReason.MAX_DURATION else _QUIET

    def _restart_in_quiet(self) -> None:
        """Starts afresh after every few seconds of quiet, and calls them settled once no timer counts them."""
        if self._state is not _QUIET or self._cursor - self._origin < _QUIET_RESTART_MS * _SAMPLES_PER_MS + self._lead:
            return
        self._restart(self._cursor - self._lead, None)
        counted = self._turn_silence if self._turn_spoke else None if self._timed_out else self._start_timeout
        if counted is None and self._origin >= self._timer_at:
            self.settled = self._origin

    def _start_turn(self, position: int) -> None:
        self._turn_start = self._silent_since = self._timer_at = position
        self._turn_spoke = self._timed_out = False

    def _check_timers(self, end: int, events: list[SegmenterEvent]) -> None:
        if self._state is not _QUIET:
            return
        if self._turn_spoke:
            if self._turn_silence is not None and end - self._silent_since >= self._turn_silence:
                events.append(TurnSilence(end))
                self._start_turn(end)
        elif self._start_timeout is not None and not self._timed_out and end - self._turn_start >= self._start_timeout:
            events.append(NoSpeechTimeout(end))
            self._timed_out, self._timer_at = True, end


def _samples_or_none(duration_ms: int | None) -> int | None:
    return None if duration_ms is None else duration_ms * _SAMPLES_PER_MS
