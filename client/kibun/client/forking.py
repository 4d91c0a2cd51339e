"""What `fork` leaves of the SDK: in the child it works again, or says at once what to do.

gRPC's asyncio part waits for the network in a thread, and a child process has no thread but the one that forked. So a
synchronous client closes its connection before a fork and opens another on its next use, in parent and child alike; a
turn that is open goes on in the parent over a new connection, as after a loss. What cannot be interrupted (a call under
way, a stream that cannot resume, an event loop of the caller's own) stays open, and the child of such a fork refuses to
do anything, as any call would wait for ever.
"""

import ctypes
import gc
import os
import threading
from functools import partial
from typing import Protocol
from weakref import WeakSet

from kibun.client.errors import ErrorDetails, MisuseError

# How gRPC's thread is called, after the method that it runs.
_POLLER = "_poll_wrapper"
_POLLER_ENDS_S = 0.5  # it looks every 0.2 s whether it is still needed
_SUPPORT = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower()
_OFF = {"0", "f", "false", "n", "no"}


class Forkable(Protocol):
    """What has to be closed before a fork."""

    def before_fork(self) -> bool:
        """Closes what can be closed, and holds still until `after_fork`. Returns whether it closed something."""

    def after_fork(self, *, in_child: bool) -> None:
        """Called in the parent and in the child."""


class _Process:
    """This process. `broken`: gRPC does not work in it, as its parent's did not survive the fork; `breaks`: so will the
    child's of the fork under way.
    """

    def __init__(self) -> None:
        self.broken = False
        self.breaks = False
        self.used_grpc = False
        self.watched: WeakSet[Forkable] = WeakSet()
        self.stopped: list[Forkable] = []
        self.forking = threading.Lock()


_process = _Process()


def watch(part: Forkable) -> None:
    """Has `part` told of forks, as long as it lives."""
    _process.watched.add(part)


def grpc_is_used() -> None:
    """To be called before gRPC does anything in this process."""
    _process.used_grpc = True


def is_broken() -> bool:
    """Whether no call can be made in this process, nor anything be closed."""
    return _process.broken


def check() -> None:
    """Raises MisuseError in a process in which no call can be made."""
    if _process.broken:
        raise MisuseError(
            "gRPC does not work in this process, as it was forked while its parent's connection was in use, or with "
            "GRPC_ENABLE_FORK_SUPPORT off: use clients only after the fork, or close() them before it, or start "
            "processes by multiprocessing's 'spawn'",
            ErrorDetails(reason="FORKED"),
        )


def leave_to_parent(part: object) -> None:
    """Keeps `part` of a parent, which is stopped within, for ever: closing it in the child would disturb the parent."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))


def _before() -> None:
    _process.forking.acquire()
    _process.stopped = list(_process.watched)
    closed = [part.before_fork() for part in _process.stopped]
    if any(closed) and _pollers():
        gc.collect()  # a channel may be kept by a cycle
        for thread in _pollers():
            thread.join(_POLLER_ENDS_S)
    # Without its own support gRPC may not even survive when nothing is open.
    _process.breaks = bool(_pollers()) or (_process.used_grpc and _SUPPORT in _OFF)


def _after(*, in_child: bool) -> None:
    _process.broken |= in_child and _process.breaks
    for part in _process.stopped:
        part.after_fork(in_child=in_child)
    _process.stopped = []
    _process.forking.release()


def _pollers() -> list[threading.Thread]:
    """The thread in which gRPC's asyncio part waits for the network, while there is a channel."""
    return [thread for thread in threading.enumerate() if _POLLER in thread.name]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before,
        after_in_parent=partial(_after, in_child=False),
        after_in_child=partial(_after, in_child=True),
    )
