"""Conversations in Redis or Valkey, shared by any number of servers.

A conversation is one hash, `PREFIX:{TENANT/CONVERSATION}`: ids hold none of these signs, so that no id can name
another's key. Its fields are `head`, one per entry (`r/PARTICIPANT/NUMBER`, `t/PARTICIPANT/NUMBER`, see
`conversation_codec`), and `deleted` where an earlier conversation of that name was deleted.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from kibun.server import conversation_codec as codec
from kibun.server.conversation import Conversation, Participant, UtteranceRecord
from kibun.server.errors import Failure, Kind
from kibun.server.redis_link import RedisLink, Script
from kibun.server.store import C, Change, Holder, Key, stamp

log = logging.getLogger(__name__)
T = TypeVar("T", UtteranceRecord, str)
KEPT_RECORDS = 32_768  # in memory, of conversations last seen: 768 float16 each are 50 MB
CROWD = 3  # conflicts in a row after which a writer steps back for a moment

# Writes a conversation if it is as the caller knows it; otherwise says how it is. Values: head and `deleted` as known
# ("" for none), head to write ("" to erase), `deleted` to write, milliseconds to live, 1 where all entries are new,
# number of fields that go, their names, then names and values of new entries.
_WRITE = Script("""
local known = redis.call('HMGET', KEYS[1], 'head', 'deleted')
if (known[1] or '') ~= ARGV[1] or (known[2] or '') ~= ARGV[2] then return known end
if ARGV[3] == '' or ARGV[6] == '1' then redis.call('DEL', KEYS[1]) end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'deleted', ARGV[4]) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'head', ARGV[3]) end
local gone = tonumber(ARGV[7])
for i = 8, 7 + gone do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 8 + gone, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
""")


@dataclass(frozen=True, slots=True)
class _State:
    """A conversation as Redis has it. `head` b"" where there is none; `conversation` None also where it is damaged.

    `deleted`: when the conversation of this name that was last deleted was made; streams of that one must not bring it
    back.
    """

    head: bytes = b""
    deleted: bytes = b""
    parsed: codec.Head | None = None
    conversation: Conversation | None = None


@dataclass(slots=True)
class _Difference:
    """Fields to set and fields that go."""

    new: dict[str, bytes] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)


class RedisStore:
    """Implements `ConversationStore`; raises StoreUnavailable for holders, too (`ResilientStore` answers those).

    Expiry is Redis's own, `ttl_s` after the last change by its clock. `update_time` is this server's clock, but never
    goes back.
    """

    def __init__(self, link: RedisLink, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._clock = clock
        self._seen: OrderedDict[Key, _State] = OrderedDict()
        self._seen_records = 0

    def __len__(self) -> int:
        return len(self._seen)

    async def first_contact(self) -> None:
        """Tries everything that it will need. Raises LinkError."""
        await self._link.attempt("PING")
        name = self._name(("", secrets.token_hex(8)))
        await self._link.attempt("HEXISTS", name, "head")
        await self._link.attempt("HMGET", name, "head", "deleted")
        await self._link.attempt(
            "EVAL", _WRITE.source, 1, name, "", "", "check", "", 1000, 1, 1, "none", "r/a/0", "check"
        )

    async def get(self, key: Key, holder: Holder | None = None) -> Conversation | None:
        state = await self._load(key)
        _refuse_deleted(state, holder)
        return state.conversation

    async def update(self, key: Key, change: Change[C], holder: Holder | None = None) -> C:
        remembered = self._seen.get(key)
        state, current = remembered or await self._load(key), remembered is None
        conflicts = 0
        while True:
            try:
                _refuse_deleted(state, holder)
                known = state.conversation or (holder.held if holder else None)
                changed = change(known)
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

    def _stamped(self, changed: Conversation, known: Conversation | None, state: _State) -> Conversation:
        """A new conversation is younger than the deleted one, whatever the servers' clocks say."""
        born = changed.create_time
        if known is None and state.deleted:
            born = max(born, math.nextafter(_deleted(state), math.inf))
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
        self._remember(key, _State())

    async def ping(self) -> None:
        await self._link.call("PING")

    def sweep(self) -> None:
        for key in [k for k in self._seen if self.remembered(k) is None]:
            self.forget(key)

    async def close(self) -> None:
        await self._link.close()

    # ---- reading

    def _name(self, key: Key) -> str:
        return f"{self._link.address.prefix}:{{{key[0]}/{key[1]}}}"

    async def _load(self, key: Key) -> _State:
        head, deleted = await self._link.call("HMGET", self._name(key), "head", "deleted")
        return await self._complete(key, head or b"", deleted or b"")

    async def _complete(self, key: Key, head: bytes, deleted: bytes) -> _State:
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
                state = _State(head, deleted)
            except codec.NewerVersion:
                text = "the conversation was stored by a newer version of this server; try again to reach one of that"
                raise Failure(Kind.UNAVAILABLE, "CONVERSATION_VERSION", text, retry_after_s=1.0) from None
        self._remember(key, state)
        return state

    async def _read(self, key: Key, head: bytes, deleted: bytes, known: _State | None) -> _State:
        incarnation = known.parsed.incarnation if known and known.parsed else ""
        entries = _entries(known) if known else {}
        while head:
            parsed = codec.unpack_head(head)
            if parsed.incarnation != incarnation:
                incarnation, entries = parsed.incarnation, {}
            missing = [name for name in _fields(parsed) if name not in entries]
            if not missing:
                return _State(head, deleted, parsed, _conversation(key, parsed, entries))
            now, deleted, *values = await self._link.call("HMGET", self._name(key), "head", "deleted", *missing)
            found = zip(missing, values, strict=True)
            entries |= {name: _unpack(name, value) for name, value in found if value is not None}
            if now == head and None in values:
                raise codec.Damaged
            head, deleted = now or b"", deleted or b""  # changed in between: what was read stays true
        return _State(deleted=deleted)

    # ---- writing

    async def _write(
        self, key: Key, state: _State, after: Conversation | None, deleted: bytes | None = None
    ) -> tuple[_State, bool]:
        """The state now, and whether it is the one to be written."""
        if after is None and not state.head and deleted is None:
            return state, True
        marker = state.deleted if deleted is None else deleted
        head, parsed, difference = b"", None, _Difference()
        whole = state.parsed is None
        if after is not None:
            whole = whole or not state.parsed or not set(state.parsed.participants) <= set(after.participants)
            parsed, difference = _difference(_State() if whole else state, after)
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
        now = _State(head, marker, parsed, after)
        self._remember(key, now)
        return now, True

    def _remember(self, key: Key, state: _State) -> None:
        self._seen_records -= _weight(self._seen.pop(key, None))
        if state.conversation is not None:
            self._seen[key] = state
            self._seen_records += _weight(state)
        while self._seen_records > KEPT_RECORDS:
            self._seen_records -= _weight(self._seen.popitem(last=False)[1])


def _refuse_deleted(state: _State, holder: Holder | None) -> None:
    if holder is None:
        return
    holder.check()
    held = holder.held
    if held is not None and state.deleted and held.create_time <= _deleted(state):
        raise Failure(Kind.ABORTED, "CONVERSATION_DELETED", "the conversation was deleted")


def _deleted(state: _State) -> float:
    return float.fromhex(state.deleted.decode())


def _weight(state: _State | None) -> int:
    """Records that a state keeps in memory; an empty conversation counts, too."""
    people = state.conversation.participants.values() if state and state.conversation else ()
    return (state is not None) + sum(len(p.records) for p in people)


# ---- entries and their fields


def _fields(head: codec.Head) -> list[str]:
    return [
        f"{kind}/{name}/{number}"
        for name, p in head.participants.items()
        for kind, numbers in (("r", p.records), ("t", p.turns))
        for number in numbers.taken
    ]


def _entries(state: _State) -> dict[str, UtteranceRecord | str]:
    """By field."""
    if state.parsed is None or state.conversation is None:
        return {}
    values: list[UtteranceRecord | str] = []
    for name in state.parsed.participants:
        participant = state.conversation.participants[name]
        values += participant.records
        values += participant.finished_turns
    return dict(zip(_fields(state.parsed), values, strict=True))


def _unpack(name: str, value: bytes) -> UtteranceRecord | str:
    return codec.unpack_record(value) if name.startswith("r") else codec.unpack_turn(value)


def _conversation(key: Key, head: codec.Head, entries: Mapping[str, Any]) -> Conversation:
    people = {}
    for name, p in head.participants.items():
        records = tuple(entries[f"r/{name}/{number}"] for number in p.records.taken)
        turns = tuple(entries[f"t/{name}/{number}"] for number in p.turns.taken)
        people[name] = Participant(name, records, turns, p.revision, p.given_traits)
    return Conversation(key[1], head.model, head.create_time, head.update_time, head.ttl_s, head.completed, people)


def _difference(before: _State, after: Conversation) -> tuple[codec.Head, _Difference]:
    """The head of `after`, and what leads there. Entries are immutable: the same object is the same entry."""
    difference = _Difference()
    people = {}
    for name, participant in after.participants.items():
        old_head = before.parsed.participants.get(name) if before.parsed else None
        old_head = old_head or codec.ParticipantHead()
        old = before.conversation.participant(name) if before.conversation else Participant(name)
        records, turns = participant.records, participant.finished_turns
        people[name] = codec.ParticipantHead(
            participant.revision,
            participant.given_traits,
            _placed(f"r/{name}", old.records, old_head.records, records, id, codec.pack_record, difference),
            _placed(f"t/{name}", old.finished_turns, old_head.turns, turns, str, codec.pack_turn, difference),
        )
    incarnation = before.parsed.incarnation if before.parsed else secrets.token_hex(8)
    version = before.parsed.version + 1 if before.parsed else 0
    times = (after.create_time, after.update_time, after.ttl_s)
    return codec.Head(incarnation, version, after.model, *times, after.completed, people), difference


def _placed(
    field_prefix: str,
    old: Sequence[T],
    old_numbers: codec.Numbers,
    new: Sequence[T],
    identity: Callable[[T], object],
    pack: Callable[[T], bytes],
    difference: _Difference,
) -> codec.Numbers:
    """Numbers for the new entries: those they have, as long as these rise; otherwise the next ones."""
    if len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True)):
        return old_numbers
    known = {identity(entry): number for entry, number in zip(old, old_numbers.taken, strict=True)}
    following = old_numbers.next
    taken: list[int] = []
    for entry in new:
        number = known.get(identity(entry), -1)
        if number < 0 or (taken and number <= taken[-1]):
            number, following = following, following + 1
            difference.new[f"{field_prefix}/{number}"] = pack(entry)
        taken.append(number)
    stay = set(taken)
    difference.gone += [f"{field_prefix}/{number}" for number in old_numbers.taken if number not in stay]
    return codec.Numbers(tuple(taken), following)
