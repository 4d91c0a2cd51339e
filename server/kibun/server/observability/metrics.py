"""What the server counts and times: plain numbers, cheap to write; `exporter` shows them to Prometheus.

Written by the event loop alone, read by the exporter's thread: what is read may be a moment old, but a number never
goes backwards. Nothing here tells one person, conversation or request from another.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

MAX_REASONS = 128  # distinct ones; a hundred exist
OTHER = "OTHER"
_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,47}")

SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
JOBS = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[int]:
        """How many values were at most each bound, then how many there were."""
        total, sums = 0, []
        for count in self._counts.copy():
            total += count
            sums.append(total)
        return sums


class Metrics:
    """All that is counted. Times are in seconds, audio in samples at 16 kHz."""

    def __init__(self) -> None:
        self.open_streams = 0
        self.audio_samples = 0  # received
        self.speech_samples = 0  # that finals were made from
        self.calls: Counter[tuple[str, str, str]] = Counter()  # ended, by method, code and reason
        self.refusals: Counter[str] = Counter()  # by reason
        self.utterances: Counter[str] = Counter(final=0, interim=0)  # results written
        self.interims_dropped: Counter[str] = Counter(superseded=0, busy=0, failed=0, slow_reader=0)  # by cause
        self.store_errors = 0
        self.queue_delay = {"final": Histogram(SHORT_S), "interim": Histogram(SHORT_S)}
        self.inference = Histogram(SHORT_S)  # of a batch
        self.batch_jobs = Histogram(JOBS)
        self.final_latency = Histogram(SHORT_S)  # from the end of an utterance being found to its final being written
        self.loop_lag = Histogram(SHORT_S)
        self._reasons: set[str] = set()

    def call_ended(self, method: str, code: str, reason: str) -> None:
        """`reason` is empty where all went well."""
        self.calls[method, code, self._bounded(reason) if reason else ""] += 1

    def refused(self, reason: str) -> None:
        """A call was turned away before any audio: no valid token, no room, or not ready."""
        self.refusals[self._bounded(reason)] += 1

    def batch_ran(self, jobs: int, took_s: float) -> None:
        self.inference.observe(took_s)
        self.batch_jobs.observe(jobs)

    def store_failed(self) -> None:
        """The conversation store did not answer."""
        self.store_errors += 1

    def _bounded(self, reason: str) -> str:
        """Reasons are literals of this package; should one ever not be, it does not become a label."""
        if reason not in self._reasons:
            if len(self._reasons) >= MAX_REASONS or not _REASON.fullmatch(reason):
                return OTHER
            self._reasons.add(reason)
        return reason
