"""`/v1/watch`, against a real server: what a page sees of a conversation, and how each end of it is told."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from kibun.client.bridge.serving import BridgeServer
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.bridges import Page, bridging, page
from tests.support.processes import until
from tests.support.serving import RunningServer, chunks, config, connect, converse, encode, finals, serve, spoken

TOKEN = "right-token-0123456789"
RIGHT = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"table {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    tokens.chmod(0o600)
    with serve("--token-file", str(tokens)) as running:
        yield running


@pytest.fixture
async def stub(server: RunningServer) -> AsyncIterator[Stub]:
    async with connect(server) as stub:
        yield stub


@pytest.fixture
async def bridge(server: RunningServer) -> AsyncIterator[BridgeServer]:
    async with bridging(server.target) as running:
        yield running
        await until(lambda: running.bridge.open_sockets == 0)


async def say(stub: Stub, conversation_id: str, turn_id: str) -> list[str]:
    """One turn; ids of its finals."""
    requests = [config(conversation_id=conversation_id, turn_id=turn_id), *chunks(encode(spoken(0.8)))]
    return [final.utterance_id for final in finals(await converse(stub, requests, metadata=RIGHT))]


async def watch(one: Page, conversation_id: str, **fields: Any) -> dict[str, Any]:
    """`watch_started`."""
    await one.send({"token": TOKEN, "conversation_id": conversation_id, **fields})
    [message] = await one.until("watch_started")
    started: dict[str, Any] = message["watch_started"]
    return started


def finals_in(messages: list[dict[str, Any]]) -> list[str]:
    results = [message["event"].get("utterance_result", {}) for message in messages if "event" in message]
    return [result["utterance_id"] for result in results if result.get("is_final")]


@pytest.mark.parametrize(
    ("method", "reason"), [("CompleteConversation", "COMPLETED"), ("DeleteConversation", "DELETED")]
)
async def test_it_shows_past_and_present_and_closes_with_1000_at_the_end(
    bridge: BridgeServer, stub: Stub, method: str, reason: str
) -> None:
    name = f"shown-{reason}"
    said = await say(stub, name, "t1")
    async with page(bridge, "/v1/watch") as one:
        started = await watch(one, name, include_past=True)
        assert started["conversation"]["participants"][0]["utterance_count"] == 1
        said += await say(stub, name, "t2")
        await getattr(stub, method)(
            getattr(pb, f"{method}Request")(conversation_id=name), metadata=tuple(RIGHT.items())
        )
        seen = await one.until("watch_ended")
        assert await ending(one) == (1000, "")
    assert finals_in(seen) == said
    assert [message.get("past", False) for message in seen if finals_in([message])] == [True, False]
    assert seen[-1]["watch_ended"]["reason"] == reason


async def ending(one: Page) -> tuple[int | None, str | None]:
    """Close code and reason, once nothing else comes."""
    async with asyncio.timeout(20):
        assert [message async for message in one.socket] == []
    return one.socket.close_code, one.socket.close_reason


@pytest.mark.parametrize("frame", [{"conversation_id": "other"}, b"\0\0", "nonsense"])
async def test_a_second_frame_ends_it(bridge: BridgeServer, frame: dict[str, str] | bytes | str) -> None:
    async with page(bridge, "/v1/watch") as one:
        await watch(one, "second")
        await one.send(frame)
        code, error = await one.refusal()
    assert (code, one.socket.close_reason, error["reason"]) == (1008, "UNEXPECTED_FRAME", "UNEXPECTED_FRAME")
    assert (error["code"], error["message"]) == (
        "INVALID_ARGUMENT",
        "a watch takes one frame, the first; close it to end it",
    )


@pytest.mark.parametrize(
    ("frame", "close", "code", "reason"),
    [
        (
            {"token": TOKEN, "conversation_id": "unknown", "require_existing_conversation": True},
            1008,
            "NOT_FOUND",
            "CONVERSATION_NOT_FOUND",
        ),
        ({"token": "wrong-token-0123456789", "conversation_id": "c"}, 1008, "UNAUTHENTICATED", "UNAUTHENTICATED"),
        ({"conversation_id": "c"}, 1008, "UNAUTHENTICATED", "UNAUTHENTICATED"),
        ({"token": TOKEN}, 1008, "INVALID_ARGUMENT", "INVALID_ID"),
        ({"token": TOKEN, "conversation_id": "a b"}, 1008, "INVALID_ARGUMENT", "INVALID_ID"),
        ({"token": 5, "conversation_id": "c"}, 1008, "INVALID_ARGUMENT", "INVALID_TOKEN"),
        ({"streaming_config": {}}, 1007, "INVALID_ARGUMENT", "NOT_OF_THE_CONTRACT"),
        ("nonsense", 1007, "INVALID_ARGUMENT", "NOT_JSON"),
        (b"\0\0", 1008, "INVALID_ARGUMENT", "CONFIG_REQUIRED_FIRST"),
    ],
)
async def test_what_is_refused_says_why(
    bridge: BridgeServer, frame: dict[str, Any] | bytes | str, close: int, code: str, reason: str
) -> None:
    async with page(bridge, "/v1/watch") as one:
        await one.send(frame)
        found, error = await one.refusal()
    assert (found, one.socket.close_reason) == (close, reason)
    assert (error["code"], error["reason"]) == (code, reason)
    assert error["message"]


async def test_a_server_that_is_not_there() -> None:
    async with bridging("127.0.0.1:1") as server, page(server, "/v1/watch") as one:
        await one.send({"conversation_id": "c"})
        code, error = await one.refusal()
    assert (code, error["code"]) == (1013, "UNAVAILABLE")
    assert "kibun serve" in error["message"]


@pytest.mark.parametrize("deliberate", [True, False])
async def test_a_page_that_is_left_leaves_no_watch(bridge: BridgeServer, deliberate: bool) -> None:
    async with page(bridge, "/v1/watch") as one:
        await watch(one, "left")
        assert bridge.bridge.open_sockets == 1
        if deliberate:
            await one.socket.close(1000)
        else:
            one.socket.transport.abort()
    await until(lambda: bridge.bridge.open_sockets == 0)
