"""A connection to Redis that a test can listen to and interfere with. Needs the extra `redis`."""

from collections.abc import Awaitable, Callable
from typing import Any

from kibun.server.conversation.redis_connection import RedisConnection

Send = Callable[..., Awaitable[Any]]
Tap = Callable[..., Awaitable[Any]]


class TappedConnection(RedisConnection):
    """Every command goes through `tap(send, *words)`, which sends it or does something else."""

    tap: Tap | None = None

    async def execute(self, *command: str | bytes | int) -> Any:
        send = super().execute
        return await (send(*command) if self.tap is None else self.tap(send, *command))
