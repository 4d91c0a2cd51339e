"""A client that watches a conversation, without the SDK."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub


class Viewer:
    """One watch, read in the background; entered once it has started."""

    def __init__(
        self, stub: Stub, conversation_id: str, *, metadata: Mapping[str, str] | None = None, **fields: Any
    ) -> None:
        self.responses: list[pb.WatchConversationResponse] = []
        self._stub = stub
        self._request = pb.WatchConversationRequest(conversation_id=conversation_id, **fields)
        self._metadata = tuple((metadata or {}).items())
        self._more = asyncio.Condition()

    async def __aenter__(self) -> "Viewer":
        self.call = self._stub.WatchConversation(self._request, metadata=self._metadata)
        self._reading = asyncio.create_task(self._read())
        await self.until("watch_started")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def started(self) -> pb.WatchStarted:
        return self.responses[0].watch_started

    @property
    def gaps(self) -> list[str]:
        return [r.watch_gap.reason for r in self.responses if r.HasField("watch_gap")]

    async def until(self, kind: str, **marks: Any) -> pb.WatchConversationResponse:
        """The first response of this kind, of the watch or of what was said, with these values of its own fields."""

        def found() -> list[pb.WatchConversationResponse]:
            alike = [r for r in self.responses if kind_of(r) == kind]
            return [r for r in alike if all(getattr(r, mark) == value for mark, value in marks.items())]

        await self.when(lambda: bool(found()))
        return found()[0]

    async def when(self, arrived: Callable[[], bool]) -> None:
        """Returns once `arrived` is true of the responses."""
        async with asyncio.timeout(20), self._more:
            while not arrived():
                if self._reading.done():
                    self._reading.result()
                    raise AssertionError(f"that did not come before the end: {[kind_of(r) for r in self.responses]}")
                await self._more.wait()

    async def ended(self) -> list[pb.WatchConversationResponse]:
        """All responses, once the call has ended; raises its error."""
        async with asyncio.timeout(20):
            await self._reading
        return self.responses

    async def _read(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                async with self._more:
                    self.responses.append(response)
                    self._more.notify_all()
            await self.call.code()
            if await self.call.code() is not grpc.StatusCode.OK:
                raise AssertionError(await self.call.details())
        finally:
            async with self._more:
                self._more.notify_all()


def kind_of(response: pb.WatchConversationResponse) -> str:
    """`watch_started`, or of an event its own kind."""
    kind = response.WhichOneof("watch_response") or ""
    return response.event.WhichOneof("streaming_response") or "" if kind == "event" else kind


def heard(responses: Iterable[pb.WatchConversationResponse], participant_id: str) -> list[pb.StreamingAnalyzeResponse]:
    """What a participant's own client was sent."""
    return [r.event for r in responses if r.participant_id == participant_id]


def finals_seen(responses: Iterable[pb.WatchConversationResponse]) -> list[str]:
    """Ids, in order."""
    return [
        r.event.utterance_result.utterance_id
        for r in responses
        if kind_of(r) == "utterance_result" and r.event.utterance_result.is_final
    ]


def results_seen(responses: Iterable[pb.WatchConversationResponse]) -> list[tuple[str, str]]:
    """Participant and turn of each turn's result, in order."""
    return [(r.participant_id, r.turn_id) for r in responses if kind_of(r) == "turn_result"]
