"""The segmenter: any sound in any blocks, turns ended anywhere."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tests.fuzz.fuzzing import Bytes, fuzz, instrumented
from tests.support.scripted import LoudnessVad

with instrumented(__name__):
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
    from kibun.server.audio.segmenter import Segmenter
    from kibun.server.audio.vad_webrtc import WebRtcVad

FLUSHES = (EndReason.CLIENT_END_OF_TURN, EndReason.HALF_CLOSE)
MAX_SAMPLES = 5 * 16_000
STEP_MS = 10


@dataclass(frozen=True)
class Setup:
    options: EndpointingOptions
    webrtc: bool

    def segmenter(self, after: EndReason | None = None) -> Segmenter:
        vad = WebRtcVad(self.options.vad_aggressiveness) if self.webrtc else LoudnessVad()
        return Segmenter(self.options, vad, resume_after=after)


def check(data: bytes) -> None:
    """Bytes: options, number of flushes and where, block sizes, sound."""
    source = Bytes(data)
    setup = Setup(options_of(source), source.bit())
    flushes = sorted(source.number(0, MAX_SAMPLES) for _ in range(source.number(0, 3)))
    blocks = [source.number(0, 9_000) for _ in range(source.number(0, 15))]
    sound = sound_of(source)
    ends = [min(at, len(sound)) for at in flushes] + [len(sound)]
    whole = run(setup, sound, ends, [len(sound)])
    parts = run(setup, sound, ends, blocks)
    assert list(map(comparable, whole)) == list(map(comparable, parts)), "the blocks make no difference"
    check_utterances(setup.options, sound, whole)
    check_resume(setup, sound, ends[0], whole)


def run(setup: Setup, sound: np.ndarray, ends: list[int], blocks: list[int]) -> list[SegmenterEvent]:
    """All events; a turn is flushed at each of `ends`."""
    segmenter = setup.segmenter()
    events: list[SegmenterEvent] = []
    at = settled = 0
    sizes = iter(blocks)
    for number, end in enumerate(ends):
        while at < end:
            until = min(at + next(sizes, MAX_SAMPLES), end)
            events += segmenter.push(sound[at:until])
            at = until
            assert segmenter.position == at
            assert settled <= segmenter.needed_from <= at
            settled = segmenter.needed_from
            if segmenter.open_start is not None:
                assert np.array_equal(segmenter.open_audio(at), sound[segmenter.open_start : at])
        events += segmenter.flush(FLUSHES[number == len(ends) - 1])
        assert segmenter.needed_from == at, "nothing is open after a flush"
        settled = at
    return events


def check_utterances(options: EndpointingOptions, sound: np.ndarray, events: list[SegmenterEvent]) -> None:
    """They partition the sound with what lies between them."""
    before = 0
    for event in events:
        match event:
            case SpeechSegment():
                assert before <= event.start < event.end <= len(sound)
                assert np.array_equal(event.audio, sound[event.start : event.end])
                assert 0 < event.speech_samples <= event.end - event.start
                assert event.end - event.start <= options.max_utterance_ms * 16
                before = event.end
            case SpeechBegin() | SpeechEnd() | NoSpeechTimeout() | TurnSilence():
                assert 0 <= event.position <= len(sound)


def check_resume(setup: Setup, sound: np.ndarray, end: int, events: list[SegmenterEvent]) -> None:
    """A client that lost its connection goes on from the end of an utterance and gets the same ones."""
    first = [e for e in events if isinstance(e, SpeechSegment) and e.end <= end and e.reason not in FLUSHES]
    for utterance in first[:2]:
        again = run_on(setup, sound[utterance.end : end], utterance.reason)
        rest = [e for e in events if isinstance(e, SpeechSegment) and utterance.end <= e.start and e.end <= end]
        assert [comparable(e) for e in rest] == [comparable(moved(e, utterance.end)) for e in again]


def run_on(setup: Setup, sound: np.ndarray, after: EndReason) -> list[SpeechSegment]:
    segmenter = setup.segmenter(after)
    events = segmenter.push(sound) + segmenter.flush(EndReason.CLIENT_END_OF_TURN)
    return [e for e in events if isinstance(e, SpeechSegment)]


def moved(utterance: SpeechSegment, by: int) -> SpeechSegment:
    return replace(utterance, start=utterance.start + by, end=utterance.end + by)


def comparable(event: SegmenterEvent) -> tuple[object, ...]:
    """What can be compared; reasons of flushes are the caller's own."""
    if isinstance(event, SpeechSegment):
        reason = "flush" if event.reason in FLUSHES else event.reason.value
        return event.start, event.end, event.audio.tobytes(), event.speech_samples, reason
    return type(event).__name__, event.position


def options_of(source: Bytes) -> EndpointingOptions:
    """Any that are allowed."""
    silence_ms = source.number(10, 100) * STEP_MS
    values: dict[str, int | None] = {
        "vad_aggressiveness": source.number(0, 3),
        "min_speech_ms": source.number(0, 40) * STEP_MS,
        "utterance_end_silence_ms": silence_ms,
        "max_utterance_ms": source.number(100, 355) * STEP_MS,
        "pre_roll_ms": source.number(0, 100) * STEP_MS,
        "hang_over_ms": source.number(0, 100) * STEP_MS,
        "end_of_turn_silence_ms": silence_ms + source.number(0, 150) * STEP_MS if source.bit() else None,
        "speech_start_timeout_ms": source.number(10, 200) * STEP_MS if source.bit() else None,
    }
    return EndpointingOptions(**values)  # type: ignore[arg-type]


def sound_of(source: Bytes) -> np.ndarray:
    """float32 (n,): stretches of silence, noise, tones, and of the bytes themselves as samples."""
    parts: list[np.ndarray] = []
    total = 0
    random = np.random.default_rng(len(source))
    while len(source) and total < MAX_SAMPLES:
        kind, length = source.number(0, 5), source.number(1, 255) * 160
        if kind == 0:
            part = np.zeros(length)
        elif kind == 1:
            part = 0.001 * random.standard_normal(length)
        elif kind == 2:
            part = 0.3 * random.standard_normal(length)
        elif kind == 3:
            part = 0.5 * np.sign(np.sin(2 * np.pi * source.number(80, 335) / 16_000 * np.arange(length)))
        elif kind == 4:
            part = np.full(length, source.number(-127, 127) / 127)
        else:
            raw = source.take(length // 16)
            part = np.repeat(np.frombuffer(raw, np.int8) / 128, source.number(1, 64))
        parts.append(part.clip(-1, 1).astype(np.float32))
        total += len(part)
    return np.concatenate([np.empty(0, np.float32), *parts])[:MAX_SAMPLES]


def seeds() -> Iterable[bytes]:
    quiet, noise, loud = bytes([0, 60]), bytes([1, 80]), bytes([2, 120])
    speech = b"".join(bytes([3, 12, pitch, 0, 3]) for pitch in (40, 60, 50, 80, 45, 70))
    for webrtc in (0, 1):
        for sound in (quiet + speech + quiet * 3, loud * 5, noise + speech * 4 + noise, speech + quiet + speech):
            for flushes in (b"\x00", b"\x02\x40\x00\x80\x00"):
                options = bytes([2, 12, 40, 0, 30, 30, 1, 90, 1, 50])
                yield options + bytes([webrtc]) + flushes + bytes([4, 3, 232, 0, 7, 1, 65, 8, 0]) + sound


if __name__ == "__main__":
    fuzz(check, seeds())
