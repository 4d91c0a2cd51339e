"""Conversations in Redis or Valkey, shared by any number of servers.

A change is made on what this server last saw and written if no other server has written since; otherwise it is made
again on what is there now, and so on. What this server last saw stays in memory, so that one more utterance costs
the head and one record each way, however many there are.

`RedisStore` (retries, memory, limits) calls `RedisHash` (reads and writes one hash), which calls `redis_layout` (its
fields), which calls `codec` (their bytes).
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar, cast

from kibun.server.conversation.audience import Audience
from kibun.server.conversation.redis_connection import RedisConnection
from kibun.server.conversation.redis_hash import RedisHash
from kibun.server.conversation.redis_layout import StoredConversation
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import C, Change, Key, StreamHandle, stamp
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS, Expiry, TenantLimit
from kibun.server.errors import Failure, Kind

T = TypeVar("T")
CACHE_RECORDS = 32_768  # of conversations last seen: 768 float16 each are 50 MB
CROWD = 3  # conflicts in a row after which a writer waits for a moment


def _ignore() -> None:
    pass


class RedisStore:
    """Implements `ConversationStore`, but raises StoreUnavailable for streams too (`ResilientStore` does not).

    Redis expires a conversation `ttl_s` after its last change, by its own clock. `update_time` is by this server's
    clock, but never goes back.
    """

    def __init__(
        self,
        connection: RedisConnection,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        on_damaged: Callable[[], None] = _ignore,
        tenant_conversations: int = TENANT_CONVERSATIONS,
        cache_records: int = CACHE_RECORDS,
    ) -> None:
        """`on_damaged` is called each time that a conversation cannot be read."""
        self._connection = connection
        self._clock = clock
        self._monotonic = monotonic
        self._on_damaged = on_damaged
        self._cache = Cache(cache_records)
        self.tenant_limit = TenantLimit(tenant_conversations, monotonic)
        """Of the conversations that this server has seen."""
        self.audience = Audience()

    def __len__(self) -> int:
        return len(self._cache)

    async def first_contact(self) -> None:
        """Tries every command that is needed. Raises CannotConnect."""
        await self._connection.attempt("PING")
        await self._hash(("", secrets.token_hex(8))).attempt()

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        state = await self._load(key)
        _refuse_deleted(state, _last_seen(stream))
        if stream is not None and state.damaged:
            stream.notify_damaged()
        return state.conversation

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        notify = stream.notify_damaged if stream else _ignore
        conversation, _ = await self.transact(
            key, lambda known: (change(known), None), lambda: _last_seen(stream), notify
        )
        return conversation

    async def transact(
        self,
        key: Key,
        change: Callable[[Conversation | None], tuple[C, T]],
        last_seen: Callable[[], Conversation | None],
        on_damaged: Callable[[], None],
    ) -> tuple[C, T]:
        """As `update`, for a change that returns something besides the conversation.

        `last_seen` is called before each try and gives what the change is made on where the store has nothing; it may
        raise to end the call. `on_damaged` is called once the change has replaced what could not be read.
        """
        remembered = self._cache.get(key)
        state, current = remembered or await self._load(key), remembered is None
        conflicts, damaged = 0, False
        while True:
            damaged |= state.damaged
            try:
                seen = last_seen()
                _refuse_deleted(state, seen)
                known = state.conversation or seen
                changed, result = change(known)
                if known is None and changed is not None:
                    self.tenant_limit.check(key)
            except Exception:
                if current:
                    raise
                state, current = await self._load(key), True  # perhaps it is no longer so
                continue
            after = self._stamped(changed, known, state) if changed is not None else None
            state, written = await self._hash(key).write(state, after)
            self._remember(key, state)
            if written:
                if damaged or state.damaged:
                    on_damaged()
                return cast(C, after), result
            current = True
            conflicts += 1
            if conflicts > CROWD:
                await asyncio.sleep(0.001 * secrets.randbelow(min(conflicts, 50)))

    async def delete(self, key: Key) -> bool:
        state = await self._load(key)
        while state.head or state.damaged:
            made = state.conversation.create_time if state.conversation else state.deleted_create_time
            state, written = await self._hash(key).write(
                state, None, deleted=b"" if made is None else made.hex().encode()
            )
            self._remember(key, state)
            if written:
                return True
        return False

    async def knows(self, key: Key) -> bool:
        return await self._hash(key).exists()

    async def ping(self) -> None:
        await self._connection.call("PING")

    def remembered(self, key: Key) -> Conversation | None:
        """The conversation as this server last saw it, None where it is not in memory or must have expired."""
        state = self._cache.get(key)
        return state.conversation if state and self._cache.expires_at(key) > self._monotonic() else None

    def forget(self, key: Key) -> None:
        """Removes the conversation from this server's memory."""
        self._remember(key, StoredConversation())

    def sweep(self) -> None:
        self.tenant_limit.sweep()
        for key in [key for key in self._cache if self.remembered(key) is None]:
            self.forget(key)

    def watch(self, on_answer: Callable[[float], None]) -> None:
        """Has `on_answer` called with the seconds that each answer of the server took."""
        self._connection.on_answer = on_answer

    async def close(self) -> None:
        await self._connection.close()

    def _hash(self, key: Key) -> RedisHash:
        return RedisHash(self._connection, key)

    async def _load(self, key: Key) -> StoredConversation:
        state = await self._hash(key).read(self._cache.get(key))
        self._remember(key, state)
        return state

    def _remember(self, key: Key, state: StoredConversation) -> None:
        if state.damaged:
            self._on_damaged()
        self._cache.put(key, replace(state, damaged=False), self._monotonic())
        self.tenant_limit.note(key, state.conversation)

    def _stamped(self, changed: Conversation, known: Conversation | None, state: StoredConversation) -> Conversation:
        """A new conversation is younger than the deleted one, whatever the servers' clocks show."""
        create_time = changed.create_time
        if known is None and state.deleted_create_time is not None:
            create_time = max(create_time, math.nextafter(state.deleted_create_time, math.inf))
        return replace(stamp(changed, known, self._clock()), create_time=create_time)


class Cache:
    """The states of the conversations last seen, by key, `max_records` of weight at most."""

    def __init__(self, max_records: int) -> None:
        self.records = 0
        self._max_records = max_records
        self._states: OrderedDict[Key, tuple[StoredConversation, Expiry]] = OrderedDict()  # the longest unseen first

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._states)

    def get(self, key: Key) -> StoredConversation | None:
        state, _ = self._states.get(key, (None, None))
        return state

    def expires_at(self, key: Key) -> float:
        """When the conversation must have expired; -inf for one that is not there."""
        _, expiry = self._states.get(key, (None, None))
        return expiry.at if expiry else -math.inf

    def put(self, key: Key, state: StoredConversation, now: float) -> None:
        """Replaces the state; forgets it where there is no conversation."""
        before, expiry = self._states.pop(key, (None, None))
        if before is not None:
            self.records -= before.weight
        if state.conversation is not None:
            self._states[key] = state, Expiry(state.conversation, now, expiry)
            self.records += state.weight
        while self.records > self._max_records:
            _, (longest_unseen, _) = self._states.popitem(last=False)
            self.records -= longest_unseen.weight


def _last_seen(stream: StreamHandle | None) -> Conversation | None:
    """Raises what ended the stream."""
    if stream is None:
        return None
    stream.check_open()
    return stream.last_seen


def _refuse_deleted(state: StoredConversation, seen: Conversation | None) -> None:
    deleted = state.deleted_create_time
    if seen is not None and deleted is not None and seen.create_time <= deleted:
        raise Failure(Kind.ABORTED, "CONVERSATION_DELETED", "the conversation was deleted")
