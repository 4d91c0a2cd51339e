"""Reading a corpus' audio: soundfile decodes, torchaudio resamples, soxr does where torchaudio is not to be had."""

import math
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from kibun.models._torchaudio import ensure_importable
from kibun.training.errors import ManifestError

SAMPLE_RATE_HZ = 16_000
# torchaudio keeps one filter per output phase: a rate that shares no large factor with 16 kHz would take gigabytes.
MOST_PHASES = 640


def load_audio(path: Path) -> NDArray[np.float32]:
    """(N,) float32 mono samples at 16 kHz, full scale ±1; any other rate is resampled.

    Reads what libsndfile does: WAV, FLAC, OGG, MP3 and more. A recording at 16 kHz comes out bit for bit.

    Raises:
        ManifestError: the file is missing, cannot be decoded, is empty, or has several channels.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)  # (N, channels)
    except (OSError, soundfile.LibsndfileError) as error:
        raise ManifestError(f"{path}: cannot be read as audio ({error}); give WAV, FLAC, OGG or MP3") from error
    if samples.shape[1] != 1:
        raise ManifestError(
            f"{path}: has {samples.shape[1]} channels, must be mono: keep the speaker's own channel, or mix them down"
        )
    if not len(samples):
        raise ManifestError(f"{path}: has no samples")
    return resample(samples[:, 0], rate_hz, SAMPLE_RATE_HZ)


def audio_seconds(path: Path) -> float:
    """Duration from the header alone. Raises ManifestError like `load_audio`."""
    try:
        header = soundfile.info(str(path))
    except (OSError, soundfile.LibsndfileError) as error:
        reason = "no such file" if not path.exists() else f"cannot be read as audio ({error})"
        raise ManifestError(f"{path}: {reason}; give WAV, FLAC, OGG or MP3") from error
    if header.channels != 1:
        raise ManifestError(
            f"{path}: has {header.channels} channels, must be mono: keep the speaker's own channel, or mix them down"
        )
    if header.frames <= 0:
        raise ManifestError(f"{path}: has no samples")
    return float(header.frames) / float(header.samplerate)


def resample(audio: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """(..., N) float32 -> (..., ceil(N * to_hz / from_hz)) float32; a batch of equal lengths in one call."""
    if from_hz == to_hz:
        return np.ascontiguousarray(audio, dtype=np.float32)
    if to_hz // math.gcd(from_hz, to_hz) <= MOST_PHASES and ensure_importable() in ("ok", "without-extension"):
        import torch
        import torchaudio

        resampled: NDArray[np.float32] = torchaudio.functional.resample(
            torch.from_numpy(np.ascontiguousarray(audio)), from_hz, to_hz
        ).numpy()
        return resampled
    return _resample_soxr(audio, from_hz, to_hz)


def _resample_soxr(audio: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    import soxr

    size = -(-audio.shape[-1] * to_hz // from_hz)
    flat = np.ascontiguousarray(audio, dtype=np.float32).reshape(-1, audio.shape[-1])  # (B, N)
    rows = [np.asarray(soxr.resample(row, from_hz, to_hz), dtype=np.float32)[:size] for row in flat]
    # soxr rounds the length, torchaudio rounds it up: at most one sample of silence makes them equal.
    padded = [np.pad(row, (0, size - len(row))) for row in rows]
    return np.stack(padded).reshape(*audio.shape[:-1], size)
