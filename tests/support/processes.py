"""Processes, and waiting for what has no event."""

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from typing import Any


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    """Polls until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


def outcome(function: Callable[[], Any], within_s: float = 20.0) -> Any:
    """What `function` returns, or the exception that it raises, as seen by a thread that waits for it.

    Raises TimeoutError where it hangs, and leaves its thread behind.
    """
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(function())
        except BaseException as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return results.get(timeout=within_s)
    except queue.Empty:
        raise TimeoutError(f"no end within {within_s:g} s") from None
