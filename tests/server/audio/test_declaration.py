"""Audio that is not what was declared is noticed; audio that is, is not suspected."""

from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kibun.bench.accuracy.declarations import CHANNELS, ENCODINGS, PATHS, REFUSED, resample, suspected
from kibun.bench.support.encodings import ENCODERS, interleave
from kibun.bench.support.speech_like import FloatArray, lay_out
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio import declaration
from kibun.server.audio.declaration import DeclarationCheck, Suspicion
from kibun.server.audio.decoder import AudioFormat

DECLARABLE = ("linear16", "float32", "mulaw", "alaw")
RATES_HZ = (8_000, 16_000, 44_100)


@cache
def voice(seed: int = 0) -> FloatArray:
    """Five seconds with pauses, at 16 kHz."""
    parts = [("silence", 0.3), ("speech", 1.6), ("silence", 0.5), ("speech", 1.8), ("silence", 0.8)]
    return lay_out(parts, f0=110 + 40 * seed, seed=3 * seed).audio  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def recordings(shared_data: Path) -> list[FloatArray]:
    """Eight seconds of each, at 16 kHz."""
    paths = sorted(shared_data.glob("conversation/*.flac")) + sorted(shared_data.glob("emotion/*/audio/*"))[::1_000]
    audios = []
    for path in paths:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        audios.append(resample(audio.mean(axis=1)[: 8 * rate], rate, SAMPLE_RATE_HZ))
    return audios


@pytest.mark.parametrize("sent", ENCODERS)
@pytest.mark.parametrize("declared", DECLARABLE)
def test_another_encoding_is_named(declared: str, sent: str) -> None:
    for seed in range(2):
        seen = suspected(ENCODERS[sent](voice(seed)), declared, SAMPLE_RATE_HZ)
        if sent not in ENCODINGS[declared]:
            assert seen == ""
        elif (declared, sent) == ("linear16", "int32 of 16"):
            assert seen == "stereo", "zeros between samples may be either"
        else:
            assert seen in (sent.split()[0], REFUSED)
            assert declared == "float32" or seen != REFUSED


@pytest.mark.parametrize("kind", [kind for kind in CHANNELS if kind not in ("right inverted", "right 2 samples late")])
@pytest.mark.parametrize("encoding", ["linear16", "float32"])
def test_two_channels_are_noticed(encoding: str, kind: str) -> None:
    raw = ENCODERS[encoding](CHANNELS[kind](voice(0), voice(1)))
    assert suspected(raw, encoding, SAMPLE_RATE_HZ) == "stereo"


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_two_channels_of_a_telephone_are_noticed(encoding: str) -> None:
    one, other = (resample(voice(seed), SAMPLE_RATE_HZ, 8_000) for seed in (0, 1))
    assert suspected(ENCODERS[encoding](interleave(one, other)), encoding, 8_000) == "stereo"
    assert suspected(ENCODERS[encoding](interleave(one, one)), encoding, 8_000) == "stereo"


def test_channels_under_a_rate_twice_as_high_are_noticed() -> None:
    raw = ENCODERS["linear16"](interleave(voice(0), voice(0)))
    assert suspected(raw, "linear16", 32_000) == "stereo"


@pytest.mark.parametrize("path", PATHS)
def test_no_good_path_is_suspected(path: str) -> None:
    for audio in (voice(0), voice(1)):
        assert suspected(ENCODERS["linear16"](PATHS[path](audio, SAMPLE_RATE_HZ)), "linear16", SAMPLE_RATE_HZ) == ""


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("sent", ["linear16", "float32", "float32 of 16", "mulaw", "alaw"])
def test_no_right_declaration_is_suspected(sent: str, rate_hz: int) -> None:
    for seed in range(2):
        raw = ENCODERS[sent](resample(voice(seed), SAMPLE_RATE_HZ, rate_hz))
        assert suspected(raw, sent.split()[0], rate_hz) == ""


def test_no_recording_is_suspected(recordings: list[FloatArray]) -> None:
    for audio in recordings:
        for path in PATHS.values():
            assert suspected(ENCODERS["linear16"](path(audio, SAMPLE_RATE_HZ)), "linear16", SAMPLE_RATE_HZ) == ""
        for encoding in DECLARABLE:
            assert suspected(ENCODERS[encoding](resample(audio, SAMPLE_RATE_HZ, 8_000)), encoding, 8_000) == ""


@pytest.mark.parametrize("level", [0, 1e-5, 1e-4, 0.01, 0.1, 0.6])
def test_noise_and_silence_are_not_suspected(level: float) -> None:
    noise = np.random.default_rng(0).normal(0, level, 5 * SAMPLE_RATE_HZ).clip(-1, 1).astype(np.float32)
    for encoding in DECLARABLE:
        assert suspected(ENCODERS[encoding](noise), encoding, SAMPLE_RATE_HZ) == ""


def test_recordings_declared_wrong_are_noticed(recordings: list[FloatArray]) -> None:
    """Nearly always: some excerpts of meetings are almost silent, and 8 bits leave little of them."""
    found: Counter[tuple[str, str]] = Counter()
    for audio, other in pairwise([*recordings, recordings[0]]):
        for sent, likely in (("float32", "float32"), ("int16be", "int16be"), ("mulaw", "mulaw"), ("int24", "int24")):
            found["linear16", sent] += suspected(ENCODERS[sent](audio), "linear16", SAMPLE_RATE_HZ) == likely
        found["mulaw", "linear16"] += suspected(ENCODERS["linear16"](audio), "mulaw", SAMPLE_RATE_HZ) == "linear16"
        for name, mixed in (("alike", interleave(audio, audio)), ("two speakers", interleave(audio, other))):
            found["linear16", name] += suspected(ENCODERS["linear16"](mixed), "linear16", SAMPLE_RATE_HZ) == "stereo"
    assert min(found.values()) >= 0.8 * len(recordings), found
    assert len(found) == 7


@pytest.mark.parametrize("sent", ["linear16", "float32", "uint8"])
def test_what_is_found_does_not_depend_on_how_bytes_are_cut(sent: str) -> None:
    raw = ENCODERS[sent](voice())
    found = []
    for size in (1_001, 4_096, len(raw)):
        check = DeclarationCheck(AudioFormat("linear16", SAMPLE_RATE_HZ))
        told = [check.push(raw[begin : begin + size]) for begin in range(0, len(raw), size)]
        told.append(check.end_turn())
        found.append(([t for t in told if t], [check.suspects(end) for end in range(0, len(voice()), 4_000)]))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == (sent != "linear16"), "once"


def test_before_the_end_of_short_audio_there_is_an_answer() -> None:
    raw = ENCODERS["float32"](voice()[8_000:12_000])
    check = DeclarationCheck(AudioFormat("linear16", SAMPLE_RATE_HZ))
    assert check.push(raw) is None
    found = check.end_turn()
    assert isinstance(found, Suspicion)
    assert (found.reason, found.field, found.likely) == (
        "ENCODING_MISMATCH_SUSPECTED",
        "audio_config.encoding",
        "float32",
    )
    assert "Set it to FLOAT32" in found.message
    assert check.end_turn() is None, "once"


def test_a_silent_start_and_a_late_voice_are_waited_for() -> None:
    silence = np.zeros(60 * SAMPLE_RATE_HZ, np.float32)
    raw = ENCODERS["linear16"](silence) + ENCODERS["float32"](voice())
    assert suspected(raw, "linear16", SAMPLE_RATE_HZ) == "float32"


def test_the_work_for_a_stream_is_bounded() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, 60 * SAMPLE_RATE_HZ).clip(-1, 1).astype(np.float32)
    check = DeclarationCheck(AudioFormat("linear16", SAMPLE_RATE_HZ))
    check.push(ENCODERS["linear16"](noise))
    assert check.settled
    assert check.push(b"\0" * 100) is None


def test_a_reading_fits_as_well_beside_others_as_alone() -> None:
    rng = np.random.default_rng(0)
    readings = {
        name: rng.normal(0, level, count).astype(np.float32)
        for name, level, count in (
            ("int24", 1, 1_280),
            ("int32", 1e4, 960),
            ("linear16", 30, 1_920),
            ("mulaw", 7, 3_840),
        )
    }
    together = declaration._fits(readings)
    assert together == {name: declaration._fits({name: reading})[name] for name, reading in readings.items()}
    assert len(set(together.values())) == len(readings)


@pytest.mark.parametrize(
    ("blocks", "enough"),
    [
        (["", ""] * 16, 6),
        ([None, "", None, *[""] * 20], 8),
        (["int24", *[""] * 20], 12),
        (["int24", "", "int24", "", "int24", *[""] * 20], 13),
    ],
)
def test_six_blocks_that_all_fit_are_enough_and_doubts_ask_for_more(
    monkeypatch: pytest.MonkeyPatch, blocks: list[str | None], enough: int
) -> None:
    raw = ENCODERS["linear16"](np.random.default_rng(0).normal(0, 0.1, 1_920).clip(-1, 1).astype(np.float32))
    found = iter(blocks)
    monkeypatch.setattr(declaration, "judge", lambda raw, declared: (next(found), ""))
    check, judged = DeclarationCheck(AudioFormat("linear16", SAMPLE_RATE_HZ)), 0
    while not check.settled:
        assert check.push(raw) is None
        judged += 1
    assert judged == enough
