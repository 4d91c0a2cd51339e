"""A healthy client beside others that misbehave: it must get the same as alone."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import grpc

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.serving import (
    RunningServer,
    Talk,
    check_stream,
    chunks,
    config,
    connect,
    converse,
    encode,
    spoken,
    times_and_emotions,
)

SPEECH = chunks(encode(spoken(1.0)))


class Healthy:
    """A client that opens stream after stream while others misbehave, and must get the same as alone."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self._changed = asyncio.Condition()
        self._failed = False

    @property
    def p99_s(self) -> float:
        return sorted(self.took_s)[int(0.99 * len(self.took_s))]

    async def answered(self, streams: int = 2) -> None:
        """Waits until `count` more streams were answered: all but the first were opened meanwhile."""
        async with self._changed:
            wanted = len(self.took_s) + streams
            await self._changed.wait_for(lambda: len(self.took_s) >= wanted or self._failed)

    async def run(self, stub: Stub, alone: list[tuple[float, ...]], metadata: Mapping[str, str]) -> None:
        """Goes on until it is cancelled, or gets anything else than `alone`."""
        try:
            while True:
                began = time.monotonic()
                while (responses := await one_stream(stub, metadata)) is None:  # noqa: ASYNC110 - nothing announces a free place
                    await asyncio.sleep(0.02)
                check_stream(responses)
                assert times_and_emotions(responses) == alone
                self.took_s.append(time.monotonic() - began)
                async with self._changed:
                    self._changed.notify_all()
        except Exception:
            self._failed = True
            async with self._changed:
                self._changed.notify_all()
            raise


async def one_stream(stub: Stub, metadata: Mapping[str, str]) -> list[pb.StreamingAnalyzeResponse] | None:
    """None where the server refuses it just then; a client tries again, and the time counts."""
    async with Talk(stub, metadata=tuple(metadata.items())) as talk:
        try:
            await talk.start()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # Where more than a thousand calls wait to be taken, gRPC itself ends some, before the service sees them
            # (CANCELLED); INTERNAL is grpc.aio's word for a write that came after the refusal.
            code = await talk.call.code()
            late = code is grpc.StatusCode.INTERNAL and await talk.call.details() == "Internal error from Core"
            assert late or code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
            return None
        await talk.send(*SPEECH)
        return await talk.finish()


@asynccontextmanager
async def beside(server: RunningServer, metadata: Mapping[str, str] | None = None) -> AsyncIterator[Healthy]:
    """A healthy client that goes on meanwhile."""
    async with connect(server) as stub:
        alone = times_and_emotions(await converse(stub, [config(), *SPEECH], metadata=metadata))
        assert alone
        healthy = Healthy()
        running = asyncio.create_task(healthy.run(stub, alone, metadata or {}))
        answered = asyncio.create_task(healthy.answered())
        try:
            yield healthy
            await asyncio.wait((running, answered), return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
