"""Ports that are free, and ports that real processes have taken."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kibun.bench.faults.servers import free_port
from kibun.client.checkup import ports

LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")


def test_a_free_port() -> None:
    port = free_port()
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        assert ports.listening(host, port).state == "ok", host
    assert ports.listening("127.0.0.1", port).name == f"port {port} of 127.0.0.1"


@ON_LINUX
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_who_has_taken_a_port_is_named(host: str) -> None:
    command = [sys.executable, "-c", LISTEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = ports.listening(host, port)
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
        process.communicate("")
    assert found.state == "broken"
    assert found.detail.startswith(f"taken by {name} (process {process.pid}): end that, or choose another port")
    assert ports.who_listens(port) == ""


@ON_LINUX
def test_of_another_users_process_it_says_how_to_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_owners", lambda inodes: {})  # as its files may not be read
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = ports.listening("127.0.0.1", port).detail
    assert f"`sudo ss -ltnp 'sport = :{port}'` names it" in text


def test_a_host_that_no_server_can_listen_on() -> None:
    assert "has no address" in ports.listening("no.such.host.invalid", 50051).detail
    assert "has no address" in ports.listening("a" * 70, 50051).detail
    assert "is not an address of this machine" in ports.listening("192.0.2.1", 50051).detail
