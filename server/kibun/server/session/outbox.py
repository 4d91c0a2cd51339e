"""What one stream sends to its client: a bounded queue, and the failure that ends the stream."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kibun.server.errors import Failure
from kibun.server.session.events import Event, StreamWarning

OUTBOX = 64  # events that may wait for a slow reader


class Outbox:
    """Events in the order in which they are sent. The parts of a session put them in, `Session.run` takes them out."""

    def __init__(self) -> None:
        self.failure: Failure | None = None  # given to `end`
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue(OUTBOX)

    @property
    def full(self) -> bool:
        """Whether the client reads too slowly for another event."""
        return self._queue.full()

    async def put(self, item: Event | Exception) -> None:
        """Appends an event; waits while the outbox is full. An exception ends the stream, after what lies before it."""
        await self._queue.put(item)

    def warn(self, warning: StreamWarning) -> None:
        """Appends a warning at once, or drops it when the outbox is full."""
        with suppress(asyncio.QueueFull):
            self._queue.put_nowait(warning)

    def end(self, failure: Failure) -> None:
        """Ends the stream at once, before anything that is queued. A second failure changes nothing."""
        if self.failure is None:
            self.failure = failure
            with suppress(asyncio.QueueFull):  # wakes up `get`; a full queue needs no waking
                self._queue.put_nowait(failure)

    async def get(self) -> Event:
        """The next event, once there is one. Raises what ends the stream."""
        item: Event | Exception = self.failure or await self._queue.get()
        item = self.failure or item  # set in the meantime
        if isinstance(item, Exception):
            raise item
        return item

    def sent(self) -> None:
        """Counts the latest event of `get` as sent."""
        self._queue.task_done()

    async def all_sent(self) -> None:
        """Returns once every event was sent."""
        await self._queue.join()
