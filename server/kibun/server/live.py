"""The streams that are open now: who supersedes whom, who waits for whom, who must be told.

Belongs to one event loop; nothing here awaits while it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from kibun.server.errors import Failure, Kind
from kibun.server.events import Warn

# An earlier stream that waits for its client may have audio on the way through the transport; this long it must
# have waited before a later stream of the same participant takes its turn.
SETTLE_S = 0.02


@dataclass(eq=False, slots=True)
class LiveStream:
    """One open stream. `end` stops it with a failure, `warn` sends its client a warning; both return at once."""

    tenant: str
    conversation_id: str
    participant_id: str
    turn_id: str
    end: Callable[[Failure], None]
    warn: Callable[[Warn], None]
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # all it was sent is analysed; ended streams too


class LiveStreams:
    """Registry of open streams, in the order in which they opened."""

    def __init__(self) -> None:
        self._streams: list[LiveStream] = []

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: LiveStream) -> None:
        """Registers the stream; an older one for the same turn ends with ABORTED SUPERSEDED."""
        for older in self._of(stream):
            if older.turn_id == stream.turn_id:
                older.end(
                    Failure(
                        Kind.ABORTED,
                        "SUPERSEDED",
                        "a newer stream took over this turn; read that one's results",
                    )
                )
        self._streams.append(stream)

    def remove(self, stream: LiveStream) -> None:
        stream.idle.set()
        if stream in self._streams:
            self._streams.remove(stream)

    async def wait_for_earlier(self, stream: LiveStream) -> None:
        """Returns once every earlier stream of the same participant is analysed as far as its client sent it.

        So the estimates of a turn rest on all turns before it, even when a client opens the next stream while
        the last one drains. A stream that merely stays open holds nobody up.
        """
        for earlier in self._of(stream):
            if earlier is stream:
                return
            if earlier.turn_id == stream.turn_id:
                continue  # superseded, on its way out
            while not earlier.idle.is_set():
                await earlier.idle.wait()
                await asyncio.sleep(SETTLE_S)

    def end_conversation(self, tenant: str, conversation_id: str, failure: Failure) -> None:
        for stream in list(self._streams):
            if (stream.tenant, stream.conversation_id) == (tenant, conversation_id):
                stream.end(failure)

    def warn_all(self, warning: Warn) -> None:
        for stream in list(self._streams):
            stream.warn(warning)

    def _of(self, stream: LiveStream) -> list[LiveStream]:
        mine = (stream.tenant, stream.conversation_id, stream.participant_id)
        return [s for s in self._streams if (s.tenant, s.conversation_id, s.participant_id) == mine]
