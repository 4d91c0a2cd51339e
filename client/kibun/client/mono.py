"""Recorded channels -> what the service takes: one channel, 8 to 48 kHz."""

from typing import Any

import numpy as np

MIN_RATE_HZ, MAX_RATE_HZ = 8000, 48000

# Channels that are alike carry one voice; below this correlation they carry several, or one out of phase.
_ALIKE = 0.9
# A channel this far below the loudest holds nothing but its own noise.
_SILENT_DB = -40.0

# What the service takes of float samples; beyond ±1 it clips.
_LARGEST = 8.0

Samples = np.ndarray[Any, Any]


def unusable(block: Samples, start_s: float) -> tuple[str, str] | None:
    """What is wrong with samples as floats, and the reason's name; None for those that the service takes."""
    if block.dtype == np.int16:
        return None
    largest = float(np.abs(block).max(initial=0.0))  # NaN where one of them is
    if largest <= _LARGEST:
        return None
    if np.isfinite(largest):
        return (
            f"holds a sample of magnitude {largest:g} near {start_s:.1f} s, where floats lie within ±1: divide them by "
            "32768 if they were 16-bit integers, e.g. `ffmpeg -i FILE -af volume=1/32768 NEW.flac`",
            "AUDIO_OUT_OF_RANGE",
        )
    return (
        f"holds NaN or infinity near {start_s:.1f} s: write it again from its source, or with these samples set to 0",
        "NON_FINITE_AUDIO",
    )


class Mono:
    """Makes blocks of shape (n, channels), int16 or float32, into blocks of shape (m,) at `sample_rate_hz`.

    `channel`: the one to take, from 1; None: the mean of all. What is recorded above 48 kHz is resampled to 48 kHz.
    """

    def __init__(self, recorded_rate_hz: int, channels: int, channel: int | None) -> None:
        self.sample_rate_hz = min(recorded_rate_hz, MAX_RATE_HZ)
        self._channel = channel
        self._channels = channels
        self._resampler = None
        if recorded_rate_hz > MAX_RATE_HZ:
            import soxr

            self._resampler = soxr.ResampleStream(recorded_rate_hz, MAX_RATE_HZ, 1, dtype="float32")

    def convert(self, block: Samples) -> Samples:
        """The next block."""
        mono = self._one(block)
        return mono if self._resampler is None else self._resample(mono, last=False)

    def finish(self) -> Samples:
        """What the resampler still held back; empty without one."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        return self._resample(np.zeros(0, np.float32), last=True)

    def _one(self, block: Samples) -> Samples:
        if self._channel is not None or self._channels == 1:
            return np.ascontiguousarray(block[:, (self._channel or 1) - 1])
        mean: Samples = block.mean(axis=1).astype(np.float32)
        return mean

    def _resample(self, mono: Samples, *, last: bool) -> Samples:
        assert self._resampler is not None
        resampled: Samples = self._resampler.resample_chunk(mono, last=last)
        return resampled


class ChannelComparison:
    """Whether the channels of a recording differ, so that their mean mixes what should be kept apart."""

    def __init__(self, channels: int) -> None:
        self._frames = 0
        self._sums = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, block: Samples) -> None:
        """Takes a block of shape (n, channels)."""
        scaled = block.astype(np.float64) / (32768 if block.dtype == np.int16 else 1)
        self._frames += len(block)
        self._sums += scaled.sum(axis=0)
        self._products += scaled.T @ scaled

    @property
    def frames(self) -> int:
        """How many frames were compared."""
        return self._frames

    @property
    def silent(self) -> list[int]:
        """Numbers, from 1, of channels that hold nothing beside the others."""
        power = np.diag(self._covariance())
        loudest = power.max(initial=0.0)
        return [n for n, p in enumerate(power, 1) if loudest > 0 and p <= loudest * 10 ** (_SILENT_DB / 10)]

    @property
    def differ(self) -> bool:
        """Whether two channels that are not silent carry different sound."""
        covariance = self._covariance()
        sounding = [n - 1 for n in range(1, len(covariance) + 1) if n not in self.silent]
        part = covariance[np.ix_(sounding, sounding)]
        scale = np.sqrt(np.diag(part))
        if len(sounding) < 2 or not (scale > 0).all():
            return False
        return bool((part / np.outer(scale, scale)).min() < _ALIKE)

    def _covariance(self) -> Samples:
        if not self._frames:
            return self._products
        covariance: Samples = self._products / self._frames - np.outer(self._sums, self._sums) / self._frames**2
        return covariance
