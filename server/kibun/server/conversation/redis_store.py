"""Conversations in Redis or Valkey, shared by any number of servers.

A conversation is one hash, `PREFIX:{TENANT/CONVERSATION}`: ids hold none of these signs, so that no id can name
another's key. `store_layout` tells of its fields.

A change is made on what this server last saw and written by a script, if nobody else has written since (else on what is
there now, and so on). What this server last saw stays in memory, so that one utterance more costs the head and one
record each way, however many there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from kibun.server.conversation import codec
from kibun.server.conversation import redis_layout as layout
from kibun.server.conversation.redis_connection import RedisLink, Script
from kibun.server.conversation.redis_layout import Difference, State
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import C, Change, Key, StreamHandle, stamp
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS, Room
from kibun.server.errors import Failure, Kind

log = logging.getLogger(__name__)
KEPT_RECORDS = 32_768  # in memory, of conversations last seen: 768 float16 each are 50 MB
READ_AT_ONCE = 256  # records (0.4 MB), so that neither Redis nor this server is busy with one conversation for long
CROWD = 3  # conflicts in a row after which a writer steps back for a moment

# Writes a conversation if it is as the caller knows it; otherwise says how it is. Values: head and `deleted` as known
# ("" for none), head to write ("" to erase), `deleted` to write, milliseconds to live, 1 where all entries are new,
# number of fields that go, their names, then names and values of new entries. The head is set before DEL: a full Redis
# refuses what needs memory, but nothing more once a script has written something.
_WRITE = Script("""
local known = redis.call('HMGET', KEYS[1], 'head', 'deleted')
if (known[1] or '') ~= ARGV[1] or (known[2] or '') ~= ARGV[2] then return known end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'head', ARGV[3]) end
if ARGV[3] == '' or ARGV[6] == '1' then redis.call('DEL', KEYS[1]) end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'deleted', ARGV[4]) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'head', ARGV[3]) end
local gone = tonumber(ARGV[7])
for i = 8, 7 + gone do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 8 + gone, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
""")


class RedisStore:
    """Implements `ConversationStore`; raises StoreUnavailable for streams, too (`ResilientStore` answers those).

    Expiry is Redis's own, `ttl_s` after the last change by its clock. `update_time` is this server's clock, but never
    goes back.
    """

    def __init__(
        self,
        link: RedisLink,
        clock: Callable[[], float] = time.time,
        *,
        tenant_conversations: int = TENANT_CONVERSATIONS,
    ) -> None:
        self._link = link
        self._clock = clock
        self.room = Room(tenant_conversations, clock)
        """Of the conversations that this server has seen."""
        self._seen: OrderedDict[Key, State] = OrderedDict()
        self._seen_records = 0

    def __len__(self) -> int:
        return len(self._seen)

    async def first_contact(self) -> None:
        """Tries everything that it will need. Raises LinkError."""
        await self._link.attempt("PING")
        name = self._name(("", secrets.token_hex(8)))
        await self._link.attempt("HEXISTS", name, "head")
        await self._link.attempt("HMGET", name, "head", "deleted")
        values = (1, name, "", "", "check", "", 1000, 1, 1, "none", "check", "check")  # gone after a second
        await self._link.attempt("EVAL", _WRITE.source, *values)
        await self._link.attempt("EVALSHA", _WRITE.sha, *values)

    async def get(self, key: Key, stream: StreamHandle | None = None) -> Conversation | None:
        state = await self._load(key)
        _refuse_deleted(state, stream)
        return state.conversation

    async def update(self, key: Key, change: Change[C], stream: StreamHandle | None = None) -> C:
        remembered = self._seen.get(key)
        state, current = remembered or await self._load(key), remembered is None
        conflicts = 0
        while True:
            try:
                _refuse_deleted(state, stream)
                known = state.conversation or (stream.last_seen if stream else None)
                changed = change(known)
                if known is None and changed is not None:
                    self.room.check(key)
            except Exception:
                if current:
                    raise
                state, current = await self._load(key), True  # perhaps it is no longer so
                continue
            after = self._stamped(changed, known, state) if changed is not None else None
            state, written = await self._write(key, state, after)
            if written:
                return cast(C, after)
            current = True
            conflicts += 1
            if conflicts > CROWD:
                await asyncio.sleep(0.001 * secrets.randbelow(min(conflicts, 50)))

    def _stamped(self, changed: Conversation, known: Conversation | None, state: State) -> Conversation:
        """A new conversation is younger than the deleted one, whatever the servers' clocks say."""
        born = changed.create_time
        if known is None and state.deleted:
            born = max(born, math.nextafter(layout.deleted_when(state), math.inf))
        return replace(stamp(changed, known, self._clock()), create_time=born)

    async def delete(self, key: Key) -> bool:
        state = await self._load(key)
        while state.head:
            made = state.conversation.create_time.hex().encode() if state.conversation else state.deleted
            state, written = await self._write(key, state, None, deleted=made)
            if written:
                return True
        return False

    async def knows(self, key: Key) -> bool:
        return bool(await self._link.call("HEXISTS", self._name(key), "head"))

    def remembered(self, key: Key) -> Conversation | None:
        """As last seen by this server, None where it is not in memory or must have expired."""
        state = self._seen.get(key)
        conversation = state.conversation if state else None
        return conversation if conversation and conversation.expire_time > self._clock() else None

    def forget(self, key: Key) -> None:
        self._remember(key, State())

    async def ping(self) -> None:
        await self._link.call("PING")

    def sweep(self) -> None:
        self.room.sweep()
        for key in [k for k in self._seen if self.remembered(k) is None]:
            self.forget(key)

    def watch(self, on_answer: Callable[[float], None]) -> None:
        """From now on it is told how many seconds each answer took."""
        self._link.on_answer = on_answer

    async def close(self) -> None:
        await self._link.close()

    # ---- reading

    def _name(self, key: Key) -> str:
        return f"{self._link.address.prefix}:{{{key[0]}/{key[1]}}}"

    async def _load(self, key: Key) -> State:
        head, deleted = await self._link.call("HMGET", self._name(key), "head", "deleted")
        return await self._complete(key, head or b"", deleted or b"")

    async def _complete(self, key: Key, head: bytes, deleted: bytes) -> State:
        """The state with this head, of entries in memory and entries read now. Where they are gone since, a newer one.

        A damaged conversation counts as none: nobody can read it, and a client is told as of one that was lost
        (`conversation_created`). One of a newer version is left alone: servers of that version can read it.
        """
        known = self._seen.get(key)
        if known is not None and known.head == head:
            state = replace(known, deleted=deleted)
        else:
            try:
                state = await self._read(key, head, deleted, known)
            except codec.Damaged:
                log.warning("a conversation in the store is damaged: it counts as lost")
                state = State(head, deleted)
            except codec.NewerVersion:
                text = "the conversation was stored by a newer version of this server; try again to reach one of that"
                raise Failure(Kind.UNAVAILABLE, "CONVERSATION_VERSION", text, retry_after_s=1.0) from None
        self._remember(key, state)
        return state

    async def _read(self, key: Key, head: bytes, deleted: bytes, known: State | None) -> State:
        incarnation = known.parsed.incarnation if known and known.parsed else ""
        entries = layout.entries(known) if known else {}
        while head:
            parsed = codec.unpack_head(head)
            if parsed.incarnation != incarnation:
                incarnation, entries = parsed.incarnation, {}
            missing = [name for name in layout.fields(parsed) if name not in entries]
            now = head
            while missing and now == head:
                some, missing = missing[:READ_AT_ONCE], missing[READ_AT_ONCE:]
                answer = await self._link.call("HMGET", self._name(key), "head", "deleted", *some)
                now, deleted, values = answer[0] or b"", answer[1] or b"", answer[2:]
                found = zip(some, values, strict=True)
                entries |= {name: layout.unpack(name, value) for name, value in found if value is not None}
                if now == head and None in values:
                    raise codec.Damaged
            if now == head:
                return State(head, deleted, parsed, layout.conversation(key[1], parsed, entries))
            head = now  # changed in between: what was read stays true
        return State(deleted=deleted)

    # ---- writing

    async def _write(
        self, key: Key, state: State, after: Conversation | None, deleted: bytes | None = None
    ) -> tuple[State, bool]:
        """The state now, and whether it is the one to be written."""
        if after is None and not state.head and deleted is None:
            return state, True
        marker = state.deleted if deleted is None else deleted
        head, parsed, difference = b"", None, Difference()
        whole = state.parsed is None
        if after is not None:
            whole = whole or not state.parsed or not set(state.parsed.participants) <= set(after.participants)
            parsed, difference = layout.difference_to(State() if whole else state, after)
            head = codec.pack_head(parsed)
        ttl_s = after.ttl_s if after else state.conversation.ttl_s if state.conversation else 1.0
        pairs = [part for pair in difference.new.items() for part in pair]
        answer = await self._link.run(
            _WRITE,
            self._name(key),
            *(state.head, state.deleted, head, marker, max(1, math.ceil(ttl_s * 1000)), int(whole)),
            *(len(difference.gone), *difference.gone, *pairs),
        )
        if answer != 1:
            there = (answer[0] or b"", answer[1] or b"")
            if there != (head, marker):  # otherwise it was written, and the first answer lost
                return await self._complete(key, *there), False
        now = State(head, marker, parsed, after)
        self._remember(key, now)
        return now, True

    def _remember(self, key: Key, state: State) -> None:
        self.room.note(key, state.conversation)
        self._seen_records -= layout.weight(self._seen.pop(key, None))
        if state.conversation is not None:
            self._seen[key] = state
            self._seen_records += layout.weight(state)
        while self._seen_records > KEPT_RECORDS:
            self._seen_records -= layout.weight(self._seen.popitem(last=False)[1])


def _refuse_deleted(state: State, stream: StreamHandle | None) -> None:
    if stream is None:
        return
    stream.check_open()
    seen = stream.last_seen
    if seen is not None and state.deleted and seen.create_time <= layout.deleted_when(state):
        raise Failure(Kind.ABORTED, "CONVERSATION_DELETED", "the conversation was deleted")
