"""Raw bytes to 16 kHz samples: bit-equal for any chunking, right for every encoding and rate, and nonsense refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.decoder import (
    MAX_FLOAT_MAGNITUDE,
    AudioDecoder,
    AudioError,
    AudioFormat,
    Encoding,
)
from tests.support.decoding import resampled_length

ENCODINGS: tuple[Encoding, ...] = ("linear16", "float32", "mulaw", "alaw")
RATES = (8_000, 11_025, 16_000, 16_001, 22_050, 24_000, 32_000, 44_100, 47_999, 48_000)
Samples = npt.NDArray[np.float32]


def raw_audio(encoding: Encoding, samples: int, seed: int = 0) -> bytes:
    """Noise in that encoding, with a few float samples beyond ±1."""
    rng = np.random.default_rng(seed)
    if encoding == "linear16":
        return rng.integers(-32768, 32768, samples).astype("<i2").tobytes()
    if encoding == "float32":
        return (rng.standard_normal(samples) * 0.4).astype("<f4").tobytes()
    return rng.integers(0, 256, samples).astype(np.uint8).tobytes()


def decode_in(decoder: AudioDecoder, pieces: list[bytes]) -> Samples:
    return np.concatenate([*(decoder.decode(piece) for piece in pieces), decoder.flush()])


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, repeated."""
    pieces, position, index = [], 0, 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        pieces.append(data[position : position + size])
        position, index = position + size, index + 1
    return pieces


@settings(max_examples=150)
@given(
    encoding=st.sampled_from(ENCODINGS),
    rate=st.sampled_from(RATES),
    size=st.integers(0, 9_000),
    sizes=st.lists(st.integers(0, 4_000), min_size=1, max_size=12).filter(lambda sizes: max(sizes) > 2),
    seed=st.integers(0, 9),
)
def test_any_chunking_gives_the_same_bits(
    encoding: Encoding, rate: int, size: int, sizes: list[int], seed: int
) -> None:
    data = raw_audio(encoding, size, seed)[: size or None]  # mostly ends within a sample
    whole, split_up = AudioDecoder(AudioFormat(encoding, rate)), AudioDecoder(AudioFormat(encoding, rate))
    expected = decode_in(whole, [data])
    actual = decode_in(split_up, split(data, sizes))
    assert actual.dtype == np.float32
    assert actual.tobytes() == expected.tobytes()
    assert split_up.clipped_samples == whole.clipped_samples
    assert split_up.pending_bytes == whole.pending_bytes == len(data) % whole.format.sample_bytes
    assert len(actual) == resampled_length(len(data) // whole.format.sample_bytes, rate)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_single_bytes_and_a_quarter_megabyte_give_the_same_bits(encoding: Encoding, rate: int) -> None:
    data = raw_audio(encoding, 70_000)
    expected = decode_in(AudioDecoder(AudioFormat(encoding, rate)), split(data, [256 * 1024]))
    actual = decode_in(AudioDecoder(AudioFormat(encoding, rate)), split(data, [1]))
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("rate", RATES)
def test_length_is_exact_for_a_long_stream(rate: int) -> None:
    decoder = AudioDecoder(AudioFormat("mulaw", rate))
    second = raw_audio("mulaw", rate)
    made = sum(len(decoder.decode(second)) for _ in range(120))
    made += len(decoder.decode(second[:777])) + len(decoder.flush())
    assert made == resampled_length(120 * rate + 777, rate)
    assert abs(made - (120 * rate + 777) * SAMPLE_RATE_HZ / rate) <= 0.5


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_pitch_level_and_time(rate: int) -> None:
    source = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(rate) / rate)
    out = decode_in(AudioDecoder(AudioFormat("float32", rate)), [source.astype("<f4").tobytes()])
    expected = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(len(out)) / SAMPLE_RATE_HZ)
    middle = slice(1_600, -1_600)
    assert np.abs(out - expected)[middle].max() < 1e-4


def test_what_16_khz_cannot_hold_is_removed() -> None:
    source = 0.5 * np.sin(2 * np.pi * 12_000 * np.arange(48_000) / 48_000)  # would fold to 4 kHz
    out = decode_in(AudioDecoder(AudioFormat("float32", 48_000)), [source.astype("<f4").tobytes()])
    assert np.abs(out[1_600:-1_600]).max() < 0.5e-4  # -80 dB


@pytest.mark.parametrize(("rate", "most_ms"), [(16_000, 0), (48_000, 40), (44_100, 45), (22_050, 45), (8_000, 120)])
def test_the_resampler_holds_back_little(rate: int, most_ms: float) -> None:
    decoder = AudioDecoder(AudioFormat("linear16", rate))
    chunk, made = bytes(2 * (rate // 50)), 0
    for index in range(1, 101):
        made += len(decoder.decode(chunk))
        assert 20 * index - made / 16 <= most_ms + 1e-9


def test_pcm_and_float_keep_their_values() -> None:
    pcm = np.array([0, 1, -1, 16_384, 32_767, -32_768] + [0] * 200, "<i2")
    out = decode_in(AudioDecoder(AudioFormat("linear16", 16_000)), [pcm.tobytes()])
    assert out.tolist() == (pcm.astype(np.float64) / 32_768).astype(np.float32).tolist()
    floats = np.array([0.25, -1.0, 1.0, 1e-30], "<f4")
    assert decode_in(AudioDecoder(AudioFormat("float32", 16_000)), [floats.tobytes()]).tolist() == floats.tolist()


# Values of ITU-T G.711, tables 1a (A-law, of 4096) and 2a (mu-law, of 8192): the ends of the segments.
MU_LAW = {0x80: 8031, 0x8F: 4191, 0x9F: 2079, 0xAF: 1023, 0xBF: 495, 0xCF: 231, 0xDF: 99, 0xEF: 33, 0xFE: 2, 0xFF: 0}
A_LAW = {0xAA: 4032, 0xA5: 2112, 0xB5: 1056, 0x85: 528, 0x95: 264, 0xE5: 132, 0xF5: 66, 0xD5: 1}


@pytest.mark.parametrize(("encoding", "values", "scale"), [("mulaw", MU_LAW, 8_192), ("alaw", A_LAW, 4_096)])
def test_companded_codes_have_the_standard_values(encoding: Encoding, values: dict[int, int], scale: int) -> None:
    codes = bytes(values) + bytes(code & 0x7F for code in values)  # the same with the sign bit clear: negative
    out = decode_in(AudioDecoder(AudioFormat(encoding, 16_000)), [codes])
    magnitudes = list(values.values())
    assert (out * scale).tolist() == magnitudes + [-value for value in magnitudes]


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_companded_codes_are_odd_and_rise_with_the_segment(encoding: Encoding) -> None:
    table = decode_in(AudioDecoder(AudioFormat(encoding, 16_000)), [bytes(range(256))])
    assert (table[128:] == -table[:128]).all()
    positive = np.sort(table[128:])
    steps = np.diff(positive)
    assert (steps > 0).all()
    assert (np.diff(steps) >= 0).all()  # each segment's steps are as wide as the one's before, or twice
    assert steps[-1] / steps[1] == (128 if encoding == "mulaw" else 64)


HEADERS = [b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3\x03", b"ID3\x04", b"FORM", b".snd", b"caff", b"\x1a\x45\xdf\xa3"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_header_is_refused_however_it_arrives(header: bytes, encoding: Encoding) -> None:
    stream = header + bytes(60)
    for sizes in ([64], [1], [3, 1], [2], [1, 63]):
        decoder = AudioDecoder(AudioFormat(encoding, 16_000))
        with pytest.raises(AudioError) as caught:
            decode_in(decoder, split(stream, sizes))
        assert caught.value.reason == "CONTAINER_HEADER"
        assert caught.value.field == "audio_content"
        assert "raw" in str(caught.value)


def test_header_letters_later_in_the_stream_are_audio() -> None:
    decoder = AudioDecoder(AudioFormat("linear16", 16_000))
    out = decode_in(decoder, [bytes(2), b"RIFF" * 200])
    assert len(out) == 401


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.nan, "NON_FINITE_AUDIO"),
        (np.inf, "NON_FINITE_AUDIO"),
        (-np.inf, "NON_FINITE_AUDIO"),
        (1e30, "AUDIO_OUT_OF_RANGE"),
        (-12_000.0, "AUDIO_OUT_OF_RANGE"),
        (MAX_FLOAT_MAGNITUDE * 1.001, "AUDIO_OUT_OF_RANGE"),
    ],
)
@pytest.mark.parametrize("position", [0, 500, 999])
def test_impossible_floats_are_refused(bad: float, reason: str, position: int) -> None:
    samples = np.zeros(1_000, "<f4")
    samples[position] = bad
    for sizes in ([4_000], [7], [1]):
        decoder = AudioDecoder(AudioFormat("float32", 16_000))
        with pytest.raises(AudioError) as caught:
            decode_in(decoder, split(samples.tobytes(), sizes))
        assert (caught.value.reason, caught.value.field) == (reason, "audio_content")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [(1e30, np.nan, "AUDIO_OUT_OF_RANGE"), (np.inf, -9.0, "NON_FINITE_AUDIO"), (np.nan, 1e30, "NON_FINITE_AUDIO")],
)
def test_the_first_impossible_float_decides_in_any_split(first: float, second: float, reason: str) -> None:
    samples = np.zeros(1_000, "<f4")
    samples[[100, 700]] = first, second
    for sizes in ([4_000], [7], [2_000]):
        with pytest.raises(AudioError) as caught:
            decode_in(AudioDecoder(AudioFormat("float32", 16_000)), split(samples.tobytes(), sizes))
        assert caught.value.reason == reason


def test_floats_a_little_too_loud_are_clipped_and_counted() -> None:
    samples = np.array([0.5, 1.0, 1.2, -MAX_FLOAT_MAGNITUDE, -1.0, 0.0] * 100, "<f4")
    decoder = AudioDecoder(AudioFormat("float32", 16_000))
    out = decode_in(decoder, split(samples.tobytes(), [13]))
    assert out.tolist() == np.clip(samples, -1, 1).tolist()
    assert decoder.clipped_samples == 200
    barely = AudioDecoder(AudioFormat("float32", 16_000))
    assert decode_in(barely, [np.full(300, 1.001, "<f4").tobytes()]).max() == 1.0
    assert barely.clipped_samples == 300


def test_single_bytes_are_decoded_in_few_batches() -> None:
    decoder = AudioDecoder(AudioFormat("linear16", 16_000))
    data = raw_audio("linear16", 16_000)
    batches = sum(len(decoder.decode(piece)) > 0 for piece in split(data, [1]))
    assert 0 < batches <= 100  # of 32,000 calls: one in ten milliseconds of audio


def test_an_incomplete_sample_is_carried_over_and_reported() -> None:
    decoder = AudioDecoder(AudioFormat("float32", 16_000))
    data = np.full(1_000, 0.5, "<f4").tobytes()
    got = [decoder.decode(data[:3_001])]
    assert decoder.pending_bytes == 1
    got.append(decoder.decode(data[3_001:] + b"\x00\x00"))
    assert decoder.pending_bytes == 2
    got.append(decoder.flush())
    assert decoder.pending_bytes == 2
    assert sum(map(len, got)) == 1_000


def test_a_flushed_decoder_takes_no_more() -> None:
    decoder = AudioDecoder(AudioFormat("linear16", 16_000))
    assert len(decoder.flush()) == 0
    with pytest.raises(RuntimeError, match="flushed"):
        decoder.decode(b"\x00\x00")
    with pytest.raises(RuntimeError, match="flushed"):
        decoder.flush()


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "reason", "field"),
    [
        ("opus", 16_000, 1, "UNSUPPORTED_ENCODING", "audio_config.encoding"),
        ("linear16", 7_999, 1, "SAMPLE_RATE_OUT_OF_RANGE", "audio_config.sample_rate_hertz"),
        ("linear16", 48_001, 1, "SAMPLE_RATE_OUT_OF_RANGE", "audio_config.sample_rate_hertz"),
        ("linear16", 0, 1, "SAMPLE_RATE_OUT_OF_RANGE", "audio_config.sample_rate_hertz"),
        ("linear16", 16_000, 2, "UNSUPPORTED_CHANNEL_COUNT", "audio_config.audio_channel_count"),
        ("linear16", 16_000, 0, "UNSUPPORTED_CHANNEL_COUNT", "audio_config.audio_channel_count"),
    ],
)
def test_formats_that_are_not_supported_say_what_is(
    encoding: Encoding, rate: int, channels: int, reason: str, field: str
) -> None:
    with pytest.raises(AudioError) as caught:
        AudioFormat(encoding, rate, channels)
    assert (caught.value.reason, caught.value.field) == (reason, field)
