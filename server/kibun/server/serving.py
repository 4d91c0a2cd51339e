"""Builds a server from its parts, runs it, and stops it."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from grpc_reflection.v1alpha import reflection

from kibun.models.files import BundleError, resolve_bundle, written_atomically
from kibun.server.api.auth import Authenticator, TokenFileError
from kibun.server.api.contract import MAX_ANALYZE_BYTES
from kibun.server.api.gate import Gate
from kibun.server.api.health import Health
from kibun.server.api.service import SpeechAnalysis
from kibun.server.api.tls import Certificates
from kibun.server.audio.vad import make_vad
from kibun.server.conversation.open_store import open_store
from kibun.server.conversation.store import ConversationStore, MemoryStore
from kibun.server.errors import StartError
from kibun.server.inference.backend import BackendError, ModelInfo
from kibun.server.inference.batcher import Batcher
from kibun.server.inference.worker_pool import DEFAULT_LOADER, LocalBackend
from kibun.server.observability import logs
from kibun.server.observability.setup import Observability, shown
from kibun.server.observability.telemetry import SERVICE
from kibun.server.observability.watchdog import Watchdog
from kibun.server.session.capability import notice
from kibun.server.settings import Settings

log = logging.getLogger(__name__)

GRPC_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # otherwise two servers could share a port, and its streams, unnoticed; see `Front`
    ("grpc.http2.bdp_probe", 0),  # with the next: a stalled server buffers 2 s of audio, not 130 s
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # otherwise a frozen peer is noticed only after a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_idle_ms", 300_000),  # without a call; clients reconnect when they need to
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 3_600_000),  # above the longest turn
    ("grpc.server_handshake_timeout_ms", 5_000),  # a peer that connects and sends nothing is closed
    ("grpc.max_receive_message_length", MAX_ANALYZE_BYTES + 65_536),
    ("grpc.max_metadata_size", 65_536),  # up to here, the gate refuses too much of it with a reason
    ("grpc.absolute_max_metadata_size", 65_536),
)
STATUS_S = 0.5  # the longest that statuses may take to be sent when the server stops
STOP_S = 1.0  # the longest that calls and workers may take to end, whatever hangs, …
CLOSE_S = 0.5  # … and the store after them
SPANS_S = 2.5  # the longest that the last spans may take to be sent, unless stopped at once
OWN_FILES = 128  # open files that are not connections: pipes to workers, libraries, the store


@dataclass(frozen=True, slots=True)
class Front:
    """One of the `settings.fronts` servers that share a port and this machine; see `fronts`.

    It listens only once its models are loaded, as the kernel gives a share of all new connections to whoever listens.
    """

    number: int  # from 0
    restarts: int = 0  # of it, so far


class Server:
    """A gRPC server with worker processes behind it. `run` returns once it has stopped."""

    def __init__(self, settings: Settings, front: Front | None = None) -> None:
        """`settings`: with several fronts, those of all together; this one takes its share."""
        self.settings = settings
        self.port = 0
        self.metrics_port: int | None = None
        self._front = front
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._store: ConversationStore = MemoryStore()
        self._health = Health(SERVICE)
        self._gate: Gate | None = None  # until `run` makes it
        self._authenticator = self._read_tokens()
        self._certificates = self._read_certificates()
        self._watchdog = Watchdog(settings.watchdog)
        self._observability = Observability(
            metrics_host=settings.metrics_host,
            metrics_port=settings.metrics_port,
            otlp_endpoint=settings.otlp_endpoint,
        )
        self._serving = False

    @property
    def serving(self) -> bool:
        """Whether the health service reports SERVING."""
        return self._serving

    async def run(self) -> None:
        """Serves until stopped. Raises StartError if it cannot start."""
        settings = self.settings
        self._handle_signals()
        self._load_vad()
        credentials = self._certificates.credentials() if self._certificates else None
        self._find_models()
        stopping = asyncio.create_task(self._stop.wait())
        metrics = self._observability.telemetry.metrics
        opening = asyncio.create_task(
            open_store(
                settings.store,
                metrics.store_errors.inc,
                metrics.store_damaged.inc,
                insecure=settings.insecure,
                tenant_conversations=settings.tenant_conversations,
            )
        )
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            return
        self._store = opening.result()
        backend = LocalBackend(
            settings.models,
            device=settings.device,
            threads=settings.threads,
            sharing=settings.fronts,
            allow_untrained=settings.allow_untrained,
            precision=settings.precision,
            loader=settings.loader,
            times=settings.worker_times,
        )
        batcher = Batcher(backend, telemetry=self._observability.telemetry, target_delay_s=settings.target_delay_s)
        loading = asyncio.create_task(_load(backend, batcher))  # before gRPC has threads in this process
        await asyncio.sleep(0)
        service = self._service(batcher)
        self._gate = service.gate
        service.gate.watch_calls()
        server = grpc.aio.server(interceptors=[service.gate], options=_grpc_options(settings))
        try:
            if self._front is None:
                await self._listen(server, service, credentials)
            self._watchdog.start()
            # Called in other threads; none of these changes anything.
            metrics.workers.set_function(lambda: len(backend.pids))
            metrics.worker_restarts.set_function(lambda: backend.restarts)
            metrics.front_restarts.set_function(lambda: self._front.restarts if self._front else 0)
            metrics.queued_jobs.set_function(lambda: batcher.queued)
            metrics.load_ratio.set_function(lambda: batcher.load)
            metrics.predicted_delay.set_function(lambda: batcher.delay_s)
            metrics.target_delay.set_function(lambda: batcher.target_delay_s)
            metrics.conversations.set_function(lambda: len(self._store))
            metrics.log_lines_lost.set_function(logs.lost_lines)
            self.metrics_port = self._observability.open(
                ready=lambda: self._serving and not self._watchdog.blocked, alive=lambda: not self._watchdog.blocked
            )
            if self.metrics_port is not None and self._front is None:
                logs.report(f"metrics on http://{shown(settings.metrics_host)}:{self.metrics_port}/metrics")
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return
            service.serve(loading.result())
            if self._front is not None:
                await self._listen(server, service, credentials)
            await self._announce(service)
            await self._watch(backend, service, stopping)
            await self._drain(service)
        except BackendError as error:
            raise StartError(error.message) from error
        finally:
            stopping.cancel()
            loading.cancel()
            batcher.close()
            await _at_most(STOP_S, server.stop(grace=STATUS_S), backend.close(), loading)
            await _at_most(CLOSE_S, self._store.close())
            await _at_most(CLOSE_S if self._stop_now.is_set() else SPANS_S, self._observability.close())
            self._watchdog.stop()

    def stop(self) -> None:
        """Drains the server; the second call stops it at once."""
        if self._stop.is_set():
            self.stop_at_once()
        else:
            self.drain()

    def drain(self) -> None:
        """Stops the server once its streams have ended, or after `grace_s`; the second call changes nothing."""
        self._stop.set()

    def stop_at_once(self) -> None:
        """Stops the server, whatever streams are open."""
        self._stop.set()
        self._stop_now.set()

    # ---- starting

    def _find_models(self) -> None:
        """Raises StartError at once for a missing model; the worker would notice only after importing torch."""
        if self.settings.loader == DEFAULT_LOADER:
            try:
                for model in self.settings.models:
                    resolve_bundle(model)
            except BundleError as error:
                raise StartError(str(error)) from error

    def _load_vad(self) -> None:
        try:
            make_vad(self.settings.vad, self.settings.endpointing.vad_aggressiveness)
        except (ModuleNotFoundError, ValueError) as error:  # no detector, or a release that is not known
            raise StartError(str(error)) from error

    def _read_tokens(self) -> Authenticator:
        try:
            return Authenticator(self.settings.token_file)
        except TokenFileError as error:
            raise StartError(str(error)) from error

    def _service(self, batcher: Batcher) -> SpeechAnalysis:
        settings = self.settings
        return SpeechAnalysis(
            analyzer=batcher,
            store=self._store,
            make_vad=lambda aggressiveness: make_vad(settings.vad, aggressiveness),
            vad=settings.vad,
            endpointing=settings.endpointing,
            authenticator=self._authenticator,
            limits=replace(settings.limits, max_streams=settings.share(settings.limits.max_streams)),
            stream_limits=settings.stream_limits,
            telemetry=self._observability.telemetry,
        )

    async def _listen(
        self, server: grpc.aio.Server, service: SpeechAnalysis, credentials: grpc.ServerCredentials | None
    ) -> None:
        """Starts answering, with UNAVAILABLE LOADING until the models are served. Raises StartError."""
        server.add_generic_rpc_handlers((service.handler(),))
        server.add_generic_rpc_handlers((self._health.handler(),))
        if self.settings.reflection:
            reflection.enable_server_reflection((SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
        address = f"{shown(self.settings.host)}:{self.settings.port}"
        try:
            if credentials is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise cannot_listen(address) from error
        await server.start()

    def _read_certificates(self) -> Certificates | None:
        """Returns None where the server runs without TLS."""
        settings = self.settings
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    async def _announce(self, service: SpeechAnalysis) -> None:
        self._set_health(serving=True)
        if self._front is not None and (self._front.number or self._front.restarts):
            return  # said already
        if self._front is None:
            logs.report(f"serving on {self.settings.host}:{self.port}")
        for model in service.models:
            if model.precision:
                logs.report(f"{model.name} runs in {model.precision}", "WARNING" if model.slowed else "INFO")
            if model.license:
                logs.report(f"{model.name}: licence of the weights: {model.license}")
            if text := notice(model):
                logs.report(f"{model.name}: {text}", "WARNING")
        if self._front is None:
            write_port(self.settings.port_file, self.port)

    # ---- running

    async def _watch(self, backend: LocalBackend, service: SpeechAnalysis, stopping: asyncio.Task[bool]) -> None:
        """Until asked to stop, keeps health up to date, ends calls whose token is revoked, and erases expired data."""
        serving = True
        ticks = 0
        while not stopping.done():
            await asyncio.wait((stopping,), timeout=0.25)
            healthy = backend.ready() and not self._watchdog.blocked
            if healthy is not serving:
                serving = healthy
                self._set_health(serving=serving)
            ticks += 1
            if ticks % 4 == 0:
                service.gate.end_revoked()
            if ticks % 120 == 0:
                self._store.sweep()

    def _set_health(self, *, serving: bool) -> None:
        self._serving = serving
        self._health.set(serving=serving)

    async def _drain(self, service: SpeechAnalysis) -> None:
        """Sets health to NOT_SERVING, warns clients, gives open streams `grace_s` seconds, and ends the rest."""
        self._set_health(serving=False)
        service.drain()
        hurry = asyncio.create_task(self._stop_now.wait())
        try:
            async with asyncio.timeout(self.settings.grace_s):
                while service.active_streams and not hurry.done():
                    await asyncio.wait((hurry,), timeout=0.05)
                    service.gate.end_revoked()
        except TimeoutError:
            log.warning("streams were still open after the grace period", extra={"count": service.active_streams})
        finally:
            hurry.cancel()
            await service.end_streams()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        if self._front is None:
            loop.add_signal_handler(signal.SIGTERM, self.stop)
            loop.add_signal_handler(signal.SIGINT, self.stop)
        else:  # a service manager sends SIGTERM to all processes, and then so does the supervisor: both mean to drain
            loop.add_signal_handler(signal.SIGTERM, self.drain)
            loop.add_signal_handler(signal.SIGINT, self.stop_at_once)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        """Reloads tokens and certificates, then says so; a file that cannot be used leaves in use what was loaded."""
        said = []
        for source in (self._authenticator, self._certificates):
            if source is not None:
                try:
                    source.reload()
                    said.append((f"reloaded {source}", "INFO"))
                except (TokenFileError, StartError) as error:
                    self._observability.telemetry.metrics.reload_failures.inc()
                    said.append((f"not reloaded, what was loaded before stays in use: {error}", "ERROR"))
        if self._gate is not None:
            self._gate.refresh()
        for text, level in said:
            logs.report(text, level)


def cannot_listen(address: str) -> StartError:
    """What to say of an address, HOST:PORT, that cannot be listened on."""
    causes = "the port may be taken (--port 0 picks a free one), or the host not an address of this machine"
    return StartError(f"cannot listen on {address}: {causes}")


def write_port(path: Path | None, port: int) -> None:
    """Writes the port to the file that --port-file names, if any. Raises StartError."""
    if path is not None:
        try:
            with written_atomically(path) as draft:
                draft.write_text(f"{port}\n")
        except OSError as error:
            raise StartError(f"--port-file {path}: {error.strerror}") from error


def _grpc_options(settings: Settings) -> list[tuple[str, int]]:
    """Returns GRPC_OPTIONS and those that depend on settings.

    A connection may have more calls than the server admits streams, so that further ones get their refusal. The bound
    is for clients that do not even read that: each such call takes 150 KB until it is cancelled or its connection ends.
    """
    streams = max(100, 2 * settings.share(settings.limits.max_streams))
    connections = _allow_connections(settings.share(settings.max_connections))
    options = {
        **dict(GRPC_OPTIONS),
        "grpc.so_reuseport": int(settings.fronts > 1),
        "grpc.max_concurrent_streams": streams,
        "grpc.max_allowed_incoming_connections": connections,
    }
    return list(options.items())


def _allow_connections(wanted: int) -> int:
    """Raises this process's limit of open files for `wanted` connections; returns how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    files = wanted + OWN_FILES
    if soft != unlimited and soft < files:
        soft = files if hard == unlimited else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == unlimited or soft >= files:
        return wanted
    allowed = max(soft - OWN_FILES, 1)
    text = f"only {allowed} connections, not {wanted}, are possible: this process may open {hard} files (ulimit -Hn)"
    logs.report(text, "WARNING")
    return allowed


async def _load(backend: LocalBackend, batcher: Batcher) -> tuple[ModelInfo, ...]:
    """Returns the models once a worker serves them and their cost is known. Raises BackendError."""
    models = await backend.start()
    batcher.learn_costs()
    return models


async def _at_most(seconds: float, *work: Awaitable[object]) -> None:
    """Waits for all of `work`, at most this long, and logs what it raises."""
    tasks = {asyncio.ensure_future(each) for each in work}
    done, hanging = await asyncio.wait(tasks, timeout=seconds)
    for task in hanging:
        task.cancel()
    if hanging:
        logs.report(f"stopped without waiting for {', '.join(sorted(map(_name, hanging)))}", "WARNING")
    for task in done:
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, BackendError):
            log.error("stopping a part failed", exc_info=error)


def _name(task: asyncio.Future[object]) -> str:
    return str(getattr(task.get_coro(), "__qualname__", task)) if isinstance(task, asyncio.Task) else repr(task)
