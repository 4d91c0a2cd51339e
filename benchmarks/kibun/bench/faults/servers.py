"""The processes of a fault run: servers and a Redis that can be killed, frozen and started again at the same port.

Whatever happens, `Processes` ends every process that it started, by its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kibun.bench.support.child import children

START_S = 60.0  # a machine may be busy
LOADER = "kibun.bench.support.stub_model:load_recalling"
GRACE_S = 1.0  # of a server that drains: streams that take longer are resumed elsewhere
_POLL_S = 0.02


class StartFailed(Exception):
    """A process did not start; the text gives the reason."""


class Processes:
    """Starts processes, and ends those that are left at the end. A context manager."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="kibun-faults-")
        self.servers_started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            self.kill(process)
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """For files of the processes; gone afterwards."""
        return Path(self._folder.name)

    def start(self, command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """Starts a process in its own group, so that Ctrl-C does not reach it. Its output is appended to a file."""
        with output.open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0, env=dict(os.environ)
            )
        self._running = [other for other in self._running if other.poll() is None]
        self._running.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL, and no zombie is left."""
        if process.poll() is None:
            process.kill()
            process.wait()


class _Restartable:
    """A process that can be frozen, ended, and started again at the same port."""

    def __init__(self, processes: Processes, log: Path) -> None:
        self._processes = processes
        self._log = log
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._busy = asyncio.Lock()  # one fault at a time

    async def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long. Children go on."""
        async with self._busy:
            assert self._process is not None
            _signal(self._process.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                _signal(self._process.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """Ends it at once."""
        async with self._busy:
            if self._process is not None:
                self._processes.kill(self._process)


class RestartableServer(_Restartable):
    """`kibun serve` with the recalling stub model at a port that stays the same."""

    def __init__(self, processes: Processes, name: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(processes, processes.folder / f"{name}.log")
        self._arguments = tuple(arguments)
        self._port_file = processes.folder / f"{name}.port"

    @property
    def worker(self) -> int | None:
        """Process id of the worker, None while there is none."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            return next(iter(children(self._process.pid)), None)
        return None

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def take_log(self) -> str:
        """All that it has written, over all its lives; forgotten then."""
        text = self._log.read_text(errors="replace")
        self._log.write_bytes(b"")
        return text

    async def start(self) -> None:
        """Starts it and waits until it serves. Raises StartFailed."""
        self._port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "kibun.client.main", "serve", "--model", "stub", "--loader", LOADER]
        command += ["--port", str(self.port), "--port-file", str(self._port_file), "--grace", str(GRACE_S)]
        self._process = self._processes.start([*command, *self._arguments], self._log)
        self._processes.servers_started += 1
        await _until(self._port_file.exists, self._process, self._log)

    async def kill(self, down_s: float) -> None:
        """SIGKILL; after `down_s` it is started again."""
        await self._restart(signal.SIGKILL, asyncio.sleep(down_s))

    async def kill_until(self, over: Awaitable[None]) -> None:
        """SIGKILL; it is started again when something is over."""
        await self._restart(signal.SIGKILL, over)

    async def drain(self, down_s: float) -> None:
        """SIGTERM; `down_s` after its end it is started again."""
        await self._restart(signal.SIGTERM, asyncio.sleep(down_s))

    async def kill_worker(self) -> None:
        """SIGKILL of the worker process."""
        async with self._busy:
            if (worker := self.worker) is not None:
                _signal(worker, signal.SIGKILL)

    async def freeze_worker(self) -> None:
        """SIGSTOP of the worker process, for good."""
        async with self._busy:
            if (worker := self.worker) is not None:
                _signal(worker, signal.SIGSTOP)

    async def _restart(self, number: signal.Signals, down: Awaitable[None]) -> None:
        async with self._busy:
            process = self._process
            assert process is not None
            _signal(process.pid, number)
            while process.poll() is None:  # noqa: ASYNC110 - a process, not an event
                await asyncio.sleep(_POLL_S)
            await down
            await self.start()


class Redis(_Restartable):
    """A redis-server of our own, which writes every change to its file before it answers: a kill loses nothing."""

    def __init__(self, processes: Processes) -> None:
        super().__init__(processes, processes.folder / "redis.log")
        self._folder = Path(tempfile.mkdtemp(prefix="redis-", dir=processes.folder))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Raises StartFailed."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        # Handed to the kernel before it answers: that outlives the process, if not the machine.
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "no"]
        self._process = self._processes.start(command, self._log)
        await _until(lambda: listens(self.port), self._process, self._log)

    async def kill(self, down_s: float) -> None:
        """SIGKILL; after `down_s` it is started again with what it had."""
        async with self._busy:
            assert self._process is not None
            self._processes.kill(self._process)
            await asyncio.sleep(down_s)
            await self.start()


def has_redis_server() -> bool:
    """Whether this machine has the program."""
    return shutil.which("redis-server") is not None


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens at. Another process may take it first."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether something listens at a port of 127.0.0.1."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a process to get ready. Raises StartFailed with the end of its log."""
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise StartFailed(f"{process.args!r} did not start (exit code {process.poll()}):\n{_tail(log)}")
        await asyncio.sleep(_POLL_S)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
