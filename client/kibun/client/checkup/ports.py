"""Whether a server can listen on a port, and who does already."""

import errno
import os
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path

from kibun.client.checkup.finding import Finding

_LISTENS = "0A"  # in /proc/net/tcp


def listening(host: str, port: int) -> Finding:
    """Whether a server could listen there now; if not, why, and who does."""
    name = f"port {port} of {host}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a name"
        return Finding(name, "broken", f"{host} has no address ({reason}): give one of this machine's, or 0.0.0.0")
    refusals = [refusal for family, _, _, _, address in found if (refusal := _refusal(family, address)) is not None]
    if any(refusal.errno == errno.EADDRINUSE for refusal in refusals):
        who = who_listens(port) or "a socket that does not listen"
        text = f"taken by {who}: end that, or choose another port (kibun serve --port)"
        return Finding(name, "broken", text)
    if len(refusals) < len(found):  # one of a name's addresses is enough
        return Finding(name, "ok", "free")
    if refusals[0].errno == errno.EACCES:
        text = "this user may not listen on ports below 1024: choose one above, or grant CAP_NET_BIND_SERVICE"
    elif refusals[0].errno == errno.EADDRNOTAVAIL:
        text = f"{host} is not an address of this machine, so no server can listen there: give one that is, or 0.0.0.0"
    else:
        text = f"cannot listen there: {refusals[0].strerror}"
    return Finding(name, "broken", text)


def _refusal(family: int, address: tuple[int, bytes] | tuple[str, int] | tuple[str, int, int, int]) -> OSError | None:
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have just ended do not count
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(address)
            trial.listen(1)
    except OSError as error:
        return error
    return None


def who_listens(port: int) -> str:
    """The processes that listen on a port of this machine, as far as this user may see them; "" where none does."""
    if sys.platform != "linux":
        return f"a process that `{_look_up(port)}` names"
    sockets = _listening_sockets(port)
    if not sockets:
        return ""
    owners = _owners(set(sockets))
    named = {f"{_name(pid)} (process {pid})" for inode in sockets for pid in owners.get(inode, ())}
    hidden = {_user(uid) for inode, uid in sockets.items() if inode not in owners}
    named |= {f"a process of user {user} that only they may see: `sudo {_look_up(port)}` names it" for user in hidden}
    return " and ".join(sorted(named))


def _listening_sockets(port: int) -> dict[str, int]:
    """User ids by inode."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):  # no IPv6
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                    sockets[inode] = int(uid)
    return sockets


def _owners(inodes: set[str]) -> dict[str, set[int]]:
    """Ids of the processes that have one of these sockets open."""
    owners: dict[str, set[int]] = {}
    links = {f"socket:[{inode}]": inode for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # has ended, or is another user's
            for descriptor in (process / "fd").iterdir():
                if inode := links.get(os.readlink(descriptor)):
                    owners.setdefault(inode, set()).add(int(process.name))
    return owners


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "one that has ended"


def _user(uid: int) -> str:
    import pwd  # not on Windows

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _look_up(port: int) -> str:
    if sys.platform == "linux":
        return f"ss -ltnp 'sport = :{port}'"
    return f"netstat -ano | findstr :{port}" if sys.platform == "win32" else f"lsof -nP -iTCP:{port} -sTCP:LISTEN"
