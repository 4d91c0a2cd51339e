"""Shows the metrics to Prometheus, and health to whoever probes it, over HTTP on a port of their own.

Served by threads, so that it answers while the event loop is blocked. What it shows holds nothing of people: no label
has a value that a client chose.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server import __version__
from kibun.server.observability.metrics import Histogram, Metrics

MAX_CONNECTIONS = 16  # at a time; further ones are closed
TIMEOUT_S = 5.0  # of a connection, however slowly its client goes on asking
CLOSE_S = 0.1  # the longest that closing takes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Readings:
    """What is asked for when somebody looks. Called in the exporter's threads."""

    ready: Callable[[], bool]
    workers: Callable[[], int]  # alive
    worker_restarts: Callable[[], int]
    queued_jobs: Callable[[], int]
    load: Callable[[], float]
    conversations: Callable[[], int]


class KibunCollector(Collector):
    """Turns the plain numbers into Prometheus' families."""

    def __init__(self, metrics: Metrics, readings: Readings) -> None:
        self._metrics = metrics
        self._readings = readings

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily("kibun_build", "The server's version.", {"version": __version__})
        yield from self._streams()
        yield from self._analysis()
        yield from self._state()

    def _streams(self) -> Iterable[Metric]:
        metrics = self._metrics
        yield _gauge("kibun_open_streams", "Streams that are open.", metrics.open_streams)
        yield _counter(
            "kibun_calls_ended",
            "Streams and other calls that ended; the reason is empty where all went well.",
            ("method", "code", "reason"),
            metrics.calls,
        )
        text = "Calls turned away before any audio: no valid token, no room, or not ready."
        yield _counter("kibun_refusals", text, ("reason",), metrics.refusals)
        text = "Seconds of audio received."
        yield CounterMetricFamily("kibun_audio_received_seconds", text, metrics.audio_samples / SAMPLE_RATE_HZ)
        text = "Seconds of speech that finals were made from."
        yield CounterMetricFamily("kibun_speech_analyzed_seconds", text, metrics.speech_samples / SAMPLE_RATE_HZ)
        yield _counter("kibun_utterances", "Results written to clients.", ("kind",), metrics.utterances)
        text = "Interim results that were not sent, by cause."
        yield _counter("kibun_interims_dropped", text, ("cause",), metrics.interims_dropped)

    def _analysis(self) -> Iterable[Metric]:
        metrics = self._metrics
        text = "From an utterance being queued until its batch leaves for a worker."
        yield _histogram("kibun_queue_delay_seconds", text, metrics.queue_delay, ("kind",))
        text = "From a batch leaving for a worker until it is answered."
        yield _histogram("kibun_inference_seconds", text, {"": metrics.inference})
        yield _histogram("kibun_batch_jobs", "Utterances in a batch.", {"": metrics.batch_jobs})
        text = "From the end of an utterance being found until its final has been written to the client."
        yield _histogram("kibun_final_latency_seconds", text, {"": metrics.final_latency})

    def _state(self) -> Iterable[Metric]:
        metrics, readings = self._metrics, self._readings
        yield _gauge("kibun_ready", "1 while the health service says SERVING.", int(readings.ready()))
        yield _gauge("kibun_workers", "Worker processes that are alive.", readings.workers())
        text = "Workers started in place of dead ones."
        yield CounterMetricFamily("kibun_worker_restarts", text, readings.worker_restarts())
        yield _gauge("kibun_queued_jobs", "Utterances that wait for a worker.", readings.queued_jobs())
        text = "Share of the machine that the finals of all open streams are expected to need."
        yield _gauge("kibun_load_ratio", text, readings.load())
        yield _gauge("kibun_conversations", "Conversations in this process's memory.", readings.conversations())
        text = "Questions that the conversation store did not answer."
        yield CounterMetricFamily("kibun_store_errors", text, metrics.store_errors)
        text = "How late the event loop was for a timer, looked at twice a second."
        yield _histogram("kibun_event_loop_lag_seconds", text, {"": metrics.loop_lag})


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Counter[Any]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in counts.copy().items():
        family.add_metric([key] if isinstance(key, str) else list(key), count)
    return family


def _histogram(name: str, text: str, histograms: Mapping[str, Histogram], labels: tuple[str, ...] = ()) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for label, histogram in histograms.items():
        counts = histogram.cumulative()
        bounds = [*(f"{float(bound)}" for bound in histogram.bounds), "+Inf"]
        family.add_metric([label] if labels else [], list(zip(bounds, counts, strict=True)), histogram.sum)
    return family


class Exporter:
    """Serves `/metrics`, `/healthz` (the process lives) and `/readyz` (streams are taken) until `close`."""

    def __init__(self, metrics: Metrics, readings: Readings, *, alive: Callable[[], bool] = lambda: True) -> None:
        """`alive`: whether the process is well, in any thread; a supervisor ends one that is not."""
        registry = CollectorRegistry()
        registry.register(KibunCollector(metrics, readings))
        ProcessCollector(registry=registry)
        self._site = _Site(registry, readings.ready, alive)
        self._server: _HttpServer | None = None

    def open(self, host: str, port: int) -> int:
        """Serves from now on; returns the port, which 0 leaves to the system. Raises OSError."""
        self._server = _HttpServer(self._site, host, port)
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": CLOSE_S}, name="metrics", daemon=True).start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Harmless before `open`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


@dataclass(frozen=True)
class _Site:
    registry: CollectorRegistry
    ready: Callable[[], bool]
    alive: Callable[[], bool]

    def answer(self, path: str, accept: str) -> tuple[int, str, bytes]:
        """Status, type and content of a page."""
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
    request_queue_size = 64  # connections that the system keeps until they are accepted
    block_on_close = False

    def __init__(self, site: _Site, host: str, port: int) -> None:
        self.site = site
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in host:
            self.address_family = socketserver.socket.AF_INET6  # type: ignore[attr-defined]
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # the one of HTTPServer asks a name server for this host's name

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(TIMEOUT_S, _hang_up, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request for metrics failed", exc_info=True)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


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
