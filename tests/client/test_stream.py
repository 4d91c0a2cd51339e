"""Streams and turns of the SDK against a scripted service: what a real one cannot be made to do at will."""

# A stream fails somewhere within its block, so `raises` is put around blocks of several statements.
# ruff: noqa: PT012

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, cast

import grpc
import numpy as np
import pytest

from kibun.client import (
    AsyncClient,
    Client,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    PersonalityUpdate,
    ReplayBufferExceededError,
    ResourceExhaustedError,
    RetryPolicy,
    ServerTooOldError,
    StreamConfig,
    StreamEnded,
    StreamStarted,
    TurnEndedError,
    TurnResult,
    UnavailableError,
    UtteranceResult,
)
from kibun.client.options import Encoding
from kibun.client.transport import StreamCall
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import add_SpeechAnalysisServiceServicer_to_server
from tests.support import present
from tests.support.processes import until
from tests.support.scripted_service import SECOND, Connection, ScriptedService, noise, serving

if TYPE_CHECKING:
    from kibun.client.pcm import Pcm

QUICK = RetryPolicy(max_attempts=4, initial_backoff_s=0.01, max_backoff_s=0.05)


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
async def client(service: ScriptedService) -> AsyncIterator[AsyncClient]:
    async with serving(service) as target, AsyncClient(target, retry=QUICK) as client:
        yield client


async def test_events_are_typed_and_in_order(client: AsyncClient, service: ScriptedService) -> None:
    async with client.conversation("c1").turn("t1", "alice") as turn:
        await turn.push(noise(2.5))
        turn.end()
        events = [event async for event in turn]
    kinds = [type(event) for event in events]
    assert kinds == [StreamStarted, *[UtteranceResult, PersonalityUpdate] * 2, TurnResult, StreamEnded]
    assert [event.sequence_number for event in events] == list(range(7))
    assert events[1].audio_received_s == 1.5
    first, second = (event for event in events if isinstance(event, UtteranceResult))
    assert (second.start_s, second.end_s) == (1.0, 2.0)
    assert first.emotion is not None
    assert first.emotion.normalized().arousal == 0.5
    assert first.personality is None
    update = events[2]
    assert isinstance(update, PersonalityUpdate)
    assert update.personality.normalized().traits.conscientiousness == 1.0
    assert (await turn.result()).utterance_count == 2
    config = service.connections[0].config
    assert (config.conversation_id, config.participant_id, config.turn_id) == ("c1", "alice", "t1")
    assert config.audio_config.encoding == pb.AUDIO_ENCODING_LINEAR16


@pytest.mark.parametrize("chunk_bytes", [1, 3199, 3201, 100_000])
async def test_any_chunking_sends_the_same_bytes(
    client: AsyncClient, service: ScriptedService, chunk_bytes: int
) -> None:
    audio = noise(0.3 if chunk_bytes == 1 else 2.0)
    async with client.conversation().turn() as turn:
        for start in range(0, len(audio), chunk_bytes):
            await turn.push(audio[start : start + chunk_bytes])
        await turn.result()
    assert service.connections[0].audio == audio


async def test_several_turns_on_one_stream(client: AsyncClient, service: ScriptedService) -> None:
    async with client.stream(StreamConfig(turn_id="first")) as stream:
        await stream.push(noise(1))
        await stream.end_of_turn("second")
        await stream.push(noise(1))
        stream.end()
        results = [event async for event in stream if isinstance(event, TurnResult)]
    assert [result.turn_id for result in results] == ["first", "second"]


async def test_error_carries_everything_that_the_server_said(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "full"
    with pytest.raises(ResourceExhaustedError, match="4 of 4 streams are in use") as caught:
        async with client.conversation().turn():
            pytest.fail("the turn must not open")
    error = caught.value
    assert (error.reason, error.code, error.request_id) == ("TOO_MANY_STREAMS", "RESOURCE_EXHAUSTED", "r-17")
    assert error.retry_after_s == 1.5
    assert (error.field, error.fields["model"]) == ("model", "one of a, b")
    assert error.details.quotas == {"tenant:x": "4 streams"}
    assert len(service.connections) == 1, "only a lost connection is retried"


async def test_error_in_the_middle_is_the_servers_whatever_is_being_written(service: ScriptedService) -> None:
    """The status must win against the failure of the write that it interrupts."""
    service.fault = lambda number, connection: "full" if len(connection.audio) >= SECOND else None
    async with serving(service) as target, AsyncClient(target) as client:
        for _ in range(40):
            with pytest.raises(ResourceExhaustedError) as caught:
                async with client.conversation().turn() as turn:
                    while True:
                        await turn.push(noise(0.2))
            assert caught.value.reason == "TOO_MANY_STREAMS"


async def test_a_fault_of_the_server_is_an_internal_error(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "crash" if connection.half_closed else None
    with pytest.raises(InternalError):
        async with client.conversation().turn() as turn:
            await turn.push(noise(0.5))
            await turn.result()


async def test_a_lost_connection_replays_what_has_no_final(client: AsyncClient, service: ScriptedService) -> None:
    audio = noise(4.4)
    lost_at = round(2.6 * SECOND)
    service.fault = lambda number, c: "lose" if number == 1 and len(c.audio) >= lost_at else None
    async with client.conversation("c").turn() as turn:
        turn.feed(audio[start : start + 3200] for start in range(0, len(audio), 3200))
        events = [event async for event in turn]
    _, second = service.connections
    finals = [event for event in events if isinstance(event, UtteranceResult)]
    assert [event.start_s for event in finals] == [0.0, 1.0, 2.0, 3.0], "none lost, none doubled"
    assert second.config.audio_start_offset.ToTimedelta().total_seconds() == 2.0
    assert second.audio == audio[2 * SECOND :]
    assert second.config.turn_id == "made-up-turn", "the same turn, though the server had made up its id"
    started = [event for event in events if isinstance(event, StreamStarted)]
    assert [event.reconnects for event in started] == [0, 1]
    assert (await turn.result()).turn_id == "made-up-turn"


async def test_replay_keeps_the_offset_that_the_caller_gave(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, c: "lose" if number == 1 and len(c.audio) >= 1.5 * SECOND else None
    async with client.conversation().turn(audio_start_offset_s=10.0) as turn:
        await turn.push(noise(2.5))
        await turn.result()
    assert service.connections[1].config.audio_start_offset.ToTimedelta().total_seconds() == 11.0
    assert len(service.connections[1].audio) == 1.5 * SECOND


async def test_the_end_of_a_turn_is_told_again_after_a_lost_connection(
    client: AsyncClient, service: ScriptedService
) -> None:
    service.fault = lambda number, connection: "lose" if number == 1 and connection.turns_ended else None
    async with client.conversation().turn() as turn:
        await turn.push(noise(1.5))
        assert (await turn.result()).end_reason == "client_end_of_turn"
    assert [connection.turns_ended for connection in service.connections] == [1, 1]


async def test_attempts_are_bounded(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "lose" if connection.audio else None
    with pytest.raises(UnavailableError):
        async with client.conversation().turn() as turn:
            await turn.push(noise(0.5))
            await turn.result()
    assert len(service.connections) == QUICK.max_attempts


async def test_a_final_makes_the_count_of_attempts_start_again(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "lose" if len(connection.audio) >= 1.2 * SECOND else None
    async with client.conversation().turn() as turn:
        await turn.push(noise(8.0))
        assert (await turn.result()).end_reason == "client_end_of_turn"
    assert len(service.connections) == 8


@pytest.mark.parametrize("error", [grpc.aio.InternalError("execute_batch"), asyncio.InvalidStateError()])
async def test_writing_into_a_call_that_has_just_ended_is_no_separate_error(error: Exception) -> None:
    """The reader gets the error that ended the call."""

    class Ended:
        async def __aiter__(self) -> AsyncIterator[pb.StreamingAnalyzeResponse]:
            yield pb.StreamingAnalyzeResponse()

        def add_done_callback(self, callback: object) -> None:
            pass

        async def write(self, request: object) -> None:
            raise error

        async def done_writing(self) -> None:
            raise error

    call = StreamCall(Ended(), "host:1")
    assert not await call.write(pb.StreamingAnalyzeRequest())
    await call.half_close()


async def test_a_server_that_is_full_when_a_turn_comes_back_is_waited_for(
    client: AsyncClient, service: ScriptedService
) -> None:
    """Its places may be taken by the very streams that were lost."""

    def fault(number: int, connection: Connection) -> str | None:
        if number == 1:
            return "lose" if len(connection.audio) >= 1.5 * SECOND else None
        return "full" if number <= QUICK.max_attempts + 2 else None

    service.fault = fault
    async with client.conversation().turn("t") as turn:
        turn.feed([noise(2.5)])
        events = [event async for event in turn]
    assert [event.start_s for event in events if isinstance(event, UtteranceResult)] == [0.0, 1.0]
    assert [connection.config.resume_turn for connection in service.connections] == [False, *[True] * 6]


async def test_a_turn_that_was_never_accepted_is_not_resumed(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "lose" if number == 1 else None
    async with client.conversation().turn("t"):
        pass
    assert [connection.config.resume_turn for connection in service.connections] == [False, False]


async def test_a_server_that_was_there_before_is_waited_for(client: AsyncClient, service: ScriptedService) -> None:
    async with client.conversation().turn():
        pass
    service.fault = lambda number, connection: "lose" if number < 3 * QUICK.max_attempts else None
    async with client.conversation().turn():
        pass
    assert len(service.connections) == 3 * QUICK.max_attempts


async def test_a_server_that_refuses_leaves_turns_to_the_others_of_its_name() -> None:
    leaving, staying = ScriptedService(), ScriptedService()
    leaving.fault = lambda number, connection: "lose"
    async with (
        serving(leaving) as first,
        serving(staying) as second,
        AsyncClient(f"ipv4:{first},{second}", retry=QUICK) as client,
    ):
        for number in range(1, 5):
            async with client.conversation().turn() as turn:
                await turn.push(noise(1.0))
                assert (await turn.result()).utterance_count == 1
            assert len(staying.connections) == number
    assert leaving.connections, "turns are spread over the servers"


async def test_a_replay_buffer_that_is_too_small_is_an_error(service: ScriptedService) -> None:
    service.fault = lambda number, connection: "lose" if len(connection.audio) >= 0.9 * SECOND else None
    policy = RetryPolicy(initial_backoff_s=0.01, replay_limit_s=0.5)
    async with serving(service) as target, AsyncClient(target, retry=policy) as client:
        with pytest.raises(ReplayBufferExceededError, match=r"raise RetryPolicy\.replay_limit_s"):
            async with client.conversation().turn() as turn:
                await turn.push(noise(1.0))
                await turn.result()


async def test_a_stream_below_the_level_of_turns_does_not_resume(client: AsyncClient, service: ScriptedService) -> None:
    service.fault = lambda number, connection: "lose" if connection.audio else None
    with pytest.raises(UnavailableError, match="was lost"):
        async with client.stream(StreamConfig()) as stream:
            await stream.push(noise(0.5))
            await stream.wait_ended()
    assert len(service.connections) == 1


async def test_an_exception_of_the_source_surfaces_as_itself(client: AsyncClient, service: ScriptedService) -> None:
    class MicrophoneError(Exception):
        pass

    async def source() -> AsyncIterator[bytes]:
        yield noise(0.5)
        raise MicrophoneError("unplugged")

    with pytest.raises(MicrophoneError, match="unplugged"):
        async with client.conversation().turn() as turn:
            turn.feed(source())
            async for _ in turn:
                pass
    await until(lambda: service.connections[0].cancelled)  # the call must not stay alive on the server


async def test_leaving_by_an_exception_cancels_the_call(client: AsyncClient, service: ScriptedService) -> None:
    service.half_close_delay_s = 20.0  # until the cancel is there, however late
    with pytest.raises(ZeroDivisionError):
        async with client.conversation().turn() as turn:
            await turn.push(noise(0.5))
            _ = 1 / 0
    await until(lambda: service.connections[0].cancelled)
    assert not service.connections[0].half_closed


async def test_leaving_normally_waits_for_the_result(client: AsyncClient, service: ScriptedService) -> None:
    async with client.conversation().turn() as turn:
        await turn.push(noise(1.0))
    assert turn.ended
    assert service.connections[0].half_closed


async def test_push_waits_for_a_slow_network_and_its_cancellation_harms_nothing(
    client: AsyncClient, service: ScriptedService
) -> None:
    service.read_delay_s = 0.05
    async with client.conversation().turn() as turn:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                while True:
                    await turn.push(noise(0.1))
        service.read_delay_s = 0.0
        received_s = len(service.connections[0].audio) / SECOND
        assert received_s < 2.0
        assert (await turn.result()).utterance_count >= 2


async def test_server_ends_the_turn(client: AsyncClient, service: ScriptedService) -> None:
    service.server_ends_turn_after_s = 1
    async with client.conversation().turn("t") as turn:
        with pytest.raises(TurnEndedError, match="open the next one"):
            while True:
                await turn.push(noise(0.1))
                await asyncio.sleep(0.01)
        assert turn.ended
        results = [event async for event in turn if isinstance(event, TurnResult)]
        assert [result.turn_id for result in results] == ["t"]
        assert (await turn.result()).end_reason == "silence"


async def test_feeding_a_turn_that_the_server_ends_is_no_error(client: AsyncClient, service: ScriptedService) -> None:
    service.server_ends_turn_after_s = 1

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield noise(0.1)
            await asyncio.sleep(0.01)

    async with client.conversation().turn("t") as turn:
        turn.feed(endless())
        assert isinstance([event async for event in turn][-1], StreamEnded)


async def test_result_within_a_time(client: AsyncClient, service: ScriptedService) -> None:
    service.read_delay_s = 1.0
    async with client.conversation().turn() as turn:
        await turn.push(noise(0.2))
        with pytest.raises(DeadlineError, match=r"within 0\.1 s"):
            await turn.result(timeout_s=0.1)
        await turn.cancel()
        with pytest.raises(TurnEndedError, match="cancelled"):
            await turn.push(noise(0.1))


async def test_push_after_the_end_is_refused(client: AsyncClient) -> None:
    async with client.conversation().turn() as turn:
        turn.end()
        with pytest.raises(TurnEndedError):
            await turn.push(noise(0.1))


@pytest.mark.parametrize(
    ("encoding", "array", "fix"),
    [
        ("linear16", np.zeros(10, np.float32), "encoding='float32'"),
        ("linear16", np.zeros(10, np.int32), r"x\.astype\(np\.int16\)"),
        ("float32", np.zeros(10, np.int16), "encoding='linear16'"),
        ("float32", np.zeros(10), r"x\.astype\(np\.float32\)"),
        ("mulaw", np.zeros(10, np.int16), r"x\.astype\(np\.uint8\)"),
        ("linear16", np.zeros((10, 2), np.int16), "not mono"),
    ],
)
async def test_an_array_of_another_type_names_the_fix(
    client: AsyncClient, encoding: Encoding, array: np.ndarray, fix: str
) -> None:
    async with client.conversation().turn(encoding=encoding) as turn:
        with pytest.raises(InvalidRequestError, match=fix) as caught:
            await turn.push(array)
        assert caught.value.reason == "AUDIO_TYPE_MISMATCH"


@pytest.mark.parametrize(("encoding", "dtype"), [("linear16", ">i2"), ("linear16", "<i2"), ("float32", ">f4")])
async def test_arrays_are_sent_little_endian(
    client: AsyncClient, service: ScriptedService, encoding: Encoding, dtype: str
) -> None:
    values = np.arange(-50, 50).astype(dtype)
    async with client.conversation().turn(encoding=encoding) as turn:
        await turn.push(values[:50])
        await turn.push(values[50:].reshape(-1, 1))
        await turn.result()
    assert bytes(service.connections[0].audio) == values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()


async def test_push_takes_bytes_or_arrays_only(client: AsyncClient) -> None:
    async with client.conversation().turn() as turn:
        with pytest.raises(TypeError, match="not list"):
            await turn.push(cast("Pcm", [0.0, 0.1]))


async def test_unknown_call_is_a_server_too_old(client: AsyncClient) -> None:
    with pytest.raises(ServerTooOldError, match="upgrade the server"):
        await client.service_info()


async def test_unreachable_server_says_what_to_start() -> None:
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        with pytest.raises(UnavailableError, match="start a server there with `kibun serve`"):
            async with client.conversation().turn():
                pass
        with pytest.raises(UnavailableError, match=r"was not ready within 0\.3 s") as caught:
            await client.wait_until_ready(timeout_s=0.3)
        assert caught.value.reason == "NOT_READY"


async def test_a_server_that_stops_and_comes_back_loses_nothing(service: ScriptedService) -> None:
    """A real lost connection: the listener is gone for a while."""
    server = grpc.aio.server()
    add_SpeechAnalysisServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    policy = RetryPolicy(max_attempts=8, initial_backoff_s=0.05, max_backoff_s=0.2)
    async with AsyncClient(f"127.0.0.1:{port}", retry=policy) as client:
        async with client.conversation("c").turn("t") as turn:
            await turn.push(noise(1.5))
            await until(lambda: len(service.connections[0].audio) == 1.5 * SECOND)
            await server.stop(0)
            await turn.push(noise(1.5, seed=1))
            await asyncio.sleep(0.2)  # attempts to reconnect fail
            server = grpc.aio.server()
            add_SpeechAnalysisServiceServicer_to_server(service, server)
            assert server.add_insecure_port(f"127.0.0.1:{port}") == port
            await server.start()
            await turn.result()
            events = [event async for event in turn]
        assert [event.start_s for event in events if isinstance(event, UtteranceResult)] == [0.0, 1.0, 2.0]
        assert service.connections[-1].audio == (noise(1.5) + noise(1.5, seed=1))[SECOND:]
    await server.stop(0)


async def test_sync_client_is_a_thin_twin(service: ScriptedService) -> None:
    async with serving(service) as target:

        def use() -> list[type]:
            with Client(target) as client:
                with client.conversation("c").turn("t") as turn:
                    turn.feed([noise(1.0), noise(1.5)])
                    kinds = [type(event) for event in turn]
                    assert turn.result().turn_id == "t"
                with client.stream(StreamConfig(turn_id="a")) as stream:
                    stream.push(noise(1.0))
                    stream.end_of_turn("b")
                    ended = present(stream.wait_ended())
                    assert ended.reason == "HALF_CLOSE"
                with pytest.raises(ServerTooOldError):
                    client.service_info()
            client.close()
            with pytest.raises(RuntimeError, match="closed"):
                client.service_info()
            return kinds

        kinds = await asyncio.to_thread(use)
    assert kinds == [StreamStarted, *[UtteranceResult, PersonalityUpdate] * 2, TurnResult, StreamEnded]


async def test_sync_feed_raises_the_sources_own_error(service: ScriptedService) -> None:
    def source() -> Iterator[bytes]:
        yield noise(0.2)
        raise OSError("unplugged")

    async with serving(service) as target:

        def use() -> None:
            with Client(target) as client, client.conversation().turn() as turn:
                turn.feed(source())
                for _ in turn:
                    pass

        with pytest.raises(OSError, match="unplugged"):
            await asyncio.to_thread(use)
        await until(lambda: service.connections[0].cancelled)
