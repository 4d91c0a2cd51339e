"""The request parser: any bytes are a request, or an error of the contract that reveals nothing of the server."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tests.fuzz.fuzzing import Bytes, fuzz, instrumented

with instrumented(__name__):
    from kibun.models.types import TRAITS
    from kibun.server.api import contract, messages, requests, responses
    from kibun.server.api.status import status_of
    from kibun.server.audio.endpointing import EndpointingOptions
    from kibun.server.errors import Failure, Kind
    from kibun.server.inference.backend import ModelInfo
    from kibun.server.session import events
    from kibun.v1 import speech_analysis_pb2 as pb

MODELS = (
    ModelInfo("default", "1", vector_size=2, max_samples=480_000),
    ModelInfo("given", "1", vector_size=2, supports_personality=False),
)
NAMING = (pb.GetConversationRequest, pb.CompleteConversationRequest, pb.DeleteConversationRequest)
KINDS = (pb.StreamingAnalyzeRequest, pb.AnalyzeRequest, *NAMING)
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DEFAULTS = requests.Defaults(MODELS, EndpointingOptions(), 1800.0, lambda kind: f"{kind}-1", contract.MAX_TTL_S)
INTERNALS = re.compile(r"Traceback|\.py|kibun\.|/|Error\b|Exception|0x|object at|<class|None|DecodeError")


def check(data: bytes) -> None:
    """Bytes: kind of the request, the request."""
    source = Bytes(data)
    kind = KINDS[source.number(0, len(KINDS) - 1)]
    payload = source.take(len(source))
    try:
        message = messages.checked(messages.parser(kind)(payload))
        check_ids(message)
        if isinstance(message, pb.StreamingAnalyzeRequest):
            check_stream(message)
        if isinstance(message, pb.AnalyzeRequest):
            check_config(message.config)
    except Failure as failure:
        check_failure(failure)


def check_ids(message: Any) -> None:
    if isinstance(message, (pb.StreamingAnalyzeRequest, pb.AnalyzeRequest)):
        return
    tenant, conversation_id = requests.conversation_key(message, "acme")
    assert tenant == "acme"
    assert ID.fullmatch(conversation_id)


def check_stream(message: pb.StreamingAnalyzeRequest) -> None:
    kind = message.WhichOneof("streaming_request")
    if kind == "streaming_config":
        check_config(message.streaming_config)
    if kind == "end_of_turn":
        name = requests.identifier(message.end_of_turn.next_turn_id, "end_of_turn.next_turn_id")
        assert not name or ID.fullmatch(name)


def check_config(config: pb.StreamingAnalyzeConfig) -> None:
    """What is understood of a config is understood again from the effective config that the server returns."""
    options = requests.stream_options(config, tenant="acme", defaults=DEFAULTS)
    assert options.tenant == "acme"
    for value in (options.conversation_id, options.participant_id, options.turn_id):
        assert ID.fullmatch(value)
    assert 0 <= options.start_offset <= 7 * 24 * 3600 * 16_000
    assert 1 <= options.ttl_s <= 24 * 3600
    assert all(1 <= trait <= 7 for trait in options.given_traits or ())
    assert options.emotion or options.personality
    started = events.StreamStarted(options.turn_id, True, 0, options.ttl_s, options.given_traits)
    effective = responses.effective_config(config, options, started)
    again = requests.stream_options(effective, tenant="acme", defaults=DEFAULTS)
    assert abs(again.ttl_s - options.ttl_s) <= 1 / 16_000, "counted in samples, as every duration"
    again, options = (replace(o, warnings=(), ttl_asked=True, ttl_s=options.ttl_s) for o in (again, options))
    assert again == options


def check_failure(failure: Failure) -> None:
    assert failure.kind in (Kind.INVALID_ARGUMENT, Kind.NOT_FOUND), failure.kind
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", failure.reason)
    assert 15 < len(failure.message) < 400
    assert not INTERNALS.search(failure.message), failure.message
    assert (failure.field is not None) == (failure.kind is Kind.INVALID_ARGUMENT)
    status = status_pb2.Status.FromString(status_of(failure, "request-1").SerializeToString())
    assert status.code == code_pb2.Code.Value(failure.kind.value)
    assert grpc.StatusCode[failure.kind.value]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == failure.reason


def seeds() -> Iterable[bytes]:
    audio = pb.AudioConfig(encoding=pb.AUDIO_ENCODING_LINEAR16, sample_rate_hertz=16_000, audio_channel_count=1)
    full = pb.StreamingAnalyzeConfig(
        audio_config=audio,
        conversation_id="table-4",
        participant_id="a.b",
        turn_id="t_1",
        features={"interim_results": True, "interim_interval": {"seconds": 1}, "disable_emotion": True},
        endpointing_config={
            "vad_aggressiveness": 3,
            "min_speech_duration": {"nanos": 200_000_000},
            "utterance_end_silence": {"seconds": 1},
            "max_utterance_duration": {"seconds": 20},
            "end_of_turn_silence": {"seconds": 2},
            "speech_start_timeout": {"seconds": 5},
        },
        model="default",
        given_personality=dict.fromkeys(TRAITS, 4.5),
        audio_start_offset={"seconds": 3, "nanos": 62_500},
        audio_start_time={"seconds": 1_700_000_000},
        conversation_ttl={"seconds": 60},
    )
    given = pb.StreamingAnalyzeConfig(audio_config=audio, model="given")
    streams = [pb.StreamingAnalyzeRequest(streaming_config=config) for config in (full, given)]
    streams += [pb.StreamingAnalyzeRequest(audio_content=b"RIFF" * 8), pb.StreamingAnalyzeRequest()]
    streams += [pb.StreamingAnalyzeRequest(end_of_turn={"next_turn_id": name}) for name in ("", "t2", "a\nb")]
    yield from (b"\0" + message.SerializeToString() for message in streams)
    yield b"\1" + pb.AnalyzeRequest(config=full, audio_content=b"\0" * 9).SerializeToString()
    for number, kind in enumerate(NAMING, 2):
        for name in ("table-4", "x" * 65, "\0"):
            yield bytes([number]) + kind(conversation_id=name).SerializeToString()
    yield b"\0\xff\xff\xff\xff"


if __name__ == "__main__":
    fuzz(check, seeds())
