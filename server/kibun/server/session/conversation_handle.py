"""One stream's handle on its conversation: the store's state of it, and the other streams that share it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.conversation.state import (
    MAX_PARTICIPANTS,
    NOTHING_TOLD,
    Conversation,
    Opening,
    Participant,
    Totals,
    UtteranceRecord,
    add_utterance,
    finish_turn,
    heard_until,
    is_superseded,
    note_missing,
    note_opening,
    note_settled,
    reopen_turn,
    resume_turn,
)
from kibun.server.conversation.store import ConversationStore
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import estimates
from kibun.server.session.capability import check_traits
from kibun.server.session.events import StreamOptions, StreamWarning
from kibun.server.session.open_streams import OpenStream, superseded
from kibun.server.session.outbox import Outbox

STORE_UNAVAILABLE = StreamWarning(
    "STORE_UNAVAILABLE",
    "the conversation store cannot be reached: this server goes on with what it knows of the conversation, and stores "
    "what is said once it can",
)
STORE_RECOVERED = StreamWarning("STORE_RECOVERED", "the conversation store is back and has all that was said")
CONVERSATION_DAMAGED = StreamWarning(
    "CONVERSATION_DAMAGED",
    "what was stored of the conversation cannot be read: all of it that this stream does not know is lost",
)

END = 2**62  # later than any sample
MAX_GAP = SAMPLE_RATE_HZ // 100  # samples; clients of other rates round


class _InUse(Exception):
    """Raised to leave a conversation as it is."""


class ConversationHandle:
    """Reads and changes the conversation and the participant of one stream. The `StreamHandle` that the store sees.

    Goes on from the state that it last saw if the store loses the conversation. Once the outbox has a failure (the
    conversation was deleted, the turn superseded) it stores nothing more, so that work in progress cannot recreate it.
    """

    def __init__(
        self, options: StreamOptions, model: ModelInfo, store: ConversationStore, stream: OpenStream, outbox: Outbox
    ) -> None:
        self._options = options
        self._model = model
        self._store = store
        self._stream = stream
        self._outbox = outbox
        self._entering = self._left = False
        self._given = options.given_traits  # …, or those known of the participant when the stream began
        self._openings: dict[str, Opening] = {}  # of the stream's turns
        self._told: dict[str, int] = {}  # finals of each turn that the client has or will get
        self._warned_of_damage = self._warned_of_bundle = False
        self.last_seen: Conversation | None = None
        self.missing: StreamWarning | None = None
        """What was lost of the turn that the stream resumes, as far as is known. After `enter`."""

    async def enter(self) -> bool:
        """Finds or creates the conversation and reopens the turn in it; True if it is new. Raises Failure."""
        await self._stream.wait_until_finished(self._options.turn_id)
        options, model = self._options, self._model
        turn_id, offset = options.turn_id, options.start_offset
        # By the last call of `enter`: the store repeats it after a conflict.
        created, restored, other_bundle = False, 0, False

        def enter(conversation: Conversation | None) -> Conversation:
            nonlocal created, restored, other_bundle
            created = conversation is None
            conversation = self._entered(conversation)
            before = conversation.participant(options.participant_id)
            given = options.given_traits or before.given_traits
            check_traits(model, emotion=options.emotion, given=given)
            heard = heard_until(before, turn_id)
            participant = reopened = self._opened_turn(before)
            if options.resumes and participant is not before:
                continues = offset == 0 or (heard is not None and offset - heard <= MAX_GAP)
                participant = resume_turn(reopened, turn_id, offset, options.told, continues=continues)
                restored = participant.utterance_count - reopened.utterance_count
            if self.last_seen is None:
                self._given = given
                has_lost = restored or (options.told != NOTHING_TOLD and participant.turn(turn_id).totals.missing)
                self.missing = None if has_lost else _missing_audio(turn_id, heard, offset)
            other_bundle = before.bundle != model.bundle and estimates.unusable(model, participant) > 0
            if other_bundle:
                participant = replace(participant, bundle=model.bundle)
            ttl_s = options.ttl_s if options.ttl_asked else conversation.ttl_s
            return replace(conversation, ttl_s=ttl_s).with_participant(replace(participant, given_traits=given))

        self._entering = True
        try:
            self.last_seen = await self._store.update(options.key, enter, self)
        except Exception:
            self._entering = False
            raise
        known = self.participant.turn(turn_id).totals
        self._told[turn_id] = known.utterances + known.missing
        if restored:
            self._outbox.warn(_restored(turn_id, restored))
        if known.missing and self.missing is None:
            self._outbox.warn(_missing(turn_id, known.missing))
        self._warn_of_bundle(told_before=not other_bundle)
        return created

    async def leave(self) -> None:
        """Leaves the conversation at the end of the stream, and erases it if it is blank and no longer in use.

        A stream on another server recreates it if it still has something to add.
        """
        self._left = True
        if not self._entering or (self.last_seen is not None and not _is_blank(self.last_seen)):
            return
        with suppress(Failure, _InUse):
            found = await self._store.get(self._options.key, self)

            def erase(conversation: Conversation | None) -> None:
                same = conversation is found or (
                    conversation and found and conversation.update_time == found.update_time
                )
                if found is None or not same or not _is_blank(found) or not self._stream.is_last:
                    raise _InUse

            await self._store.update(self._options.key, erase, self)

    @property
    def conversation(self) -> Conversation:
        """As last seen. Only after `enter`."""
        assert self.last_seen is not None
        return self.last_seen

    @property
    def opened(self) -> float:
        """When the stream's first turn was opened, as the store has it. Only after `enter`."""
        return self._openings[self._options.turn_id].when

    @property
    def participant(self) -> Participant:
        """The stream's participant, as last seen, with the given traits that the stream began with."""
        return self._participant_of(self.conversation)

    # ---- the store's StreamHandle

    def check_open(self) -> None:
        """Raises the failure that ended the stream.

        Not that of a stopping server: what it has sent to a client is still stored, as no other stream took the turn.
        """
        failure = self._outbox.failure
        if failure is not None and failure.kind is not Kind.UNAVAILABLE and not self._left:
            raise failure

    def notify_behind(self, is_behind: bool) -> None:
        if not self._left:
            self._outbox.warn(STORE_UNAVAILABLE if is_behind else STORE_RECOVERED)

    def notify_damaged(self) -> None:
        if not self._left and not self._warned_of_damage:
            self._warned_of_damage = True
            self._outbox.warn(CONVERSATION_DAMAGED)

    def reject(self, failure: Failure) -> None:
        if not self._left:
            self._outbox.end(failure)

    # ---- while the stream runs

    def resumed_after(self) -> UtteranceRecord | None:
        """The turn's last utterance before the stream, if it resumes a turn that had one."""
        records = self.participant.records_of(self._options.turn_id)
        before = [r for r in records if r.end <= self._options.start_offset]
        return max(before, key=lambda record: record.end, default=None)

    async def check_next_turn(self, turn_id: str) -> None:
        """Raises Failure unless the stream may go on with a turn of this id."""
        await self._stream.wait_until_finished(turn_id)
        if turn_id in self._stream.turn_ids:
            raise invalid("TURN_ID_REPEATED", "end_of_turn.next_turn_id", "the next turn needs a new id")
        await self.refresh()  # another stream may have finished that turn
        _check_unfinished(self.participant, turn_id)

    def claim_turn(self, turn_id: str) -> None:
        """Takes the turn for this stream, from any other that has yet to answer it."""
        self._stream.claim(turn_id)

    async def refresh(self) -> None:
        """Reads the conversation again, with what other streams have added."""
        self.last_seen = await self._store.get(self._options.key, self) or self.last_seen

    async def refresh_after_earlier(self) -> None:
        """As `refresh`, once the participant's earlier streams on this server are analysed so far."""
        await self._stream.wait_for_earlier()
        await self.refresh()
        self._warn_of_bundle()

    async def peek_after_earlier(self) -> Participant:
        """The participant as `refresh_after_earlier` would make it known, which stays as it is."""
        await self._stream.wait_for_earlier()
        return self._participant_of(await self._store.get(self._options.key, self) or self.conversation)

    async def update(self, change: Callable[[Participant], Participant]) -> None:
        """Changes the participant in the store. Raises the failure that ended the stream, if one did."""
        participant_id = self._options.participant_id

        def apply(conversation: Conversation | None) -> Conversation:
            assert conversation is not None  # at least the one last seen
            participant = conversation.participant(participant_id)
            changed = change(participant)
            return conversation if changed is participant else conversation.with_participant(changed)

        self.last_seen = await self._store.update(self._options.key, apply, self)

    async def add(self, record: UtteranceRecord) -> None:
        """Stores a final. Raises Failure SUPERSEDED if a stream on another server took over the turn before it."""
        turn_id = record.turn_id
        await self._update_turn(turn_id, record.start, lambda participant: add_utterance(participant, record))
        if turn_id in self._told:
            self._told[turn_id] += 1
        else:  # a later turn of this stream
            totals = self.participant.turn(turn_id).totals
            self._told[turn_id] = totals.utterances + totals.missing

    async def note_missing(self, turn_id: str, end: int) -> None:
        """Stores how many finals of the turn, which ends at sample `end`, were told and are known no more.

        None are, unless more changes waited for a store that was away than can. Raises as `add`.
        """
        told, known = self._told.get(turn_id, 0), self.participant.turn(turn_id).totals
        if told <= known.utterances + known.missing:
            return

        def note(participant: Participant) -> Participant:
            missing = told - participant.turn(turn_id).totals.utterances
            return note_missing(participant, turn_id, max(missing, 0), end + self._options.start_offset)

        await self._update_turn(turn_id, END, note)
        self._outbox.warn(_missing(turn_id, self.participant.turn(turn_id).totals.missing))

    async def note_settled(self, turn_id: str, position: int) -> None:
        """Stores that the turn may be resumed at sample `position`. Raises the failure that ended the stream."""

        def note(participant: Participant) -> Participant:
            opening = self._openings.setdefault(turn_id, _opening_after(participant.openings.get(turn_id), 0))
            return note_settled(participant, turn_id, opening, position)

        await self.update(note)

    async def finish_turn(self, turn_id: str) -> None:
        """Stores that the turn has its result. Raises as `add`."""
        with self._stream.finishing(turn_id):
            await self._update_turn(turn_id, END, lambda participant: finish_turn(participant, turn_id))
            self._stream.turn_ids.discard(turn_id)

    async def keep_alive(self) -> None:
        """Keeps the conversation from expiring while the stream is open, however long it is silent."""
        while True:
            await asyncio.sleep(self.conversation.ttl_s / 3)
            await self.update(lambda participant: participant)

    def _participant_of(self, conversation: Conversation) -> Participant:
        return replace(conversation.participant(self._options.participant_id), given_traits=self._given)

    async def _update_turn(self, turn_id: str, start: int, change: Callable[[Participant], Participant]) -> None:
        def unless_superseded(participant: Participant) -> Participant:
            last = participant.openings.get(turn_id)
            opening = self._openings.setdefault(turn_id, _opening_after(last, 0))  # a later turn of this stream
            if is_superseded(participant, turn_id, opening, start):
                raise superseded()
            return change(note_opening(participant, turn_id, opening))

        await self.update(unless_superseded)

    def _warn_of_bundle(self, *, told_before: bool = False) -> None:
        """Warns once of utterances that another bundle analysed, unless an earlier stream did (`told_before`)."""
        count = 0 if self._warned_of_bundle else estimates.unusable(self._model, self.participant)
        if count:
            self._warned_of_bundle = True
            if not told_before:
                name = self._model.name
                text = (
                    f"{count} utterances of this participant were analysed by another bundle of the name {name!r}: "
                    "their features are not used, traits over the conversation rest on the others"
                )
                self._outbox.warn(StreamWarning("MODEL_CHANGED", text, {"model": name, "utterance_count": str(count)}))

    def _opened_turn(self, participant: Participant) -> Participant:
        turn_id, offset = self._options.turn_id, self._options.start_offset
        last = participant.openings.get(turn_id)
        if self.last_seen is None:
            self._openings[turn_id] = _opening_after(last, offset, resumes=self._options.resumes)
        opening = self._openings[turn_id]
        if last is not None and last.when > opening.when:
            return participant  # this change reached the store late: another stream has taken the turn over meanwhile
        return note_opening(reopen_turn(participant, turn_id, offset), turn_id, opening)

    def _entered(self, conversation: Conversation | None) -> Conversation:
        if conversation is None:
            if self._options.require_existing:
                text = (
                    "no such conversation, or it has expired; leave require_existing_conversation unset "
                    "to begin a new one"
                )
                raise Failure(Kind.NOT_FOUND, "CONVERSATION_NOT_FOUND", text)
            now = time.time()
            return Conversation(self._options.conversation_id, self._model.name, now, now, self._options.ttl_s)
        if conversation.completed:
            text = "this conversation was completed; begin another with a new conversation_id"
            raise Failure(Kind.FAILED_PRECONDITION, "CONVERSATION_COMPLETED", text)
        if conversation.model != self._model.name:
            text = f"this conversation began with model {conversation.model!r}; ask for that one, or begin another"
            raise Failure(Kind.FAILED_PRECONDITION, "MODEL_MISMATCH", text)
        people = conversation.participants
        if self._options.participant_id not in people and len(people) >= MAX_PARTICIPANTS:
            text = (
                f"a conversation may have {MAX_PARTICIPANTS} participants, and this one has; begin another with a new "
                "conversation_id"
            )
            raise Failure(Kind.FAILED_PRECONDITION, "TOO_MANY_PARTICIPANTS", text)
        if not self._options.resumes and self.last_seen is None:  # once entered, it may have been this stream
            _check_unfinished(conversation.participant(self._options.participant_id), self._options.turn_id)
        return conversation


def _is_blank(conversation: Conversation) -> bool:
    people = conversation.participants.values()
    return not conversation.completed and not any(
        p.records or p.finished_turns or p.given_traits or p.dropped != Totals() for p in people
    )


def _opening_after(last: Opening | None, offset: int, *, resumes: bool = False) -> Opening:
    """An opening of a turn now: later than its last one, whatever clock that one was written by."""
    when = max(time.time(), math.nextafter(last.when, math.inf) if last else 0.0)
    return Opening(when, offset, resumes=resumes)


def _restored(turn_id: str, count: int) -> StreamWarning:
    text = (
        f"{count} utterances of this turn were lost with a server: counts, durations and emotion take them from "
        "resume_finals, traits over the conversation rest on the others"
    )
    return StreamWarning("UTTERANCES_RESTORED", text, {"turn_id": turn_id, "utterance_count": str(count)})


def _missing(turn_id: str, count: int) -> StreamWarning:
    text = (
        f"{count} or more utterances of this turn whose finals were sent were lost with a server: its result does not "
        "count them; to avoid that, resume with resume_finals"
    )
    return StreamWarning("UTTERANCES_MISSING", text, {"turn_id": turn_id, "utterance_count": str(count)})


def _check_unfinished(participant: Participant, turn_id: str) -> None:
    if turn_id in participant.finished_turns:
        text = f"turn {turn_id!r} already has its result: give the next turn a new turn_id, or set resume_turn"
        raise Failure(Kind.ALREADY_EXISTS, "TURN_FINISHED", text)


def _missing_audio(turn_id: str, heard: int | None, offset: int) -> StreamWarning | None:
    if heard is None or offset - heard <= MAX_GAP:
        return None
    settled_s, start_s = (f"{samples / SAMPLE_RATE_HZ:.4f}" for samples in (heard, offset))
    text = (
        f"the turn was heard up to {settled_s} s and goes on at {start_s} s: what was said between is lost; to resume "
        "a turn, set audio_start_offset to the end of its last final, or to settled_offset, and send what follows again"
    )
    return StreamWarning("AUDIO_MISSING", text, {"turn_id": turn_id, "settled_s": settled_s, "start_s": start_s})
