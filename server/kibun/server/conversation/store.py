"""What a conversation store does, and the one that keeps conversations in memory.

Keys are (tenant, conversation id), so that a tenant cannot name another's conversation. `MemoryStore` serves one
server, `RedisStore` several; one suite of contract tests holds for both. All changes go through `update`, which is
atomic.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar, cast

from kibun.server.conversation.audience import Audience
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS, Expiry, TenantLimit
from kibun.server.errors import RETRY_AFTER_S, Failure, Kind

Key = tuple[str, str]
C = TypeVar("C", bound=Conversation | None)
Change = Callable[[Conversation | None], C]


class StoreUnavailable(Failure):
    """The store does not answer. Streams go on nevertheless; single calls are refused."""

    def __init__(self) -> None:
        text = "the server cannot reach its conversation store; try again"
        super().__init__(Kind.UNAVAILABLE, "STORE_UNAVAILABLE", text, retry_after_s=RETRY_AFTER_S)


class StoreRefused(Failure):
    """The store answers, but refuses this one conversation."""

    def __init__(self) -> None:
        text = "the conversation store refuses this conversation; begin another with a new conversation_id"
        super().__init__(Kind.INTERNAL, "STORE_REFUSED", text)


class StreamHandle(Protocol):
    """A stream, as a store sees it. The methods return at once."""

    @property
    def last_seen(self) -> Conversation | None:
        """The conversation as the stream last saw it, from which it goes on where the store has lost the conversation.

        None before the stream has entered a conversation.
        """

    def check_open(self) -> None:
        """Raises the failure that ended the stream, after which nothing of it may be stored."""

    def notify_behind(self, is_behind: bool) -> None:
        """Called with True when changes of the stream no longer reach the store, with False when all have."""

    def notify_damaged(self) -> None:
        """Called when what the store had of the conversation could not be read, and counts as lost."""

    def reject(self, failure: Failure) -> None:
        """Called when the stored conversation turns out not to admit the stream: its changes were dropped."""


class ConversationStore(Protocol):
    """What sessions and the service need of a store.

    While the store is away, calls without a stream raise StoreUnavailable. A stream is answered with what this server
    knows, and its changes reach the store later. A stream whose conversation was deleted gets Failure
    CONVERSATION_DELETED. Any call may raise StoreRefused.
    """

    @property
    def audience(self) -> Audience:
        """Those who watch the conversations, on whatever server that shares them."""

    def __len__(self) -> int:
        """Conversations in this process's memory, as of the last sweep."""

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        """Returns the conversation, None when it is unknown or expired."""

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        """Applies `change` atomically and returns its result; None erases the conversation.

        `change` gets the conversation, what the stream last saw where the store has none, or None. It may raise to
        change nothing, must be pure (it is called again after a conflict), and need not set `update_time`.
        """

    async def delete(self, key: Key) -> bool:
        """Erases the conversation; returns whether there was one."""

    async def knows(self, key: Key) -> bool:
        """Whether the conversation exists, as far as this server can tell now; never raises StoreUnavailable."""

    def sweep(self) -> None:
        """Frees the memory of expired conversations; call it from time to time."""

    async def close(self) -> None:
        """Closes the store; nothing may be called after it."""


class MemoryStore:
    """Keeps conversations in this process, each for `ttl_s` after its last change.

    Belongs to one event loop. None of its methods waits, so each change is atomic.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        tenant_conversations: int = TENANT_CONVERSATIONS,
    ) -> None:
        """A tenant with `tenant_conversations` is refused another: RESOURCE_EXHAUSTED TENANT_CONVERSATION_LIMIT.

        `clock` gives the times that people see; what expires is decided by `monotonic`.
        """
        self._clock = clock
        self._monotonic = monotonic
        self._conversations: dict[Key, tuple[Conversation, Expiry]] = {}
        self._tenant_limit = TenantLimit(tenant_conversations, monotonic)
        self.audience = Audience()

    def __len__(self) -> int:
        return len(self._conversations)

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        return self._unexpired(key)

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        if stream is not None:
            stream.check_open()
        known = self._unexpired(key) or (stream.last_seen if stream else None)
        changed = change(known)
        if changed is None:
            self._forget(key)
            return changed
        if known is None:
            self._tenant_limit.check(key)
        stamped = stamp(changed, known, self._clock())
        self._conversations[key] = stamped, Expiry(stamped, self._monotonic())
        self._tenant_limit.note(key, stamped)
        return cast(C, stamped)

    async def delete(self, key: Key) -> bool:
        known = await self.knows(key)
        self._forget(key)
        return known

    async def knows(self, key: Key) -> bool:
        return self._unexpired(key) is not None

    def _unexpired(self, key: Key) -> Conversation | None:
        conversation, expiry = self._conversations.get(key, (None, None))
        return conversation if expiry and expiry.at > self._monotonic() else None

    def _forget(self, key: Key) -> None:
        self._conversations.pop(key, None)
        self._tenant_limit.note(key, None)

    def sweep(self) -> None:
        """Expired conversations are invisible at once, and out of memory after this."""
        self._tenant_limit.sweep()
        for key in [key for key in self._conversations if self._unexpired(key) is None]:
            del self._conversations[key]

    async def close(self) -> None:
        self._conversations.clear()


def stamp(changed: Conversation, before: Conversation | None, now: float) -> Conversation:
    """Sets `update_time`, which always grows, even where servers' clocks differ: equal times mean "not changed"."""
    earliest = math.nextafter(before.update_time, math.inf) if before else now
    return replace(changed, update_time=max(now, earliest))
