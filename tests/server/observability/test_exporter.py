"""The port for metrics and health, under connections that send nothing, little, or too much."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from kibun.server.observability import exporter
from kibun.server.observability.exporter import MAX_CONNECTIONS, Exporter
from kibun.server.observability.metrics import Metrics
from tests.support.scraping import fetch, site
from tests.support.serving import RunningServer, serve


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--metrics-port", "0") as running:
        yield running


def port_of(server: RunningServer) -> int:
    return int(site(server).rpartition(":")[2])


@contextmanager
def connections(port: int, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """They send `first` and nothing else."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(count)]
        for sock in sockets:
            with suppress(ConnectionError):
                sock.sendall(first)
        yield sockets


@pytest.mark.parametrize(
    "first", [b"", b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"GET " + b"x" * 60_000], ids=["nothing", "no end", "long"]
)
@pytest.mark.parametrize("count", [16, 3 * MAX_CONNECTIONS])
def test_silent_connections_keep_no_probe_out(server: RunningServer, count: int, first: bytes) -> None:
    threads, _ = server.threads_and_rss()
    with connections(port_of(server), count, first):
        for _ in range(20):
            assert fetch(f"{site(server)}/healthz")[0] == 200
        assert fetch(f"{site(server)}/metrics")[0] == 200
        more, _ = server.threads_and_rss()
        assert more <= threads + MAX_CONNECTIONS + 20, "those whose connection was closed end as well"


def test_connections_that_come_all_the_time_keep_no_probe_out(server: RunningServer) -> None:
    """As many as a client can open, each silent; those that the server closed are forgotten."""
    done = threading.Event()

    def pour() -> None:
        kept: list[socket.socket] = []
        while not done.is_set():
            with suppress(OSError):
                kept.append(socket.create_connection(("127.0.0.1", port_of(server)), timeout=1))
            for sock in kept[:-200]:
                sock.close()
            del kept[:-200]
        for sock in kept:
            sock.close()

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        for _ in range(50):
            assert fetch(f"{site(server)}/readyz")[0] == 200
    finally:
        done.set()
        pouring.join()


def test_a_connection_has_its_time_however_slowly_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "TIMEOUT_S", 0.5)
    served = Exporter(Metrics().registry, ready=lambda: True, alive=lambda: True)
    port = served.open("127.0.0.1", 0)
    try:
        with connections(port, 1) as (sock,):
            began = time.monotonic()
            with suppress(ConnectionError):
                while time.monotonic() - began < 20:
                    sock.sendall(b"G")
                    time.sleep(0.05)
            assert time.monotonic() - began < 20, "it was closed"
        assert fetch(f"http://127.0.0.1:{port}/healthz") == (200, "alive\n")
    finally:
        served.close()
