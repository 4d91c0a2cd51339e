"""A conversation that others speak into, watched: what they are told, as it is told to them."""

import asyncio
import math
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Self

from kibun.client.checks import check_timeout
from kibun.client.errors import DeadlineError, ErrorDetails, InternalError, KibunError, MisuseError, UnavailableError
from kibun.client.estimates import seconds
from kibun.client.events import Event, WatchEnded, WatchStarted, is_droppable, watched_event
from kibun.client.options import RetryPolicy
from kibun.client.resources import ConversationState
from kibun.client.retry import RetryBudget, may_retry
from kibun.client.transport import Transport, running_loop
from kibun.v1 import speech_analysis_pb2 as pb

# How long a server that is there may take to accept a watch, unless the caller says it.
ACCEPT_TIMEOUT_S = 30.0
# Events that may wait for a caller who does not iterate; beyond that, interims and speech events are dropped.
MAX_WAITING_EVENTS = 1024
# Turns of a participant whose finals are remembered, so that none comes twice after a lost connection.
MAX_TURNS = 8192
# Finals of a turn that are remembered: as many of a participant as the server keeps.
MAX_FINALS = 512


@dataclass(frozen=True, kw_only=True)
class Watched:
    """An event of a watched conversation, and whose it is."""

    # "" for what concerns the whole conversation: WatchStarted, WatchGap, WatchEnded.
    participant_id: str
    # The turn of that participant, also where the event itself names none.
    turn_id: str
    # As a turn or stream would have it, or WatchStarted, WatchGap, WatchEnded.
    event: Event
    # Read from the store: a final, a turn's result or traits, without what is not kept.
    past: bool = False
    # As received.
    response: pb.WatchConversationResponse | None = field(default=None, repr=False, compare=False)


class AsyncWatch:
    """A watch, made by `AsyncConversation.watch`: an async context manager and an async iterator of `Watched`.

        async with conversation.watch(include_past=True) as watch:
            async for watched in watch:
                print(watched.participant_id, watched.event)

    The iteration ends after `WatchEnded`, when the conversation was completed or deleted. When the connection is lost,
    the watch is opened again; a `WatchStarted` whose `reconnects` counts comes first, then the finals and results that
    were missed meanwhile, none of them twice. What the store does not keep (interims, speech events, warnings) is lost.
    """

    def __init__(
        self,
        transport: Transport,
        conversation_id: str,
        retry: RetryPolicy,
        *,
        include_past: bool,
        require_existing: bool,
    ) -> None:
        # The past is always asked for: it tells what need not be told again after a reconnect.
        self._request = pb.WatchConversationRequest(
            conversation_id=conversation_id, include_past=True, require_existing_conversation=require_existing
        )
        self._transport = transport
        self._wants_past = include_past
        self._retries = RetryBudget(retry)
        self._reconnects = 0
        self._accepted_at: float | None = None
        self._has = _Received()
        self._waiting: asyncio.Queue[Watched | None] = asyncio.Queue()
        self._opened = asyncio.Event()
        self._over = asyncio.Event()
        self._error: BaseException | None = None
        self._started: WatchStarted | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._someone_waits = False
        self._past_left = 0
        self._hold = _Hold(self)

    async def open(self, timeout_s: float | None = None) -> WatchStarted:
        """Opens the watch and waits until the server accepted it; `async with` does so by itself.

        Raises KibunError, DeadlineError after `timeout_s` (None: the client's, if it was given one), MisuseError if the
        watch is over.
        """
        check_timeout(timeout_s)
        if self._task is None:
            self._transport.add_stream(self._hold)
            self._loop = running_loop()
            self._task = self._loop.create_task(self._run())
        elif self._over.is_set():
            raise MisuseError("this watch is over, and can be used once: make another one", ErrorDetails("USED_TWICE"))
        self._check_open()
        within_s = timeout_s or self._transport.timeout_s
        try:
            async with asyncio.timeout(within_s):
                await self._opened.wait()
        except TimeoutError:
            await self.cancel()
            text = f"{self._transport.target} did not accept the watch within {within_s} s"
            raise DeadlineError(text, ErrorDetails(reason="OPEN_TIMEOUT")) from None
        except asyncio.CancelledError:
            await self.cancel()
            raise
        return self.started

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()

    @property
    def started(self) -> WatchStarted:
        """What the conversation was when the watch began; after a reconnect, when it began again."""
        if self._started is None:
            self._check_open()
            if self._error is not None:
                raise self._error
            raise MisuseError("the server has not accepted the watch yet", ErrorDetails(reason="NOT_OPEN"))
        return self._started

    async def cancel(self) -> None:
        """Ends the watch at once. Harmless when it is not open."""
        if self._task is not None and not self._task.done():
            self._check_open()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def __aiter__(self) -> AsyncIterator[Watched]:
        self._check_open()
        return self

    async def __anext__(self) -> Watched:
        self._check_open()
        if self._someone_waits:
            raise MisuseError(
                "two loops iterate over this watch at once, and each would get some of the events: use one, and hand "
                "events on from there",
                ErrorDetails(reason="READ_TWICE"),
            )
        self._someone_waits = True
        try:
            watched = await self._waiting.get()
        finally:
            self._someone_waits = False
        if watched is not None:
            return watched
        self._waiting.put_nowait(None)  # further iterations end as well
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    # -- calls, one after the other

    def _check_open(self) -> None:
        if self._loop is None:
            way = "client.conversation(…).watch() as watch"
            raise MisuseError(
                f"this watch is not open: write `async with {way}:` (with kibun.client.Client: `with {way}:`)",
                ErrorDetails(reason="NOT_OPEN"),
            )
        if not self._over.is_set() and running_loop() is not self._loop:
            raise MisuseError(
                "this watch was opened in another event loop: open and use it within one",
                ErrorDetails(reason="WRONG_EVENT_LOOP"),
            )

    async def _run(self) -> None:
        try:
            await self._run_attempts()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._error = self._error or error.with_traceback(None)  # which would keep the call
        finally:
            self._over.set()
            self._opened.set()
            self._waiting.put_nowait(None)

    async def _run_attempts(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._accepted_at = None
            reached_before, resumes = self._transport.was_accepted, self._started is not None
            try:
                return await self._attempt()
            except KibunError as error:
                if not may_retry(error, accepted=self._accepted_at is not None, resumes=resumes):
                    raise
                pause_s = self._retries.pause_s(
                    error, now=loop.time(), accepted_at=self._accepted_at, reached_before=reached_before
                )
                if pause_s is None:
                    raise
            # Spread, so that the clients of a restarted server don't all come back at once.
            await asyncio.sleep(pause_s * random.uniform(1.0, 1.25))
            self._reconnects += self._accepted_at is not None

    async def _attempt(self) -> None:
        self._transport.add_stream(self._hold)
        call = self._transport.watch_conversation(self._request)
        try:
            within_s = self._transport.timeout_s or ACCEPT_TIMEOUT_S
            try:
                async with asyncio.timeout(within_s):
                    response = await call.read()
            except TimeoutError:
                text = f"{self._transport.target} did not accept the watch within {within_s:g} s: it answers nothing"
                details = ErrorDetails(reason="OPEN_TIMEOUT")
                raise (DeadlineError if self._started is None else UnavailableError)(text, details) from None
            while response is not None:
                if self._take(response):
                    return
                call.request_id = self.started.request_id or None
                response = await call.read()
        finally:
            call.cancel()
        raise InternalError(
            f"{self._transport.target} closed the watch without giving a reason: see the server's log",
            ErrorDetails(reason="STREAM_CUT", request_id=call.request_id),
        )

    def _take(self, response: pb.WatchConversationResponse) -> bool:
        """Hands on what is new in a response; True if nothing will follow."""
        event = watched_event(response, reconnects=self._reconnects)
        if event is None:  # of a newer server
            return False
        if isinstance(event, WatchStarted):
            self._begin(event)
        elif not self._reconnects and response.past and self._past_left and not self._wants_past:
            self._past_left -= 1
            self._has.adds(response)
            return False
        if response.HasField("event"):
            self._retries.reset()
            if not self._has.adds(response):
                return False
        watched = Watched(
            participant_id=response.participant_id,
            turn_id=response.turn_id,
            event=event,
            past=response.past,
            response=response,
        )
        if not (is_droppable(event) and self._waiting.qsize() >= MAX_WAITING_EVENTS):
            self._waiting.put_nowait(watched)
        return isinstance(event, WatchEnded)

    def _begin(self, started: WatchStarted) -> None:
        self._accepted_at = asyncio.get_running_loop().time()
        self._transport.was_accepted = True
        self._past_left = started.past_response_count
        self._has.follow(started.conversation)
        self._started = started
        self._opened.set()


class _Hold:
    """What the transport has of a watch: how to end it. It cannot pause for a fork unless it is over."""

    def __init__(self, watch: AsyncWatch) -> None:
        self._watch = watch

    def fail(self, error: BaseException) -> None:
        self._watch._error = self._watch._error or error
        if self._watch._task is not None:
            self._watch._task.cancel()

    @property
    def can_pause(self) -> bool:
        return self._watch._over.is_set()

    async def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


@dataclass(slots=True)
class _TurnHeard:
    finals: list[float] = field(default_factory=list)  # where the latest began, in seconds
    reached: float = -1.0  # where the latest of them began, unless a stream has gone back since
    has_result: bool = False

    def adds_utterance(self, start_s: float, *, is_final: bool) -> bool:
        if start_s in self.finals:
            return False
        if not is_final:
            return start_s > self.reached
        self.finals.append(start_s)
        del self.finals[:-MAX_FINALS]
        self.reached, self.has_result = max(self.reached, start_s), False
        return True

    def adds_result(self) -> bool:
        self.has_result, had = True, self.has_result
        return not had

    def go_back(self, start_s: float, *, anew: bool) -> None:
        """A stream goes on from there: with the turn, whose finals may come again, or anew, with finals of its own."""
        self.reached = min(self.reached, math.nextafter(start_s, -1.0))
        if anew:
            self.finals = [final for final in self.finals if final < start_s]
            self.has_result = False


class _Received:
    """What has arrived: the latest turns of each participant and their latest finals, as the server counts them."""

    def __init__(self) -> None:
        self._turns: dict[str, dict[str, _TurnHeard]] = {}
        self._revisions: dict[str, int] = {}
        self._create_time: datetime | None = None

    def follow(self, conversation: ConversationState | None) -> None:
        """Forgets everything if this is another conversation of the same name."""
        if conversation is None or conversation.create_time == self._create_time:
            return
        if self._create_time is not None:
            self._turns.clear()
            self._revisions.clear()
        self._create_time = conversation.create_time

    def adds(self, response: pb.WatchConversationResponse) -> bool:
        """Whether it has not arrived yet; from now on it has."""
        event, participant_id = response.event, response.participant_id
        if event.HasField("personality_update"):
            revision = event.personality_update.revision
            if response.past and revision <= self._revisions.get(participant_id, 0):
                return False
            self._revisions[participant_id] = revision
            return True
        turns = self._turns.setdefault(participant_id, {})
        turn = turns.pop(response.turn_id, None) or _TurnHeard()
        turns[response.turn_id] = turn  # the latest
        if len(turns) > MAX_TURNS:
            del turns[next(iter(turns))]
        if event.HasField("turn_result"):
            return turn.adds_result()
        if event.HasField("utterance_result"):
            utterance = event.utterance_result
            return turn.adds_utterance(seconds(utterance.start_offset), is_final=utterance.is_final)
        if event.HasField("stream_started"):
            config = event.stream_started.effective_config
            turn.go_back(seconds(config.audio_start_offset), anew=not config.resume_turn)
        return True
