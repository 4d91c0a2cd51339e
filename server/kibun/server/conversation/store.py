"""Keeps conversations for a while. One method changes them, so that every change is atomic.

Keys are (tenant, conversation id): a tenant cannot name another's conversation. `MemoryStore` is for one server,
`store_redis.RedisStore` for several; one contract-test suite holds for both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar, cast

from kibun.server.conversation.state import Conversation
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS, TenantLimit
from kibun.server.errors import Failure, Kind

Key = tuple[str, str]
C = TypeVar("C", bound=Conversation | None)
Change = Callable[[Conversation | None], C]
RETRY_AFTER_S = 1.0


class StoreUnavailable(Failure):
    """The store does not answer. Streams go on all the same; single calls are refused."""

    def __init__(self) -> None:
        text = "the server cannot reach its conversation store; try again"
        super().__init__(Kind.UNAVAILABLE, "STORE_UNAVAILABLE", text, retry_after_s=RETRY_AFTER_S)


class StoreRefused(Failure):
    """The store answers, but not for this conversation: nothing is wrong for others."""

    def __init__(self) -> None:
        text = "the conversation store refuses this conversation; begin another with a new conversation_id"
        super().__init__(Kind.INTERNAL, "STORE_REFUSED", text)


class StreamHandle(Protocol):
    """A stream, as a store sees it. The methods return at once."""

    @property
    def last_seen(self) -> Conversation | None:
        """What the stream goes on from where the store has lost the conversation; None before it entered one."""

    def check_open(self) -> None:
        """Raises what ended the stream: from then on nothing of it may be stored."""

    def notify_behind(self, is_behind: bool) -> None:
        """Told when changes of the stream no longer reach the store, and when all of them have reached it."""

    def reject(self, failure: Failure) -> None:
        """Told where the conversation in the store turned out to have no place for this stream."""


class ConversationStore(Protocol):
    """What sessions and the service need of a store.

    Calls without a stream raise StoreUnavailable while the store is away. A stream is answered all the same, with
    what this server knows, and its changes reach the store later. A stream whose conversation was deleted meets
    Failure CONVERSATION_DELETED. Any call may meet StoreRefused.
    """

    def __len__(self) -> int:
        """Conversations in this process's memory, until the next sweep."""

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        """The conversation, None when unknown or expired."""

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        """Applies `change` atomically and returns what it made; None erases the conversation.

        `change` may raise to leave things as they are, must be pure (it is called again after a conflict), and need
        not set `update_time`. For a stream it gets what that one holds where the store has nothing.
        """

    async def delete(self, key: Key) -> bool:
        """Erases everything; False when there was nothing."""

    async def knows(self, key: Key) -> bool:
        """Whether the conversation exists, as far as can be told now; never raises StoreUnavailable."""

    def sweep(self) -> None:
        """Frees the memory of what has expired; to be called from time to time."""

    async def close(self) -> None:
        """The last call."""


class MemoryStore:
    """Conversations in this process, each for `ttl_s` after its last change.

    Belongs to one event loop; nothing in it waits, so that no change comes between another's reading and writing.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, *, tenant_conversations: int = TENANT_CONVERSATIONS
    ) -> None:
        """A tenant that has `tenant_conversations` cannot make more: RESOURCE_EXHAUSTED TENANT_CONVERSATION_LIMIT."""
        self._clock = clock
        self._conversations: dict[Key, Conversation] = {}
        self._tenant_limit = TenantLimit(tenant_conversations, clock)

    def __len__(self) -> int:
        return len(self._conversations)

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        return self._live(key, self._clock())

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        if stream is not None:
            stream.check_open()
        now = self._clock()
        known = self._live(key, now) or (stream.last_seen if stream else None)
        changed = change(known)
        if changed is None:
            self._forget(key)
            return changed
        if known is None:
            self._tenant_limit.check(key)
        stamped = stamp(changed, known, now)
        self._conversations[key] = stamped
        self._tenant_limit.note(key, stamped)
        return cast(C, stamped)

    async def delete(self, key: Key) -> bool:
        known = await self.knows(key)
        self._forget(key)
        return known

    async def knows(self, key: Key) -> bool:
        return self._live(key, self._clock()) is not None

    def _live(self, key: Key, now: float) -> Conversation | None:
        conversation = self._conversations.get(key)
        return conversation if conversation and conversation.expire_time > now else None

    def _forget(self, key: Key) -> None:
        self._conversations.pop(key, None)
        self._tenant_limit.note(key, None)

    def sweep(self) -> None:
        """Expired conversations are invisible at once, and out of memory after this."""
        self._tenant_limit.sweep()
        now = self._clock()
        for key in [k for k, c in self._conversations.items() if c.expire_time <= now]:
            del self._conversations[key]

    async def close(self) -> None:
        self._conversations.clear()


def stamp(changed: Conversation, before: Conversation | None, now: float) -> Conversation:
    """With `update_time` set. It always grows, also where servers' clocks differ: equal times mean "not changed"."""
    earliest = math.nextafter(before.update_time, math.inf) if before else now
    return replace(changed, update_time=max(now, earliest))
