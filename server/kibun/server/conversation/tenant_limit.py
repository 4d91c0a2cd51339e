"""How many conversations each tenant may have on a server, so that none takes the memory of all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kibun.server.conversation.state import Conversation
from kibun.server.errors import Failure, Kind

TENANT_CONVERSATIONS = 100_000  # with one utterance of 768 float16 each, 0.3 GB
RECHECK_S = 5.0  # between looks at which conversations of a full tenant have expired


@dataclass(slots=True)
class _Tenant:
    expire_times: dict[str, float] = field(default_factory=dict)  # by conversation id
    checked: float = 0.0  # when it was last looked for expired ones because the tenant was full

    def forget_expired(self, now: float) -> None:
        for conversation_id in [c for c, expires in self.expire_times.items() if expires <= now]:
            del self.expire_times[conversation_id]


class TenantLimit:
    """Counts the conversations it is notified of until they expire. `clock` is that of their `expire_time`."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}

    def __len__(self) -> int:
        """Tenants with a conversation, as of the last sweep."""
        return len(self._tenants)

    def check(self, key: tuple[str, str]) -> None:
        """Call before a conversation is made. Raises Failure TENANT_CONVERSATION_LIMIT where it would be too many."""
        name, conversation_id = key
        tenant = self._tenants.get(name) or _Tenant()
        if len(tenant.expire_times) < self._limit or conversation_id in tenant.expire_times:
            return
        now = self._clock()
        if abs(now - tenant.checked) >= RECHECK_S:
            tenant.checked = now
            tenant.forget_expired(now)
        if len(tenant.expire_times) >= self._limit:
            text = (
                f"you have {self._limit} conversations, the most that are allowed: delete some, ask for a shorter "
                "conversation_ttl, or try again later"
            )
            quota = "conversations of a tenant"
            kind = Kind.RESOURCE_EXHAUSTED
            raise Failure(kind, "TENANT_CONVERSATION_LIMIT", text, retry_after_s=RECHECK_S, quota=quota)

    def note(self, key: tuple[str, str], conversation: Conversation | None) -> None:
        """Call after a conversation was made or changed, with None when it is gone."""
        name, conversation_id = key
        if conversation is not None:
            self._tenants.setdefault(name, _Tenant()).expire_times[conversation_id] = conversation.expire_time
        elif name in self._tenants:
            self._tenants[name].expire_times.pop(conversation_id, None)

    def sweep(self) -> None:
        """Forgets what has expired."""
        now = self._clock()
        for name, tenant in tuple(self._tenants.items()):
            tenant.forget_expired(now)
            if not tenant.expire_times:
                del self._tenants[name]
