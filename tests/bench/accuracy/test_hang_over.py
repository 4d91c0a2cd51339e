"""The parts of `kibun bench hang-over`: what counts as cut off, and as spoken on. No figure is tested."""

import numpy as np
import pytest
from typer.testing import CliRunner

from kibun.bench.accuracy.hang_over import Ends, in_a_room, segments
from kibun.bench.commands import bench_app
from kibun.bench.support.speech_like import lay_out, speech_like
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.vad import make_vad

SCENE = lay_out([("silence", 0.5), ("speech", 1.0), ("silence", 0.35), ("speech", 1.0), ("silence", 1.2)])


@pytest.mark.parametrize(("hang_over_ms", "spoken_on"), [(0, 1), (200, 1), (300, 0), (400, 0)])
def test_somebody_goes_on_after_a_pause_longer_than_the_hang_over(hang_over_ms: int, spoken_on: int) -> None:
    options = EndpointingOptions(hang_over_ms=hang_over_ms)
    found, counted = segments(SCENE.audio, make_vad("webrtc", 2), options)
    assert len(found) == 1
    assert counted == spoken_on


def test_an_end_that_the_stream_cuts_off_is_none_that_somebody_spoke_on_after() -> None:
    until = SCENE.speech[0][1] + 320 * 16
    found, counted = segments(SCENE.audio[:until], make_vad("webrtc", 2), EndpointingOptions(hang_over_ms=200))
    assert (len(found), counted) == (1, 0)


def test_speech_after_the_end_of_its_utterance_is_cut_off() -> None:
    found, _ = segments(SCENE.audio, make_vad("webrtc", 2), EndpointingOptions())
    (segment,) = found
    ends = Ends()
    ends.add(len(SCENE.audio), [(segment.start + 100, segment.end + 160 * 16)], found, 1)
    ends.add(len(SCENE.audio), [(segment.start + 100, segment.end)], found, 0)
    figures = ends.summary(200, 500)
    assert (figures["cut_share"], figures["cut_ms_max"], figures["head_start_ms"]) == (0.5, 160.0, 300)
    assert (figures["ended"], figures["spoken_on"], figures["spoken_on_share"]) == (2, 1, round(1 / 3, 4))


def test_a_clip_stands_in_a_room_as_noisy_as_itself() -> None:
    rng = np.random.default_rng(0)
    quiet = rng.standard_normal(8_000).astype(np.float32) * np.float32(1e-4)
    clip = np.concatenate([quiet, speech_like(1.0), quiet])
    audio, (start, end) = in_a_room(clip, seed=1)
    room = (len(audio) - len(clip)) // 2
    assert audio[room : room + len(clip)].tolist() == clip.tolist()
    assert abs(start - room - 8_000) < 400
    assert abs(end - room - 24_000) < 400
    assert 0.8e-4 < audio[:room].std() < 1.2e-4


def test_nothing_to_measure_is_told() -> None:
    done = CliRunner().invoke(bench_app, ["hang-over"])
    assert done.exit_code == 2
    assert "--conversations" in done.stderr
