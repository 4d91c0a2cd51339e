"""Authentication by bearer tokens, each of which belongs to a tenant. Only their hashes are stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kibun.server.api.quota import TenantLimits
from kibun.server.errors import Failure, Kind

ANYONE = ""  # the tenant of a server without tokens
MAX_TOKEN_CHARS = 4096
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_LINE = "TENANT SHA256-OF-TOKEN-IN-HEX [streams=N] [audio_s_per_minute=N] [messages_per_s=N] [expires=ISO-8601-TIME]"

NO_TOKEN = "this server requires a token and none came: send one as metadata 'authorization: Bearer TOKEN'"
NOT_ACCEPTED = "the token that came is not accepted: it is unknown, expired or withdrawn; ask for a valid one"


class TokenFileError(ValueError):
    """The token file cannot be used; the text names the file and line."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token's tenant and when it expires."""

    tenant: str
    expires: float | None = None  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file's tokens by digest, and its tenants' limits."""

    tokens: Mapping[str, Token]
    limits: Mapping[str, TenantLimits]


def read_tokens(path: Path) -> TokenFile:
    """Reads lines `TENANT SHA256-OF-TOKEN-IN-HEX [KEY=VALUE…]`; '#' begins a comment. Raises TokenFileError.

    A tenant may have several tokens, and limits on any of its lines. `printf %s "$TOKEN" | sha256sum` makes a digest.
    """
    tokens: dict[str, Token] = {}
    limits: dict[str, TenantLimits] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileError(f"{path}: {getattr(error, 'strerror', None) or 'is not text'}") from error
    for number, line in enumerate(lines, 1):
        if not (text := line.split("#")[0].strip()):
            continue
        try:
            digest, token, own = _parse(text)
            if digest in tokens:
                raise ValueError("the same token is on an earlier line")
            tokens[digest] = token
            limits[token.tenant] = _merged(limits.get(token.tenant, TenantLimits()), own)
        except ValueError as error:
            raise TokenFileError(f"{path}:{number}: {error}") from None
    if not tokens:
        raise TokenFileError(f"{path}: holds no token, so that no client could use the server")
    return TokenFile(tokens, limits)


def _parse(text: str) -> tuple[str, Token, TenantLimits]:
    """Returns a line's digest, token and limits. Raises ValueError, without values, which may be tokens."""
    tenant, _, rest = text.partition(" ")
    digest, *options = rest.split() or [""]
    if not TENANT.match(tenant) or not _DIGEST.match(digest):
        raise ValueError(f"expected '{_LINE}'")
    expires, limits = None, TenantLimits()
    for option in options:
        key, _, value = option.partition("=")
        if key == "expires":
            expires = _time(value)
        elif key in {field.name for field in fields(TenantLimits)}:
            limits = replace(limits, **_limit(key, value))
        else:
            raise ValueError(f"expected '{_LINE}'")
    return digest, Token(tenant, expires), limits


def _limit(key: str, value: str) -> dict[str, Any]:
    try:
        number = int(value) if key == "streams" else float(value)
    except ValueError:
        number = 0
    if not 0 < number < 1e9:
        raise ValueError(f"{key} must be a number above 0")
    return {key: number}


def _time(value: str) -> float:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("expires must be a time as 2027-01-31T00:00:00+00:00 (ISO 8601)") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _merged(known: TenantLimits, more: TenantLimits) -> TenantLimits:
    """Returns a tenant's limits from two lines. Raises ValueError where they differ."""
    for field in fields(TenantLimits):
        old, new = getattr(known, field.name), getattr(more, field.name)
        if old is not None and new is not None and old != new:
            raise ValueError(f"{field.name} differs from an earlier line of this tenant")
        known = replace(known, **{field.name: old if new is None else new})
    return known


class Authenticator:
    """Maps tokens to tenants. Without a file every caller is the tenant `ANYONE`."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """Reads the file. Raises TokenFileError."""
        self._path = path
        self._clock = clock
        self._file = None if path is None else read_tokens(path)

    def __str__(self) -> str:
        return f"{len(self._file.tokens) if self._file else 0} tokens"

    @property
    def open(self) -> bool:
        """Whether no token is required."""
        return self._file is None

    def reload(self) -> None:
        """Reads the file again. Raises TokenFileError and keeps the old tokens if it cannot be used."""
        if self._path is not None:
            self._file = read_tokens(self._path)

    def digest(self, authorization: str | None) -> str | None:
        """Returns the digest of the valid token in an `authorization` header; None on an open server.

        Raises Failure UNAUTHENTICATED: one text where no bearer token came, another for every token that is not
        accepted. Takes the same time for every token.
        """
        if self._file is None:
            return None
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token[:MAX_TOKEN_CHARS].encode()).hexdigest()
        found = None
        for known in self._file.tokens:
            if hmac.compare_digest(known, digest):
                found = known
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthenticated(NO_TOKEN)
        if found is None or not self.valid(found):
            raise unauthenticated(NOT_ACCEPTED)
        return found

    def tenant(self, digest: str | None) -> str:
        """Returns the tenant that a valid token belongs to."""
        return ANYONE if self._file is None or digest is None else self._file.tokens[digest].tenant

    def valid(self, digest: str | None, tenant: str | None = None) -> bool:
        """Whether a token is still in the file, not expired, and belongs to `tenant`, if one is given."""
        if self._file is None:
            return True
        token = self._file.tokens.get(digest or "")
        if token is None or (tenant is not None and token.tenant != tenant):
            return False
        return token.expires is None or self._clock() < token.expires

    def limits(self, tenant: str, default: TenantLimits) -> TenantLimits:
        """Returns the tenant's limits from the file, and those of `default` that it does not set."""
        own = self._file.limits.get(tenant) if self._file else None
        return default if own is None else _filled(own, default)


def _filled(own: TenantLimits, default: TenantLimits) -> TenantLimits:
    values = {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) is not None}
    return replace(default, **values)


def unauthenticated(text: str) -> Failure:
    """A caller may learn what it did, not which tokens exist: one text for those unknown, expired and withdrawn."""
    return Failure(Kind.UNAUTHENTICATED, "UNAUTHENTICATED", text)
