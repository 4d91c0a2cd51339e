"""A client made from the contract alone: the stubs of kibun.v1 and gRPC, and no other part of kibun.

It resumes turns as the comments of the .proto tell it, so it shows that they are enough for a client in any language:
fault runs and tests compare what it gets with an undisturbed run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing, suppress
from typing import Any, Literal

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import RetryInfo

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub

ResumePoint = Literal["final", "settled"]
"""From where on audio is kept: the end of the last final, or settled_offset of StreamProgress if that is later."""

BYTES_PER_SAMPLE = 2  # LINEAR16
CHUNK_BYTES = 3200
RESUME_FINALS = 1024  # are enough
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)  # before streams that follow one that was not accepted; the last is repeated
GIVE_UP_AFTER = 80  # streams in a row that were not accepted


class StubTurn:
    """One turn, over as many streams as it takes; LINEAR16."""

    def __init__(
        self, stub: SpeechAnalysisServiceStub, config: pb.StreamingAnalyzeConfig, resume_point: ResumePoint
    ) -> None:
        """`config`: of the turn's first stream."""
        self.streams = 0  # that the server has accepted
        self._stub = stub
        self._config = pb.StreamingAnalyzeConfig()
        self._config.CopyFrom(config)
        self._resume_point = resume_point
        self._rate = config.audio_config.sample_rate_hertz
        self._kept = bytearray()  # audio after the resume point
        self._kept_from = self._samples(config.audio_start_offset)  # on the turn's clock
        self._complete = False  # all audio of the turn has come
        self._changed = asyncio.Event()
        self._has_result = False

    async def responses(self, audio: AsyncIterable[bytes]) -> AsyncGenerator[pb.StreamingAnalyzeResponse, None]:
        """Speaks the turn and yields all responses of all its streams. Raises what it cannot be resumed after."""
        keeping = asyncio.create_task(self._keep(audio))
        refused = 0  # streams in a row
        try:
            while True:
                accepted, wait_s = self.streams, 0.0
                try:
                    async with aclosing(self._stream()) as stream:
                        async for response in stream:
                            yield response
                            if response.HasField("stream_ended"):
                                return
                except grpc.aio.AioRpcError as error:
                    if self._has_result:
                        return
                    refused = refused + 1 if self.streams == accepted else 0
                    asked_s = _wait_s(error)
                    if asked_s is None or refused > GIVE_UP_AFTER:
                        raise
                    wait_s = max(asked_s, PAUSES_S[min(refused, len(PAUSES_S) - 1)])
                await asyncio.sleep(wait_s)
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    async def _keep(self, audio: AsyncIterable[bytes]) -> None:
        async for piece in audio:
            self._kept += piece
            self._changed.set()
        self._complete = True
        self._changed.set()

    # ---- one stream

    async def _stream(self) -> AsyncGenerator[pb.StreamingAnalyzeResponse, None]:
        call = self._stub.StreamingAnalyze()
        accepted = asyncio.Event()
        writing = asyncio.create_task(self._write(call, accepted))
        try:
            async for response in call:
                if response.HasField("stream_started"):
                    self.streams += 1
                    accepted.set()
                self._note(response)
                yield response
        finally:
            writing.cancel()
            call.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: Any, accepted: asyncio.Event) -> None:
        """The config; the audio that is kept, and what comes meanwhile; at its end the half-close."""
        with suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):  # reading tells why
            await call.write(pb.StreamingAnalyzeRequest(streaming_config=self._config))
            await accepted.wait()
            at = self._kept_from * BYTES_PER_SAMPLE
            while True:
                begin = at - self._kept_from * BYTES_PER_SAMPLE
                if piece := bytes(self._kept[begin : begin + CHUNK_BYTES]):
                    at += len(piece)
                    await call.write(pb.StreamingAnalyzeRequest(audio_content=piece))
                elif self._complete:
                    await call.done_writing()
                    return
                else:
                    self._changed.clear()
                    await self._changed.wait()

    # ---- what a stream that follows has to know

    def _note(self, response: pb.StreamingAnalyzeResponse) -> None:
        match response.WhichOneof("streaming_response"):
            case "stream_started":
                started = response.stream_started
                self._config.conversation_id = started.conversation_id
                self._config.participant_id = started.participant_id
                self._config.turn_id = started.turn_id
                self._config.resume_turn = True
                self._config.resume_final_count += 0  # said from now on, even if it is none
            case "utterance_result":
                final = response.utterance_result
                if final.is_final:
                    self._resume_from(final.end_offset, final.end_reason)
                    self._config.resume_finals.append(final)
                    self._config.resume_final_count += 1
                    del self._config.resume_finals[:-RESUME_FINALS]
            case "stream_progress":
                if self._resume_point == "settled":
                    self._resume_from(response.stream_progress.settled_offset, pb.END_REASON_UNSPECIFIED)
            case "turn_result":
                self._has_result = True

    def _resume_from(self, offset: Duration, reason: pb.EndReason) -> None:
        """Moves the resume point, never back, and drops what is kept before it."""
        position = self._samples(offset)
        if position <= self._kept_from:
            return
        del self._kept[: (position - self._kept_from) * BYTES_PER_SAMPLE]
        self._kept_from = position
        self._config.audio_start_offset.FromNanoseconds(position * 10**9 // self._rate)
        self._config.resume_after = reason

    def _samples(self, offset: Duration) -> int:
        """Whole samples of the client's rate before a time."""
        return offset.ToNanoseconds() * self._rate // 10**9


def _wait_s(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds to wait before the turn is resumed; None where it cannot be."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if details is None:  # not from the server
        return 0.0
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Is(RetryInfo.DESCRIPTOR):
            delay: Duration = RetryInfo.FromString(detail.value).retry_delay
            return delay.ToNanoseconds() / 1e9
    return 0.0 if error.code() is grpc.StatusCode.UNAVAILABLE else None
