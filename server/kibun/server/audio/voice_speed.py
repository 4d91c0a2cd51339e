"""Notices speech that is played much too slowly or too fast, as by a wrong sample rate.

At a wrong rate all that has a frequency moves by as many octaves: the pitch, how fast the spectrum changes, and how
fast the level rises and falls. People differ in each, but hardly in all of them at once: an octave in their mean is
more than any voice differs from the average, half an octave is not. So 44.1 or 48 kHz declared as 16 are mostly
noticed, 22.05 are not. See docs/appendix/declarations.md.

What is found depends on the samples alone: neither on how they were sent nor on a clock.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.sample_buffer import Samples

Floats = npt.NDArray[np.float32]

_NAMED_HZ = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)  # of rates that lie close together, the commoner ones

#: Of usual voices: octaves above 1 Hz of the pitch, of the spectrum's changes, of the level's.
_USUAL = np.array([7.74, 4.56, 1.77])
_GAIN = 1.2  # level and spectrum move by less than the speed, as parts of them lie beyond what is measured
_SLOW, _FAST = -1.25, 1.0  # octaves; no voice that speaks in its own time
_EACH = 0.35  # octaves by which each of the three must differ, to the same side
_NAMEABLE = 0.9  # octaves by which a rate differs from the declared one, at least, to be named

_WINDOW, _AT_LEAST = 12 * SAMPLE_RATE_HZ, 6 * SAMPLE_RATE_HZ  # samples judged together; the latter at a turn's end
_JUDGED, _MOST = 3, 4  # windows with speech after which it is enough, and windows in all
_VOICED = 38  # frames of pitch, 1.5 s: enough speech
_VOICED_DB = 25  # below the level that 5 % of the frames exceed: not voiced
_LOUDEST = 17  # frames: of a window of 300, none but 16 can reach that level or the next below it
_STEADY = 0.25  # share of them whose pitch is that of 80 ms before: hum, music
_PITCH_RANGE = 1.2  # octaves between the quartiles of the pitch: it is no pitch

_HOP = 640  # samples between frames of pitch
_FRAME = 1600  # three periods of 30 Hz
_DOWN = 4  # pitch is sought at 4 kHz
_LAGS = 202  # of 0.25 ms: down to 20 Hz, and one at either side
_PADDED = 640  # of 0.25 ms, so that the lags of a frame do not wrap
_SHORT, _SHORT_HOP = 256, 128  # samples of a frame of levels, and between them
_PIECE = 16_000  # samples analysed at once: a multiple of both hops
_AT_ONCE = 63  # short frames: larger arrays are memory that is new each time, which takes longer than all sums
_BANDS_HZ = (200, 400, 700, 1_100, 1_700, 2_600, 3_800)  # what a telephone carries
_BINS = np.ceil(np.array(_BANDS_HZ) * _SHORT / SAMPLE_RATE_HZ).astype(int)

_HANN = np.hanning(_FRAME // _DOWN).astype(np.float32)
_SHORT_HANN = np.hanning(_SHORT)
_TAPER = np.fft.irfft(np.abs(np.fft.rfft(_HANN, _PADDED)) ** 2)[:_LAGS].astype(np.float32)
_TAPER /= _TAPER[0]


def _decimator(taps: int, outputs: int) -> Floats:
    """Low-pass at 2 kHz and every fourth sample as one product, (taps + 4 (outputs - 1), outputs)."""
    lags = np.arange(taps) - (taps - 1) / 2
    low_pass = np.sinc(lags / _DOWN) * np.hamming(taps)
    matrix = np.zeros((taps + _DOWN * (outputs - 1), outputs), np.float32)
    for output in range(outputs):
        matrix[_DOWN * output : _DOWN * output + taps, output] = low_pass / low_pass.sum()
    return matrix


_DECIMATOR = _decimator(80, 16)
_ROWS = 90  # of a product: OpenBLAS divides larger ones among threads, which then wait for more, busily


class VoiceSpeed:
    """Takes the samples of one stream and estimates how fast the voices in it are, until it is sure or has had enough.

    Attributes:
        settled: whether `push` will find nothing more.
        position: samples that have been measured.
    """

    def __init__(self, declared_hz: int) -> None:
        self._declared_hz = declared_hz
        self.settled = False
        self.position = 0
        self._windows = self._judged = 0
        self._latest: npt.NDArray[np.float64] | None = None  # of the window before
        self._start_window()

    def push(self, samples: Samples) -> int | None:
        """Takes the next samples at 16 kHz, (n,); returns the likely true rate in Hz, once a stream."""
        while len(samples) and not self.settled:
            taken = samples[: _PIECE + _FRAME - self._held]
            samples = samples[len(taken) :]
            self._buffer[self._held : self._held + len(taken)] = taken
            self._held += len(taken)
            if self._held == len(self._buffer):
                self._measure()
                if self._measured == _WINDOW and (found := self._judge()) is not None:
                    return found
        return None

    def end_turn(self) -> int | None:
        """The turn has ended: returns what is likely after so little, once a stream."""
        return self._judge() if self._measured >= _AT_LEAST and not self.settled else None

    def octaves(self) -> float | None:
        """By how many octaves the voices are faster than usual, as heard lastly; None if there is no telling."""
        differences = self._differences()
        if differences is None:
            differences = self._latest
        return None if differences is None else float(differences.mean())

    def _start_window(self) -> None:
        self._buffer, self._held, self._measured = np.zeros(_PIECE + _FRAME, np.float32), 0, 0
        self._pitches: list[Floats] = []  # each (frames, 3)
        self._levels: list[Floats] = []  # each (frames, bands)
        self._quiet_db = -np.inf  # no frame below it will count as voiced: the loud ones only become more

    def _measure(self) -> None:
        self._pitches.append(_pitches(_at_4_khz(self._buffer, _PIECE + _FRAME - _HOP), self._quiet_db))
        levels = np.concatenate([pitches[:, 2] for pitches in self._pitches])
        if len(levels) >= _LOUDEST:
            self._quiet_db = float(np.partition(levels, -_LOUDEST)[-_LOUDEST]) - _VOICED_DB
        self._levels.append(_band_levels(self._buffer[: _PIECE + _SHORT - _SHORT_HOP]))
        self._buffer[:_FRAME] = self._buffer[_PIECE:]
        self._held = _FRAME
        self._measured += _PIECE
        self.position += _PIECE

    def _judge(self) -> int | None:
        differences = self._differences()
        self._start_window()
        self._windows += 1
        found = None
        if differences is not None:
            self._judged += 1
            self._latest = differences
            found = self._likely_hz(differences)
        self.settled = found is not None or self._judged == _JUDGED or self._windows == _MOST
        if self.settled:
            self._buffer = np.zeros(0, np.float32)
        return found

    def _likely_hz(self, differences: npt.NDArray[np.float64]) -> int | None:
        speed = float(differences.mean())
        slow = speed <= _SLOW and bool((differences < -_EACH).all())
        fast = speed >= _FAST and bool((differences > _EACH).all())
        if not (slow or fast):
            return None
        octaves = {hz: float(np.log2(self._declared_hz / hz)) for hz in _NAMED_HZ}
        possible = [hz for hz, by in octaves.items() if (by <= -_NAMEABLE if slow else by >= _NAMEABLE)]
        return min(possible, key=lambda hz: abs(octaves[hz] - speed), default=None)

    def _differences(self) -> npt.NDArray[np.float64] | None:
        """Octaves above the usual: pitch, changes of the spectrum, changes of the level, (3,)."""
        if not self._pitches:
            return None
        pitch = _usual_pitch(np.concatenate(self._pitches))
        if pitch is None:
            return None
        levels = np.concatenate(self._levels).astype(np.float64)
        measured = np.array([pitch, _spectrum_changes(levels), _level_changes(levels)])
        differences: npt.NDArray[np.float64] = _GAIN * (measured - _USUAL)
        return differences


def _frames(samples: Floats, length: int, hop: int) -> Floats:
    """(1 + (n - length) // hop, length), overlapping views of contiguous samples, (n,)."""
    shape, step = (1 + (len(samples) - length) // hop, length), samples.itemsize
    frames: Floats = np.ndarray(shape, np.float32, samples, 0, (hop * step, step))  # sliding_window_view takes 30 µs
    return frames


def _at_4_khz(samples: Floats, count: int) -> Floats:
    """`count` samples and a few behind them, which the filter reads, at a quarter of the rate, (count // 4,)."""
    length, outputs = _DECIMATOR.shape
    rows = _frames(samples, length, _DOWN * outputs)[: count // (_DOWN * outputs)]
    return np.concatenate([rows[at : at + _ROWS].copy() @ _DECIMATOR for at in range(0, len(rows), _ROWS)]).ravel()


def _pitches(samples: Floats, quiet_db: float = -np.inf) -> Floats:
    """Per frame of 100 ms: pitch in octaves above 1 Hz, how periodic it is (at most 1), level in dB. (frames, 3).

    `samples`: at 4 kHz. Of frames that are surely below `quiet_db` neither pitch nor how periodic they are is computed:
    0, and a level that may be too high, but is below it.
    """
    frames = _frames(samples, _FRAME // _DOWN, _HOP // _DOWN)
    windowed = frames - np.add.reduce(frames, axis=1, keepdims=True) / np.float32(frames.shape[1])
    windowed *= _HANN
    found = np.zeros((len(frames), 3), np.float32)
    # By Parseval's theorem: `energy` below, but for what is below 20 Hz. A hundredth more for rounding.
    found[:, 2] = 10 * np.log10(1.01 * np.einsum("ij,ij->i", windowed, windowed) + 1e-12)
    loud = np.flatnonzero(found[:, 2] >= quiet_db)
    if not len(loud):
        return found
    # In double precision, which numpy takes for float32 as well, but then in small pieces at three times the price.
    parts = np.fft.rfft(windowed[loud].astype(np.float64), _PADDED).view(np.float64)
    parts *= parts
    power = parts[:, ::2] + parts[:, 1::2]
    power[:, :4] = 0  # below 20 Hz
    alike = np.fft.irfft(power, _PADDED)[:, :_LAGS].astype(np.float32)  # autocorrelation
    energy = alike[:, 0] + np.float32(1e-12)
    alike /= energy[:, None]
    alike /= _TAPER
    middle = alike[:, 1:-1]
    peaks = np.where((middle > alike[:, :-2]) & (middle >= alike[:, 2:]), middle, np.float32(-1))
    peaks[:, :3] = -1  # above 1 kHz
    best = np.maximum.reduce(peaks, axis=1)
    lag = 1 + (peaks >= 0.87 * best[:, None]).argmax(axis=1)  # the first that is about as high: no octave too low
    rows = np.arange(len(lag))
    before, at, after = alike[rows, lag - 1], alike[rows, lag], alike[rows, lag + 1]
    exact = lag + (0.5 * (before - after) / (before - 2 * at + after - 1e-12)).clip(-0.5, 0.5)
    found[loud, 0], found[loud, 1], found[loud, 2] = np.log2(4_000 / exact), best, 10 * np.log10(energy)
    return found


def _usual_pitch(pitches: Floats) -> float | None:
    """Median of the frames that have a pitch, in octaves; None if these are few, or it is none of a voice."""
    pitch, periodic, level = pitches.T
    voiced = (periodic > 0.7) & (level > np.percentile(level, 95) - _VOICED_DB)
    if np.count_nonzero(voiced) < _VOICED:
        return None
    quartiles = np.percentile(pitch[voiced], [25, 75])
    steps = np.abs(pitch[2:] - pitch[:-2])[voiced[2:] & voiced[:-2]]
    if quartiles[1] - quartiles[0] > _PITCH_RANGE or not len(steps) or np.mean(steps < 0.003) > _STEADY:
        return None
    return float(np.median(pitch[voiced]))


def _band_levels(samples: Floats) -> Floats:
    """Energy in each band, per frame of 16 ms, (frames, bands)."""
    frames = _frames(samples, _SHORT, _SHORT_HOP)
    levels = np.empty((len(frames), len(_BINS) - 1), np.float32)
    for begin in range(0, len(frames), _AT_ONCE):
        spectrum = np.fft.rfft(frames[begin : begin + _AT_ONCE] * _SHORT_HANN)  # in double precision, as above
        parts = spectrum[:, : _BINS[-1]].copy().view(np.float64)
        parts *= parts
        levels[begin : begin + _AT_ONCE] = np.add.reduceat(parts, 2 * _BINS[:-1], axis=1)
    return levels


def _level_changes(levels: npt.NDArray[np.float64]) -> float:
    """Centre of the changes between 1 and 30 Hz, in octaves above 1 Hz."""
    loudness = levels**0.25
    loudness -= loudness.mean(axis=0)
    power = (np.abs(np.fft.rfft(loudness * np.hanning(len(levels))[:, None], axis=0)) ** 2).sum(axis=1)
    hz = np.fft.rfftfreq(len(levels), _SHORT_HOP / SAMPLE_RATE_HZ)
    within = (hz >= 1) & (hz < 30)
    return float((power[within] * np.log2(hz[within])).sum() / (power[within].sum() + 1e-20))


def _spectrum_changes(levels: npt.NDArray[np.float64]) -> float:
    """How soon the shape of the spectrum is another, in octaves above once a second."""
    total = levels.sum(axis=1)
    active = (total > np.percentile(total, 95) * 1e-3).astype(np.float64)
    shape = np.log(levels + 1e-9 + total.max() * 1e-5)
    shape -= shape.mean(axis=1, keepdims=True)
    shape -= active @ shape / active.sum()
    size = 2 * len(levels)
    products = np.abs(np.fft.rfft(shape * active[:, None], size, axis=0)) ** 2
    pairs = np.fft.irfft(np.abs(np.fft.rfft(active, size)) ** 2)[:64]
    alike = np.fft.irfft(products.sum(axis=1))[:64] / np.maximum(pairs, 1)
    alike /= alike[0] + 1e-12
    octaves = []
    for threshold in (0.7, 0.4):
        lag = int(np.argmax(alike < threshold)) or 63
        exact = lag - 1 + (alike[lag - 1] - threshold) / (alike[lag - 1] - alike[lag] + 1e-12)
        octaves.append(-np.log2(max(exact, 0.1) * _SHORT_HOP / SAMPLE_RATE_HZ))
    return float(np.mean(octaves))
