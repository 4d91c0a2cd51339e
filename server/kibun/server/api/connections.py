"""Holds down callers that the server does not know (yet): per connection, and where they fail, per address.

A health check, or a call without a valid token, costs its sender a few bytes and the server some kilobytes. Here they
are counted while they last, refusals of an address that keeps failing are held back, and a connection that goes on is
cut. Whoever shows a valid token is not held up, from whatever address, and a connection that once showed one is not cut
for the calls of others that share it.

Above all this keeps out metadata that is far too large. A peer that does not acknowledge our SETTINGS may send gRPC
16 MiB of it per call, whatever the options say, and a byte can stand for 4 kB of it; gRPC makes Python objects of all
before it asks any interceptor. So a call is looked at before that: calls of a connection that was cut are dropped, and
a connection of unknown callers is cut when it has sent more than an honest one would have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from kibun.server.api.quota import Bucket
from kibun.server.api.sockets import Sockets
from kibun.server.errors import RETRY_AFTER_S, Failure, Kind

MAX_CALLS = 64  # of unknown callers at a time on one connection; one more, and it is cut
CROWD = 1024  # of them on all connections; beyond, a connection may have one
FREE_FAILURES = 10  # of an address that are refused at once, …
FAILURES_PER_S = 1.0  # … and so many more each second; others …
HOLD_S = 1.0  # … are refused after this time
MAX_REMEMBERED = 4096  # connections and addresses
FORGET_S = 30.0  # after this time calls by the name of a connection that was cut are those of another
# Of unknown callers on one connection. Until calls are read, HTTP/2's flow control lets a peer send 64 KiB of messages
# on each; an honest one may open a hundred streams at once. The rest is their metadata.
MAX_BYTES = 100 * 65_536
BYTES_PER_S = 16_384.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class Connections:
    """What unknown callers have open and did wrong. Belongs to one event loop.

    `peer` is gRPC's name of the other end, with its port, as `ipv4:10.0.0.7:40312`: one name per connection.
    """

    def __init__(
        self,
        on_cut: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
        sockets: Sockets | None = None,
    ) -> None:
        """`on_cut` is told the reason for which a connection was cut."""
        self._on_cut = on_cut
        self._clock = clock
        self._sockets = sockets or Sockets()
        self._open: dict[str, int] = {}  # calls of unknown callers, by connection
        self._crowd = 0  # all of them
        self._known: OrderedDict[str, None] = OrderedDict()  # connections on which a token was valid
        self._cut: OrderedDict[str, float] = OrderedDict()  # when
        self._received: OrderedDict[str, tuple[int, Bucket]] = OrderedDict()  # bytes so far, and what more may come
        self._failures: OrderedDict[str, Bucket] = OrderedDict()  # by address

    async def admits(self, peer: str) -> bool:
        """Whether a call that came is looked at; it may be the one for which its connection is cut."""
        if self._is_cut(peer) or peer in self._known:
            return peer not in self._cut
        received, now = await self._sockets.bytes_received(peer), self._clock()
        if received is None:  # it is gone
            _remember(self._cut, peer, now)
        elif not self._is_cut(peer) and peer not in self._known:  # both may have come while it was looked for
            before, bucket = self._received.get(peer) or (0, Bucket(BYTES_PER_S, MAX_BYTES / BYTES_PER_S, now))
            bucket.take(received - before, now)
            if not bucket.take(0, now):
                self.cut(peer, "METADATA_TOO_LARGE")
            _remember(self._received, peer, (received, bucket))
        return peer not in self._cut

    def welcome(self, peer: str) -> None:
        """A caller on this connection has shown who it is."""
        _remember(self._known, peer, None)

    @contextmanager
    def stranger(self, peer: str) -> Iterator[None]:
        """Counts a call of an unknown caller while it lasts. Raises Failure if its connection has too many."""
        calls = self._open.get(peer, 0)
        if calls >= MAX_CALLS and peer not in self._known:
            self.cut(peer, "TOO_MANY_CALLS")
        if calls >= (MAX_CALLS if self._crowd < CROWD else 1):
            text = "too many calls of this connection are in progress; wait for their answers"
            raise Failure(
                Kind.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", text, retry_after_s=RETRY_AFTER_S, quota="unknown callers"
            )
        self._open[peer] = calls + 1
        self._crowd += 1
        try:
            yield
        finally:
            self._crowd -= 1
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def failed(self, peer: str) -> None:
        """Returns when the caller may be told that it is refused: later, if its address has failed often of late.

        Nobody hears of it on a connection that was cut: its call ends at once, and with it what it holds.
        """
        if self._is_cut(peer):
            return
        now = self._clock()
        host = peer.rpartition(":")[0]
        bucket = self._failures.get(host) or Bucket(FAILURES_PER_S, FREE_FAILURES / FAILURES_PER_S, now)
        _remember(self._failures, host, bucket)
        if not bucket.take(1, now):
            await asyncio.sleep(HOLD_S)

    def cut(self, peer: str, reason: str) -> None:
        """Shuts the connection down, with all its calls; does nothing the second time."""
        if not self._is_cut(peer):
            _remember(self._cut, peer, self._clock())
            if self._sockets.shut_down(peer):
                self._on_cut(reason)
                log.warning("a connection was cut", extra={"reason": reason})

    def _is_cut(self, peer: str) -> bool:
        when = self._cut.get(peer)
        if when is not None and self._clock() - when > FORGET_S:
            del self._cut[peer]
        return peer in self._cut


def _remember(kept: OrderedDict[str, T], key: str, value: T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)
