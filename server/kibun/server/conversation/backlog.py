"""What a store that is away has yet to be told: changes of conversations, in order, so many at most.

Where there is no room for one more, the oldest change of whoever has the most is lost: of the conversation, of the
tenant's largest one, of the largest tenant's. Nobody's changes are lost because of somebody else who has more. All of
it takes the same time however much is kept.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import Change, Key, StreamHandle
from kibun.server.errors import Failure, Kind

log = logging.getLogger(__name__)

MAX_CONVERSATION = 2_000  # changes kept of a conversation: of one participant, all that the store would keep
MAX_TENANT = 20_000  # of a tenant; with 768 float16 each 35 MB
MAX_ALL = 100_000

K = TypeVar("K", bound=Hashable)
Step = tuple[StreamHandle, Change[Conversation | None]]


class Sizes(Generic[K]):
    """Which of many has the most."""

    def __init__(self) -> None:
        self.total = 0
        self._sizes: dict[K, int] = {}
        self._by_size: dict[int, dict[K, None]] = {}
        self._most = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def of(self, key: K) -> int:
        return self._sizes.get(key, 0)

    def set(self, key: K, size: int) -> None:
        before = self._sizes.pop(key, 0)
        self.total += size - before
        if before:
            self._by_size[before].pop(key)
            if not self._by_size[before]:
                del self._by_size[before]
        if size:
            self._sizes[key] = size
            self._by_size.setdefault(size, {})[key] = None
        self._most = max(self._most, size)

    @property
    def largest(self) -> K:
        """Of several of one size, the one that has it for longest."""
        while self._most not in self._by_size:
            self._most -= 1
        return next(iter(self._by_size[self._most]))


@dataclass(slots=True)
class Missed:
    """One conversation's changes that the store does not have."""

    base: Conversation | None  # what was known before them; None: nothing
    seen: Conversation | None  # with them
    steps: deque[Step] = field(default_factory=deque)
    streams: dict[int, StreamHandle] = field(default_factory=dict)  # who made them, by id()
    rejected: dict[int, Failure] = field(default_factory=dict)  # streams whose changes the store has no place for
    short: set[int] = field(default_factory=set)  # streams that lost a change
    gone: int = 0  # steps that were here and are not any more
    _counts: dict[int, int] = field(default_factory=dict)  # of streams' steps, those told to the store included

    def add(self, stream: StreamHandle, change: Change[Conversation | None]) -> bool:
        """Whether it is the stream's first."""
        first = id(stream) not in self.streams
        self.streams[id(stream)] = stream
        self._counts[id(stream)] = self._counts.get(id(stream), 0) + 1
        self.steps.append((stream, change))
        return first

    def first(self, count: int) -> list[Step]:
        return list(islice(self.steps, count))

    def told(self, until: int, result: Conversation | None) -> None:
        """The store has what was here up to that many steps since the beginning."""
        self.base = result
        while self.gone < until:
            self.steps.popleft()
            self.gone += 1

    def lose_oldest(self) -> None:
        """What the store gets where it has lost the conversation still tells of it."""
        stream, change = self.steps.popleft()
        self.gone += 1
        self.base = replay([(stream, change)], self.base, {})
        self._counts[id(stream)] -= 1
        self.short.add(id(stream))
        if not self._counts[id(stream)]:
            self._forget(id(stream))

    def remove(self, leaving: StreamHandle) -> None:
        """All of one stream."""
        self.steps = deque(step for step in self.steps if step[0] is not leaving)
        self._forget(id(leaving))

    def _forget(self, stream: int) -> None:
        self.streams.pop(stream, None)
        self._counts.pop(stream, None)
        self.rejected.pop(stream, None)
        self.short.discard(stream)


def replay(
    steps: Sequence[Step], conversation: Conversation | None, rejected: dict[int, Failure]
) -> Conversation | None:
    """With the steps made. A stream of which one cannot be made comes to `rejected`: it has no say at all any more."""
    for stream, change in steps:
        if id(stream) not in rejected:
            try:
                conversation = change(conversation)
            except Failure as failure:
                rejected[id(stream)] = failure
            except Exception as error:
                rejected[id(stream)] = not_stored(error)
    return conversation


def not_stored(error: Exception) -> Failure:
    log.error("what was said while the store was away cannot be stored", exc_info=error)
    text = "what this stream said while the conversation store was away could not be stored"
    return Failure(Kind.INTERNAL, "NOT_STORED", text)


class Backlog:
    """`Missed` of all conversations. Iterates over their keys, the oldest first."""

    def __init__(self) -> None:
        self.lost = 0  # changes for which there was no room, since anybody asked last
        self._missed: dict[Key, Missed] = {}
        self._conversations: dict[str, Sizes[Key]] = {}  # by tenant
        self._tenants: Sizes[str] = Sizes()

    @property
    def total(self) -> int:
        """Changes."""
        return self._tenants.total

    def __iter__(self) -> Iterator[Key]:
        return iter(self._missed)

    def __len__(self) -> int:
        return len(self._missed)

    def __contains__(self, key: Key) -> bool:
        return key in self._missed

    def get(self, key: Key) -> Missed | None:
        return self._missed.get(key)

    def add(self, key: Key, missed: Missed, stream: StreamHandle, change: Change[Conversation | None]) -> bool:
        """Whether it is the stream's first change of the conversation; `missed` is that of the key from now on."""
        self._missed[key] = missed
        first = missed.add(stream, change)
        self.resize(key, missed)
        tenant = key[0]
        if len(missed.steps) > MAX_CONVERSATION:
            self._lose(key)
        elif self._tenants.of(tenant) > MAX_TENANT:
            self._lose(self._conversations[tenant].largest)
        elif self.total > MAX_ALL:
            self._lose(self._conversations[self._tenants.largest].largest)
        return first

    def resize(self, key: Key, missed: Missed) -> None:
        """To be called after steps of it have gone; forgets it where none is left."""
        tenant, size = key[0], len(missed.steps)
        conversations = self._conversations.setdefault(tenant, Sizes())
        conversations.set(key, size)
        self._tenants.set(tenant, conversations.total)
        if not size:
            self._missed.pop(key, None)
        if not conversations.total:
            del self._conversations[tenant]

    def drop(self, key: Key) -> int:
        """So many changes went."""
        missed = self._missed.get(key)
        if missed is None:
            return 0
        count = len(missed.steps)
        missed.gone += count
        missed.steps.clear()
        self.resize(key, missed)
        return count

    def _lose(self, key: Key) -> None:
        missed = self._missed[key]
        missed.lose_oldest()
        self.resize(key, missed)
        self.lost += 1
