"""Shows the metrics to Prometheus, and health to probes, over plain HTTP on a port of their own.

Served by threads, so that it answers while the event loop is blocked. Connections that send nothing, or a byte now and
then, keep no other out: where there are too many, the oldest goes, which has had the longest time to ask.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

MAX_CONNECTIONS = 64  # at a time, a thread each; with one more, the oldest is closed
TIMEOUT_S = 5.0  # of a connection, however slowly its client goes on asking
CLOSE_S = 0.1  # the longest that closing takes

log = logging.getLogger(__name__)


class Exporter:
    """Serves `/metrics`, `/healthz` (the process is well) and `/readyz` (new streams are taken) until `close`."""

    def __init__(self, registry: CollectorRegistry, *, ready: Callable[[], bool], alive: Callable[[], bool]) -> None:
        """`ready` and `alive` answer for `/readyz` and `/healthz`; they are called in other threads.

        A supervisor is expected to end a process that is not `alive`.
        """
        self._site = _Site(registry, ready, alive)
        self._server: _HttpServer | None = None

    def open(self, host: str, port: int) -> int:
        """Starts serving and returns the port; 0 picks a free one. Raises OSError."""
        self._server = _HttpServer(self._site, host, port)
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": CLOSE_S}, name="metrics", daemon=True).start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops serving; does nothing before `open`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


@dataclass(frozen=True)
class _Site:
    registry: CollectorRegistry
    ready: Callable[[], bool]
    alive: Callable[[], bool]

    def answer(self, path: str, accept: str) -> tuple[int, str, bytes]:
        """Returns the status, type and content of a page."""
        plain = "text/plain; charset=utf-8"
        match path.partition("?")[0]:
            case "/metrics":
                encode, kind = choose_encoder(accept)
                return 200, kind, encode(self.registry)
            case "/healthz":
                return (200, plain, b"alive\n") if self.alive() else (503, plain, b"the event loop is blocked\n")
            case "/readyz":
                return (200, plain, b"ready\n") if self.ready() else (503, plain, b"not serving\n")
        return 404, plain, b"there are /metrics, /healthz and /readyz\n"


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that may wait to be accepted
    block_on_close = False

    def __init__(self, site: _Site, host: str, port: int) -> None:
        self.site = site
        self._open: dict[socket.socket, float] = {}  # the oldest first, and since when
        self._lock = threading.Lock()
        if ":" in host:
            self.address_family = socketserver.socket.AF_INET6  # type: ignore[attr-defined]
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks a name server for this host's name

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic()
            if len(self._open) > MAX_CONNECTIONS:
                self._hang_up(next(iter(self._open)))
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def service_actions(self) -> None:
        """Called between requests, at least every CLOSE_S."""
        latest = time.monotonic() - TIMEOUT_S
        with self._lock:
            for late in [connection for connection, since in self._open.items() if since < latest]:
                self._hang_up(late)

    def _hang_up(self, connection: socket.socket) -> None:
        """Lets its thread find that it has ended."""
        del self._open[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    server_version, sys_version = "kibun", ""
    server: _HttpServer

    def do_GET(self) -> None:
        status, kind, content = self.server.site.answer(self.path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass
