"""Clients of a fault run: they use the SDK as anyone would, or the contract alone, and write down all that they see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import grpc

from kibun.bench.faults.history import ClientHistory, TurnHistory, fault, record, remembered
from kibun.bench.faults.plan import MAX_UTTERANCE_MS, ClientPlan, Pcm, TurnPlan, audio_of
from kibun.bench.faults.stub_client import ResumePoint, StubTurn
from kibun.bench.support.material import CHUNK
from kibun.client.client import AsyncClient, AsyncConversation
from kibun.client.errors import KibunError, ResourceExhaustedError, UnavailableError
from kibun.client.events import StreamStarted, event_from_response
from kibun.client.options import Endpointing, Features
from kibun.client.status import error_from_rpc
from kibun.client.turn import AsyncTurn
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub

HANG_S = 100.0  # without an event: longer than the SDK looks for a server and finds out that one is frozen
ADMISSION_S = 60.0  # that a turn which is refused goes on asking
# A server that is silent for 15 s is gone; one that comes back is found within half a second.
_CHANNEL = (
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)
_ENDPOINTING = Endpointing(utterance_end_silence_ms=300, max_utterance_ms=MAX_UTTERANCE_MS)

T = TypeVar("T")


class _Hung(Exception):
    """Nothing came for HANG_S."""


@dataclass(frozen=True)
class FaultClient:
    """One client. `real_time` False: as fast as the server takes it, without gaps between turns."""

    plan: ClientPlan
    speech: Sequence[Pcm]
    real_time: bool
    began: float  # of the run, time.monotonic()

    async def run(self, target: str) -> ClientHistory:
        """Speaks all turns one after the other, then asks what the server remembers. Never raises."""
        history = ClientHistory(self.plan.name)
        await self._pause(self.plan.start_s)
        async with AsyncClient(target) as client:
            conversation = client.conversation(self.plan.conversation)
            for turn in self.plan.turns:
                await self._pause(turn.gap_s)
                if self.plan.resume_point is None:
                    history.turns.append(await self._speak(conversation, turn))
                else:
                    history.turns.append(await self._speak_by_stub(target, turn, self.plan.resume_point))
            await self._recall(conversation, history)
        return history

    async def _pause(self, seconds: float) -> None:
        if self.real_time:
            await asyncio.sleep(seconds)

    # ---- a turn

    async def _speak(self, conversation: AsyncConversation, plan: TurnPlan) -> TurnHistory:
        history = TurnHistory(self.plan.name, plan.turn_id, hands_over=True)
        turn: AsyncTurn | None = None
        try:
            turn = await self._admitted(conversation, plan, history)
            turn.feed(self._chunks(plan, history))
            await self._listen(turn, history)
        except _Hung as hung:
            history.hung = str(hung)
        except Exception as error:  # whatever it is: the checker judges
            history.error = fault(error, self._now())
        if turn is not None:
            try:
                await _bounded(turn.cancel(), "the turn to be cancelled")
            except _Hung as hung:
                history.hung = str(hung)
        return history

    async def _admitted(self, conversation: AsyncConversation, plan: TurnPlan, history: TurnHistory) -> AsyncTurn:
        """The open turn. One that is refused, or at first contact finds no server, asks again: it has lost nothing."""
        deadline = time.monotonic() + ADMISSION_S
        while True:
            turn = conversation.turn(
                plan.turn_id,
                self.plan.participant,
                features=Features(interim_results=self.plan.interims, eager_finals=self.plan.eager),
                endpointing=_ENDPOINTING,
            )
            try:
                await _bounded(turn.open(), "the turn to open")
            except (ResourceExhaustedError, UnavailableError) as error:
                if time.monotonic() > deadline:
                    raise
                history.refusals += 1
                await asyncio.sleep(error.retry_after_s or 0.2)
            else:
                return turn

    async def _listen(self, turn: AsyncTurn, history: TurnHistory) -> None:
        call = 0
        while True:
            try:
                event = await _bounded(anext(turn), "an event")
            except StopAsyncIteration:
                return
            if isinstance(event, StreamStarted):
                call = event.reconnects
            history.seen.append(record(event, self._now(), call))

    async def _speak_by_stub(self, target: str, plan: TurnPlan, resume_point: ResumePoint) -> TurnHistory:
        """A turn of a client that knows no SDK. Only what it sees is read with it, to be written down."""
        history = TurnHistory(self.plan.name, plan.turn_id)
        config = pb.StreamingAnalyzeConfig(
            audio_config=pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=SAMPLE_RATE_HZ),
            conversation_id=self.plan.conversation,
            participant_id=self.plan.participant,
            turn_id=plan.turn_id,
            features=pb.AnalysisFeatures(interim_results=self.plan.interims, disable_eager_finals=not self.plan.eager),
            endpointing_config=_ENDPOINTING.to_proto(),
        )
        async with grpc.aio.insecure_channel(target, options=_CHANNEL) as channel:
            turn = StubTurn(SpeechAnalysisServiceStub(channel), config, resume_point)
            responses = turn.responses(chunk.tobytes() async for chunk in self._chunks(plan, history))
            try:
                async with aclosing(responses):
                    while (response := await _bounded(anext(responses, None), "a response")) is not None:
                        if event := event_from_response(response, reconnects=turn.streams - 1):
                            history.seen.append(record(event, self._now(), turn.streams - 1))
            except _Hung as hung:
                history.hung = str(hung)
            except grpc.RpcError as error:
                history.error = fault(error_from_rpc(error, target), self._now())
        return history

    async def _chunks(self, plan: TurnPlan, history: TurnHistory) -> AsyncIterator[Pcm]:
        """The turn's audio as it is spoken: each chunk when its last sample was."""
        audio, at = audio_of(plan, self.speech), 0
        random = None if self.plan.chunk_seed is None else Random(self.plan.chunk_seed)
        speed = self.plan.speed if self.real_time else 0.0
        began = time.monotonic()
        while at < len(audio):
            size = CHUNK if random is None else random.randint(1, 4 * CHUNK)
            chunk, at = audio[at : at + size], min(at + size, len(audio))
            if speed:
                await asyncio.sleep(max(began + at / SAMPLE_RATE_HZ / speed - time.monotonic(), 0.0))
            history.pushed = at
            yield chunk

    # ---- afterwards

    async def _recall(self, conversation: AsyncConversation, history: ClientHistory) -> None:
        deadline = time.monotonic() + ADMISSION_S
        while True:
            try:
                state = await _bounded(conversation.get(), "the conversation's state")
                history.remembered = remembered(state.participant(self.plan.participant))
            except UnavailableError as error:
                if time.monotonic() < deadline:
                    await asyncio.sleep(0.2)
                    continue
                history.error = fault(error, self._now())
            except (KibunError, KeyError) as error:
                history.error = fault(error, self._now())
            except _Hung as hung:
                history.hung = str(hung)
            return

    def _now(self) -> float:
        return time.monotonic() - self.began


async def _bounded(awaitable: Awaitable[T], what: str) -> T:
    """Raises _Hung where it takes too long."""
    try:
        async with asyncio.timeout(HANG_S):
            return await awaitable
    except TimeoutError:
        raise _Hung(f"{what}, {HANG_S:g} s") from None


async def speak(
    clients: Sequence[tuple[ClientPlan, str]], speech: Sequence[Pcm], *, real_time: bool
) -> list[ClientHistory]:
    """All clients side by side, each to its target."""
    began = time.monotonic()
    return await asyncio.gather(*(FaultClient(plan, speech, real_time, began).run(target) for plan, target in clients))
