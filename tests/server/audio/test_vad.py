"""Both detectors tell speech from silence; their state belongs to one stream; `reset` makes them as new."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kibun.bench.support.speech_like import lay_out, speech_like
from kibun.server.audio import vad_silero
from kibun.server.audio.vad import SILERO_THRESHOLDS, SileroVad, Vad, VadName, WebRtcVad, make_vad

Samples = npt.NDArray[np.float32]


VADS = [
    *(pytest.param(lambda a=a, f=f: WebRtcVad(a, f), id=f"webrtc-{a}-{f}ms") for a in (2, 3) for f in (10, 20, 30)),
    pytest.param(SileroVad, id="silero"),
]


def decisions(vad: Vad, audio: Samples) -> list[bool]:
    size = vad.frame_samples
    return vad.decide(audio[: len(audio) // size * size].reshape(-1, size))


@pytest.mark.parametrize("make", VADS)
def test_speech_is_detected_and_silence_is_not(make: Callable[[], Vad]) -> None:
    layout = lay_out([("silence", 1.0), ("speech", 2.0), ("silence", 1.5)])
    vad = make()
    heard = np.array(decisions(vad, layout.audio))
    frames = np.arange(len(heard)) * vad.frame_samples / 16_000
    assert heard[(frames >= 1.1) & (frames < 2.9)].mean() >= 0.9
    assert not heard[frames < 0.95].any()
    assert not heard[frames > 3.35].any()  # the detectors' own hang-over is within 350 ms


@pytest.mark.parametrize("f0", [90, 200, 260])
def test_high_and_low_voices_are_detected(f0: float) -> None:
    audio = speech_like(3.0, f0=f0, seed=1)
    assert np.mean(decisions(make_vad("webrtc", 2), audio)) > 0.95
    assert np.mean(decisions(SileroVad(), audio)) > 0.9


@pytest.mark.parametrize("make", VADS)
def test_reset_makes_a_detector_as_new(make: Callable[[], Vad]) -> None:
    layout = lay_out([("silence", 0.5), ("speech", 1.0), ("silence", 0.5)], noise_rms=0.01)
    vad = make()
    first = decisions(vad, layout.audio)
    decisions(vad, np.random.default_rng(5).standard_normal(32_000).astype(np.float32) * 0.3)
    vad.reset()
    assert decisions(vad, layout.audio) == first


@pytest.mark.parametrize("make", VADS)
def test_streams_do_not_disturb_each_other(make: Callable[[], Vad]) -> None:
    speech = lay_out([("silence", 0.4), ("speech", 1.0), ("silence", 0.6)], noise_rms=0.01).audio
    noise = np.random.default_rng(6).standard_normal(len(speech)).astype(np.float32) * 0.2
    alone = decisions(make(), speech)
    one, other = make(), make()
    size, beside = one.frame_samples, []
    for i in range(0, len(speech) - size + 1, size):
        beside += one.decide(speech[None, i : i + size])
        other.decide(noise[None, i : i + size])
    assert beside == alone


@pytest.mark.parametrize("make", VADS)
def test_frames_decided_together_or_one_by_one_give_the_same(make: Callable[[], Vad]) -> None:
    audio = lay_out([("silence", 0.4), ("speech", 0.8), ("silence", 0.6)], noise_rms=0.01, seed=3).audio
    vad = make()
    size, rng, by_pieces, begin = vad.frame_samples, np.random.default_rng(7), [], 0
    while begin < len(audio) // size:
        count = int(rng.integers(1, 9))
        shifted = np.empty(count * size + 1, np.float32)[1:]  # another alignment of the memory
        frames = audio[begin * size : min(begin + count, len(audio) // size) * size]
        shifted[: len(frames)] = frames
        by_pieces += vad.decide(shifted[: len(frames)].reshape(-1, size))
        begin += count
    assert by_pieces == decisions(make(), audio)
    assert True in by_pieces
    assert False in by_pieces


@pytest.mark.parametrize("make", VADS)
def test_frames_of_another_length_are_refused(make: Callable[[], Vad]) -> None:
    vad = make()
    for shape in ((1, 0), (1, vad.frame_samples - 1), (1, vad.frame_samples + 1), (vad.frame_samples,)):
        with pytest.raises(ValueError, match="frames must have shape"):
            vad.decide(np.zeros(shape, np.float32))


@pytest.mark.parametrize("make", VADS)
def test_the_frames_are_left_as_they_were(make: Callable[[], Vad]) -> None:
    vad = make()
    frames = speech_like(1.0)[None, : vad.frame_samples] * 5  # beyond ±1, as a resampler's overshoot may be
    before = frames.copy()
    vad.decide(frames)
    assert (frames == before).all()


def test_aggressiveness_makes_a_difference() -> None:
    quiet = lay_out([("silence", 1.0), ("speech", 3.0)], noise_rms=0.0).audio * 0.02
    heard = [sum(decisions(make_vad("webrtc", a), quiet)) for a in (0, 2, 3)]
    assert heard[0] >= heard[1] > heard[2]
    assert list(SILERO_THRESHOLDS) == sorted(SILERO_THRESHOLDS)


@pytest.mark.parametrize("aggressiveness", [-1, 4])
@pytest.mark.parametrize("name", ["webrtc", "silero"])
def test_aggressiveness_out_of_range_is_refused(name: VadName, aggressiveness: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.3"):
        make_vad(name, aggressiveness)


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="'silero' or 'webrtc'"):
        make_vad("energy", 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise_dbfs", [-90, -80, -60])
def test_the_network_is_not_asked_about_steady_quiet(noise_dbfs: float) -> None:
    """Its state shows it: it changes with every frame that it is asked about."""
    vad, asked = SileroVad(), 0
    room = np.random.default_rng(4).standard_normal((150, vad.frame_samples)).astype(np.float32)
    for frame in room * np.float32(10 ** (noise_dbfs / 20)):
        before = vad._cell
        assert vad.decide(frame[None]) == [False]
        asked += vad._cell is not before
    assert 0 < asked <= 15
    assert any(decisions(vad, speech_like(1.0, seed=1) * 0.3))


def test_without_its_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    vad_silero._session.cache_clear()
    monkeypatch.setattr(vad_silero, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'kibun\[server\]'"):
        make_vad("silero", 2)
    vad_silero._session.cache_clear()


def test_onnxruntime_sends_nothing_to_its_makers(tmp_path: Path) -> None:
    """Its telemetry begins with the import, and leaves a session file in the folder for temporary files."""
    code = "from kibun.server.audio.vad import SileroVad; SileroVad()"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
