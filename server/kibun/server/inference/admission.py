"""When interims are skipped and streams refused. No clock.

`SpeechLoad` learns how much speech open streams will bring, `Outlook` tells how long finals will wait for it."""

import math
from dataclasses import dataclass

MEMORY_S = 60.0  # a stream that has fallen silent counts for a third after this time
STREAMS = 50  # earlier streams that shape what is expected of a new one
PAUSE_S = 10.0  # until the next turn of a conversation, roughly
PRIOR = 0.2  # of a stream, for what is expected before any has closed
FINALS = 50  # finals that shape the mean length of one

# Overload shows in this order: interims become rarer and are skipped, finals wait longer, new streams are refused, and
# last the next turns of running conversations.
STRETCH_FROM = 0.4  # load from which interims become rarer, …
INTERIM_LOAD = 0.6  # … until they are skipped
INTERIM_WAIT = 0.5  # share of the target delay from which they are skipped too
MAX_STRETCH = 2.0
TARGET_DELAY_S = 1.5  # the longest that admitting more streams may be worth, unless the operator says otherwise
KNEE = 4.0  # see `target_delay_s`
RUNNING = 3.0  # times the target delay, for the next turn of a running conversation


def stretch(load: float) -> float:
    """How many times further apart interims are than on an idle server, 1..MAX_STRETCH."""
    share = (load - STRETCH_FROM) / (INTERIM_LOAD - STRETCH_FROM)
    return 1 + (MAX_STRETCH - 1) * min(max(share, 0.0), 1.0)


def target_delay_s(final_takes_s: float, slots: int) -> float:
    """Seconds that finals may be predicted to wait while new streams are admitted, where the operator sets no bound.

    final_takes_s: seconds that a slot needs for a mean final.

    Waiting lets a server ride out moments in which more people speak than it can follow, so the longer it may be, the
    fewer streams are refused. Chance evens out over many slots, and is felt in units of a final's own time; beyond this
    much, a longer wait is felt by all and admits hardly anyone more (`kibun bench admission` draws it).
    """
    return min(TARGET_DELAY_S, KNEE * final_takes_s / math.sqrt(max(slots, 1)))


@dataclass(frozen=True, slots=True)
class Outlook:
    """What decides how long finals will wait for a slot."""

    wait_s: float  # of a final that were submitted now
    load: float  # share of the machine that the finals of the open streams need; above 1 if it is too small
    burst_s: float  # seconds of all slots that a final takes, as a random moment of work meets it: long ones more often
    soon_s: float  # until the first final of a stream that opens now
    remaining_s: float  # for which the streams that are open now stay open, on average

    def delay_s(self) -> float:
        """Mean seconds that finals will wait, if each stream that ends is followed by another: the worse of two times.

        Those are the first final of a stream that opens now, which meets what is queued, and the time for which the
        load that is admitted now will last.
        """
        return max(self.delay_after_s(min(self.soon_s, self.remaining_s)), self.delay_after_s(self.remaining_s))

    def delay_after_s(self, seconds: float) -> float:
        """Mean seconds that a final will wait that comes after this time (> 0).

        The work ahead of it is now `wait_s` and drifts by load - 1 a second, with a variance of load * burst_s a second
        as finals come at random, and never falls below 0: Brownian motion with reflection, whose mean is known. Up to a
        load of 1 it approaches the mean wait in a queue (Pollaczek, Khinchine; with several slots in heavy traffic,
        Kingman); with a higher one, what matters is for how long.
        """
        spread = math.sqrt(max(self.load * self.burst_s * seconds, 1e-12))
        start, drift = self.wait_s / spread, (self.load - 1) * seconds / spread
        if abs(drift) < 1e-4:
            drift = 1e-4  # the mean is smooth there, the formula is not
        at, back = start + drift, start - drift
        reflected = _density(at) * _mills(back) if back >= 0 else math.exp(-2 * start * drift) * _normal(-back)
        mean = at * _normal(at) + _density(at) + (reflected - _normal(-at)) / (2 * drift)
        return spread * max(mean, at, 0.0)  # the first, but for rounding


def _normal(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _mills(z: float) -> float:
    """(1 - normal(z)) / density(z), for z >= 0."""
    return _normal(-z) / _density(z) if z < 30 else 1 / z


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
        self._opened = 0.0  # sum over the streams
        self._continuing = 0.0  # share of the streams that continued a conversation
        self._returning, self._returning_at = 0.0, 0.0  # see `lasting_rate`
        # Sums over closed streams; initially a little of one that never pauses and stays open for MEMORY_S.
        self._closed, self._speech_s, self._open_s = PRIOR, PRIOR * MEMORY_S, PRIOR * MEMORY_S
        self.final_s = 3.0
        """Mean length of a final, in seconds."""
        self.long_final_s = 4.0
        """Mean length of a final where long ones count in proportion to their length, in seconds."""

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

    def lasting_rate(self, now: float) -> float:
        """As `rate`, or what conversations will bring that are between two turns, with a reserve, if that is more.

        Where each turn is a stream, such a conversation has none open, and comes back. Of a stream that closes, this
        expects another one soon as often as streams have continued a conversation so far. They cannot be asked to wait
        for each other: the reserve is a standard deviation of how many speak at once.
        """
        returning = self._returning * math.exp((self._returning_at - now) / PAUSE_S)
        return max(self.rate(now), returning + math.sqrt(returning * self.new_rate))

    def remaining_s(self, now: float) -> float:
        """Seconds for which a stream is expected to stay open, at most MEMORY_S: nothing is known for longer.

        As if streams ended at random at any age; those that are open show that some last at least so long.
        """
        ages_s = len(self._streams) * now - self._opened
        return min((self._open_s + max(ages_s, 0.0)) / self._closed, MEMORY_S)

    def open(self, stream_id: str, now: float, *, running: bool = False) -> None:
        """Count a stream that was admitted; running: it continues a conversation."""
        self._continuing += (running - self._continuing) / STREAMS
        self._streams[stream_id] = _Open(now, rate=self.new_rate, at=now)
        self._opened += now
        self._add(self.new_rate, now)

    def add_final(self, stream_id: str, seconds: float, now: float) -> None:
        """Count a final of `seconds`; one of a stream that was never opened counts only for the lengths."""
        square = self.final_s * self.long_final_s
        self.final_s += (seconds - self.final_s) / FINALS
        self.long_final_s = (square + (seconds * seconds - square) / FINALS) / self.final_s
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
        self._opened -= stream.opened
        del self._streams[stream_id]
        if not self._streams:
            self._rate = self._opened = 0.0  # no rounding error outlives the streams
        self._closed += 1 - self._closed / STREAMS
        self._speech_s += stream.speech_s - self._speech_s / STREAMS
        self._open_s += now - stream.opened - self._open_s / STREAMS
        returns = self._returning * math.exp((self._returning_at - now) / PAUSE_S)
        returns += self._continuing * self._speech_s / self._closed / PAUSE_S
        self._returning, self._returning_at = returns, now

    def _add(self, rate: float, now: float) -> None:
        self._rate, self._at = self.rate(now) + rate, now


def _faded(rate: float, seconds: float) -> float:
    return rate * math.exp(-seconds / MEMORY_S)
