"""Sessions without gRPC, models or a real VAD: what tests of them share.

Audio is square waves whose level `LoudnessVad` takes for speech and `FakeAnalyzer` for the estimate.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from kibun.models.types import SAMPLE_RATE_HZ, Traits
from kibun.server.audio.decoder import AudioFormat
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation.state import Conversation
from kibun.server.conversation.store import MemoryStore
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.events import (
    Audio,
    Event,
    Limits,
    Reply,
    Request,
    StreamOptions,
    StreamStarted,
    StreamWarning,
    UtteranceResult,
)
from kibun.server.session.open_streams import OpenStreams
from kibun.server.session.session import Dependencies, Session
from tests.support.scripted import MODEL, FakeAnalyzer, LoudnessVad

KEY = ("tenant", "c")
EAGER = True  # whether sessions analyse in the silence that may end an utterance, unless a test says
TRAITS: Traits = (1.5, 2.0, 3.0, 4.0, 5.0)
ENDPOINTING = EndpointingOptions(
    min_speech_ms=40, utterance_end_silence_ms=100, pre_roll_ms=40, hang_over_ms=40, max_utterance_ms=2_000
)

E = TypeVar("E", bound=Event)
Requests = asyncio.Queue[Request | None]
"""What a stream is fed step by step; None half-closes."""


@dataclass
class SessionWorld:
    """What sessions of one server share."""

    analyzer: FakeAnalyzer = field(default_factory=FakeAnalyzer)
    store: MemoryStore = field(default_factory=MemoryStore)
    open_streams: OpenStreams = field(default_factory=OpenStreams)
    now: float = 0.0  # wall seconds

    def session(self, limits: Limits | None = None, model: ModelInfo = MODEL, **options: Any) -> Session:
        """`options`: fields of StreamOptions, and `encoding` and `rate` of the audio."""
        numbers = itertools.count(1)
        defaults: dict[str, Any] = {"turn_id": "t1", "participant_id": "p", "endpointing": ENDPOINTING}
        defaults |= {"conversation_id": KEY[1], "eager": EAGER}
        defaults["audio"] = AudioFormat(options.pop("encoding", "linear16"), options.pop("rate", SAMPLE_RATE_HZ))
        dependencies = Dependencies(
            analyzer=self.analyzer,
            store=self.store,
            open_streams=self.open_streams,
            make_vad=lambda _: LoudnessVad(),
            new_turn_id=lambda: f"made-{next(numbers)}",
            limits=limits or Limits(),
            clock=lambda: self.now,
        )
        stream_options = StreamOptions(tenant=KEY[0], model="fake", **{**defaults, **options})
        return Session("request", stream_options, model, dependencies)

    async def conversation(self) -> Conversation:
        """As the store has it."""
        found = await self.store.get(KEY)
        assert found is not None
        return found


# ---- requests


def pcm(*parts: tuple[float, float]) -> bytes:
    """LINEAR16 of (level, seconds)."""
    signs = np.resize([1, -1], round(max(s for _, s in parts) * SAMPLE_RATE_HZ))
    return b"".join((signs[: round(s * SAMPLE_RATE_HZ)] * level * 32767).astype("<i2").tobytes() for level, s in parts)


def said(seconds: float = 0.5, level: float = 0.5) -> bytes:
    """An utterance and the pause that ends it."""
    return pcm((level, seconds), (0, 0.3))


def in_blocks(payload: bytes, samples: int = 1_600) -> list[Request]:
    return [Audio(payload[i : i + 2 * samples]) for i in range(0, len(payload), 2 * samples)]


async def feed(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request
        await asyncio.sleep(0)


async def feed_queue(queue: Requests) -> AsyncIterator[Request]:
    while (request := await queue.get()) is not None:
        yield request


async def feed_nothing() -> AsyncIterator[Request]:
    """A client that keeps its stream open and is silent."""
    await asyncio.Event().wait()
    yield Audio(b"")


async def let_others_run(steps: int = 30) -> None:
    """Gives every other task that is ready `steps` steps."""
    for _ in range(steps):
        await asyncio.sleep(0)


# ---- streams


async def run(session: Session, *requests: Request) -> list[Reply]:
    """All replies to the requests."""
    return await run_on(session, feed(requests))


async def run_on(session: Session, requests: AsyncIterator[Request]) -> list[Reply]:
    async with aclosing(session.run(requests)) as replies:
        return [reply async for reply in replies]


class OpenSession:
    """A stream that is fed step by step; entered once it has started, closed at the end."""

    def __init__(self, session: Session) -> None:
        self._requests: Requests = asyncio.Queue()
        self._replies: AsyncGenerator[Reply, None] = session.run(feed_queue(self._requests))
        self.warned: list[str] = []  # reasons, of what was read so far

    async def __aenter__(self) -> OpenSession:
        await self.until(StreamStarted)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._replies.aclose()

    def send(self, *requests: Request | None) -> None:
        """Half-closes with None."""
        for request in requests:
            self._requests.put_nowait(request)

    async def until(self, kind: type[E], **fields: object) -> E:
        """Reads up to the first event of the kind whose fields are these."""
        async with asyncio.timeout(20):
            async for reply in self._replies:
                event = reply.event
                if isinstance(event, StreamWarning):
                    self.warned.append(event.reason)
                if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items()):
                    return event
        raise AssertionError(f"no {kind}")

    async def rest(self) -> list[Reply]:
        """All further replies."""
        return [reply async for reply in self._replies]


async def open_and_drop(session: Session) -> None:
    async with OpenSession(session):
        pass


# ---- replies


def events(replies: Iterable[Reply], kind: type[E]) -> list[E]:
    return [r.event for r in replies if isinstance(r.event, kind)]


def finals(replies: Iterable[Reply]) -> list[UtteranceResult]:
    return [u for u in events(replies, UtteranceResult) if u.is_final]


def interims(replies: Iterable[Reply]) -> list[UtteranceResult]:
    return [u for u in events(replies, UtteranceResult) if not u.is_final]
