"""A peer's server: all of its processes, their memory, and the end of one of them. Linux only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from kibun.bench.support.child import children, cpu_seconds
from peers.catalogue import Peer
from peers.settings import SETTINGS, WORKERS, Settings

_MARK = "PEERS_RUN"
_ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A peer that serves, until the context ends. Its processes are known by a mark in their environment.

    One whose own process is its worker, with nobody to start it again, is started again here, as systemd would.
    """

    def __init__(self, peer: Peer, python: Path, settings: Settings, log: Path) -> None:
        self._peer = peer
        self._log = log
        self._mark = uuid.uuid4().hex
        self._workers = Path(tempfile.mkdtemp(prefix="peers-"))
        settings = replace(settings, port=free_port())
        self.target = f"127.0.0.1:{settings.port}"
        self._command = peer.command(python, settings)
        self._environment = {
            **os.environ,
            _MARK: self._mark,
            SETTINGS: json.dumps(asdict(settings)),
            WORKERS: str(self._workers),
            "PYTHONPATH": f"{_ROOT / 'models'}:{_ROOT / 'benchmarks'}" if peer.server else "",
            # Nothing is reported to anyone, and no telemetry thread takes its share of a core.
            **{"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
        }
        self._main: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._watching: list[threading.Thread] = []
        self.peak_mb = 0.0
        self.started_at = 0.0

    def __enter__(self) -> Self:
        self.started_at = time.monotonic()
        self._start()
        self._watching = [threading.Thread(target=self._watch_memory), threading.Thread(target=self._supervise)]
        for thread in self._watching:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._watching:
            thread.join()
        assert self._main is not None
        self._main.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._main.wait(10)
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        self._main.wait()

    def processes(self) -> list[int]:
        """All of the server's processes, whoever started them."""
        mark, found = f"{_MARK}={self._mark}".encode(), []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):  # gone meanwhile, or not ours
                    if mark in (folder / "environ").read_bytes().split(b"\0") and pss_kb(folder) is not None:
                        found.append(int(folder.name))
        return found

    def kill_worker(self) -> float:
        """SIGKILL to the process with the model that computes most right now. Returns when, on the monotonic clock."""
        assert self._main is not None
        alive = set(self.processes())
        workers = [int(path.name) for path in self._workers.iterdir() if int(path.name) in alive]
        workers = workers or children(self._main.pid)  # of kibun
        before = {pid: cpu_seconds(pid) for pid in workers}
        time.sleep(0.3)
        busiest = max(workers, key=lambda pid: cpu_seconds(pid) - before[pid])
        os.kill(busiest, signal.SIGKILL)
        return time.monotonic()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._main = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )

    def _supervise(self) -> None:
        while not self._over.wait(0.1):
            if not self._peer.restarts and self._main is not None and self._main.poll() is not None:
                self._start()

    def _watch_memory(self) -> None:
        while not self._over.wait(2.0):
            total = sum(pss_kb(Path(f"/proc/{pid}")) or 0 for pid in self.processes())
            self.peak_mb = max(self.peak_mb, total / 1024)


def pss_kb(folder: Path) -> int | None:
    """Proportional set size of a process: what it shares is divided among those that share it. None: it has ended."""
    with suppress(OSError, StopIteration):
        lines = (folder / "smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return None


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
