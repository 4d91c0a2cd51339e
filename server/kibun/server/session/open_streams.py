"""The streams that are open now: who supersedes whom, who waits for whom, who must be told.

Belongs to one event loop; nothing here awaits while it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kibun.server.errors import Failure, Kind
from kibun.server.session.events import StreamWarning

# A stream that waits for its client may have audio on its way through the transport: it has caught up once it has
# waited this long. One whose audio keeps arriving in smaller steps is taken to be live after PATIENCE_S.
SETTLE_S = 0.02
PATIENCE_S = 0.5


class OpenStream:
    """One open stream. `end` stops it with a failure, `warn` sends its client a warning; both return at once."""

    def __init__(
        self,
        tenant: str,
        conversation_id: str,
        participant_id: str,
        turn_id: str,
        *,
        end: Callable[[Failure], None],
        warn: Callable[[StreamWarning], None],
    ) -> None:
        self.conversation = (tenant, conversation_id)
        self.participant_id = participant_id
        self.turn_ids = {turn_id}  # turns that have no written result yet; never empty while the stream is heard
        self.end = end
        self.warn = warn
        self._finishing: dict[str, asyncio.Event] = {}
        self._awaits_client = False
        self._work = 0
        self._idle = asyncio.Event()
        self._idle_since = 0.0

    def awaits_client(self, awaits: bool) -> None:
        """Whether the stream has taken all that its client sent."""
        self._awaits_client = awaits
        self._update()

    def work(self, items: int) -> None:
        """So many utterances or turns more (fewer if negative) wait to be answered."""
        self._work += items
        self._update()

    def ended(self) -> None:
        """Nobody need wait for this stream any more."""
        self._idle_since = float("-inf")
        self._idle.set()

    async def caught_up(self) -> None:
        """Returns once everything that the client sent is analysed. A stream that merely stays open is no hindrance."""
        patience_s = PATIENCE_S
        while True:
            await self._idle.wait()
            left_s = min(self._idle_since + SETTLE_S - _now(), patience_s)
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)
            patience_s -= left_s

    @contextmanager
    def finishing(self, turn_id: str) -> Iterator[None]:
        """While the turn's result is written and the conversation does not say so yet."""
        finished = self._finishing[turn_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._finishing[turn_id]
            finished.set()

    async def finished(self, turn_id: str) -> None:
        """Returns at once where it is not about to be."""
        if finishing := self._finishing.get(turn_id):
            await finishing.wait()

    def _update(self) -> None:
        if not self._awaits_client or self._work:
            self._idle.clear()
        elif not self._idle.is_set():
            self._idle_since = _now()
            self._idle.set()


class OpenStreams:
    """Registry of open streams, in the order in which they opened."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], list[OpenStream]] = {}  # by conversation

    def __len__(self) -> int:
        return sum(map(len, self._streams.values()))

    def add(self, stream: OpenStream) -> None:
        """Registers the stream for its first turn."""
        self._streams.setdefault(stream.conversation, []).append(stream)
        for turn_id in tuple(stream.turn_ids):
            self.claim(stream, turn_id)

    def claim(self, stream: OpenStream, turn_id: str) -> None:
        """The turn is this stream's now: another one that has yet to answer it ends with ABORTED SUPERSEDED."""
        stream.turn_ids.add(turn_id)
        for other in self._of(stream):
            if other is not stream and turn_id in other.turn_ids:
                self.remove(other)  # at once: nobody waits for what it still does
                other.end(superseded())

    def remove(self, stream: OpenStream) -> None:
        """Forgets the stream; does nothing the second time."""
        stream.ended()
        streams = self._streams.get(stream.conversation, [])
        if stream in streams:
            streams.remove(stream)
        if not streams:
            self._streams.pop(stream.conversation, None)

    async def wait_for_earlier(self, stream: OpenStream) -> None:
        """Returns once every earlier stream of the same participant is analysed as far as its client sent it.

        So the estimates of a turn rest on all turns before it, even when a client opens the next stream while
        the last one drains.
        """
        for earlier in self._of(stream):
            if earlier is stream:
                return
            await earlier.caught_up()

    async def settled(self, stream: OpenStream, turn_id: str) -> None:
        """Returns once the conversation tells whether the participant's turn is finished: a client may have read its
        result a moment before.
        """
        for other in self._of(stream):
            await other.finished(turn_id)

    def has(self, conversation: tuple[str, str]) -> bool:
        """Whether a stream of (tenant, conversation id) is open."""
        return conversation in self._streams

    def end_conversation(self, conversation: tuple[str, str], failure: Failure) -> None:
        """Ends the streams of (tenant, conversation id)."""
        for stream in tuple(self._streams.get(conversation, ())):
            self.remove(stream)
            stream.end(failure)

    def end_all(self, failure: Failure) -> None:
        for conversation in tuple(self._streams):
            self.end_conversation(conversation, failure)

    def warn_all(self, warning: StreamWarning) -> None:
        for streams in self._streams.values():
            for stream in streams:
                stream.warn(warning)

    def _of(self, stream: OpenStream) -> list[OpenStream]:
        """The participant's streams."""
        streams = self._streams.get(stream.conversation, ())
        return [s for s in streams if s.participant_id == stream.participant_id]


def superseded() -> Failure:
    return Failure(Kind.ABORTED, "SUPERSEDED", "a newer stream took over this turn; read that one's results")


def _now() -> float:
    return asyncio.get_running_loop().time()
