"""Rooms, channels, noise and microphones, drawn anew each time an utterance is used in training.

Works on a batch of equal lengths at once. Nothing here carries a label: every effect is drawn independently of how
aroused the utterance is, so that a model cannot lean on it.
"""

import dataclasses
import math

import torch
from torch import Tensor

from kibun.models.types import SAMPLE_RATE_HZ


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """Chances and ranges; dB and Hz."""

    colour_db: float = 3.0  # sd of the channel's gain at eight frequencies
    tilt_db_per_octave: float = 0.7  # sd of the channel's slope
    room_chance: float = 0.35
    reverberation_s: tuple[float, float] = (0.08, 0.5)
    band_limit_chance: float = 0.35
    lowest_cutoff_hz: float = 3400.0
    noise_chance: float = 0.9
    noise_snr_db: tuple[float, float] = (8.0, 50.0)
    babble_chance: float = 0.15
    clip_chance: float = 0.08
    mask_chance: float = 0.3
    mask_s: float = 0.25


class Augment:
    """Call on (B, N) waveforms; the generator makes it repeatable."""

    def __init__(self, options: AugmentOptions, generator: torch.Generator) -> None:
        self.options = options
        self.generator = generator

    def __call__(self, audio: Tensor) -> Tensor:
        """(B, N) -> (B, N), unit variance."""
        options = self.options
        audio = _unit(audio)
        audio = _unit(self._channel(audio))
        audio = torch.where(self._chance(audio, options.noise_chance), self._noisy(audio), audio)
        audio = torch.where(self._chance(audio, options.band_limit_chance), self._band_limited(audio), audio)
        clip = audio.clamp(-2.5, 2.5)
        audio = torch.where(self._chance(audio, options.clip_chance), clip, audio)
        return _unit(torch.where(self._chance(audio, options.mask_chance), self._masked(audio), audio))

    def alike(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """As calling it on each, (B, N) and (B, N), with the same rooms, channels and noise drawn for both."""
        state = self.generator.get_state()
        first = self(one)
        self.generator.set_state(state)
        return first, self(other)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _chance(self, audio: Tensor, probability: float) -> Tensor:
        return self._rand(len(audio), 1) < probability

    def _channel(self, audio: Tensor) -> Tensor:
        """Random colour and slope, and a small room, in one pass through the frequency domain."""
        count, size = audio.shape
        padded = size + SAMPLE_RATE_HZ // 2
        frequencies = torch.fft.rfftfreq(padded, 1 / SAMPLE_RATE_HZ)
        octaves = (frequencies.clamp(100, 7000) / 1000).log2()
        position = (octaves - octaves.min()) / (octaves.max() - octaves.min()) * 6.999  # eight knots
        left = position.long()
        gains = self._randn(count, 9) * self.options.colour_db
        gain_db = gains[:, left] * (1 - (position - left)) + gains[:, left + 1] * (position - left)
        gain_db = gain_db + self._randn(count, 1) * self.options.tilt_db_per_octave * octaves
        spectrum = torch.fft.rfft(audio, n=padded) * 10 ** (gain_db / 20)
        spectrum = spectrum * torch.fft.rfft(self._rooms(count), n=padded)
        shaped: Tensor = torch.fft.irfft(spectrum, n=padded)
        return shaped[:, :size]

    def _rooms(self, count: int) -> Tensor:
        """(B, 8000) impulse responses: a direct sound, and for some an exponentially fading tail."""
        low, high = self.options.reverberation_s
        decay_s = low + (high - low) * self._rand(count, 1)
        time_s = torch.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
        tail = self._randn(count, len(time_s)) * torch.exp(-6.9 * time_s / decay_s)
        energy = 10 ** (-(self._rand(count, 1) * 18 - 2) / 10)  # tail against direct sound: +2 .. -16 dB
        tail = tail / tail.square().sum(1, keepdim=True).sqrt() * energy.sqrt()
        tail = tail * self._chance(tail, self.options.room_chance)
        tail[:, 0] = 1.0
        return tail

    def _noisy(self, audio: Tensor) -> Tensor:
        """Coloured noise, or other utterances of the batch, at a random signal-to-noise ratio."""
        count, size = audio.shape
        frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ).clamp(min=60)
        slope = self._rand(count, 1) * 2 - 0.4  # amplitude exponent: from bluish to brown
        noise = torch.fft.irfft(torch.fft.rfft(self._randn(count, size)) * (frequencies / 1000) ** -slope, n=size)
        babble = sum((audio.roll(1 + k, 0).roll(k * size // 3, 1) for k in range(3)), torch.zeros_like(audio))
        noise = torch.where(self._chance(audio, self.options.babble_chance), babble, noise)
        low, high = self.options.noise_snr_db
        snr_db = low + (high - low) * self._rand(count, 1)
        return audio + _unit(noise) * 10 ** (-snr_db / 20)

    def _band_limited(self, audio: Tensor) -> Tensor:
        """A low-pass between 3.4 and 7.6 kHz, half the time with a high-pass between 60 and 300 Hz."""
        count, size = audio.shape
        frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
        top = self.options.lowest_cutoff_hz + self._rand(count, 1) * (7600 - self.options.lowest_cutoff_hz)
        bottom = (60 + 240 * self._rand(count, 1)) * self._chance(audio, 0.5)
        keep = torch.sigmoid((top - frequencies) / 100) * torch.sigmoid((frequencies - bottom) / 20)
        limited: Tensor = torch.fft.irfft(torch.fft.rfft(audio) * keep, n=size)
        return limited

    def _masked(self, audio: Tensor) -> Tensor:
        """Silence over one random stretch."""
        count, size = audio.shape
        length = self._rand(count, 1) * self.options.mask_s * SAMPLE_RATE_HZ
        start = self._rand(count, 1) * size
        position = torch.arange(size)
        return audio * ~((position >= start) & (position < start + length))


def _unit(audio: Tensor) -> Tensor:
    audio = audio - audio.mean(1, keepdim=True)
    return audio / audio.square().mean(1, keepdim=True).sqrt().clamp(min=math.sqrt(1e-7))
