"""How many files and connections this process may have open."""

from __future__ import annotations

from kibun.server.observability import logs

OWN = 128  # for all that is no connection: pipes to workers, libraries, the store


def allow_open_files(connections: int) -> int:
    """Raises this process's limit as far as it may for so many connections; returns how many there is room for."""
    try:
        import resource
    except ImportError:  # not a Unix
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = connections + OWN
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == unlimited or soft >= wanted:
        return connections
    room = max(soft - OWN, 1)
    logs.say(f"room for {room} connections, not {connections}: only {hard} files may be open (ulimit -Hn)", "WARNING")
    return room
