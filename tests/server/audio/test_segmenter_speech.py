"""Decoder, VAD and segmenter together, on sound with known boundaries and on the two recordings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.bench.support.speech_like import Layout, lay_out
from kibun.server.audio.decoder import AudioDecoder, AudioFormat, Encoding
from kibun.server.audio.endpointing import EndpointingOptions, EndReason, SegmenterEvent, SpeechSegment
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import SileroVad, Vad, WebRtcVad, make_vad
from tests.support.detection import moved

RATE = 16_000
Samples = npt.NDArray[np.float32]


VADS = [
    *(pytest.param(lambda a=a: WebRtcVad(a), id=f"webrtc-{a}") for a in (2, 3)),
    pytest.param(SileroVad, id="silero"),
]
#: Generated speech is not speech to Silero at every pitch: it is found whole where little is asked for.
FOR_GENERATED = [*VADS[:2], pytest.param(lambda: make_vad("silero", 1), id="silero-1")]


@cache
def dialogue(f0: float = 120, seed: int = 0) -> Layout:
    """Five stretches of speech, 0.4 to 2.5 s, with pauses from 0.9 to 1.8 s."""
    parts: list[tuple[Literal["silence", "speech"], float]] = [("silence", 1.0)]
    for speech, silence in ((2.0, 0.9), (0.4, 1.8), (1.2, 1.0), (2.5, 1.3), (0.7, 1.2)):
        parts += [("speech", speech), ("silence", silence)]
    return lay_out(parts, RATE, f0, seed)


def listen(vad: Vad, audio: Samples, options: EndpointingOptions | None = None) -> list[SegmenterEvent]:
    segmenter = Segmenter(options or EndpointingOptions(), vad)
    return segmenter.push(audio) + segmenter.flush(EndReason.HALF_CLOSE)


def spans(events: list[SegmenterEvent]) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in events if isinstance(event, SpeechSegment)]


def assert_found(found: list[tuple[int, int]], truth: tuple[tuple[int, int], ...], cut_ms: int = 0) -> None:
    """One utterance per stretch of speech: at most `cut_ms` of it missing, at most 0.6 s around it."""
    assert len(found) == len(truth)
    for (start, end), (first, last) in zip(found, truth, strict=True):
        assert first - 9_600 <= start <= first + cut_ms * 16
        assert last - cut_ms * 16 <= end <= last + 9_600


@pytest.mark.parametrize("make", FOR_GENERATED)
@pytest.mark.parametrize("f0", [100, 220])
def test_speech_in_quiet_is_found_whole(make: Callable[[], Vad], f0: float) -> None:
    layout = dialogue(f0)
    assert_found(spans(listen(make(), layout.audio)), layout.speech)


def noise_at(layout: Layout, snr_db: float, seed: int = 0) -> Samples:
    speech = np.concatenate([layout.audio[a:b] for a, b in layout.speech])
    level = float(np.sqrt(np.mean(speech**2))) * 10 ** (-snr_db / 20)
    noise = np.random.default_rng(seed).standard_normal(len(layout.audio)) * level
    return (layout.audio + noise).astype(np.float32)


@pytest.mark.parametrize("make", FOR_GENERATED)
@pytest.mark.parametrize("snr_db", [20, 10])
def test_speech_in_white_noise_is_found(make: Callable[[], Vad], snr_db: float) -> None:
    layout = dialogue()
    assert_found(spans(listen(make(), noise_at(layout, snr_db))), layout.speech, cut_ms=30)


def test_a_spoken_turn_survives_a_telephone() -> None:
    layout = lay_out([("silence", 1.0), ("speech", 1.5), ("silence", 1.0)], rate=8_000)
    codes = np.argmin(np.abs(layout.audio[:, None] - _mulaw_values()), axis=1).astype(np.uint8)
    decoder = AudioDecoder(AudioFormat("mulaw", 8_000))
    audio = np.concatenate([decoder.decode(codes.tobytes()), decoder.flush()])
    assert_found(spans(listen(WebRtcVad(2), audio)), ((RATE, 40_000),))


def _mulaw_values() -> Samples:
    decoder = AudioDecoder(AudioFormat("mulaw", RATE))
    return np.concatenate([decoder.decode(bytes(range(256))), decoder.flush()])


@settings(max_examples=12)
@given(
    encoding_and_rate=st.sampled_from([("linear16", 16_000), ("float32", 44_100), ("linear16", 11_025)]),
    sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=6).filter(lambda sizes: max(sizes) > 200),
)
def test_bytes_in_any_chunking_become_the_same_utterances(
    encoding_and_rate: tuple[Encoding, int], sizes: list[int]
) -> None:
    encoding, rate = encoding_and_rate
    source = lay_out([("silence", 0.4), ("speech", 0.8), ("silence", 0.7), ("speech", 0.5)], rate).audio
    data = source.tobytes() if encoding == "float32" else (source * 32_767).astype("<i2").tobytes()
    whole = _utterances_of(data, [len(data)], encoding, rate)
    assert len(whole) == 2
    assert _utterances_of(data, sizes, encoding, rate) == whole


def _utterances_of(data: bytes, sizes: list[int], encoding: Encoding, rate: int) -> list[tuple[int, int, bytes]]:
    decoder, segmenter = AudioDecoder(AudioFormat(encoding, rate)), Segmenter(EndpointingOptions(), WebRtcVad(2))
    events: list[SegmenterEvent] = []
    position, index = 0, 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        events += segmenter.push(decoder.decode(data[position : position + size]))
        position, index = position + size, index + 1
    events += segmenter.push(decoder.flush()) + segmenter.flush(EndReason.HALF_CLOSE)
    return [(e.start, e.end, e.audio.tobytes()) for e in events if isinstance(e, SpeechSegment)]


@pytest.mark.parametrize("make", VADS)
@pytest.mark.parametrize("snr_db", [60, 20])
def test_a_replay_from_an_utterances_end_gives_what_followed(make: Callable[[], Vad], snr_db: float) -> None:
    audio = noise_at(dialogue(), snr_db)
    options = EndpointingOptions(max_utterance_ms=1_500, end_of_turn_silence_ms=900, speech_start_timeout_ms=800)
    events = listen(make(), audio, options)
    reasons = set()
    for index, event in enumerate(events):
        if isinstance(event, SpeechSegment) and event.reason is not EndReason.HALF_CLOSE:
            segmenter = Segmenter(options, make(), resume_after=event.reason)
            again = segmenter.push(audio[event.end :]) + segmenter.flush(EndReason.HALF_CLOSE)
            assert moved(again, event.end) == moved(events[index + 1 :], 0)
            reasons.add(event.reason)
    assert reasons == {EndReason.SILENCE, EndReason.MAX_DURATION}


# The phrases in seconds, read off the waveforms' energy. Under jfk.flac lies a hall's murmur, 30 dB below the voice.
JFK = ((0.33, 2.17), (3.29, 3.71), (3.98, 4.42), (5.32, 7.68), (8.19, 10.3))
LJ = ((0.01, 1.83), (2.23, 4.07), (4.42, 5.92), (6.54, 7.54))


def recording(path: Path) -> Samples:
    data, rate = soundfile.read(path, dtype="float32", always_2d=True)
    decoder = AudioDecoder(AudioFormat("float32", rate))
    return np.concatenate([decoder.decode(data.mean(axis=1).astype("<f4").tobytes()), decoder.flush()])


@pytest.mark.parametrize("make", VADS)
@pytest.mark.parametrize(("name", "phrases"), [("jfk.flac", JFK), ("lj050-0131.wav", LJ)])
def test_recordings_lose_no_speech(
    shared_data: Path, name: str, phrases: tuple[tuple[float, float], ...], make: Callable[[], Vad]
) -> None:
    audio = recording(shared_data / "speech" / name)
    covered = np.zeros(len(audio), bool)
    for start, end in spans(listen(make(), audio)):
        covered[start:end] = True
    for first, last in phrases:
        assert covered[round(first * RATE) : round(last * RATE)].all()


@pytest.mark.parametrize(
    ("name", "first", "last", "utterances"),
    [
        # 1.1, 0.9 and 0.5 s of murmur between; "ask not" is one utterance.
        ("jfk.flac", (0.33, 3.29, 5.32, 8.19), (2.17, 4.42, 7.68, 11.0), 4),
        # Of its pauses only the last, 0.6 s, is longer than the half second that closes an utterance.
        ("lj050-0131.wav", (0.01, 6.54), (5.92, 7.66), 2),
    ],
)
def test_recordings_are_cut_at_their_pauses(
    shared_data: Path, name: str, first: tuple[float, ...], last: tuple[float, ...], utterances: int
) -> None:
    found = spans(listen(SileroVad(), recording(shared_data / "speech" / name)))
    assert len(found) == utterances
    for (start, end), begin, stop in zip(found, first, last, strict=True):
        assert begin - 0.5 <= start / RATE <= begin
        assert stop - 0.25 <= end / RATE <= stop + 0.55


@pytest.mark.parametrize("level_db", [-40, -20, 6])
@pytest.mark.parametrize("offset", [0.0, 0.1, -0.1])
def test_neither_level_nor_a_constant_offset_loses_speech(shared_data: Path, level_db: float, offset: float) -> None:
    audio = recording(shared_data / "speech" / "lj050-0131.wav") * np.float32(10 ** (level_db / 20))
    found = spans(listen(SileroVad(), np.clip(audio + np.float32(offset), -1, 1)))
    assert found == (spans(listen(SileroVad(), np.clip(audio, -1, 1))))
    for first, last in LJ:
        assert any(start <= first * RATE and last * RATE <= end for start, end in found)


def test_an_utterance_is_given_out_soon_after_its_last_sound(shared_data: Path) -> None:
    audio = recording(shared_data / "speech" / "lj050-0131.wav")
    segmenter = Segmenter(EndpointingOptions(), SileroVad())
    given: list[int] = []
    for position in range(0, len(audio), 160):
        events = segmenter.push(audio[position : position + 160])
        given += [segmenter.position for event in events if isinstance(event, SpeechSegment)]
    # 500 ms of silence and a frame; not much of the detector's own hang-over may come on top.
    assert given[0] <= (LJ[2][1] + 0.66) * RATE


def test_noise_that_sets_in_for_good_is_speech_for_a_few_seconds_only() -> None:
    """A fan is switched on."""
    noise = np.random.default_rng(1).standard_normal(30 * RATE) * 0.05
    noise[: 3 * RATE] *= 0.01
    found = spans(listen(SileroVad(), noise.astype(np.float32)))
    assert len(found) <= 1
    assert all(end < 10 * RATE for _, end in found)
