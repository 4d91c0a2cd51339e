"""The changes that a store which is away does not have yet, per conversation, oldest first, and limited in number.

Beyond the limits, the oldest change of the largest is lost: of the conversation itself, of the tenant's largest
conversation, or of the largest conversation of the tenant that has the most. So no tenant loses anything because of
another that has more.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import TypeVar

from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import Change, Key, StreamHandle
from kibun.server.conversation.tenant_limit import Expiry
from kibun.server.errors import Failure, Kind

log = logging.getLogger(__name__)

K = TypeVar("K")
MAX_CONVERSATION = 2_000  # changes of a conversation: of one participant, all that the store would keep
MAX_TENANT = 20_000  # of a tenant; with 768 float16 each 35 MB
MAX_ALL = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class PendingChange:
    stream: StreamHandle
    change: Change[Conversation | None]


@dataclass(slots=True, eq=False)
class Pending:
    """The changes of one conversation that the store does not have yet."""

    base: Conversation | None  # what this server knew before them; None: nothing
    seen: Conversation | None  # what they make of it
    expiry: Expiry | None = None  # of `seen`
    changes: deque[PendingChange] = field(default_factory=deque)  # oldest first
    streams: dict[int, StreamHandle] = field(default_factory=dict)  # that made them, by id()
    rejected: dict[int, Failure] = field(default_factory=dict)  # why a stream's changes cannot be made, by its id()
    incomplete: set[int] = field(default_factory=set)  # ids of streams that lost a change

    def oldest(self, count: int) -> list[PendingChange]:
        return list(islice(self.changes, count))

    def remove_stored(self, stored: Iterable[PendingChange]) -> None:
        """Removes the oldest changes, of which some may have been lost since."""
        for change in stored:
            if self.changes and self.changes[0] is change:
                self.changes.popleft()

    def lose_oldest(self) -> None:
        """Removes the oldest change. A store that has lost the conversation gets it nevertheless, as part of `base`."""
        lost = self.changes.popleft()
        self.base, _ = replay([lost], self.base, {})
        self.incomplete.add(id(lost.stream))
        if id(lost.stream) not in self.rejected and all(c.stream is not lost.stream for c in self.changes):
            self._forget(lost.stream)

    def remove(self, stream: StreamHandle) -> None:
        """Removes the changes of one stream, and forgets it."""
        self.changes = deque(change for change in self.changes if change.stream is not stream)
        self._forget(stream)

    def notify_damaged(self) -> None:
        for stream in self.streams.values():
            stream.notify_damaged()

    def _forget(self, stream: StreamHandle) -> None:
        self.streams.pop(id(stream), None)
        self.rejected.pop(id(stream), None)
        self.incomplete.discard(id(stream))


def replay(
    changes: Iterable[PendingChange], conversation: Conversation | None, rejected: Mapping[int, Failure]
) -> tuple[Conversation | None, dict[int, Failure]]:
    """Makes the changes in order, except those of rejected streams.

    Returns the result and `rejected` with the streams added of which a change could not be made.
    """
    rejected = dict(rejected)
    for pending in changes:
        number = id(pending.stream)
        if number not in rejected:
            try:
                conversation = pending.change(conversation)
            except Failure as failure:
                rejected[number] = failure
            except Exception as error:
                rejected[number] = not_stored(error)
    return conversation, rejected


def not_stored(error: Exception) -> Failure:
    log.error("a change made while the conversation store was away cannot be stored", exc_info=error)
    text = "the changes that this stream made while the conversation store was away could not be stored"
    return Failure(Kind.INTERNAL, "NOT_STORED", text)


class Backlog:
    """The pending changes of all conversations. Iterates over their keys, the oldest first."""

    def __init__(self) -> None:
        self.total = 0  # changes
        self.lost = 0  # changes given up since this was last reported
        self._pending: dict[Key, Pending] = {}
        self._sizes: dict[str, dict[Key, int]] = {}  # changes of each conversation, by tenant
        self._tenants: dict[str, int] = {}  # changes of each tenant

    def __iter__(self) -> Iterator[Key]:
        return iter(self._pending)

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, key: Key) -> bool:
        return key in self._pending

    def get(self, key: Key) -> Pending | None:
        return self._pending.get(key)

    def add(self, key: Key, pending: Pending, change: PendingChange) -> None:
        """Adds a change to those of the conversation, which are `pending` from now on."""
        self._pending[key] = pending
        pending.streams[id(change.stream)] = change.stream
        pending.changes.append(change)
        self.resize(key)
        tenant = key[0]
        if len(pending.changes) > MAX_CONVERSATION:
            self._lose_oldest(key)
        elif self._tenants[tenant] > MAX_TENANT:
            self._lose_oldest(_largest(self._sizes[tenant]))
        elif self.total > MAX_ALL:
            self._lose_oldest(_largest(self._sizes[_largest(self._tenants)]))

    def resize(self, key: Key) -> None:
        """Counts the changes of a conversation anew after some were added or removed; forgets it where none is left."""
        tenant, pending = key[0], self._pending.get(key)
        size = len(pending.changes) if pending else 0
        sizes = self._sizes.setdefault(tenant, {})
        more = size - sizes.pop(key, 0)
        self.total += more
        self._tenants[tenant] = self._tenants.get(tenant, 0) + more
        if size:
            sizes[key] = size
        else:
            self._pending.pop(key, None)
        if not sizes:
            del self._sizes[tenant], self._tenants[tenant]

    def drop(self, key: Key) -> int:
        """Drops all changes of a conversation; returns how many."""
        pending = self._pending.get(key)
        if pending is None:
            return 0
        count = len(pending.changes)
        pending.changes.clear()
        self.resize(key)
        return count

    def _lose_oldest(self, key: Key) -> None:
        self._pending[key].lose_oldest()
        self.resize(key)
        self.lost += 1


def _largest(sizes: Mapping[K, int]) -> K:
    return max(sizes.items(), key=itemgetter(1))[0]
