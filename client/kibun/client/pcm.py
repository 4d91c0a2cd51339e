"""Callers' audio -> bytes in the stream's encoding, in pieces that the server accepts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kibun.client.errors import ErrorDetails, InvalidRequestError, WrongTypeError
from kibun.client.options import BYTES_PER_SAMPLE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pcm = bytes | bytearray | memoryview | NDArray[np.int16] | NDArray[np.float32] | NDArray[np.uint8]

# One message carries at most this much audio: what the server is asked to expect, and the unit of replay.
CHUNK_MS = 100

_DTYPE_OF = {"linear16": "int16", "float32": "float32", "mulaw": "uint8", "alaw": "uint8"}
_FIX = {
    ("linear16", "f"): "open the turn with encoding='float32', or convert: (x * 32767).astype(np.int16)",
    ("float32", "i"): "open the turn with encoding='linear16' (int16), or convert: (x / 32768).astype(np.float32)",
    ("float32", "f"): "convert: x.astype(np.float32)",
    ("linear16", "i"): "convert to int16 on its scale of -32768..32767: x.astype(np.int16)",
}


def payload_bytes(pcm: "Pcm", encoding: str) -> bytes:
    """The bytes of `pcm`: raw bytes as they are, or a mono array of shape (n,) or (n, 1) of the encoding's dtype.

    Raises InvalidRequestError for an array of another dtype or with several channels, and for anything else.
    """
    if isinstance(pcm, bytes):
        return pcm
    if isinstance(pcm, bytearray | memoryview):
        return bytes(pcm)
    # Not isinstance: numpy need not be imported by callers who push bytes.
    if not (hasattr(pcm, "dtype") and hasattr(pcm, "tobytes")):
        message = f"audio is bytes or a numpy array, not {type(pcm).__name__}"
        raise WrongTypeError(message, _details(message))
    return _array_bytes(pcm, encoding)


def _array_bytes(array: Any, encoding: str) -> bytes:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise _invalid(
            f"audio of shape {tuple(array.shape)} is not mono: push one channel, or x.mean(axis=1).astype(x.dtype)"
        )
    wanted = _DTYPE_OF[encoding]
    if array.dtype.newbyteorder("=").name != wanted:
        fix = _FIX.get((encoding, array.dtype.kind), f"convert: x.astype(np.{wanted})")
        raise _invalid(f"{array.dtype.name} array pushed to a {encoding} stream, which takes {wanted}: {fix}")
    return bytes(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def pieces(data: bytes, encoding: str, sample_rate_hz: int, max_bytes: int = 0) -> Iterator[bytes]:
    """`data` in pieces of at most CHUNK_MS and at most `max_bytes` (0: no such limit), samples kept whole."""
    width = BYTES_PER_SAMPLE[encoding]
    size = max(sample_rate_hz * CHUNK_MS // 1000, 1) * width
    if max_bytes:
        size = min(size, max(max_bytes // width, 1) * width)
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, _details(message))


def _details(message: str) -> ErrorDetails:
    return ErrorDetails(reason="AUDIO_TYPE_MISMATCH", fields={"audio_content": message})
