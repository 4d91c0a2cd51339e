"""`/v1/stream`: turns through a socket, lost servers, slow servers, and sockets that misbehave."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from kibun.client.bridge.serving import MAX_FRAME_BYTES, BridgeServer
from kibun.client.client import AsyncClient
from tests.support.bridges import CONFIG, bridging, kinds, page
from tests.support.processes import until
from tests.support.scripted_service import SECOND, ScriptedService, noise, serving

FIRST = {"streaming_config": CONFIG}


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
async def bridge(service: ScriptedService) -> AsyncIterator[BridgeServer]:
    async with serving(service) as target, bridging(target, max_sockets=8) as server:
        yield server


async def healthy(bridge: BridgeServer) -> None:
    """A turn that works: whatever happened to others cost it nothing."""
    async with page(bridge) as other:
        await other.send(FIRST)
        await other.send(noise(1.0))
        await other.send({"end_of_turn": {}})
        assert kinds(await other.until("stream_ended"))[-2:] == ["turn_result", "stream_ended"]


async def test_turns_follow_each_other_on_one_socket(bridge: BridgeServer, service: ScriptedService) -> None:
    first, second = noise(2.5), noise(1.0, seed=1)
    async with page(bridge) as one:
        await one.send({"streaming_config": {**CONFIG, "conversation_id": "c"}})
        for begin in range(0, len(first), 3333):
            await one.send(first[begin : begin + 3333])
        await one.send({"endOfTurn": {"nextTurnId": "t2"}})
        answers = await one.until("stream_ended")
        assert kinds(answers) == [
            "stream_started",
            *["utterance_result", "personality_update"] * 2,
            "turn_result",
            "stream_ended",
        ]
        assert answers[1]["utterance_result"]["emotion"] == {"valence": 2.0, "arousal": 4.0}
        await one.send(second)
        await one.send({"end_of_turn": {}})
        answers = await one.until("stream_ended")
        assert answers[0]["stream_started"]["turn_id"] == "t2"
        assert answers[1]["utterance_result"]["start_offset"] == "2.500s", "one clock for the whole socket"
    one_call, other_call = service.connections
    assert (bytes(one_call.audio), bytes(other_call.audio)) == (first, second)
    assert other_call.config.conversation_id == "c"


async def test_a_sample_cut_by_the_end_of_a_turn_goes_to_the_next(
    bridge: BridgeServer, service: ScriptedService
) -> None:
    audio = noise(0.5)
    async with page(bridge) as one:
        await one.send(FIRST)
        await one.send(audio[:4001])
        await one.send({"end_of_turn": {}})
        await one.until("stream_ended")
        await one.send(audio[4001:])
        await one.send({"end_of_turn": {}})
        await one.until("stream_ended")
    assert bytes(service.connections[1].audio) == audio[4000:]


async def test_a_lost_server_costs_the_page_nothing(bridge: BridgeServer, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "lose" if number == 1 and len(connection.audio) > 1.5 * SECOND else None
    audio = noise(3.0)
    async with page(bridge) as one:
        await one.send(FIRST)
        for begin in range(0, len(audio), 3200):
            await one.send(audio[begin : begin + 3200])
        await one.send({"end_of_turn": {}})
        answers = await one.until("stream_ended")
    starts = [answer["utterance_result"]["start_offset"] for answer in answers if "utterance_result" in answer]
    assert starts == ["0s", "1s", "2s"]
    assert kinds(answers).count("stream_started") == 2
    assert service.connections[1].config.resume_turn


async def test_a_slow_server_holds_the_socket_back(bridge: BridgeServer, service: ScriptedService) -> None:
    service.read_delay_s = 3600.0
    sent, limit = 0, 32 * 1024 * 1024
    async with page(bridge) as one:
        await one.send(FIRST)
        await one.until("stream_started")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while sent < 2 * limit:
                    await one.send(bytes(64 * 1024))
                    sent += 64 * 1024
        assert sent < limit, "what the system's own buffers take, and little more"
        service.read_delay_s = 0.0
        await healthy(bridge)
        one.socket.transport.abort()


async def test_a_deliberate_close_finishes_the_turn_and_a_lost_socket_leaves_it_open(
    bridge: BridgeServer, service: ScriptedService
) -> None:
    for code in (1000, 1001):
        async with page(bridge) as one:
            await one.send(FIRST)
            await one.until("stream_started")
            await one.send(noise(0.5))
            await one.socket.close(code)
    await until(lambda: bridge.bridge.open_sockets == 0)
    left, lost = service.connections
    await until(lambda: left.half_closed and lost.cancelled)


async def test_a_server_that_ends_turns_itself_keeps_one_stream(bridge: BridgeServer, service: ScriptedService) -> None:
    service.server_ends_turn_after_s = 2.0
    async with page(bridge) as one:
        await one.send({"streaming_config": {**CONFIG, "endpointing_config": {"end_of_turn_silence": "0.8s"}}})
        await one.send(noise(3.0))
        await one.until("turn_result")
        await one.send({"end_of_turn": {"next_turn_id": "t3"}})
        await one.until("turn_result")
    await until(lambda: bridge.bridge.open_sockets == 0)
    [call] = service.connections
    assert len(call.audio) == len(noise(3.0))


# ---- errors of the server


async def test_an_error_of_the_server_comes_with_all_that_it_said(
    bridge: BridgeServer, service: ScriptedService
) -> None:
    service.fault = lambda number, connection: "full"
    async with page(bridge) as one:
        await one.send(FIRST)
        code, error = await one.refusal()
    assert code == 1013
    assert error == {
        "code": "RESOURCE_EXHAUSTED",
        "reason": "TOO_MANY_STREAMS",
        "message": "4 of 4 streams are in use",
        "field": "model",
    }


async def test_a_server_that_is_not_there() -> None:
    async with bridging("127.0.0.1:1") as server, page(server) as one:
        await one.send(FIRST)
        code, error = await one.refusal()
    assert (code, error["code"]) == (1013, "UNAVAILABLE")
    assert "kibun serve" in error["message"]


async def test_a_fault_of_the_bridge_itself_says_nothing_of_its_inside(
    bridge: BridgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("inside")

    with monkeypatch.context() as patch:
        patch.setattr("kibun.client.bridge.streaming.MessageConfig.of", fail)
        async with page(bridge) as one:
            await one.send(FIRST)
            code, error = await one.refusal()
    assert (code, error["reason"]) == (1011, "BRIDGE_FAILED")
    assert "inside" not in error["message"]
    await healthy(bridge)


# ---- sockets that misbehave


@pytest.mark.parametrize(
    ("frames", "code", "reason"),
    [
        (["not JSON"], 1007, "NOT_JSON"),
        (["[1]"], 1007, "NOT_JSON"),
        (["[" * 100_000], 1007, "NOT_JSON"),
        ([{"streaming_config": {"no_such_field": 1}}], 1007, "NOT_OF_THE_CONTRACT"),
        ([{"streaming_config": {"audio_config": [1]}}], 1007, "NOT_OF_THE_CONTRACT"),
        ([{"streaming_config": {"turn_id": "\ud800"}}], 1007, "NOT_OF_THE_CONTRACT"),
        ([{"token": 5, **FIRST}], 1008, "INVALID_TOKEN"),
        ([{"token": " blank", **FIRST}], 1008, "INVALID_CONNECTION_SETTINGS"),
        ([bytes(3200)], 1008, "CONFIG_REQUIRED_FIRST"),
        ([{"end_of_turn": {}}], 1008, "CONFIG_REQUIRED_FIRST"),
        ([{}], 1008, "CONFIG_REQUIRED_FIRST"),
        ([FIRST, FIRST], 1008, "CONFIG_REPEATED"),
        ([FIRST, {}], 1008, "EMPTY_REQUEST"),
        ([FIRST, {"token": "x", "end_of_turn": {}}], 1007, "NOT_OF_THE_CONTRACT"),
        ([FIRST, bytes(3200), "nonsense"], 1007, "NOT_JSON"),
    ],
)
async def test_a_wrong_frame_closes_its_own_socket(
    bridge: BridgeServer, frames: list[Any], code: int, reason: str
) -> None:
    async with page(bridge) as bystander:
        await bystander.send(FIRST)
        await bystander.until("stream_started")
        async with page(bridge) as one:
            for frame in frames:
                await one.send(frame)
            found, error = await one.refusal()
        assert (found, error["reason"]) == (code, reason)
        await bystander.send(noise(1.0))
        await bystander.send({"end_of_turn": {}})
        await bystander.until("turn_result")
    await until(lambda: bridge.bridge.open_sockets == 0)


async def test_a_huge_frame_is_not_read(bridge: BridgeServer) -> None:
    async with page(bridge) as one:
        await one.send(FIRST)
        await one.until("stream_started")
        with contextlib.suppress(Exception):  # the bridge may hang up before all of it was sent
            await one.send(bytes(MAX_FRAME_BYTES + 1))
        code, _ = await one.refusal()
    assert code == 1009
    await healthy(bridge)


async def test_a_socket_that_sends_nothing_is_closed(bridge: BridgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kibun.client.bridge.socket.FIRST_FRAME_S", 0.1)
    async with page(bridge) as one:
        code, error = await one.refusal()
    assert (code, error["reason"]) == (1008, "CONFIG_TIMEOUT")


async def test_a_socket_that_sends_nothing_after_a_turn_is_closed(
    bridge: BridgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kibun.client.bridge.socket.IDLE_S", 0.2)
    async with page(bridge) as one:
        await one.send(FIRST)
        await one.send({"end_of_turn": {}})
        code, error = await one.refusal()
    assert (code, error["reason"]) == (1008, "IDLE_TIMEOUT")


@pytest.mark.parametrize("many", [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
async def test_many_sockets_find_a_bounded_number_of_places(bridge: BridgeServer, many: int) -> None:
    """A hundred at a time, as this machine has only so many files."""
    async with contextlib.AsyncExitStack() as stack:
        sitting = [await stack.enter_async_context(page(bridge)) for _ in range(8)]
        for one in sitting:
            await one.send(FIRST)
            await one.until("stream_started")
        refused = busy = 0
        for _ in range(many // 100):
            outcomes = await asyncio.gather(*(knock(bridge) for _ in range(100)))
            refused += outcomes.count("TOO_MANY_SOCKETS")
            busy += outcomes.count("503")
            assert bridge.bridge.open_sockets == 8
        assert refused + busy == many
        assert refused
        await sitting[0].send(noise(1.0))
        await sitting[0].send({"end_of_turn": {}})
        await sitting[0].until("turn_result")
    await until(lambda: bridge.bridge.open_sockets == 0)
    await healthy(bridge)


async def knock(bridge: BridgeServer) -> str:
    """The reason why there is no place."""
    try:
        async with page(bridge) as one:
            code, error = await one.refusal()
            assert code == 1013
            return str(error["reason"])
    except InvalidStatus as refused:
        return str(refused.response.status_code)


async def test_connections_that_say_nothing_are_bounded_and_hung_up_on(
    bridge: BridgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kibun.client.bridge.serving.HEADER_S", 0.5)
    silent = [socket.create_connection(("127.0.0.1", bridge.port)) for _ in range(200)]
    try:
        loop = asyncio.get_running_loop()
        said = 0
        for one in silent:
            one.setblocking(False)
            said += (await asyncio.wait_for(loop.sock_recv(one, 100), 20)).startswith(b"HTTP/1.1 503")
        assert said >= 200 - 8 - 64
    finally:
        for one in silent:
            one.close()
    await healthy(bridge)


@pytest.mark.parametrize(
    ("headers", "path", "reason"),
    [
        ({"origin": "https://foreign.example"}, "/v1/stream", "ORIGIN_REFUSED"),
        ({"origin": "null"}, "/v1/stream", "ORIGIN_REFUSED"),
        ({}, "/v1/stream?token=secret", "TOKEN_IN_URL"),
    ],
)
async def test_foreign_pages_and_tokens_in_the_url_are_refused(
    bridge: BridgeServer, headers: dict[str, str], path: str, reason: str
) -> None:
    async with page(bridge, path, **headers) as one:
        code, error = await one.refusal()
    assert (code, error["reason"]) == (1008, reason)


async def test_pages_of_the_bridge_and_those_it_was_told_of_may_come_in(service: ScriptedService) -> None:
    async with serving(service) as target, bridging(target, origins=["https://robot.example"]) as server:
        for origin in (f"http://127.0.0.1:{server.port}", "https://robot.example"):
            async with page(server, origin=origin) as one:
                await one.send(FIRST)
                await one.until("stream_started")


async def test_a_name_that_points_here_is_not_ours(bridge: BridgeServer) -> None:
    """DNS rebinding: a foreign page's own name leads to 127.0.0.1, and is both its Origin and its Host."""
    status, _, _ = await get(bridge, "/", host=f"evil.example:{bridge.port}")
    assert status == 421
    upgrade = {
        "host": "evil.example",
        "origin": "http://evil.example",
        "upgrade": "websocket",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-version": "13",
    }
    status, _, _ = await get(bridge, "/v1/stream", connection="upgrade", **upgrade)
    assert status == 421


async def test_the_token_goes_from_the_first_frame_to_the_server(service: ScriptedService) -> None:
    tokens: list[str | None] = []
    async with serving(service) as target:

        def client_of(token: str | None) -> AsyncClient:
            tokens.append(token)
            return AsyncClient(target, token=token)

        async with bridging(client_of) as server:
            for frame in ({"token": "secret", **FIRST}, FIRST):
                async with page(server) as one:
                    await one.send(frame)
                    await one.until("stream_started")
    assert tokens == ["secret", None]


async def get(
    bridge: BridgeServer, path: str, *, host: str = "", connection: str = "close", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    try:
        lines = [f"GET {path} HTTP/1.1", f"connection: {connection}", f"host: {host or f'127.0.0.1:{bridge.port}'}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
        first, *rest = head.decode().splitlines()
        fields = dict(line.lower().split(": ", 1) for line in rest)
        return int(first.split()[1]), fields, body
    finally:
        writer.close()


async def test_no_page_may_frame_what_the_bridge_serves(bridge: BridgeServer) -> None:
    for path in ("/", "/v1/service_info", "/nothing/there"):
        _, headers, _ = await get(bridge, path)
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "deny"
        assert headers["x-content-type-options"] == "nosniff"


async def test_service_info_is_the_contracts_or_the_error(bridge: BridgeServer) -> None:
    status, _, body = await get(bridge, "/v1/service_info")  # the scripted service has none
    assert status == 502
    assert json.loads(body)["error"]["reason"] == "SERVER_TOO_OLD"
