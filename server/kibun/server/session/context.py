"""What the parts of one session share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kibun.server.inference.backend import ModelInfo
from kibun.server.observability.telemetry import CallTelemetry
from kibun.server.session.conversation_handle import ConversationHandle
from kibun.server.session.events import Event, Limits, StreamOptions
from kibun.server.session.open_streams import OpenStream, OpenStreams


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
    held: ConversationHandle
    live: OpenStream
    streams: OpenStreams
    outbox: asyncio.Queue[Event | Exception]
    telemetry: CallTelemetry
