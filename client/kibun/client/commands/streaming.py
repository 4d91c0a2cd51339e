"""Turns of a recording through the SDK, one stream each: what the commands that stream have in common."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kibun.client.audio_file import AudioFile
from kibun.client.client import AsyncConversation
from kibun.client.commands.pipe import PipedAudio, RawSamples, is_pipe
from kibun.client.errors import KibunError
from kibun.client.estimates import Traits
from kibun.client.events import Event
from kibun.client.options import Features
from kibun.client.pcm import CHUNK_MS
from kibun.client.recordings.turns_file import TurnSpan
from kibun.client.turn import AsyncTurn

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm


Audio = AudioFile | PipedAudio

INTERRUPTED = 130  # exit code, as of shells


def open_audio(path: Path, channel: int | None = None, raw: RawSamples | None = None) -> Audio:
    """A file or a pipe; of one that was cut off or damaged, what is there. Raises AudioFileError, UsageError."""
    return PipedAudio(path, raw, channel) if is_pipe(path) else AudioFile(path, channel=channel, allow_incomplete=True)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a command's work; a Ctrl-C that the work does not take for itself ends it with exit code 130."""
    try:
        asyncio.run(work)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(INTERRUPTED) from None


class Interruption:
    """Ctrl-C ends the turns that are open, with their results, and no further one begins; a second ends everything."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._turns: set[AsyncTurn] = set()
        self._task: asyncio.Task[Any] | None = None

    @property
    def happened(self) -> bool:
        return self._event.is_set()

    async def sleep(self, seconds: float) -> None:
        """Sleeps; no longer than until Ctrl-C."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), max(seconds, 0.0))

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Within it, Ctrl-C has this meaning; in the event loop's main thread only, and where there are signals."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        try:
            loop.add_signal_handler(signal.SIGINT, self._interrupt)
        except (NotImplementedError, RuntimeError, ValueError):
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    @contextlib.contextmanager
    def over(self, turn: AsyncTurn) -> Iterator[None]:
        """`turn` is open."""
        self._turns.add(turn)
        try:
            yield
        finally:
            self._turns.discard(turn)

    def _interrupt(self) -> None:
        if self._task is not None and (self.happened or not self._turns):
            self._task.cancel()
        self._event.set()
        for turn in self._turns:
            with contextlib.suppress(KibunError):
                turn.end(stop_feed=True)


class Sink(Protocol):
    """Where events go: a table, or JSON lines."""

    def on_event(self, event: Event, participant_id: str) -> None:
        """Takes one event of a turn of `participant_id`, as it arrives."""
        ...


@dataclass(frozen=True)
class StreamingOptions:
    """How recordings are streamed."""

    chunk_ms: int = CHUNK_MS
    # In real time; turns that overlap are then streamed at the same time.
    realtime: bool = False
    features: Features = field(default_factory=Features)
    model: str = ""
    # Known traits by participant; emotion is conditioned on them in place of predicted ones.
    traits: Mapping[str, Traits] = field(default_factory=dict)


async def stream_turns(
    conversation: AsyncConversation,
    audio: Audio,
    turns: Sequence[TurnSpan],
    options: StreamingOptions,
    sink: Sink,
    interruption: Interruption | None = None,
) -> None:
    """Streams `turns` of `audio`. Raises KibunError or CommandError of the turn that failed first.

    As fast as possible, each turn waits for the result of the one before it, so that the same input gives the same
    output.
    """
    interruption = interruption or Interruption()
    if not options.realtime:
        for turn in turns:
            await _stream_turn(conversation, audio, turn, options, sink, interruption)
        return
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.TaskGroup() as group:
            for turn in turns:
                group.create_task(_stream_turn(conversation, audio, turn, options, sink, interruption, start))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _stream_turn(
    conversation: AsyncConversation,
    audio: Audio,
    turn: TurnSpan,
    options: StreamingOptions,
    sink: Sink,
    interruption: Interruption,
    start: float | None = None,
) -> None:
    """`start`: the loop's time at which the recording began to play; None: as fast as possible."""
    if interruption.happened:
        return
    recorded = audio.chunks(options.chunk_ms, turn.start_s, turn.end_s)
    chunks: Iterable[Pcm] | AsyncIterator[Pcm] = recorded
    if start is not None:
        await interruption.sleep(start + turn.start_s - asyncio.get_running_loop().time())
        if interruption.happened:
            return
        chunks = in_real_time(recorded, audio.sample_rate_hz, start + turn.start_s)
    async with conversation.turn(
        turn.turn_id,
        turn.participant_id,
        sample_rate_hz=audio.sample_rate_hz,
        encoding=audio.encoding,
        features=options.features,
        model=options.model,
        given_personality=options.traits.get(turn.participant_id),
        audio_start_offset_s=turn.start_s,
    ) as stream:
        stream.feed(chunks)
        with interruption.over(stream):
            async for event in stream:
                sink.on_event(event, turn.participant_id)


async def in_real_time(chunks: Iterable[Any], sample_rate_hz: int, start: float) -> AsyncIterator[Any]:
    """Each chunk at the (loop's) time at which its last sample would have been recorded."""
    samples = 0
    for chunk in chunks:
        samples += len(chunk)
        when = start + samples / sample_rate_hz
        await asyncio.sleep(max(when - asyncio.get_running_loop().time(), 0.0))
        yield chunk
