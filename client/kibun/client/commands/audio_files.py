"""Reading audio files (WAV, FLAC, OGG, MP3) in pieces, as they are to be streamed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from kibun.client.commands.failure import CommandError, UsageError
from kibun.client.options import Encoding

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
MIN_RATE_HZ, MAX_RATE_HZ = 8000, 48000

# Formats that 16-bit samples hold without loss; all others are sent as 32-bit floats.
_SIXTEEN_BITS_ARE_ENOUGH = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")


@dataclass(frozen=True)
class AudioFile:
    """A readable file, and how it will be sent: mono, at its own sample rate."""

    path: Path
    sample_rate_hz: int
    channels: int
    duration_s: float
    encoding: Encoding
    # Channel to send, from 1; None: the mean of all.
    channel: int | None = None

    def chunks(self, chunk_ms: int, start_s: float = 0.0, end_s: float | None = None) -> Iterator[np.ndarray[Any, Any]]:
        """The samples of [start, end) in pieces, each of shape (n,), int16 or float32. Raises CommandError."""
        size = max(self.sample_rate_hz * chunk_ms // 1000, 1)
        first = round(start_s * self.sample_rate_hz)
        last = None if end_s is None else round(end_s * self.sample_rate_hz)
        dtype = "int16" if self.encoding == "linear16" else "float32"
        try:
            with soundfile.SoundFile(self.path) as file:
                file.seek(min(first, file.frames))
                left = None if last is None else last - first
                while left is None or left > 0:
                    samples = file.read(size if left is None else min(size, left), dtype=dtype, always_2d=True)
                    if not len(samples):
                        return
                    if left is not None:
                        left -= len(samples)
                    yield self._mono(samples)
        except soundfile.LibsndfileError as error:
            raise CommandError(f"{self.path} is damaged and cannot be read to its end ({error})") from error

    def _mono(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:  # (n, channels) -> (n,)
        if self.channel is not None:
            return np.ascontiguousarray(samples[:, self.channel - 1])
        if self.channels == 1:
            return samples[:, 0]
        mean: np.ndarray[Any, Any] = samples.mean(axis=1).astype(np.float32)
        return mean


def open_audio(path: Path, channel: int | None = None) -> AudioFile:
    """Looks at a file. Raises UsageError for one that is missing, is no audio, or cannot be sent as it is."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file in it, or use `kibun analyze {path}`")
    if not path.exists():
        raise UsageError(f"no such file: {path}")
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise UsageError(
            f"{path} is not audio that can be read here (WAV, FLAC, OGG, MP3): convert it, e.g. "
            f"`ffmpeg -i {path.name} {path.stem}.flac`"
        ) from error
    if info.frames == 0:
        raise UsageError(f"{path} holds no audio: its length is 0")
    if not MIN_RATE_HZ <= info.samplerate <= MAX_RATE_HZ:
        raise UsageError(
            f"{path} has a sample rate of {info.samplerate} Hz; the service takes {MIN_RATE_HZ} to {MAX_RATE_HZ}: "
            f"resample it, e.g. `sox {path.name} -r 16000 {path.stem}-16k.wav`"
        )
    if channel is not None and not 1 <= channel <= info.channels:
        raise UsageError(f"{path} has {info.channels} channel(s), none numbered {channel}: choose 1 to {info.channels}")
    sixteen = info.subtype in _SIXTEEN_BITS_ARE_ENOUGH and (info.channels == 1 or channel is not None)
    return AudioFile(
        path=path,
        sample_rate_hz=info.samplerate,
        channels=info.channels,
        duration_s=info.frames / info.samplerate,
        encoding="linear16" if sixteen else "float32",
        channel=channel,
    )


def find_audio(paths: list[Path]) -> list[Path]:
    """Files as named, and all audio files below folders, in order of their names. Raises UsageError."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}")
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in SUFFIXES and entry.is_file())
        if not below:
            raise UsageError(f"no audio in {path} or below it: looked for {', '.join(SUFFIXES)}")
        found.extend(below)
    return found
