"""When interims are skipped and streams refused, and how much speech open streams are expected to bring. No clock."""

import math
from dataclasses import dataclass

MEMORY_S = 60.0  # a stream that has fallen silent counts for a third after this time
STREAMS = 50  # closed streams that shape the rate expected of a new one
FINALS = 50  # finals that shape the mean length of one


@dataclass(frozen=True, slots=True)
class Level:
    """How busy a server may be for something still to be done; above either figure it is not."""

    load: float  # share of the machine that the finals of all open streams need
    delay_s: float  # for which a final submitted now would wait before its analysis begins


# Overload shows in this order. Simulated (tests/server/inference/test_batcher_simulated.py): with 0.75 a flood of
# streams makes the admitted ones' finals at most 1.5 times slower than they are at 60 % load; with 0.8 that fails on
# two cores.
STRETCH_FROM = 0.4  # load from which interims become rarer, …
INTERIM = Level(0.6, 0.5)  # … until they are skipped
NEW_STREAM = Level(0.75, 1.0)
RUNNING_CONVERSATION = Level(0.9, 3.0)  # the last of the capacity is for its next turn: new streams never use it
MAX_STRETCH = 2.0


def stretch(load: float) -> float:
    """How many times further apart interims are than on an idle server, 1..MAX_STRETCH."""
    share = (load - STRETCH_FROM) / (INTERIM.load - STRETCH_FROM)
    return 1 + (MAX_STRETCH - 1) * min(max(share, 0.0), 1.0)


@dataclass(slots=True)
class _Open:
    opened: float
    speech_s: float = 0.0  # so far
    rate: float = 0.0  # seconds of speech per second, at `at`
    at: float = 0.0


class SpeechLoad:
    """Seconds of speech per second that the open streams are expected to bring.

    A stream's work comes after it was admitted, so counting what is queued is too late. Each stream counts with a rate:
    when it opens, that of earlier streams (1, before there are any), from then on a fading average of its own speech. A
    stream that stays silent counts less and less.
    """

    def __init__(self) -> None:
        self._streams: dict[str, _Open] = {}
        self._rate, self._at = 0.0, 0.0  # sum over the streams, and when that was
        self._speech_s = self._open_s = MEMORY_S  # of closed streams; initially of one that never paused
        self.final_s = 3.0
        """Mean length of a final, in seconds."""

    def __len__(self) -> int:
        """Open streams."""
        return len(self._streams)

    @property
    def new_rate(self) -> float:
        """Seconds of speech per second expected of a stream that opens now, 0..1."""
        return min(self._speech_s / self._open_s, 1.0)

    def rate(self, now: float) -> float:
        """Seconds of speech per second of all open streams together."""
        return max(_faded(self._rate, now - self._at), 0.0)

    def open(self, stream_id: str, now: float) -> None:
        """Count a stream that was admitted."""
        self._streams[stream_id] = _Open(now, rate=self.new_rate, at=now)
        self._add(self.new_rate, now)

    def add_final(self, stream_id: str, seconds: float, now: float) -> None:
        """Count a final of `seconds`; one of a stream that was never opened counts only for the mean length."""
        self.final_s += (seconds - self.final_s) / FINALS
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.speech_s += seconds
            stream.rate = _faded(stream.rate, now - stream.at) + seconds / MEMORY_S
            stream.at = now
            self._add(seconds / MEMORY_S, now)

    def close(self, stream_id: str, now: float) -> None:
        """Stop counting a stream, and learn from it what to expect of new ones."""
        stream = self._streams[stream_id]
        self._add(-_faded(stream.rate, now - stream.at), now)
        del self._streams[stream_id]
        if not self._streams:
            self._rate = 0.0  # no rounding error outlives the streams
        self._speech_s += stream.speech_s - self._speech_s / STREAMS
        self._open_s += now - stream.opened - self._open_s / STREAMS

    def _add(self, rate: float, now: float) -> None:
        self._rate, self._at = self.rate(now) + rate, now


def _faded(rate: float, seconds: float) -> float:
    return rate * math.exp(-seconds / MEMORY_S)
