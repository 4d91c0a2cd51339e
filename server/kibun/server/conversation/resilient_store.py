"""Keeps streams going while the conversation store is away, and brings the store up to date when it is back.

Meanwhile the changes that streams make wait in a backlog, per conversation and in order, on top of what this server
last knew of it. When the store answers again they are applied there, a few at a time. Changes are pure and idempotent:
it does no harm if one had reached the store after all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakValueDictionary

from kibun.server.conversation.audience import Audience, Notice
from kibun.server.conversation.backlog import Backlog, Pending, PendingChange, not_stored, replay
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import C, Change, Key, StoreUnavailable, StreamHandle, stamp
from kibun.server.conversation.tenant_limit import Expiry
from kibun.server.errors import Failure, Kind

if TYPE_CHECKING:
    from kibun.server.conversation.redis_store import RedisStore

log = logging.getLogger(__name__)
T = TypeVar("T")

SLOW_S = 0.3  # two answers in a row that took longer: the store counts as away, so that finals do not wait for it
FAST_S = 0.1  # a probe must be answered within this for the store to be back
PROBE_S = (0.25, 2.0)  # first and longest wait between probes
LAST_TRY_S = 0.5  # to store the backlog when the server stops
BATCH = 50  # changes applied at once; then other streams get their turn


class ResilientStore:
    """Implements `ConversationStore` over one that may be away. Belongs to one event loop.

    Calls on one conversation are made one after the other, so that answers come in the order of the calls.
    """

    def __init__(
        self,
        store: RedisStore,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_error` is called for each call that the store did not answer."""
        self.available = True
        """Whether the store is asked: False from an outage until a probe is answered in time."""
        self._store = store
        self._on_error = on_error
        self._clock = clock
        self._monotonic = monotonic
        self._backlog = Backlog()
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._slow_answers = 0
        self._probing: asyncio.Task[None] | None = None
        store.watch(self._note_answer)

    @property
    def pending(self) -> int:
        """Changes that the store does not have yet."""
        return self._backlog.total

    # ---- ConversationStore

    @property
    def audience(self) -> Audience:
        return self._store.audience

    def __len__(self) -> int:
        return len(self._store)

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        async with self._lock(key):
            try:
                return await self._ask(key, lambda: self._store.get(key, stream))
            except StoreUnavailable:
                if stream is None:
                    raise
                stream.check_open()
                return self._known(key, stream)

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        async with self._lock(key):
            try:
                return await self._ask(key, lambda: self._store.update(key, change, stream))
            except StoreUnavailable:
                if stream is None:
                    raise
                stream.check_open()
                return self._postpone(key, change, stream)

    async def delete(self, key: Key) -> bool:
        """The conversation's pending changes are dropped in any case: they must not bring it back."""
        async with self._lock(key):
            dropped = self._backlog.drop(key) > 0
            return await self._ask(key, lambda: self._store.delete(key)) or dropped

    async def knows(self, key: Key) -> bool:
        if key in self._backlog:
            return True
        with suppress(StoreUnavailable):
            return await self._ask(key, lambda: self._store.knows(key))
        return self._store.remembered(key) is not None

    def sweep(self) -> None:
        self._store.sweep()
        now = self._monotonic()
        for key in tuple(self._backlog):
            pending = self._backlog.get(key)
            if pending and pending.expiry and pending.expiry.at <= now:
                self._backlog.lost += self._backlog.drop(key)
        self._report_losses()

    async def close(self) -> None:
        """Tries once more to store the backlog."""
        if self._probing is not None:
            self._probing.cancel()
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LAST_TRY_S):
                await self._catch_up_all()
        if self.audience.relay is not None:
            await self.audience.relay.close()
        self._backlog.lost += self._backlog.total
        self._report_losses()
        await self._store.close()

    # ---- available or away

    def _lock(self, key: Key) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    async def _ask(self, key: Key, ask: Callable[[], Awaitable[T]]) -> T:
        """Returns the store's answer once it has all changes of the conversation. Raises StoreUnavailable."""
        if not self.available:
            self._on_error()
            raise StoreUnavailable
        try:
            await self._catch_up(key)
            return await ask()
        except StoreUnavailable:
            self._on_error()
            self._begin_outage()
            raise

    def _note_answer(self, seconds: float) -> None:
        self._slow_answers = self._slow_answers + 1 if seconds > SLOW_S else 0
        if self._slow_answers > 1:
            self._begin_outage()

    def _begin_outage(self) -> None:
        if self.available:
            self.available = False
            log.warning("the conversation store does not answer (in time): streams go on without it")
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        """Returns once the store answers in time and has all changes."""
        pause_s, longest_s = PROBE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            try:
                async with asyncio.timeout(FAST_S):
                    await self._store.ping()
                self.available, self._slow_answers = True, 0
                await self._catch_up_all()
            except (Failure, TimeoutError):
                self.available = False
            if self.available:
                self._report_losses()
                log.warning("the conversation store is back and has all changes")
                return

    # ---- the backlog

    def _known(self, key: Key, stream: StreamHandle) -> Conversation | None:
        """What this server knows of a conversation without asking the store."""
        if (pending := self._backlog.get(key)) is not None:
            return pending.seen
        remembered, seen = self._store.remembered(key), stream.last_seen
        if remembered and seen and seen.create_time == remembered.create_time:
            return max(remembered, seen, key=lambda conversation: conversation.update_time)
        return remembered or seen

    def _postpone(self, key: Key, change: Change[C], stream: StreamHandle) -> C:
        """Makes the change on what this server knows, and adds it to the backlog. Raises what the change raises."""
        known = self._known(key, stream)
        pending = self._backlog.get(key) or Pending(known, known)
        try:
            changed = change(known)
        except Failure as failure:
            if known is None and failure.kind is Kind.NOT_FOUND:
                raise StoreUnavailable from failure  # it may be in the store
            raise
        if changed is None:  # the stream leaves nothing behind
            pending.remove(stream)
            self._backlog.resize(key)
            return changed
        if known is None:
            self._store.tenant_limit.check(key)
        pending.seen = stamp(changed, known, self._clock())
        pending.expiry = Expiry(pending.seen, self._monotonic())
        self._store.tenant_limit.note(key, pending.seen)
        is_first = id(stream) not in pending.streams
        if changed is not known or is_first:  # otherwise it merely keeps the conversation from expiring
            self._backlog.add(key, pending, PendingChange(stream, change))
        if is_first:
            stream.notify_behind(True)
        return cast(C, pending.seen)

    async def _catch_up_all(self) -> None:
        while self._backlog:
            key = next(iter(self._backlog))
            async with self._lock(key):
                await self._catch_up(key)

    async def _catch_up(self, key: Key) -> None:
        """Applies the conversation's pending changes; its lock must be held. Raises StoreUnavailable."""
        pending = self._backlog.get(key)
        if pending is None:
            return
        try:
            while pending.changes:
                await asyncio.sleep(0)
                await self._apply_batch(key, pending)
        except StoreUnavailable:
            raise
        except Failure as failure:  # deleted meanwhile, through another server
            pending.rejected = dict.fromkeys(pending.streams, failure)
        except Exception as error:  # what cannot be stored must not hold up everything that comes after it
            pending.rejected = dict.fromkeys(pending.streams, not_stored(error))
        self._backlog.drop(key)
        if self.audience.watches(key):  # on other servers too, where what was told meanwhile may not have arrived
            self.audience.tell(key, Notice("missed"))
        for number, stream in pending.streams.items():
            if (why := pending.rejected.get(number)) is not None:
                log.warning("changes that a stream made during an outage are dropped", extra={"reason": why.reason})
                stream.reject(why)
            elif number not in pending.incomplete:
                stream.notify_behind(False)

    async def _apply_batch(self, key: Key, pending: Pending) -> None:
        batch, rejected = pending.oldest(BATCH), pending.rejected
        pending.base, pending.rejected = await self._store.transact(
            key,
            lambda conversation: replay(batch, conversation, rejected),
            lambda: pending.base,
            pending.notify_damaged,
        )
        pending.remove_stored(batch)
        self._backlog.resize(key)

    def _report_losses(self) -> None:
        if lost := self._backlog.lost:
            log.error("changes of conversations never reached the store and are lost", extra={"count": lost})
            self._backlog.lost = 0
