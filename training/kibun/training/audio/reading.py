"""Reading a corpus' audio: soundfile decodes, soxr resamples."""

from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.errors import ManifestError

SAME_DURATION_S = 0.1
# Some programs count a few header bytes too many.
HEADER_SLACK_BYTES = 1024


def load_audio(path: Path) -> NDArray[np.float32]:
    """(N,) float32 mono samples at 16 kHz, full scale ±1; any other rate is resampled.

    Reads what libsndfile does: WAV, FLAC, OGG, MP3 and more. A recording at 16 kHz comes out bit for bit.

    Raises:
        ManifestError: the file is missing, cannot be decoded, is empty or cut off, has several channels, or has samples
            that are no finite numbers.
    """
    samples, rate_hz = _decoded(path)
    return resample(samples, rate_hz, SAMPLE_RATE_HZ)


def audio_seconds(path: Path, decode: bool = False) -> float:
    """Duration from the header; ``decode``: check every sample as well. Raises ManifestError as `load_audio` does."""
    try:
        header = soundfile.info(str(path))
    except (OSError, soundfile.LibsndfileError) as error:
        raise _unreadable(path, error) from error
    _check(path, header.channels, header.frames)
    if decode:
        samples, _rate_hz = _decoded(path)
        if header.frames - len(samples) > SAME_DURATION_S * header.samplerate:
            raise ManifestError(f"{path}: is cut off: {len(samples)} of {header.frames} samples are there")
    return float(header.frames) / float(header.samplerate)


def _decoded(path: Path) -> tuple[NDArray[np.float32], int]:
    """(N,) samples and their rate."""
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)  # (N, channels)
    except (OSError, soundfile.LibsndfileError) as error:
        raise _unreadable(path, error) from error
    _check(path, samples.shape[1], len(samples))
    if not np.isfinite(samples).all():
        raise ManifestError(f"{path}: has samples that are no finite numbers; write the file anew")
    return samples[:, 0], int(rate_hz)


def _check(path: Path, channels: int, frames: int) -> None:
    if channels != 1:
        fix = "keep the speaker's own channel, or mix them down"
        raise ManifestError(f"{path}: has {channels} channels, must be mono: {fix}")
    if frames <= 0:
        raise ManifestError(f"{path}: has no samples")
    with path.open("rb") as file:
        head = file.read(12)
    size = int.from_bytes(head[4:8], "little")
    # libsndfile takes a WAV that was cut off for a short one. Sizes of 0 and 2^32 - 1 mean "not known when written".
    if head[:4] == b"RIFF" and size not in (0, 0xFFFFFFFF) and size > path.stat().st_size + HEADER_SLACK_BYTES:
        raise ManifestError(f"{path}: is cut off: {path.stat().st_size} of {size + 8} bytes are there; copy it again")


def _unreadable(path: Path, error: Exception) -> ManifestError:
    if not path.exists():
        return ManifestError(f"{path}: no such file")
    return ManifestError(f"{path}: cannot be read as audio ({error}); give WAV, FLAC, OGG or MP3")


def resample(audio: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """(..., N) float32 -> (..., ceil(N * to_hz / from_hz)) float32; rows of a batch one by one."""
    if from_hz == to_hz:
        return np.ascontiguousarray(audio, dtype=np.float32)
    size = -(-audio.shape[-1] * to_hz // from_hz)
    flat = np.ascontiguousarray(audio, dtype=np.float32).reshape(-1, audio.shape[-1])  # (B, N)
    rows = [np.asarray(soxr.resample(row, from_hz, to_hz), dtype=np.float32)[:size] for row in flat]
    padded = [np.pad(row, (0, size - len(row))) for row in rows]  # soxr rounds the length: a sample may be missing
    return np.stack(padded).reshape(*audio.shape[:-1], size)
