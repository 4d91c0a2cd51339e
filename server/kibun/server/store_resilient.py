"""Streams go on while the conversation store is away, and the store is told what it missed once it is back.

What streams change meanwhile is kept here, per conversation and in order, on top of what this server last knew of it;
when the store answers again all of it is applied there as one change. The changes are pure and idempotent: it does no
harm if one had reached the store after all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakValueDictionary

from kibun.server.conversation import Conversation
from kibun.server.errors import Failure, Kind
from kibun.server.store import C, Change, Holder, Key, StoreUnavailable, stamp

if TYPE_CHECKING:
    from kibun.server.store_redis import RedisStore

log = logging.getLogger(__name__)
T = TypeVar("T")

SLOW_S = 0.3  # two answers in a row that took longer: it counts as away, so that finals do not wait for it
FAST_S = 0.1  # a probe must be answered within this for it to be back
PROBE_S = (0.25, 2.0)  # first and longest wait between probes
LAST_TRY_S = 0.5  # to store what is kept when the server stops
MAX_KEPT = 20_000  # changes kept, of all conversations; with 768 float16 each 35 MB


@dataclass(slots=True)
class _Behind:
    """One conversation's changes that the store does not have."""

    base: Conversation | None  # what was known before them; None: nothing
    seen: Conversation | None  # with them
    changes: list[tuple[Holder, Change[Conversation | None]]] = field(default_factory=list)

    @property
    def holders(self) -> list[Holder]:
        return list({id(holder): holder for holder, _ in self.changes}.values())


class _Base:
    """The holder of a conversation that is caught up."""

    def __init__(self, held: Conversation | None) -> None:
        self.held = held

    def check(self) -> None:
        pass

    def behind(self, is_behind: bool) -> None:
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
        self._behind: dict[Key, _Behind] = {}
        self._kept = 0
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._away = False
        self._slow_answers = 0
        self._return: asyncio.Task[None] | None = None

    @property
    def kept(self) -> int:
        """Changes that the store does not have yet."""
        return self._kept

    # ---- ConversationStore

    def __len__(self) -> int:
        return len(self._store)

    async def get(self, key: Key, holder: Holder | None = None) -> Conversation | None:
        async with self._turn(key):
            try:
                return await self._ask(key, lambda: self._store.get(key, holder))
            except StoreUnavailable:
                if holder is None:
                    raise
                holder.check()
                return self._known(key, holder)

    async def update(self, key: Key, change: Change[C], holder: Holder | None = None) -> C:
        async with self._turn(key):
            try:
                return await self._ask(key, lambda: self._store.update(key, change, holder))
            except StoreUnavailable:
                if holder is None:
                    raise
                holder.check()
                return self._keep(key, change, holder)

    async def delete(self, key: Key) -> bool:
        """What streams of the conversation have yet to store is dropped in any case: they must not bring it back."""
        async with self._turn(key):
            dropped = self._drop(key)
            return await self._ask(key, lambda: self._store.delete(key)) or dropped

    async def knows(self, key: Key) -> bool:
        if key in self._behind:
            return True
        with suppress(StoreUnavailable):
            return await self._ask(key, lambda: self._store.knows(key))
        return self._store.remembered(key) is not None

    def sweep(self) -> None:
        self._store.sweep()
        now = self._clock()
        old = [key for key, behind in self._behind.items() if behind.seen and behind.seen.expire_time <= now]
        self._give_up(old)

    async def close(self) -> None:
        """Tries once more to store what is kept."""
        if self._return is not None:
            self._return.cancel()
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LAST_TRY_S):
                await self._catch_up_all()
        self._give_up(list(self._behind))
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
            begin = time.monotonic()
            answer = await ask()
        except StoreUnavailable:
            self._on_error()
            self._lose()
            raise
        self._slow_answers = self._slow_answers + 1 if time.monotonic() - begin > SLOW_S else 0
        if self._slow_answers > 1:
            self._lose()
        return answer

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
            except (StoreUnavailable, TimeoutError):
                self._away = True
            if not self._away:
                log.warning("the conversation store is back and has all that was said")
                return

    # ---- what the store missed

    def _known(self, key: Key, holder: Holder) -> Conversation | None:
        behind = self._behind.get(key)
        return behind.seen if behind else self._store.remembered(key) or holder.held

    def _keep(self, key: Key, change: Change[C], holder: Holder) -> C:
        known = self._known(key, holder)
        behind = self._behind.get(key) or _Behind(known, known)
        try:
            changed = change(known)
        except Failure as failure:
            if known is None and failure.kind is Kind.NOT_FOUND:
                raise StoreUnavailable from failure  # who can tell?
            raise
        if changed is None:  # the holder leaves nothing behind
            self._drop_of(key, behind, holder)
            return changed
        first = holder not in behind.holders
        behind.seen = stamp(changed, known, self._clock())
        behind.changes.append((holder, change))
        self._behind[key] = behind
        self._kept += 1
        if self._kept > MAX_KEPT:
            self._give_up([next(iter(self._behind))])
        if first:
            holder.behind(True)
        return cast(C, behind.seen)

    async def _catch_up_all(self) -> None:
        while self._behind:
            key = next(iter(self._behind))
            async with self._turn(key):
                await self._catch_up(key)

    async def _catch_up(self, key: Key) -> None:
        """Applies what was kept of the conversation; its turn must be taken. Raises StoreUnavailable."""
        behind = self._behind.get(key)
        if behind is None:
            return
        rejected: dict[int, Failure] = {}

        def merge(conversation: Conversation | None) -> Conversation | None:
            rejected.clear()
            for holder, change in behind.changes:
                if id(holder) not in rejected:  # a stream that could not enter has no say at all
                    try:
                        conversation = change(conversation)
                    except Failure as failure:
                        rejected[id(holder)] = failure
                    except Exception as error:
                        rejected[id(holder)] = _broken(error)
            return conversation

        try:
            await self._store.update(key, merge, _Base(behind.base))
        except StoreUnavailable:
            raise
        except Failure as failure:  # deleted meanwhile, by way of another server
            rejected = dict.fromkeys(map(id, behind.holders), failure)
        except Exception as error:  # nothing that is kept for ever may stand in the way of all that comes after it
            rejected = dict.fromkeys(map(id, behind.holders), _broken(error))
        self._drop(key)
        for holder in behind.holders:
            if (why := rejected.get(id(holder))) is not None:
                log.warning("what a stream said while the store was away is dropped", extra={"reason": why.reason})
                holder.reject(why)
            else:
                holder.behind(False)

    def _drop(self, key: Key) -> bool:
        behind = self._behind.pop(key, None)
        self._kept -= len(behind.changes) if behind else 0
        return behind is not None

    def _drop_of(self, key: Key, behind: _Behind, leaving: Holder) -> None:
        staying = [(holder, change) for holder, change in behind.changes if holder is not leaving]
        self._kept -= len(behind.changes) - len(staying)
        behind.changes = staying
        if not staying:
            self._behind.pop(key, None)

    def _give_up(self, keys: list[Key]) -> None:
        lost = sum(len(self._behind[key].changes) for key in keys)
        for key in keys:
            self._drop(key)
        if lost:
            log.error("changes of conversations never reached the store and are lost", extra={"count": lost})


def _broken(error: Exception) -> Failure:
    log.error("what was said while the store was away cannot be stored", exc_info=error)
    text = "what this stream said while the conversation store was away could not be stored"
    return Failure(Kind.INTERNAL, "NOT_STORED", text)
