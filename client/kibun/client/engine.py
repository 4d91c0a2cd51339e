"""The task that owns a stream's call: it writes what is waiting in the buffer, reads events, reconnects.

Everything here runs in one event loop, and only the engine's own tasks touch gRPC. So cancelling a caller who waits
for space or for an event cannot harm the call, and the call is cancelled whichever way the engine stops.
"""

import asyncio
import os
import random
from dataclasses import replace

from kibun.client.errors import (
    DeadlineError,
    ErrorDetails,
    InternalError,
    KibunError,
    MisuseError,
    TurnEndedError,
    UnavailableError,
)
from kibun.client.events import (
    Event,
    StreamEnded,
    StreamProgress,
    StreamStarted,
    TurnResult,
    UtteranceResult,
    event_from_response,
    is_droppable,
)
from kibun.client.options import BYTES_PER_SAMPLE, RetryPolicy, StreamConfig
from kibun.client.replay import EndOfTurn, FinalsReceived, ReplayBuffer
from kibun.client.retry import RetryBudget, may_retry
from kibun.client.transport import StreamCall, Transport, running_loop
from kibun.v1 import speech_analysis_pb2 as pb

# Audio that may wait for the network before `put` waits too.
SEND_BUFFER_S = 2.0
# How long a server that is there may take to accept a stream, unless the caller says it.
ACCEPT_TIMEOUT_S = 30.0
# Events that may wait for a caller who does not iterate; beyond that, interims and speech events are dropped, never
# finals or results.
MAX_WAITING_EVENTS = 1024


class StreamEngine:
    """Runs one stream over one or, after losses, several calls. `single_turn`: stop at the first TurnResult."""

    def __init__(self, transport: Transport, config: StreamConfig, retry: RetryPolicy, *, single_turn: bool) -> None:
        self.config = config
        self.started: StreamStarted | None = None
        self.ended: StreamEnded | None = None
        self.turn_result: TurnResult | None = None
        self.error: BaseException | None = None
        self.last_loss = ""  # its text only: the error would keep the call
        # Set when the server accepted the stream, and when the engine stopped (well or with `error`).
        self.opened = asyncio.Event()
        self.over = asyncio.Event()
        # None at the end marks that nothing more will come.
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._transport = transport
        self._retries = RetryBudget(retry)
        self._accepted_at: float | None = None  # the present call, on the loop's clock
        self._single_turn = single_turn
        self._first_offset_s = config.audio_start_offset_s
        self._buffer = ReplayBuffer(round(retry.replay_limit_s * config.bytes_per_second))
        self._max_unsent_bytes = max(round(SEND_BUFFER_S * config.bytes_per_second), 1)
        self._input_closed = False
        self._something_to_send = asyncio.Event()
        self._may_put = asyncio.Event()
        self._reconnects = 0
        self._last_final: UtteranceResult | None = None
        self._finals = FinalsReceived()
        # Before a fork: set from `pause` to `resume`, once no call is open, and once one may be again.
        self._paused = asyncio.Event()
        self._quiet = asyncio.Event()
        self._resumed = asyncio.Event()
        # The loop in which all of this happens, and the task that does it; None until it is started.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the engine; harmless when it runs. Raises MisuseError when it was over already."""
        if self._task is None:
            self._transport.add_stream(self)
            self._loop = running_loop()
            self._pid = os.getpid()
            self._task = self._loop.create_task(self._run())
        elif self.over.is_set():
            raise MisuseError(
                f"this {self._noun} is over, and can be used once: make another one", ErrorDetails(reason="USED_TWICE")
            ) from self.error
        self.check_started()

    def check_started(self) -> None:
        """Raises MisuseError for a stream that was never opened, or one that is used outside of its event loop."""
        if self._loop is None:
            way = "client.conversation(…).turn(…) as turn" if self._single_turn else "client.stream(…) as stream"
            raise MisuseError(
                f"this {self._noun} is not open: write `async with {way}:` (with kibun.client.Client: `with {way}:`)",
                ErrorDetails(reason="NOT_OPEN"),
            )
        if not self.over.is_set() and os.getpid() != self._pid:
            raise MisuseError(
                f"this {self._noun} belongs to the process that this one was forked from: open another one here",
                ErrorDetails(reason="FORKED"),
            )
        if not self.over.is_set() and running_loop() is not self._loop:
            raise MisuseError(
                f"this {self._noun} was opened in another event loop: open and use it within one",
                ErrorDetails(reason="WRONG_EVENT_LOOP"),
            )

    @property
    def takes_audio(self) -> bool:
        """False once the input was closed, by this side or as the server ended a single turn."""
        return not (self._input_closed or self.over.is_set())

    @property
    def _noun(self) -> str:
        return "turn" if self._single_turn else "stream"

    async def cancel(self) -> None:
        """Stops at once and waits until the call is gone."""
        if self._task is not None and not self._task.done():
            self.check_started()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def fail(self, error: BaseException) -> None:
        """Stops at once; `error` is what everyone who waits for the stream will see."""
        self.error = self.error or error
        if self._task is not None:
            self._task.cancel()

    @property
    def can_pause(self) -> bool:
        """Whether it can lose its connection, and take up another, without losing more."""
        return self.over.is_set() or self._retries.enabled

    async def pause(self) -> None:
        """Ends the present call as if the connection were lost, until `resume`; returns once it is gone."""
        self._resumed.clear()
        self._paused.set()
        await self._quiet.wait()

    def resume(self) -> None:
        """Goes on after `pause`, with another call."""
        self._paused.clear()
        self._resumed.set()

    async def put(self, item: bytes | EndOfTurn) -> None:
        """Takes audio or a marker to be sent; waits while too much audio is waiting already."""
        while self._buffer.unsent_bytes >= self._max_unsent_bytes and not self.over.is_set():
            self._may_put.clear()
            await self._may_put.wait()
        self.check_open()
        self._buffer.append(item)
        self._something_to_send.set()

    def close_input(self) -> None:
        """Nothing more will be put: half-close once all was sent."""
        self._input_closed = True
        self._something_to_send.set()

    def check_open(self) -> None:
        """Raises the stream's error if it failed, TurnEndedError if it takes no more audio; see `check_started`."""
        self.check_started()
        if self.error is not None:
            raise self.error
        if not self.takes_audio:
            raise TurnEndedError(f"the {self._noun} has ended and takes no more audio: open the next one")

    # -- calls, one after the other

    async def _run(self) -> None:
        try:
            await self._run_attempts()
        except asyncio.CancelledError:
            cancelled = ErrorDetails(reason="STREAM_CANCELLED")
            self.error = self.error or TurnEndedError("the stream was cancelled by this side", cancelled)
            raise
        except Exception as error:
            self.error = self.error or error.with_traceback(None)  # which would keep the call
        finally:
            self.over.set()
            self._quiet.set()
            self.opened.set()
            self._may_put.set()
            self.events.put_nowait(None)

    async def _run_attempts(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._paused.is_set():
                self._quiet.set()
                await self._resumed.wait()
                self._quiet.clear()
            self._accepted_at = None
            reached_before, resumes = self._transport.was_accepted, self.started is not None
            try:
                return await self._attempt()
            except KibunError as error:
                self.last_loss = error.message
                if not may_retry(error, accepted=self._accepted_at is not None, resumes=resumes):
                    raise
                if self._is_complete():
                    return None
                pause_s: float | None = 0.0
                if not self._paused.is_set():  # otherwise it is this side that lost it
                    pause_s = self._retries.pause_s(
                        error, now=loop.time(), accepted_at=self._accepted_at, reached_before=reached_before
                    )
                if pause_s is None:
                    raise
                self._buffer.rewind()
            # Spread, so that the clients of a restarted server don't all come back at once.
            await asyncio.sleep(pause_s * random.uniform(1.0, 1.25))
            self._reconnects += self._accepted_at is not None
            self.config = self._config_for_resume()

    async def _attempt(self) -> None:
        self._transport.add_stream(self)
        call = self._transport.streaming_analyze()
        accepted = asyncio.Event()
        reader = asyncio.create_task(self._read(call, accepted))
        writer = asyncio.create_task(self._write(call, accepted))
        opening = asyncio.create_task(accepted.wait())
        paused = asyncio.create_task(self._paused.wait())
        within_s = self._transport.timeout_s or ACCEPT_TIMEOUT_S
        try:
            await asyncio.wait({reader, writer, opening, paused}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if not any(task.done() for task in (reader, writer, opening, paused)):
                raise self._not_accepted(within_s)
            await asyncio.wait({reader, writer, paused}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()  # raises a fault of the writer's own; a lost call is the reader's to report
            await asyncio.wait({reader, paused}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                raise UnavailableError("the connection was closed before a fork", ErrorDetails(reason="FORKED"))
            reader.result()
        finally:
            call.cancel()
            for task in (reader, writer, opening, paused):
                task.cancel()
            await asyncio.gather(reader, writer, opening, paused, return_exceptions=True)

    async def _write(self, call: StreamCall, accepted: asyncio.Event) -> None:
        if not await call.write(pb.StreamingAnalyzeRequest(streaming_config=self.config.to_proto())):
            return None
        await accepted.wait()  # so a refused config is reported as what it is, not as a failed write of audio
        while True:
            item = self._buffer.next_item()
            if self._buffer.unsent_bytes < self._max_unsent_bytes:
                self._may_put.set()
            if item is not None:
                if not await call.write(_request(item)):
                    return None
            elif self._input_closed:
                if self._says_end_of_turn and not await call.write(_request(EndOfTurn(""))):
                    return None
                return await call.half_close()
            else:
                self._something_to_send.clear()
                await self._something_to_send.wait()

    async def _read(self, call: StreamCall, accepted: asyncio.Event) -> None:
        while (response := await call.read()) is not None:
            event = event_from_response(response, reconnects=self._reconnects)
            if event is None:
                continue
            if isinstance(event, StreamStarted):
                call.request_id = event.request_id or None
                accepted.set()
            self._absorb(event)
            self.offer(event)
        if self.ended is None:
            raise InternalError(
                f"{self._transport.target} closed the stream without giving a reason: see the server's log",
                ErrorDetails(reason="STREAM_CUT", request_id=call.request_id),
            )

    def _absorb(self, event: Event) -> None:
        match event:
            case StreamStarted():
                self.started = event
                self.opened.set()
                self._accepted_at = asyncio.get_running_loop().time()
                self._transport.was_accepted = True
            case UtteranceResult(is_final=True):
                self._retries.reset()
                self._buffer.release(self._position(event.end_s))
                self._last_final = event
                if event.response is not None:
                    self._finals.add(event.response.utterance_result)
            case StreamProgress():
                self._buffer.mark_droppable(self._position(event.settled_s))
            case TurnResult() if self.turn_result is None:
                self.turn_result = event
                if self._single_turn:  # where the server ended it, audio still on its way belongs to no turn
                    self._buffer.clear()
                    self.close_input()
            case StreamEnded():
                self.ended = event

    def offer(self, event: Event) -> None:
        if not (is_droppable(event) and self.events.qsize() >= MAX_WAITING_EVENTS):
            self.events.put_nowait(event)

    @property
    def _says_end_of_turn(self) -> bool:
        # To a server that ends turns itself it might mean the next one, which is empty: the half-close says enough.
        ends_itself = self.config.endpointing.end_of_turn_silence_ms is not None
        return self._single_turn and self.turn_result is None and not ends_itself

    def _not_accepted(self, within_s: float) -> KibunError:
        text = f"{self._transport.target} did not accept the {self._noun} within {within_s:g} s: it answers nothing"
        details = ErrorDetails(reason="OPEN_TIMEOUT")
        # A turn that it had accepted before is tried again, as after any other loss of the connection.
        return DeadlineError(text, details) if self.started is None else UnavailableError(text, details)

    # -- resuming

    def _is_complete(self) -> bool:
        return self.ended is not None or (self._single_turn and self.turn_result is not None)

    def _config_for_resume(self) -> StreamConfig:
        start_s = self._buffer.start / self.config.bytes_per_second
        config = replace(self.config, audio_start_offset_s=self._first_offset_s + start_s)
        if self.started is None:
            return config
        # The same turn again, even if the server chose the ids; its result may have been lost on the way.
        ids = (self.started.conversation_id, self.started.turn_id)
        last = self._last_final
        after = last.end_reason if last and self._position(last.end_s) == self._buffer.start else None
        return replace(
            config,
            conversation_id=ids[0],
            turn_id=ids[1],
            resume_turn=True,
            resume_after=after,
            resume_finals=self._finals,
        )

    def _position(self, time_s: float) -> int:
        """Bytes of audio before `time_s`, rounded down to a whole sample."""
        samples = int((time_s - self._first_offset_s) * self.config.sample_rate_hz + 1e-3)
        return samples * BYTES_PER_SAMPLE[self.config.encoding]


def _request(item: bytes | EndOfTurn) -> pb.StreamingAnalyzeRequest:
    if isinstance(item, bytes):
        return pb.StreamingAnalyzeRequest(audio_content=item)
    return pb.StreamingAnalyzeRequest(end_of_turn=pb.EndOfTurn(next_turn_id=item.next_turn_id))
