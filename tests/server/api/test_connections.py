"""Unknown callers, counted and held back, with a clock of our own; what a real server makes of it: test_strangers."""

import asyncio
import socket
from contextlib import ExitStack

import pytest

from kibun.bench.support.virtual_time import run as run_virtual
from kibun.server.api.connections import CROWD, FORGET_S, FREE_FAILURES, MAX_BYTES, MAX_CALLS, Connections
from kibun.server.api.sockets import Sockets, _address_in
from kibun.server.errors import Failure


def peer(connection: int, host: str = "ipv4:10.0.0.7") -> str:
    return f"{host}:{40_000 + connection}"


class ToldSockets(Sockets):
    """Connections that received what a test says, and those that were shut down."""

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = 0
        self.cut: list[str] = []

    async def bytes_received(self, peer: str) -> int | None:
        return self.received

    def shut_down(self, peer: str) -> bool:
        self.cut.append(peer)
        return True


@pytest.fixture
def told() -> ToldSockets:
    return ToldSockets()


def test_one_call_more_than_a_connection_may_have_ends_it(told: ToldSockets) -> None:
    reasons: list[str] = []
    peers = Connections(reasons.append, sockets=told)
    with ExitStack() as stack:
        for _ in range(MAX_CALLS):
            stack.enter_context(peers.stranger(peer(1)))
        for _ in range(2):
            with pytest.raises(Failure, match="in progress"):
                stack.enter_context(peers.stranger(peer(1)))
        stack.enter_context(peers.stranger(peer(2)))
    assert (told.cut, reasons) == ([peer(1)], ["TOO_MANY_CALLS"])
    with peers.stranger(peer(3)):
        pass


def test_in_a_crowd_each_connection_has_one_call(told: ToldSockets) -> None:
    peers = Connections(sockets=told)
    with ExitStack() as stack:
        for number in range(CROWD):
            stack.enter_context(peers.stranger(peer(number // MAX_CALLS)))
        stack.enter_context(peers.stranger(peer(9_000)))
        with pytest.raises(Failure, match="in progress"):
            stack.enter_context(peers.stranger(peer(9_000)))
        assert told.cut == []
    with peers.stranger(peer(9_000)), peers.stranger(peer(9_000)):
        pass


def test_unknown_callers_may_send_little(told: ToldSockets) -> None:
    """At once, and as time goes on; a connection that showed a valid token may send what it likes."""

    async def script() -> None:
        now = 100.0
        peers = Connections(clock=lambda: now, sockets=told)
        told.received = 0
        for _ in range(1_000):
            told.received, now = told.received + 200, now + 0.02
            assert await peers.admits(peer(1)), "health checks"
        told.received += MAX_BYTES + 1
        assert not await peers.admits(peer(1))
        assert not await peers.admits(peer(1)), "nor is any other of its calls looked at"
        assert told.cut == [peer(1)]
        assert not await peers.admits(peer(2)), "that is too much for a first call as well"
        told.received = MAX_BYTES - 1
        assert await peers.admits(peer(3))
        told.received += 30_000
        assert not await peers.admits(peer(3)), "it adds up"
        told.received = 0
        assert await peers.admits(peer(4))
        peers.welcome(peer(4))
        told.received = 100 * MAX_BYTES
        assert await peers.admits(peer(4))
        now, told.received = now + FORGET_S + 1, 100
        assert await peers.admits(peer(1)), "another connection has its name by now"

    asyncio.run(script())


def test_a_connection_that_is_welcome_by_the_time_it_was_looked_for_is_not_cut() -> None:
    """As of a client that opens many streams at once: the first is heard while the others are looked at."""

    class Slow(ToldSockets):
        async def bytes_received(self, peer: str) -> int | None:
            peers.welcome(peer)
            return 100 * MAX_BYTES

    peers = Connections(sockets=Slow())
    assert asyncio.run(peers.admits(peer(1)))


def test_of_calls_that_wait_for_the_same_look_one_alone_is_let_through_if_it_ends_the_connection() -> None:
    """It is judged before the event loop comes to the next."""

    class Slow(ToldSockets):
        async def bytes_received(self, peer: str) -> int | None:
            await asyncio.sleep(0)
            return 1_000

    async def call() -> bool:
        admitted = await peers.admits(peer(1))
        if admitted:
            peers.cut(peer(1), "METADATA_TOO_LARGE")
        return admitted

    async def script() -> list[bool]:
        return await asyncio.gather(*(call() for _ in range(20)))

    peers = Connections(sockets=Slow())
    assert sum(asyncio.run(script())) == 1


def test_refusals_on_a_connection_that_was_cut_are_not_held_back(told: ToldSockets) -> None:
    async def script() -> float:
        peers = Connections(sockets=told)
        peers.cut(peer(1), "METADATA_TOO_LARGE")
        for _ in range(3 * FREE_FAILURES):
            await peers.failed(peer(1))
        return asyncio.get_running_loop().time()

    assert run_virtual(script()) == 0


def test_a_client_that_opens_many_streams_at_once_is_not_cut(told: ToldSockets) -> None:
    """Each may have sent 64 KiB before the first is admitted."""
    told.received = 80 * 65_536
    assert asyncio.run(Connections(sockets=told).admits(peer(1)))


def test_calls_of_a_connection_that_is_gone_are_dropped(told: ToldSockets) -> None:
    async def script() -> None:
        peers = Connections(sockets=told)
        told.received = None
        assert not await peers.admits(peer(1))
        told.received = 0
        assert not await peers.admits(peer(1)), "it is not looked for again"
        assert await peers.admits(peer(2))

    asyncio.run(script())


def test_an_address_that_keeps_failing_is_refused_later(told: ToldSockets) -> None:
    """From whatever connection; another address at once."""

    async def script() -> None:
        loop = asyncio.get_running_loop()
        peers = Connections(clock=loop.time, sockets=told)
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
    assert _address_in(name) == address


def test_names_that_are_none_find_nothing() -> None:
    for name in ("", "unix:/tmp/socket", "ipv4:", "ipv4:10.0.0.7:1"):
        assert not Sockets().shut_down(name)
    for name, received in {"": 0, "unix:/tmp/socket": 0, "ipv4:": 0, "ipv4:10.0.0.7:1": None}.items():
        assert asyncio.run(Sockets().bytes_received(name)) == received


def test_many_connections_are_found_by_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose descriptor was another's, and not one that is gone."""
    looks = 0
    look = Sockets._look

    def counted_look(self: Sockets) -> None:
        nonlocal looks
        looks += 1
        look(self)

    monkeypatch.setattr(Sockets, "_look", counted_look)

    def connect() -> str:
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        client.sendall(b"some bytes")
        server = stack.enter_context(listener.accept()[0])
        server.recv(100)
        servers.append(server)
        return f"ipv4:127.0.0.1:{client.getsockname()[1]}"

    async def script() -> None:
        sockets = Sockets()
        names = [connect() for _ in range(100)]
        assert set(await asyncio.gather(*map(sockets.bytes_received, names))) == {10}
        assert looks == 1
        for server in servers[:10]:
            server.close()
        late = [connect() for _ in range(10)]
        assert set(await asyncio.gather(*map(sockets.bytes_received, late))) == {10}
        assert set(await asyncio.gather(*map(sockets.bytes_received, names[:10]))) == {None}
        assert set(await asyncio.gather(*map(sockets.bytes_received, names[10:]))) == {10}
        assert looks == 3
        assert sockets.shut_down(late[0])
        assert await sockets.bytes_received(late[1]) == 10

    servers: list[socket.socket] = []
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        asyncio.run(script())
