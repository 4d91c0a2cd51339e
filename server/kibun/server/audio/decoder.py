"""Decodes payload bytes to float32 mono samples at 16 kHz, one `AudioDecoder` per stream.

The samples are bit-equal however a client splits its bytes, from single bytes to one huge message: incomplete
samples are carried over, the resampler (soxr, HQ) keeps its state between calls, and nothing depends on where a
payload ends. The clock is the sample count.

Delay: the resampler holds back up to 37 ms at 48 and 24 kHz, 40 at 44.1 and 22.05, 84 at 11.025, 115 at 8 kHz
(its filters work in blocks); 16 kHz passes straight through. `flush` returns the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.sample_buffer import Samples

MIN_SAMPLE_RATE_HZ = 8_000
MAX_SAMPLE_RATE_HZ = 48_000
#: Float audio should lie within ±1. Up to this bound (+18 dB) it is clipped and counted; beyond it the stream
#: cannot be what it claims (16-bit integers sent as floats, another byte order) and is refused.
MAX_FLOAT_MAGNITUDE = 8.0
#: Payloads shorter than 10 ms wait for more, so that a client that sends single bytes costs little.
_MIN_BATCHES_PER_S = 100

Encoding = Literal["linear16", "float32", "mulaw", "alaw"]

_SAMPLE_BYTES: dict[str, int] = {"linear16": 2, "float32": 4, "mulaw": 1, "alaw": 1}
#: First bytes of containers that are often sent by mistake as raw audio; as samples they hardly ever occur.
_HEADERS: tuple[tuple[bytes, str], ...] = (
    (b"RIFF", "WAV"),
    (b"RF64", "WAV"),
    (b"fLaC", "FLAC"),
    (b"OggS", "Ogg"),
    (b"FORM", "AIFF"),
    (b".snd", "AU"),
    (b"caff", "CAF"),
    (b"\x1a\x45\xdf\xa3", "WebM"),
    (b"ID3\x02", "MP3"),
    (b"ID3\x03", "MP3"),
    (b"ID3\x04", "MP3"),
)
_HEADER_BYTES = 4


class AudioError(ValueError):
    """Audio that cannot be decoded as announced. The message names what is allowed and how to fix it.

    Attributes:
        reason: UPPER_SNAKE_CASE, stable.
        field: the request's field at fault.
    """

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


@dataclass(frozen=True)
class AudioFormat:
    """The format of a client's raw audio.

    Raises:
        AudioError: UNSUPPORTED_ENCODING, SAMPLE_RATE_OUT_OF_RANGE or UNSUPPORTED_CHANNEL_COUNT.
    """

    encoding: Encoding
    sample_rate_hz: int  # 8000..48000, any integer
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in _SAMPLE_BYTES:
            raise AudioError(
                "UNSUPPORTED_ENCODING",
                "audio_config.encoding",
                f"encoding must be one of {', '.join(_SAMPLE_BYTES)}, not {self.encoding!r}",
            )
        if not MIN_SAMPLE_RATE_HZ <= self.sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
            raise AudioError(
                "SAMPLE_RATE_OUT_OF_RANGE",
                "audio_config.sample_rate_hertz",
                f"sample rate must be {MIN_SAMPLE_RATE_HZ}..{MAX_SAMPLE_RATE_HZ} Hz, not {self.sample_rate_hz}",
            )
        if self.channels != 1:
            raise AudioError(
                "UNSUPPORTED_CHANNEL_COUNT",
                "audio_config.audio_channel_count",
                f"audio must be mono, not {self.channels} channels: mix down, or open one stream per speaker",
            )

    @property
    def sample_bytes(self) -> int:
        """Bytes per sample: 1, 2 or 4."""
        return _SAMPLE_BYTES[self.encoding]


class AudioDecoder:
    """Decodes and resamples one stream. Not thread-safe, and of no further use after an error or `flush`."""

    def __init__(self, fmt: AudioFormat) -> None:
        self.format = fmt
        self.clipped_samples = 0  # float samples beyond ±1, set to ±1
        self._buffer = bytearray()
        self._header_checked = False
        self._batch_bytes = max(fmt.sample_rate_hz // _MIN_BATCHES_PER_S * fmt.sample_bytes, _HEADER_BYTES)
        self._resampler = (
            None
            if fmt.sample_rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(fmt.sample_rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        )
        self._flushed = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of the last sample, if it is incomplete."""
        return len(self._buffer) % self.format.sample_bytes

    def decode(self, payload: bytes) -> Samples:
        """Decodes the next bytes and returns the 16 kHz samples that are ready, (n,) with n >= 0.

        Values lie within ±1, except that the resampler overshoots at full-scale edges.

        Raises:
            AudioError: CONTAINER_HEADER, NON_FINITE_AUDIO or AUDIO_OUT_OF_RANGE.
            RuntimeError: after `flush`.
        """
        if self._flushed:
            raise RuntimeError("decoder was flushed: make a new one for new audio")
        size = self.format.sample_bytes
        before = len(self._buffer)
        total = before + len(payload)
        if before == 0 and self._header_checked and total >= self._batch_bytes and total % size == 0:
            return self._resample(self._samples(payload), last=False)  # nothing to buffer
        self._buffer += payload
        if not self._header_checked and total >= _HEADER_BYTES:
            self._refuse_header()
        if total < self._batch_bytes:
            return np.empty(0, np.float32)
        return self._resample(self._take_samples(), last=False)

    def flush(self) -> Samples:
        """Ends the stream and returns the last 16 kHz samples, (n,) with n >= 0.

        With these, N source samples have become N * 16000 / sample_rate_hz in all, halves rounded up. An incomplete
        sample is dropped; see `pending_bytes`.

        Raises:
            AudioError: as `decode`, for the samples that were still buffered.
            RuntimeError: the second time.
        """
        if self._flushed:
            raise RuntimeError("decoder was flushed before")
        self._flushed = True
        return self._resample(self._take_samples(), last=True)

    def _refuse_header(self) -> None:
        self._header_checked = True
        start = bytes(self._buffer[:_HEADER_BYTES])
        for magic, container in _HEADERS:
            if start == magic:
                raise AudioError(
                    "CONTAINER_HEADER",
                    "audio_content",
                    f"audio starts with a {container} header; send raw {self.format.encoding} samples: "
                    "decode the file first, or strip its header",
                )

    def _take_samples(self) -> Samples:
        """All whole samples in the buffer as float32 in ±1, (n,); what stays there is part of one sample."""
        size = self.format.sample_bytes
        whole = len(self._buffer) // size * size
        raw = bytes(self._buffer[:whole])
        del self._buffer[:whole]
        return self._samples(raw)

    def _samples(self, raw: bytes) -> Samples:
        """`raw`, whole samples, as float32 in ±1, (n,)."""
        encoding = self.format.encoding
        if encoding == "linear16":
            samples = np.frombuffer(raw, "<i2").astype(np.float32)
            samples *= 1 / 32768
            return samples
        if encoding == "float32":
            return self._checked(np.frombuffer(raw, "<f4").astype(np.float32))
        table = mulaw_table() if encoding == "mulaw" else alaw_table()
        return table[np.frombuffer(raw, np.uint8)]

    def _checked(self, samples: Samples) -> Samples:
        if samples.size == 0:
            return samples
        peak = max(float(samples.max()), -float(samples.min()))  # a NaN makes both NaN
        if peak <= 1.0:
            return samples
        absurd = ~(np.abs(samples) <= MAX_FLOAT_MAGNITUDE)  # also where it is NaN
        if absurd.any():
            raise self._absurd(float(np.abs(samples[absurd.argmax()])))
        self.clipped_samples += int(np.count_nonzero(np.abs(samples) > 1.0))
        return np.clip(samples, -1.0, 1.0)

    @staticmethod
    def _absurd(magnitude: float) -> AudioError:
        """The error for the first sample out of range: which one that is does not depend on how the bytes are split."""
        if not np.isfinite(magnitude):
            return AudioError(
                "NON_FINITE_AUDIO",
                "audio_content",
                "audio contains NaN or infinite samples; float32 samples must be finite, little-endian, within ±1. "
                "Integers are declared as LINEAR16 in audio_config.encoding",
            )
        return AudioError(
            "AUDIO_OUT_OF_RANGE",
            "audio_content",
            f"audio contains a sample of magnitude {magnitude:g}; float32 samples must lie within ±1 (up to "
            f"±{MAX_FLOAT_MAGNITUDE:g} is clipped). Declare integers as LINEAR16 in "
            "audio_config.encoding, or divide them by 32768",
        )

    def _resample(self, samples: Samples, *, last: bool) -> Samples:
        if self._resampler is None:
            return samples
        resampled: Samples = self._resampler.resample_chunk(samples, last=last)
        return resampled


@cache
def mulaw_table() -> Samples:
    """G.711 mu-law code (0..255) to sample, (256,): 14-bit magnitudes, peak 8031/8192."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF  # transmitted inverted
    segment, step = code >> 4 & 7, code & 15
    magnitude = ((2 * step + 33) << segment) - 33
    return _signed(magnitude, code & 0x80, 8192)


@cache
def alaw_table() -> Samples:
    """G.711 A-law code (0..255) to sample, (256,): 13-bit magnitudes, peak 4032/4096."""
    code = np.arange(256, dtype=np.int32) ^ 0x55  # even bits are transmitted inverted
    segment, step = code >> 4 & 7, code & 15
    magnitude = np.where(segment == 0, 2 * step + 1, (2 * step + 33) << np.maximum(segment - 1, 0))
    return _signed(magnitude, ~code & 0x80, 4096)


def _signed(magnitude: npt.NDArray[np.int32], negative: npt.NDArray[np.int32], full_scale: int) -> Samples:
    table = (np.where(negative != 0, -magnitude, magnitude) / full_scale).astype(np.float32)
    table.flags.writeable = False
    return table
