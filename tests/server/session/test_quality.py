"""Faults of the audio are reported, and the estimates are still made."""

import asyncio
import math
from collections.abc import Iterator

import numpy as np
import pytest
import soxr

from kibun.bench.support.speech_like import speech_like
from kibun.server.session import quality
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.serving import (
    RunningServer,
    check_stream,
    chunks,
    config,
    converse,
    encode,
    end_of_turn,
    finals,
    of_kind,
    serve,
    spoken,
)

T = np.arange(2 * 16_000) / 16_000
SPEECH = spoken(2.0)[6_400:]
SOUNDS = {
    "square": 0.5 * np.sign(np.sin(2 * np.pi * 220 * T)),
    "full square": 32767 / 32768 * np.sign(np.sin(2 * np.pi * 220 * T)),
    "tone": 0.3 * np.sin(2 * np.pi * 220 * T),
    "chord": 0.1 * sum(np.sin(2 * np.pi * f * T) for f in (262, 330, 392, 523)),
    "noise": np.random.default_rng(0).normal(0, 0.1, len(T)),
    "constant": np.full(len(T), 0.2),
    "zero": np.zeros(len(T)),
    "clipped": np.clip(30 * SPEECH, -1, 1),
    "offset": SPEECH + 0.1,
    "speech": SPEECH,
    "quiet speech": SPEECH / 50,
}
EXPECTED = {
    "square": {"AUDIO_STEADY"},
    "full square": {"AUDIO_STEADY", "AUDIO_CLIPPED"},
    "tone": {"AUDIO_STEADY"},
    "chord": {"AUDIO_STEADY"},
    "noise": {"AUDIO_STEADY"},
    "constant": {"AUDIO_CONSTANT"},
    "zero": {"AUDIO_CONSTANT"},
    "clipped": {"AUDIO_CLIPPED"},
    "offset": {"AUDIO_DC_OFFSET"},
    "speech": set(),
    "quiet speech": set(),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_each_fault_has_its_reason(name: str) -> None:
    found = quality.warnings(SOUNDS[name].astype(np.float32))
    assert {warning.reason for warning in found} == EXPECTED[name]
    assert len(found) == len(EXPECTED[name])


def test_a_tone_with_silence_around_it_is_steady() -> None:
    silence = np.random.default_rng(0).normal(0, 1e-4, 8_000)
    found = quality.warnings(np.concatenate([silence, SOUNDS["tone"], silence]).astype(np.float32))
    assert [warning.reason for warning in found] == ["AUDIO_STEADY"]


@pytest.mark.parametrize("count", [1, 2, 400, 799, 801])
def test_the_shortest_utterances_give_no_error(count: int) -> None:
    tone = SOUNDS["tone"][1 : count + 1].astype(np.float32)
    assert "AUDIO_STEADY" not in {warning.reason for warning in quality.warnings(tone)}, "nothing is said of so little"
    assert quality.warnings(np.full(count, 0.5, np.float32))[0].reason == "AUDIO_CONSTANT"


def test_the_extremes_of_float32_give_no_error() -> None:
    for value in (1e-38, 1e-45, 1.0):
        audio = np.full(32_000, value, np.float32)
        audio[::2] = -value
        assert all(math.isfinite(float(v)) for w in quality.warnings(audio) for v in w.metadata.values())


# ---- warnings of a server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve() as running:
        yield running


def reasons(responses: list[pb.StreamingAnalyzeResponse]) -> list[str]:
    return [warning.reason for warning in of_kind(responses, "stream_warning")]


async def test_every_sound_gets_finite_estimates_or_none_and_a_warning(stub: Stub) -> None:
    async def send(name: str) -> list[pb.StreamingAnalyzeResponse]:
        return await converse(stub, [config(), *chunks(encode(SOUNDS[name].clip(-1, 1)))])

    for name, responses in zip(SOUNDS, await asyncio.gather(*map(send, SOUNDS)), strict=True):
        check_stream(responses)
        reported = set(reasons(responses))
        if finals(responses):
            assert EXPECTED[name] <= reported, name
        else:
            assert "NO_SPEECH" in reported, name
        for final in finals(responses):
            traits = final.personality.traits
            assert all(map(math.isfinite, (final.emotion.arousal, final.emotion.valence, traits.openness)))


async def test_a_fault_is_reported_once_a_turn_before_the_final_in_any_chunking(stub: Stub) -> None:
    loud = encode(np.concatenate([np.clip(30 * spoken(1.0, seed=n), -1, 1) for n in range(3)]))
    warnings = []
    for size in (319, 3_200, 96_000):
        responses = await converse(stub, [config(turn_id="t1"), *chunks(loud, size), end_of_turn("t2"), *chunks(loud)])
        kinds = [r.WhichOneof("streaming_response") for r in responses]
        assert reasons(responses) == ["AUDIO_CLIPPED"] * 2
        assert [w.metadata["turn_id"] for w in of_kind(responses, "stream_warning")] == ["t1", "t2"]
        assert kinds.index("stream_warning") < kinds.index("utterance_result")
        warnings.append([w.SerializeToString(deterministic=True) for w in of_kind(responses, "stream_warning")])
    assert warnings[0] == warnings[1] == warnings[2]


@pytest.mark.parametrize("size", [7, 6_400, 256 * 1024])
async def test_samples_beyond_full_scale_are_counted(stub: Stub, size: int) -> None:
    audio = spoken(1.0).copy()
    beyond = np.arange(100, 8_000, 79)
    audio[beyond] = 3.0
    first = config(encoding=pb.AUDIO_ENCODING_FLOAT32)
    if size == 7:
        audio, beyond = audio[:4_000], beyond[beyond < 4_000]
    responses = await converse(stub, [first, *chunks(encode(audio, "float32"), size)])
    (warning,) = [w for w in of_kind(responses, "stream_warning") if w.reason == "SAMPLES_CLIPPED"]
    assert warning.metadata["sample_count"] == str(len(beyond))
    assert str(len(beyond)) in warning.message


# ---- what is told of a turn's audio, be there an utterance or not


def test_faults_of_a_turn_without_speech() -> None:
    def faults(sound: np.ndarray) -> set[str]:
        levels = quality.TurnLevels()
        for block in np.array_split(sound.astype(np.float32), 7):
            levels.add(block)
        return {warning.reason for warning in levels.faults()}

    noise = np.random.default_rng(0).normal(0, 1, len(T))
    assert faults(SOUNDS["zero"]) == faults(SOUNDS["constant"]) == {"AUDIO_CONSTANT"}
    assert faults(2e-5 * noise) == {"AUDIO_QUIET"}
    assert faults(0.003 * noise + 0.1) == {"AUDIO_DC_OFFSET"}
    assert faults(2e-5 * noise - 0.3) == {"AUDIO_QUIET", "AUDIO_DC_OFFSET"}
    assert faults(np.clip(noise, -1, 1)) == {"AUDIO_CLIPPED"}
    assert faults(0.003 * noise) == faults(SPEECH) == faults(SOUNDS["zero"][:15_999]) == set()


async def test_a_stream_without_an_utterance_says_what_is_wrong(stub: Stub) -> None:
    rng = np.random.default_rng(0)
    for sound, expected in (
        (np.zeros(48_000), "AUDIO_CONSTANT"),
        (0.2 + rng.normal(0, 1e-4, 48_000), "AUDIO_DC_OFFSET"),
        (rng.normal(0, 2e-5, 48_000), "AUDIO_QUIET"),
    ):
        raw, first = encode(sound), config(turn_id="t1")
        told = []
        for size in (319, 96_000):
            responses = await converse(stub, [first, *chunks(raw, size)])
            assert not finals(responses)
            (warning,) = [w for w in of_kind(responses, "stream_warning") if w.reason == expected]
            assert warning.metadata["turn_id"] == "t1"
            told.append(warning)
        answer = await stub.Analyze(pb.AnalyzeRequest(config=first.streaming_config, audio_content=raw))
        assert [w for w in answer.warnings if w.reason == expected] == [told[0]] == [told[1]]


async def test_a_long_turn_says_it_before_its_end(stub: Stub) -> None:
    responses = await converse(stub, [config(), *chunks(bytes(2 * 35 * 16_000), 64_000)])
    (at,) = [n for n, r in enumerate(responses) if r.stream_warning.reason == "AUDIO_CONSTANT"]
    assert responses[at].audio_received.seconds < 35


# ---- audio that is not what was declared


async def test_a_wrong_declaration_is_told_once_and_nothing_else_of_the_audio(stub: Stub) -> None:
    speech = np.concatenate([spoken(1.5, seed=n) for n in range(2)])
    for raw, expected in (
        (encode(np.repeat(speech, 2)), ("CHANNELS_MISMATCH_SUSPECTED", "audio_config.audio_channel_count", "stereo")),
        (encode(speech, "float32"), ("ENCODING_MISMATCH_SUSPECTED", "audio_config.encoding", "float32")),
        (encode(speech, "mulaw"), ("ENCODING_MISMATCH_SUSPECTED", "audio_config.encoding", "mulaw")),
    ):
        told = []
        for size in (617, 3_200, 240_000):
            turns = [config(), *chunks(raw, size), end_of_turn("next"), *chunks(raw, size)]
            responses = await converse(stub, turns)
            (warning,) = [w for w in of_kind(responses, "stream_warning") if w.reason.endswith("_SUSPECTED")]
            assert (warning.reason, warning.metadata["field"], warning.metadata["likely"]) == expected
            assert warning.metadata["field"] in warning.message
            assert not [reason for reason in reasons(responses) if reason.startswith("AUDIO_")]
            told.append(warning)
        answer = await stub.Analyze(pb.AnalyzeRequest(config=config().streaming_config, audio_content=raw))
        told += [w for w in answer.warnings if w.reason.endswith("_SUSPECTED")]
        assert len(told) == 4
        assert all(warning == told[0] for warning in told)


async def test_a_wrong_rate_is_told_once(stub: Stub) -> None:
    """48 kHz, declared as 16: whatever the size of the messages, and in Analyze."""
    raw = encode(soxr.resample(speech_like(8, f0=140, seed=1), 16_000, 48_000))
    told = []
    for size in (1_234, 3_200, 240_000):
        turns = [config(), *chunks(raw, size), end_of_turn("next"), *chunks(raw, size)]
        responses = await converse(stub, turns)
        (warning,) = [w for w in of_kind(responses, "stream_warning") if w.reason.endswith("_SUSPECTED")]
        told.append(warning)
    answer = await stub.Analyze(pb.AnalyzeRequest(config=config().streaming_config, audio_content=raw))
    told += [w for w in answer.warnings if w.reason.endswith("_SUSPECTED")]
    assert len(told) == 4
    assert all(warning == told[0] for warning in told)
    assert told[0].reason == "RATE_MISMATCH_SUSPECTED"
    assert told[0].metadata["field"] == "audio_config.sample_rate_hertz"
    assert told[0].metadata["likely_hertz"] in ("44100", "48000")
    assert "slow" in told[0].message


async def test_two_channels_without_an_utterance_are_told(stub: Stub) -> None:
    hum = np.repeat(0.01 * np.sin(2 * np.pi * 50 * T), 2)
    responses = await converse(stub, [config(), *chunks(encode(hum))])
    assert not finals(responses)
    assert "CHANNELS_MISMATCH_SUSPECTED" in reasons(responses)


async def test_a_resumed_stream_does_not_tell_it_again(stub: Stub) -> None:
    raw = encode(spoken(2.0), "float32")
    later = pb.StreamingAnalyzeConfig(turn_id="t", resume_turn=True)
    later.audio_start_offset.seconds = 5
    later.audio_config.CopyFrom(config().streaming_config.audio_config)
    responses = await converse(stub, [pb.StreamingAnalyzeRequest(streaming_config=later), *chunks(raw)])
    assert "ENCODING_MISMATCH_SUSPECTED" not in reasons(responses)
