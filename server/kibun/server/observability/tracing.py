"""Traces for OpenTelemetry: a span per call, below it one per final utterance, below that its wait and its inference.

Attributes are those that a log line may have (`logs.FIELDS`). A thread of the SDK sends the spans. The caller's
`tracestate` is not passed on, as it may hold anything.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from google.rpc import code_pb2
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kibun.server import __version__
from kibun.server.observability import logs
from kibun.server.observability.telemetry import SERVICE, CallTrace, FinalTimes

FLUSH_S = 2.0
SERVER_ERRORS = ("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE")  # by OpenTelemetry's convention


class OtelTracer:
    """Sends traces to a collector over OTLP (HTTP, protobuf), until `close`. Made once per process."""

    def __init__(self, endpoint: str | None) -> None:
        """`endpoint`: base URL of the collector; None: from OpenTelemetry's own environment variables.

        Raises ValueError for an endpoint that is not a URL, or a protocol other than http/protobuf.
        """
        protocol = _environment("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or _environment("OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol not in ("", "http/protobuf"):
            raise ValueError("OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent as http/protobuf (port 4318 of a collector)")
        exporter = OTLPSpanExporter(_traces_url(endpoint)) if endpoint else OTLPSpanExporter()
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("kibun.server", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def call(self, method: str, request_id: str, parent: str | None) -> CallTrace:
        """See telemetry.Tracer."""
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        attributes = {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": method}
        span = self._tracer.start_span(
            f"{SERVICE}/{method}", context, kind=trace.SpanKind.SERVER, attributes=attributes
        )
        return _CallTrace(self._tracer, span)

    async def close(self) -> None:
        """Sends what is left, for FLUSH_S seconds at most: a collector that does not answer must not delay the end."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            loop.call_soon_threadsafe(done.set)

        # Not in the loop's executor, which asyncio.run waits for.
        threading.Thread(target=flush, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await done.wait()
        except TimeoutError:
            logs.report("the last traces could not be sent", "WARNING")


class _CallTrace:
    """See telemetry.CallTrace."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    def final(self, times: FinalTimes) -> None:
        """Makes the utterance's span, now that all its times are known."""
        epoch_s = time.time() - time.monotonic()

        def ns(moment: float) -> int:
            return round(1e9 * (epoch_s + moment))

        utterance = self._tracer.start_span(
            "utterance", trace.set_span_in_context(self._span), start_time=ns(min(times.ended, times.queued))
        )
        below = trace.set_span_in_context(utterance)
        for name, begin, end in (
            ("queue", times.queued, times.began),
            ("inference", times.began, times.answered),
        ):
            self._tracer.start_span(name, below, start_time=ns(begin)).end(ns(end))
        utterance.end(ns(times.written))

    def end(self, fields: Mapping[str, object]) -> None:
        """See telemetry.CallTrace."""
        for name, value in logs.allowed(fields).items():
            if name == "code":
                self._span.set_attribute("rpc.grpc.status_code", code_pb2.Code.Value(str(value)))
                if value in SERVER_ERRORS:
                    self._span.set_status(trace.Status(trace.StatusCode.ERROR))
            elif name != "method":
                self._span.set_attribute(f"kibun.{name}", value)
        self._span.end()


def _environment(name: str) -> str:
    return os.environ.get(name, "").strip()


def _traces_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give the collector's base URL, such as http://127.0.0.1:4318")
    return endpoint.rstrip("/") + "/v1/traces"


def _resource() -> Resource:
    """This service's name and version, unless OpenTelemetry's variables set others."""
    ours = Resource({"service.name": "kibun", "service.version": __version__})
    theirs = Resource.create()
    named = _environment("OTEL_SERVICE_NAME") or "service.name=" in _environment("OTEL_RESOURCE_ATTRIBUTES")
    return ours.merge(theirs) if named else theirs.merge(ours)
