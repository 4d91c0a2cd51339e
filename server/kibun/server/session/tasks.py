"""The tasks of one stream."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from kibun.server.session.outbox import Outbox

CANCEL_AGAIN_S = 0.1


class Tasks:
    """Runs coroutines beside the session's loop until the stream ends. An exception in one goes to the outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Starts a task. An exception in it ends the stream, after the events that are queued before it."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                await self._outbox.put(error)

        task = asyncio.create_task(guarded())
        task.add_done_callback(lambda _: work.close())  # a task cancelled before its first step never ran it
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        """Cancels all tasks and returns once they have ended.

        Cancels again until they do: asyncio.wait_for of Python 3.11, which libraries use, can lose a cancellation.
        """
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CANCEL_AGAIN_S)
