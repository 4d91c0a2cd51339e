"""Carries what streams tell to the watchers on other servers that share a Redis, by publishing and subscribing.

Servers that have watchers say of which conversations, every few seconds, on one channel that all hear; only what is
watched elsewhere is published, on a channel per conversation. Where a server begins to publish, and where a number of
its messages is missing, watchers read the store: nothing of that may be lost without a word.

A message is JSON, a line feed and what watchers get, sealed as the codec's values are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from kibun.server.conversation.audience import KINDS, Audience, Notice
from kibun.server.conversation.codec import Damaged, NewerVersion, seal, unseal
from kibun.server.conversation.redis_connection import RedisConnection, Subscription
from kibun.server.conversation.store import Key
from kibun.server.errors import Failure

log = logging.getLogger(__name__)

SAY_AGAIN_S = 5.0  # between two times that a server says what is watched on it
BELIEVED_S = 15.0  # how long others go by that
SILENCE_S = 5.0  # after which the connection is tried, and after as long again is lost
LISTEN_S = 1.0  # the longest that a watch waits for the others before it begins without them
PAUSES_S = (0.25, 2.0)  # first and longest wait before the next connection, and before the next try to publish
MAX_OUTGOING = 1024  # messages that wait for Redis; the oldest are dropped, which those who listen notice
LAST_TRY_S = 0.3  # to publish what waits when the server stops


class RedisRelay:
    """Implements `Relay`. Belongs to one event loop; `start` before anything is told."""

    def __init__(
        self, connection: RedisConnection, audience: Audience, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._audience = audience
        self._monotonic = monotonic
        self._origin = secrets.token_hex(8)  # names this server to the others
        self._watched_channel = f"{connection.address.prefix}:watched"
        self._tasks: set[asyncio.Task[None]] = set()
        # ---- what is said here
        self._outgoing: deque[tuple[str, bytes]] = deque(maxlen=MAX_OUTGOING)
        self._something = asyncio.Event()
        self._said_all = asyncio.Event()
        self._wanted: dict[Key, float] = {}  # watched elsewhere: until when that is believed
        self._numbers: dict[Key, int] = {}  # of the next message
        # ---- what is said elsewhere
        self._subscription: Subscription | None = None
        self._channels: dict[str, Key] = {}  # listened to
        self._heard: dict[str, asyncio.Event] = {}  # set while a channel arrives here
        self._lost: set[str] = set()  # channels whose watchers were told that it does not
        self._latest: dict[Key, dict[str, int]] = {}  # number of each server's latest message

    def start(self) -> None:
        self._run(self._hear_others())
        self._run(self._tell_others())

    async def close(self) -> None:
        """Publishes what waits, if that is possible at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_TRY_S):
                await self._said_all.wait()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("watchers of other servers are told nothing any more", exc_info=error)

    # ---- Relay

    def wanted(self, key: Key) -> bool:
        return self._wanted.get(key, 0.0) > self._monotonic()

    def send(self, key: Key, notice: Notice) -> None:
        """The end of a conversation is published in any case: it comes once, and watchers may have just begun."""
        wanted = self.wanted(key)
        if wanted or notice.kind in ("completed", "deleted"):
            self._send(key, notice, numbered=wanted)

    async def listen(self, key: Key) -> bool:
        channel = self._channel(key)
        if channel not in self._channels:
            self._channels[channel], self._heard[channel] = key, asyncio.Event()
            await self._order("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(LISTEN_S):
                await self._heard[channel].wait()
        except TimeoutError:
            self._lost.add(channel)
            return False
        return True

    def ignore(self, key: Key) -> None:
        channel = self._channel(key)
        self._channels.pop(channel, None)
        self._heard.pop(channel, None)
        self._lost.discard(channel)
        self._latest.pop(key, None)
        self._run(self._unsubscribe(channel))

    # ---- telling others

    def _channel(self, key: Key) -> str:
        return f"{self._connection.address.prefix}:watch:{{{key[0]}/{key[1]}}}"

    def _send(self, key: Key, notice: Notice, *, numbered: bool) -> None:
        number = None
        if numbered:
            number = self._numbers.get(key, 0)
            self._numbers[key] = number + 1
        header = [number, notice.kind, notice.participant_id, notice.turn_id, notice.start, notice.opened]
        self._put(self._channel(key), header, notice.payload)

    def _say_what_is_watched(self, *keys: Key) -> None:
        if keys:
            self._put(self._watched_channel, [list(key) for key in keys])

    def _put(self, channel: str, header: list[Any], payload: bytes = b"") -> None:
        message = json.dumps([self._origin, header]).encode() + b"\n" + payload
        self._outgoing.append((channel, seal(message)))
        self._something.set()
        self._said_all.clear()

    async def _tell_others(self) -> None:
        say_again_at, pause_s = 0.0, PAUSES_S[0]
        while True:
            now = self._monotonic()
            if now >= say_again_at:
                say_again_at = now + SAY_AGAIN_S
                self._say_what_is_watched(*self._channels.values())
                for key in [key for key, until in self._wanted.items() if until <= now]:
                    del self._wanted[key]
                    self._numbers.pop(key, None)
            if not self._outgoing:
                self._something.clear()
                self._said_all.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(say_again_at - now):
                        await self._something.wait()
                continue
            message = self._outgoing[0]
            try:
                await self._connection.call("PUBLISH", *message)
                pause_s = PAUSES_S[0]
            except Failure:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSES_S[1])
                continue
            if self._outgoing and self._outgoing[0] is message:  # else it was dropped meanwhile
                self._outgoing.popleft()

    # ---- hearing others

    async def _hear_others(self) -> None:
        pause_s, is_away = PAUSES_S[0], False
        while True:
            try:
                async with self._connection.subscription() as subscription:
                    await subscription.send("SUBSCRIBE", self._watched_channel, *self._channels)
                    self._subscription = subscription
                    async for message in self._messages(subscription):
                        self._hear(message)
                        pause_s, is_away = PAUSES_S[0], False
            except Failure:
                pass
            finally:
                self._subscription = None
                self._lose_all()
            if not is_away:
                is_away = True
                log.warning("what is said on other servers cannot be watched for now: the store sends nothing")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSES_S[1])

    async def _messages(self, subscription: Subscription) -> AsyncGenerator[list[Any], None]:
        """All that arrives, until nothing does."""
        tried = False
        while True:
            message = await subscription.receive(SILENCE_S)
            if message is None and tried:
                return
            if message is None:
                await subscription.send("PING")
            else:
                yield message
            tried = message is None

    def _hear(self, message: list[Any]) -> None:
        match message:
            case [b"subscribe", bytes(name), _]:
                self._arrives(name.decode())
            case [b"message", bytes(name), bytes(data)]:
                try:
                    header, _, payload = unseal(data)[1].partition(b"\n")
                    origin, content = json.loads(header)
                    if origin == self._origin:
                        return
                    if name.decode() == self._watched_channel:
                        for tenant, conversation_id in content:
                            self._want((tenant, conversation_id))
                    elif (key := self._channels.get(name.decode())) is not None:
                        self._take(key, origin, content, payload)
                except (Damaged, NewerVersion, ValueError, TypeError):
                    log.warning("what another program published on a channel of watchers is ignored")

    def _arrives(self, channel: str) -> None:
        key = self._channels.get(channel)
        if key is None:
            return
        self._heard[channel].set()
        self._say_what_is_watched(key)
        if channel in self._lost:
            self._lost.discard(channel)
            self._audience.tell_here(key, Notice("missed", reason="OTHER_SERVERS_BACK"))

    def _lose_all(self) -> None:
        self._latest.clear()
        for channel, heard in self._heard.items():
            if heard.is_set():
                heard.clear()
                self._lost.add(channel)
                self._audience.tell_here(self._channels[channel], Notice("missed", reason="OTHER_SERVERS_LOST"))

    def _want(self, key: Key) -> None:
        """Another server has watchers of the conversation, who may have missed what was told up to now."""
        new = not self.wanted(key)
        self._wanted[key] = self._monotonic() + BELIEVED_S
        if new:
            self._numbers[key] = 0
            self._send(key, Notice("missed"), numbered=True)

    def _take(self, key: Key, origin: str, content: list[Any], payload: bytes) -> None:
        number, kind, participant_id, turn_id, start, opened = content
        latest = self._latest.setdefault(key, {})
        before = latest.get(origin)
        if number is not None:
            if before is not None and 0 < number <= before:
                return  # published again, as the answer to the first time was lost
            if before is None and kind != "missed":  # earlier ones may have been published while none were heard
                self._audience.tell_here(key, Notice("missed"))
            elif before is not None and number != before + 1:
                self._audience.tell_here(key, Notice("missed", reason="OTHER_SERVERS_MISSED"))
            latest[origin] = number
        if kind not in KINDS:
            kind = "other"  # of a newer server
        self._audience.tell_here(key, Notice(kind, participant_id, turn_id, start, payload, opened))

    async def _order(self, *words: str) -> None:
        if self._subscription is not None:
            with suppress(Failure):  # `_hear_others` notices too, and subscribes anew
                await self._subscription.send(*words)

    async def _unsubscribe(self, channel: str) -> None:
        if channel not in self._channels:  # else somebody listens again
            await self._order("UNSUBSCRIBE", channel)
