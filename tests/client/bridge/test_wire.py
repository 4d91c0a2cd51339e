"""Frames are the contract's messages and nothing else: every field goes both ways."""

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from kibun.client.bridge import wire
from kibun.client.bridge.message_config import MessageConfig
from kibun.client.estimates import EndReason
from kibun.client.replay import FinalsReceived
from kibun.v1 import speech_analysis_pb2 as pb

VALUES: dict[int, Any] = {
    FieldDescriptor.TYPE_FLOAT: 1.5,
    FieldDescriptor.TYPE_INT32: 7,
    FieldDescriptor.TYPE_INT64: 2**33,
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_STRING: "x-1",
    FieldDescriptor.TYPE_BYTES: b"\x00\xff",
}


def filled(message: Message, choices: dict[str, str]) -> set[str]:
    """Sets every field at every depth; of each oneof the field that `choices` names. Returns the fields' full names."""
    found = set()
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1 and choices.get(oneof.name) != field.name:
            continue
        found.add(field.full_name)
        repeated = field.label == FieldDescriptor.LABEL_REPEATED
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["key"] = "value"
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            found |= filled(inner.add() if repeated else inner, choices)
        else:
            value = field.enum_type.values[-1].number if field.enum_type else VALUES[field.type]
            if repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return found


def reachable(descriptor: Any, found: set[str] | None = None) -> set[str]:
    """Full names of all fields below a message."""
    found = set() if found is None else found
    for field in descriptor.fields:
        if field.full_name not in found:
            found.add(field.full_name)
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                reachable(field.message_type, found)
    return found


# The oneofs below a message, and one way after the other through each.
WAYS: list[tuple[type[Message], list[dict[str, str]]]] = [
    (
        pb.StreamingAnalyzeRequest,
        [{"streaming_request": field.name} for field in pb.StreamingAnalyzeRequest.DESCRIPTOR.fields],
    ),
    (
        pb.StreamingAnalyzeResponse,
        [{"streaming_response": field.name} for field in pb.StreamingAnalyzeResponse.DESCRIPTOR.fields],
    ),
    (pb.WatchConversationRequest, [{}]),
    (
        pb.WatchConversationResponse,
        [
            {"watch_response": field.name, "streaming_response": event.name}
            for field in pb.WatchConversationResponse.DESCRIPTOR.fields
            for event in pb.StreamingAnalyzeResponse.DESCRIPTOR.fields
        ],
    ),
]


@pytest.mark.parametrize(("kind", "ways"), WAYS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_of_the_contract_goes_both_ways(kind: type[Message], ways: list[dict[str, str]]) -> None:
    walked: set[str] = set()
    for choices in ways:
        message = kind()
        walked |= filled(message, choices)
        text = wire.text_of(message)
        fields: Any = message.ListFields()
        assert json.loads(text).keys() == {field.name for field, _ in fields}, "the contract's own names"
        assert wire.read_message(wire.read_object(text), kind()) == message
    assert walked == reachable(kind.DESCRIPTOR)


def test_a_configuration_reaches_the_server_as_it_was_sent() -> None:
    message = pb.StreamingAnalyzeConfig()
    filled(message, {})
    assert MessageConfig.of(message).to_proto() == message
    empty = pb.StreamingAnalyzeConfig()
    assert MessageConfig.of(empty).to_proto() == empty, "nonsense too: the server refuses it in its own words"


def test_a_resume_adds_to_what_the_page_had_already() -> None:
    message = pb.StreamingAnalyzeConfig(resume_turn=True, resume_after=pb.END_REASON_SILENCE, resume_final_count=3)
    message.audio_start_offset.FromSeconds(5)
    message.resume_finals.add().start_offset.FromSeconds(1)
    finals = FinalsReceived()
    finals.add(pb.UtteranceResult(is_final=True, end_reason=pb.END_REASON_MAX_DURATION))
    config = MessageConfig.of(message)
    again = replace(
        config,
        audio_start_offset_s=7.25,
        resume_turn=True,
        resume_after=EndReason.MAX_DURATION,
        resume_finals=finals,
        turn_id="made",
    ).to_proto()
    assert again.audio_start_offset.ToMilliseconds() == 7250
    assert again.resume_after == pb.END_REASON_MAX_DURATION
    assert [final.end_reason for final in again.resume_finals] == [0, pb.END_REASON_MAX_DURATION]
    assert (again.resume_final_count, again.turn_id) == (4, "made")
    moved = replace(config, audio_start_offset_s=7.25).to_proto()
    assert moved.resume_after == 0, "what it was after is not at this point"


NAMES = sorted({name.split(".")[-1] for name in reachable(pb.StreamingAnalyzeRequest.DESCRIPTOR)})
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_whatever_a_page_sends_is_a_message_or_refused(value: object) -> None:
    try:
        message = wire.read_message(wire.read_object(json.dumps(value)), pb.StreamingAnalyzeRequest())
    except wire.NotJsonError:
        return
    json_format.MessageToDict(message)
    if message.HasField("streaming_config"):
        MessageConfig.of(message.streaming_config).to_proto()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "nonsense", '"text"', ""])
def test_text_that_no_parser_likes_is_refused(text: str) -> None:
    with pytest.raises(wire.NotJsonError) as caught:
        wire.read_object(text)
    assert wire.close_code(caught.value) == wire.CLOSE_NOT_JSON
    assert json.loads(wire.error_text(caught.value))["error"].keys() == {"code", "reason", "message", "field"}
