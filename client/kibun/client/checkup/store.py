"""Where a server is to keep conversations: `memory`, or a Redis or Valkey."""

import json
import os
import subprocess
import sys

from kibun.client.checkup.clock import compared
from kibun.client.checkup.finding import Finding
from kibun.client.installation import install_command, is_there

# The server's own code: it knows which commands it needs. In a separate Python, as the client never imports it.
_EXAMINES = "kibun.server.conversation.store_checkup"
_WITHIN_S = 120


def examine(address: str) -> list[Finding]:
    """What is to be said of a store, given as to `kibun serve --store`; the address is not shown, nor its password."""
    if address == "memory":
        text = "conversations belong to one server, and are gone when it stops (give --store redis://… to share them)"
        return [Finding("store memory", "ok", text)]
    if not is_there("redis"):
        return [Finding("store", "broken", f"an address needs a package, here and for the server: {_install()}")]
    environment = {**os.environ, "KIBUN_STORE": address}  # not an argument, which everybody could read
    command = [sys.executable, "-P", "-m", _EXAMINES]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        return [Finding("store", "broken", f"took more than {_WITHIN_S} s to examine: is it frozen?")]
    if done.returncode:
        # Without the rest of the traceback, which may hold the address.
        last = (done.stderr.strip().splitlines() or ["?"])[-1].partition(":")[0]
        return [Finding("store", "broken", f"could not be examined ({last}): reinstall kibun, {_install()}")]
    told = json.loads(done.stdout)
    findings = [Finding(name, state, detail) for name, state, detail in told["findings"]]
    if told["clock"] is not None:
        findings.append(compared("store", *told["clock"]))
    return findings


def _install() -> str:
    return install_command("redis")
