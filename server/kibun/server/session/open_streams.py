"""The streams that are open on this server: which one has a turn, and which one waits for which.

Belongs to one event loop; nothing here awaits while it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from kibun.server.conversation.store import Key
from kibun.server.errors import Failure, Kind
from kibun.server.session.events import StreamWarning
from kibun.server.session.outbox import Outbox

# Audio may be on its way through the transport while a stream waits for its client: it has caught up once it has waited
# this long. A client that goes on sending in smaller steps is speaking now, and waited for no longer than the maximum.
CAUGHT_UP_AFTER_S = 0.02
MAX_CATCH_UP_S = 0.5


class OpenStream:
    """One stream among those of its conversation on this server."""

    def __init__(self, streams: OpenStreams, key: Key, participant_id: str, turn_id: str, outbox: Outbox) -> None:
        """Does not join `streams` yet: see `register`. `key`: the conversation's."""
        self.key = key
        self.participant_id = participant_id
        self.turn_ids = {turn_id}  # turns without a written result; never empty while the stream listens
        self.outbox = outbox
        self._streams = streams
        self._finishing: dict[str, asyncio.Event] = {}  # by turn id, set once the store knows of the turn's end
        self._closed = False
        self._awaits_client = False
        self._unanswered = 0
        self._idle = asyncio.Event()
        self._idle_since = 0.0

    # ---- turns

    def register(self) -> None:
        """Adds the stream to the open ones, with its first turn."""
        self._streams.add(self)
        for turn_id in tuple(self.turn_ids):
            self.claim(turn_id)

    def claim(self, turn_id: str) -> None:
        """Takes the turn: another stream that has yet to answer it ends with ABORTED SUPERSEDED."""
        self.turn_ids.add(turn_id)
        for other in self._streams.of_participant(self):
            if other is not self and turn_id in other.turn_ids:
                other.close()  # at once: its pending work is not needed
                other.outbox.end(superseded())

    def close(self) -> None:
        """Removes the stream from the open ones; does nothing the second time."""
        self._closed = True
        self._idle_since = float("-inf")  # no call has to wait for it any more
        self._idle.set()
        self._streams.remove(self)

    @property
    def is_last(self) -> bool:
        """Whether no stream of the conversation is open on this server."""
        return not self._streams.has(self.key)

    @contextmanager
    def finishing(self, turn_id: str) -> Iterator[None]:
        """Entered while the turn's result was sent and the store does not know it yet."""
        finished = self._finishing[turn_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._finishing[turn_id]
            finished.set()

    async def wait_until_finished(self, turn_id: str) -> None:
        """Returns once no stream of the participant is finishing the turn; its client may have the result already."""
        for other in self._streams.of_participant(self):
            if finished := other._finishing.get(turn_id):
                await finished.wait()

    # ---- progress

    def awaits_client(self, awaits: bool) -> None:
        """Sets whether the stream has taken all that its client sent."""
        self._awaits_client = awaits
        self._update()

    def count_unanswered(self, change: int) -> None:
        """Adds `change` to the number of utterances and ends of turns that wait for their answer."""
        self._unanswered += change
        self._update()

    async def wait_for_earlier(self) -> None:
        """Returns once every earlier stream of the participant is analysed as far as its client sent it.

        So the estimates of a turn rest on all turns before it, even if a client opens the next stream while the last
        one drains.
        """
        for earlier in self._streams.of_participant(self):
            if earlier is self:
                return
            await earlier._caught_up()

    async def _caught_up(self) -> None:
        """Returns once everything that the client sent is analysed, or after MAX_CATCH_UP_S of further audio."""
        left_s = MAX_CATCH_UP_S
        while True:
            await self._idle.wait()
            wait_s = min(self._idle_since + CAUGHT_UP_AFTER_S - _now(), left_s)
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)
            left_s -= wait_s

    def _update(self) -> None:
        if self._closed:
            return
        if not self._awaits_client or self._unanswered:
            self._idle.clear()
        elif not self._idle.is_set():
            self._idle_since = _now()
            self._idle.set()


class OpenStreams:
    """Registry of a server's open streams, in the order in which they opened."""

    def __init__(self) -> None:
        self._streams: dict[Key, list[OpenStream]] = {}  # by conversation

    def __len__(self) -> int:
        return sum(map(len, self._streams.values()))

    def add(self, stream: OpenStream) -> None:
        self._streams.setdefault(stream.key, []).append(stream)

    def remove(self, stream: OpenStream) -> None:
        """Does nothing if the stream is not registered."""
        streams = self._streams.get(stream.key, [])
        if stream in streams:
            streams.remove(stream)
        if not streams:
            self._streams.pop(stream.key, None)

    def has(self, key: Key) -> bool:
        """Whether a stream of the conversation is open."""
        return key in self._streams

    def of_participant(self, stream: OpenStream) -> list[OpenStream]:
        """The open streams of the same participant, `stream` among them once it is registered."""
        return [s for s in self._streams.get(stream.key, ()) if s.participant_id == stream.participant_id]

    def end_conversation(self, key: Key, failure: Failure) -> None:
        """Ends the streams of the conversation with `failure`."""
        for stream in tuple(self._streams.get(key, ())):
            stream.close()
            stream.outbox.end(failure)

    def end_all(self, failure: Failure) -> None:
        """Ends all streams with `failure`."""
        for key in tuple(self._streams):
            self.end_conversation(key, failure)

    def warn_all(self, warning: StreamWarning) -> None:
        """Sends the warning to every stream's client."""
        for streams in self._streams.values():
            for stream in streams:
                stream.outbox.warn(warning)


def superseded() -> Failure:
    return Failure(Kind.ABORTED, "SUPERSEDED", "a newer stream took over this turn; read that one's results")


def _now() -> float:
    return asyncio.get_running_loop().time()
