"""The segmenter with a fake VAD, for which the samples themselves mark speech, frame by frame."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.server.audio.endpointing import (
    EndpointingError,
    EndpointingOptions,
    EndReason,
    NoSpeechTimeout,
    SegmenterEvent,
    SpeechBegin,
    SpeechEnd,
    SpeechSegment,
    TurnSilence,
)
from kibun.server.audio.segmenter import Segmenter
from tests.support.detection import moved

FRAME = 320  # 20 ms
MS = 16
Samples = npt.NDArray[np.float32]
Runs = list[tuple[bool, int]]  # (speech?, frames)


class FakeVad:
    """Takes positive samples for speech, smoothed over all since `reset`, so that it has a state."""

    frame_samples = FRAME

    def __init__(self, memory: float = 0.0) -> None:
        self._memory = memory
        self._level = 0.0

    def decide(self, frames: Samples) -> list[bool]:
        assert frames.shape[1:] == (FRAME,)
        return [self._is_speech(frame) for frame in frames]

    def _is_speech(self, frame: Samples) -> bool:
        self._level = self._memory * self._level + (1 - self._memory) * float((frame > 0).mean())
        return self._level > 0.4

    def reset(self) -> None:
        self._level = 0.0


def sound(runs: Runs) -> Samples:
    """Every sample its own value, so that a slice shows where it came from; positive = speech."""
    signs = np.concatenate([np.full(frames * FRAME, 1.0 if speech else -1.0) for speech, frames in runs])
    return (signs * (1 + np.arange(len(signs)))).astype(np.float32)


def ms(*runs: tuple[bool, int]) -> Samples:
    """As `sound`, in milliseconds."""
    return sound([(speech, duration // 20) for speech, duration in runs])


def utterances(events: list[SegmenterEvent]) -> list[SpeechSegment]:
    return [event for event in events if isinstance(event, SpeechSegment)]


def run(audio: Samples, options: EndpointingOptions, sizes: list[int] | None = None) -> list[SegmenterEvent]:
    segmenter = Segmenter(options, FakeVad())
    return push_in(segmenter, audio, sizes or [len(audio)]) + segmenter.flush(EndReason.HALF_CLOSE)


def push_in(segmenter: Segmenter, audio: Samples, sizes: list[int]) -> list[SegmenterEvent]:
    events: list[SegmenterEvent] = []
    position, index = 0, 0
    while position < len(audio):
        size = sizes[index % len(sizes)]
        events += segmenter.push(audio[position : position + size])
        position, index = position + size, index + 1
    return events


OPTIONS = EndpointingOptions(
    min_speech_ms=100,
    utterance_end_silence_ms=400,
    max_utterance_ms=2_000,
    end_of_turn_silence_ms=800,
    speech_start_timeout_ms=600,
    pre_roll_ms=100,
    hang_over_ms=200,
)
SHORT = EndpointingOptions(
    min_speech_ms=60, utterance_end_silence_ms=300, max_utterance_ms=1_000, pre_roll_ms=40, hang_over_ms=110
)

LATE = EndpointingOptions(utterance_end_silence_ms=300, end_of_turn_silence_ms=7_000, speech_start_timeout_ms=6_000)

patterns = st.lists(st.tuples(st.booleans(), st.integers(1, 60)), min_size=1, max_size=25)
chunkings = st.lists(st.integers(0, 5_000), min_size=1, max_size=8).filter(lambda sizes: max(sizes) > 20)


@settings(max_examples=120)
@given(runs=patterns, sizes=chunkings, options=st.sampled_from([OPTIONS, SHORT]), cut=st.integers(0, FRAME))
def test_any_chunking_gives_the_same_events(
    runs: Runs, sizes: list[int], options: EndpointingOptions, cut: int
) -> None:
    audio = sound(runs)[cut:]
    assert moved(run(audio, options, sizes)) == moved(run(audio, options))


@settings(max_examples=120)
@given(runs=patterns, options=st.sampled_from([OPTIONS, SHORT]))
def test_utterances_are_slices_in_order_without_overlap(runs: Runs, options: EndpointingOptions) -> None:
    audio = sound(runs)
    previous_end = 0
    for utterance in utterances(run(audio, options)):
        assert previous_end <= utterance.start < utterance.end <= len(audio)
        assert (utterance.audio == audio[utterance.start : utterance.end]).all()
        assert utterance.end - utterance.start <= options.max_utterance_ms * MS
        assert 0 < utterance.speech_samples <= utterance.end - utterance.start
        if utterance.reason is EndReason.MAX_DURATION:
            assert utterance.end - utterance.start >= 0.75 * options.max_utterance_ms * MS
        previous_end = utterance.end


@settings(max_examples=60)
@given(runs=patterns, options=st.sampled_from([OPTIONS, SHORT]))
def test_needed_from_never_falls_and_nothing_before_it_comes_later(runs: Runs, options: EndpointingOptions) -> None:
    audio = sound(runs)
    segmenter, settled = Segmenter(options, FakeVad()), 0
    for position in range(0, len(audio), 1_000):
        events = segmenter.push(audio[position : position + 1_000])
        assert all(utterance.start >= settled for utterance in utterances(events))
        assert settled <= segmenter.needed_from <= segmenter.position
        settled = segmenter.needed_from
    assert all(utterance.start >= settled for utterance in utterances(segmenter.flush(EndReason.HALF_CLOSE)))
    assert segmenter.needed_from == len(audio)


@given(runs=patterns, options=st.sampled_from([OPTIONS, SHORT]))
def test_what_is_open_becomes_an_utterance(runs: Runs, options: EndpointingOptions) -> None:
    """Its interims would have no final otherwise: as after a forced cut that nothing was said after."""
    audio, segmenter = sound(runs), Segmenter(options, FakeVad())
    events, opened = [], set()
    for position in range(0, len(audio), 160):
        events += segmenter.push(audio[position : position + 160])
        opened.add(segmenter.open_start)
    events += segmenter.flush(EndReason.HALF_CLOSE)
    assert opened <= {None, *(utterance.start for utterance in utterances(events))}


@settings(max_examples=120)
@given(runs=patterns, options=st.sampled_from([OPTIONS, SHORT]))
def test_no_speech_is_lost(runs: Runs, options: EndpointingOptions) -> None:
    audio = sound(runs)
    covered = np.zeros(len(audio), bool)
    for utterance in utterances(run(audio, options)):
        covered[utterance.start : utterance.end] = True
    edges = np.flatnonzero(np.diff(np.concatenate(([-1.0], np.sign(audio), [-1.0]))))
    for start, end in edges.reshape(-1, 2):
        # After a cut at a pause frames lie across these edges, hence one frame more than the shortest speech.
        if end - start >= options.min_speech_ms * MS + FRAME:
            assert covered[start:end].all()


@settings(max_examples=120)
@given(runs=patterns, options=st.sampled_from([OPTIONS, SHORT]), memory=st.sampled_from([0.0, 0.6]))
def test_a_replay_from_an_utterances_end_gives_what_followed(
    runs: Runs, options: EndpointingOptions, memory: float
) -> None:
    audio = sound(runs)
    undisturbed = Segmenter(options, FakeVad(memory))
    events = undisturbed.push(audio)
    closing = undisturbed.flush(EndReason.HALF_CLOSE)
    for index, event in enumerate(events):
        if isinstance(event, SpeechSegment):
            replay = Segmenter(options, FakeVad(memory), resume_after=event.reason)
            again = push_in(replay, audio[event.end :], [777])
            assert moved(again, event.end) == moved(events[index + 1 :])
            assert moved(replay.flush(EndReason.HALF_CLOSE), event.end) == moved(closing)


long_quiet = st.lists(
    st.one_of(st.tuples(st.booleans(), st.integers(1, 60)), st.tuples(st.just(False), st.integers(200, 600))),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(
    runs=long_quiet,
    options=st.sampled_from([OPTIONS, SHORT, LATE]),
    memory=st.sampled_from([0.0, 0.6]),
    known=st.booleans(),
)
def test_a_replay_from_what_is_settled_gives_what_followed(
    runs: Runs, options: EndpointingOptions, memory: float, known: bool
) -> None:
    """known: the server still knows the turn's last utterance before, wherever it ended; else only the client does,
    which tells of one that ended exactly there."""
    audio = sound(runs)
    undisturbed = Segmenter(options, FakeVad(memory))
    events, settled, seen = [], [0], [0]
    for position in range(0, len(audio), FRAME):  # a longer push may go on to what comes after what it settles
        events += undisturbed.push(audio[position : position + FRAME])
        if undisturbed.settled > settled[-1]:
            settled.append(undisturbed.settled)
            seen.append(len(events))
    for origin, count in zip(settled[1:], seen[1:], strict=True):
        turn = [e for e in events[:count] if isinstance(e, SpeechSegment | TurnSilence)]
        last = turn[-1] if turn and isinstance(turn[-1], SpeechSegment) and turn[-1].end <= origin else None
        if last and (known or last.end == origin):
            replay = Segmenter(options, FakeVad(memory), last.reason, origin - last.end)
        else:
            replay = Segmenter(options, FakeVad(memory))
        again = moved(push_in(replay, audio[origin:], [777]), origin)
        assert again == moved(events[count:]) or _but_timeouts(again) == _but_timeouts(moved(events[count:]))
        if known and last:
            assert again == moved(events[count:])


def _but_timeouts(events: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """A server that does not know the turn counts its speech_start_timeout anew."""
    return [event for event in events if event[0] is not NoSpeechTimeout]


def test_a_long_quiet_is_settled_except_what_a_timer_counts() -> None:
    quiet = ms((False, 30_000))
    for options, first in ((EndpointingOptions(), 0), (EndpointingOptions(speech_start_timeout_ms=9_000), 9_000)):
        segmenter, points = Segmenter(options, FakeVad()), set()
        for position in range(0, len(quiet), 160):
            segmenter.push(quiet[position : position + 160])
            assert segmenter.position - segmenter.settled <= max(first, 0) * MS + 9_000 * MS
            points.add(segmenter.settled)
        assert min(points - {0}) >= first * MS
        assert segmenter.settled > 24_000 * MS


def test_what_is_said_after_a_long_quiet_keeps_its_pre_roll() -> None:
    """Wherever it begins between two restarts of the detector."""
    options = EndpointingOptions(pre_roll_ms=1_000, min_speech_ms=60)
    for quiet_ms in range(4_000, 9_000, 340):
        (utterance,) = utterances(run(ms((False, quiet_ms), (True, 400), (False, 1_000)), options))
        assert utterance.start == (quiet_ms // 20 * 20 - 1_000) * MS


def test_an_utterance_keeps_its_pre_roll_and_hang_over() -> None:
    events = run(ms((False, 1_000), (True, 500), (False, 1_000)), OPTIONS)
    assert moved(events)[:3] == [
        (NoSpeechTimeout, 600 * MS),
        (SpeechBegin, 1_000 * MS),
        (SpeechEnd, 1_500 * MS),
    ]
    (utterance,) = utterances(events)
    assert (utterance.start, utterance.end) == (900 * MS, 1_700 * MS)
    assert utterance.speech_samples == 500 * MS
    assert utterance.reason is EndReason.SILENCE


def test_an_utterance_closes_after_exactly_its_silence() -> None:
    segmenter = Segmenter(OPTIONS, FakeVad())
    assert not utterances(segmenter.push(ms((False, 200), (True, 500), (False, 380))))
    assert utterances(segmenter.push(ms((False, 20))))


def test_speech_that_comes_back_just_in_time_holds_the_utterance_open() -> None:
    (utterance,) = utterances(run(ms((True, 300), (False, 380), (True, 300), (False, 600)), OPTIONS))
    assert utterance.speech_samples == 600 * MS
    first, _ = utterances(run(ms((True, 300), (False, 400), (True, 300), (False, 600)), OPTIONS))
    assert first.end == 500 * MS
    # A burst too short to be speech has only put the decision off.
    (utterance,) = utterances(run(ms((True, 300), (False, 380), (True, 40), (False, 600)), OPTIONS))
    assert utterance.end == 500 * MS


def test_pre_roll_never_reaches_into_the_utterance_before() -> None:
    first, second = utterances(run(ms((True, 300), (False, 420), (True, 300), (False, 600)), OPTIONS))
    assert first.end == 500 * MS
    assert second.start == 620 * MS
    options = EndpointingOptions(min_speech_ms=100, utterance_end_silence_ms=400, pre_roll_ms=400, hang_over_ms=200)
    first, second = utterances(run(ms((True, 300), (False, 420), (True, 300), (False, 600)), options))
    assert (first.end, second.start) == (500 * MS, 500 * MS)


def test_a_click_is_no_utterance_and_a_stray_frame_does_not_hold_one_open() -> None:
    assert not utterances(run(ms((False, 300), (True, 80), (False, 1_000)), OPTIONS))
    stray = ms((True, 300), (False, 200), (True, 40), (False, 160), (False, 600))
    (utterance,) = utterances(run(stray, OPTIONS))
    assert utterance.end == 500 * MS
    interrupted = ms((True, 300), (False, 200), (True, 60), (False, 160), (False, 600))
    (utterance,) = utterances(run(interrupted, OPTIONS))
    assert (utterance.end, utterance.speech_samples) == (760 * MS, 360 * MS)


def test_hesitant_speech_starts_an_utterance_at_its_first_frame() -> None:
    stutter = ms((False, 200), (True, 60), (False, 60), (True, 60), (False, 600))
    events = run(stutter, OPTIONS)
    assert (SpeechBegin, 200 * MS) in moved(events)
    assert utterances(events)[0].start == 100 * MS


def test_endless_speech_is_cut_without_a_gap() -> None:
    audio = ms((False, 200), (True, 9_000))
    events = run(audio, OPTIONS)
    found = utterances(events)
    assert [u.reason for u in found] == [EndReason.MAX_DURATION] * 4 + [EndReason.HALF_CLOSE]
    assert found[0].start == 100 * MS
    assert all(a.end == b.start for a, b in pairwise(found))
    assert all(u.end - u.start == 2_000 * MS for u in found[:-1])
    assert found[-1].end == len(audio)
    assert sum(u.speech_samples for u in found) == 9_000 * MS
    assert [type(e) for e in events if not isinstance(e, SpeechSegment)] == [SpeechBegin, SpeechEnd]


@pytest.mark.parametrize("end", ["silence", "flush in speech", "flush in a pause"])
def test_no_utterance_is_longer_than_the_longest_not_even_by_part_of_a_frame(end: str) -> None:
    options = EndpointingOptions(max_utterance_ms=1_000, utterance_end_silence_ms=300, pre_roll_ms=30, hang_over_ms=300)
    segmenter = Segmenter(options, FakeVad())
    spoken = 960 if end == "flush in speech" else 680 if end == "silence" else 800
    audio = ms((False, 100), (True, spoken), (False, 980 - spoken))  # starts at 70 ms: the maximum is at 1,070
    events = segmenter.push(audio if end == "silence" else audio[: 1_079 * MS])
    events += segmenter.flush(EndReason.HALF_CLOSE)
    (utterance,) = utterances(events)
    assert (utterance.start, utterance.end) == (70 * MS, 1_070 * MS)
    assert utterance.reason is (EndReason.SILENCE if end == "silence" else EndReason.HALF_CLOSE)
    assert utterance.speech_samples == (970 if end == "flush in speech" else spoken) * MS


def test_speech_that_takes_longer_than_the_longest_utterance_to_be_certain_of() -> None:
    """What was cut off counts for the next; a pre-roll that fills the longest utterance is none."""
    stutter = ms((False, 1_000), *[(True, 60), (False, 40)] * 30, (False, 1_000))
    for pre_roll_ms in (0, 1_000):
        options = EndpointingOptions(max_utterance_ms=1_000, min_speech_ms=1_000, pre_roll_ms=pre_roll_ms)
        found = utterances(run(stutter, options))
        assert found[0].start == 1_000 * MS
        assert found[0].speech_samples == 600 * MS
        assert all(0 < u.speech_samples <= u.end - u.start for u in found)
        assert all(a.end == b.start for a, b in pairwise(found))


def test_a_forced_cut_prefers_the_longest_late_pause() -> None:
    pauses = ms((True, 600), (False, 300), (True, 700), (False, 100), (True, 100), (False, 60), (True, 900))
    first, second, *_ = utterances(run(pauses, OPTIONS))
    assert first.reason is EndReason.MAX_DURATION
    assert first.end == second.start == 1_650 * MS  # the middle of the pause at 1600..1700; the one at 600 is early
    assert first.speech_samples == 1_300 * MS


def test_a_word_left_over_after_a_cut_is_kept_however_short() -> None:
    audio = ms((True, 2_040), (False, 1_000))
    first, rest = utterances(run(audio, OPTIONS))
    assert (first.end, rest.start, rest.end) == (2_000 * MS, 2_000 * MS, 2_240 * MS)
    assert rest.speech_samples == 40 * MS  # far below min_speech, but it belongs to what was being said


def test_silence_after_a_cut_is_no_utterance_but_speech_has_ended() -> None:
    audio = ms((True, 2_000), (False, 1_000))
    events = run(audio, OPTIONS)
    (utterance,) = utterances(events)
    assert (utterance.end, utterance.reason) == (2_000 * MS, EndReason.MAX_DURATION)
    assert (SpeechEnd, 2_000 * MS) in moved(events)


def test_flush_closes_at_the_latest_sample_and_the_next_turn_is_fresh() -> None:
    segmenter = Segmenter(OPTIONS, FakeVad())
    audio = ms((False, 400), (True, 400))[:-100]  # ends within a frame
    segmenter.push(audio)
    (utterance,) = utterances(segmenter.flush(EndReason.CLIENT_END_OF_TURN))
    assert (utterance.start, utterance.end) == (300 * MS, len(audio))
    assert utterance.speech_samples == 400 * MS - 100
    assert utterance.reason is EndReason.CLIENT_END_OF_TURN
    assert segmenter.flush(EndReason.CLIENT_END_OF_TURN) == []
    following = ms((False, 700), (True, 400), (False, 1_500))
    fresh = Segmenter(OPTIONS, FakeVad())
    expected = moved(fresh.push(following), len(audio))
    assert moved(segmenter.push(following)) == expected


def test_flush_in_a_pause_keeps_the_hang_over_only() -> None:
    segmenter = Segmenter(OPTIONS, FakeVad())
    segmenter.push(ms((True, 400), (False, 300)))
    (utterance,) = utterances(segmenter.flush(EndReason.HALF_CLOSE))
    assert utterance.end == 600 * MS


def test_flush_of_too_little_speech_gives_nothing() -> None:
    segmenter = Segmenter(OPTIONS, FakeVad())
    segmenter.push(ms((False, 200), (True, 80)))
    assert segmenter.flush(EndReason.HALF_CLOSE) == []


def test_turn_timers() -> None:
    audio = ms((False, 1_300), (True, 300), (False, 2_500))
    assert [e for e in moved(run(audio, OPTIONS)) if e[0] in (NoSpeechTimeout, TurnSilence)] == [
        (NoSpeechTimeout, 600 * MS),  # once only
        (TurnSilence, 2_400 * MS),  # 800 ms after the last speech
        (NoSpeechTimeout, 3_000 * MS),  # in the turn that began there
    ]
    without = EndpointingOptions()
    assert not [e for e in run(audio, without) if isinstance(e, NoSpeechTimeout | TurnSilence)]


def test_a_turn_that_ends_with_its_utterance_ends_after_it_and_before_what_follows() -> None:
    options = EndpointingOptions(
        min_speech_ms=100, utterance_end_silence_ms=400, end_of_turn_silence_ms=400, pre_roll_ms=100, hang_over_ms=200
    )
    burst = ms((True, 300), (False, 380), (True, 40), (False, 1_000))
    events = moved(run(burst, options))
    assert [e[0] for e in events] == [SpeechBegin, SpeechEnd, 0, TurnSilence]
    assert events[-1] == (TurnSilence, (720 + 100) * MS)  # put off by the burst until that was forgotten


def test_speech_in_time_prevents_the_turns_end() -> None:
    audio = ms((True, 300), (False, 700), (True, 300), (False, 700), (True, 300), (False, 760))
    assert not [e for e in run(audio, OPTIONS) if isinstance(e, TurnSilence)]


def test_the_open_utterance_can_be_read_while_it_is_spoken() -> None:
    audio = ms((False, 500), (True, 900), (False, 600))
    segmenter = Segmenter(OPTIONS, FakeVad())
    readings: list[Samples] = []
    for position in range(0, len(audio), FRAME):
        events = segmenter.push(audio[position : position + FRAME])
        if segmenter.open_start is not None:
            assert segmenter.open_start == 400 * MS
            readings.append(segmenter.open_audio(segmenter.position))
        if utterances(events):
            break
    (utterance,) = utterances(events)
    assert segmenter.open_start is None
    assert len(readings[0]) == 200 * MS  # certain after 100 ms of speech, 100 ms of pre-roll before
    assert all((reading == audio[400 * MS :][: len(reading)]).all() for reading in readings)
    assert len(readings[-1]) > len(utterance.audio) > len(readings[0])
    with pytest.raises(ValueError, match="no open utterance"):
        segmenter.open_audio(segmenter.position)


def test_reading_outside_the_open_utterance_is_refused() -> None:
    segmenter = Segmenter(OPTIONS, FakeVad())
    segmenter.push(ms((False, 500), (True, 900)))
    for until in (399 * MS, segmenter.position + 1):
        with pytest.raises(ValueError, match="no open utterance"):
            segmenter.open_audio(until)


@pytest.mark.parametrize("speech", [True, False])
def test_memory_stays_flat_for_ten_minutes(speech: bool) -> None:
    piece = ms((speech, 10_000))
    segmenter = Segmenter(EndpointingOptions(max_utterance_ms=10_000), FakeVad())
    segmenter.push(piece)
    segmenter.push(piece)
    tracemalloc.start()
    for _ in range(58):
        segmenter.push(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Endless speech: the buffer (twice the utterance, and its successor while it moves) and the utterances of one push.
    assert peak < (6 if speech else 0.1) * 10 * 16_000 * 4


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("vad_aggressiveness", (-1, 4)),
        ("min_speech_ms", (-1, 2_001)),
        ("utterance_end_silence_ms", (99, 10_001)),
        ("max_utterance_ms", (999, 60_001)),
        ("end_of_turn_silence_ms", (99, 499, 600_001)),
        ("speech_start_timeout_ms", (99, 600_001)),
        ("pre_roll_ms", (-1, 1_001)),
        ("hang_over_ms", (-1, 1_001)),
    ],
)
def test_options_out_of_range_are_refused_by_name(field: str, values: tuple[int, ...]) -> None:
    for value in values:
        with pytest.raises(EndpointingError) as caught:
            EndpointingOptions(**{field: value})
        assert caught.value.field == field
        assert str(value) in str(caught.value)
