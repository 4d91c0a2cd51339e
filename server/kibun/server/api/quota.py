"""Who may use how much: places for streams, seconds of audio and messages. Pure but for the clock that it is given.

Audio and messages are counted in buckets that fill at the permitted rate. What is over the limit ends the stream that
brought it, and each stream so ended makes a little room: as many streams end as are too many, not all at once. That
room is lent: no further stream begins before it is paid back, or ending streams would be a way around the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kibun.server.errors import Failure, Kind

RETRY_AFTER_S = 1.0  # where nobody can tell when there will be room
AUDIO_BURST_S = 60.0  # a minute's audio may come at once
MESSAGE_BURST_S = 10.0
RELIEF_S = 1.0  # of filling, that a bucket gets when a stream ends because of it
RESERVE_S = 2.0  # of filling, that must be there for a stream to begin
MAX_CALLS = 256  # other than streams, at a time: each may be reading a request of the largest size
MAX_TENANT_CALLS = 64


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use; None: as much as the server has."""

    streams: int | None = None  # at a time
    audio_s_per_minute: float | None = None
    messages_per_s: float | None = None


class Bucket:
    """Fills at `rate` a second up to `burst_s` seconds of it; what is taken may be more than there is, once."""

    def __init__(self, rate: float, burst_s: float, now: float) -> None:
        self._rate = rate
        self._capacity = rate * burst_s
        self._level = self._capacity
        self._lent = 0.0  # of the level
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """False where it was empty before; then nothing is taken."""
        self._fill(now)
        if self._level <= 0:
            return False
        self._level -= amount
        return True

    def relieve(self) -> None:
        """Lets those that stay go on for a moment."""
        level = max(self._level, min(RELIEF_S * self._rate, self._capacity))
        self._lent += level - self._level
        self._level = level

    def wait_s(self, now: float) -> float:
        """Seconds until a stream may begin; 0: now."""
        self._fill(now)
        return max(min(RESERVE_S * self._rate, self._capacity) + self._lent - self._level, 0.0) / self._rate

    def _fill(self, now: float) -> None:
        level = self._level + self._rate * (now - self._at)
        self._lent = max(self._lent - max(level - self._capacity, 0.0), 0.0)
        self._level = min(level, self._capacity)
        self._at = now


class Account:
    """What one tenant uses."""

    def __init__(self, limits: TenantLimits, clock: Callable[[], float]) -> None:
        self.streams = 0
        self.calls = 0  # that take no stream's place
        self._clock = clock
        self.set_limits(limits)

    def set_limits(self, limits: TenantLimits) -> None:
        """From now on these; what was used before counts no more, but for open streams."""
        now = self._clock()
        self.limits = limits
        audio, messages = limits.audio_s_per_minute, limits.messages_per_s
        self._audio = None if audio is None else Bucket(audio / 60, AUDIO_BURST_S, now)
        self._messages = None if messages is None else Bucket(messages, MESSAGE_BURST_S, now)

    def refusal(self) -> Failure | None:
        """Why the tenant may not begin another stream now."""
        if self.limits.streams is not None and self.streams >= self.limits.streams:
            text = f"{self.limits.streams} streams of yours are open, no more may be; close one, or try again later"
            return _exhausted("TENANT_STREAM_LIMIT", text, "concurrent streams of a tenant", RETRY_AFTER_S)
        for bucket, failure in ((self._audio, self._audio_failure), (self._messages, self._message_failure)):
            if bucket is not None and (wait_s := bucket.wait_s(self._clock())) > 0:
                return failure(wait_s)
        return None

    def charge(self, audio_s: float) -> Failure | None:
        """One message with so much audio has come; what to end the stream with where that is too much."""
        now = self._clock()
        if self._messages is not None and not self._messages.take(1, now):
            failure = self._message_failure(self._messages.wait_s(now))
            self._messages.relieve()
            return failure
        if self._audio is not None and not self._audio.take(audio_s, now):
            failure = self._audio_failure(self._audio.wait_s(now))
            self._audio.relieve()
            return failure
        return None

    def _audio_failure(self, wait_s: float) -> Failure:
        text = f"no more than {self.limits.audio_s_per_minute:g} s of audio per minute may be sent; try again later"
        return _exhausted("TENANT_AUDIO_LIMIT", text, "audio seconds per minute of a tenant", wait_s)

    def _message_failure(self, wait_s: float) -> Failure:
        text = f"no more than {self.limits.messages_per_s:g} messages per second may be sent; send longer chunks"
        return _exhausted("TENANT_MESSAGE_LIMIT", text, "messages per second of a tenant", wait_s)


class Quotas:
    """The places of a server and the accounts of its tenants, which are as many as tokens or certificates were given
    out. Belongs to one event loop; nothing here awaits.
    """

    def __init__(
        self,
        max_streams: int,
        limits_of: Callable[[str], TenantLimits],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.active = 0  # streams
        self.calls = 0  # that take no stream's place
        self._max_streams = max_streams
        self._limits_of = limits_of
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    @contextmanager
    def stream(self, tenant: str) -> Iterator[Account]:
        """One of the server's places and one of the tenant's. Raises Failure at once where there is none."""
        if self.active >= self._max_streams:
            text = f"this server analyses {self._max_streams} streams at a time; try again later or elsewhere"
            raise _exhausted("TOO_MANY_STREAMS", text, "concurrent streams", RETRY_AFTER_S)
        account = self._account(tenant)
        if failure := account.refusal() or account.charge(0.0):
            raise failure
        self.active += 1
        account.streams += 1
        try:
            yield account
        finally:
            self.active -= 1
            account.streams -= 1

    @contextmanager
    def call(self, tenant: str) -> Iterator[None]:
        """Room for a call that takes no stream's place. Raises Failure at once where there is none."""
        account = self._account(tenant)
        if self.calls >= MAX_CALLS:
            text = f"this server answers {MAX_CALLS} calls at a time; try again"
            raise _exhausted("TOO_MANY_CALLS", text, "concurrent calls", RETRY_AFTER_S)
        if account.calls >= MAX_TENANT_CALLS:
            text = f"{MAX_TENANT_CALLS} calls of yours wait for their answers, no more may; try again"
            raise _exhausted("TENANT_CALL_LIMIT", text, "concurrent calls of a tenant", RETRY_AFTER_S)
        if failure := account.charge(0.0):
            raise failure
        self.calls += 1
        account.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            account.calls -= 1

    def refresh(self) -> None:
        """Limits were read anew: they hold for open streams, too."""
        for tenant in self._accounts:
            self._account(tenant)

    def _account(self, tenant: str) -> Account:
        limits = self._limits_of(tenant)
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(limits, self._clock)
        elif account.limits != limits:  # read anew since
            account.set_limits(limits)
        return account


def _exhausted(reason: str, text: str, quota: str, wait_s: float) -> Failure:
    return Failure(Kind.RESOURCE_EXHAUSTED, reason, text, retry_after_s=max(wait_s, RETRY_AFTER_S), quota=quota)
