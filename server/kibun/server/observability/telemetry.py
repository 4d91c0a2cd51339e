"""Where the other parts report their work; it becomes metrics, a log line per call, and traces.

`Telemetry` belongs to one server and its event loop, `CallTelemetry` to one stream or other call; `received`, which
runs for every chunk of audio, costs well under a microsecond. Neither gets ids that a client chose, or results.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.observability.metrics import DropCause, EagerOutcome, JobKind, Metrics

SERVICE = "kibun.v1.SpeechAnalysisService"
METHODS = (
    "StreamingAnalyze",
    "Analyze",
    "GetConversation",
    "CompleteConversation",
    "DeleteConversation",
    "GetServiceInfo",
    "WatchConversation",
)
OTHER_METHOD = "Other"
REFUSALS = ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")  # when they come before any audio
STREAM, WATCH = METHODS[0], METHODS[-1]
LATELY = 3  # looks at the event loop, 1.5 s

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinalTimes:
    """When things happened to one final, in seconds of the monotonic clock.

    An eager final was queued, and may even be answered, before the end of its utterance was found.
    """

    ended: float  # the end of the utterance was found
    queued: float
    began: float  # its batch left for the worker
    answered: float
    written: float  # to the client


class CallTrace(Protocol):
    """The trace of one call."""

    def final(self, times: FinalTimes) -> None: ...

    def end(self, fields: Mapping[str, object]) -> None:
        """`fields`: those of the call's log line."""
        ...


class Tracer(Protocol):
    """Makes traces; `tracing.OtelTracer` is the one there is."""

    def call(self, method: str, request_id: str, parent: str | None) -> CallTrace:
        """`parent`: the caller's W3C `traceparent`, if it sent one."""
        ...


class CallTelemetry:
    """What one stream or single call reports. Made by `Telemetry.begin`."""

    __slots__ = (
        "_began",
        "_ended",
        "_ends",
        "_metrics",
        "_on_end",
        "audio_samples",
        "finals",
        "interims",
        "method",
        "ran",
        "request_id",
        "speech_samples",
        "tenant",
        "trace",
    )

    def __init__(
        self,
        metrics: Metrics,
        method: str,
        request_id: str,
        *,
        on_end: Callable[[CallTelemetry], None] | None = None,
    ) -> None:
        self.method = method
        self.request_id = request_id
        self.tenant = ""
        self.audio_samples = 0
        self.speech_samples = 0
        self.finals = 0
        self.interims = 0
        self.ran = (0.0, 0.0, 0.0)  # of the latest final, or eager job that may become it: queued, began, answered
        self._metrics = metrics
        self._on_end = on_end
        self.trace: CallTrace | None = None
        self._ends: deque[float] = deque()  # when the ends of utterances were found whose finals are not written yet
        self._began = time.monotonic()
        self._ended = False

    @classmethod
    def unwatched(cls) -> CallTelemetry:
        """Returns one whose metrics nothing shows."""
        return cls(Metrics(), OTHER_METHOD, "")

    def received(self, samples: int) -> None:
        """Reports audio that came in."""
        self.audio_samples += samples
        self._metrics.audio_samples += samples

    def utterance_ended(self) -> None:
        """Reports the end of an utterance that will have a final."""
        self._ends.append(time.monotonic())

    def wrote(self, *, final: bool, speech_samples: int) -> None:
        """Reports a result that was written to the client. Finals come in the order of `utterance_ended`."""
        if not final:
            self.interims += 1
            self._metrics.utterances["interim"].inc()
            return
        now = time.monotonic()
        ended = self._ends.popleft() if self._ends else now
        self.finals += 1
        self.speech_samples += speech_samples
        self._metrics.speech_samples += speech_samples
        self._metrics.utterances["final"].inc()
        self._metrics.final_latency.observe(now - ended)
        if self.trace is not None and speech_samples:
            self.trace.final(FinalTimes(ended, *self.ran, now))

    def dropped_interim(self, cause: DropCause) -> None:
        """Reports an interim that was not sent."""
        self._metrics.interims_dropped[cause].inc()

    def eager(self, outcome: EagerOutcome) -> None:
        """Reports what became of an utterance that was analysed in the silence after it."""
        self._metrics.eager[outcome].inc()

    def end(self, code: str, reason: str = "") -> None:
        """Reports how the call ended; `code` is gRPC's. Does nothing the second time."""
        if self._ended:
            return
        self._ended = True
        self._metrics.call_ended(self.method, code, reason)
        if code in REFUSALS and not self.audio_samples:
            self._metrics.call_refused(reason)
        if self._on_end is not None:
            self._on_end(self)
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "method": self.method,
            "code": code,
            "duration_ms": 1000 * (time.monotonic() - self._began),
            "audio_s": self.audio_samples / SAMPLE_RATE_HZ,
            "speech_s": self.speech_samples / SAMPLE_RATE_HZ,
            "finals": self.finals,
            "interims": self.interims,
        }
        fields |= {"tenant": self.tenant} if self.tenant else {}
        fields |= {"reason": reason} if reason else {}
        log.info("call ended", extra=fields)
        if self.trace is not None:
            self.trace.end(fields)


class Telemetry:
    """What a server's parts report, and its metrics."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.metrics = Metrics()
        self.loop_late_s = 0.0
        """Seconds by which the event loop has been late for timers lately, at least: a single time does not count."""
        self._lateness: deque[float] = deque(maxlen=LATELY)
        self._tracer = tracer
        self._traced: dict[str, CallTelemetry] = {}  # by request id

    def begin(self, method: str, request_id: str) -> CallTelemetry:
        """Reports a call that came in; `method` is its name without the service."""
        method = method if method in METHODS else OTHER_METHOD
        call = CallTelemetry(self.metrics, method, request_id, on_end=self._ended)
        if method == STREAM:
            self.metrics.open_streams.inc()
        elif method == WATCH:
            self.metrics.open_watches.inc()
        return call

    def trace(self, call: CallTelemetry, parent: str | None) -> None:
        """Starts a call's trace, where traces are wanted; not before its caller is known to be allowed to ask for one.

        `parent`: the caller's W3C `traceparent`, if it sent one.
        """
        if self._tracer is not None:
            call.trace = self._tracer.call(call.method, call.request_id, parent)
            self._traced[call.request_id] = call

    def loop_was_late(self, seconds: float) -> None:
        """Reports how late the event loop was for a timer; comes twice a second."""
        self.metrics.loop_lag.observe(seconds)
        self._lateness.append(seconds)
        self.loop_late_s = min(self._lateness)

    def ran(self, jobs: Iterable[tuple[str, JobKind, float]], began: float, answered: float) -> None:
        """Reports a batch that was run.

        `jobs`: the stream's request id, what was wanted, and when it was queued.
        """
        count = 0
        for request_id, kind, queued in jobs:
            count += 1
            self.metrics.queue_delay[kind].observe(max(began - queued, 0.0))
            if kind != "interim" and (call := self._traced.get(request_id)) is not None:
                call.ran = (queued, began, answered)
        self.metrics.inference.observe(answered - began)
        self.metrics.batch_jobs.observe(count)

    def _ended(self, call: CallTelemetry) -> None:
        self._traced.pop(call.request_id, None)
        if call.method == STREAM:
            self.metrics.open_streams.dec()
        elif call.method == WATCH:
            self.metrics.open_watches.dec()


def traces_wanted() -> bool:
    """Whether OpenTelemetry's own environment variables name a collector and do not turn traces off."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return not off and any(os.environ.get(name) for name in names)
