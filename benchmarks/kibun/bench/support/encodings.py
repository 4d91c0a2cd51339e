"""Samples as bytes, in every way that a client may get wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kibun.bench.support.speech_like import FloatArray

Codes = npt.NDArray[np.uint8]


def interleave(left: FloatArray, right: FloatArray) -> FloatArray:
    """Two channels in turn, (2 n,), of which the shorter gives n."""
    length = min(len(left), len(right))
    return np.stack([left[:length], right[:length]], axis=1).ravel()


def mulaw(audio: FloatArray) -> Codes:
    """G.711 mu-law codes, (n,)."""
    values = np.clip(np.round(audio * 8192), -8158, 8158).astype(np.int64)
    size = np.abs(values) + 33
    segment = np.clip(np.floor(np.log2(size)).astype(np.int64) - 5, 0, 7)
    code = np.where(values < 0, 0x80, 0) | segment << 4 | size >> segment + 1 & 15
    codes: Codes = (~code & 0xFF).astype(np.uint8)
    return codes


def alaw(audio: FloatArray) -> Codes:
    """G.711 A-law codes, (n,)."""
    values = np.clip(np.round(audio * 4096), -4095, 4095).astype(np.int64)
    size = np.abs(values)
    segment = np.clip(np.floor(np.log2(np.maximum(size, 1))).astype(np.int64) - 5, 0, 7) * (size >= 64)
    code = np.where(values >= 0, 0x80, 0) | segment << 4 | size >> np.maximum(segment, 1) & 15
    codes: Codes = ((code ^ 0x55) & 0xFF).astype(np.uint8)
    return codes


def linear16(audio: FloatArray) -> npt.NDArray[np.int16]:
    """16-bit integers, (n,)."""
    return np.clip(np.round(audio * 32767), -32768, 32767).astype("<i2")


def _int32(audio: FloatArray) -> npt.NDArray[np.int32]:
    return np.round(audio.clip(-1, 1).astype(np.float64) * (2**31 - 1)).astype("<i4")


#: Encoding → samples (n,) in ±1 → bytes. "… of 16" came as 16 bits from a converter, as most audio does.
ENCODERS: dict[str, Callable[[FloatArray], bytes]] = {
    "linear16": lambda audio: linear16(audio).tobytes(),
    "int16be": lambda audio: linear16(audio).astype(">i2").tobytes(),
    "float32": lambda audio: audio.astype("<f4").tobytes(),
    "float32 of 16": lambda audio: (linear16(audio) / 32768).astype("<f4").tobytes(),
    "float32be": lambda audio: audio.astype(">f4").tobytes(),
    "float64": lambda audio: audio.astype("<f8").tobytes(),
    "float64 of 16": lambda audio: (linear16(audio) / 32768).astype("<f8").tobytes(),
    "int24": lambda audio: _int32(audio).view(np.uint8).reshape(-1, 4)[:, 1:].tobytes(),
    "int32": lambda audio: _int32(audio).tobytes(),
    "int32 of 16": lambda audio: (linear16(audio).astype("<i4") << 16).tobytes(),
    "uint8": lambda audio: np.round(audio * 127 + 128).clip(0, 255).astype(np.uint8).tobytes(),
    "int8": lambda audio: np.round(audio * 127).clip(-128, 127).astype(np.int8).tobytes(),
    "mulaw": lambda audio: mulaw(audio).tobytes(),
    "alaw": lambda audio: alaw(audio).tobytes(),
}
