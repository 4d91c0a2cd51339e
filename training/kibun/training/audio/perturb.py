"""Speed, noise, gaps and level, drawn anew for each utterance in each epoch, and the same again after a resume.

What is drawn hangs on the key alone, (seed, epoch, index) say: not on what was drawn before, the number of processes,
or the batch that an utterance is in. torchaudio resamples and mixes; see `kibun.models._torchaudio`.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from kibun.models._torchaudio import ensure_importable
from kibun.models.types import SAMPLE_RATE_HZ

# Speeds in whole percent: played at 90 % or 110 %, ten samples become eleven or nine, with small, exact filters.
SPEED_STEPS = 100


@dataclasses.dataclass(frozen=True)
class PerturbOptions:
    """Chances and ranges. Speed and level move what arousal sounds like, so the defaults are mild."""

    speeds: tuple[float, ...] = (0.95, 1.0, 1.05)  # one of them, each as likely; whole percents, 0.5 to 2
    noise_chance: float = 0.5
    noise_snr_db: tuple[float, float] = (10.0, 40.0)  # signal-to-noise ratio, uniform
    noise_tilt: tuple[float, float] = (0.0, 1.0)  # amplitude falls with frequency to this power: 0 white, 1 brown
    mask_count: int = 2  # silenced stretches, at most
    mask_s: float = 0.1  # of each, at most
    mask_share: float = 0.1  # of the utterance, each at most
    gain_db: tuple[float, float] = (0.0, 0.0)  # uniform; without effect on models that normalise each utterance

    def __post_init__(self) -> None:
        for speed in self.speeds:
            if not 0.5 <= speed <= 2 or abs(speed * SPEED_STEPS - round(speed * SPEED_STEPS)) > 1e-6:
                raise ValueError(f"speeds must be from 0.5 to 2 in steps of 0.01, not {speed}")
        if not self.speeds:
            raise ValueError("speeds must name at least one; (1.0,) leaves the speed as it is")
        for name in ("noise_snr_db", "noise_tilt", "gain_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} must be lowest and highest, is {(low, high)}")
        for name in ("noise_chance", "mask_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, is {getattr(self, name)}")
        if self.mask_count < 0 or self.mask_s < 0:
            raise ValueError(f"mask_count and mask_s must be 0 or more, are {self.mask_count} and {self.mask_s}")


class Perturb:
    """A pure function of waveform and key.

    Raises RuntimeError where torchaudio cannot be imported and the options ask for speed or noise: another resampler
    would make a run on another machine a different run.
    """

    def __init__(self, options: PerturbOptions | None = None) -> None:
        self.options = options or PerturbOptions()
        needs = self.options.noise_chance > 0 or set(self.options.speeds) != {1.0}
        if needs and ensure_importable() not in ("ok", "without-extension"):
            fix = "pip install 'kibun[train]', or set speeds to [1.0] and noise_chance to 0"
            raise RuntimeError(f"speed and noise perturbation need torchaudio ({ensure_importable()} here): {fix}")

    def __call__(self, waveform: Tensor, *, key: tuple[int, ...]) -> Tensor:
        """(N,) float32 at 16 kHz -> (M,) float32 at 16 kHz, M = ceil(N / speed); ``key``: integers, 0 or more."""
        options, generator = self.options, _generator(key)
        # Drawn in a fixed order and always, so that an option switched off leaves the others' draws as they are.
        speed = options.speeds[int(_uniform(generator, 0, len(options.speeds)))]
        noisy = _uniform(generator, 0, 1) < options.noise_chance
        snr_db, tilt = _uniform(generator, *options.noise_snr_db), _uniform(generator, *options.noise_tilt)
        gain_db = _uniform(generator, *options.gain_db)
        changed = change_speed(waveform, speed)  # (M,)
        changed = _masked(changed, options, generator)
        if noisy:
            changed = _with_noise(changed, snr_db, tilt, generator)
        return changed * 10 ** (gain_db / 20)


def change_speed(waveform: Tensor, speed: float) -> Tensor:
    """(..., N) -> (..., ceil(N / speed)): faster and higher by the same factor, at the same sampling rate.

    The factor is taken as a whole number of percents. (`torchaudio.functional.speed` cuts 16000 * 1.15 to 18399 Hz,
    which changes the factor and takes a filter for each of 16,000 phases.)
    """
    percent = round(speed * SPEED_STEPS)
    if percent == SPEED_STEPS:
        return waveform
    import torchaudio

    divisor = math.gcd(percent, SPEED_STEPS)
    faster: Tensor = torchaudio.functional.resample(waveform, percent // divisor, SPEED_STEPS // divisor)
    return faster


def _generator(key: tuple[int, ...]) -> torch.Generator:
    """Neighbouring keys give unrelated generators: numpy's SeedSequence mixes them. It takes (7,) and (7, 0) for the
    same, hence the length.
    """
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed & (2**63 - 1))


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator, dtype=torch.float64))


def _masked(waveform: Tensor, options: PerturbOptions, generator: torch.Generator) -> Tensor:
    """Up to ``mask_count`` stretches of silence, as from a dropped packet."""
    size = waveform.shape[-1]
    longest = min(options.mask_s * SAMPLE_RATE_HZ, options.mask_share * size)
    position = torch.arange(size)
    for _ in range(int(_uniform(generator, 0, options.mask_count + 1))):
        length = int(_uniform(generator, 0, longest + 1))
        start = int(_uniform(generator, 0, size - length + 1))
        waveform = waveform * ((position < start) | (position >= start + length))
    return waveform


def _with_noise(waveform: Tensor, snr_db: float, tilt: float, generator: torch.Generator) -> Tensor:
    """Steady noise, as from a fan or a line, whose spectrum falls with frequency."""
    import torchaudio

    size = waveform.shape[-1]
    padded = -(-size // 1600) * 1600  # Fourier transforms are fast for such sizes
    white = torch.fft.rfft(torch.randn(padded, generator=generator))
    frequencies_hz = torch.fft.rfftfreq(padded, 1 / SAMPLE_RATE_HZ).clamp(min=60)
    noise = torch.fft.irfft(white * (frequencies_hz / 1000) ** -tilt, n=padded)[:size]  # (M,)
    mixed: Tensor = torchaudio.functional.add_noise(waveform, noise, torch.tensor(snr_db))
    return mixed
