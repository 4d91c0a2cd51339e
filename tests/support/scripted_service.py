"""A service that follows a script, for what a real one cannot be made to do at will."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import (
    SpeechAnalysisServiceServicer,
    add_SpeechAnalysisServiceServicer_to_server,
)

RATE_HZ = 16000
SECOND = RATE_HZ * 2  # bytes of LINEAR16


def duration(seconds: float) -> Duration:
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


@dataclass
class Connection:
    """What one call sent."""

    config: pb.StreamingAnalyzeConfig = field(default_factory=pb.StreamingAnalyzeConfig)
    audio: bytearray = field(default_factory=bytearray)
    turns_ended: int = 0
    half_closed: bool = False
    cancelled: bool = False


class ScriptedService(SpeechAnalysisServiceServicer):
    """Every second of audio is an utterance; `fault(number of the connection, connection)` may break a call."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.fault: Callable[[int, Connection], str | None] = lambda number, connection: None
        self.read_delay_s = 0.0
        self.half_close_delay_s = 0.02
        self.server_ends_turn_after_s: float | None = None

    async def StreamingAnalyze(
        self, requests: AsyncIterator[pb.StreamingAnalyzeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamingAnalyzeResponse]:
        connection = Connection()
        self.connections.append(connection)
        number = len(self.connections)
        self._sequence = 0
        finals = 0
        turn = "?"
        due = True  # as from the real one: a turn that the client asked for gets a result once it has audio
        try:
            async for request in requests:
                kind = request.WhichOneof("streaming_request")
                if kind == "streaming_config":
                    connection.config = request.streaming_config
                    turn = request.streaming_config.turn_id or "made-up-turn"
                    self._base_s = request.streaming_config.audio_start_offset.ToTimedelta().total_seconds()
                    await self._break(number, connection, context)
                    yield self._wrap(stream_started=self._started(request.streaming_config, number))
                elif kind == "audio_content":
                    await asyncio.sleep(self.read_delay_s)
                    connection.audio += request.audio_content
                    due = True
                    while len(connection.audio) >= (finals + 1) * SECOND:
                        for response in self._utterance(turn, finals):
                            yield response
                        finals += 1
                elif kind == "end_of_turn":
                    connection.turns_ended += 1
                    await self._break(number, connection, context)
                    yield self._turn_result(turn, finals, pb.END_REASON_CLIENT_END_OF_TURN)
                    turn, due = request.end_of_turn.next_turn_id, False
                await self._break(number, connection, context)
                if self.server_ends_turn_after_s and finals >= self.server_ends_turn_after_s and turn != "next":
                    yield self._turn_result(turn, finals, pb.END_REASON_SILENCE)
                    turn = "next"
            await asyncio.sleep(self.half_close_delay_s)  # a cancel looks like a half-close until the next await
            connection.half_closed = True
            await self._break(number, connection, context)
            if due:
                yield self._turn_result(turn, finals, pb.END_REASON_HALF_CLOSE)
            yield self._wrap(stream_ended=pb.StreamEnded(reason="HALF_CLOSE"))
        except asyncio.CancelledError:
            connection.cancelled = True
            raise

    async def _break(self, number: int, connection: Connection, context: grpc.aio.ServicerContext) -> None:
        fault = self.fault(number, connection)
        if fault == "lose":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset by the test")
        elif fault == "full":
            await context.abort_with_status(rpc_status.to_status(rich_status()))
        elif fault == "crash":
            raise RuntimeError("a fault of the server")

    def _wrap(self, **response: Any) -> pb.StreamingAnalyzeResponse:
        self._sequence += 1
        return pb.StreamingAnalyzeResponse(sequence_number=self._sequence - 1, audio_received=duration(1.5), **response)

    def _started(self, config: pb.StreamingAnalyzeConfig, number: int) -> pb.StreamStarted:
        return pb.StreamStarted(
            request_id=f"request-{number}",
            conversation_id=config.conversation_id,
            participant_id=config.participant_id,
            turn_id=config.turn_id or "made-up-turn",
            model="scripted",
        )

    def _utterance(self, turn: str, index: int) -> list[pb.StreamingAnalyzeResponse]:
        start_s = self._base_s + index
        final = pb.UtteranceResult(
            utterance_id=f"{turn}/{start_s}",
            turn_id=turn,
            is_final=True,
            start_offset=duration(start_s),
            end_offset=duration(start_s + 1),
            emotion=pb.EmotionEstimate(valence=2.0, arousal=4.0),
        )
        update = pb.PersonalityUpdate(
            participant_id="user",
            personality=pb.PersonalityEstimate(
                traits=pb.BigFiveTraits(openness=4, conscientiousness=7), source=pb.PERSONALITY_SOURCE_CONVERSATION
            ),
        )
        return [self._wrap(utterance_result=final), self._wrap(personality_update=update)]

    def _turn_result(self, turn: str, count: int, reason: pb.EndReason) -> pb.StreamingAnalyzeResponse:
        return self._wrap(turn_result=pb.TurnResult(turn_id=turn, utterance_count=count, end_reason=reason))


def rich_status() -> status_pb2.Status:
    details = [
        error_details_pb2.ErrorInfo(reason="TOO_MANY_STREAMS", domain="kibun", metadata={"limit": "4"}),
        error_details_pb2.RequestInfo(request_id="r-17"),
        error_details_pb2.RetryInfo(retry_delay=duration(1.5)),
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="model", description="one of a, b")]
        ),
        error_details_pb2.QuotaFailure(
            violations=[error_details_pb2.QuotaFailure.Violation(subject="tenant:x", description="4 streams")]
        ),
    ]
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="4 of 4 streams are in use", details=packed)


@contextlib.asynccontextmanager
async def serving(service: SpeechAnalysisServiceServicer, port: int = 0) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_SpeechAnalysisServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def noise(seconds: float, seed: int = 0) -> bytes:
    samples = np.random.default_rng(seed).integers(-1000, 1000, round(seconds * RATE_HZ), dtype=np.int16)
    return samples.tobytes()


@contextlib.contextmanager
def serving_in_thread(service: SpeechAnalysisServiceServicer) -> Iterator[str]:
    """The same for tests of the synchronous client: in an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = serving(service)
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(20)
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
