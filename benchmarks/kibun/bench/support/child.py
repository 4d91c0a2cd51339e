"""Helper processes of a benchmark, asked in JSON, one object a line: their work must not share its interpreter.

A child is a module with a `main` that ends in `answer(handle)`; the parent runs it as `Child("kibun.bench.…")`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ChildError(Exception):
    """A helper process ended; what went wrong it has written on stderr."""


class Child:
    """`python -m MODULE ARGUMENTS…`, for as long as the context lasts."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """Ask and wait for the answer. Raises ChildError if the process has ended."""
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        with suppress(BrokenPipeError):  # its end is noticed below
            questions.write(json.dumps({"what": what, **details}) + "\n")
            questions.flush()
        line = answers.readline()
        if not line:
            raise ChildError(f"{self._module} ended with exit code {self._process.wait()} when asked to {what}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def answer(handle: Callable[..., dict[str, Any]]) -> None:
    """Answer questions with `handle(what, **details)` until stdin ends. What is printed meanwhile goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps(handle(**json.loads(line))) + "\n")
        answers.flush()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all its threads. Linux only."""
    return time.clock_gettime(~pid << 3 | 2)  # the kernel's number of that process's CPU clock: clock_getcpuclockid(3)


def peak_mb(pid: int) -> float:
    """Most memory that a process has ever had resident, MB of 2^20 bytes. Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def children(pid: int) -> list[int]:
    """Process ids of a process's children. Linux only."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
