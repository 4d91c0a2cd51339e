"""Threads that each lead some work, and help one another: `Crew`; `share`, `help_now` and `busy_s` for the work itself.

A batch of utterances is led by one thread. What it computes falls into pieces that do not depend on each other (tiles
of rows, heads of attention), and other threads take some of them. So an idle machine answers with all of its cores.
Where all threads lead, what comes first gets a second one as far as cutting it costs little, so a long utterance takes
half as long; a thread fills the gaps with what it leads itself, and none is idle. Which thread computes a piece changes
nothing about it: the bits are the same. Needs no torch.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

Piece = Callable[[], None]

_own = threading.local()


class Help(NamedTuple):
    """How finely work should be cut."""

    threads: int = 1  # that would take pieces, the leader's own included
    waste: float = 1.0  # times the work that it may become by being cut


class Crew:
    """Daemon threads that do what is submitted and help with what comes before it."""

    def __init__(self, size: int, name: str = "inference") -> None:
        """size: threads, at least 1."""
        self._size, self._leading = size, 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # for threads that find nothing to do
        self._numbers = itertools.count()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []  # a heap, by rank and number
        self._led: list[_Lead] = []  # what is led now, in the order in which it gets help
        for number in range(size):
            threading.Thread(target=self._live, name=f"{name}-{number}", daemon=True).start()

    def submit(self, work: Callable[[], None], rank: int = 0) -> None:
        """Have a thread do this, which must not raise. Of a lower rank comes first, then what was submitted first."""
        with self._lock:
            heapq.heappush(self._queue, (rank, next(self._numbers), work))
            self._changed.notify()

    @property
    def help(self) -> Help:
        """What a leader can expect now. Threads without work of their own cost nothing, others their own work."""
        leading = max(self._leading, 1)
        idle = (self._size - leading) // leading
        if idle:
            return Help(1 + idle, 2.0)
        return Help(2, 1.08) if self._size > 1 else Help()

    def share(self, lead: _Lead, pieces: Sequence[Piece]) -> None:
        """See `share`."""
        with self._lock:
            lead.pieces.extend(pieces)
            self._changed.notify(len(pieces) - 1)
        began = time.perf_counter()
        while self._help(up_to=lead):
            pass
        with self._lock:
            while lead.taken:
                lead.ended.wait()
            lead.elsewhere_s += time.perf_counter() - began
            error, lead.error = lead.error, None
        if error is not None:
            raise error

    def _live(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not any(lead.pieces for lead in self._led):
                    self._changed.wait()
                if self._queue:
                    rank, number, work = heapq.heappop(self._queue)
                    lead = _Lead(self, (rank, number), self._lock)
                    self._led = sorted([*self._led, lead], key=lambda lead: lead.place)
                    self._leading = len(self._led)
                else:
                    work = None
            if work is None:
                self._help()
                continue
            _own.lead = lead
            work()
            _own.lead = None
            with self._lock:
                self._led = [other for other in self._led if other is not lead]
                self._leading = len(self._led)

    def _help(self, up_to: _Lead | None = None) -> bool:
        """Compute a piece of what comes first, `up_to` the last; False: there is none left to take."""
        with self._lock:
            for lead in self._led:
                if lead.pieces:
                    piece = lead.pieces.popleft()
                    lead.taken += 1
                    break
                if lead is up_to:
                    return False
            else:
                return False
        error: BaseException | None = None
        began = time.perf_counter()
        try:
            piece()
        except BaseException as raised:  # its leader's to handle
            error = raised
        with self._lock:
            lead.shared_s += time.perf_counter() - began
            lead.error = lead.error or error
            lead.taken -= 1
            if not lead.taken and not lead.pieces:
                lead.ended.notify()
        return True


class _Lead:
    """Work that a thread leads."""

    def __init__(self, crew: Crew, place: tuple[int, int], lock: threading.Lock) -> None:
        self.crew, self.place = crew, place
        self.pieces: deque[Piece] = deque()  # not taken yet
        self.taken = 0  # being computed
        self.ended = threading.Condition(lock)  # of all of them
        self.error: BaseException | None = None  # the first that a piece raised
        self.began = time.perf_counter()
        self.elsewhere_s = 0.0  # for which its thread shared pieces, computed some or waited
        self.shared_s = 0.0  # that pieces took, on any thread

    def busy_s(self) -> float:
        return time.perf_counter() - self.began - self.elsewhere_s + self.shared_s


def help_now() -> Help:
    """The help that this thread's work can expect now; none outside of a crew."""
    lead: _Lead | None = getattr(_own, "lead", None)
    return Help() if lead is None else lead.crew.help


def busy_s() -> float:
    """Seconds that a single thread would have spent on the work that this thread leads, so far; 0 outside of a crew."""
    lead: _Lead | None = getattr(_own, "lead", None)
    return 0.0 if lead is None else lead.busy_s()


def share(pieces: Sequence[Piece]) -> None:
    """Run pieces that do not depend on each other, with other threads of the crew; return when all have ended.

    Raises what the first piece raised that failed; the others have ended then too.
    """
    lead: _Lead | None = getattr(_own, "lead", None)
    if lead is not None and len(pieces) > 1:
        lead.crew.share(lead, pieces)
        return
    for piece in pieces:
        piece()
