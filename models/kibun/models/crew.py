"""Threads that each lead some work, and otherwise help: `Crew`; `share`, `help_now` and `helped_s` for the work itself.

A batch of utterances is led by one thread. What it computes falls into pieces that do not depend on each other (tiles
of rows, heads of attention), and threads that lead nothing take some of them. So an idle machine answers with all of
its cores, and a busy one, all of whose threads lead, spends nothing on cutting and handing over. Which thread computes
a piece changes nothing about it: the bits are the same. Needs no torch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

Piece = Callable[[], None]

_own = threading.local()


class Crew:
    """Daemon threads."""

    def __init__(self, size: int, name: str = "inference") -> None:
        """size: threads, at least 1."""
        self._size = size
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # for threads that find nothing to do
        self._waiting: deque[Callable[[], None]] = deque()  # work that no thread leads yet
        self._led: list[_Lead] = []  # in the order in which it was begun, and gets help
        for number in range(size):
            threading.Thread(target=self._live, name=f"{name}-{number}", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        """Have a thread lead this, which must not raise."""
        with self._lock:
            self._waiting.append(work)
            self._changed.notify()

    @property
    def help(self) -> int:
        """Threads that would take pieces of a leader's work now, its own included."""
        leading = max(len(self._led), 1)
        return 1 + (self._size - leading) // leading

    def share(self, lead: _Lead, pieces: Sequence[Piece]) -> None:
        """See `share`."""
        with self._lock:
            lead.pieces.extend(pieces)
            self._changed.notify(len(pieces) - 1)
        began = time.perf_counter()
        while self._compute(lead):
            pass
        with self._lock:
            while lead.taken:
                lead.ended.wait()
            lead.shared_s -= time.perf_counter() - began  # its own pieces are in already, and waiting is no work
            error, lead.error = lead.error, None
        if error is not None:
            raise error

    def _live(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not any(lead.pieces for lead in self._led):
                    self._changed.wait()
                work = self._waiting.popleft() if self._waiting else None
                if work is not None:
                    own = _Lead(self, self._lock)
                    self._led.append(own)
            if work is None:
                self._compute()
                continue
            _own.lead = own
            work()
            _own.lead = None
            with self._lock:
                self._led.remove(own)

    def _compute(self, own: _Lead | None = None) -> bool:
        """Compute a piece, of this thread's own work if it leads any; False: there is none to take."""
        with self._lock:
            lead = next((lead for lead in ([own] if own else self._led) if lead.pieces), None)
            if lead is None:
                return False
            piece = lead.pieces.popleft()
            lead.taken += 1
        error: BaseException | None = None
        began = time.perf_counter()
        try:
            piece()
        except BaseException as raised:  # its leader's to handle
            error = raised
        with self._lock:
            lead.shared_s += time.perf_counter() - began
            lead.helped |= lead is not own
            lead.error = lead.error or error
            lead.taken -= 1
            if not lead.taken and not lead.pieces:
                lead.ended.notify()
        return True


class _Lead:
    """Work that a thread leads."""

    def __init__(self, crew: Crew, lock: threading.Lock) -> None:
        self.crew = crew
        self.pieces: deque[Piece] = deque()  # not taken yet
        self.taken = 0  # being computed
        self.ended = threading.Condition(lock)  # of all of them
        self.error: BaseException | None = None  # the first that a piece raised
        self.began = time.perf_counter()
        self.helped = False  # by any other thread
        self.shared_s = 0.0  # that pieces took on any thread, less the time for which its own thread shared them


def help_now() -> int:
    """Threads that would take pieces of this thread's work now, itself included: 1 outside of a crew."""
    lead: _Lead | None = getattr(_own, "lead", None)
    return 1 if lead is None else lead.crew.help


def helped_s() -> float | None:
    """Seconds that all threads together have spent on this thread's work; None if no other has helped with it."""
    lead: _Lead | None = getattr(_own, "lead", None)
    return time.perf_counter() - lead.began + lead.shared_s if lead is not None and lead.helped else None


def share(pieces: Sequence[Piece]) -> None:
    """Run pieces that do not depend on each other, with threads that are idle; return when all have ended.

    Raises what the first piece raised that failed; the others have ended then too.
    """
    lead: _Lead | None = getattr(_own, "lead", None)
    if lead is not None and len(pieces) > 1:
        lead.crew.share(lead, pieces)
        return
    for piece in pieces:
        piece()
