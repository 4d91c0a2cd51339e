"""A tap on the audio of a dialogue framework: frames go in from any thread, estimates come out, nobody is held up.

Adapters of frameworks are made of this, and so can be any program that has audio frames and knows, or does not know,
who is speaking. It copies, queues and forgets: `push` never waits and never raises for what a server does.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from kibun.client.checks import check_value
from kibun.client.client import AsyncClient
from kibun.client.errors import ErrorDetails, InvalidRequestError, KibunError, TurnEndedError
from kibun.client.estimates import Traits
from kibun.client.events import (
    PersonalityUpdate,
    SpeechEvent,
    SpeechEventType,
    StreamStarted,
    TurnResult,
    UtteranceResult,
    is_droppable,
)
from kibun.client.options import Endpointing, Features
from kibun.client.turn import AsyncTurn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = bytes | bytearray | memoryview | NDArray[np.int16] | NDArray[np.float32]

log = logging.getLogger(__name__)

Mode = Literal["turn", "conversation"]
SelfSpeech = Literal["drop", "mark", "keep"]

MIN_RATE_HZ, MAX_RATE_HZ = 8000, 48000
# Silence that ends a turn in mode "conversation", unless `endpointing` has another.
END_OF_TURN_SILENCE_MS = 1500
# Estimates that may wait for who iterates; beyond, interims are left out, and in the end the oldest.
MAX_WAITING = 512
# Turns whose outcome `final` still knows.
MAX_OUTCOMES = 256
# Pauses after a failure, during which no turn is opened.
PAUSES_S = (1.0, 30.0)
# What was sent in the last seconds, for the turn after one that the server ended while more was on its way.
RECENT_S = 30.0
# By how much a frame's time may differ from where its predecessor ended: clocks of frameworks jitter.
JITTER_S = 0.02
# The same where no times are given, and only arrival is known.
ARRIVAL_JITTER_S = 0.2


@dataclass(frozen=True, kw_only=True)
class TapEstimate:
    """An event of a turn, with its times on the caller's clock."""

    participant_id: str
    turn_id: str
    event: UtteranceResult | PersonalityUpdate | TurnResult
    # When the utterance or turn began and ended, in seconds on the clock of `t`; None: of a PersonalityUpdate.
    start_t: float | None
    end_t: float | None
    # Said, at least in part, while the agent spoke: the audio may hold its voice. Always False with self_speech="keep".
    overlapped: bool


@dataclass
class TapCounts:
    """What has become of the samples that were pushed, each at the rate that it was pushed with."""

    pushed: int = 0
    sent: int = 0
    # The oldest of a queue that was full, or of a turn that failed or could not be opened.
    dropped: int = 0
    # Left out as the agent was speaking.
    gated: int = 0
    # No rate, several channels without a rule, or no audio at all.
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Block:
    """Mono int16 samples. t: of the first, in seconds on the caller's clock."""

    data: bytes
    rate_hz: int
    t: float
    gated: bool

    @property
    def samples(self) -> int:
        return len(self.data) // 2

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz

    @property
    def end_t(self) -> float:
        return self.t + self.seconds

    def without(self, samples: int) -> "_Block":
        """What is left behind the first `samples`."""
        return replace(self, data=self.data[2 * samples :], t=self.t + samples / self.rate_hz)


class AffectTap:
    """Feeds one participant's audio into a conversation, and gives estimates back, without holding its host up.

        async with AffectTap(client, conversation_id="table-4", mode="turn") as tap:
            framework.on_audio(lambda frame: tap.push(frame.pcm, sample_rate_hz=frame.rate, channels=frame.channels))
            framework.on_user_started(lambda: tap.turn_start("t1"))
            framework.on_user_stopped(lambda: tap.turn_end())
            async for estimate in tap.estimates():
                ...

    mode: "turn": the host says when the user's turn starts and ends, what is pushed in between is sent, and so is up
    to `pre_roll_ms` before, as frameworks notice speech late. "conversation": everything is sent, and the server ends
    turns by silence.

    self_speech: what happens to audio while the agent speaks (`agent_speaking`) and `tail_ms` after. "drop": it is not
    sent. "mark": it is sent, and the estimates are `overlapped`. "keep": it is sent as if nothing were. A turn that the
    host starts while the agent speaks is barge-in: it is sent with "drop" too, is `overlapped`, and does not count
    towards the user's traits.

    queue_ms: audio that may wait for a slow network or an absent server; beyond that, the oldest is dropped, and
    counted.
    channel: which channel (from 1) of frames with several to take, "mix" for their mean; None refuses such frames.
    on_problem: called in the event loop with what went wrong: once, until it has gone well again or another thing goes
    wrong. By default, it is logged as a warning.

    `push`, `turn_start`, `turn_end` and `agent_speaking` may be called from any thread, return at once, and raise
    nothing, whatever a server does. Their `t` is a time in seconds on a clock of the caller's, the same for all; by
    default `time.monotonic()` at the call.

    Raises InvalidRequestError for an option of the wrong type or out of range.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        conversation_id: str | None = None,
        participant_id: str = "user",
        mode: Mode = "turn",
        self_speech: SelfSpeech = "drop",
        tail_ms: int = 300,
        pre_roll_ms: int = 500,
        queue_ms: int = 2000,
        channel: int | Literal["mix"] | None = None,
        features: Features | None = None,
        endpointing: Endpointing | None = None,
        model: str = "",
        given_personality: Traits | None = None,
        on_problem: Callable[[KibunError], None] | None = None,
    ) -> None:
        check_value("client", client, AsyncClient)
        _check_choice("mode", mode, ("turn", "conversation"))
        _check_choice("self_speech", self_speech, ("drop", "mark", "keep"))
        for name, value, most in (("tail_ms", tail_ms, 10_000), ("pre_roll_ms", pre_roll_ms, 10_000)):
            _check_range(name, value, 0, most)
        _check_range("queue_ms", queue_ms, 100, 60_000)
        if channel is not None and channel != "mix":
            _check_range("channel", channel, 1, 64)
        self.counts = TapCounts()
        self.participant_id = participant_id
        self._conversation = client.conversation(conversation_id)
        self._mode = mode
        self._self_speech = self_speech
        self._tail_s = tail_ms / 1000
        self._pre_roll_s = pre_roll_ms / 1000
        self._queue_s = queue_ms / 1000
        self._channel = channel
        endpointing = endpointing or Endpointing()
        if mode == "conversation" and endpointing.end_of_turn_silence_ms is None:
            endpointing = replace(endpointing, end_of_turn_silence_ms=END_OF_TURN_SILENCE_MS)
        self._features = features or Features()
        self._options: dict[str, Any] = {
            "endpointing": endpointing,
            "model": model,
            "given_personality": given_personality,
        }
        self._on_problem = on_problem or _log_problem
        # ---- guarded by the lock
        self._lock = threading.Lock()
        self._before: deque[_Block] = deque()  # outside turns
        self._turn: _TapTurn | None = None
        self._latest: _TapTurn | None = None
        self._outcomes: OrderedDict[str, Future[TapEstimate | None]] = OrderedDict()
        self._agent_since: float | None = None
        self._quiet_from = float("-inf")
        self._next_t: float | None = None
        self._closed = False
        # ---- of the event loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[TapEstimate] = deque()
        self._more = asyncio.Event()
        self._launched: _TapTurn | None = None  # the latest
        self._told: set[str] = set()
        self._pause_s = 0.0
        self._paused_until = float("-inf")

    @property
    def conversation_id(self) -> str:
        """Of the conversation that it feeds, also if it was made here."""
        return self._conversation.conversation_id

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        with self._lock:
            turn = self._turn
        if turn is not None:  # pushed or started before
            self._launch(turn)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(wait_s=0.0 if error is not None else 5.0)

    async def close(self, *, wait_s: float = 5.0) -> None:
        """Ends the open turn, waits for its answers up to `wait_s`, and takes no more. The iteration ends."""
        with self._lock:
            self._closed = True
            self._end()
        if self._tasks and wait_s:
            await asyncio.wait(self._tasks, timeout=wait_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._more.set()

    # ---- what the host says, from any thread

    def push(
        self, pcm: "Frame", *, sample_rate_hz: int | None = None, channels: int = 1, t: float | None = None
    ) -> bool:
        """Takes a frame; False if it was refused or the tap is closed (`counts` and `on_problem` tell which).

        pcm: little-endian int16 bytes, channels interleaved, or an array of int16 or of float32 within ±1, of shape
        (n,) or (n, channels). It is copied. sample_rate_hz: 8000 to 48000; the server resamples. When it changes, the
        turn goes on in another stream. t: of its first sample.
        """
        samples, problem = _mono(pcm, sample_rate_hz, channels, self._channel)
        if samples is None or sample_rate_hz is None:
            with self._lock:
                self.counts.refused += _size_of(pcm) // max(channels, 1)
            self._tell(_refused(problem))
            return False
        with self._lock:
            if self._closed:
                return False
            self.counts.pushed += len(samples) // 2
            if samples:
                self._take(self._block(samples, sample_rate_hz, t))
        return True

    def turn_start(self, turn_id: str | None = None, *, t: float | None = None) -> str:
        """The user's turn starts, or was found to have started at `t`. Returns its id. An open turn is ended."""
        t = time.monotonic() if t is None else t
        turn_id = turn_id or f"turn-{uuid.uuid4().hex[:12]}"
        with self._lock:
            if self._closed:
                return turn_id
            self._end()
            overlapped = self._self_speech != "keep" and self._is_agents(t, t)
            begins_t = t - self._pre_roll_s
            before = [
                block.without(max(round((begins_t - block.t) * block.rate_hz), 0))
                for block in self._before
                if overlapped or not (block.gated and self._self_speech == "drop")
            ]
            self._before.clear()
            self._open(turn_id, overlapped=overlapped)
            for block in before:
                if block.data:
                    self._take(block, again=True)
        return turn_id

    def turn_end(self, turn_id: str | None = None) -> None:
        """The user's turn is over; nothing happens if it is not open, or another is."""
        with self._lock:
            if self._turn is not None and turn_id in (None, self._turn.turn_id, self._turn.asked_id):
                self._end()

    def agent_speaking(self, on: bool, *, t: float | None = None) -> None:
        """The agent begins or stops to be heard, at `t`."""
        t = time.monotonic() if t is None else t
        with self._lock:
            if on:
                self._agent_since = t if self._agent_since is None else self._agent_since
            elif self._agent_since is not None:
                self._agent_since, self._quiet_from = None, t + self._tail_s

    # ---- what the host gets, in the event loop

    async def estimates(self) -> AsyncIterator[TapEstimate]:
        """Interims (if `features` has them), finals, updates of traits and results of turns, until the tap is closed.

        To be iterated once. Who does not iterate loses interims, and beyond 512 waiting the oldest.
        """
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._closed:
                return
            self._more.clear()
            await self._more.wait()

    async def final(self, turn_id: str | None = None, timeout_s: float | None = None) -> TapEstimate | None:
        """The result of a turn, by default of the latest; None if it failed, is unknown, or takes longer than that."""
        with self._lock:
            latest = self._latest.turn_id if self._latest else ""
            outcome = self._outcomes.get(turn_id or latest)
        if outcome is None:
            return None
        waited: asyncio.Future[TapEstimate | None] = asyncio.wrap_future(outcome)
        done, _ = await asyncio.wait({waited}, timeout=timeout_s)
        return waited.result() if done else None

    # ---- under the lock

    def _block(self, data: bytes, rate_hz: int, t: float | None) -> _Block:
        seconds = len(data) / 2 / rate_hz
        if t is None:
            arrived, expected = time.monotonic() - seconds, self._next_t
            t = expected if expected is not None and abs(arrived - expected) < ARRIVAL_JITTER_S else arrived
        self._next_t = t + seconds
        return _Block(data, rate_hz, t, self._is_agents(t, t + seconds))

    def _is_agents(self, start_t: float, end_t: float) -> bool:
        speaks = self._agent_since is not None and end_t >= self._agent_since
        return speaks or start_t < self._quiet_from

    def _take(self, block: _Block, *, again: bool = False) -> None:
        turn = self._turn
        dropped = block.gated and self._self_speech == "drop"
        if turn is None and self._mode == "conversation" and not dropped:
            if time.monotonic() < self._paused_until:
                self.counts.dropped += block.samples
                return
            turn = self._open(f"turn-{uuid.uuid4().hex[:12]}", overlapped=False)
        if turn is None or (dropped and not turn.overlapped):
            if dropped and not again:
                self.counts.gated += block.samples
            if turn is None:
                self._keep(block)
            return
        if turn.rate_hz not in (0, block.rate_hz):
            turn = self._go_on(turn)
        turn.add(block, marked=block.gated and self._self_speech == "mark")

    def _keep(self, block: _Block) -> None:
        """Remembers what was heard outside turns, for the beginning of the next."""
        if self._mode == "turn":
            self._before.append(block)
            while self._before and self._before[0].end_t < block.end_t - self._pre_roll_s:
                self._before.popleft()

    def _open(self, turn_id: str, *, overlapped: bool, asked_id: str = "") -> "_TapTurn":
        outcome: Future[TapEstimate | None] = Future()
        self._outcomes[turn_id] = outcome
        while len(self._outcomes) > MAX_OUTCOMES:
            self._outcomes.popitem(last=False)
        turn = _TapTurn(turn_id, asked_id or turn_id, overlapped, self._queue_s, self.counts, self._lock, outcome)
        self._turn = self._latest = turn
        if self._loop is not None:
            self._call(self._launch, turn)
        return turn

    def _go_on(self, turn: "_TapTurn") -> "_TapTurn":
        """Ends a stream, and goes on with the host's turn in another."""
        self._end()
        return self._open(
            f"{turn.asked_id}.{turn.part + 1}", overlapped=turn.overlapped, asked_id=turn.asked_id
        ).follows(turn)

    def _end(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.end()
            if self._loop is None:
                turn.fail()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            assert self._loop is not None
            self._loop.call_soon_threadsafe(function, *arguments)

    # ---- in the event loop

    def _launch(self, turn: "_TapTurn") -> None:
        earlier, self._launched = self._launched, turn
        task = asyncio.ensure_future(self._serve(turn, earlier))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, turn: "_TapTurn", earlier: "_TapTurn | None") -> None:
        turn.bind(asyncio.get_running_loop())
        try:
            rate_hz = await turn.first_rate()
            if earlier is not None:
                await earlier.opened.wait()  # for the server, turns begin in their order
            if rate_hz and time.monotonic() >= self._paused_until:
                await self._stream(turn, rate_hz)
        except KibunError as error:
            self._pause_s = min(max(2 * self._pause_s, PAUSES_S[0]), PAUSES_S[1])
            self._paused_until = time.monotonic() + self._pause_s
            self._tell(error)
        finally:
            turn.opened.set()
            with self._lock:
                if self._turn is turn and self._mode == "conversation":
                    self._turn = None  # what follows opens another
                turn.fail()

    async def _stream(self, tapped: "_TapTurn", rate_hz: int) -> None:
        features = replace(
            self._features,
            exclude_from_personality=self._features.exclude_from_personality or tapped.overlapped,
        )
        async with self._conversation.turn(
            tapped.turn_id, self.participant_id, sample_rate_hz=rate_hz, features=features, **self._options
        ) as turn:
            tapped.opened.set()
            reading = asyncio.ensure_future(self._read(tapped, turn))
            reading.add_done_callback(tapped.wake)
            try:
                if await self._send(tapped, turn, reading):
                    turn.end()
                else:  # its result has arrived
                    await reading
                    await turn.cancel()  # what the server has of the next turn's is sent again there
            except BaseException:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                raise
            await reading

    async def _send(self, tapped: "_TapTurn", turn: AsyncTurn, reading: "asyncio.Future[None]") -> bool:
        """Sends what is pushed until the host or a fault ends the turn, or the server, which gives False."""
        while not turn.ended and not reading.done():
            block = await tapped.next(reading)
            if block is None:
                break
            try:
                await turn.push(block.data)
            except TurnEndedError:
                tapped.put_back(block)
                break
            tapped.sent(block)
        if not turn.ended:
            return True
        with self._lock:
            if self._turn is tapped:  # else the host has ended it too
                rest = tapped.after_end()
                self._turn = self._go_on(tapped) if self._mode == "turn" else None
                for block in rest:
                    self._take(block, again=True)
        return False

    async def _read(self, tapped: "_TapTurn", turn: AsyncTurn) -> None:
        async for event in turn:
            match event:
                case StreamStarted():
                    self._pause_s = 0.0
                    self._told.clear()
                case SpeechEvent(type=SpeechEventType.END_OF_TURN):
                    tapped.ended_at_s = event.offset_s
                case UtteranceResult() | TurnResult():
                    start_t, end_t = tapped.time_of(event.start_s), tapped.time_of(event.end_s, is_end=True)
                    estimate = TapEstimate(
                        participant_id=self.participant_id,
                        turn_id=tapped.turn_id,
                        event=event,
                        start_t=start_t,
                        end_t=end_t,
                        overlapped=tapped.is_overlapped(start_t, end_t),
                    )
                    self._offer(estimate)
                    if isinstance(event, TurnResult):
                        tapped.succeed(estimate)
                        return
                case PersonalityUpdate():
                    self._offer(
                        TapEstimate(
                            participant_id=self.participant_id,
                            turn_id=tapped.turn_id,
                            event=event,
                            start_t=None,
                            end_t=None,
                            overlapped=tapped.overlapped,
                        )
                    )

    def _offer(self, estimate: TapEstimate) -> None:
        if len(self._waiting) >= MAX_WAITING:
            if is_droppable(estimate.event):
                return
            self._waiting.popleft()
        self._waiting.append(estimate)
        self._more.set()

    def _tell(self, error: KibunError) -> None:
        """Reports a problem once, from any thread."""
        with self._lock:
            if error.details.reason in self._told:
                return
            self._told.add(error.details.reason)
        if self._loop is None:
            self._report(error)
        else:
            self._call(self._report, error)

    def _report(self, error: KibunError) -> None:
        try:
            self._on_problem(error)
        except Exception:
            log.exception("on_problem of an AffectTap failed")


@dataclass
class _TapTurn:
    """A turn on its own stream: what waits to be sent, and when what was sent was heard.

    The queue is filled under the tap's lock, by any thread; the rest belongs to the event loop.
    """

    turn_id: str
    asked_id: str  # the host's, where the stream is a further part of its turn
    overlapped: bool
    queue_s: float
    counts: TapCounts
    lock: threading.Lock
    outcome: "Future[TapEstimate | None]"
    part: int = 1
    rate_hz: int = 0
    over: bool = False  # nothing more will be pushed
    ended_at_s: float | None = None  # by the server
    _queue: deque[_Block] = field(default_factory=deque)
    _queued: int = 0  # samples
    _failed: bool = False
    _marks: list[tuple[float, float]] = field(default_factory=list)  # the agent spoke
    _anchors: list[tuple[int, float]] = field(default_factory=list)  # position in samples, time
    _recent: deque[tuple[int, _Block]] = field(default_factory=deque)
    _position: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)  # the server knows of it, or never will

    # ---- under the lock

    def follows(self, other: "_TapTurn") -> Self:
        self.part = other.part + 1
        return self

    def add(self, block: _Block, *, marked: bool) -> None:
        if self._failed:
            self.counts.dropped += block.samples
            return
        self.rate_hz = self.rate_hz or block.rate_hz
        if marked:
            self._marks.append((block.t, block.end_t))
        self._queue.append(block)
        self._queued += block.samples
        while self._queued > self.queue_s * block.rate_hz and len(self._queue) > 1:
            oldest = self._queue.popleft()
            self._queued -= oldest.samples
            self.counts.dropped += oldest.samples
        self._wake()

    def end(self) -> None:
        self.over = True
        self._wake()

    def fail(self) -> None:
        """Nothing more will come of it, if it has no result yet."""
        self._failed = True
        self.counts.dropped += sum(block.samples for block in self._queue)
        self._queue.clear()
        self._queued = 0
        if not self.outcome.done():
            self.outcome.set_result(None)

    def after_end(self) -> list[_Block]:
        """What was sent or pushed after the position at which the server ended the turn; it is here no more."""
        end = self._position if self.ended_at_s is None else round(self.ended_at_s * self.rate_hz)
        rest = []
        for position, block in self._recent:
            skip = max(end - position, 0)
            if skip < block.samples:
                self.counts.sent -= block.samples - skip
                rest.append(block.without(skip))
        rest += self._queue
        self._queue.clear()
        self._queued = 0
        self.over = True
        return rest

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._woken.set)

    # ---- in the event loop

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        with self.lock:
            self._loop = loop
            self._woken.set()

    def wake(self, _: object = None) -> None:
        self._woken.set()

    async def first_rate(self) -> int:
        """The rate of its audio once there is some; 0 if it ends without any."""
        while not self._queue and not self.over:
            self._woken.clear()
            await self._woken.wait()
        return self.rate_hz

    async def next(self, reading: "asyncio.Future[None]") -> _Block | None:
        """What is to be sent next; None where nothing will be any more, or the stream was answered to its end."""
        while True:
            with self.lock:
                if self._queue:
                    block = self._queue.popleft()
                    self._queued -= block.samples
                    return block
                if self.over or reading.done():
                    return None
                self._woken.clear()
            await self._woken.wait()

    def put_back(self, block: _Block) -> None:
        """What `next` gave is sent in another turn."""
        with self.lock:
            self._queue.appendleft(block)
            self._queued += block.samples

    def sent(self, block: _Block) -> None:
        with self.lock:
            self.counts.sent += block.samples
        expected = self.time_of(self._position / block.rate_hz, is_end=True)
        if expected is None or abs(block.t - expected) > JITTER_S:
            self._anchors.append((self._position, block.t))
        self._recent.append((self._position, block))
        self._position += block.samples
        while self._recent and self._recent[0][0] < self._position - RECENT_S * block.rate_hz:
            self._recent.popleft()

    def time_of(self, seconds: float, *, is_end: bool = False) -> float | None:
        """When that position was heard; None before anything was. An end belongs to what came before it."""
        position = round(seconds * (self.rate_hz or 1))
        for begin, t in reversed(self._anchors):
            if begin < position or (begin == position and not (is_end and begin > 0)):
                return t + (position - begin) / self.rate_hz
        return self._anchors[0][1] if self._anchors else None

    def is_overlapped(self, start_t: float | None, end_t: float | None) -> bool:
        if start_t is None or end_t is None:
            return self.overlapped
        with self.lock:
            return self.overlapped or any(begin < end_t and start_t < end for begin, end in self._marks)

    def succeed(self, estimate: TapEstimate) -> None:
        with self.lock:
            if not self.outcome.done():
                self.outcome.set_result(estimate)


def _mono(
    pcm: Any, rate_hz: int | None, channels: int, channel: int | Literal["mix"] | None
) -> tuple[bytes | None, str]:
    """Little-endian int16 of one channel, or None and why not."""
    if rate_hz is None or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        told = "no sample_rate_hz" if rate_hz is None else f"sample_rate_hz {rate_hz}"
        return None, f"{told}: give that of the frame, {MIN_RATE_HZ} to {MAX_RATE_HZ}"
    if isinstance(pcm, bytes | bytearray | memoryview):
        if channels == 1:
            data = bytes(pcm)
            return (data, "") if len(data) % 2 == 0 else (None, "half a sample: bytes are int16")
        if len(pcm) % (2 * channels):
            return None, f"{len(pcm)} bytes are no int16 of {channels} channels"
        array = np.frombuffer(bytes(pcm), "<i2").reshape(-1, channels)
    else:
        array = np.asarray(pcm)
        if array.ndim == 1:
            array = array.reshape(-1, channels) if channels > 1 and array.size % channels == 0 else array[:, None]
        if array.ndim != 2 or array.dtype.name not in ("int16", "float32"):
            return None, f"{array.dtype.name} of shape {array.shape}: push int16 or float32, (n,) or (n, channels)"
    if array.shape[1] > 1 and channel is None:
        return None, f"{array.shape[1]} channels: make the tap with channel=1, or with channel='mix'"
    if array.shape[1] == 1:
        one = array[:, 0]
    elif channel == "mix":
        one = array.mean(axis=1, dtype=np.float64)
    elif isinstance(channel, int) and channel <= array.shape[1]:
        one = array[:, channel - 1]
    else:
        return None, f"{array.shape[1]} channels, and none of them is {channel}"
    if array.dtype.name == "float32":
        if not np.isfinite(one).all():
            return None, "NaN or infinity"
        one = np.clip(one, -1.0, 1.0) * 32767
    if one.dtype != np.int16:
        one = np.rint(one)
    return one.astype("<i2").tobytes(), ""


def _size_of(pcm: Any) -> int:
    return len(pcm) // 2 if isinstance(pcm, bytes | bytearray | memoryview) else int(getattr(pcm, "size", 0))


def _refused(text: str) -> InvalidRequestError:
    return InvalidRequestError(f"a frame was refused: {text}", ErrorDetails("FRAME_REFUSED", fields={"pcm": text}))


def _log_problem(error: KibunError) -> None:
    log.warning("no estimates for now: %s", error)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        text = f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}"
        raise InvalidRequestError(text, ErrorDetails("INVALID_OPTION", fields={name: text}))


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        text = f"{name} must be an integer from {least} to {most}, not {value!r}"
        raise InvalidRequestError(text, ErrorDetails("INVALID_OPTION", fields={name: text}))
