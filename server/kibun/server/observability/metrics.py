"""What a server counts and times, each number declared once, in a registry for Prometheus.

The event loop writes, the exporter's threads read. No label identifies a person, conversation or request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server import __version__

MAX_REASONS = 128  # distinct ones; a hundred exist
OTHER = "OTHER"
_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,47}")

SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
JOBS = (1, 2, 4, 8, 16, 32, 64, 128)

DropCause = Literal["superseded", "busy", "failed", "slow_reader"]
"""Why an interim was not sent: a newer one or the final took its place; finals needed the machine; the model failed;
its client does not read."""

JobKind = Literal["final", "eager", "interim"]
EagerOutcome = Literal["final", "spoken_on", "recomputed", "dropped"]
"""What became of an analysis begun in the silence after speech: it was the final; its speaker went on; the final rested
on something that was not known yet; it was not made, as finals needed the machine or the model failed."""


class Metrics:
    """The metrics of one server.

    Gauges that other parts know the value of are read from them when Prometheus asks, see `set_function`.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series of each counter; for the whole process
        self.registry = registry = CollectorRegistry()
        self._reasons: set[str] = set()
        self.audio_samples = 0  # received
        self.speech_samples = 0  # that finals were made from

        Info("kibun_build", "The server's version.", registry=registry).info({"version": __version__})
        self.open_streams = Gauge("kibun_open_streams", "Streams that are open.", registry=registry)
        self.open_watches = Gauge("kibun_open_watches", "Watches of conversations that are open.", registry=registry)
        text = "Streams and other calls that ended; the reason is empty where all went well."
        self._calls = Counter("kibun_calls_ended", text, ("method", "code", "reason"), registry=registry)
        text = "Calls turned away before any audio: no valid token, a limit reached, or not ready."
        self._refusals = Counter("kibun_refusals", text, ("reason",), registry=registry)
        text = "Connections that were cut off, for too many calls without a known caller or for far too much metadata."
        self._cut = Counter("kibun_connections_cut", text, ("reason",), registry=registry)
        text = "Seconds of audio received."
        audio = CounterFunction("kibun_audio_received_seconds", text, registry)
        audio.set_function(lambda: self.audio_samples / SAMPLE_RATE_HZ)
        text = "Seconds of speech that finals were made from."
        speech = CounterFunction("kibun_speech_analyzed_seconds", text, registry)
        speech.set_function(lambda: self.speech_samples / SAMPLE_RATE_HZ)
        utterances = Counter("kibun_utterances", "Results written to clients.", ("kind",), registry=registry)
        self.utterances = {kind: utterances.labels(kind) for kind in ("final", "interim")}
        text = "Interim results that were not sent, by cause."
        dropped = Counter("kibun_interims_dropped", text, ("cause",), registry=registry)
        self.interims_dropped = {cause: dropped.labels(cause) for cause in get_args(DropCause)}
        text = "Utterances whose analysis began in the silence after them, by what became of it."
        eager = Counter("kibun_eager_finals", text, ("outcome",), registry=registry)
        self.eager = {outcome: eager.labels(outcome) for outcome in get_args(EagerOutcome)}

        text = "From an utterance being queued until its batch leaves for a worker."
        delay = Histogram("kibun_queue_delay_seconds", text, ("kind",), buckets=SHORT_S, registry=registry)
        self.queue_delay = {kind: delay.labels(kind) for kind in get_args(JobKind)}
        text = "From a batch leaving for a worker until it is answered."
        self.inference = Histogram("kibun_inference_seconds", text, buckets=SHORT_S, registry=registry)
        self.batch_jobs = Histogram("kibun_batch_jobs", "Utterances in a batch.", buckets=JOBS, registry=registry)
        text = "From the end of an utterance being found until its final has been written to the client."
        self.final_latency = Histogram("kibun_final_latency_seconds", text, buckets=SHORT_S, registry=registry)

        self.ready = Gauge("kibun_ready", "1 while the health service reports SERVING.", registry=registry)
        self.workers = Gauge("kibun_workers", "Worker processes that are alive.", registry=registry)
        text = "Workers started in place of dead ones."
        self.worker_restarts = CounterFunction("kibun_worker_restarts", text, registry)
        text = "Processes started in place of this front when it had ended (--fronts)."
        self.front_restarts = CounterFunction("kibun_front_restarts", text, registry)
        self.queued_jobs = Gauge("kibun_queued_jobs", "Utterances that wait for a worker.", registry=registry)
        text = "Share of the machine that the finals of all open streams are expected to need."
        self.load_ratio = Gauge("kibun_load_ratio", text, registry=registry)
        text = "Mean time that finals are predicted to wait for a worker, with the streams that are open."
        self.predicted_delay = Gauge("kibun_predicted_delay_seconds", text, registry=registry)
        text = "Predicted delay above which new conversations are refused."
        self.target_delay = Gauge("kibun_target_delay_seconds", text, registry=registry)
        text = "Conversations in this process's memory."
        self.conversations = Gauge("kibun_conversations", text, registry=registry)
        text = "Requests that the conversation store did not answer."
        self.store_errors = Counter("kibun_store_errors", text, registry=registry)
        text = "Times that a conversation in the store could not be read: what it held counts as lost."
        self.store_damaged = Counter("kibun_store_damaged", text, registry=registry)
        text = "Files of tokens or certificates that could not be used when they were read again."
        self.reload_failures = Counter("kibun_reload_failures", text, registry=registry)
        text = "Lines of the log that could not be written."
        self.log_lines_lost = CounterFunction("kibun_log_lines_lost", text, registry)
        text = "How late the event loop was for a timer, measured twice a second."
        self.loop_lag = Histogram("kibun_event_loop_lag_seconds", text, buckets=SHORT_S, registry=registry)

    def describe_process(self, ready: Callable[[], bool]) -> None:
        """Adds what the system knows of this process; `ready` is called in the exporter's threads."""
        ProcessCollector(registry=self.registry)
        self.ready.set_function(ready)

    def call_ended(self, method: str, code: str, reason: str) -> None:
        """Counts a call by how it ended; `reason` is empty where all went well."""
        self._calls.labels(method, code, self._bounded(reason) if reason else "").inc()

    def call_refused(self, reason: str) -> None:
        """Counts a call that was turned away before any audio."""
        self._refusals.labels(self._bounded(reason)).inc()

    def connection_cut(self, reason: str) -> None:
        """Counts a connection that the server cut off."""
        self._cut.labels(self._bounded(reason)).inc()

    def _bounded(self, reason: str) -> str:
        """Reasons are literals of this package; should one ever not be, it does not become a label."""
        if reason not in self._reasons:
            if len(self._reasons) >= MAX_REASONS or not _REASON.fullmatch(reason):
                return OTHER
            self._reasons.add(reason)
        return reason


class CounterFunction(Collector):
    """A counter that is read from what counts already; prometheus_client has `set_function` for gauges only."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._read: Callable[[], float] = lambda: 0
        registry.register(self)

    def set_function(self, read: Callable[[], float]) -> None:
        """`read` is called in the exporter's threads."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._text, self._read())
