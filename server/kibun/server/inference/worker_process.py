"""The server's side of one worker process: spawn it, wait until it is ready, send it batches, notice its death.

Everything runs on the event loop; nothing blocks it. Requests go to the worker's stdin, answers come from its stdout:
the death of either side is, at once, an end of file for the other. What it writes to stderr, also when it crashes, is
passed on to this process's: the worker never meets a log that is closed, full or not read. The worker leads its own
process group: Ctrl-C in a terminal does not reach it. It is a plain subprocess and not one of multiprocessing's, as
that would run the main module of the embedding program again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO

from kibun.server.inference import worker_start
from kibun.server.inference.backend import BackendError, Job, Outcomes
from kibun.server.inference.worker_protocol import (
    Answers,
    Batch,
    LoadFailed,
    LoadOptions,
    Ready,
    encode,
    read_message,
)
from kibun.server.observability import logs
from kibun.server.observability.log_output import MAX_LINE
from kibun.server.observability.suspension import suspended

_log = logging.getLogger(__name__)

EXIT_GRACE_S = 0.5
"""A process that exits by itself is gone by then. Killing it sooner could lose its exit code (asyncio reaps once)."""


LAST_WORDS_S = 0.2
"""The longest that reading the stderr of a process that has exited may take."""


class WorkerDied(Exception):
    """The worker exited, or was killed at a deadline, before it answered. Its jobs may be tried again."""


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Outcomes]
    deadline: asyncio.TimerHandle


class WorkerProcess:
    """One worker process; made by `spawn`, never restarted."""

    def __init__(self, process: asyncio.subprocess.Process | _EarlyProcess, on_change: Callable[[], None]) -> None:
        self._process = process
        self._on_change = on_change
        self._pending: dict[int, _Pending] = {}
        self._batches = 0
        self._reading: asyncio.Task[None] | None = None
        assert process.stderr is not None
        self._logging = asyncio.create_task(_pass_on(process.stderr), name=f"worker-log-{process.pid}")
        self.info = Ready((), 0, 0.0, "")
        self.alive = True

    @classmethod
    async def spawn(cls, options: LoadOptions, *, timeout_s: float, on_change: Callable[[], None]) -> WorkerProcess:
        """Start a process and wait until it has loaded its models.

        on_change: called after each answer and after the worker's death.
        Raises BackendError LOAD_FAILED with the worker's own message.
        """
        try:
            process = await _start()
        except OSError as error:
            raise BackendError("LOAD_FAILED", f"cannot start a process: {error}") from error
        worker = cls(process, on_change)
        try:
            async with asyncio.timeout(timeout_s):
                worker._send(replace(options, server_pid=os.getpid()))
                worker.info = await worker._handshake()
        except TimeoutError:
            raise BackendError("LOAD_FAILED", f"the worker was not ready within {timeout_s:g} s") from None
        finally:
            if not worker.info.slots:
                await worker.close(grace_s=EXIT_GRACE_S)
        worker._reading = asyncio.create_task(worker._read_answers(), name=f"worker-{worker.pid}")
        return worker

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit(self) -> dict[str, int]:
        """How the process exited, as fields of a log line; empty while it runs."""
        code = self._process.returncode
        if code is None:
            return {}
        return {"signal": -code} if code < 0 else {"exit_code": code}

    @property
    def in_flight(self) -> int:
        """Batches sent and not answered yet, including those whose caller was cancelled."""
        return len(self._pending)

    async def infer(self, jobs: Sequence[Job], *, timeout_s: float) -> Outcomes:
        """Send a batch and await its answer; at the timeout the worker is killed.

        Cancelling the caller neither stops the work nor frees its slot: see `in_flight`.
        Raises WorkerDied.
        """
        if not self.alive:
            raise WorkerDied
        loop = asyncio.get_running_loop()
        self._batches += 1
        number = self._batches
        pending = _Pending(loop.create_future(), self._set_deadline(number, timeout_s))
        self._pending[number] = pending
        self._send(Batch(number, tuple(jobs)))
        return await pending.future

    async def close(self, *, grace_s: float) -> None:
        """End the process, by force after `grace_s`, and wait until it is gone. Pending calls raise WorkerDied."""
        self._mark_dead()
        with contextlib.suppress(OSError):
            self._stdin.close()
        await self._wait_for_exit(grace_s)
        if self._reading is not None:
            await self._reading

    @property
    def _stdin(self) -> asyncio.StreamWriter:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, message: LoadOptions | Batch) -> None:
        # No drain(): what is unsent is bounded by the batches in flight. Writing to a dead worker is noticed as
        # the end of its stdout.
        self._stdin.writelines(encode(message))

    async def _handshake(self) -> Ready:
        try:
            message = await read_message(self._stdout)
        except EOFError:
            code = await self._process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            raise BackendError("LOAD_FAILED", f"the worker {how} before it was ready") from None
        if isinstance(message, LoadFailed):
            raise BackendError("LOAD_FAILED", message.message)
        assert isinstance(message, Ready)
        return message

    async def _read_answers(self) -> None:
        try:
            while True:
                answers: Answers = await read_message(self._stdout)
                pending = self._pending.pop(answers.number, None)
                if pending is None:  # it was given up while the answer was on its way
                    continue
                pending.deadline.cancel()
                if not pending.future.done():  # done: cancelled by its caller
                    pending.future.set_result(Outcomes(answers.results, answers.helped_s))
                self._on_change()
        except EOFError:
            pass
        except Exception:
            _log.exception("a message of the worker cannot be read", extra={"pid": self.pid})
        finally:
            self._mark_dead()
            await self._wait_for_exit(EXIT_GRACE_S)  # a worker without a pipe is of no use

    async def _wait_for_exit(self, grace_s: float) -> None:
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()
        await asyncio.wait((self._logging,), timeout=LAST_WORDS_S)
        self._logging.cancel()  # a process that it started may have its stderr still

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _mark_dead(self) -> None:
        if not self.alive:
            return
        self.alive = False
        for pending in self._pending.values():
            pending.deadline.cancel()
            if not pending.future.done():
                pending.future.set_exception(WorkerDied())
        self._pending.clear()
        self._on_change()

    def _set_deadline(self, number: int, timeout_s: float) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_at(loop.time() + timeout_s, self._on_deadline, number, timeout_s, loop.time() + timeout_s)

    def _on_deadline(self, number: int, timeout_s: float, due: float) -> None:
        if suspended(asyncio.get_running_loop().time() - due):  # the answer may lie in the pipe, or the worker was too
            self._pending[number].deadline = self._set_deadline(number, timeout_s)
            return
        _log.error("a batch was not answered in time; worker killed", extra={"pid": self.pid, "seconds": timeout_s})
        self._kill()


class _EarlyProcess:
    """A process that was started without asyncio, with what is used here of `asyncio.subprocess.Process`."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
    ) -> None:
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[int] = self._loop.create_future()
        self.pid = popen.pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        threading.Thread(target=self._wait, name=f"worker-exit-{popen.pid}", daemon=True).start()

    async def wait(self) -> int:
        return await asyncio.shield(self._gone)

    def kill(self) -> None:
        self._popen.kill()

    def _wait(self) -> None:
        code = self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._ended, code)

    def _ended(self, code: int) -> None:
        self.returncode = code
        self._gone.set_result(code)


async def _start() -> asyncio.subprocess.Process | _EarlyProcess:
    """A worker process that waits for its options. Raises OSError."""
    if (popen := worker_start.take_early()) is not None:
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stderr is not None
        stdin = await _writer(popen.stdin)
        return _EarlyProcess(popen, stdin, await _reader(popen.stdout), await _reader(popen.stderr))
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *worker_start.COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0
    )


async def _writer(pipe: IO[bytes]) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), pipe
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def _reader(pipe: IO[bytes]) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def _pass_on(stderr: asyncio.StreamReader) -> None:
    """Passes on whole lines: no other comes between."""
    begun = b""
    while piece := await stderr.read(MAX_LINE):
        lines, newline, begun = (begun + piece).rpartition(b"\n")
        logs.pass_on(lines + newline)
        if len(begun) > MAX_LINE:
            logs.pass_on(begun + b"\n")
            begun = b""
    logs.pass_on(begun + b"\n" if begun else b"")
