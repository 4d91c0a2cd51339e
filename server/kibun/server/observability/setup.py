"""Starts and stops what the settings ask for: metrics, health probes and traces of one server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kibun.server.errors import StartError
from kibun.server.observability.exporter import Exporter
from kibun.server.observability.telemetry import Telemetry, traces_wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from kibun.server.observability.tracing import OtelTracer

LAG_EVERY_S = 0.5


class Observability:
    """Metrics, probes and traces; the server's parts report to `telemetry`. `open` and `close` need the event loop."""

    def __init__(self, *, metrics_host: str, metrics_port: int | None, otlp_endpoint: str | None) -> None:
        """Arguments are fields of `Settings`. Raises StartError where traces are asked for and cannot be sent."""
        self._metrics_host, self._metrics_port = metrics_host, metrics_port
        self._tracer = _tracer(otlp_endpoint)
        self._exporter: Exporter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.telemetry = Telemetry(self._tracer)

    def open(self, *, ready: Callable[[], bool], alive: Callable[[], bool]) -> int | None:
        """Starts serving metrics and probes, if asked to; arguments as for `Exporter`. Raises StartError.

        Returns the port.
        """
        self._watch_lag(asyncio.get_running_loop())
        if self._metrics_port is None:
            return None
        metrics = self.telemetry.metrics
        metrics.describe_process(ready)
        self._exporter = Exporter(metrics.registry, ready=ready, alive=alive)
        return open_exporter(self._exporter, self._metrics_host, self._metrics_port)

    async def close(self) -> None:
        """Sends the last traces and stops serving metrics. Takes little more than 2 s (`tracing.FLUSH_S`)."""
        if self._timer is not None:
            self._timer.cancel()
        if self._tracer is not None:
            await self._tracer.close()
        if self._exporter is not None:
            self._exporter.close()

    def _watch_lag(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + LAG_EVERY_S

        def look() -> None:
            self.telemetry.loop_was_late(max(loop.time() - due, 0.0))
            self._watch_lag(loop)

        self._timer = loop.call_at(due, look)


def open_exporter(exporter: Exporter, host: str, port: int) -> int:
    """Opens it at what the options --metrics-host and --metrics-port say; returns the port. Raises StartError."""
    try:
        return exporter.open(host, port)
    except OSError as error:
        causes = "the port may be taken (--metrics-port 0 picks a free one), or --metrics-host not this machine's"
        raise StartError(f"--metrics-port {port}: cannot listen on {shown(host)}:{port}: {causes}") from error


def shown(host: str) -> str:
    """The host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _tracer(endpoint: str | None) -> OtelTracer | None:
    """Returns None where no traces are asked for, or only OpenTelemetry's variables do and it is not installed."""
    if endpoint is None and not traces_wanted():
        return None
    try:
        from kibun.server.observability.tracing import OtelTracer
    except ModuleNotFoundError as error:
        if endpoint is None:
            return None
        raise StartError("--otlp-endpoint needs OpenTelemetry: pip install 'kibun[otel]'") from error
    try:
        return OtelTracer(endpoint)
    except ValueError as error:
        raise StartError(f"--otlp-endpoint: {error}" if endpoint else str(error)) from error
