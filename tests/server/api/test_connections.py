"""Unknown callers, counted and held back, with a clock of our own; what a real server makes of it: test_strangers."""

import asyncio
from contextlib import ExitStack

import pytest

from kibun.server.api import connections, sockets
from kibun.server.api.connections import CROWD, FREE_FAILURES, MAX_BYTES, MAX_CALLS, Connections
from kibun.server.errors import Failure
from tests.support.virtual_time import run as run_virtual


def peer(connection: int, host: str = "ipv4:10.0.0.7") -> str:
    return f"{host}:{40_000 + connection}"


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Peers whose connection was shut down."""
    peers: list[str] = []

    def shut_down(peer: str) -> bool:
        peers.append(peer)
        return True

    monkeypatch.setattr(connections, "shut_down", shut_down)
    return peers


def test_one_call_more_than_a_connection_may_have_ends_it(cut: list[str]) -> None:
    reasons: list[str] = []
    peers = Connections(reasons.append)
    with ExitStack() as stack:
        for _ in range(MAX_CALLS):
            stack.enter_context(peers.stranger(peer(1)))
        for _ in range(2):
            with pytest.raises(Failure, match="in progress"):
                stack.enter_context(peers.stranger(peer(1)))
        stack.enter_context(peers.stranger(peer(2)))
    assert (cut, reasons) == ([peer(1)], ["TOO_MANY_CALLS"])
    with peers.stranger(peer(3)):
        pass


def test_in_a_crowd_each_connection_has_one_call(cut: list[str]) -> None:
    peers = Connections()
    with ExitStack() as stack:
        for number in range(CROWD):
            stack.enter_context(peers.stranger(peer(number // MAX_CALLS)))
        stack.enter_context(peers.stranger(peer(9_000)))
        with pytest.raises(Failure, match="in progress"):
            stack.enter_context(peers.stranger(peer(9_000)))
        assert cut == []
    with peers.stranger(peer(9_000)), peers.stranger(peer(9_000)):
        pass


def test_unknown_callers_may_send_little(cut: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and as time goes on; a connection that showed a valid token may send what it likes."""
    received, now = 0, 100.0
    monkeypatch.setattr(connections, "bytes_received", lambda peer: received)
    peers = Connections(clock=lambda: now)
    for _ in range(1_000):
        received, now = received + 200, now + 0.02
        assert peers.admits(peer(1)), "health checks"
    received += MAX_BYTES + 1
    assert not peers.admits(peer(1))
    assert not peers.admits(peer(1)), "nor is any other of its calls looked at"
    assert cut == [peer(1)]
    assert not peers.admits(peer(2)), "that is too much for a first call as well"
    received = MAX_BYTES - 1
    assert peers.admits(peer(3))
    received += 30_000
    assert not peers.admits(peer(3)), "it adds up"
    received = 0
    assert peers.admits(peer(4))
    peers.welcome(peer(4))
    received = 100 * MAX_BYTES
    assert peers.admits(peer(4))


def test_an_address_that_keeps_failing_is_refused_later(cut: list[str]) -> None:
    """From whatever connection; another address at once."""

    async def script() -> None:
        loop = asyncio.get_running_loop()
        peers = Connections(clock=loop.time)
        took = []
        for number in range(3 * FREE_FAILURES):
            began = loop.time()
            await peers.failed(peer(number))
            took.append(loop.time() - began)
        assert not any(took[:FREE_FAILURES])
        assert sum(took[FREE_FAILURES:]) >= FREE_FAILURES
        began = loop.time()
        await peers.failed(peer(1, "ipv4:10.0.0.8"))
        assert loop.time() == began

    run_virtual(script())


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("ipv4:10.0.0.7:40312", ("10.0.0.7", 40312)),
        ("ipv6:%5B::1%5D:40312", ("::1", 40312)),
        ("ipv6:%5B::ffff:10.0.0.7%5D:40312", ("10.0.0.7", 40312)),
    ],
)
def test_names_of_peers_are_understood(name: str, address: tuple[str, int]) -> None:
    assert sockets._named(name) == address


def test_names_that_are_none_find_nothing() -> None:
    for name in ("", "unix:/tmp/socket", "ipv4:", "ipv4:10.0.0.7:1"):
        assert not sockets.shut_down(name)
        assert sockets.bytes_received(name) == 0
