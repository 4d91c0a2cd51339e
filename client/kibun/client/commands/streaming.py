"""Turns of a recording through the SDK, one stream each: what `stream` and `demo` have in common."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kibun.client.client import AsyncConversation
from kibun.client.commands.audio_files import AudioFile
from kibun.client.commands.turns_file import TurnSpan
from kibun.client.estimates import Traits
from kibun.client.events import Event
from kibun.client.options import Features
from kibun.client.pcm import CHUNK_MS

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm


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
    audio: AudioFile,
    turns: Sequence[TurnSpan],
    options: StreamingOptions,
    sink: Sink,
) -> None:
    """Streams `turns` of `audio`. Raises KibunError or CommandError of the turn that failed first.

    As fast as possible, each turn waits for the result of the one before it, so that the same input gives the same
    output.
    """
    if not options.realtime:
        for turn in turns:
            await _stream_turn(conversation, audio, turn, options, sink)
        return
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.TaskGroup() as group:
            for turn in turns:
                group.create_task(_stream_turn(conversation, audio, turn, options, sink, start))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _stream_turn(
    conversation: AsyncConversation,
    audio: AudioFile,
    turn: TurnSpan,
    options: StreamingOptions,
    sink: Sink,
    start: float | None = None,
) -> None:
    """`start`: the loop's time at which the recording began to play; None: as fast as possible."""
    recorded = audio.chunks(options.chunk_ms, turn.start_s, turn.end_s)
    chunks: Iterable[Pcm] | AsyncIterator[Pcm] = recorded
    if start is not None:
        await _sleep_until(start + turn.start_s)
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
        async for event in stream:
            sink.on_event(event, turn.participant_id)


async def in_real_time(chunks: Iterable[Any], sample_rate_hz: int, start: float) -> AsyncIterator[Any]:
    """Each chunk at the (loop's) time at which its last sample would have been recorded."""
    samples = 0
    for chunk in chunks:
        samples += len(chunk)
        await _sleep_until(start + samples / sample_rate_hz)
        yield chunk


async def _sleep_until(when: float) -> None:
    await asyncio.sleep(max(when - asyncio.get_running_loop().time(), 0.0))
