"""Streams go on while the conversation store is away, and the store is told what it missed once it is back.

What streams change meanwhile is kept here, per conversation and in order, on top of what this server last knew of it;
when the store answers again they are applied there, some at a time. The changes are pure and idempotent: it does no
harm if one had reached the store after all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakValueDictionary

from kibun.server.conversation.backlog import Backlog, Missed, not_stored, replay
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import C, Change, Key, StoreUnavailable, StreamHandle, stamp
from kibun.server.errors import Failure, Kind

if TYPE_CHECKING:
    from kibun.server.conversation.redis_store import RedisStore

log = logging.getLogger(__name__)
T = TypeVar("T")

SLOW_S = 0.3  # two answers in a row that took longer: it counts as away, so that finals do not wait for it
FAST_S = 0.1  # a probe must be answered within this for it to be back
PROBE_S = (0.25, 2.0)  # first and longest wait between probes
LAST_TRY_S = 0.5  # to store what is kept when the server stops
TOLD_AT_ONCE = 50  # changes; then other streams get their turn


class _Base:
    """The stream of a conversation that is caught up."""

    def __init__(self, last_seen: Conversation | None) -> None:
        self.last_seen = last_seen

    def check_open(self) -> None:
        pass

    def notify_behind(self, is_behind: bool) -> None:
        pass

    def reject(self, failure: Failure) -> None:
        pass


class ResilientStore:
    """Implements `ConversationStore` over one that may be away. Belongs to one event loop.

    Calls on one conversation take their turn, so that answers come in the order of the questions.
    """

    def __init__(
        self,
        store: RedisStore,
        clock: Callable[[], float] = time.time,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_error` is called for each question that the store did not answer."""
        self._store = store
        self._on_error = on_error
        self._clock = clock
        self._backlog = Backlog()
        self._lost = 0  # changes, that nobody was told of yet
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._away = False
        self._slow_answers = 0
        self._return: asyncio.Task[None] | None = None
        store.watch(self._answered)

    @property
    def kept(self) -> int:
        """Changes that the store does not have yet."""
        return self._backlog.total

    # ---- ConversationStore

    def __len__(self) -> int:
        return len(self._store)

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        async with self._turn(key):
            try:
                return await self._ask(key, lambda: self._store.get(key, stream))
            except StoreUnavailable:
                if stream is None:
                    raise
                stream.check_open()
                return self._known(key, stream)

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        async with self._turn(key):
            try:
                return await self._ask(key, lambda: self._store.update(key, change, stream))
            except StoreUnavailable:
                if stream is None:
                    raise
                stream.check_open()
                return self._keep(key, change, stream)

    async def delete(self, key: Key) -> bool:
        """What streams of the conversation have yet to store is dropped in any case: they must not bring it back."""
        async with self._turn(key):
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
        now = self._clock()
        for key in tuple(self._backlog):
            missed = self._backlog.get(key)
            if missed and missed.seen and missed.seen.expire_time <= now:
                self._lost += self._backlog.drop(key)
        self._tell_losses()

    async def close(self) -> None:
        """Tries once more to store what is kept."""
        if self._return is not None:
            self._return.cancel()
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LAST_TRY_S):
                await self._catch_up_all()
        self._lost += self._backlog.total
        self._tell_losses()
        await self._store.close()

    # ---- there or away

    def _turn(self, key: Key) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    async def _ask(self, key: Key, ask: Callable[[], Awaitable[T]]) -> T:
        """The store's answer, after it was told all that it missed of the conversation. Raises StoreUnavailable."""
        if self._away:
            self._on_error()
            raise StoreUnavailable
        try:
            await self._catch_up(key)
            return await ask()
        except StoreUnavailable:
            self._on_error()
            self._lose()
            raise

    def _answered(self, seconds: float) -> None:
        self._slow_answers = self._slow_answers + 1 if seconds > SLOW_S else 0
        if self._slow_answers > 1:
            self._lose()

    def _lose(self) -> None:
        if not self._away:
            self._away = True
            log.warning("the conversation store does not answer (in time): streams go on without it")
        if self._return is None or self._return.done():
            self._return = asyncio.create_task(self._wait_for_return())

    async def _wait_for_return(self) -> None:
        pause_s, longest_s = PROBE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            try:
                async with asyncio.timeout(FAST_S):
                    await self._store.ping()
                self._away, self._slow_answers = False, 0
                await self._catch_up_all()
            except (Failure, TimeoutError):
                self._away = True
            if not self._away:
                self._tell_losses()
                log.warning("the conversation store is back and has all that was said")
                return

    # ---- what the store missed

    def _known(self, key: Key, stream: StreamHandle) -> Conversation | None:
        if (missed := self._backlog.get(key)) is not None:
            return missed.seen
        remembered, seen = self._store.remembered(key), stream.last_seen
        if remembered and seen and seen.create_time == remembered.create_time:
            return max(remembered, seen, key=lambda conversation: conversation.update_time)
        return remembered or seen

    def _keep(self, key: Key, change: Change[C], stream: StreamHandle) -> C:
        known = self._known(key, stream)
        missed = self._backlog.get(key) or Missed(known, known)
        try:
            changed = change(known)
        except Failure as failure:
            if known is None and failure.kind is Kind.NOT_FOUND:
                raise StoreUnavailable from failure  # who can tell?
            raise
        if changed is None:  # the stream leaves nothing behind
            missed.remove(stream)
            self._backlog.resize(key, missed)
            return changed
        if known is None:
            self._store.room.check(key)
        missed.seen = stamp(changed, known, self._clock())
        self._store.room.note(key, missed.seen)
        says_nothing = changed is known and id(stream) in missed.streams  # it merely keeps the conversation alive
        if not says_nothing and self._backlog.add(key, missed, stream, change):
            stream.notify_behind(True)
        return cast(C, missed.seen)

    async def _catch_up_all(self) -> None:
        while self._backlog:
            key = next(iter(self._backlog))
            async with self._turn(key):
                await self._catch_up(key)

    async def _catch_up(self, key: Key) -> None:
        """Applies what was kept of the conversation; its turn must be taken. Raises StoreUnavailable."""
        missed = self._backlog.get(key)
        if missed is None:
            return
        try:
            while missed.steps:
                await asyncio.sleep(0)
                await self._tell_some(key, missed)
        except StoreUnavailable:
            raise
        except Failure as failure:  # deleted meanwhile, by way of another server
            missed.rejected = dict.fromkeys(missed.streams, failure)
        except Exception as error:  # nothing that is kept for ever may stand in the way of all that comes after it
            missed.rejected = dict.fromkeys(missed.streams, not_stored(error))
        self._backlog.drop(key)
        for number, stream in missed.streams.items():
            if (why := missed.rejected.get(number)) is not None:
                log.warning("what a stream said while the store was away is dropped", extra={"reason": why.reason})
                stream.reject(why)
            elif number not in missed.short:
                stream.notify_behind(False)

    async def _tell_some(self, key: Key, missed: Missed) -> None:
        steps, until = missed.first(TOLD_AT_ONCE), missed.gone
        rejected = missed.rejected

        def merge(conversation: Conversation | None) -> Conversation | None:
            nonlocal rejected
            rejected = dict(missed.rejected)
            return replay(steps, conversation, rejected)

        result = await self._store.update(key, merge, _Base(missed.base))
        missed.rejected = rejected
        missed.told(until + len(steps), result)
        self._backlog.resize(key, missed)

    def _tell_losses(self) -> None:
        lost, self._lost, self._backlog.lost = self._lost + self._backlog.lost, 0, 0
        if lost:
            log.error("changes of conversations never reached the store and are lost", extra={"count": lost})
