"""The audio decoder: any bytes, of any encoding and rate, however they were split."""

from collections.abc import Iterable
from typing import get_args

import numpy as np

from tests.fuzz.fuzzing import Bytes, cut, fuzz, instrumented
from tests.support.decoding import resampled_length

with instrumented(__name__):
    from kibun.models.types import SAMPLE_RATE_HZ
    from kibun.server.audio.decoder import AudioDecoder, AudioError, AudioFormat, Encoding

ENCODINGS = get_args(Encoding)
RATES_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
REASONS = {"CONTAINER_HEADER", "NON_FINITE_AUDIO", "AUDIO_OUT_OF_RANGE"}
# No filter of the resampler's can make more of samples within ±1 (worst case measured: under 4).
OVERSHOOT = 8.0


def check(data: bytes) -> None:
    """Bytes: encoding, rate, number of cuts, their sizes, audio."""
    source = Bytes(data)
    encoding = ENCODINGS[source.number(0, 3)]
    kind = source.number(0, 15)
    rate = RATES_HZ[kind] if kind < len(RATES_HZ) else source.number(8_000, 48_000)
    sizes = [source.number(0, 400) for _ in range(source.number(0, 12))]
    payload = source.take(len(source))
    audio = AudioFormat(encoding, rate)
    whole = decode(audio, [payload])
    for split in (cut(payload, sizes), [*cut(payload[:600], [1] * 600), payload[600:]]):
        parts = decode(audio, split)
        assert parts[0] == whole[0], f"{parts[0]} of pieces, {whole[0]} of the whole"
        if whole[0] == "":
            assert np.array_equal(parts[1], whole[1])
            assert parts[2] == whole[2], "whole samples and clipped ones are counted alike"


def decode(audio: AudioFormat, pieces: list[bytes]) -> tuple[str, np.ndarray, tuple[int, int, int]]:
    """Reason of the refusal, "" if none; samples; samples received and clipped, bytes ignored."""
    decoder = AudioDecoder(audio)
    try:
        got = [decoder.decode(piece) for piece in pieces]
        pending = decoder.pending_bytes
        got.append(decoder.flush())
    except AudioError as error:
        check_error(error)
        return error.reason, np.empty(0), (0, 0, 0)
    samples = np.concatenate(got)
    received = sum(map(len, pieces)) // audio.sample_bytes
    assert len(samples) == resampled_length(received, audio.sample_rate_hz)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0) <= (1.0 if audio.sample_rate_hz == SAMPLE_RATE_HZ else OVERSHOOT)
    return "", samples, (received, decoder.clipped_samples, pending)


def check_error(error: AudioError) -> None:
    assert error.reason in REASONS
    assert error.field == "audio_content"
    assert 15 < len(str(error)) < 300


def seeds() -> Iterable[bytes]:
    time = np.arange(900) / 16_000
    tone = np.sin(2 * np.pi * 300 * time)
    forms = [(0, (tone * 32_767).astype("<i2").tobytes()), (1, (tone * 1.5).astype("<f4").tobytes())]
    forms += [(2, bytes(range(256)) * 3), (3, bytes(range(256)) * 3), (0, b"RIFF" + bytes(40)), (1, b"\xff" * 64)]
    forms += [(1, np.array([0.5, 1e30, np.nan, np.inf, 7.9], "<f4").tobytes())]
    for encoding, payload in forms:
        for rate in (2, 0, 6):
            yield bytes([encoding, rate, 3, 0, 1, 0, 7, 1, 33]) + payload


if __name__ == "__main__":
    fuzz(check, seeds())
