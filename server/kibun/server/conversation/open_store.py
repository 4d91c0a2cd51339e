"""Opens the conversation store that the operator asked for with `--store`."""

from __future__ import annotations

from collections.abc import Callable

from kibun.server.conversation.store import ConversationStore, MemoryStore
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS
from kibun.server.errors import StartError

MEMORY = "memory"


async def open_store(
    address: str,
    on_error: Callable[[], None] = lambda: None,
    on_damaged: Callable[[], None] = lambda: None,
    *,
    insecure: bool = False,
    tenant_conversations: int = TENANT_CONVERSATIONS,
) -> ConversationStore:
    """Opens `memory`, or the Redis or Valkey at an address. Raises StartError, which shows no password.

    `on_error` is called for each call that the store does not answer, `on_damaged` each time that it has a conversation
    which cannot be read. `insecure` allows connections without TLS to
    another machine. `tenant_conversations` is the most that each tenant may have, as far as this server has seen.

    A server that cannot reach its store at the start does not start: most likely the address is wrong, and its
    conversations would be invisible to other servers. One that loses its store later goes on.
    """
    if address == MEMORY:
        return MemoryStore(tenant_conversations=tenant_conversations)
    try:
        from kibun.server.conversation.redis_connection import Address, AddressError, CannotConnect, RedisConnection
        from kibun.server.conversation.redis_relay import RedisRelay
        from kibun.server.conversation.redis_store import RedisStore
        from kibun.server.conversation.resilient_store import ResilientStore
    except ModuleNotFoundError as error:
        raise StartError("--store with an address needs a package: pip install 'kibun[redis]'") from error
    try:
        where = Address.parse(address)
        if not (insecure or where.is_private):
            raise StartError(
                f"--store: {where.place} is on another machine, and without TLS anyone in between can read what is "
                "stored about people: give rediss://, or --insecure where something else protects the connection"
            )
        connection = RedisConnection(where)
    except (AddressError, OSError) as error:  # OSError: a certificate cannot be read
        raise StartError(f"--store: {error}") from None
    store = RedisStore(connection, on_damaged=on_damaged, tenant_conversations=tenant_conversations)
    try:
        await store.first_contact()
    except CannotConnect as error:
        await connection.close()
        raise StartError(f"--store: {error}") from None
    resilient = ResilientStore(store, on_error=on_error)
    resilient.audience.relay = relay = RedisRelay(connection, resilient.audience)
    relay.start()
    return resilient
