"""A timeout for many waits that does not count time in which this process was suspended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from kibun.server.observability.suspension import suspended

T = TypeVar("T")

CATCH_UP_S = 1.0
"""Time that an awaited event still gets after the process was suspended, as the timer cannot show for how long."""


class Timeout:
    """Limits each of many waits to some seconds, as `asyncio.timeout` does, but with one timer for all: to start and
    stop one per message costs more than the message. Made and used in one task.

    After the process was suspended it looks first at what came in the meantime.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting_since: float | None = None
        self._expired = False
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._check)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Returns what `awaitable` gives. Raises TimeoutError, and cancels it, once the time is up."""
        self._waiting_since = self._loop.time()
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._expired and self._task is not None and self._task.uncancel() == 0:
                raise TimeoutError from None
            raise
        finally:
            self._waiting_since = None

    def close(self) -> None:
        """Stops the timer; no wait may follow."""
        self._timer.cancel()

    def _check(self) -> None:
        now = self._loop.time()
        since = now if self._waiting_since is None else self._waiting_since
        left_s = since + self._seconds - now
        if suspended(now - self._timer.when()):
            left_s = max(left_s, min(self._seconds, CATCH_UP_S))
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._check)
        elif self._task is not None:
            self._expired = True
            self._task.cancel()
