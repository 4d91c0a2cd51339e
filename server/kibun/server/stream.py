"""What the parts of one session share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kibun.server.backend import ModelInfo
from kibun.server.events import Event, Limits, StreamOptions
from kibun.server.held import HeldConversation
from kibun.server.live import LiveStream, LiveStreams
from kibun.server.telemetry import CallTelemetry


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream: what was asked for, what is known, and where answers go.

    `outbox` is bounded: whoever puts into it waits while the client does not read. An exception in it ends the
    stream once everything before it was written.
    """

    request_id: str
    options: StreamOptions
    limits: Limits
    model: ModelInfo
    held: HeldConversation
    live: LiveStream
    streams: LiveStreams
    outbox: asyncio.Queue[Event | Exception]
    telemetry: CallTelemetry
