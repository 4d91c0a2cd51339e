"""Which fields of a hash a change writes."""

from dataclasses import replace

from kibun.server.conversation import codec
from kibun.server.conversation import redis_layout as layout
from kibun.server.conversation.state import (
    MAX_OPENINGS,
    MAX_PARTICIPANTS,
    MAX_RECORDS,
    Conversation,
    Opening,
    Participant,
    finish_turn,
)
from tests.support import present
from tests.support.stores import plain, record


def full_conversation(participants: int = MAX_PARTICIPANTS) -> Conversation:
    openings = {f"turn-{n:040}": Opening(1e9 + n / 7, 0) for n in range(MAX_OPENINGS)}
    records = [tuple(record(start=n, who=f"p{p}") for n in range(MAX_RECORDS)) for p in range(participants)]
    people = [Participant(f"p{n}", records[n], tuple(openings), 1, None, openings) for n in range(participants)]
    return Conversation("c", "m", 1.0, 1.0, 1800.0, participants={p.participant_id: p for p in people})


def stored(conversation: Conversation) -> layout.StoredConversation:
    head = present(layout.difference(layout.StoredConversation(), conversation).head)
    return layout.StoredConversation(codec.pack_head(head), b"", head, conversation)


def test_a_change_packs_only_the_participant_that_changed() -> None:
    whole = full_conversation()
    state = stored(whole)
    assert state.parsed
    after = whole.with_participant(finish_turn(whole.participant("p5"), "another"))
    change = layout.difference(state, after)
    assert change.head
    same = [name for name, head in change.head.participants.items() if head is state.parsed.participants[name]]
    assert same == [f"p{n}" for n in range(MAX_PARTICIPANTS) if n != 5]
    assert list(change.new) == [f"t/p5/{MAX_OPENINGS}"]
    assert (change.gone, change.whole) == ([], False)
    assert codec.unpack_head(codec.pack_head(change.head)) == change.head


def test_a_participant_that_is_gone_makes_all_new() -> None:
    whole = full_conversation(4)
    people = {name: p for name, p in whole.participants.items() if name in ("p1", "p2")}
    change = layout.difference(stored(whole), replace(whole, participants=people))
    assert change.whole
    assert len(change.new) == 2 * (MAX_RECORDS + MAX_OPENINGS)


def test_a_hash_gives_back_the_conversation() -> None:
    whole = full_conversation(3)
    change = layout.difference(layout.StoredConversation(), whole)
    assert change.head
    assert set(change.new) == set(layout.fields(change.head))
    entries = {field: layout.unpack_entry(field, value) for field, value in change.new.items()}
    assert plain(layout.conversation("c", codec.unpack_head(codec.pack_head(change.head)), entries)) == plain(whole)


def test_the_weight_of_a_conversation_counts_its_turns() -> None:
    people = {"p": Participant("p", (record(),), tuple(f"t{n}" for n in range(320)))}
    state = layout.StoredConversation(conversation=Conversation("c", "m", 1.0, 1.0, 60.0, participants=people))
    assert state.weight == 1 + 1 + 20
