"""The connection to Redis or Valkey: its address, its timeouts, its errors. The only module that imports `redis`.

Needs the extra `redis`. An address may contain a password: nothing of it but host, port and path is ever shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    ConnectionError,
    DataError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from kibun.server.conversation.store import StoreRefused, StoreUnavailable
from kibun.server.errors import Failure

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0  # of one command, connecting included
MAX_CONNECTIONS = 64
PREFIX = "kibun"
PORT = 6379

_OPTIONS = ("db", "prefix", "username", "password")
_SSL_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_SSL_OPTIONS = (*_SSL_FILES, "ssl_check_hostname")
# Errors that any key would meet: the classes that redis-py makes of them, and how they begin, also inside a script's.
_OUTAGES = (ClusterDownError, NoPermissionError, OutOfMemoryError, ReadOnlyError)
_OUTAGE_TEXT = re.compile(
    r"(?:^|-)(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOPERM|NOREPLICAS|OOM|READONLY|UNKILLABLE)\b"
)


class AddressError(ValueError):
    """The address is wrong; the text shows nothing of it."""


class CannotConnect(Exception):
    """The server cannot be used; the text gives the reason and the remedy."""


class AnswersError(CannotConnect):
    """The server answers, with an error."""


class NotAllowed(AnswersError):
    """The user of the address lacks a right."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is. `settings` are the connection's and contain secrets; all keys begin with `prefix`."""

    scheme: str
    place: str  # to be shown
    prefix: str
    settings: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parses `redis://[user:password@]host[:port][/db][?option=value…]`, `rediss://…` or `unix://[…@]/path[?…]`.

        Raises AddressError. redis-py ignores what it does not understand, so the address is checked here first.
        """
        if url.partition(":")[0].lower() not in ("redis", "rediss", "unix"):
            raise AddressError("give memory, or an address that begins with redis://, rediss:// (TLS) or unix://")
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            settings: dict[str, Any] = {**parse_url(url)}
        except ValueError:
            raise _malformed() from None  # the cause quotes the address
        allowed = _OPTIONS + (_SSL_OPTIONS if parts.scheme == "rediss" else ())
        if parts.fragment or not set(options) <= set(allowed):
            raise _malformed(f"; options after ? are {', '.join(allowed)}")
        settings.pop("prefix", None)  # ours, not redis-py's
        prefix = options.get("prefix", PREFIX)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", prefix):
            raise AddressError("prefix may hold 1 to 64 letters, digits, '_', '.' and '-'")
        for name in _SSL_FILES:
            if name in settings and not Path(settings[name]).exists():
                raise AddressError(f"{name} names a file that is not there")
        db = options.get("db", "0")
        if parts.scheme == "unix":
            if not parts.path or parts.hostname:
                raise _malformed("; a socket is unix:///path/to/socket")
            place = f"unix://{settings['path']}"
        else:
            db = parts.path.strip("/") or db
            settings = {"host": "localhost", "port": PORT, **settings}
            place = f"{parts.scheme}://{settings['host']}:{settings['port']}"
        if not re.fullmatch(r"\d{1,6}", db):
            raise _malformed("; a database is a number")
        return cls(parts.scheme, place, prefix, {**settings, "db": int(db)})

    @property
    def is_private(self) -> bool:
        """Whether no one else can read along: TLS is used, or the connection does not leave this machine."""
        host = self.settings.get("host", "localhost")
        try:
            return self.scheme != "redis" or host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _malformed(more: str = "") -> AddressError:
    text = "not an address that can be read; in a user name or password write special characters as %23 and the like"
    return AddressError(text + more)


class WrongType(Exception):
    """The key is of another type: another program uses its name."""


class Script:
    """A Lua script and the name that the server gives it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Subscription:
    """A connection of its own, on which arrives what others publish."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def send(self, *words: str) -> None:
        """Sends SUBSCRIBE, UNSUBSCRIBE or PING, whose answers arrive as messages. Raises as `RedisConnection.call`."""
        async with _translated(TIMEOUT_S):
            await self._connection.send_command(*words)

    async def receive(self, within_s: float) -> list[Any] | None:
        """The next message; None if none arrives in that time. Raises as `RedisConnection.call`."""
        async with _translated(None):
            answer: list[Any] | None = await self._connection.read_response(timeout=within_s)
            return answer


class RedisConnection:
    """Sends commands to one server, each with a timeout, over at most MAX_CONNECTIONS connections."""

    def __init__(self, address: Address, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self.on_answer: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that each answer took."""
        self._monotonic = monotonic
        pool = BlockingConnectionPool(
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_S,
            # Ours is around every call. With its own, redis-py writes within asyncio.wait_for, which in Python 3.11
            # loses a cancellation that comes just as the write is done: the stream that was cancelled would go on.
            socket_timeout=None,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),  # a pooled connection may be long gone
            protocol=2,
            driver_info=None,  # no CLIENT SETINFO: one permission less
            **address.settings,
        )
        self._client = Redis(connection_pool=pool)
        self._execute: Callable[..., Awaitable[Any]] = self._client.execute_command

    async def execute(self, *command: str | bytes | int) -> Any:
        """Sends the command as it is, without a timeout. Raises what redis-py raises."""
        return await self._execute(*command)

    async def attempt(self, *command: str | bytes | int) -> Any:
        """Returns the answer to a command while an operator reads what is wrong, as when the server starts.

        Raises CannotConnect, AnswersError where the answer is an error.
        """
        place = self.address.place
        try:
            async with asyncio.timeout(5 * TIMEOUT_S):
                return await self.execute(*command)
        except AuthenticationError as error:
            raise CannotConnect(f"{place} refused the user name or password of the address, or requires one") from error
        except ResponseError as error:
            refusal = NotAllowed if isinstance(error, NoPermissionError) else AnswersError
            raise refusal(f"{place} answered: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            text = f"no Redis or Valkey answers at {place}: start it, or correct the address"
            if self.address.scheme == "rediss":
                text += "; does its port speak TLS, with a certificate of ssl_ca_certs that names this host?"
            raise CannotConnect(text) from error

    async def call(self, *command: str | bytes | int) -> Any:
        """Returns the answer to a command.

        Raises StoreUnavailable where the server cannot do its work, WrongType, and StoreRefused where it cannot do this
        one thing for another reason.
        """
        async with self._answer():
            return await self.execute(*command)

    async def run(self, script: Script, key: str, *arguments: str | bytes | int) -> Any:
        """Runs a script on one key. Returns and raises as `call` does."""
        async with self._answer():
            try:
                return await self.execute("EVALSHA", script.sha, 1, key, *arguments)
            except NoScriptError:  # the server was restarted
                return await self.execute("EVAL", script.source, 1, key, *arguments)

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[Subscription]:
        """A new connection for what others publish. Raises as `call` does."""
        make: Callable[[], AbstractConnection] = self._client.connection_pool.make_connection
        connection = make()
        try:
            async with _translated(TIMEOUT_S):
                connect: Callable[[], Awaitable[None]] = connection.connect
                await connect()
            yield Subscription(connection)
        finally:
            with suppress(RedisError, OSError, TimeoutError):
                await connection.disconnect(nowait=True)

    async def close(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[None]:
        """Limits and measures the time of an answer, and translates errors."""
        begin = self._monotonic()
        async with _translated(TIMEOUT_S):
            yield
        self.on_answer(self._monotonic() - begin)


@asynccontextmanager
async def _translated(within_s: float | None) -> AsyncIterator[None]:
    """Limits the time of an answer, and translates errors."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise _failure(error) from error


def _failure(error: Exception) -> Failure | WrongType:
    """Distinguishes an outage from trouble with one key."""
    if not isinstance(error, (ResponseError, DataError)):
        return StoreUnavailable()
    if isinstance(error, _OUTAGES) or _OUTAGE_TEXT.search(str(error)):
        return StoreUnavailable()
    code = re.match(r"[A-Z]{3,20}\b", str(error))  # the rest may quote what was sent
    if code and code[0] == "WRONGTYPE":
        return WrongType()
    log.error("the conversation store refuses a conversation", extra={"reason": code[0] if code else "ERR"})
    return StoreRefused()
