"""One watch: what a conversation holds and what its streams tell, each final and each turn's result once.

What is told live comes from the audience's queue. Where something of it may be missing (at the start, after a stream
was lost and resumed, after a slow reader or an outage) the store is read, and what the watcher does not have follows.
A stream tells a final only when the store has it, so nothing falls between the two; what it tells while the store is
away is told once more, as missed, when the store has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from kibun.server.conversation.audience import Notice, Watcher
from kibun.server.conversation.state import (
    MAX_FINISHED_TURNS,
    MAX_OPENINGS,
    MAX_RECORDS,
    Conversation,
    Opening,
    Participant,
    Totals,
    Turn,
    UtteranceRecord,
)
from kibun.server.conversation.store import ConversationStore, Key, StoreUnavailable
from kibun.server.errors import Failure, Kind
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import estimates
from kibun.server.session.events import Emotion, PersonalityUpdate, TurnResult, UtteranceResult

READ_AGAIN_S = 1.0  # pause before the store is asked again that did not answer


@dataclass(frozen=True, slots=True)
class WatchStarted:
    """conversation: as the store has it, None if it knows of none. past: how many `Past` follow."""

    conversation: Conversation | None
    past: int


@dataclass(frozen=True, slots=True)
class Past:
    """An event as the store knows it: a final, a turn's result, or a participant's latest traits."""

    participant_id: str
    turn_id: str
    event: UtteranceResult | TurnResult | PersonalityUpdate


@dataclass(frozen=True, slots=True)
class WatchGap:
    """Something is missing; `reason` as in the contract."""

    reason: str


@dataclass(frozen=True, slots=True)
class WatchEnded:
    """conversation: None where it was deleted."""

    conversation: Conversation | None


Watched = WatchStarted | Past | Notice | WatchGap | WatchEnded


class Watch:
    """Follows one conversation. `model_of` gives a model by name, None for one that is not served."""

    def __init__(
        self,
        key: Key,
        store: ConversationStore,
        model_of: Callable[[str], ModelInfo | None],
        *,
        include_past: bool,
        require_existing: bool,
    ) -> None:
        self._key = key
        self._store = store
        self._model_of = model_of
        self._include_past = include_past
        self._require_existing = require_existing
        self._has = _Delivered()
        self._unread = False  # the store may hold what the watcher lacks, and did not answer

    async def run(self) -> AsyncGenerator[Watched, None]:
        """Yields `WatchStarted` first and `WatchEnded` last. Must be closed (`aclosing`).

        Raises Failure CONVERSATION_NOT_FOUND and what the store raises.
        """
        audience = self._store.audience
        with audience.watcher(self._key) as watcher:
            hears_others = audience.relay is None or await audience.relay.listen(self._key)
            conversation = await self._store.get(self._key)
            if conversation is None and self._require_existing:
                text = "no such conversation, or it has expired; leave require_existing_conversation unset to wait"
                raise Failure(Kind.NOT_FOUND, "CONVERSATION_NOT_FOUND", text)
            past = self._lacking(conversation)
            yield WatchStarted(conversation, len(past) if self._include_past else 0)
            if self._include_past:
                for item in past:
                    yield item
            if not hears_others:
                yield WatchGap("OTHER_SERVERS_LOST")
            if conversation is not None and conversation.completed:
                yield WatchEnded(conversation)
                return
            async with aclosing(self._follow(watcher)) as live:
                async for watched in live:
                    yield watched

    async def _follow(self, watcher: Watcher) -> AsyncGenerator[Watched, None]:
        while True:
            notice = await self._next(watcher)
            if notice is not None and notice.kind == "deleted":
                yield WatchEnded(None)
                return
            if notice is not None and notice.reason:
                yield WatchGap(notice.reason)
            if notice is None or notice.kind in ("missed", "resumed", "completed"):
                conversation = await self._read()
                for item in self._lacking(conversation):
                    yield item
                if conversation is not None and conversation.completed:
                    if notice is not None and notice.kind == "completed":
                        yield WatchEnded(conversation)
                        return
                    watcher.offer(Notice("completed"))  # behind what waits; it may have been lost on its way
            if notice is not None and notice.payload and self._has.adds(notice):
                yield notice

    async def _next(self, watcher: Watcher) -> Notice | None:
        """The next notice; None where it is time to read the store again."""
        if not self._unread:
            return await watcher.get()
        try:
            async with asyncio.timeout(READ_AGAIN_S):
                return await watcher.get()
        except TimeoutError:
            return None

    async def _read(self) -> Conversation | None:
        try:
            conversation = await self._store.get(self._key)
        except StoreUnavailable:
            self._unread = True
            return None
        self._unread = False
        return conversation

    def _lacking(self, conversation: Conversation | None) -> list[Past]:
        """What the store holds and the watcher does not have, which it has from now on."""
        if conversation is None:
            return []
        self._has.follow(conversation)
        model = self._model_of(conversation.model)
        lacking = list[Past]()
        for participant in conversation.participants.values():
            new = [past for past in _stored(participant) if self._has.adds(_notice_of(past))]
            lacking += new
            traits = estimates.last_known(model, participant)
            if new and traits is not None:
                update = PersonalityUpdate(participant.participant_id, traits, participant.revision)
                lacking.append(replace(new[-1], event=update))
        return lacking


@dataclass(slots=True)
class _TurnHeard:
    finals: list[int] = field(default_factory=list)  # where the latest began
    reached: int = -1  # where the latest of them began, unless a stream has gone back since
    has_result: bool = False
    opened: float = 0.0  # by the latest stream of which this is known

    def adds_final(self, start: int) -> bool:
        if start in self.finals:
            return False
        self.finals.append(start)
        del self.finals[:-MAX_RECORDS]
        self.reached, self.has_result = max(self.reached, start), False
        return True

    def adds_result(self) -> bool:
        self.has_result, had = True, self.has_result
        return not had

    def go_back(self, opened: float, start: int, *, anew: bool) -> None:
        """A stream opened the turn: goes on with it from there, and finals may come again, or has finals of its own.

        Does nothing where this was known already: the store may have told it before the stream did.
        """
        if opened <= self.opened:
            return
        self.opened = opened
        self.reached = min(self.reached, start - 1)
        if anew:
            self.finals = [final for final in self.finals if final < start]
            self.has_result = False


class _Delivered:
    """What a watcher has: of each participant, the latest turns and their latest finals."""

    def __init__(self) -> None:
        self._turns: dict[str, dict[str, _TurnHeard]] = {}
        self._create_time: float | None = None

    def follow(self, conversation: Conversation) -> None:
        """Learns which streams opened its turns. Forgets everything if this is another one of the same name."""
        if self._create_time not in (None, conversation.create_time):
            self._turns.clear()
        self._create_time = conversation.create_time
        for participant in conversation.participants.values():
            for turn_id, opening in _openings(participant):
                turn = self._turn(participant.participant_id, turn_id)
                if turn.opened:
                    turn.go_back(opening.when, opening.offset, anew=not opening.resumes)
                else:  # a later turn of a stream, which tells no opening
                    turn.opened = opening.when

    def adds(self, notice: Notice) -> bool:
        """Whether the watcher does not have that yet; from now on it has."""
        if notice.kind not in ("began", "resumed", "interim", "final", "turn_result"):
            return True
        turn = self._turn(notice.participant_id, notice.turn_id)
        match notice.kind:
            case "final":
                return turn.adds_final(notice.start)
            case "interim":
                return notice.start > turn.reached and notice.start not in turn.finals
            case "turn_result":
                return turn.adds_result()
        turn.go_back(notice.opened, notice.start, anew=notice.kind == "began")
        return True

    def _turn(self, participant_id: str, turn_id: str) -> _TurnHeard:
        turns = self._turns.setdefault(participant_id, {})
        turn = turns.pop(turn_id, None) or _TurnHeard()
        turns[turn_id] = turn  # the latest
        if len(turns) > 2 * MAX_FINISHED_TURNS:
            del turns[next(iter(turns))]
        return turn


def _openings(participant: Participant) -> Iterator[tuple[str, Opening]]:
    """Of the turns of a participant, the last of each; of those whose opening is not kept, one before all kept."""
    kept = participant.openings
    if len(kept) == MAX_OPENINGS:
        before = Opening(min(opening.when for opening in kept.values()), 0, resumes=True)
        turns = dict.fromkeys((*participant.finished_turns, *(r.turn_id for r in participant.records)))
        yield from ((turn_id, before) for turn_id in turns if turn_id not in kept)
    yield from kept.items()


def _notice_of(past: Past) -> Notice:
    if isinstance(past.event, UtteranceResult):
        return Notice("final", past.participant_id, past.turn_id, past.event.start)
    return Notice("turn_result", past.participant_id, past.turn_id)


def _stored(participant: Participant) -> Iterator[Past]:
    """The finals of a participant in order, and after those of a finished turn its result.

    Not the results of turns all of whose utterances are beyond those that are kept: they cannot be told from turns in
    which nothing was said.
    """
    records: dict[str, list[UtteranceRecord]] = {turn_id: [] for turn_id in participant.finished_turns}
    for record in participant.records:
        records.setdefault(record.turn_id, []).append(record)
    finished = set(participant.finished_turns)
    knows_all = participant.dropped == Totals()
    for turn_id, said in records.items():
        for record in said:
            yield Past(participant.participant_id, turn_id, _final_of(record))
        if turn_id in finished and (said or knows_all or turn_id in participant.earlier):
            turn = participant.earlier.get(turn_id, Turn()).plus(said)
            yield Past(participant.participant_id, turn_id, _result_of(turn_id, turn))


def _final_of(record: UtteranceRecord) -> UtteranceResult:
    return UtteranceResult(
        utterance_id=record.utterance_id,
        turn_id=record.turn_id,
        is_final=True,
        start=record.start,
        end=record.end,
        analyzed=record.speech,
        emotion=Emotion(*record.emotion) if record.emotion else None,
        personality=None,
        condition=None,
        reason=record.reason,
    )


def _result_of(turn_id: str, turn: Turn) -> TurnResult:
    return TurnResult(
        turn_id=turn_id,
        start=turn.start or 0,
        end=turn.end or 0,
        utterance_count=turn.totals.utterances,
        speech=turn.totals.speech,
        emotion=estimates.mean_emotion(turn.totals),
        personality=None,
        reason=None,
        missing=turn.totals.missing,
        missing_before=turn.missing_before,
    )
