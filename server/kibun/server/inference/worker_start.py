"""How a worker process is started, and its early start.

`kibun serve` imports modules for most of a second before it knows what to load, and a worker imports torch for longer.
So `start_early` starts the worker first, before anything else is imported, and `WorkerProcess.spawn` takes it over.
Until it is told what to load, it imports; it ends with this process, whatever happens. Imports little by itself.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence

IMPORT_EARLY = "import-early"
"""Argument of a worker: whether it imports torch before it has read its options."""

# -P: a torch.py in the current directory must not be imported as torch.
COMMAND = (sys.executable, "-P", "-c", "from kibun.server.inference.worker import main; main()")

_OTHERWISE = ("--help", "-h", "--loader", "--fronts")
"""Options of `kibun serve` with which this process needs no worker of its own, or another."""

_early: list["subprocess.Popen[bytes]"] = []


def start_early(arguments: Sequence[str]) -> None:
    """Start the worker that `kibun serve ARGUMENTS` will need, if it is clear that it will."""
    has_model = any(argument.startswith("--model") for argument in arguments) or "KIBUN_MODEL" in os.environ
    otherwise = any(argument.split("=")[0] in _OTHERWISE for argument in arguments) or "KIBUN_FRONTS" in os.environ
    if not has_model or otherwise:
        return
    forbid_core_files()
    pipe = subprocess.PIPE
    try:
        _early.append(
            subprocess.Popen([*COMMAND, IMPORT_EARLY], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, process_group=0)
        )
    except OSError:
        return  # `WorkerProcess.spawn` meets it again, and says so


def forbid_core_files() -> None:
    """For this process and the workers that it starts: a core file would hold audio."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def take_early() -> "subprocess.Popen[bytes] | None":
    """The worker that `start_early` started, for one caller; None if there is none."""
    return _early.pop() if _early else None
