"""Notices from a separate thread that the event loop is blocked, and ends a process whose loop stays blocked.

gRPC's keepalive does not notice: its threads go on answering pings while no handler runs. Once the process has ended,
its supervisor starts another, and its clients resume there.

Time in which the whole process was suspended, see `suspension`, does not count: ending it would not help.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kibun.server.observability import logs
from kibun.server.observability.suspension import suspended

EXIT_CODE = 70
"""Exit code of a process whose event loop stayed blocked."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchdogTimes:
    """Seconds."""

    blocked_after_s: float = 1.0  # without a turn of the loop until stacks are logged and health turns NOT_SERVING
    exit_after_s: float = 10.0  # until the process ends
    calm_s: float = 5.0  # how long a loop must have run again before it no longer counts as blocked

    @property
    def tick_s(self) -> float:
        """How often the watchdog looks."""
        return self.blocked_after_s / 10


class Watchdog:
    """Watches the loop in which `start` is called, until `stop`. `blocked` may be read in any thread."""

    def __init__(self, times: WatchdogTimes | None = None, *, leave: Callable[[int], object] = os._exit) -> None:
        """`leave` ends the process, with an exit code."""
        self._times = times or WatchdogTimes()
        self._leave = leave
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answered = True  # the loop has run since it was last asked to
        self._late = False
        self._calm_from = 0.0

    @property
    def blocked(self) -> bool:
        """Whether the loop is blocked, or was less than `calm_s` ago."""
        return self._late or time.monotonic() < self._calm_from

    def start(self) -> None:
        """Starts watching the loop that this is called in. Call it once."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Stops watching. May be called before `start`, and more than once."""
        self._stopped.set()

    def _answer(self) -> None:
        self._answered = True

    def _watch(self) -> None:
        assert self._loop is not None
        late_s, then, used = 0.0, time.monotonic(), time.process_time()
        while not self._stopped.wait(self._times.tick_s):
            now, uses = time.monotonic(), time.process_time()
            late_s += self._counts(now - then, uses - used)
            then, used = now, uses
            if self._answered:
                late_s = 0.0
                self._recovered()
                self._answered = False
                try:
                    self._loop.call_soon_threadsafe(self._answer)
                except RuntimeError:  # the loop was closed
                    return
            elif late_s >= self._times.exit_after_s:
                _log.error("the event loop stays blocked: this process ends", extra={"seconds": late_s})
                logs.flush()
                self._leave(EXIT_CODE)
                return
            elif late_s >= self._times.blocked_after_s and not self._late:
                self._late = True
                fields = {"seconds": late_s, "stacks": _stacks()}
                _log.error("the event loop is blocked; all threads are at", extra=fields)

    def _counts(self, passed_s: float, used_s: float) -> float:
        """How many of the seconds since the last look count: in the others the loop could not have run."""
        tick_s = self._times.tick_s
        return tick_s if suspended(passed_s - tick_s, used_s=used_s) else passed_s

    def _recovered(self) -> None:
        if self._late:
            self._calm_from = time.monotonic() + self._times.calm_s
            self._late = False
            _log.error("the event loop goes on")


def _stacks() -> list[str]:
    """Describes where each other thread is: files, lines and functions, but no values, which may be audio."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            stacks.append(logs.stack(names.get(ident, str(ident)), frame))
    return stacks
