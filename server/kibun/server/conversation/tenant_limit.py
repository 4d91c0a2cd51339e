"""How many conversations each tenant may have on a server, so that none takes the memory of all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kibun.server.conversation.state import Conversation
from kibun.server.errors import Failure, Kind

TENANT_CONVERSATIONS = 100_000  # with one utterance of 768 float16 each, 0.3 GB
RECHECK_S = 5.0  # between looks at which conversations of a full tenant have expired


class Expiry:
    """When a conversation that was seen must have expired, by a clock that nobody sets."""

    __slots__ = ("_update_time", "at")

    def __init__(self, conversation: Conversation, now: float, before: Expiry | None = None) -> None:
        """`before`: the last one of this conversation, which still holds where nothing has changed."""
        self._update_time = conversation.update_time
        self.at: float = now + conversation.ttl_s
        if before is not None and before._update_time == self._update_time:
            self.at = min(self.at, before.at)


@dataclass(slots=True)
class _Tenant:
    expiries: dict[str, Expiry] = field(default_factory=dict)  # by conversation id
    checked: float = 0.0  # when it was last looked for expired ones because the tenant was full

    def forget_expired(self, now: float) -> None:
        for conversation_id in [c for c, expiry in self.expiries.items() if expiry.at <= now]:
            del self.expiries[conversation_id]


class TenantLimit:
    """Counts the conversations it is notified of until they expire."""

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        self._limit = limit
        self._monotonic = monotonic
        self._tenants: dict[str, _Tenant] = {}

    def __len__(self) -> int:
        """Tenants with a conversation, as of the last sweep."""
        return len(self._tenants)

    def check(self, key: tuple[str, str]) -> None:
        """Call before a conversation is made. Raises Failure TENANT_CONVERSATION_LIMIT where it would be too many."""
        name, conversation_id = key
        tenant = self._tenants.get(name) or _Tenant()
        if len(tenant.expiries) < self._limit or conversation_id in tenant.expiries:
            return
        now = self._monotonic()
        if abs(now - tenant.checked) >= RECHECK_S:
            tenant.checked = now
            tenant.forget_expired(now)
        if len(tenant.expiries) >= self._limit:
            text = (
                f"you have {self._limit} conversations, the most that are allowed: delete some, ask for a shorter "
                "conversation_ttl, or try again later"
            )
            quota = "conversations of a tenant"
            kind = Kind.RESOURCE_EXHAUSTED
            raise Failure(kind, "TENANT_CONVERSATION_LIMIT", text, retry_after_s=RECHECK_S, quota=quota)

    def note(self, key: tuple[str, str], conversation: Conversation | None) -> None:
        """Call after a conversation was seen, made or changed, with None when it is gone."""
        name, conversation_id = key
        if conversation is not None:
            expiries = self._tenants.setdefault(name, _Tenant()).expiries
            expiries[conversation_id] = Expiry(conversation, self._monotonic(), expiries.get(conversation_id))
        elif name in self._tenants:
            self._tenants[name].expiries.pop(conversation_id, None)

    def sweep(self) -> None:
        """Forgets what has expired."""
        now = self._monotonic()
        for name, tenant in tuple(self._tenants.items()):
            tenant.forget_expired(now)
            if not tenant.expiries:
                del self._tenants[name]
