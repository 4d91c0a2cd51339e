"""`grpc.health.v1` under unauthenticated peers: whatever they do, a server starts, reports its health, and ends."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthStub

from kibun.bench.faults.servers import free_port
from kibun.server.api import health
from kibun.server.api.health import Health
from kibun.server.serving import GRPC_OPTIONS
from tests.support.processes import until
from tests.support.serving import health_of, serve

Code = grpc.StatusCode
Status = pb.HealthCheckResponse.ServingStatus
WHOLE = pb.HealthCheckRequest()


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Health, grpc.aio.Channel]]:
    served = Health("kibun.v1.SpeechAnalysisService")
    server = grpc.aio.server(options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((served.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield served, channel
    finally:
        await server.stop(None)


async def test_check_and_watch_tell_the_status() -> None:
    async with running() as (served, channel):
        stub = HealthStub(channel)
        assert (await stub.Check(WHOLE)).status == Status.NOT_SERVING
        named = pb.HealthCheckRequest(service="kibun.v1.SpeechAnalysisService")
        watch, other = stub.Watch(named), stub.Watch(WHOLE)
        assert [(await w.read()).status for w in (watch, other)] == [Status.NOT_SERVING] * 2
        served.set(serving=True)
        assert (await stub.Check(named)).status == Status.SERVING
        assert (await watch.read()).status == Status.SERVING
        watch.cancel()
        await until(lambda: served.watchers == 1)
        served.set(serving=False)
        assert [(await other.read()).status for _ in range(2)] == [Status.SERVING, Status.NOT_SERVING], (
            "when a watcher leaves, the others stay"
        )
        unknown = pb.HealthCheckRequest(service="unknown")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(unknown)
        assert caught.value.code() is Code.NOT_FOUND
        assert (await stub.Watch(unknown).read()).status == Status.SERVICE_UNKNOWN


async def test_what_is_no_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "READ_S", 0.2)
    async with running() as (_, channel):
        path = "/grpc.health.v1.Health/Check"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(b"\xff\xff")
        assert (caught.value.code(), "HealthCheckRequest" in caught.value.details()) == (Code.INVALID_ARGUMENT, True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary(path)(never())
        assert caught.value.code() is Code.DEADLINE_EXCEEDED


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def test_further_checks_are_answered_unread_and_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_READS", 2)
    monkeypatch.setattr(health, "MAX_WATCHERS", 1)
    async with running() as (served, channel):
        stub = HealthStub(channel)
        slow = [channel.stream_unary("/grpc.health.v1.Health/Check")(never()) for _ in range(2)]
        await until(lambda: served.reads == 2)
        assert (await stub.Check(WHOLE)).status == Status.NOT_SERVING
        for call in slow:
            call.cancel()
        await until(lambda: served.reads == 0)
        watch = stub.Watch(WHOLE)
        await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Watch(WHOLE).read()
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED


# ---- a peer that lets nothing be written to it


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def header(name: str, value: str) -> bytes:
    """A literal of HPACK (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


@contextlib.contextmanager
def deaf_watcher(port: int) -> Iterator[None]:
    """Watches, with a flow-control window of nothing; answers pings, so that its connection stays."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        settings = frame(4, 0, 0, struct.pack("!HI", 4, 0))  # SETTINGS_INITIAL_WINDOW_SIZE = 0
        fields = {":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Watch", ":authority": "x"}
        fields |= {"te": "trailers", "content-type": "application/grpc"}
        block = b"".join(header(name, value) for name, value in fields.items())
        empty_message = frame(0, 1, 1, b"\x00" + struct.pack("!I", 0))
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + frame(4, 1, 0))
        sock.sendall(frame(1, 4, 1, block) + empty_message)

        def answer_pings() -> None:
            unread = b""
            with contextlib.suppress(OSError):
                while data := sock.recv(65_536):
                    unread += data
                    while len(unread) >= 9 and len(unread) >= 9 + (size := int.from_bytes(unread[:3], "big")):
                        if unread[3] == 6 and not unread[4] & 1:
                            sock.sendall(frame(6, 1, 0, unread[9 : 9 + size]))
                        unread = unread[9 + size :]

        threading.Thread(target=answer_pings, daemon=True).start()
        yield
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


async def test_a_watcher_that_does_not_read_delays_neither_start_nor_end() -> None:
    port = free_port()
    # The stub takes a second to load: the peer is there before the server is ready.
    with serve("--grace", "1", model="stub?load_s=1", wait=False, port=port) as server, deaf_watcher(port):
        async with asyncio.timeout(30):
            while await health_of(server) != Status.SERVING:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.05)
        server.terminate()
        assert await asyncio.to_thread(server.wait, 15) == 0
