"""Examines the Redis or Valkey of `KIBUN_STORE` for `kibun doctor`, which runs this as a program of its own.

    python -m kibun.server.conversation.store_checkup

prints one JSON object: `findings`, each a name, a state (ok, absent, warning, broken) and a text that says what is
wrong, why that matters and the fix; `clock`, what TIME told between two readings of this machine's clock, or null. The
address comes by the environment, as it may hold a password: no text shows that.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kibun.server.conversation.redis_connection import (
    Address,
    AddressError,
    AnswersError,
    CannotConnect,
    NotAllowed,
    RedisConnection,
)
from kibun.server.conversation.redis_store import RedisStore
from kibun.server.errors import Failure

ANSWER_S = 5.0
MIN_VERSION = (6, 2)
# A store is held for slow from 0.3 s on (resilient_store); a third of that leaves room for a busy moment.
SLOW_S = 0.1
NEARLY_FULL = 0.8


@dataclass
class Checkup:
    """What was found so far."""

    findings: list[tuple[str, str, str]] = field(default_factory=list)
    clock: tuple[float, float, float] | None = None

    def add(self, name: str, state: str, detail: str) -> None:
        self.findings.append((name, state, detail))


async def examine(url: str) -> Checkup:
    """Examines the store at an address as `kibun serve --store` takes it."""
    checkup = Checkup()
    try:
        address = Address.parse(url)
        connection = RedisConnection(address)
    except (AddressError, OSError) as error:  # OSError: a certificate cannot be read
        checkup.add("store", "broken", f"--store: {error}")
        return checkup
    try:
        await _examine(checkup, address, connection)
    finally:
        await connection.close()
    return checkup


async def _examine(checkup: Checkup, address: Address, connection: RedisConnection) -> None:
    name = f"store {address.place}"
    try:
        await RedisStore(connection).first_contact()
    except CannotConnect as error:
        checkup.add(name, "broken", f"kibun serve would not start: {error}{_remedy(address, error)}")
        return
    checkup.add(name, "ok", f"answers, and allows what conversations need under the prefix {address.prefix}")
    if not address.is_private:
        text = (
            "is on another machine, and without TLS anyone in between can read what is stored about people, so that "
            "kibun serve refuses it: give rediss://, or --insecure to the server where something else protects it"
        )
        checkup.add("store, privacy", "warning", text)
    await _watches(checkup, address, connection)
    await _speed_and_clock(checkup, connection)
    told = await _asked(checkup, connection, "store, server", "INFO")
    if isinstance(told, dict):
        _version(checkup, told)
        _memory(checkup, told)
        await _persistence(checkup, connection, told)


def _remedy(address: Address, error: CannotConnect) -> str:
    if not isinstance(error, NotAllowed):
        return ""
    return (
        f": ACL SETUSER name-of-the-user ~{address.prefix}:* +ping +hmget +hexists +eval +evalsha +hset +hdel +del "
        "+pexpire +hstrlen gives its user what is needed"
    )


async def _watches(checkup: Checkup, address: Address, connection: RedisConnection) -> None:
    """What a server can do without, but not a watch that is to hear the streams of other servers."""
    channel = f"{address.prefix}:checkup-{secrets.token_hex(4)}"
    missing = ["+publish", "+hstrlen", "+subscribe +unsubscribe"]
    with suppress(CannotConnect):
        await connection.attempt("PUBLISH", channel, b"")
        missing.remove("+publish")
    with suppress(CannotConnect):
        await connection.attempt("HSTRLEN", f"{address.prefix}:{{/checkup}}", "head")
        missing.remove("+hstrlen")
    with suppress(Failure):
        async with connection.subscription() as subscription:
            for word in ("SUBSCRIBE", "UNSUBSCRIBE"):
                await subscription.send(word, channel)
                await subscription.receive(ANSWER_S)
        missing.remove("+subscribe +unsubscribe")
    if missing:
        text = (
            f"its user lacks {' '.join(missing)}: without publish and subscribe watches do not hear the streams of "
            "other servers, without hstrlen a huge value that another program wrote holds everybody up: ACL SETUSER "
            f"name-of-the-user &{address.prefix}:* {' '.join(missing)}"
        )
        checkup.add("store, watches", "warning", text)
    else:
        checkup.add("store, watches", "ok", "hear the streams of all servers that share it")


async def _speed_and_clock(checkup: Checkup, connection: RedisConnection) -> None:
    best_s = float("inf")
    for _ in range(5):
        begin, asked_at = time.monotonic(), time.time()
        told = await _asked(checkup, connection, "store, clock", "TIME")
        if told is None:
            return
        took_s = time.monotonic() - begin
        if took_s < best_s:
            best_s = took_s
            checkup.clock = (asked_at, told[0] + told[1] / 1e6, asked_at + took_s)
    if best_s > SLOW_S:
        text = (
            f"its fastest of five answers took {best_s:.2f} s: two in a row above 0.3 s count as an outage, and "
            "streams then go on without it: move it nearer, or relieve it"
        )
        checkup.add("store, speed", "warning", text)
    else:
        checkup.add("store, speed", "ok", f"answers in {1000 * best_s:.2g} ms")


async def _asked(checkup: Checkup, connection: RedisConnection, name: str, *command: str) -> Any:
    """The answer to what an operator may forbid; None where it is forbidden."""
    try:
        return await connection.attempt(*command)
    except AnswersError:
        right = "+" + command[0].lower().replace(" ", "|")
        checkup.add(name, "absent", f"not seen, as its user may not ask: kibun does without, the doctor needs {right}")
    except CannotConnect as error:
        checkup.add(name, "warning", str(error))
    return None


def _version(checkup: Checkup, told: dict[str, Any]) -> None:
    text = str(told.get("redis_version", ""))
    brand = f"Valkey {told['valkey_version']}" if "valkey_version" in told else f"Redis {text}"
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if parts < MIN_VERSION:
        text = f"{brand}: kibun needs {'.'.join(map(str, MIN_VERSION))} or newer: update it"
        checkup.add("store, version", "broken", text)
    elif told.get("cluster_enabled"):
        text = f"{brand} as a cluster, in which commands are sent elsewhere: kibun needs a single server"
        checkup.add("store, version", "broken", text)
    else:
        checkup.add("store, version", "ok", brand)


def _memory(checkup: Checkup, told: dict[str, Any]) -> None:
    used, limit, policy = (told.get(key) for key in ("used_memory", "maxmemory", "maxmemory_policy"))
    if not isinstance(used, int) or not isinstance(limit, int):
        return
    name, shown = "store, memory", f"{used / 1e6:.3g} MB used"
    if limit == 0:
        checkup.add(name, "ok", f"{shown}, no maxmemory: it may take all that the machine has (docs/store.md: sizes)")
        return
    shown = f"{shown} of {limit / 1e6:.3g} MB, {policy}"
    if policy != "noeviction":
        text = (
            f"{shown}: where it is full it evicts conversations, which then count as lost, also while people speak: "
            "CONFIG SET maxmemory-policy noeviction, or raise maxmemory until it never is"
        )
        checkup.add(name, "warning", text)
    elif used > NEARLY_FULL * limit:
        text = (
            f"{shown}: once full it refuses to store, which counts as an outage for everybody: raise maxmemory, or "
            "store conversations for a shorter time (kibun serve --conversation-ttl)"
        )
        checkup.add(name, "warning", text)
    else:
        checkup.add(name, "ok", shown)


async def _persistence(checkup: Checkup, connection: RedisConnection, told: dict[str, Any]) -> None:
    name = "store, persistence"
    for status, what in (("rdb_last_bgsave_status", "snapshot"), ("aof_last_write_status", "write of its log")):
        if told.get(status, "ok") != "ok":
            text = (
                f"its last {what} failed, after which Redis refuses changes (MISCONF), an outage for everybody: look "
                "at its log, and at the space and rights of its disk"
            )
            checkup.add(name, "broken", text)
            return
    if told.get("aof_enabled"):
        checkup.add(name, "ok", "append-only file: a restart loses a second at most")
        return
    config = await _asked(checkup, connection, name, "CONFIG GET", "save")
    if config is None:
        return
    saves = str(config.get("save", "")) if isinstance(config, dict) else ""
    if saves:
        checkup.add(name, "ok", f"snapshots (save {saves}): a restart loses what came after the last one")
    else:
        text = (
            "none: a restart of it loses every conversation that no open stream knows; where that matters, CONFIG SET "
            "appendonly yes"
        )
        checkup.add(name, "warning", text)


if __name__ == "__main__":
    result = asyncio.run(examine(os.environ["KIBUN_STORE"]))
    print(json.dumps({"findings": result.findings, "clock": result.clock}))
