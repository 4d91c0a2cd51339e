"""Limits of the server and of each tenant: streams, seconds of audio, messages. Pure apart from the clock passed in.

Audio and messages are limited by token buckets. A message over the limit ends its stream, and the bucket then gets a
small credit, so that only as many streams end as exceed the limit, not all of them. Until the credit is repaid no new
stream is admitted, or ending streams would be a way around the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kibun.server.errors import RETRY_AFTER_S, Failure, Kind

AUDIO_BURST_S = 60.0  # a minute's audio may come at once
MESSAGE_BURST_S = 10.0
CREDIT_S = 1.0  # worth of filling, which a bucket gets when a stream ends because of it
RESERVE_S = 2.0  # worth of filling, which must be in a bucket for a stream to begin
MAX_CALLS = 256  # other than streams, at a time: each may hold a request of the largest size
MAX_TENANT_CALLS = 64


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of a tenant; None: only those of the server."""

    streams: int | None = None  # at a time
    audio_s_per_minute: float | None = None
    messages_per_s: float | None = None


class Bucket:
    """A token bucket that fills at `rate` per second, up to `burst_s` seconds' worth; its level may fall below 0."""

    def __init__(self, rate: float, burst_s: float, now: float) -> None:
        self._rate = rate
        self._capacity = rate * burst_s
        self._level = self._capacity
        self._credit = 0.0  # part of the level that must be repaid
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """Takes the amount, or returns False if the bucket is empty."""
        self._fill(now)
        if self._level <= 0:
            return False
        self._level -= amount
        return True

    def give_credit(self) -> None:
        """Fills the bucket up to CREDIT_S seconds' worth, so that the tenant's other streams can go on."""
        level = max(self._level, min(CREDIT_S * self._rate, self._capacity))
        self._credit += level - self._level
        self._level = level

    def wait_s(self, now: float) -> float:
        """Returns the seconds until a stream may begin; 0: now."""
        self._fill(now)
        return max(min(RESERVE_S * self._rate, self._capacity) + self._credit - self._level, 0.0) / self._rate

    def _fill(self, now: float) -> None:
        level = self._level + self._rate * (now - self._at)
        self._credit = max(self._credit - max(level - self._capacity, 0.0), 0.0)
        self._level = min(level, self._capacity)
        self._at = now


class Account:
    """The open streams, watches and calls of one tenant, and its buckets."""

    def __init__(self, limits: TenantLimits, clock: Callable[[], float]) -> None:
        self.streams = 0
        self.watches = 0
        self.calls = 0  # other ones
        self._clock = clock
        self.set_limits(limits)

    def set_limits(self, limits: TenantLimits) -> None:
        """Replaces the limits, with full buckets; open streams go on counting."""
        now = self._clock()
        self.limits = limits
        audio, messages = limits.audio_s_per_minute, limits.messages_per_s
        self._audio = None if audio is None else Bucket(audio / 60, AUDIO_BURST_S, now)
        self._messages = None if messages is None else Bucket(messages, MESSAGE_BURST_S, now)

    def refusal(self) -> Failure | None:
        """Returns why the tenant may not begin another stream now, None if it may."""
        if self.limits.streams is not None and self.streams >= self.limits.streams:
            text = f"you may have {self.limits.streams} streams open at a time; close one, or try again later"
            return _exhausted("TENANT_STREAM_LIMIT", text, "concurrent streams of a tenant", RETRY_AFTER_S)
        for bucket, failure in ((self._audio, self._audio_failure), (self._messages, self._message_failure)):
            if bucket is not None and (wait_s := bucket.wait_s(self._clock())) > 0:
                return failure(wait_s)
        return None

    def charge(self, audio_s: float) -> Failure | None:
        """Counts a message with so much audio; returns what to end its stream with if that is over a limit."""
        if self._messages is None and self._audio is None:
            return None
        now = self._clock()
        if self._messages is not None and not self._messages.take(1, now):
            failure = self._message_failure(self._messages.wait_s(now))
            self._messages.give_credit()
            return failure
        if self._audio is not None and not self._audio.take(audio_s, now):
            failure = self._audio_failure(self._audio.wait_s(now))
            self._audio.give_credit()
            return failure
        return None

    def _audio_failure(self, wait_s: float) -> Failure:
        text = f"no more than {self.limits.audio_s_per_minute:g} s of audio per minute may be sent; try again later"
        return _exhausted("TENANT_AUDIO_LIMIT", text, "audio seconds per minute of a tenant", wait_s)

    def _message_failure(self, wait_s: float) -> Failure:
        text = f"no more than {self.limits.messages_per_s:g} messages per second may be sent; send longer chunks"
        return _exhausted("TENANT_MESSAGE_LIMIT", text, "messages per second of a tenant", wait_s)


class Quotas:
    """Counts a server's streams and calls, and has an account per tenant. Belongs to one event loop.

    There are no more accounts than tenants in the token file, or names in client certificates.
    """

    def __init__(
        self,
        max_streams: int,
        limits_of: Callable[[str], TenantLimits],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.active = 0  # streams
        self.watches = 0
        self.calls = 0  # other ones
        self._max_streams = max_streams
        self._limits_of = limits_of
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    @contextmanager
    def stream(self, tenant: str) -> Iterator[Account]:
        """Counts a stream while it is open. Raises Failure if a limit of the server or the tenant is reached."""
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
    def watch(self, tenant: str) -> Iterator[None]:
        """Counts a watch while it is open. Raises Failure if a limit of the server or the tenant is reached.

        As many as streams, but beside them: who watches keeps nobody from speaking.
        """
        account = self._account(tenant)
        if self.watches >= self._max_streams:
            text = f"this server has {self._max_streams} watches open at a time; try again later or elsewhere"
            raise _exhausted("TOO_MANY_WATCHES", text, "concurrent watches", RETRY_AFTER_S)
        limit = account.limits.streams
        if limit is not None and account.watches >= limit:
            text = f"you may have {limit} watches open at a time; close one, or try again later"
            raise _exhausted("TENANT_WATCH_LIMIT", text, "concurrent watches of a tenant", RETRY_AFTER_S)
        if failure := account.charge(0.0):
            raise failure
        self.watches += 1
        account.watches += 1
        try:
            yield
        finally:
            self.watches -= 1
            account.watches -= 1

    @contextmanager
    def call(self, tenant: str) -> Iterator[None]:
        """Counts another call. Raises Failure if a limit of the server or the tenant is reached."""
        account = self._account(tenant)
        if self.calls >= MAX_CALLS:
            text = f"this server answers {MAX_CALLS} calls at a time; try again"
            raise _exhausted("TOO_MANY_CALLS", text, "concurrent calls", RETRY_AFTER_S)
        if account.calls >= MAX_TENANT_CALLS:
            text = f"you may have {MAX_TENANT_CALLS} calls in progress at a time; try again"
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
        """Applies reloaded limits to open streams."""
        for tenant in self._accounts:
            self._account(tenant)

    def _account(self, tenant: str) -> Account:
        limits = self._limits_of(tenant)
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(limits, self._clock)
        elif account.limits != limits:  # reloaded since
            account.set_limits(limits)
        return account


def _exhausted(reason: str, text: str, quota: str, wait_s: float) -> Failure:
    return Failure(Kind.RESOURCE_EXHAUSTED, reason, text, retry_after_s=max(wait_s, RETRY_AFTER_S), quota=quota)
