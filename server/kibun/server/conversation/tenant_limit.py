"""How many conversations a server keeps of each tenant, so that none takes the room of all others."""

from __future__ import annotations

from collections.abc import Callable

from kibun.server.conversation.state import Conversation
from kibun.server.errors import Failure, Kind

TENANT_CONVERSATIONS = 100_000  # with one utterance of 768 float16 each, 0.3 GB
LOOK_AGAIN_S = 5.0  # between looks at what of a full tenant's has expired


class Room:
    """Counts conversations from what it is told of each until they expire. `clock` as that of their `expire_time`."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._tenants: dict[str, dict[str, float]] = {}  # expire_time by conversation
        self._looked: dict[str, float] = {}  # when, of full tenants

    def check(self, key: tuple[str, str]) -> None:
        """To be called before a conversation is made. Raises Failure where there is no room for it."""
        tenant, conversation_id = key
        kept = self._tenants.get(tenant, {})
        if len(kept) < self._limit or conversation_id in kept:
            return
        now = self._clock()
        if abs(now - self._looked.get(tenant, 0.0)) >= LOOK_AGAIN_S:
            self._looked[tenant] = now
            self._forget_expired(tenant)
        if len(kept) >= self._limit:
            text = (
                f"{self._limit} conversations of yours are kept, no more may be: delete some, ask for a shorter "
                "conversation_ttl, or try again later"
            )
            quota = "conversations of a tenant"
            kind = Kind.RESOURCE_EXHAUSTED
            raise Failure(kind, "TENANT_CONVERSATION_LIMIT", text, retry_after_s=LOOK_AGAIN_S, quota=quota)

    def note(self, key: tuple[str, str], conversation: Conversation | None) -> None:
        """How it is now; None: gone."""
        tenant, conversation_id = key
        if conversation is not None:
            self._tenants.setdefault(tenant, {})[conversation_id] = conversation.expire_time
        elif tenant in self._tenants:
            self._tenants[tenant].pop(conversation_id, None)

    def sweep(self) -> None:
        for tenant in tuple(self._tenants):
            self._forget_expired(tenant)
            if not self._tenants[tenant]:
                del self._tenants[tenant]
                self._looked.pop(tenant, None)

    def _forget_expired(self, tenant: str) -> None:
        now, kept = self._clock(), self._tenants[tenant]
        for conversation_id in [c for c, expires in kept.items() if expires <= now]:
            del kept[conversation_id]
