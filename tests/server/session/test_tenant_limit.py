"""What a conversation and a tenant may hold, so that nobody's store is slow or full because of somebody else."""

import time
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from kibun.server.api import convert
from kibun.server.api.service import ServiceLimits
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation import codec
from kibun.server.conversation import redis_layout as store_layout
from kibun.server.conversation.state import (
    MAX_OPENINGS,
    MAX_PARTICIPANTS,
    MAX_RECORDS,
    Conversation,
    Opening,
    Participant,
    finish_turn,
)
from kibun.server.conversation.store import ConversationStore
from kibun.server.conversation.tenant_limit import LOOK_AGAIN_S, Room
from kibun.server.errors import Failure, Kind, StartError
from kibun.server.session.events import Audio
from kibun.server.settings import Settings
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support.scripted import MODEL
from tests.support.session_world import TRAITS, OpenSession, World, open_and_drop, pcm, run
from tests.support.stores import Stores, adding, fresh, record, stores

__all__ = ["stores"]


# ---- participants of a conversation


async def test_a_conversation_has_so_many_participants_and_no_more() -> None:
    here = World()
    for number in range(MAX_PARTICIPANTS):
        await open_and_drop(here.session(participant_id=f"p{number}", given_traits=TRAITS))
    with pytest.raises(Failure, match="begin another") as caught:
        await run(here.session(participant_id="one-more"), Audio(pcm((0, 0.1))))
    assert (caught.value.kind, caught.value.reason) == (Kind.FAILED_PRECONDITION, "TOO_MANY_PARTICIPANTS")
    assert len((await here.conversation()).participants) == MAX_PARTICIPANTS
    async with OpenSession(here.session(participant_id="p7", turn_id="t2")):
        pass  # those who are in it go on


async def test_empty_turns_make_no_endless_conversation() -> None:
    """Nothing is said: a config and the end of the stream are enough to be remembered."""
    here = World()
    refused = 0
    for number in range(MAX_PARTICIPANTS + 5):
        try:
            await run(here.session(participant_id=f"p{number}"))
        except Failure as failure:
            assert failure.reason == "TOO_MANY_PARTICIPANTS"  # noqa: PT017
            refused += 1
    assert refused == 5


def full_conversation() -> Conversation:
    openings = {f"turn-{n:040}": Opening(1e9 + n / 7, 0) for n in range(MAX_OPENINGS)}
    records = tuple(record(start=n) for n in range(MAX_RECORDS))
    people = [Participant(f"p{n}", records, tuple(openings), 1, None, openings) for n in range(MAX_PARTICIPANTS)]
    return Conversation("c", "m", 1.0, 1.0, 1800.0, participants={p.participant_id: p for p in people})


def test_a_change_looks_at_the_participant_that_changed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = full_conversation()
    head, _ = store_layout.difference_to(store_layout.State(), whole)
    state = store_layout.State(codec.pack_head(head), b"", head, whole)
    looked_at: list[str] = []
    placed = store_layout._placed

    def watched(prefix: str, *rest: object) -> object:
        looked_at.append(prefix)
        return placed(prefix, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store_layout, "_placed", watched)
    after = whole.with_participant(finish_turn(whole.participant("p5"), "another"))
    changed, difference = store_layout.difference_to(state, after)
    assert looked_at == ["r/p5", "t/p5"]
    assert list(difference.new) == [f"t/p5/{MAX_OPENINGS}"]
    assert codec.unpack_head(codec.pack_head(changed)) == changed


def test_what_a_conversation_weighs_counts_its_turns() -> None:
    people = {"p": Participant("p", (record(),), tuple(f"t{n}" for n in range(320)))}
    state = store_layout.State(conversation=Conversation("c", "m", 1.0, 1.0, 60.0, participants=people))
    assert store_layout.weight(state) == 1 + 1 + 20


# ---- conversations of a tenant


def room_of(store: ConversationStore) -> Room:
    inner = getattr(store, "_store", store)
    room = getattr(inner, "room", None) or inner._room
    assert isinstance(room, Room)
    return room


async def test_a_tenant_has_so_many_conversations_and_no_more(stores: Stores) -> None:
    store = stores.store
    room_of(store)._limit = 3
    for number in range(3):
        await store.update(("a", f"c{number}"), fresh)
    with pytest.raises(Failure, match="3 conversations of yours") as caught:
        await store.update(("a", "c3"), fresh)
    failure = caught.value
    assert (failure.kind, failure.reason) == (Kind.RESOURCE_EXHAUSTED, "TENANT_CONVERSATION_LIMIT")
    assert (failure.retry_after_s, failure.quota) == (LOOK_AGAIN_S, "conversations of a tenant")
    assert await store.get(("a", "c3")) is None

    await store.update(("a", "c0"), adding(record()))  # those that it has go on
    await store.update(("b", "c3"), fresh)  # and others have their own
    assert await store.delete(("a", "c1"))
    await store.update(("a", "c3"), fresh)
    await store.update(("a", "c3"), lambda _: None)
    await store.update(("a", "c4"), fresh)
    with pytest.raises(Failure, match="3 conversations"):
        await store.update(("a", "c5"), fresh)


def test_conversations_that_have_expired_make_room() -> None:
    now = [1000.0]
    room = Room(2, lambda: now[0])

    def make(name: str) -> None:
        room.check(("a", name))
        room.note(("a", name), Conversation(name, "m", now[0], now[0], 60.0))

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
    room.sweep()
    assert not room._tenants
    assert not room._looked


def test_a_full_tenant_is_refused_in_no_time() -> None:
    room = Room(50_000, time.time)
    for number in range(50_000):
        room.note(("a", f"c{number}"), Conversation("c", "m", 1.0, time.time(), 3600.0))
    looks = 0
    look: Callable[[str], None] = room._forget_expired

    def counted(tenant: str) -> None:
        nonlocal looks
        looks += 1
        look(tenant)

    room._forget_expired = counted  # type: ignore[method-assign]
    for _ in range(100):
        with pytest.raises(Failure):
            room.check(("a", "another"))
    assert looks <= 2


# ---- how long


@pytest.mark.parametrize(("longest_s", "asked_s", "allowed"), [(3600.0, 3600, True), (3600.0, 3601, False)])
def test_a_client_may_ask_for_as_long_as_the_operator_allows(longest_s: float, asked_s: int, allowed: bool) -> None:
    defaults = convert.Defaults((MODEL,), EndpointingOptions(), 1800.0, lambda kind: f"{kind}-1", longest_s)
    config = pb.StreamingAnalyzeConfig(conversation_ttl=Duration(seconds=asked_s))
    config.audio_config.encoding, config.audio_config.sample_rate_hertz = pb.AUDIO_ENCODING_LINEAR16, 16_000
    if allowed:
        assert convert.stream_options(config, tenant="", defaults=defaults).ttl_s == asked_s
        return
    with pytest.raises(Failure, match="conversation_ttl must be 1 to 3600 s") as caught:
        convert.stream_options(config, tenant="", defaults=defaults)
    assert (caught.value.reason, caught.value.field) == ("INVALID_DURATION", "conversation_ttl")


def test_the_default_is_no_longer_than_the_longest() -> None:
    Settings(("m",), limits=ServiceLimits(conversation_ttl_s=60, max_conversation_ttl_s=60))
    with pytest.raises(StartError, match=r"--conversation-ttl is above --max-conversation-ttl \(60 s\)"):
        Settings(("m",), limits=ServiceLimits(conversation_ttl_s=61, max_conversation_ttl_s=60))
