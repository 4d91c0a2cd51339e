"""A real server held against `reference_model`: every request goes to both, and what comes back must be what must come.

After each request all that must follow from it is awaited, so that what the model knows is what the server knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from kibun.server.audio.endpointing import EndpointingOptions, EndReason
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support import reference_model as model
from tests.support.serving import check_stream, finals, of_kind, problem, samples, seconds

METHOD = "/kibun.v1.SpeechAnalysisService/StreamingAnalyze"
PATIENCE_S = 30.0
SOLID = ("personality_update", "turn_result")
WARNINGS = {"TOO_LITTLE_SPEECH", "NO_SPEECH", "INCOMPLETE_SAMPLE"}
ENCODINGS = {
    "linear16": pb.AUDIO_ENCODING_LINEAR16,
    "float32": pb.AUDIO_ENCODING_FLOAT32,
    "mulaw": pb.AUDIO_ENCODING_MULAW,
    "alaw": pb.AUDIO_ENCODING_ALAW,
}
REASONS = {
    EndReason.SILENCE: pb.END_REASON_SILENCE,
    EndReason.MAX_DURATION: pb.END_REASON_MAX_DURATION,
    EndReason.CLIENT_END_OF_TURN: pb.END_REASON_CLIENT_END_OF_TURN,
    EndReason.HALF_CLOSE: pb.END_REASON_HALF_CLOSE,
}


def _raw(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def wire_config(config: model.Config, *, interims: bool = False) -> pb.StreamingAnalyzeConfig:
    ends = config.endpointing
    message = pb.StreamingAnalyzeConfig(
        audio_config=pb.AudioConfig(
            encoding=ENCODINGS[config.audio.encoding], sample_rate_hertz=config.audio.sample_rate_hz
        ),
        conversation_id=config.conversation_id,
        participant_id=config.participant_id,
        turn_id=config.turn_id,
        features=pb.AnalysisFeatures(
            disable_emotion=not config.emotion,
            disable_personality=not config.personality,
            interim_results=interims,
            interim_interval=seconds(0.2),
            enable_voice_activity_events=config.activity,
        ),
        model=config.model,
        require_existing_conversation=config.require_existing,
        resume_turn=config.resume,
        audio_start_offset=seconds(config.offset / 16_000),
    )
    if config.given is not None:
        message.given_personality.CopyFrom(_traits(config.given))
    if ends != EndpointingOptions():
        message.endpointing_config.CopyFrom(
            pb.EndpointingConfig(
                utterance_end_silence=seconds(ends.utterance_end_silence_ms / 1000),
                max_utterance_duration=seconds(ends.max_utterance_ms / 1000),
                end_of_turn_silence=ends.end_of_turn_silence_ms and seconds(ends.end_of_turn_silence_ms / 1000),
                speech_start_timeout=ends.speech_start_timeout_ms and seconds(ends.speech_start_timeout_ms / 1000),
            )
        )
    return message


def _traits(openness: float) -> pb.BigFiveTraits:
    return pb.BigFiveTraits(openness=openness, conscientiousness=4, extraversion=4, agreeableness=4, neuroticism=4)


class Wire:
    """One call as its client sees it; a task of its own reads all that comes."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.responses: list[pb.StreamingAnalyzeResponse] = []
        self.error: grpc.aio.AioRpcError | None = None
        self.over = False
        self._changed = asyncio.Event()
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self.responses.append(response)
                self._changed.set()
            if await self.call.code() is not grpc.StatusCode.OK:
                raise AssertionError("the reader is told of a failure by an exception")
        except grpc.aio.AioRpcError as error:
            self.error = error
        finally:
            self.over = True
            self._changed.set()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until it holds or the call is over."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition() and not self.over:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{what} never came: {self.responses}") from None

    async def cancel(self) -> None:
        self.call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader


class Driver:
    """Sends to a server and asks the model. One per sequence."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.world = model.World()
        self.stub = Stub(channel)
        self.wires: dict[model.Stream, Wire] = {}
        self.history: list[str] = []
        self._channel = channel

    def call(self, **options: Any) -> Any:
        return self._channel.stream_stream(
            METHOD, request_serializer=_raw, response_deserializer=pb.StreamingAnalyzeResponse.FromString
        )(**options)

    def note(self, stream: model.Stream, text: str) -> None:
        """For whoever reads of a failure."""
        self.history.append(f"stream {id(stream):x} of {stream.config.participant_id}, turn {stream.turn.id}: {text}")

    # ---- requests

    async def open(self, config: model.Config, *, interims: bool) -> None:
        expected = self.world.open(config)
        self.history.append(f"open {config}")
        wire = Wire(self.call())
        await wire.call.write(pb.StreamingAnalyzeRequest(streaming_config=wire_config(config, interims=interims)))
        if isinstance(expected, model.Refusal):
            await wire.until(lambda: False, "the refusal")
            check_refused(wire, expected)
            return
        self.wires[expected] = wire
        self.note(expected, "opened")
        await wire.until(lambda: bool(wire.responses), "stream_started")
        assert wire.responses, f"refused: {wire.error}"
        started = wire.responses[0].stream_started
        assert started.conversation_created == expected.created
        assert started.prior_utterance_count == expected.prior
        assert started.conversation_id == config.conversation_id
        bind(expected.turn, started.turn_id)
        await self.settle()

    async def analyze(self, config: model.Config, payload: bytes) -> None:
        """A whole recording in one call: what a stream of it would have been told."""
        self.history.append(f"analyze {config}")
        expected = self.world.open(config)
        call = self.stub.Analyze(pb.AnalyzeRequest(config=wire_config(config), audio_content=payload))
        if isinstance(expected, model.Refusal):
            return await must_fail(call, expected)
        for begin in range(0, len(payload), model.MAX_PAYLOAD_BYTES):
            if expected.failure is None:
                expected.audio(payload[begin : begin + model.MAX_PAYLOAD_BYTES])
        if expected.failure is not None:
            await must_fail(call, expected.failure)
        else:
            expected.half_close()
            check_analyzed(await asyncio.wait_for(call, PATIENCE_S), expected)
            name = config.conversation_id
            check_conversation((await call).conversation, name, self.world.conversations[name])
            self.world.close(expected)
        return await self.settle()

    async def send(self, stream: model.Stream, *messages: Message | bytes) -> None:
        """Messages that the model has taken, all of them."""
        for message in messages:
            await self.wires[stream].call.write(message)
        await self.settle()

    async def half_close(self, stream: model.Stream) -> None:
        self.note(stream, "half-close")
        stream.half_close()
        await self.wires[stream].call.done_writing()
        await self.settle()

    async def cancel(self, stream: model.Stream) -> None:
        """Returns once the server has noticed."""
        self.note(stream, "cancel")
        await self.wires.pop(stream).cancel()
        self.world.close(stream)
        await self.no_other_stream()

    async def no_other_stream(self) -> None:
        """Waits until the server has as many open streams as the model."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                info = await self.stub.GetServiceInfo(pb.GetServiceInfoRequest())
                if info.active_stream_count == len(self.world.streams):
                    return
                await asyncio.sleep(0.002)

    async def gone(self, name: str) -> None:
        """Waits until the server knows no such conversation, and has no stream of it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await self.no_other_stream()
                try:
                    await self.stub.GetConversation(pb.GetConversationRequest(conversation_id=name))
                except grpc.aio.AioRpcError as error:
                    return _check_problem(error, model.Refusal("NOT_FOUND", "CONVERSATION_NOT_FOUND"))

    # ---- answers

    async def settle(self) -> None:
        """All streams have told what the model says, no more and no less."""
        for stream, wire in tuple(self.wires.items()):
            if stream.failure or stream.ended:
                await wire.until(lambda: False, "the end")
            else:
                await wire.until(lambda s=stream, w=wire: told_all(s, w), "an answer")  # type: ignore[misc]
                assert not wire.over, f"ended without a reason: {wire.error}"
            check_told(stream, wire)
            if stream.told_turns < (turns := sum(a[0] == "turn" for a in stream.answers)):
                stream.told_turns = turns
                await self.turn_is_known(stream)
            if stream.failure:
                check_refused(wire, stream.failure)
                del self.wires[stream]
            elif stream.ended:
                assert wire.error is None, wire.error
                self.check_ended(stream, check_stream(wire.responses))
                self.world.close(stream)
                del self.wires[stream]

    async def turn_is_known(self, stream: model.Stream) -> None:
        """A turn counts as finished once its result was written, which a client may see a moment before the store."""
        name, who = stream.config.conversation_id, stream.config.participant_id
        wanted = len(stream.person.finished)
        async with asyncio.timeout(PATIENCE_S):
            while name in self.world.conversations:
                found = await self.stub.GetConversation(pb.GetConversationRequest(conversation_id=name))
                counts = {p.participant_id: p.turn_count for p in found.conversation.participants}
                if counts[who] == wanted:
                    return
                await asyncio.sleep(0.002)

    def check_ended(self, stream: model.Stream, ended: pb.StreamEnded) -> None:
        assert samples(ended.audio_received) == stream.received
        assert samples(ended.speech_duration) == stream.speech
        assert samples(ended.dropped_duration) == stream.dropped
        name = stream.config.conversation_id
        check_conversation(ended.conversation, name, self.world.conversations[name])

    async def check_state(self, name: str) -> None:
        """The conversation as GetConversation gives it."""
        request = pb.GetConversationRequest(conversation_id=name)
        expected = self.world.conversations.get(name)
        if expected is None:
            await must_fail(self.stub.GetConversation(request), model.Refusal("NOT_FOUND", "CONVERSATION_NOT_FOUND"))
        else:
            check_conversation((await self.stub.GetConversation(request)).conversation, name, expected)


def bind(turn: model.Turn, turn_id: str) -> None:
    """A server-made id is learned when it is told first."""
    if turn.id is None:
        assert turn_id.startswith("turn-")
        turn.id = turn_id
    assert turn.id == turn_id


def told_all(stream: model.Stream, wire: Wire) -> bool:
    kinds = [r.WhichOneof("streaming_response") for r in wire.responses]
    answers = len(finals(wire.responses)) + sum(kinds.count(kind) for kind in SOLID)
    counts = (answers, kinds.count("speech_event"), len(_warned(wire)))
    return all(a >= b for a, b in zip(counts, (len(stream.answers), len(stream.told), len(stream.warned)), strict=True))


def check_told(stream: model.Stream, wire: Wire) -> None:
    responses = wire.responses
    assert [r.sequence_number for r in responses] == list(range(len(responses)))
    check_progress(stream, responses)
    events = of_kind(responses, "speech_event")
    assert len(events) == len(stream.told), (events, stream.told)
    for event, (kind, position, turn) in zip(events, stream.told, strict=True):
        bind(turn, event.turn_id)
        assert pb.SpeechEvent.Type.Name(event.type) == f"TYPE_{kind}"
        assert samples(event.offset) == position
    answers = [a for r in responses if (a := _answer(r)) is not None]
    assert len(answers) == len(stream.answers), (answers, stream.answers)
    for answer, expected in zip(answers, stream.answers, strict=True):
        _check_answer(answer, expected, stream.config.participant_id)
    assert sorted(_warned(wire)) == sorted(stream.warned), (_warned(wire), stream.warned)


def check_analyzed(response: pb.AnalyzeResponse, stream: model.Stream) -> None:
    wanted = [a for a in stream.answers if a[0] != "update"]
    found = [*response.utterances, *([response.turn_result] if response.HasField("turn_result") else [])]
    assert len(found) == len(wanted), (found, wanted)
    for answer, expected in zip(found, wanted, strict=True):
        _check_answer(answer, expected, stream.config.participant_id)
    warned = [w.reason for w in response.warnings if w.reason in WARNINGS]
    assert sorted(warned) == sorted(stream.warned)


def check_progress(stream: model.Stream, responses: list[pb.StreamingAnalyzeResponse]) -> None:
    """What was called settled is: no final of it comes later."""
    settled = 0
    for response in responses:
        if response.HasField("stream_progress"):
            told = samples(response.stream_progress.settled_offset)
            assert settled < told <= stream.received + stream.config.offset
            settled = told
        if response.HasField("utterance_result"):
            assert samples(response.utterance_result.start_offset) >= settled


def _warned(wire: Wire) -> list[str]:
    """Without those of the quality of the sound: the model has no ears."""
    return [w.reason for w in of_kind(wire.responses, "stream_warning") if w.reason in WARNINGS]


def _answer(response: pb.StreamingAnalyzeResponse) -> Any:
    kind = response.WhichOneof("streaming_response")
    if kind == "utterance_result" and not response.utterance_result.is_final:
        return None
    return getattr(response, kind) if kind in (*SOLID, "utterance_result") else None


def _check_answer(answer: Any, expected: tuple[Any, ...], participant_id: str) -> None:
    match expected:
        case ("final", turn, start, end, speech, reason, arousal, openness, condition):
            assert isinstance(answer, pb.UtteranceResult), (answer, expected)
            bind(turn, answer.turn_id)
            assert answer.utterance_id == f"{participant_id}:{turn.id}:{start}"
            assert (samples(answer.start_offset), samples(answer.end_offset)) == (start, end)
            assert samples(answer.analyzed_duration) == speech
            _same(_openness(answer, "condition"), condition)
        case ("turn", turn, start, end, count, speech, reason, arousal, openness):
            assert isinstance(answer, pb.TurnResult), (answer, expected)
            bind(turn, answer.turn_id)
            assert (samples(answer.start_offset), samples(answer.end_offset)) == (start, end)
            assert (answer.utterance_count, samples(answer.speech_duration)) == (count, speech)
        case ("update", openness, count, revision):
            assert isinstance(answer, pb.PersonalityUpdate), (answer, expected)
            assert (answer.participant_id, answer.revision) == (participant_id, revision)
            assert answer.personality.utterance_count == count
            return _same(answer.personality.traits.openness, openness)
        case _:
            raise AssertionError(expected)
    assert answer.end_reason == REASONS[reason]
    _same(answer.emotion.arousal if answer.HasField("emotion") else None, arousal)
    return _same(_openness(answer, "personality"), openness)


def _openness(message: Any, field: str) -> float | None:
    return getattr(message, field).traits.openness if message.HasField(field) else None


def _same(value: float | None, expected: float | None) -> None:
    assert (value is None) == (expected is None), (value, expected)
    assert value is None or expected is None or abs(value - expected) < 1e-4, (value, expected)


def check_conversation(found: pb.Conversation, name: str, expected: model.Conversation) -> None:
    assert found.conversation_id == name
    assert found.model == expected.model
    assert found.state == (pb.Conversation.STATE_COMPLETED if expected.completed else pb.Conversation.STATE_ACTIVE)
    assert [p.participant_id for p in found.participants] == list(expected.people)
    for participant, person in zip(found.participants, expected.people.values(), strict=True):
        counts = (participant.turn_count, participant.utterance_count, samples(participant.speech_duration))
        assert counts == (len(person.finished), len(person.records), sum(r.speech for r in person.records))
        last = [r for r in person.records if r.arousal is not None][-1:]
        for field, records in (("mean_emotion", person.records), ("last_emotion", last)):
            value = getattr(participant, field).arousal if participant.HasField(field) else None
            _same(value, model.mean_arousal(records))
        _same(_openness(participant, "personality"), person.openness or person.given)
        _same(participant.given_personality.openness or None, person.given)


def check_refused(wire: Wire, expected: model.Refusal) -> None:
    assert wire.error is not None, f"{expected}, but it ended well"
    _check_problem(wire.error, expected)


def _check_problem(error: grpc.aio.AioRpcError, expected: model.Refusal) -> None:
    found = problem(error)
    assert (found.code.name, found.reason, found.field) == expected, found


async def must_fail(call: Any, expected: model.Refusal) -> None:
    try:
        answer = await asyncio.wait_for(call, PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        return _check_problem(error, expected)
    raise AssertionError(f"{expected}, but {answer}")
