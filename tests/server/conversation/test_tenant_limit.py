"""How many conversations a tenant may have, so that no tenant fills the store of all others."""

import pytest

from kibun.server.conversation.state import Conversation
from kibun.server.conversation.tenant_limit import RECHECK_S, TenantLimit
from kibun.server.errors import Failure, Kind
from tests.support.stores import KINDS, StoreKind, adding, fresh, open_stores, record


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tenant_has_so_many_conversations_and_no_more(kind: StoreKind) -> None:
    async with open_stores(kind, tenant_conversations=3) as stores:
        store = stores.store
        for number in range(3):
            await store.update(("a", f"c{number}"), fresh)
        with pytest.raises(Failure, match="you have 3 conversations") as caught:
            await store.update(("a", "c3"), fresh)
        failure = caught.value
        assert (failure.kind, failure.reason) == (Kind.RESOURCE_EXHAUSTED, "TENANT_CONVERSATION_LIMIT")
        assert (failure.retry_after_s, failure.quota) == (RECHECK_S, "conversations of a tenant")
        assert await store.get(("a", "c3")) is None

        await store.update(("a", "c0"), adding(record()))  # those that it has go on
        await store.update(("b", "c3"), fresh)  # and others have their own
        assert await store.delete(("a", "c1"))
        await store.update(("a", "c3"), fresh)
        await store.update(("a", "c3"), lambda _: None)
        await store.update(("a", "c4"), fresh)
        with pytest.raises(Failure, match="you have 3 conversations"):
            await store.update(("a", "c5"), fresh)


def test_expired_conversations_no_longer_count() -> None:
    now = [1000.0]
    limit = TenantLimit(2, lambda: now[0])

    def make(name: str) -> None:
        limit.check(("a", name))
        limit.note(("a", name), Conversation(name, "m", now[0], now[0], 60.0))

    make("c0")
    now[0] += 30
    make("c1")
    with pytest.raises(Failure):
        make("c2")
    now[0] += 31  # c0 has expired
    make("c2")
    with pytest.raises(Failure):
        make("c3")
    now[0] += 61
    limit.sweep()
    assert len(limit) == 0


class CountedTime(float):
    """A time that counts how often another is compared with it."""

    comparisons = 0

    def __ge__(self, other: float) -> bool:
        CountedTime.comparisons += 1
        return super().__ge__(other)


def test_refusing_a_full_tenant_takes_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountedTime, "comparisons", 0)
    limit = TenantLimit(5_000, lambda: CountedTime(1000.0))
    for number in range(5_000):
        limit.note(("a", f"c{number}"), Conversation("c", "m", 1.0, 1000.0, 3600.0))
    for _ in range(100):
        with pytest.raises(Failure):
            limit.check(("a", "another"))
    assert CountedTime.comparisons == 5_000, "looked through once, and not again at once"
