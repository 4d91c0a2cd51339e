"""Who calls: bearer tokens, kept as hashes, each belonging to a tenant."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from kibun.server.errors import Failure, Kind

ANYONE = ""  # the tenant of a server without tokens
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})\s+([0-9a-f]{64})\Z")


class TokenFileError(ValueError):
    """A token file that cannot be used; the text names file and line."""


class Authenticator:
    """Maps a token to its tenant. Without tokens everybody is the one tenant `ANYONE`."""

    def __init__(self, tenants_by_digest: Mapping[str, str] | None = None) -> None:
        self._tenants_by_digest = tenants_by_digest

    @classmethod
    def from_file(cls, path: Path) -> Authenticator:
        """Reads lines `TENANT SHA256-OF-TOKEN-IN-HEX`; '#' begins a comment.

        Raises TokenFileError. Make a digest with: `printf %s "$TOKEN" | sha256sum`.
        """
        tenants: dict[str, str] = {}
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise TokenFileError(f"{path}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            text = line.split("#")[0].strip()
            if not text:
                continue
            match = _LINE.match(text)
            if match is None:
                raise TokenFileError(f"{path}:{number}: expected 'TENANT SHA256-OF-TOKEN-IN-HEX'")
            tenants[match[2]] = match[1]
        if not tenants:
            raise TokenFileError(f"{path}: holds no token; nobody could use the server")
        return cls(tenants)

    def tenant(self, authorization: str | None) -> str:
        """The tenant of an `authorization` header's value.

        Raises Failure UNAUTHENTICATED, with one text for all causes. Takes the same time for every token.
        """
        if self._tenants_by_digest is None:
            return ANYONE
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for known, tenant in self._tenants_by_digest.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None or scheme.lower() != "bearer":
            raise Failure(
                Kind.UNAUTHENTICATED, "UNAUTHENTICATED", "send a valid token as metadata 'authorization: Bearer …'"
            )
        return found
