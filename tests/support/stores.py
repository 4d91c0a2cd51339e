"""Conversation stores for tests, what is stored in them, and a way to compare it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from kibun.models.types import Traits
from kibun.server.audio.endpointing import EndReason
from kibun.server.conversation.state import (
    Conversation,
    Participant,
    UtteranceRecord,
    add_utterance,
)
from kibun.server.conversation.store import ConversationStore, Key, MemoryStore
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS
from kibun.server.errors import Failure
from tests.support.redis_server import command, prefixed

KEY = ("tenant", "c")
StoreKind = Literal["memory", "redis", "resilient"]
KINDS: tuple[StoreKind, ...] = ("memory", "redis", "resilient")


async def open_redis(
    url: str, *, resilient: bool = False, tenant_conversations: int = TENANT_CONVERSATIONS
) -> ConversationStore:
    from kibun.server.conversation.redis_connection import Address, RedisConnection
    from kibun.server.conversation.redis_store import RedisStore
    from kibun.server.conversation.resilient_store import ResilientStore

    store = RedisStore(RedisConnection(Address.parse(url)), tenant_conversations=tenant_conversations)
    await store.first_contact()
    return ResilientStore(store) if resilient else store


@dataclass
class Stores:
    """A store, and what makes its time pass. `another` is a second server's store of the same conversations."""

    store: ConversationStore
    another: ConversationStore
    pass_time: Callable[[Key, float], Awaitable[None]]


@asynccontextmanager
async def open_stores(kind: StoreKind, *, tenant_conversations: int = TENANT_CONVERSATIONS) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        if kind == "memory":
            now = [1000.0]
            memory = MemoryStore(lambda: now[0], lambda: now[0], tenant_conversations=tenant_conversations)

            async def later(_: Key, seconds: float) -> None:
                now[0] += seconds

            yield Stores(memory, memory, later)
            return
        url = await stack.enter_async_context(prefixed())
        pair = [
            await open_redis(url, resilient=kind == "resilient", tenant_conversations=tenant_conversations)
            for _ in range(2)
        ]
        for store in pair:
            stack.push_async_callback(store.close)

        async def expire_sooner(key: Key, seconds: float) -> None:
            name = f"{url.rpartition('=')[2]}:{{{key[0]}/{key[1]}}}"
            left_ms = await command(url.partition("?")[0], "PTTL", name)
            assert isinstance(left_ms, int)
            await command(url.partition("?")[0], "PEXPIRE", name, round(left_ms - seconds * 1000))

        yield Stores(pair[0], pair[1], expire_sooner)


@pytest.fixture(params=KINDS)
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    async with open_stores(request.param) as stores:
        yield stores


class FakeStream:
    """A `StreamHandle` that records what it is notified of."""

    def __init__(self, last_seen: Conversation | None = None, ended: Exception | None = None) -> None:
        self.last_seen = last_seen
        self.ended = ended
        self.notices: list[bool | str] = []  # is_behind, or the reason of a rejection

    def check_open(self) -> None:
        if self.ended:
            raise self.ended

    def notify_behind(self, is_behind: bool) -> None:
        self.notices.append(is_behind)

    def notify_damaged(self) -> None:
        self.notices.append("damaged")

    def reject(self, failure: Failure) -> None:
        self.notices.append(failure.reason)


def fresh(_: Conversation | None = None, ttl_s: float = 60.0) -> Conversation:
    return Conversation("c", "m", 1000.0, 1000.0, ttl_s)


def traits(value: float) -> Traits:
    return (value, 4.0, 4.0, 4.0, 4.0)


def record(
    turn: str = "t", start: int = 0, *, who: str = "p", level: float | None = 2.0, speech: int = 16_000
) -> UtteranceRecord:
    """One second of a participant's turn; `level` sets all estimates, None where there was too little speech."""
    return UtteranceRecord(
        utterance_id=f"{who}:{turn}:{start}",
        turn_id=turn,
        start=start,
        end=start + 16_000,
        speech=speech if level else 0,
        vector=np.full(4, level, np.float16) if level else None,
        emotion=(level, 6 - level) if level else None,
        traits=traits(level) if level else None,
        traits_source="conversation",
        reason=EndReason.SILENCE,
    )


def adding(*records: UtteranceRecord, who: str = "p") -> Callable[[Conversation | None], Conversation]:
    def change(conversation: Conversation | None) -> Conversation:
        conversation = conversation or fresh()
        participant = conversation.participant(who)
        for item in records:
            participant = add_utterance(participant, item)
        return conversation.with_participant(participant)

    return change


def plain(conversation: Conversation | None, *, times: bool = True) -> Any:
    """All of it, comparable, floats and vectors to the bit."""
    if conversation is None:
        return None
    return (
        (conversation.conversation_id, conversation.model, conversation.completed, conversation.ttl_s.hex()),
        (conversation.create_time.hex(), conversation.update_time.hex()) if times else (),
        {name: _plain_participant(p) for name, p in conversation.participants.items()},
    )


def _plain_participant(p: Participant) -> Any:
    openings = [(turn, o.when.hex(), o.offset, o.settled, o.resumes) for turn, o in p.openings.items()]
    return (
        (p.participant_id, p.finished_turns, p.more_turns, p.revision, _hex(p.given_traits), p.bundle),
        (openings, dict(p.earlier), p.dropped),
        tuple(map(plain_record, p.records)),
    )


def plain_record(r: UtteranceRecord) -> Any:
    vector = None if r.vector is None else (r.vector.dtype.str, r.vector.shape, r.vector.tobytes())
    numbers = (r.start, r.end, r.speech, _hex(r.emotion), _hex(r.traits))
    return (r.utterance_id, r.turn_id, numbers, vector, r.traits_source, r.reason, r.bundle)


def _hex(values: tuple[float, ...] | None) -> Any:
    return None if values is None else tuple(float(v).hex() for v in values)
