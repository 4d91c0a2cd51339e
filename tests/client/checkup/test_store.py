"""Real Redis servers as `kibun doctor --store` finds them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kibun.client.checkup import store
from kibun.client.checkup.finding import Finding
from tests.support.redis_server import OwnRedis, command, own_redis

SECRET = "hunter2"
NEEDED = "~kibun:* +ping +hmget +hexists +eval +evalsha +hset +hdel +del +pexpire"

pytest.importorskip("redis", reason="needs the extra redis")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    with own_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


def examined(address: str) -> dict[str, Finding]:
    found = {finding.name: finding for finding in store.examine(address)}
    assert not any(SECRET in finding.detail for finding in found.values())
    return found


def test_one_that_lacks_nothing_but_a_disk(redis: OwnRedis) -> None:
    found = examined(redis.url)
    states = {name: finding.state for name, finding in found.items()}
    assert states.pop("store, persistence") == "warning"
    assert "CONFIG SET appendonly yes" in found["store, persistence"].detail
    assert set(states.values()) == {"ok"}, found
    assert found["store, version"].detail.startswith(("Redis ", "Valkey "))
    assert found["clock, store"].detail.startswith("the same within ")


async def test_memory_and_persistence(redis: OwnRedis) -> None:
    async def configured(**settings: str) -> dict[str, Finding]:
        for name, value in settings.items():
            await command(redis.url, "CONFIG", "SET", name.replace("_", "-"), value)
        return examined(redis.url)

    try:
        found = await configured(maxmemory="100mb", maxmemory_policy="allkeys-lru", appendonly="yes")
        assert found["store, memory"].state == "warning"
        assert "CONFIG SET maxmemory-policy noeviction" in found["store, memory"].detail
        assert found["store, persistence"].detail.startswith("append-only file")
        found = await configured(maxmemory_policy="noeviction", appendonly="no", save="60 1")
        assert found["store, memory"].state == "ok"
        assert found["store, persistence"].detail.startswith("snapshots (save 60 1)")
        used_mb = float(found["store, memory"].detail.split()[0])
        found = await configured(maxmemory=str(round(1.15e6 * used_mb)))
        assert (found["store, memory"].state, "raise maxmemory" in found["store, memory"].detail) == ("warning", True)
        found = await configured(maxmemory="1")
        assert found[f"store {redis.url}"].state == "broken"  # it refuses to store anything
        assert "kibun serve would not start: " in found[f"store {redis.url}"].detail
    finally:
        await configured(maxmemory="0", save="")


async def test_a_user_with_too_few_rights(redis: OwnRedis) -> None:
    async def as_user(*rights: str) -> dict[str, Finding]:
        await command(redis.url, "ACL", "SETUSER", "narrow", "reset", "on", f">{SECRET}", *rights)
        return examined(f"redis://narrow:{SECRET}@127.0.0.1:{redis.port}")

    found = await as_user("~kibun:*", "+ping")
    (finding,) = found.values()
    assert finding.state == "broken"
    assert NEEDED in finding.detail
    found = await as_user(*NEEDED.split())
    assert found[f"store {redis.url}"].state == "ok"
    assert found["store, watches"].state == "warning"
    assert "&kibun:* +publish +hstrlen +subscribe +unsubscribe" in found["store, watches"].detail
    assert found["store, server"].detail.endswith("the doctor needs +info")
    assert found["store, clock"].state == "absent"
    seen = ("+hstrlen", "&kibun:*", "+publish", "+subscribe", "+unsubscribe", "+info", "+time")
    found = await as_user(*NEEDED.split(), *seen)
    assert {found[name].state for name in ("store, watches", "store, version", "clock, store")} == {"ok"}
    assert found["store, persistence"].detail.endswith("the doctor needs +config|get")


def test_addresses_that_lead_nowhere(redis: OwnRedis) -> None:
    assert "refused the user name or password" in _only(f"redis://who:{SECRET}@127.0.0.1:{redis.port}")
    assert "no Redis or Valkey answers" in _only("redis://127.0.0.1:1")
    assert "does its port speak TLS" in _only(f"rediss://127.0.0.1:{redis.port}")
    assert "give memory, or an address that begins with redis://" in _only(f"http://who:{SECRET}@host")
    assert "not an address that can be read" in _only(f"redis://who:{SECRET}#@host")


def test_memory_is_a_store_too() -> None:
    (found,) = store.examine("memory")
    assert found.state == "ok"


def test_without_the_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "is_there", lambda name: False)
    assert "[redis]" in _only("redis://127.0.0.1:1")


def test_a_frozen_one_is_given_up(tmp_path: Path) -> None:
    with own_redis(tmp_path) as server:
        server.freeze()
        text = _only(server.url)
        server.thaw()
    assert "no Redis or Valkey answers" in text


def _only(address: str) -> str:
    (found,) = examined(address).values()
    assert found.state == "broken"
    return found.detail
