"""Speech as it might have been recorded another day: speed, room and channel, noise, gaps, level, drawn at random.

What is drawn depends on the key alone, such as (seed, epoch, index): not on what was drawn before, the number of
processes, or the batch that an utterance is in. Nothing depends on a label, so a model cannot learn one from it.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.audio.reading import resample

# Speeds in whole percent: played at 90 % or 110 %, ten samples become eleven or nine, with small, exact filters.
SPEED_STEPS = 100
FAST_SIZE = 1600  # Fourier transforms are fast for multiples of it
RESPONSE_SAMPLES = SAMPLE_RATE_HZ // 2  # of a room


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """Chances and ranges. Speed and level change what arousal sounds like, so the defaults are mild."""

    speeds: tuple[float, ...] = (0.95, 1.0, 1.05)  # one of them, each as likely; whole percents, 0.5 to 2
    colour_db: float = 0.0  # standard deviation of the channel's gain at eight frequencies
    tilt_db_per_octave: float = 0.0  # standard deviation of the channel's slope
    room_chance: float = 0.0
    reverberation_s: tuple[float, float] = (0.08, 0.5)  # time to fall by 60 dB, uniform
    noise_chance: float = 0.5
    noise_snr_db: tuple[float, float] = (10.0, 40.0)  # signal-to-noise ratio, uniform
    noise_tilt: tuple[float, float] = (0.0, 1.0)  # amplitude falls with frequency to this power: 0 white, 1 brown
    band_limit_chance: float = 0.0
    lowest_cutoff_hz: float = 3400.0
    clip_chance: float = 0.0
    mask_chance: float = 1.0
    mask_count: int = 2  # silenced stretches, at most
    mask_s: float = 0.1  # of each, at most
    mask_share: float = 0.1  # of the utterance, each at most
    gain_db: tuple[float, float] = (0.0, 0.0)  # uniform; without effect on models that normalise each utterance
    normalise: bool = False  # to zero mean and unit variance at the end

    def __post_init__(self) -> None:
        for speed in self.speeds:
            if not 0.5 <= speed <= 2 or abs(speed * SPEED_STEPS - round(speed * SPEED_STEPS)) > 1e-6:
                raise ValueError(f"speeds must be from 0.5 to 2 in steps of 0.01, not {speed}")
        if not self.speeds:
            raise ValueError("speeds must name at least one; (1.0,) leaves the speed as it is")
        for name in ("noise_snr_db", "noise_tilt", "gain_db", "reverberation_s"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} must be lowest and highest, is {(low, high)}")
        for name in ("noise_chance", "mask_share", "mask_chance", "room_chance", "band_limit_chance", "clip_chance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, is {getattr(self, name)}")
        if self.mask_count < 0 or self.mask_s < 0:
            raise ValueError(f"mask_count and mask_s must be 0 or more, are {self.mask_count} and {self.mask_s}")


ROOMS = AugmentOptions(
    speeds=(1.0,),
    colour_db=3.0,
    tilt_db_per_octave=0.7,
    room_chance=0.35,
    noise_chance=0.9,
    noise_snr_db=(8.0, 50.0),
    noise_tilt=(-0.4, 1.6),
    band_limit_chance=0.35,
    clip_chance=0.08,
    mask_chance=0.6,
    mask_count=1,
    mask_s=0.25,
    mask_share=1.0,
    normalise=True,
)


class Augment:
    """A pure function of waveform and key."""

    def __init__(self, options: AugmentOptions | None = None) -> None:
        self.options = options or AugmentOptions()

    def __call__(self, waveform: Tensor, *, key: tuple[int, ...]) -> Tensor:
        """(N,) float32 at 16 kHz -> (M,) float32 at 16 kHz, M = ceil(N / speed); ``key``: integers, 0 or more."""
        for number, (effect, chance) in enumerate(EFFECTS.items()):
            # One generator each: an effect that is switched off leaves the others' draws as they are.
            generator = _generator((*key, number))
            if chance is None or _uniform(generator, 0, 1) < getattr(self.options, chance):
                waveform = effect(waveform, self.options, generator)
        return _unit(waveform) if self.options.normalise else waveform


def change_speed(waveform: Tensor, speed: float) -> Tensor:
    """(..., N) -> (..., ceil(N / speed)): faster and higher by the same factor, at the same sampling rate.

    The factor is taken as a whole number of percents.
    """
    percent = round(speed * SPEED_STEPS)
    if percent == SPEED_STEPS:
        return waveform
    return torch.from_numpy(resample(waveform.numpy(), percent, SPEED_STEPS))


def add_noise(waveform: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """(N,) and (N,) -> (N,) at this signal-to-noise ratio."""
    ratio = waveform.square().sum() / noise.square().sum().clamp(min=1e-12)
    return waveform + noise * ratio.sqrt() * 10 ** (-snr_db / 20)


# ---- effects: (N,), options, generator -> (M,) ---------------------------------------------------------------------


def _speed(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    return change_speed(waveform, options.speeds[int(_uniform(generator, 0, len(options.speeds)))])


def _channel(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    """The random colour and slope of a line or a microphone."""
    if not options.colour_db and not options.tilt_db_per_octave:
        return waveform  # bit for bit
    gains_db = torch.randn(8, generator=generator) * options.colour_db
    slope = float(torch.randn(1, generator=generator)) * options.tilt_db_per_octave

    def gain(frequencies_hz: Tensor) -> Tensor:
        octaves = (frequencies_hz.clamp(100, 7000) / 1000).log2()
        position = (octaves - octaves.min()) / (octaves.max() - octaves.min()) * 6.999  # between eight knots
        left = position.long()
        gain_db = gains_db[left] * (1 - (position - left)) + gains_db[left + 1] * (position - left)
        return torch.pow(10.0, (gain_db + slope * octaves) / 20)

    return _level_of(waveform, _filtered(waveform, gain))


def _room(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    """A direct sound and an exponentially fading tail."""
    time_s = torch.arange(RESPONSE_SAMPLES) / SAMPLE_RATE_HZ
    fading = torch.exp(-6.9 * time_s / _uniform(generator, *options.reverberation_s))
    tail = torch.randn(RESPONSE_SAMPLES, generator=generator) * fading
    energy = 10 ** (-_uniform(generator, -2, 16) / 10)  # of the tail against the direct sound: +2 .. -16 dB
    response = tail / tail.square().sum().sqrt() * math.sqrt(energy)
    response[0] = 1.0
    size, padded = len(waveform), _fast(len(waveform) + RESPONSE_SAMPLES)
    spectrum = torch.fft.rfft(waveform, n=padded) * torch.fft.rfft(response, n=padded)
    return _level_of(waveform, torch.fft.irfft(spectrum, n=padded)[:size])


def _noise(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    """Steady noise, as from a fan or a line, whose spectrum falls with frequency."""
    snr_db, tilt = _uniform(generator, *options.noise_snr_db), _uniform(generator, *options.noise_tilt)
    white = torch.randn(len(waveform), generator=generator)
    return add_noise(waveform, _filtered(white, lambda hz: (hz.clamp(min=60) / 1000) ** -tilt), snr_db)


def _band_limit(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    """A low-pass between 3.4 and 7.6 kHz, half the time with a high-pass between 60 and 300 Hz."""
    top = _uniform(generator, options.lowest_cutoff_hz, 7600)
    bottom = _uniform(generator, 60, 300) if _uniform(generator, 0, 1) < 0.5 else 0.0
    return _filtered(waveform, lambda hz: torch.sigmoid((top - hz) / 100) * torch.sigmoid((hz - bottom) / 20))


def _clip(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    """A microphone that is too loud, by a limit of 2.5 times the standard deviation."""
    limit = 2.5 * float(waveform.std(correction=0))
    return waveform.clamp(-limit, limit)


def _mask(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    """Up to ``mask_count`` stretches of silence, as from a dropped packet."""
    size = len(waveform)
    longest = min(options.mask_s * SAMPLE_RATE_HZ, options.mask_share * size)
    waveform = waveform.clone()
    for _ in range(int(_uniform(generator, 0, options.mask_count + 1))):
        length = int(_uniform(generator, 0, longest + 1))
        start = int(_uniform(generator, 0, size - length + 1))
        waveform[start : start + length] = 0
    return waveform


def _gain(waveform: Tensor, options: AugmentOptions, generator: Generator) -> Tensor:
    return waveform * 10 ** (_uniform(generator, *options.gain_db) / 20)


# In this order, each with the option that is its chance; None: always.
EFFECTS: dict[Callable[[Tensor, AugmentOptions, Generator], Tensor], str | None] = {
    _speed: None,
    _channel: None,
    _room: "room_chance",
    _noise: "noise_chance",
    _band_limit: "band_limit_chance",
    _clip: "clip_chance",
    _mask: "mask_chance",
    _gain: None,
}


# ---- shared --------------------------------------------------------------------------------------------------------


def _generator(key: tuple[int, ...]) -> Generator:
    """Neighbouring keys give unrelated generators: numpy's SeedSequence mixes them. It takes (7,) and (7, 0) for the
    same, hence the length.
    """
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0])
    return Generator().manual_seed(seed & (2**63 - 1))


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator, dtype=torch.float64))


def _fast(size: int) -> int:
    return -(-size // FAST_SIZE) * FAST_SIZE


def _filtered(waveform: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """(N,) -> (N,) with the amplitude at each frequency in Hz multiplied by `gain`."""
    padded = _fast(len(waveform))
    spectrum = torch.fft.rfft(waveform, n=padded) * gain(torch.fft.rfftfreq(padded, 1 / SAMPLE_RATE_HZ))
    filtered: Tensor = torch.fft.irfft(spectrum, n=padded)
    return filtered[: len(waveform)]


def _level_of(waveform: Tensor, changed: Tensor) -> Tensor:
    """`changed` at the root mean square of `waveform`."""
    return changed * (waveform.square().mean() / changed.square().mean().clamp(min=1e-12)).sqrt()


def _unit(waveform: Tensor) -> Tensor:
    waveform = waveform - waveform.mean()
    return waveform / waveform.square().mean().sqrt().clamp(min=math.sqrt(1e-7))
