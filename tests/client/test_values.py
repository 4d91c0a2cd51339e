"""Parts of the SDK that need no server: options, estimates, addresses, errors, the replay buffer."""

import copy
import inspect
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

import kibun.client
from kibun.client import (
    AsyncClient,
    AsyncConversation,
    AsyncStream,
    AsyncTurn,
    AudioFileError,
    Client,
    Conversation,
    Emotion,
    Endpointing,
    EndReason,
    Features,
    InvalidRequestError,
    KibunError,
    PersonalityEstimate,
    PersonalitySource,
    ReplayBufferExceededError,
    RetryPolicy,
    Stream,
    StreamConfig,
    Traits,
    Turn,
)
from kibun.client.channel import Credentials, check_target
from kibun.client.engine import MAX_WAITING_EVENTS
from kibun.client.errors import ErrorDetails
from kibun.client.estimates import seconds
from kibun.client.events import Event, SpeechEvent, SpeechEventType, UtteranceResult, event_from_response
from kibun.client.options import BYTES_PER_SAMPLE, Encoding
from kibun.client.pcm import pieces
from kibun.client.replay import EndOfTurn, ReplayBuffer
from kibun.client.status import error_from_rpc
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support import present


def test_config_is_written_as_the_contract_has_it() -> None:
    config = StreamConfig(
        conversation_id="c",
        participant_id="p",
        turn_id="t",
        sample_rate_hz=44100,
        encoding="float32",
        features=Features(emotion=False, interim_results=True, interim_interval_ms=1500, voice_activity_events=True),
        endpointing=Endpointing(vad_aggressiveness=0, utterance_end_silence_ms=400, end_of_turn_silence_ms=0),
        model="m",
        given_personality=Traits(1, 2, 3, 4, 5),
        audio_start_offset_s=-1.25,
        audio_start_time=datetime(2024, 1, 2, tzinfo=UTC),
        conversation_ttl_s=60,
    )
    message = config.to_proto()
    assert message.audio_config.encoding == pb.AUDIO_ENCODING_FLOAT32
    assert message.audio_config.sample_rate_hertz == 44100
    assert message.features.disable_emotion
    assert not message.features.disable_personality
    assert message.features.interim_interval.ToMilliseconds() == 1500
    endpointing = message.endpointing_config
    assert endpointing.HasField("vad_aggressiveness"), "0 is a value"
    assert endpointing.HasField("end_of_turn_silence"), "0 is a value, for the server to judge"
    assert not endpointing.HasField("max_utterance_duration"), "None leaves the server's default"
    assert message.given_personality.neuroticism == 5
    assert (message.audio_start_offset.seconds, message.audio_start_offset.nanos) == (-1, -250_000_000)
    assert message.audio_start_time.ToDatetime(tzinfo=UTC) == config.audio_start_time
    assert message.conversation_ttl.seconds == 60
    plain = StreamConfig().to_proto()
    assert not plain.HasField("given_personality")
    assert not plain.HasField("audio_start_time")
    assert not plain.HasField("conversation_ttl")


def test_config_refuses_what_it_can_judge_itself() -> None:
    with pytest.raises(InvalidRequestError, match="choose one of linear16, float32, mulaw, alaw") as caught:
        StreamConfig(encoding=cast(Encoding, "mp3"))
    assert caught.value.field == "encoding"
    with pytest.raises(InvalidRequestError, match="timezone"):
        StreamConfig(audio_start_time=datetime(2024, 1, 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate_hz", "16000"),
        ("sample_rate_hz", 16000.0),
        ("sample_rate_hz", True),
        ("sample_rate_hz", 2**40),
        ("encoding", 1),
        ("participant_id", None),
        ("conversation_id", 4),
        ("turn_id", "\ud800"),
        ("features", {"emotion": True}),
        ("endpointing", None),
        ("model", b"m"),
        ("given_personality", (1, 2, 3, 4, 5)),
        ("given_personality.openness", Traits(cast(Any, "4"), 2, 3, 4, 5)),
        ("given_personality.neuroticism", Traits(1, 2, 3, 4, float("nan"))),
        ("audio_start_offset_s", "0"),
        ("audio_start_offset_s", float("inf")),
        ("audio_start_offset_s", 1e300),
        ("audio_start_time", "now"),
        ("conversation_ttl_s", "60"),
        ("require_existing_conversation", 1),
        ("resume_after", "silence"),
    ],
)
def test_a_value_of_a_wrong_type_names_its_field(field: str, value: Any) -> None:
    options: Any = {field.split(".")[0]: value}
    with pytest.raises(InvalidRequestError) as caught:
        StreamConfig(**options)
    assert caught.value.field == field
    assert field in str(caught.value)


def test_so_do_the_other_options() -> None:
    cases: list[tuple[Any, str, Any]] = [
        (Features, "emotion", "yes"),
        (Features, "interim_interval_ms", "1000"),
        (Endpointing, "vad_aggressiveness", "2"),
        (Endpointing, "end_of_turn_silence_ms", 0.5),
        (RetryPolicy, "max_attempts", "3"),
        (RetryPolicy, "give_up_after_s", None),
        (RetryPolicy, "initial_backoff_s", -1),
        (RetryPolicy, "replay_limit_s", float("nan")),
    ]
    for options, field, value in cases:
        with pytest.raises(InvalidRequestError, match=field) as caught:
            options(**{field: value})
        assert caught.value.field == field
    client: Any = partial(Client, "127.0.0.1:1")
    for field, value in {"token": 3, "tls": "yes", "retry": 3, "timeout_s": "5", "root_certificates": 1}.items():
        with pytest.raises(InvalidRequestError, match=f"{field} must be"):
            client(**{field: value})
    with pytest.raises(InvalidRequestError, match="target must be a string"):
        Client(cast(str, 50051))
    with Client("127.0.0.1:1") as made:
        for call in (made.conversation, made.get_conversation, made.complete_conversation, made.delete_conversation):
            with pytest.raises(InvalidRequestError, match="conversation_id must be a string"):
                cast(Any, call)(7)
        with pytest.raises(InvalidRequestError, match="turn_id must be a string"):
            made.conversation().turn(cast(str, 0))
        with pytest.raises(InvalidRequestError, match=r"config must be kibun\.client\.StreamConfig"):
            made.stream(cast(StreamConfig, {}))


def test_numbers_of_numpy_are_numbers() -> None:
    config = StreamConfig(
        sample_rate_hz=cast(int, np.int64(8000)),
        audio_start_offset_s=np.float64(1.5),
        given_personality=Traits(*np.arange(1, 6, dtype=np.float32)),
    ).to_proto()
    assert config.audio_config.sample_rate_hertz == 8000
    assert config.audio_start_offset.nanos == 500_000_000
    assert config.given_personality.neuroticism == 5


@given(st.integers(0, 10**7), st.sampled_from([8000, 16000, 44100, 48000]))
def test_times_are_the_nearest_float(samples: int, rate_hz: int) -> None:
    nanos = round(samples / rate_hz * 1e9)
    assert seconds(Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)) == nanos / 10**9


def test_times_print_as_they_were_meant() -> None:
    message = pb.UtteranceResult(start_offset=Duration(seconds=7, nanos=940_000_000))
    message.end_offset.CopyFrom(Duration(seconds=1023, nanos=290_000_000))
    event = event_from_response(pb.StreamingAnalyzeResponse(utterance_result=message))
    assert "start_s=7.94, end_s=1023.29," in repr(event)


def test_an_update_without_traits_is_none() -> None:
    """Traits of 0 would be an estimate that no one made; so `personality` is never None."""
    assert event_from_response(pb.StreamingAnalyzeResponse(personality_update=pb.PersonalityUpdate(revision=1))) is None


async def test_an_option_that_a_turn_does_not_have_is_named() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        misspelt: dict[str, Any] = {"samplerate": 8000}
        with pytest.raises(TypeError, match="no option 'samplerate'; it has sample_rate_hz, encoding"):
            client.conversation().turn(**misspelt)
        turn = client.conversation("c").turn("t", "ann", features=None, encoding="mulaw", require_existing=True)
        config = turn.config
        assert (config.conversation_id, config.participant_id, config.turn_id) == ("c", "ann", "t")
        assert (config.encoding, config.require_existing_conversation) == ("mulaw", True)
        assert config.features == Features(), "None means the default"


def test_normalized_scales() -> None:
    assert Emotion(1, 5).normalized() == Emotion(-1, 1)
    assert Emotion(3, 2).normalized() == Emotion(0, -0.5)
    assert Emotion(0.5, 6).normalized() == Emotion(-1, 1), "a regressor may leave its scale"
    assert Traits(1, 7, 4, 0, 8).normalized() == Traits(0, 1, 0.5, 0, 1)
    estimate = PersonalityEstimate(Traits(1, 7, 4, 4, 4), PersonalitySource.GIVEN, 3, 1.5, Traits(6, 0, 3, 3, 3))
    assert estimate.normalized().expected_error == Traits(1, 0, 0.5, 0.5, 0.5)


def test_traits_that_are_no_better_than_the_mean_are_named() -> None:
    message = pb.PersonalityEstimate(
        expected_error=Traits(1.5, 1, 0.5, 1, 1).to_proto(), expected_error_of_mean=Traits(1, 1, 1, 2, 2).to_proto()
    )
    message.condition_weight.CopyFrom(Traits(0, 0, 0.5, 0.75, 1).to_proto())
    estimate = PersonalityEstimate.from_proto(message)
    assert estimate.no_better_than_mean == ("openness", "conscientiousness")
    assert estimate.condition_weight == Traits(0, 0, 0.5, 0.75, 1)
    assert estimate.normalized().expected_error_of_mean == Traits(*(value / 6 for value in (1, 1, 1, 2, 2)))
    message.ClearField("expected_error_of_mean")
    assert PersonalityEstimate.from_proto(message).no_better_than_mean == ()


def speech_event(number: int) -> Event | None:
    message = pb.SpeechEvent(type=cast(pb.SpeechEvent.Type, number))
    return event_from_response(pb.StreamingAnalyzeResponse(speech_event=message))


def test_numbers_of_a_newer_server_are_read_as_unspecified() -> None:
    assert PersonalitySource.from_proto(99) is PersonalitySource.UNSPECIFIED
    assert EndReason.from_proto(99) is EndReason.UNSPECIFIED
    assert event_from_response(pb.StreamingAnalyzeResponse()) is None, "a kind of response that is not known yet"
    event = speech_event(99)
    assert isinstance(event, SpeechEvent)
    assert event.type is SpeechEventType.UNSPECIFIED


def test_every_enum_value_of_the_contract_is_known() -> None:
    for number in pb.PersonalitySource.values():
        assert pb.PersonalitySource.Name(number).lower().endswith(PersonalitySource.from_proto(number).value)
    for number in pb.EndReason.values():
        assert pb.EndReason.Name(number).lower().endswith(EndReason.from_proto(number).value)
    for number in pb.SpeechEvent.Type.values():
        event = speech_event(number)
        assert isinstance(event, SpeechEvent)
        assert pb.SpeechEvent.Type.Name(number).lower().endswith(event.type.value)


@pytest.mark.parametrize("target", ["localhost:50051", "[::1]:1", "10.0.0.1:65535", "unix:/tmp/x", "dns:///a:1"])
def test_good_addresses(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    ("target", "fix"),
    [
        ("unix:", "names nothing: write what it is to reach"),
        ("dns:///", "names nothing: write what it is to reach"),
        ("[::1", "write HOST:PORT"),
        ("localhost", "HOST:PORT"),
        ("", "HOST:PORT"),
        (":50051", "HOST:PORT"),
        ("::1", "HOST:PORT"),
        ("localhost:", "between 1 and 65535"),
        ("localhost:grpc", "between 1 and 65535"),
        ("localhost:0", "between 1 and 65535"),
        ("localhost:65536", "between 1 and 65535"),
        ("http://localhost:50051", "is a URL"),
    ],
)
def test_bad_addresses_name_the_fix(target: str, fix: str) -> None:
    with pytest.raises(InvalidRequestError, match=fix):
        check_target(target)


def test_sync_client_raises_the_same_and_leaves_no_thread() -> None:
    with pytest.raises(InvalidRequestError, match="HOST:PORT"):
        Client("nowhere")


@pytest.mark.parametrize(
    ("cls", "twin"),
    [(AsyncClient, Client), (AsyncConversation, Conversation), (AsyncTurn, Turn), (AsyncStream, Stream)],
    ids=lambda cls: cls.__name__,
)
def test_the_synchronous_twin_has_all_that_the_other_has(cls: type, twin: type) -> None:
    names = {name for name in dir(cls) if not name.startswith("_") and not name.endswith("_proto")}
    assert not names - set(dir(twin))
    for name in names:
        member = getattr(cls, name, None)
        if inspect.isfunction(member):
            assert inspect.signature(member).parameters == inspect.signature(getattr(twin, name)).parameters


async def test_a_token_does_not_travel_in_clear_text(tmp_path: Path) -> None:
    for target in ("example.org:50051", "dns:///example.org:1", "ipv4:127.0.0.1:1,192.0.2.1:1"):
        with pytest.raises(InvalidRequestError, match="clear text"):
            AsyncClient(target, token="secret")
    for client in (
        AsyncClient("127.0.0.1:1", token="secret"),
        AsyncClient("ipv4:127.0.0.1:1,127.0.0.2:1", token="secret"),
        AsyncClient("ipv6:[::1]:1", token="secret"),
        AsyncClient("example.org:1", token="secret", tls=True),
        AsyncClient("example.org:1", token="secret", allow_plaintext_token=True),
    ):
        await client.close()
    assert "secret" not in repr(Credentials(token="secret", private_key=b"secret"))
    with pytest.raises(InvalidRequestError, match="PEM file that exists"):
        AsyncClient("localhost:1", root_certificates=tmp_path / "none.pem")
    with pytest.raises(InvalidRequestError, match="blank or line end"):
        AsyncClient("localhost:1", token="secret\n")
    with pytest.raises(InvalidRequestError, match="both certificate_chain and private_key"):
        AsyncClient("localhost:1", certificate_chain=b"x")


def test_error_says_reason_and_request() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details="it broke")
    ours = error_from_rpc(error, "h:1", request_id="r-1")
    assert isinstance(ours, KibunError)
    assert str(ours) == "it broke [INTERNAL, request r-1]"
    assert ours.field is None


def every_error(cls: type[KibunError] = KibunError) -> Iterator[type[KibunError]]:
    yield cls
    for kind in cls.__subclasses__():
        yield from every_error(kind)


def test_every_error_can_be_copied_and_sent_to_another_process() -> None:
    """A pool whose worker raises what cannot be read back waits for its result for ever."""
    details = ErrorDetails("REASON", request_id="r-1", fields={"a": "b"})
    for kind in every_error():
        error = kind("x.wav", "is empty", details) if issubclass(kind, AudioFileError) else kind("it broke", details)
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is kind
            assert (str(again), again.details, vars(again)) == (str(error), details, vars(error))


@pytest.mark.parametrize("name", ["errors", "estimates", "events", "options", "resources"])
def test_what_the_sdk_gives_and_takes_can_be_imported_from_it(name: str) -> None:
    module = import_module(f"kibun.client.{name}")
    classes = {name for name, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__}
    assert {name for name in classes if not name.startswith("_")} <= set(kibun.client.__all__)


def test_backoffs_grow_to_their_limit() -> None:
    policy = RetryPolicy(initial_backoff_s=0.5, backoff_multiplier=3, max_backoff_s=4)
    assert [policy.backoff_s(failures) for failures in (0, 1, 2, 3, 10_000)] == [0.5, 1.5, 4, 4, 4]


@given(
    st.binary(max_size=20_000),
    st.sampled_from(sorted(BYTES_PER_SAMPLE)),
    st.integers(0, 48000),
    st.integers(0, 5000),
)
def test_pieces_are_whole_samples_and_lose_nothing(data: bytes, encoding: str, rate_hz: int, max_bytes: int) -> None:
    parts = list(pieces(data, encoding, rate_hz, max_bytes))
    width = BYTES_PER_SAMPLE[encoding]
    assert b"".join(parts) == data
    assert all(len(part) % width == 0 for part in parts[:-1])
    limit = max(rate_hz // 10, 1) * width
    assert all(len(part) <= (limit if not max_bytes else min(limit, max(max_bytes, width))) for part in parts)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 7)),
        st.tuples(st.just("next"), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 60)),
        st.tuples(st.just("rewind"), st.just(0)),
    ),
    max_size=40,
)


@given(operations, st.integers(0, 30))
def test_replay_buffer_resends_all_that_has_no_final(steps: list[tuple[str, int]], limit: int) -> None:
    """Against the plainest model: one byte string and three positions into it."""
    buffer = ReplayBuffer(limit)
    everything, sent, released, count = b"", 0, 0, 0
    for step, size in steps:
        if step == "append":
            piece = bytes((count + index) % 251 for index in range(size))
            count += size
            everything += piece
            buffer.append(piece)
        elif step == "next":
            item = buffer.next_item()
            assert not isinstance(item, EndOfTurn)
            assert item is None or item == everything[sent : sent + len(item)]
            assert item is not None or sent == len(everything)
            sent += len(item or b"")
        elif step == "release":
            buffer.release(size)
            released = max(released, min(size, sent))
        else:
            try:
                buffer.rewind()
            except ReplayBufferExceededError:
                assert sent - released > limit, "refused although all that is needed is kept"
                return
            assert buffer.start == released, "what has no final is sent again, and no more"
            sent = buffer.start
        assert buffer.unsent_bytes == len(everything) - sent


def test_a_replay_buffer_may_forget_a_long_silence() -> None:
    buffer = ReplayBuffer(10)
    for _ in range(30):
        buffer.append(b"x")
        buffer.next_item()
    buffer.mark_droppable(19)
    with pytest.raises(ReplayBufferExceededError):
        buffer.rewind()  # of 20 bytes that are gone, one is needed
    buffer.mark_droppable(25)
    buffer.rewind()
    assert buffer.start == 25, "exactly where the server said that a replay may begin"
    assert buffer.unsent_bytes == 5


def test_replay_buffer_keeps_markers_in_their_place() -> None:
    buffer = ReplayBuffer(100)
    for item in (b"ab", EndOfTurn("t2"), b"cd"):
        buffer.append(item)
    assert [buffer.next_item() for _ in range(4)] == [b"ab", EndOfTurn("t2"), b"cd", None]
    buffer.clear()
    assert buffer.start == 4
    assert buffer.next_item() is None


async def test_unread_events_are_bounded_but_finals_are_kept() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        stream = client.stream(StreamConfig())
        engine = stream._engine
        for number in range(3 * MAX_WAITING_EVENTS):
            message = pb.UtteranceResult(utterance_id=str(number), is_final=number % 100 == 0)
            event = present(event_from_response(pb.StreamingAnalyzeResponse(utterance_result=message)))
            engine.offer(event)
        waiting = [engine.events.get_nowait() for _ in range(engine.events.qsize())]
    finals = [event for event in waiting if isinstance(event, UtteranceResult) and event.is_final]
    assert len(finals) == len(range(0, 3 * MAX_WAITING_EVENTS, 100))
    assert len(waiting) < MAX_WAITING_EVENTS + 3 * MAX_WAITING_EVENTS // 100
