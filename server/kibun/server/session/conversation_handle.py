"""The conversation as one stream holds it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from kibun.server.conversation.state import (
    MAX_PARTICIPANTS,
    Conversation,
    Opening,
    Participant,
    UtteranceRecord,
    add_utterance,
    finish_turn,
    is_superseded,
    note_opening,
    reopen_turn,
)
from kibun.server.conversation.store import ConversationStore
from kibun.server.errors import Failure, Kind
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.capability import check_traits
from kibun.server.session.events import StreamOptions, StreamWarning
from kibun.server.session.open_streams import OpenStream, superseded

STORE_UNAVAILABLE = StreamWarning(
    "STORE_UNAVAILABLE",
    "the conversation store cannot be reached: this server goes on with what it knows of the conversation, and stores "
    "what is said once it can",
)
STORE_RECOVERED = StreamWarning("STORE_RECOVERED", "the conversation store is back and has all that was said")


END = 2**62  # later than any sample


class _InUse(Exception):
    """Leaves a conversation as it is."""


class ConversationHandle:
    """What a stream knows of its conversation and of its own participant in it; the store's `StreamHandle`.

    A stream goes on from what it last saw where the store loses the conversation. Once `ended` has a failure
    (deleted, superseded) nothing more is stored: what is still under way must not bring anything back.
    """

    def __init__(
        self,
        options: StreamOptions,
        model: ModelInfo,
        store: ConversationStore,
        ended: asyncio.Future[Exception],
        live: OpenStream,
    ) -> None:
        self._options = options
        self._model = model
        self._store = store
        self._ended = ended
        self._live: OpenStream | None = live  # until the stream leaves
        self._key = (options.tenant, options.conversation_id)
        self._entering = False
        self._openings: dict[str, Opening] = {}  # of the stream's turns
        self._seen: Conversation | None = None

    async def enter(self) -> bool:
        """Finds or makes the conversation and reopens the turn in it; True when it is new. Raises Failure."""
        created = False

        def enter(conversation: Conversation | None) -> Conversation:
            nonlocal created
            created = conversation is None
            conversation = self._entered(conversation)
            participant = conversation.participant(self._options.participant_id)
            given = self._options.given_traits or participant.given_traits
            check_traits(self._model, emotion=self._options.emotion, given=given)
            reopened = self._opened_turn(participant)
            ttl_s = self._options.ttl_s if self._options.ttl_asked else conversation.ttl_s
            return replace(conversation, ttl_s=ttl_s).with_participant(replace(reopened, given_traits=given))

        self._entering = True
        try:
            self._seen = await self._store.update(self._key, enter, self)
        except Exception:
            self._entering = False
            raise
        return created

    async def leave(self, alone: Callable[[], bool]) -> None:
        """The stream has ended. A conversation in which nothing was said or given leaves nothing behind, once its last
        stream has left: `alone` tells whether no other stream of it is open on this server. One on another server
        that has yet to say something brings it back when it does.
        """
        self._live = None
        if not self._entering or (self._seen is not None and not _is_blank(self._seen)):
            return
        with suppress(Failure, _InUse):
            found = await self._store.get(self._key, self)

            def erase(conversation: Conversation | None) -> None:
                same = conversation is found or (
                    conversation and found and conversation.update_time == found.update_time
                )
                if found is None or not same or not _is_blank(found) or not alone():
                    raise _InUse

            await self._store.update(self._key, erase, self)

    @property
    def conversation(self) -> Conversation:
        assert self._seen is not None  # entered
        return self._seen

    @property
    def participant(self) -> Participant:
        return self.conversation.participant(self._options.participant_id)

    # ---- as the store's StreamHandle

    @property
    def last_seen(self) -> Conversation | None:
        return self._seen

    def check_open(self) -> None:
        """What a server that stops has written to a client is stored all the same: nobody took the turn from it."""
        if self._live is not None and self._ended.done():
            failure = self._ended.result()
            if not (isinstance(failure, Failure) and failure.kind is Kind.UNAVAILABLE):
                raise failure

    def notify_behind(self, is_behind: bool) -> None:
        if self._live is not None:
            self._live.warn(STORE_UNAVAILABLE if is_behind else STORE_RECOVERED)

    def reject(self, failure: Failure) -> None:
        if self._live is not None:
            self._live.end(failure)

    # ---- while the stream runs

    def resumed_after(self) -> UtteranceRecord | None:
        """The utterance at whose end the stream begins, if it resumes its turn there."""
        records = self.participant.turn(self._options.turn_id)
        return next((r for r in records if r.end == self._options.start_offset), None)

    def check_unfinished(self, turn_id: str) -> None:
        _check_unfinished(self.participant, turn_id)

    async def refresh(self) -> None:
        """Sees what other streams have added."""
        self._seen = await self._store.get(self._key, self) or self._seen

    async def update(self, change: Callable[[Participant], Participant]) -> None:
        """Changes the participant in the store. Raises the failure that ended the stream, if one did."""
        participant_id = self._options.participant_id

        def apply(conversation: Conversation | None) -> Conversation:
            assert conversation is not None  # at least what is held
            participant = conversation.participant(participant_id)
            changed = change(participant)
            return conversation if changed is participant else conversation.with_participant(changed)

        self._seen = await self._store.update(self._key, apply, self)

    async def add(self, record: UtteranceRecord) -> None:
        """Stores a final. Raises Failure SUPERSEDED where a stream on another server took over the turn before it."""
        await self._update_turn(record.turn_id, record.start, lambda participant: add_utterance(participant, record))

    async def finish_turn(self, turn_id: str) -> None:
        """Raises as `add`."""
        await self._update_turn(turn_id, END, lambda participant: finish_turn(participant, turn_id))

    async def _update_turn(self, turn_id: str, start: int, change: Callable[[Participant], Participant]) -> None:
        opening = self._openings.setdefault(turn_id, Opening(time.time(), 0))  # a later turn of this stream

        def unless_superseded(participant: Participant) -> Participant:
            if is_superseded(participant, turn_id, opening, start):
                raise superseded()
            return change(note_opening(participant, turn_id, opening))

        await self.update(unless_superseded)

    def _opened_turn(self, participant: Participant) -> Participant:
        turn_id, offset = self._options.turn_id, self._options.start_offset
        last = participant.openings.get(turn_id)
        if self._seen is None:
            when = max(time.time(), math.nextafter(last.when, math.inf) if last else 0.0)
            self._openings[turn_id] = Opening(when, offset)
        opening = self._openings[turn_id]
        if last is not None and last.when > opening.when:
            return participant  # told to the store late: meanwhile another stream has taken the turn over
        return note_opening(reopen_turn(participant, turn_id, offset), turn_id, opening)

    async def keep_alive(self) -> None:
        """Keeps the conversation from expiring while the stream is open, however long it is silent."""
        while True:
            await asyncio.sleep(self.conversation.ttl_s / 3)
            await self.update(lambda participant: participant)

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
        if not self._options.resumes and self._seen is None:  # once entered, it may have been this stream
            _check_unfinished(conversation.participant(self._options.participant_id), self._options.turn_id)
        return conversation


def _is_blank(conversation: Conversation) -> bool:
    people = conversation.participants.values()
    return not conversation.completed and not any(p.records or p.finished_turns or p.given_traits for p in people)


def _check_unfinished(participant: Participant, turn_id: str) -> None:
    if turn_id in participant.finished_turns:
        text = f"turn {turn_id!r} already has its result: give the next turn a new turn_id, or set resume_turn"
        raise Failure(Kind.ALREADY_EXISTS, "TURN_FINISHED", text)
