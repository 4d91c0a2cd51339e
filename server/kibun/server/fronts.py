"""`kibun serve --fronts N`: the supervisor of N servers on one port, each a process with a worker of its own.

A front in Python is one event loop, so one core at most. The kernel spreads new connections over all fronts
(SO_REUSEPORT). They share nothing but the port, the conversations (in Redis) and the machine: one that dies takes its
own streams with it, which their clients resume at another, and is started again. Neither gRPC nor models run here.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from kibun.server.errors import StartError
from kibun.server.front import BEAT_S, Orders, Status, message
from kibun.server.observability import logs
from kibun.server.observability.exporter import Exporter
from kibun.server.observability.joined import JoinedMetrics
from kibun.server.observability.setup import open_exporter, shown
from kibun.server.observability.suspension import suspended
from kibun.server.observability.watchdog import Watchdog
from kibun.server.serving import CLOSE_S, SPANS_S, STOP_S, Front, cannot_listen, write_port
from kibun.server.settings import Settings

MUTE_S = 5.0  # beyond the time in which a blocked front ends by itself; then it is killed
END_S = 2 * CLOSE_S + STOP_S + SPANS_S + 2.0  # the longest that a front may take to end after its grace
BACKOFF_FIRST_S = 0.1  # before the second restart in a row; the first is immediate, then it doubles
BACKOFF_MAX_S = 10.0
STABLE_S = 30.0  # a front that ran this long ends the row
EXIT_S = 1.0  # the longest that a process whose pipes are closed may take to end
PORT_TRIES = 20

# -P: a module in the current directory must not be imported as another's.
_COMMAND = (sys.executable, "-P", "-c", "from kibun.server.front import main; main()")

log = logging.getLogger(__name__)


class Fronts:
    """Keeps `settings.fronts` servers running. `run` returns once all of them have stopped."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = 0
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._watchdog = Watchdog(settings.watchdog)
        self._fronts: list[_Front] = []
        self._exporter: Exporter | None = None
        self._ready = False

    async def run(self) -> None:
        """Serves until stopped. Raises StartError if a front cannot start."""
        self._handle_signals()
        with reserved_port(self.settings.host, self.settings.port) as self.port:
            settings = self._settings_of_a_front()
            self._fronts = [_Front(number, settings, self._stop) for number in range(self.settings.fronts)]
            keeping = [asyncio.create_task(front.keep()) for front in self._fronts]
            try:
                self._watchdog.start()
                self._open_exporter()
                if await self._started(keeping):
                    self._ready = True
                    logs.report(f"serving on {self.settings.host}:{self.port} with {self.settings.fronts} fronts")
                    write_port(self.settings.port_file, self.port)
                    await self._stop.wait()
            finally:
                self._ready = False
                self._stop.set()
                await self._end(keeping)
                if self._exporter is not None:
                    self._exporter.close()
                self._watchdog.stop()

    def stop(self) -> None:
        """Drains all fronts; the second call stops them at once."""
        (self._stop_now if self._stop.is_set() else self._stop).set()

    def _settings_of_a_front(self) -> Settings:
        """Its metrics are read by `JoinedMetrics` alone."""
        port = None if self.settings.metrics_port is None else 0
        return replace(self.settings, port=self.port, port_file=None, metrics_host="127.0.0.1", metrics_port=port)

    def _open_exporter(self) -> None:
        """Raises StartError."""
        host, port = self.settings.metrics_host, self.settings.metrics_port
        if port is None:
            return
        metrics = JoinedMetrics(lambda: {front.number: front.status.metrics_port for front in self._fronts})
        self._exporter = Exporter(
            metrics.registry,
            ready=lambda: self._ready and any(front.status.serving for front in self._fronts),
            alive=lambda: not self._watchdog.blocked,
        )
        port = open_exporter(self._exporter, host, port)
        logs.report(f"metrics on http://{shown(host)}:{port}/metrics")

    async def _started(self, keeping: list[asyncio.Task[None]]) -> bool:
        """Waits until all serve; False where it was stopped before. Raises StartError."""
        stopping = asyncio.create_task(self._stop.wait())
        serving = asyncio.create_task(self._all_have_served())
        try:
            await asyncio.wait((*keeping, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            stopping.cancel()
        for kept in keeping:
            if kept.done():
                kept.result()
        return serving.done() and not self._stop.is_set()

    async def _all_have_served(self) -> None:
        for front in self._fronts:
            await front.has_served.wait()

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        """Has all fronts drain, passes on a second request to stop, and kills those that have not ended in time."""
        ended = asyncio.gather(*keeping, return_exceptions=True)
        hurry = asyncio.create_task(self._stop_now.wait())
        self._signal(signal.SIGTERM)
        timeout_s = self.settings.grace_s + END_S
        await asyncio.wait((ended, hurry), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            self._signal(signal.SIGINT)
            await asyncio.wait((ended,), timeout=END_S)
        self._signal(signal.SIGKILL)
        hurry.cancel()
        await ended

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._signal, signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        for front in self._fronts:
            front.signal(number)


class _Front:
    """One front, in one process after the other."""

    def __init__(self, number: int, settings: Settings, stop: asyncio.Event) -> None:
        self.number = number
        self.status = Status()
        self.has_served = asyncio.Event()
        self._settings = settings
        self._stop = stop
        self._process: asyncio.subprocess.Process | None = None
        self._heard = False  # of this process
        self._restarts = 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to its process, if there is one, and SIGHUP only if it can handle that."""
        if self._process is not None and (self._heard or number != signal.SIGHUP):
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def keep(self) -> None:
        """Starts a process, and another whenever one has ended, until `stop` is set and the last has ended.

        Raises StartError where the first ends before it serves.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stop.is_set():
            began = loop.time()
            try:
                how, error = await self._run()
            except OSError as problem:
                how, error = {}, f"cannot start a process: {problem.strerror}"
            if self._stop.is_set():
                return
            if not self.has_served.is_set():
                raise StartError(error or f"front {self.number} ended before it served; see its log lines above")
            if error is not None:
                logs.report(f"front {self.number}: {error}", "ERROR")
            log.error("a front ended; starting another", extra={"front": self.number, **how})
            failures = 0 if loop.time() - began >= STABLE_S else failures
            if failures:
                delay_s = min(BACKOFF_FIRST_S * 2 ** min(failures - 1, 30), BACKOFF_MAX_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), delay_s)
            failures += 1
            self._restarts += 1

    async def _run(self) -> tuple[dict[str, int], str | None]:
        """Runs a process to its end. Returns its id and how it ended, as fields of a log line, and its last words."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if sys.__stderr__ is not None else asyncio.subprocess.DEVNULL,
            process_group=0,
        )
        assert process.stdin is not None
        self._process, self._heard = process, False
        if self._stop.is_set():  # meanwhile
            self.signal(signal.SIGTERM)
        try:
            front = Front(self.number, self._restarts)
            level = logging.getLogger().getEffectiveLevel()
            process.stdin.write(message(Orders(front, self._settings, level, logs.chosen())))
            await self._hear(process)
            error = self.status.error
        finally:
            self.status = Status()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), EXIT_S)
            with suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
            self._process = None
        return {"pid": process.pid, **({"signal": -code} if code < 0 else {"exit_code": code})}, error

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        """Takes what a process tells, until its end; kills one that has gone mute: its blocked loop would end it."""
        assert process.stdout is not None
        loop = asyncio.get_running_loop()
        while True:
            patience_s = self._settings.watchdog.exit_after_s + BEAT_S + MUTE_S
            due = loop.time() + (patience_s if self._heard else self._settings.worker_times.start_s)
            try:
                async with asyncio.timeout_at(due):
                    line = await process.stdout.readline()
            except TimeoutError:
                if not suspended(loop.time() - due):
                    log.error("a front does not answer; killed", extra={"front": self.number, "pid": process.pid})
                    with suppress(ProcessLookupError):
                        process.kill()
                continue
            if not line:
                return
            self._heard = True
            try:
                self.status = Status(**json.loads(line))
            except (ValueError, TypeError):  # of a library that prints: no reason to stop watching
                log.warning("a front printed what is not a message", extra={"front": self.number})
            if self.status.serving:
                self.has_served.set()


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Yields a port of `host` that processes of this user can share from now on, and that nothing else has.

    port: 0 picks a free one. Raises StartError.
    """
    sockets = _reserve(host, port)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        for each in sockets:
            each.close()


def _reserve(host: str, port: int) -> list[socket.socket]:
    """Binds a socket to each address of the host; they get no connections, as none of them listens."""
    problem: OSError | None = None
    for _ in range(1 if port else PORT_TRIES):  # one that is free at the first address may be taken at the next
        sockets: list[socket.socket] = []
        try:
            for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                wanted = sockets[0].getsockname()[1] if sockets else port
                sockets += _bound(family, (address[0], wanted, *address[2:]))
            if sockets:
                return sockets
        except OSError as error:
            problem = error
            for each in sockets:
                each.close()
    raise cannot_listen(f"{shown(host)}:{port}") from problem


def _bound(family: socket.AddressFamily, address: tuple[str | int, ...]) -> list[socket.socket]:
    """Returns a bound socket; none where this machine does not have the address. Raises OSError where it is taken."""
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return []
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server do not count
        bound.bind(address)  # alone, as nothing else may have the port; from now on fronts may
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        bound.close()
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return []
    return [bound]
