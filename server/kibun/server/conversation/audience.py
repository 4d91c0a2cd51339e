"""Who watches the conversations of a store, and what waits for them: what streams tell is handed on here.

Nothing here waits, so that no watcher holds up a stream: each has a queue of its own, which drops interims, and in the
end everything, where it is not read in time. What was dropped is then read from the store by the watcher, who is told.
Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from kibun.server.conversation.store import Key

MAX_ASIDES = 64  # notices that may wait before interims, speech events and progress are dropped, …
MAX_WAITING = 512  # … and before everything is

NoticeKind = Literal[
    "began",  # a stream that begins its turn anew
    "resumed",  # a stream that goes on with a turn
    "interim",
    "final",
    "turn_result",
    "aside",  # a speech event or progress
    "other",  # what else a stream tells
    "missed",  # something did not arrive; `reason` is what watchers are told, "" where it may be nothing
    "completed",  # the conversation
    "deleted",
]
KINDS: tuple[NoticeKind, ...] = get_args(NoticeKind)


@dataclass(frozen=True, slots=True)
class Notice:
    """What a stream told its client, or what happened to the conversation.

    start: of an interim or final, or where a stream begins, in samples of the turn's clock. opened: of "began" and
    "resumed", when, as the store has it. payload: what its client was sent, as the service wrote it for watchers; empty
    in the last three kinds.
    """

    kind: NoticeKind
    participant_id: str = ""
    turn_id: str = ""
    start: int = 0
    payload: bytes = b""
    opened: float = 0.0
    reason: str = ""


class Relay(Protocol):
    """The way to the watchers on other servers. Nothing but `listen` and `close` waits."""

    def wanted(self, key: Key) -> bool:
        """Whether the conversation is watched on another server, as far as is known."""

    def send(self, key: Key, notice: Notice) -> None:
        """Passes the notice on."""

    async def listen(self, key: Key) -> bool:
        """Returns once the audience gets what other servers tell of the conversation; False: they cannot be heard."""

    def ignore(self, key: Key) -> None:
        """Ends what `listen` began."""

    async def close(self) -> None:
        """Passes on what is still waiting, if that is possible at once."""


class Watcher:
    """One watcher's queue."""

    def __init__(self) -> None:
        self._waiting: deque[Notice] = deque()
        self._something = asyncio.Event()

    def offer(self, notice: Notice) -> None:
        """Appends the notice, or drops what can be missed."""
        waiting = self._waiting
        if notice.kind in ("interim", "aside") and len(waiting) >= MAX_ASIDES:
            return
        if len(waiting) >= MAX_WAITING:
            told = next((n for n in reversed(waiting) if n.reason.startswith("OTHER_SERVERS")), None)
            waiting.clear()
            waiting.append(Notice("missed", reason="SLOW_WATCHER"))
            waiting.extend([told] if told else [])
        waiting.append(notice)
        self._something.set()

    async def get(self) -> Notice:
        """The next notice, once there is one."""
        while not self._waiting:
            self._something.clear()
            await self._something.wait()
        return self._waiting.popleft()


class Audience:
    """All watchers on this server, and the way to those on others."""

    def __init__(self) -> None:
        self.relay: Relay | None = None
        """None: no other server shares the conversations."""
        self._watchers: dict[Key, list[Watcher]] = {}

    def __len__(self) -> int:
        """Watchers on this server."""
        return sum(map(len, self._watchers.values()))

    def watches(self, key: Key) -> bool:
        """Whether anybody watches the conversation: it is told nothing otherwise."""
        return key in self._watchers or (self.relay is not None and self.relay.wanted(key))

    def tell(self, key: Key, notice: Notice) -> None:
        """Hands the notice to everyone who watches the conversation, here and elsewhere."""
        self.tell_here(key, notice)
        if self.relay is not None:
            self.relay.send(key, notice)

    def tell_here(self, key: Key, notice: Notice) -> None:
        """Hands it to those on this server."""
        for watcher in self._watchers.get(key, ()):
            watcher.offer(notice)

    def keys(self) -> list[Key]:
        """The conversations that are watched on this server."""
        return list(self._watchers)

    @contextmanager
    def watcher(self, key: Key) -> Iterator[Watcher]:
        """A new watcher of the conversation, while it is entered."""
        watcher = Watcher()
        watchers = self._watchers.setdefault(key, [])
        watchers.append(watcher)
        try:
            yield watcher
        finally:
            watchers.remove(watcher)
            if not watchers:
                del self._watchers[key]
                if self.relay is not None:
                    self.relay.ignore(key)
