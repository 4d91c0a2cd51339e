"""Compares messages with the wall clock: throttles them, and finds audio that is labelled with a wrong rate.

The only place where audio meets the wall clock. It never changes a result.
"""

from __future__ import annotations

from itertools import pairwise

_COMMON_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_WINDOW_S = 2.0  # compared over three windows in a row: a microphone's audio comes steadily, a file's does not
_TOLERANCE = 0.03


class RateWatch:
    """Compares audio time with wall time for one stream whose client claims `labelled_hz`."""

    def __init__(self, labelled_hz: int) -> None:
        self._labelled_hz = labelled_hz
        # (wall seconds, audio seconds) at the window borders. The first is the first message, not the stream's
        # start: that message's audio was recorded before.
        self._marks: list[tuple[float, float]] = []
        self._done = False

    def suspect_hz(self, audio_s: float, now: float) -> int | None:
        """The likely true rate, once, if the last three windows agree on another than the label; else None.

        To be called for every message, `now` wall seconds, after `audio_s` seconds of audio.
        """
        if self._done or (self._marks and now - self._marks[-1][0] < _WINDOW_S):
            return None
        self._marks.append((now, audio_s))
        if len(self._marks) < 4:
            return None
        self._marks = self._marks[-4:]
        speeds = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(self._marks)]
        for true_hz in _COMMON_HZ:
            expected = true_hz / self._labelled_hz
            if true_hz != self._labelled_hz and all(abs(s / expected - 1) < _TOLERANCE for s in speeds):
                self._done = True
                return true_hz
        return None


BURST_S = 2.0  # messages of this many seconds may come at once


class MessageThrottle:
    """Limits how many messages are read per second: the transport then slows a client that sends more.

    A message costs the server about as much with one byte of audio in it as with a second of it.
    """

    def __init__(self, per_second: float) -> None:
        self._apart_s = 1 / per_second
        self._due = float("-inf")

    def wait_s(self, now: float) -> float:
        """Seconds to wait before the next message is read, mostly 0. To be called for every message."""
        self._due = max(self._due, now - BURST_S) + self._apart_s
        return max(self._due - now, 0.0)
