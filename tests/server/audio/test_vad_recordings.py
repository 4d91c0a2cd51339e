"""The default detector on recorded conversations whose speech people have marked, and on what is not speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kibun.bench.accuracy import conversations, detection, sounds
from kibun.bench.accuracy.voices import recorded_voices
from kibun.server.audio.endpointing import EndpointingOptions, EndReason, SpeechSegment
from kibun.server.audio.segmenter import Segmenter
from kibun.server.audio.vad import SileroVad, WebRtcVad
from tests.support.detection import moved


def test_recorded_conversations_are_told_from_the_room_around_them(shared_data: Path) -> None:
    """Utterances as clients get them: pre-roll, hang-over and the pauses within are in the figures."""
    folder = shared_data / "conversation"
    if not folder.is_dir():
        pytest.skip(f"no such folder: {folder}")
    found = conversations.measure(
        conversations.read(folder), {"silero": SileroVad, "webrtc": WebRtcVad}, EndpointingOptions()
    )
    assert found["silero"]["lost_percent"] <= 6
    assert found["silero"]["taken_percent"] <= 10
    assert found["silero"]["decided_ms_p95"] <= 800
    assert found["webrtc"]["taken_percent"] > 3 * found["silero"]["taken_percent"], "why it is not the default"


@pytest.mark.parametrize("name", ["knocks", "key taps", "thuds, 120 Hz", "beeps, 1 kHz", "breath", "music, plucked"])
def test_what_is_not_speech_is_no_utterance(name: str) -> None:
    scene = sounds.scenes(events=10)[name]
    assert conversations.utterances(scene, SileroVad(), EndpointingOptions()) == []


def test_quiet_speech_is_heard_in_noise_that_is_nearly_as_loud(shared_data: Path) -> None:
    """Of these nine phrases the network alone misses three."""
    path = shared_data / "speech"
    if not path.is_dir():
        pytest.skip(f"no such folder: {path}")
    (scene,) = detection.scenes_of(("", -46, "pink", 10), recorded_voices([path]), 25)
    score = detection.DetectionScore()
    score.add_utterances(scene, SileroVad(), EndpointingOptions())
    assert score.phrases >= 8
    assert score.missed_phrases <= 1  # of 0.4 s


def test_a_conversation_resumed_where_it_was_settled_gives_the_same(shared_data: Path) -> None:
    """With the recurrent detector's state, over real pauses, with an offset, in chunks of any size."""
    path = shared_data / "conversation" / "trn08.flac"
    if not path.exists():
        pytest.skip(f"no such file: {path}")
    (heard,) = (c for c in conversations.read(path.parent) if c.name == "trn08")
    audio, rng = heard.audio + np.float32(0.05), np.random.default_rng(0)
    undisturbed, events, settled, position = Segmenter(EndpointingOptions(), SileroVad()), [], {0}, 0
    while position < len(audio):
        size = int(rng.integers(1, 4_000))
        events += undisturbed.push(audio[position : position + size])
        position += size
        settled.add(undisturbed.settled)
    assert len(settled) > 5
    for origin in settled:
        after = next((e.reason for e in events if isinstance(e, SpeechSegment) and e.end == origin), None)
        replay = Segmenter(EndpointingOptions(), SileroVad(), after)
        missing = [e for e in events if (e.start if isinstance(e, SpeechSegment) else e.position) >= origin]
        assert moved(replay.push(audio[origin:]), origin) == moved(missing)
    assert undisturbed.flush(EndReason.HALF_CLOSE) is not None


def test_the_network_gives_the_same_bits_in_any_pieces_and_runs() -> None:
    sound = np.random.default_rng(2).standard_normal((60, SileroVad.frame_samples)).astype(np.float32) * 0.1
    outputs = []
    for pieces in (60, 1, 7, 60):
        vad = SileroVad()
        for begin in range(0, 60, pieces):
            vad.decide(sound[begin : begin + pieces])
        outputs.append(vad._hidden.tobytes() + vad._cell.tobytes())
    assert len(set(outputs)) == 1


@pytest.mark.parametrize("offset", [0.1, -0.3])
def test_an_offset_makes_no_step_and_no_speech(offset: float) -> None:
    quiet = np.random.default_rng(3).standard_normal(10 * 16_000).astype(np.float32) * 1e-4 + np.float32(offset)
    for vad in (SileroVad(), WebRtcVad()):
        assert conversations.utterances(quiet, vad, EndpointingOptions()) == []
