"""The connection to Redis or Valkey: its address, its time limits, its errors. The only module that knows `redis`.

Needs the extra `redis`. An address may hold a password: none of it but host, port and database is ever shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
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

_CONNECTIONS = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}
_SSL_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_SSL_OPTIONS = (*_SSL_FILES, "ssl_check_hostname")
_OPTIONS = ("db", "prefix", "username", "password")
# Errors that any key would meet, as the classes that redis-py makes of them or as they begin, inside a script's, too.
_SERVERS_OWN = (ClusterDownError, NoPermissionError, OutOfMemoryError, ReadOnlyError)
_SERVERS_OWN_TEXT = re.compile(
    r"(?:^|-)(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOPERM|NOREPLICAS|OOM|READONLY|UNKILLABLE)\b"
)


class AddressError(ValueError):
    """An address that cannot be right; the text shows nothing of it."""


class LinkError(Exception):
    """Why the server cannot be used; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is; `settings` are the connection's and hold secrets. `prefix`: what all our keys begin with."""

    scheme: str
    place: str  # for people
    prefix: str
    settings: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """`redis://[user:password@]host[:port][/db][?option=value…]`, `rediss://…` or `unix://[…@]/path[?…]`.

        Raises AddressError.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or PORT
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            raise _malformed() from None  # the cause quotes the address
        if parts.scheme not in _CONNECTIONS:
            raise AddressError("give memory, or an address that begins with redis://, rediss:// (TLS) or unix://")
        allowed = _OPTIONS + (_SSL_OPTIONS if parts.scheme == "rediss" else ())
        if parts.fragment or not set(options) <= set(allowed):
            raise _malformed(f"; options after ? are {', '.join(allowed)}")
        prefix = options.get("prefix", PREFIX)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", prefix):
            raise AddressError("prefix may hold 1 to 64 letters, digits, '_', '.' and '-'")
        db = options.get("db", "0")
        if parts.scheme == "unix":
            if not parts.path or parts.hostname:
                raise _malformed("; a socket is unix:///path/to/socket")
            where: dict[str, Any] = {"path": unquote(parts.path)}
            place = f"unix://{where['path']}"
        else:
            db = parts.path.strip("/") or db
            where = {"host": parts.hostname or "localhost", "port": port}
            place = f"{parts.scheme}://{where['host']}:{port}"
        if not re.fullmatch(r"\d{1,6}", db):
            raise _malformed("; a database is a number")
        return cls(parts.scheme, place, prefix, {**where, "db": int(db), **_who(parts, options), **_tls(options)})

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read along: TLS, or no way that leaves this machine."""
        host = self.settings.get("host", "localhost")
        try:
            return self.scheme != "redis" or host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _who(parts: SplitResult, options: dict[str, str]) -> dict[str, str | None]:
    given = {"username": parts.username, "password": parts.password}
    return {name: options.get(name) or unquote(text or "") or None for name, text in given.items()}


def _tls(options: dict[str, str]) -> dict[str, str | bool]:
    files: dict[str, str | bool] = {name: options[name] for name in _SSL_FILES if name in options}
    for name, path in files.items():
        if not Path(str(path)).exists():
            raise AddressError(f"{name} names a file that is not there")
    check = options.get("ssl_check_hostname")
    return files if check is None else {**files, "ssl_check_hostname": check.lower() not in ("false", "no", "0")}


def _malformed(more: str = "") -> AddressError:
    text = "not an address that can be read; in a user name or password write special characters as %23 and the like"
    return AddressError(text + more)


class Script:
    """A Lua script and the name that the server gives it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisLink:
    """Commands to one server, each with a time limit.

    They raise StoreUnavailable where the server cannot do its work, StoreRefused where it cannot do this one thing.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.on_answer: Callable[[float], None] = lambda seconds: None
        pool = BlockingConnectionPool(
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_S,
            connection_class=_CONNECTIONS[address.scheme],
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

    async def attempt(self, *command: str | bytes | int) -> None:
        """A command at the start, when there is somebody to read what is wrong. Raises LinkError."""
        place = self.address.place
        try:
            async with asyncio.timeout(5 * TIMEOUT_S):
                await self._execute(*command)
        except AuthenticationError as error:
            raise LinkError(f"{place} refused the user name or password of the address, or wants one") from error
        except ResponseError as error:
            raise LinkError(f"{place} says: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            text = f"no Redis or Valkey answers at {place}: start it, or correct the address"
            if self.address.scheme == "rediss":
                text += "; does its port speak TLS, with a certificate of ssl_ca_certs that names this host?"
            raise LinkError(text) from error

    async def call(self, *command: str | bytes | int) -> Any:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._execute(*command)
        except (RedisError, OSError, TimeoutError) as error:
            raise _failure(error) from error
        self.on_answer(time.monotonic() - begin)
        return answer

    async def run(self, script: Script, key: str, *arguments: str | bytes | int) -> Any:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    answer = await self._execute("EVALSHA", script.sha, 1, key, *arguments)
                except NoScriptError:  # the server was started anew
                    answer = await self._execute("EVAL", script.source, 1, key, *arguments)
        except (RedisError, OSError, TimeoutError) as error:
            raise _failure(error) from error
        self.on_answer(time.monotonic() - begin)
        return answer

    async def close(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()


def _failure(error: Exception) -> Failure:
    """One key's trouble (WRONGTYPE, say: somebody else's value under our name) must not count as an outage for all."""
    if not isinstance(error, (ResponseError, DataError)):
        return StoreUnavailable()
    if isinstance(error, _SERVERS_OWN) or _SERVERS_OWN_TEXT.search(str(error)):
        return StoreUnavailable()
    code = re.match(r"[A-Z]{3,20}\b", str(error))  # the rest may quote what was sent
    log.error("the conversation store refuses a conversation", extra={"reason": code[0] if code else "ERR"})
    return StoreRefused()
