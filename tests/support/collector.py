"""A collector of traces in this process, which gets them over OTLP and HTTP."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel"
)


class Collector:
    """Receives OTLP over HTTP. `spans` are those that have come."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.raw = b""
        self.resources: list[Any] = []
        self.paths: set[str] = set()

    def take(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        self.raw += body
        request = trace_service.ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            self.resources.append(resource.resource)
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def below(self, span: Any, name: str) -> list[Any]:
        """Its children of this name, by time."""
        found = [s for s in self.spans if s.parent_span_id == span.span_id and s.name == name]
        return sorted(found, key=lambda s: s.start_time_unix_nano)


@contextlib.contextmanager
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and its base URL."""
    got = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield got, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
