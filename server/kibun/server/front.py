"""One front of `kibun serve --fronts N`: the process that `fronts` starts, with a whole server in it.

It leads its own process group: Ctrl-C in a terminal reaches it through its supervisor alone, as one request to stop.
SIGTERM makes it drain, however often it comes, SIGINT stop at once. Its stdin brings what to serve, and ends with the
supervisor: then it drains. Its stdout tells how it is, a line of JSON at every change and at least every `BEAT_S`.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from kibun.server.errors import StartError
from kibun.server.observability import logs
from kibun.server.serving import Front, Server
from kibun.server.settings import Settings

BEAT_S = 1.0
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Orders:
    """What a front is told."""

    front: Front
    settings: Settings
    log_level: int
    log_format: logs.Format


@dataclass(frozen=True, slots=True)
class Status:
    """What a front tells."""

    serving: bool = False
    metrics_port: int | None = None
    error: str | None = None  # why it could not start


def message(orders: Orders) -> bytes:
    """The bytes for `main`; the path comes first, as what follows may need it."""
    return pickle.dumps(sys.path) + pickle.dumps(orders)


def main() -> None:
    """Entry point of the process. Exit codes: those of `kibun serve`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server handles it: what it reloads it has yet to load
    supervisor, statuses = _take_over_stdio()
    sys.path.extend(entry for entry in pickle.load(supervisor) if entry not in sys.path)
    orders: Orders = pickle.load(supervisor)
    logs.configure(orders.log_level, orders.log_format, front=orders.front.number)
    code = 0
    try:
        asyncio.run(_serve(Server(orders.settings, orders.front), supervisor, statuses))
    except StartError as error:
        _tell(statuses, Status(error=str(error)))
        code = 1
    logs.flush()
    os._exit(code)  # a thread that hangs, such as in a DNS look-up, must not keep it alive


async def _serve(server: Server, supervisor: BinaryIO, statuses: BinaryIO) -> None:
    loop = asyncio.get_running_loop()

    def stop_at_the_end() -> None:
        supervisor.read(1)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(server.drain)

    threading.Thread(target=stop_at_the_end, name="supervisor", daemon=True).start()
    telling = asyncio.create_task(_tell_on(server, statuses))
    try:
        await server.run()
    finally:
        telling.cancel()


async def _tell_on(server: Server, statuses: BinaryIO) -> None:
    told, told_at = None, 0.0
    loop = asyncio.get_running_loop()
    while True:
        status = Status(server.serving, server.metrics_port)
        if status != told or loop.time() - told_at >= BEAT_S:
            _tell(statuses, status)
            told, told_at = status, loop.time()
        await asyncio.sleep(LOOK_S)


def _tell(statuses: BinaryIO, status: Status) -> None:
    fields = {name: getattr(status, name) for name in Status.__slots__}
    with suppress(BrokenPipeError):  # its end is noticed on stdin
        statuses.write(json.dumps(fields).encode() + b"\n")
        statuses.flush()


def _take_over_stdio() -> tuple[BinaryIO, BinaryIO]:
    """Returns the pipes from and to the supervisor; from now on, prints go to stderr and cannot garble a status."""
    supervisor = os.fdopen(os.dup(0), "rb")
    statuses = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return supervisor, statuses
