"""A kibun server as a child process on a free port: for `demo`, `analyze` without --server, and tests."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_S = 0.05
_TAIL_LINES = 15


# What of a server's settings in the environment also holds for one that is started for a single program. The others are
# meant for a server that is to be reached: its address, its port for metrics, its TLS, tokens and store.
_KEPT = ("KIBUN_DEVICE", "KIBUN_THREADS", "KIBUN_PRECISION", "KIBUN_VAD", "KIBUN_LOG", "KIBUN_LOG_FORMAT")


class ServerStartError(Exception):
    """The server did not become ready; the text ends with the last lines of its stderr."""


class ServerProcess:
    """`kibun serve --model MODEL --port 0`; a context manager that starts it, waits until it serves, and stops it.

    `arguments` are further options of `kibun serve`. The server's stderr goes to a temporary file, see `stderr`. It
    also stops when this process ends, even if that is killed: its stdin is a pipe from here, and ends then.
    """

    def __init__(
        self,
        model: str,
        arguments: Sequence[str] = (),
        *,
        ready_timeout_s: float = 120.0,
        stop_grace_s: float = 10.0,
    ) -> None:
        self._model = model
        self._arguments = tuple(arguments)
        self._ready_timeout_s = ready_timeout_s
        self._stop_grace_s = stop_grace_s
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._last_stderr = ""

    @property
    def target(self) -> str:
        """ "127.0.0.1:PORT" of the server that runs."""
        if self._port is None:
            raise RuntimeError("the server has not been started")
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the server that runs."""
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process.pid

    @property
    def stderr(self) -> str:
        """What the server has written on stderr, also after it was stopped."""
        if self._folder is None:
            return self._last_stderr
        return (Path(self._folder.name) / "stderr").read_text(errors="replace")

    def start(self) -> None:
        """Starts the server and blocks until it serves; harmless when it runs. Raises ServerStartError."""
        if self._process is not None and self._process.poll() is None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="kibun-")
        port_file = Path(self._folder.name) / "port"
        command = [sys.executable, "-m", "kibun.client.main", "serve"]
        command += ["--model", self._model, "--port", "0", "--port-file", str(port_file), "--until-stdin-ends"]
        with (Path(self._folder.name) / "stderr").open("wb") as stderr:
            # stdout is for the caller's own output.
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                env=_environment(),
            )
        try:
            self._port = self._wait_for_port(self._process, port_file)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Asks the server to stop, and kills it when it has not within the grace. May be repeated."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._stop_grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._folder is not None:
            self._last_stderr = self.stderr
            self._folder.cleanup()
            self._folder = None
        self._port = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_for_port(self, process: subprocess.Popen[bytes], port_file: Path) -> int:
        deadline = time.monotonic() + self._ready_timeout_s
        while time.monotonic() < deadline:
            if port_file.exists() and (text := port_file.read_text().strip()):
                return int(text)
            if process.poll() is not None:
                raise ServerStartError(f"the server ended with exit code {process.returncode}:\n{self._tail()}")
            time.sleep(_POLL_S)
        raise ServerStartError(f"the server was not ready within {self._ready_timeout_s:g} s:\n{self._tail()}")

    def _tail(self) -> str:
        lines = self.stderr.splitlines()
        return "\n".join(lines[-_TAIL_LINES:]) or "(it wrote nothing on stderr)"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KIBUN_") or name in _KEPT}
