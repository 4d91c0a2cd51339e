"""Reads and writes the hash of one conversation.

The key is `PREFIX:{TENANT/CONVERSATION}`; ids hold none of these signs, so that no id can name another's key. The
fields are those of `redis_layout`.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import replace

from kibun.server.conversation import codec, validity
from kibun.server.conversation import redis_layout as layout
from kibun.server.conversation.redis_connection import RedisConnection, Script, WrongType
from kibun.server.conversation.redis_layout import StoredConversation
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import Key
from kibun.server.errors import RETRY_AFTER_S, Failure, Kind

log = logging.getLogger(__name__)
READ_AT_ONCE = 256  # records (0.4 MB), so that neither Redis nor this server is busy with one conversation for long
LIMITS = (validity.MAX_HEAD_BYTES, validity.MAX_ENTRY_BYTES)
DELETED_TTL_S = 1.0  # how long the mark of a deletion stays where the conversation's time to live cannot be read

# What both scripts give in place of a value that is larger than any that servers write: to read it would take so long
# that the store counted as away, for all conversations. A user who may not ask for lengths goes without.
TOO_LARGE = b"\0too large"
_GET = """
local function get(fields, head_limit, entry_limit)
  local small, at = {}, {}
  for i, field in ipairs(fields) do
    local length = redis.pcall('HSTRLEN', KEYS[1], field)
    if type(length) ~= 'number' or length <= tonumber(i > 2 and entry_limit or head_limit) then
      small[#small + 1], at[#at + 1] = field, i
    end
  end
  local values = {}
  for i = 1, #fields do values[i] = '\\0too large' end
  if #small == 0 then return values end
  local found = redis.pcall('HMGET', KEYS[1], unpack(small))
  if found.err then return found end
  for i = 1, #small do values[at[i]] = found[i] end
  return values
end
"""

# Reads fields. Values: the limits of the first two and of the others, the fields.
_READ = Script(_GET + "return get({unpack(ARGV, 3)}, ARGV[1], ARGV[2])")

# Writes a conversation if it is as the caller knows it; otherwise returns how it is. A key of another type is replaced
# by a caller that knows of nothing there; others get a third value. Values: the limit of the first two, `head` and
# `deleted` as known ("" for none), `head` to write ("" to erase), `deleted` to write, milliseconds to live, 1 where all
# entries are new, the number of fields to delete, their names, then names and values of the new entries. The head is
# set before DEL: a full Redis refuses what needs memory, but nothing more once a script has written something. Returns
# 1 when it has written, 2 where there were entries without a head.
_WRITE = Script(
    _GET
    + """
local known = get({'head', 'deleted'}, table.remove(ARGV, 1))
if known.err then
  if not string.find(known.err, 'WRONGTYPE') then return known end
  if ARGV[1] ~= '' or ARGV[2] ~= '' then return {false, false, 1} end
  redis.call('DEL', KEYS[1])
  known = {false, false}
end
if (known[1] or '') ~= ARGV[1] or (known[2] or '') ~= ARGV[2] then return known end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'head', ARGV[3]) end
local left = 0
if ARGV[3] == '' or ARGV[6] == '1' then
  if not known[1] and not known[2] then redis.call('HDEL', KEYS[1], 'head') end
  left = redis.call('DEL', KEYS[1])
end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'deleted', ARGV[4]) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'head', ARGV[3]) end
local gone = tonumber(ARGV[7])
for i = 8, 7 + gone do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 8 + gone, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if left == 1 and not known[1] and not known[2] then return 2 end
return 1
"""
)


class RedisHash:
    """One conversation's hash. All methods raise as `RedisConnection.call` does."""

    def __init__(self, connection: RedisConnection, key: Key) -> None:
        self._connection = connection
        self._conversation_id = key[1]
        self._name = f"{connection.address.prefix}:{{{key[0]}/{key[1]}}}"

    async def attempt(self) -> None:
        """Tries every command that is needed. Raises CannotConnect."""
        await self._connection.attempt("HEXISTS", self._name, "head")
        await self._connection.attempt("EVAL", _READ.source, 1, self._name, *LIMITS, "head", "deleted")
        values = (
            1,
            self._name,
            LIMITS[0],
            "",
            "",
            "check",
            "",
            1000,
            1,
            1,
            "none",
            "check",
            "check",
        )  # gone after a second
        await self._connection.attempt("EVAL", _WRITE.source, *values)
        await self._connection.attempt("EVALSHA", _WRITE.sha, *values)

    async def exists(self) -> bool:
        with suppress(WrongType):
            return bool(await self._connection.call("HEXISTS", self._name, "head"))
        return False

    async def read(self, known: StoredConversation | None) -> StoredConversation:
        """The state now; entries that `known` has are not read again. Raises Failure CONVERSATION_VERSION.

        A damaged conversation counts as none: nothing of it is used, and the next change replaces it. One of a newer
        version is left alone: servers of that version can read it.
        """
        try:
            head, deleted = await self._connection.run(_READ, self._name, *LIMITS, "head", "deleted")
            return await self._complete(head, deleted, known)
        except WrongType:
            return _damaged(b"", b"", "the key is of another type")

    async def write(
        self, before: StoredConversation, after: Conversation | None, deleted: bytes | None = None
    ) -> tuple[StoredConversation, bool]:
        """Replaces the conversation, if it is still in the state `before`; None erases it.

        `deleted` is what the field of that name becomes, None where it stays as it is. Returns the state now and
        whether it is the one to be written; it is then marked as damaged where it replaced what could not be read and
        `before` did not know of.
        """
        if after is None and not before.head and not before.damaged and deleted is None:
            return before, True
        kept = before.deleted if before.deleted_create_time is not None else b""
        marker = kept if deleted is None else deleted
        change = layout.difference(before, after)
        head = codec.pack_head(change.head) if change.head else b""
        conversation = after or before.conversation
        ttl_s = conversation.ttl_s if conversation else DELETED_TTL_S
        answer = await self._connection.run(
            _WRITE,
            self._name,
            LIMITS[0],
            *(before.head, before.deleted, head, marker, max(1, math.ceil(ttl_s * 1000)), int(change.whole)),
            *(len(change.gone), *change.gone, *(part for pair in change.new.items() for part in pair)),
        )
        if isinstance(answer, list):
            if len(answer) > 2:
                return _damaged(b"", b"", "the key is of another type"), False
            if (answer[0] or b"", answer[1] or b"") != (head, marker):  # otherwise the first answer was lost
                return await self._complete(answer[0], answer[1], before), False
        written = StoredConversation(head, marker, change.head, after)
        if answer == 2 and after is not None:
            _damaged(b"", b"", "there were entries without a head")
            written = replace(written, damaged=True)
        return written, True

    async def _complete(
        self, head: bytes | None, deleted: bytes | None, known: StoredConversation | None
    ) -> StoredConversation:
        """The state with this head, of entries that are known and entries read now; a newer one where it changes."""
        for value, why in ((b"", "an empty value"), (TOO_LARGE, "larger than such a value can be")):
            if value in (head, deleted):
                return _damaged(head or b"", deleted or b"", why)
        head, deleted = head or b"", deleted or b""
        if known is not None and known.head == head:
            return replace(known, deleted=deleted)
        try:
            if deleted:
                validity.check_deleted(deleted)
            return await self._read_entries(head, deleted, known)
        except codec.Damaged as damage:
            return _damaged(head, deleted, str(damage))
        except WrongType:
            return _damaged(b"", b"", "the key is of another type")
        except codec.NewerVersion:
            text = "the conversation was stored by a newer version of this server; try again to reach one of that"
            raise Failure(Kind.UNAVAILABLE, "CONVERSATION_VERSION", text, retry_after_s=RETRY_AFTER_S) from None

    async def _read_entries(self, head: bytes, deleted: bytes, known: StoredConversation | None) -> StoredConversation:
        incarnation = known.parsed.message.incarnation if known and known.parsed else ""
        entries = layout.entries(known) if known else {}
        while head:
            parsed = layout.unpack_head(head)
            if parsed.message.incarnation != incarnation:
                incarnation, entries = parsed.message.incarnation, {}
            missing = [field for field in layout.fields(parsed) if field not in entries]
            now = head
            while missing and now == head:
                some, missing = missing[:READ_AT_ONCE], missing[READ_AT_ONCE:]
                answer = await self._connection.run(_READ, self._name, *LIMITS, "head", "deleted", *some)
                now, deleted, values = answer[0] or b"", answer[1] or b"", answer[2:]
                found = zip(some, values, strict=True)
                entries |= {field: layout.unpack_entry(field, value) for field, value in found if value is not None}
                if now == head and None in values:
                    raise codec.Damaged("an entry is not there")
            if now == head:
                return StoredConversation(
                    head, deleted, parsed, layout.conversation(self._conversation_id, parsed, entries)
                )
            head = now  # changed in between: what was read stays true
        return StoredConversation(deleted=deleted)


def _damaged(head: bytes, deleted: bytes, why: str) -> StoredConversation:
    log.warning("a conversation in the store is damaged: it counts as lost", extra={"reason": why})
    return StoredConversation(head, deleted, damaged=True)
