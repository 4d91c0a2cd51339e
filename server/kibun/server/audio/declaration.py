"""Notices audio that is not what its client declared: another encoding or byte order, several channels.

Sound is predictable: a sample says much about the next. Bytes that are read in a wrong way are less so. Each block of a
stream is therefore read in every way that clients are known to mix up, and the reading that predicts best, in bits per
byte, is the likely one. Two channels taken for one show as even and odd samples that differ, or as samples that lie
nearer to the next but one than to the next.

What is found depends on the stream's bytes alone: neither on how they were sent nor on a clock. A wrong sample rate
changes none of this: see voice_speed.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kibun.server.audio.decoder import AudioFormat, alaw_table, mulaw_table

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

#: Readings of bytes, as clients know them. The first four are what a client may declare.
NAMES = {
    "linear16": "16-bit integers, little-endian (LINEAR16)",
    "float32": "32-bit floats (FLOAT32)",
    "mulaw": "mu-law (MULAW)",
    "alaw": "A-law (ALAW)",
    "int16be": "16-bit integers in big-endian order, or off by one byte",
    "float32be": "32-bit floats in big-endian order",
    "float64": "64-bit floats",
    "int24": "24-bit integers",
    "int32": "32-bit integers",
    "uint8": "unsigned 8-bit integers",
    "int8": "signed 8-bit integers",
}
_DECLARABLE = ("linear16", "float32", "mulaw", "alaw")
_ONE_BYTE = ("mulaw", "alaw", "uint8", "int8")
_FLOATS = ("float32", "float32be", "float64")
STEREO, SILENT_CHANNEL = "stereo", "silent channel"

_BLOCK, _SHORT_BLOCK = 1920, 960  # samples as declared, the latter below 12 kHz; a multiple of every reading's sample
_WINDOW = 48  # samples that share a level: 1 to 6 ms
_GAIN, _SURE = 0.5, 0.3  # bits per byte: another reading is better, the declared one is the best
_SMOOTH = 0.5  # most that a likely reading may change from sample to sample, in power; white noise has 2
_SMOOTH_APART = 1.4  # the same, from a sample to the next but one
_FEW = 0.6  # share of a block's samples above which its two commonest values make it no evidence
_UNEVEN = 0.5  # sum of the differences of two distributions, 0..2
_RAIL_SHARE = 0.02  # so many samples at both ends of the range are clipped sound
_DECIBELS = 1.5  # by which even and odd differences differ in two channels
_ENOUGH, _AT_LEAST = 6, 3  # blocks: to warn, to say nothing else meanwhile
_PLENTY, _UNANIMOUS = 12, 6  # blocks, of which nearly all, or all, are for the declaration: to be sure that all is well
_SHARE = 0.8  # of the blocks that are evidence
_DENSE, _THINNED, _MOST = 16, 8, 32  # blocks judged one after the other; then every eighth, up to so many

#: Of a mean over a window's samples but the last none, one or two.
_SHARES = [np.array([1 / (_WINDOW - beyond)] * (_WINDOW - beyond) + [0] * beyond, np.float32) for beyond in range(3)]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A field of the declaration that the audio contradicts.

    Attributes:
        reason: UPPER_SNAKE_CASE, stable.
        field: of the request.
        likely: what the audio seems to be: a key of `NAMES`, or "stereo".
        message: what was seen, and what to do.
    """

    reason: str
    field: str
    likely: str
    message: str


class _Outcome(NamedTuple):
    """Of one block. Each part is None where the block tells nothing of it."""

    end: int  # samples of the stream before the block's end
    encoding: str | None  # what it is instead of the declared one; "" if that fits
    channels: str | None  # STEREO, SILENT_CHANNEL or "" for one channel


class DeclarationCheck:
    """Takes the bytes of one stream and compares them with the declaration `fmt`, until it is sure."""

    def __init__(self, fmt: AudioFormat) -> None:
        self._format = fmt
        block = _BLOCK if fmt.sample_rate_hz >= 12_000 else _SHORT_BLOCK
        self._block, self._block_bytes = block, block * fmt.sample_bytes
        self._buffer = bytearray()
        self._position = 0  # samples before the buffer
        self._active = 0  # blocks that are not constant
        self._outcomes: list[_Outcome] = []
        self.settled = False  # whether `push` will find nothing more

    def push(self, payload: bytes) -> Suspicion | None:
        """Takes the next bytes; returns what has become certain with them, once a stream."""
        if self.settled:
            return None
        self._buffer += payload
        begin = 0
        found = None
        while not self.settled and len(self._buffer) - begin >= self._block_bytes:
            raw = bytes(self._buffer[begin : begin + self._block_bytes])
            begin += self._block_bytes
            self._position += self._block
            if self._judges(raw):
                encoding, channels = judge(raw, self._format.encoding)
                self._outcomes.append(_Outcome(self._position, encoding, channels))
                found = self._verdict(self._outcomes, _ENOUGH)
                self.settled = found is not None or _all_well(self._outcomes) or len(self._outcomes) >= _MOST
        del self._buffer[:begin]
        return found

    def end_turn(self) -> Suspicion | None:
        """The turn has ended, and with it the last sample; returns what is likely after so little, once a stream."""
        self._position += len(self._buffer) // self._format.sample_bytes
        self._buffer.clear()
        if self.settled:
            return None
        found = self._verdict(self._outcomes, _AT_LEAST)
        self.settled = found is not None
        return found

    def suspects(self, end: int) -> bool:
        """Whether the audio before sample `end`, as declared, makes the declaration doubtful."""
        return self._verdict([o for o in self._outcomes if o.end <= end], _AT_LEAST) is not None

    def _judges(self, raw: bytes) -> bool:
        if raw.count(raw[:1]) == len(raw):
            return False
        self._active += 1
        return self._active <= _DENSE or self._active % _THINNED == 0

    def _verdict(self, outcomes: Sequence[_Outcome], least: int) -> Suspicion | None:
        encodings, channels = _evidence(outcomes)
        others, several = Counter(filter(None, encodings)), Counter(filter(None, channels))
        if others.total() >= max(least, _SHARE * len(encodings)):
            return self._other_encoding(others.most_common(1)[0][0])
        if several.total() >= max(least, _SHARE * len(channels)) and others.total() <= (1 - _SHARE) * several.total():
            return self._several_channels(several.most_common(1)[0][0])
        return None

    def _other_encoding(self, likely: str) -> Suspicion:
        declared = self._format.encoding
        fix = f"Set it to {likely.upper()}" if likely in _DECLARABLE else f"Convert the samples to {declared.upper()}"
        text = (
            f"the audio looks like {NAMES[likely]}; is {declared.upper()} in audio_config.encoding what you send? {fix}"
        )
        return Suspicion("ENCODING_MISMATCH_SUSPECTED", "audio_config.encoding", likely, text)

    def _several_channels(self, likely: str) -> Suspicion:
        seen = (
            "every second sample is silent, as if one of two channels were, or as in 32-bit integers"
            if likely == SILENT_CHANNEL
            else "every second sample belongs together, as with two channels in turn (stereo)"
        )
        text = (
            f"{seen}; is one channel, as declared in audio_config.audio_channel_count, what you send? "
            "Mix the channels down, or send one of them"
        )
        return Suspicion("CHANNELS_MISMATCH_SUSPECTED", "audio_config.audio_channel_count", "stereo", text)


def _evidence(outcomes: Sequence[_Outcome]) -> tuple[list[str], list[str]]:
    """What the latest blocks say of the encoding and of the channels, those left out that say nothing."""
    encodings = [o.encoding for o in outcomes if o.encoding is not None]
    channels = [o.channels for o in outcomes if o.channels is not None]
    return encodings[-_PLENTY:], channels[-_PLENTY:]


def _all_well(outcomes: Sequence[_Outcome]) -> bool:
    """Whether there is enough evidence, and all of it, or plenty of it, and nearly all, for the declaration."""

    def well(evidence: list[str]) -> bool:
        fits = evidence.count("")
        return fits >= _UNANIMOUS and (fits == len(evidence) or (len(evidence) == _PLENTY and fits >= _SHARE * _PLENTY))

    return all(map(well, _evidence(outcomes)))


# ---- one block


def judge(raw: bytes, declared: str) -> tuple[str | None, str | None]:
    """What a block's encoding and channels are instead of what was declared.

    `raw`: whole samples, a multiple of 24 bytes. Either part of the answer is "" if the declaration fits, and None if
    there is no telling: of silence, square waves, sound clipped at both ends, noise.
    """
    block = np.frombuffer(raw, np.uint8)
    with np.errstate(all="ignore"):  # floats of bytes that are none
        readings = _readings(block, floats_only=declared == "float32")  # others have been refused: see the decoder
        samples = readings.get(declared, block.view("<f4"))  # the latter: floats too small to be sound
        if _few_values(samples) or (declared == "linear16" and _clipped(block)):
            return None, None
        rivals = _fits(readings)
        own = rivals.pop(declared, _Fit(np.inf, np.inf, np.inf))
        encoding: str | None = ""
        if rivals:
            best = min(rivals, key=lambda name: rivals[name].bits)
            gain = own.bits - rivals[best].bits
            if gain >= _GAIN and (best in _FLOATS or not _one_silent(samples)):
                return (best if _plausible(best, rivals[best], declared, own, readings[best], block) else None), None
            encoding = "" if -gain >= _SURE else None
        return encoding, _channels(samples, own)


class _Fit(NamedTuple):
    """How well a reading fits."""

    bits: float  # per byte, to say a sample when those before are known
    roughness: float  # power of what changes from sample to sample, of that of the samples; 2 for white noise
    roughness_of_two: float  # the same from a sample to the next but one


def _plausible(name: str, fit: _Fit, declared: str, own: _Fit, samples: Floats, block: Bytes) -> bool:
    """Whether a reading that predicts better is sound, and not an accident of few values or of pure tones."""
    roughness = min(fit.roughness, fit.roughness_of_two) if name in _FLOATS else fit.roughness
    if roughness > _SMOOTH:
        return False
    if declared in _ONE_BYTE:  # the bytes of a number are not alike, those of codes are
        return name in _ONE_BYTE or _uneven(block, _BYTES[name])
    # 8-bit sound scaled to 16 bits has low bytes that hardly change; then odd and even bytes are not alike.
    return roughness <= 1.1 * own.roughness and not (name in _ONE_BYTE and _channels(samples, fit))


def _uneven(block: Bytes, width: int) -> bool:
    """Whether the first and the last of each `width` bytes have other values, as those of a number have."""
    first, last = block[::width], block[width - 1 :: width]
    shares = [np.bincount(part >> 4, minlength=16) / len(part) for part in (first, last)]
    signs = [np.count_nonzero(part + np.uint8(1) <= 1) / len(part) for part in (first, last)]  # 0x00 and 0xFF
    return bool(np.abs(shares[0] - shares[1]).sum() > _UNEVEN or abs(signs[0] - signs[1]) > _UNEVEN)


def _fits(readings: dict[str, Floats]) -> dict[str, _Fit]:
    """Of all readings in one go: what numpy does for a call takes longer than these few samples."""
    if not readings:
        return {}
    counts = np.array([len(samples) // _WINDOW for samples in readings.values()])
    whole = [samples[: count * _WINDOW] for samples, count in zip(readings.values(), counts, strict=True)]
    samples = np.concatenate([*whole, np.zeros(2, np.float32)])  # two, so that all that follows has as many windows
    windows = samples[:-2].reshape(-1, _WINDOW)
    levels = _mean_size(windows - _of_windows(windows, 0)[:, None], 0)
    changes = samples[1:] - samples[:-1]
    change, bend = _mean_size(changes[:-1], 1), _mean_size(changes[1:] - changes[:-1], 2)
    change_of_two = _mean_size(samples[2:] - samples[:-2], 2)
    error = np.minimum(np.minimum(levels, change), np.minimum(bend, change_of_two))
    of_windows = np.stack([np.log2(1 + 2 * np.e * error), levels**2, change**2, change_of_two**2]).astype(np.float64)
    sums = np.add.reduceat(of_windows, np.cumsum(counts) - counts, axis=1)
    sums[0] /= counts
    return {
        name: _Fit(bits / _BYTES[name], change / (power + 1e-9), change_of_two / (power + 1e-9))
        for name, (bits, power, change, change_of_two) in zip(readings, sums.T.tolist(), strict=True)
    }


def _mean_size(values: Floats, beyond: int) -> Floats:
    """Mean absolute value of each window, but for the last `beyond`, which reach into the next one."""
    return _of_windows(np.abs(values), beyond)


def _of_windows(values: Floats, beyond: int) -> Floats:
    """Mean of each window; not as a product of matrices, which OpenBLAS would divide among threads."""
    means: Floats = np.einsum("ij,j->i", values.reshape(-1, _WINDOW), _SHARES[beyond])
    return means


def _channels(samples: Floats, own: _Fit) -> str | None:
    """STEREO or SILENT_CHANNEL, "" for sound of one channel, None if there is no telling."""
    if _one_silent(samples):
        return SILENT_CHANNEL
    # Once more without what converters add at a quarter and at half of the rate, that is: with a phase of four samples.
    phases = samples[: len(samples) // 4 * 4].reshape(-1, 4)
    several = _two_channels(samples - samples.mean()) and _two_channels((phases - phases.mean(axis=0)).ravel())
    if several is None:
        return None
    return STEREO if several else "" if own.roughness <= _SMOOTH else None


def _two_channels(samples: Floats) -> bool | None:
    """Whether samples without an offset come from two channels in turn; None if there is no telling."""
    steps, sums, two = samples[1:] - samples[:-1], samples[1:] + samples[:-1], samples[2:] - samples[:-2]
    rising, falling, apart = float(steps @ steps), float(sums @ sums), float(two @ two)
    if apart >= _SMOOTH_APART * float(samples @ samples):  # neither is each channel by itself sound, nor all together
        return None
    nearer = rising > 1.6 * apart and falling > 0.25 * rising  # not: a tone or a hiss high up
    return nearer or _alternates(steps)


def _alternates(steps: Floats) -> bool:
    """Whether every other step is the smaller one, mostly and by much: not in a few jumps alone."""
    pairs = np.abs(steps[: len(steps) // 2 * 2].reshape(-1, 2))
    even, odd = pairs[:, 0], pairs[:, 1]
    most = float(np.sign(even - odd).mean())
    floor = 1e-6 * float(steps @ steps) + 1e-9
    by_db = 10 * np.log10((float(even @ even) + floor) / (float(odd @ odd) + floor))
    return abs(by_db) > _DECIBELS and abs(most) > 0.15 and by_db * most > 0


def _one_silent(samples: Floats) -> bool:
    """Whether every second sample has one value, and the others do not."""
    constant = [np.maximum.reduce(part) == np.minimum.reduce(part) for part in (samples[::2], samples[1::2])]
    return bool(constant[0] != constant[1])


def _few_values(samples: Floats) -> bool:
    """Whether two values make up most of each of eight phases: in another reading one of them may vary."""
    for phase in samples[: len(samples) // 8 * 8].reshape(-1, 8).T:
        ordered = np.sort(phase)
        borders = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(phase)]])
        runs = np.sort(borders[1:] - borders[:-1])
        if runs[-2:].sum() <= _FEW * len(phase):
            return False
    return True


def _clipped(block: Bytes) -> bool:
    samples = block.view("<i2")
    least = _RAIL_SHARE * len(samples)
    return bool(np.count_nonzero(samples >= 32766) > least and np.count_nonzero(samples <= -32767) > least)


# ---- readings

_BYTES = {
    "linear16": 2,
    "int16be": 2,
    "float32": 4,
    "float32be": 4,
    "float64": 8,
    "int24": 3,
    "int32": 4,
} | dict.fromkeys(_ONE_BYTE, 1)


def _readings(block: Bytes, *, floats_only: bool) -> dict[str, Floats]:
    """Every reading that is possible, in steps of its smallest difference, (samples,)."""
    found = {}
    for name, kind in (("float32", "<f4"), ("float32be", ">f4"), ("float64", "<f8")):
        values = block.view(kind)
        if _may_be_sound(values):
            found[name] = _in_steps((values * 2.0**23).astype(np.int32))
    if floats_only:
        return found
    padded = np.zeros((len(block) // 3, 4), np.uint8)
    padded[:, 1:] = block.reshape(-1, 3)
    found |= {
        "linear16": _in_steps(block.view("<i2")),
        "int16be": _in_steps(block.view(">i2")),
        "int24": _in_steps(padded.view("<i4")[:, 0] >> 8),
        "int32": _in_steps(block.view("<i4")),
    }
    codes = block.astype(np.intp)
    return found | {name: ranks[codes] for name, ranks in _code_ranks().items()}


def _in_steps(values: npt.NDArray[Any]) -> Floats:
    """Integers without the zero bits at the end that all of them have."""
    used = int(np.bitwise_or.reduce(values))
    return (values.astype(np.float32) / (used & -used)).astype(np.float32) if used else values.astype(np.float32)


def _may_be_sound(values: npt.NDArray[Any]) -> bool:
    """Whether floats lie within the range that is accepted, and few are smaller than any converter's step."""
    sizes = np.abs(values)
    if not np.maximum.reduce(sizes) <= 8:  # nor if one is NaN
        return False
    tiny = np.count_nonzero((sizes < 2.0**-23) & (sizes > 0))
    return bool(sizes.mean() >= 1e-5 and tiny <= 0.02 * len(values))


@cache
def _code_ranks() -> dict[str, Floats]:
    """For each reading of one byte: byte → place of its value among all 256, which puts them at equal distances."""
    codes = np.arange(256, dtype=np.uint8)
    values = {
        "mulaw": mulaw_table(),
        "alaw": alaw_table(),
        "uint8": codes.astype(np.float32),
        "int8": codes.view(np.int8).astype(np.float32),
    }
    return {name: (np.argsort(np.argsort(table)) - 127.5).astype(np.float32) for name, table in values.items()}
