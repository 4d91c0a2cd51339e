"""`--store`: the conversation store that the operator asked for."""

from __future__ import annotations

from collections.abc import Callable

from kibun.server.conversation.store import ConversationStore, MemoryStore
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS
from kibun.server.errors import StartError

MEMORY = "memory"


async def open_store(
    address: str,
    on_error: Callable[[], None] = lambda: None,
    *,
    insecure: bool = False,
    tenant_conversations: int = TENANT_CONVERSATIONS,
) -> ConversationStore:
    """`memory`, or where a Redis or Valkey is. Raises StartError, which shows no password.

    `on_error` is called for each question that the store does not answer. `insecure`: another machine's may be spoken
    to without TLS. `tenant_conversations`: so many a tenant may have, as far as this server has seen.

    A server that cannot reach its store at the start does not start: most likely the address is wrong, and it would
    hold conversations that no other server sees. One that loses its store later goes on.
    """
    if address == MEMORY:
        return MemoryStore(tenant_conversations=tenant_conversations)
    try:
        from kibun.server.conversation.redis_connection import Address, AddressError, CannotConnect, RedisConnection
        from kibun.server.conversation.redis_store import RedisStore
        from kibun.server.conversation.resilient_store import ResilientStore
    except ModuleNotFoundError as error:
        raise StartError("--store needs a package for that: pip install 'kibun[redis]'") from error
    try:
        where = Address.parse(address)
        if not (insecure or where.is_private):
            raise StartError(
                f"--store: {where.place} is on another machine, and without TLS everybody on the way reads what is "
                "known of people: give rediss://, or --insecure where something else encrypts or fences off the way"
            )
        connection = RedisConnection(where)
    except (AddressError, OSError) as error:  # OSError: of a certificate's file
        raise StartError(f"--store: {error}") from None
    store = RedisStore(connection, tenant_conversations=tenant_conversations)
    try:
        await store.first_contact()
    except CannotConnect as error:
        await connection.close()
        raise StartError(f"--store: {error}") from None
    return ResilientStore(store, on_error=on_error)
