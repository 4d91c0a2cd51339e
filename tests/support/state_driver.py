"""Sends every request to a real server and to `reference_model`, and checks that the server answers as the model does.

After each request it waits for all that must follow from it, so that the model and the server know the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from kibun.server.audio.endpointing import EndpointingOptions, EndReason
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support import reference_model as model
from tests.support.serving import check_stream, finals, of_kind, problem, samples, seconds

METHOD = "/kibun.v1.SpeechAnalysisService/StreamingAnalyze"
WITHIN_S = 30.0
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


def config_message(
    config: model.Config, *, interims: bool = False, eager: bool = True, had: int | None = None
) -> pb.StreamingAnalyzeConfig:
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
            disable_eager_finals=not eager,
        ),
        model=config.model,
        require_existing_conversation=config.require_existing,
        resume_turn=config.resume,
        resume_final_count=had,
        audio_start_offset=seconds(config.offset / 16_000),
    )
    if config.given is not None:
        message.given_personality.CopyFrom(_traits(config.given))
    if ends != EndpointingOptions():
        message.endpointing_config.CopyFrom(
            pb.EndpointingConfig(
                utterance_end_silence=seconds(ends.utterance_end_silence_ms / 1000),
                max_utterance_duration=seconds(ends.max_utterance_ms / 1000),
                end_of_turn_silence=_milliseconds(ends.end_of_turn_silence_ms),
                speech_start_timeout=_milliseconds(ends.speech_start_timeout_ms),
            )
        )
    return message


def _milliseconds(value: int | None) -> Duration | None:
    return None if value is None else seconds(value / 1000)


def _traits(openness: float) -> pb.BigFiveTraits:
    return pb.BigFiveTraits(openness=openness, conscientiousness=4, extraversion=4, agreeableness=4, neuroticism=4)


class ObservedCall:
    """One call as its client sees it. A task reads all responses."""

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
                raise AssertionError("reading must raise when the call failed")
        except grpc.aio.AioRpcError as error:
            self.error = error
        finally:
            self.over = True
            self._changed.set()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until `condition` holds or the call is over."""
        try:
            async with asyncio.timeout(WITHIN_S):
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
    """One sequence's client of the server, and its model."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.world = model.ReferenceServer()
        self.stub = Stub(channel)
        self.calls: dict[model.Stream, ObservedCall] = {}
        self.history: list[str] = []
        self._channel = channel

    def call(self, **options: Any) -> Any:
        return self._channel.stream_stream(
            METHOD, request_serializer=_raw, response_deserializer=pb.StreamingAnalyzeResponse.FromString
        )(**options)

    def note(self, stream: model.Stream, text: str) -> None:
        """Adds a line to what is shown when the sequence fails."""
        self.history.append(f"stream {id(stream):x} of {stream.config.participant_id}, turn {stream.turn.id}: {text}")

    # ---- requests

    async def open(self, config: model.Config, *, interims: bool, eager: bool) -> None:
        expected = self.world.open(config)
        self.history.append(f"open {config}")
        call = ObservedCall(self.call())
        message = config_message(config, interims=interims, eager=eager, had=_had(expected))
        await call.call.write(pb.StreamingAnalyzeRequest(streaming_config=message))
        if isinstance(expected, model.Refusal):
            await call.until(lambda: False, "the refusal")
            check_refused(call, expected)
            return
        self.calls[expected] = call
        self.note(expected, "opened")
        await call.until(lambda: bool(call.responses), "stream_started")
        assert call.responses, f"refused: {call.error}"
        started = call.responses[0].stream_started
        assert started.conversation_created == expected.created
        assert started.prior_utterance_count == expected.prior
        assert started.conversation_id == config.conversation_id
        bind(expected.turn, started.turn_id)
        await self.check_streams()

    async def analyze(self, config: model.Config, payload: bytes) -> None:
        """Sends a whole recording in one call, which must be answered as a stream of it would be."""
        self.history.append(f"analyze {config}")
        expected = self.world.open(config)
        message = config_message(config, had=_had(expected))
        call = self.stub.Analyze(pb.AnalyzeRequest(config=message, audio_content=payload))
        if isinstance(expected, model.Refusal):
            return await must_fail(call, expected)
        for begin in range(0, len(payload), model.MAX_PAYLOAD_BYTES):
            if expected.failure is None:
                expected.audio(payload[begin : begin + model.MAX_PAYLOAD_BYTES])
        if expected.failure is not None:
            await must_fail(call, expected.failure)
        else:
            expected.half_close()
            check_analyzed(await asyncio.wait_for(call, WITHIN_S), expected)
            name = config.conversation_id
            check_conversation((await call).conversation, name, self.world.conversations[name])
            self.world.close(expected)
        return await self.check_streams()

    async def send(self, stream: model.Stream, *messages: Message | bytes) -> None:
        """Sends messages that the model has taken already."""
        for message in messages:
            await self.calls[stream].call.write(message)
        await self.check_streams()

    async def half_close(self, stream: model.Stream) -> None:
        self.note(stream, "half-close")
        stream.half_close()
        await self.calls[stream].call.done_writing()
        await self.check_streams()

    async def cancel(self, stream: model.Stream) -> None:
        """Returns once the server has noticed."""
        self.note(stream, "cancel")
        await self.calls.pop(stream).cancel()
        self.world.close(stream)
        await self.no_other_stream()

    async def no_other_stream(self) -> None:
        """Waits until the server has as many open streams as the model."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                info = await self.stub.GetServiceInfo(pb.GetServiceInfoRequest())
                if info.active_stream_count == len(self.world.streams):
                    return
                await asyncio.sleep(0.002)

    async def gone(self, name: str) -> None:
        """Waits until the server knows no such conversation, and has no stream of it."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                await self.no_other_stream()
                try:
                    await self.stub.GetConversation(pb.GetConversationRequest(conversation_id=name))
                except grpc.aio.AioRpcError as error:
                    return _check_problem(error, model.Refusal("NOT_FOUND", "CONVERSATION_NOT_FOUND"))

    # ---- answers

    async def check_streams(self) -> None:
        """Waits for what the model says of every stream, and checks that it is just that."""
        for stream, call in tuple(self.calls.items()):
            if stream.failure or stream.ended:
                await call.until(lambda: False, "the end")
            else:
                await call.until(partial(all_arrived, stream, call), "an answer")
                assert not call.over, f"ended without a reason: {call.error}"
            check_replies(stream, call)
            if stream.seen_turns < (turns := sum(a[0] == "turn" for a in stream.answers)):
                stream.seen_turns = turns
                await self.turn_is_known(stream)
            if stream.failure:
                check_refused(call, stream.failure)
                del self.calls[stream]
            elif stream.ended:
                assert call.error is None, call.error
                self.check_ended(stream, check_stream(call.responses))
                self.world.close(stream)
                del self.calls[stream]

    async def turn_is_known(self, stream: model.Stream) -> None:
        """Waits until the store knows of the turn's end, which a client may see a moment before."""
        name, who = stream.config.conversation_id, stream.config.participant_id
        wanted = len(stream.person.finished)
        async with asyncio.timeout(WITHIN_S):
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
    """Checks the turn's id; learns it the first time, where the server made it."""
    if turn.id is None:
        assert turn_id.startswith("turn-")
        turn.id = turn_id
    assert turn.id == turn_id


def all_arrived(stream: model.Stream, call: ObservedCall) -> bool:
    kinds = [r.WhichOneof("streaming_response") for r in call.responses]
    answers = len(finals(call.responses)) + sum(kinds.count(kind) for kind in SOLID)
    counts = (answers, kinds.count("speech_event"), len(_warnings(call)))
    wanted = (len(stream.answers), len(stream.speech_events), len(stream.warnings))
    return all(a >= b for a, b in zip(counts, wanted, strict=True))


def check_replies(stream: model.Stream, call: ObservedCall) -> None:
    responses = call.responses
    assert [r.sequence_number for r in responses] == list(range(len(responses)))
    check_progress(stream, responses)
    events = of_kind(responses, "speech_event")
    assert len(events) == len(stream.speech_events), (events, stream.speech_events)
    for event, (kind, position, turn) in zip(events, stream.speech_events, strict=True):
        bind(turn, event.turn_id)
        assert pb.SpeechEvent.Type.Name(event.type) == f"TYPE_{kind}"
        assert samples(event.offset) == position
    answers = [a for r in responses if (a := _answer(r)) is not None]
    assert len(answers) == len(stream.answers), (answers, stream.answers)
    for answer, expected in zip(answers, stream.answers, strict=True):
        _check_answer(answer, expected, stream.config.participant_id)
    assert sorted(_warnings(call)) == sorted(stream.warnings), (_warnings(call), stream.warnings)


def check_analyzed(response: pb.AnalyzeResponse, stream: model.Stream) -> None:
    wanted = [a for a in stream.answers if a[0] != "update"]
    found = [*response.utterances, *([response.turn_result] if response.HasField("turn_result") else [])]
    assert len(found) == len(wanted), (found, wanted)
    for answer, expected in zip(found, wanted, strict=True):
        _check_answer(answer, expected, stream.config.participant_id)
    warnings = [w.reason for w in response.warnings if w.reason in WARNINGS]
    assert sorted(warnings) == sorted(stream.warnings)


def check_progress(stream: model.Stream, responses: list[pb.StreamingAnalyzeResponse]) -> None:
    """No final of audio comes after the progress that called it settled."""
    settled = 0
    for response in responses:
        if response.HasField("stream_progress"):
            reported = samples(response.stream_progress.settled_offset)
            assert settled < reported <= stream.received + stream.config.offset
            settled = reported
        if response.HasField("utterance_result"):
            assert samples(response.utterance_result.start_offset) >= settled


def _had(expected: model.Stream | model.Refusal) -> int | None:
    return expected.had if isinstance(expected, model.Stream) else None


def _warnings(call: ObservedCall) -> list[str]:
    """Reasons of the warnings, but for those about the quality of the sound, which the model does not know."""
    return [w.reason for w in of_kind(call.responses, "stream_warning") if w.reason in WARNINGS]


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


def check_refused(call: ObservedCall, expected: model.Refusal) -> None:
    assert call.error is not None, f"{expected}, but it ended well"
    _check_problem(call.error, expected)


def _check_problem(error: grpc.aio.AioRpcError, expected: model.Refusal) -> None:
    found = problem(error)
    assert (found.code.name, found.reason, found.field) == expected, found


async def must_fail(call: Any, expected: model.Refusal) -> None:
    try:
        answer = await asyncio.wait_for(call, WITHIN_S)
    except grpc.aio.AioRpcError as error:
        return _check_problem(error, expected)
    raise AssertionError(f"{expected}, but {answer}")
