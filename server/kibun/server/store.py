"""Keeps conversations for a while. One method changes them, so that every change is atomic.

Keys are (tenant, conversation id): a tenant cannot name another's conversation. The memory store belongs to one
event loop; nothing in it awaits, so a change cannot be interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from kibun.server.conversation import Conversation

Key = tuple[str, str]
Change = Callable[[Conversation | None], Conversation]


class ConversationStore(Protocol):
    """What sessions and the service need of a store."""

    async def get(self, key: Key) -> Conversation | None:
        """The conversation, None when unknown or expired."""

    async def update(self, key: Key, change: Change) -> Conversation:
        """Applies `change` atomically and returns what it made. `change` may raise to leave things as they are,
        must be pure (a store may call it again after a conflict), and need not set `update_time`.
        """

    async def delete(self, key: Key) -> bool:
        """Erases everything; False when there was nothing."""


class MemoryStore:
    """Conversations in this process, each for `ttl_s` after its last change; `sweep` erases what has expired."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._conversations: dict[Key, Conversation] = {}

    def __len__(self) -> int:
        """Conversations in memory, expired ones included until the next sweep."""
        return len(self._conversations)

    async def get(self, key: Key) -> Conversation | None:
        return self._live(key, self._clock())

    async def update(self, key: Key, change: Change) -> Conversation:
        now = self._clock()
        changed = replace(change(self._live(key, now)), update_time=now)
        self._conversations[key] = changed
        return changed

    async def delete(self, key: Key) -> bool:
        known = self._live(key, self._clock()) is not None
        self._conversations.pop(key, None)
        return known

    def _live(self, key: Key, now: float) -> Conversation | None:
        conversation = self._conversations.get(key)
        return conversation if conversation and conversation.expire_time > now else None

    def sweep(self) -> None:
        """Call from time to time: expired conversations are invisible at once, and out of memory after this."""
        now = self._clock()
        for key in [k for k, c in self._conversations.items() if c.expire_time <= now]:
            del self._conversations[key]
