"""Random sequences of requests, against a real server and a small reference model.

Long run: `pytest -m slow tests/contract/test_state_machine.py`: 10,000 sequences, or as many as KIBUN_SEQUENCES says.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import struct
import time
from collections.abc import Coroutine, Iterator
from functools import cache
from typing import Any, ClassVar, get_args

import grpc
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from kibun.server.audio.decoder import AudioFormat, Encoding
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support import reference_model as model
from tests.support.serving import RunningServer, encode, serve, sound
from tests.support.state_driver import Driver, check_conversation, config_message, must_fail

DEFAULT_SEQUENCES = 200
LONG_SEQUENCES = int(os.environ.get("KIBUN_SEQUENCES", "10000"))
PART_SEQUENCES = 1_000
MAX_STREAMS = 3

FORMS = [AudioFormat(encoding, rate) for encoding in get_args(Encoding) for rate in (8_000, 16_000, 48_000)]
ENDPOINTINGS = [
    EndpointingOptions(),
    EndpointingOptions(utterance_end_silence_ms=200, max_utterance_ms=1_000),
    EndpointingOptions(utterance_end_silence_ms=200, end_of_turn_silence_ms=400, speech_start_timeout_ms=300),
]
SOUNDS = {
    "utterance": (("silence", 0.15), ("speech", 0.4), ("silence", 0.6)),
    "begun": (("silence", 0.1), ("speech", 0.5)),
    "two": (("speech", 0.3), ("silence", 0.55), ("speech", 0.3), ("silence", 0.6)),
    "long": (("speech", 1.5),),
    "silence": (("silence", 0.5),),
    "blip": (("speech", 0.02),),
    "pause": (("silence", 10.5),),
}
INVALID = "INVALID_ARGUMENT"
REQUEST = pb.StreamingAnalyzeRequest
# A first message and the refusal that must follow; state is never touched.
FLAWED: list[tuple[dict[str, Any], str, str]] = [
    ({"audio_config": None}, "AUDIO_CONFIG_REQUIRED", "audio_config"),
    ({"audio_config": {"encoding": 99, "sample_rate_hertz": 16_000}}, "UNSUPPORTED_ENCODING", "audio_config.encoding"),
    (
        {"audio_config": {"encoding": 1, "sample_rate_hertz": 7_999}},
        "SAMPLE_RATE_OUT_OF_RANGE",
        "audio_config.sample_rate_hertz",
    ),
    ({"conversation_id": "a\nb"}, "INVALID_ID", "conversation_id"),
    ({"participant_id": "x" * 65}, "INVALID_ID", "participant_id"),
    ({"turn_id": "a/b"}, "INVALID_ID", "turn_id"),
    ({"given_personality": {"openness": 8}}, "TRAITS_OUT_OF_RANGE", "given_personality.openness"),
    ({"audio_start_offset": {"seconds": -1}}, "INVALID_DURATION", "audio_start_offset"),
    ({"conversation_ttl": {}}, "INVALID_DURATION", "conversation_ttl"),
    ({"features": {"disable_emotion": True, "disable_personality": True}}, "NOTHING_TO_ANALYZE", "features"),
    (
        {"endpointing_config": {"vad_aggressiveness": 4}},
        "INVALID_ENDPOINTING",
        "endpointing_config.vad_aggressiveness",
    ),
]
# Other first messages.
NO_CONFIG: dict[str, tuple[list[Any], model.Refusal]] = {
    "audio": ([REQUEST(audio_content=b"")], model.Refusal(INVALID, "CONFIG_REQUIRED_FIRST", "streaming_request")),
    "end": ([REQUEST(end_of_turn={})], model.Refusal(INVALID, "CONFIG_REQUIRED_FIRST", "streaming_request")),
    "empty": ([b""], model.Refusal(INVALID, "EMPTY_REQUEST", "streaming_request")),
    "malformed": ([b"\x0a\x05abc"], model.Refusal(INVALID, "MALFORMED_MESSAGE", "")),
    "nothing": ([], model.Refusal(INVALID, "EMPTY_STREAM", "streaming_request")),
    "model": (
        [REQUEST(streaming_config={"audio_config": {"encoding": 1, "sample_rate_hertz": 8_000}, "model": "nobody"})],
        model.Refusal("NOT_FOUND", "UNKNOWN_MODEL"),
    ),
}
# What may follow a config and ends the stream.
WRONG: list[tuple[Any, str, str]] = [
    (REQUEST(), "EMPTY_REQUEST", "streaming_request"),
    (REQUEST(streaming_config=pb.StreamingAnalyzeConfig()), "CONFIG_REPEATED", "streaming_config"),
    (b"\xff\xff\xff\xff", "MALFORMED_MESSAGE", ""),
    (REQUEST(end_of_turn={"next_turn_id": "a b"}), "INVALID_ID", "end_of_turn.next_turn_id"),
    (REQUEST(audio_content=bytes(256 * 1024 + 1)), "AUDIO_CONTENT_TOO_LARGE", "audio_content"),
]
ABSURD = [float("nan"), float("inf"), 1e30, -9.0]
UNKNOWN_FIELD = b"\xc2\x3e\x03new"  # field 1000


@cache
def payload(name: str, form: AudioFormat) -> bytes:
    return encode(sound(*SOUNDS[name], rate=form.sample_rate_hz), form.encoding)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    cuts = [0, *itertools.accumulate(sizes)]
    return [data[a:b] for a, b in itertools.pairwise(cuts)] + [data[cuts[-1] :]]


class Sequences(RuleBasedStateMachine):
    """One sequence of requests. All sequences share `loop` and `channel`."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    channel: ClassVar[grpc.aio.Channel]
    counts: ClassVar[dict[str, int]]

    def __init__(self) -> None:
        super().__init__()
        self.counts["sequences"] += 1
        self.prefix = f"s{self.counts['sequences']}"
        self.driver = Driver(self.channel)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.counts["steps"] += 1
        try:
            self.loop.run_until_complete(work)
        except AssertionError as error:  # shown here too: a race may not come again when Hypothesis tries
            error.add_note("\n".join(self.driver.history))
            raise

    def name(self, letter: str) -> str:
        return f"{self.prefix}-{letter}"

    def stream(self, index: int) -> model.Stream:
        streams = self.driver.world.streams
        return streams[index % len(streams)]

    @property
    def has_stream(self) -> bool:
        return bool(self.driver.world.streams)

    # ---- opening

    @precondition(lambda self: len(self.driver.world.streams) < MAX_STREAMS)
    @rule(
        data=st.data(),
        letter=st.sampled_from("cccd"),
        who=st.sampled_from(["ann", "ann", "bo"]),
        turn_id=st.sampled_from(["", "t0", "t1", "t2"]),
        features=st.sampled_from([(True, True), (True, True), (False, True), (True, False)]),
        others=st.sampled_from(["", "", "", "", "", "require", "resume", "resume", "given", "model"]),
        flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    )
    def open(
        self,
        data: st.DataObject,
        letter: str,
        who: str,
        turn_id: str,
        features: tuple[bool, bool],
        others: str,
        flags: tuple[bool, bool, bool],
    ) -> None:
        person = self.driver.world.person(self.name(letter), who)
        edges = [edge for r in person.records if r.turn.id == turn_id for edge in (r.start, r.end, r.end)]
        config = model.Config(
            conversation_id=self.name(letter),
            participant_id=who,
            turn_id=turn_id,
            audio=data.draw(st.sampled_from(FORMS)),
            endpointing=data.draw(st.sampled_from(ENDPOINTINGS)),
            model="other" if others == "model" else "stub",
            emotion=features[0],
            personality=features[1],
            activity=flags[0],
            require_existing=others == "require",
            resume=others == "resume",
            given=2.5 if others == "given" else None,
            offset=data.draw(st.sampled_from([0, *edges, 4_001])),
        )
        self.run(self.driver.open(config, interims=flags[1], eager=flags[2]))

    @precondition(lambda self: self.has_stream)
    @rule(flaw=st.one_of(st.sampled_from(FLAWED), st.sampled_from(sorted(NO_CONFIG)), st.just("deadline")))
    def open_flawed(self, flaw: tuple[dict[str, Any], str, str] | str) -> None:
        if flaw == "deadline":
            self.run(self.late(self.name("late")))
        elif isinstance(flaw, str):
            messages, refusal = NO_CONFIG[flaw]
            self.run(self.refused(messages, refusal))
        else:
            fields, reason, field = flaw
            config = config_message(model.Config(self.name("c"), "ann", "t0", FORMS[0]))
            for name, value in fields.items():
                config.ClearField(name)
                if value is not None:
                    config.MergeFrom(pb.StreamingAnalyzeConfig(**{name: value}))
            self.run(self.refused([REQUEST(streaming_config=config)], model.Refusal(INVALID, reason, field)))

    async def refused(self, messages: list[Any], refusal: model.Refusal) -> None:
        call = self.driver.call()
        for message in messages:
            await call.write(message)
        if not messages:
            await call.done_writing()
        await must_fail(call.read(), refusal)

    async def late(self, name: str) -> None:
        """Opens a stream whose deadline passes; as nothing was said, nothing of it stays."""
        call = self.driver.call(timeout=0.03)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.write(REQUEST(streaming_config=config_message(model.Config(name, "ann", "t0", FORMS[0]))))
        # The server keeps the deadline too; where its end arrives first, that is what the client sees. grpc.aio writes
        # INTERNAL over either where a write fails because of it.
        code, details = await call.code(), await call.details()
        masked = code is grpc.StatusCode.INTERNAL and details == "Internal error from Core"
        assert masked or code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED), (code, details)
        await self.driver.gone(name)

    @rule(
        letter=st.sampled_from("cccd"),
        turn_id=st.sampled_from(["", "t0", "t1", "t2"]),
        form=st.sampled_from(FORMS),
        endpointing=st.sampled_from(ENDPOINTINGS[:2]),
        what=st.sampled_from(["two", "utterance", "begun", "blip", "absurd"]),
        resume=st.booleans(),
    )
    def analyze(
        self, letter: str, turn_id: str, form: AudioFormat, endpointing: EndpointingOptions, what: str, resume: bool
    ) -> None:
        config = model.Config(self.name(letter), "ann", turn_id, form, endpointing, resume=resume)
        data = struct.pack("<f", ABSURD[0]) * 500 if what == "absurd" else payload(what, form)
        self.run(self.driver.analyze(config, data))

    # ---- talking

    @precondition(lambda self: self.has_stream)
    @rule(
        index=st.integers(0, MAX_STREAMS - 1),
        what=st.sampled_from(["utterance", "utterance", "begun", "two", "long", "silence", "blip", "pause"]),
        sizes=st.lists(st.sampled_from([0, 1, 1, 7, 160, 3_200, 20_001]), max_size=6),
        extra=st.sampled_from([b"", b"", b"", b"\0", b"\0\0\0"]),
    )
    def audio(self, index: int, what: str, sizes: list[int], extra: bytes) -> None:
        stream = self.stream(index)
        if what == "pause":
            sizes = [100_000] * (len(payload(what, stream.config.audio)) // 100_000)
        parts = pieces(payload(what, stream.config.audio) + extra, sizes)
        self.driver.note(stream, f"audio {what} {sizes} {extra!r}")
        taken = []
        for part in parts:
            if stream.failure is None:
                stream.audio(part)
                taken.append(part)
        self.run(self.driver.send(stream, *[REQUEST(audio_content=part) for part in taken]))

    more_audio = precondition(lambda self: self.has_stream)(
        rule(index=st.integers(0, MAX_STREAMS - 1), what=st.sampled_from(["utterance", "two"]))(
            lambda self, index, what: self.audio(index, what, [], b"")
        )
    )

    @precondition(lambda self: self.has_stream)
    @rule(index=st.integers(0, MAX_STREAMS - 1), turn_id=st.sampled_from(["", "t0", "t1", "t2"]), unknown=st.booleans())
    def end_of_turn(self, index: int, turn_id: str, unknown: bool) -> None:
        stream = self.stream(index)
        self.driver.note(stream, f"end_of_turn {turn_id!r}")
        stream.end_of_turn(turn_id)
        message = REQUEST(end_of_turn={"next_turn_id": turn_id}).SerializeToString()
        self.run(self.driver.send(stream, message + UNKNOWN_FIELD * unknown))

    # ---- ending

    @precondition(lambda self: self.has_stream)
    @rule(index=st.integers(0, MAX_STREAMS - 1))
    def half_close(self, index: int) -> None:
        self.run(self.driver.half_close(self.stream(index)))

    @precondition(lambda self: self.has_stream)
    @rule(
        index=st.integers(0, MAX_STREAMS - 1),
        how=st.one_of(st.just("cancel"), st.sampled_from(WRONG), st.sampled_from(ABSURD)),
    )
    def go_wrong(self, index: int, how: tuple[Any, str, str] | float | str) -> None:
        stream = self.stream(index)
        if isinstance(how, str):
            self.run(self.driver.cancel(stream))
        elif isinstance(how, float):
            self.absurd_audio(stream, how)
        else:
            message, reason, field = how
            self.driver.note(stream, reason)
            stream.fail(model.Refusal(INVALID, reason, field))
            self.run(self.driver.send(stream, message))

    def absurd_audio(self, stream: model.Stream, value: float) -> None:
        """Sends values out of range, which are samples like any other unless the stream's audio is floats."""
        data = struct.pack("<f", value) * 500
        self.driver.note(stream, f"audio {value}")
        stream.audio(data)
        self.run(self.driver.send(stream, REQUEST(audio_content=data)))

    # ---- conversations

    @precondition(lambda self: self.has_stream)
    @rule(letter=st.sampled_from("cd"), what=st.sampled_from(["get", "get", "get", "complete", "delete", "forget"]))
    def call(self, letter: str, what: str) -> None:
        name = self.name(letter)
        if what == "get":
            self.run(self.driver.check_state(name))
        elif what == "complete":
            self.run(self.completed(name))
        else:
            self.run(self.deleted(name, allow_missing=what == "forget"))

    async def completed(self, name: str) -> None:
        request = pb.CompleteConversationRequest(conversation_id=name)
        self.driver.history.append(f"complete {name}")
        expected = self.driver.world.complete(name)
        if isinstance(expected, model.Refusal):
            await must_fail(self.driver.stub.CompleteConversation(request), expected)
        else:
            found = await self.driver.stub.CompleteConversation(request)
            check_conversation(found.conversation, name, expected)

    async def deleted(self, name: str, *, allow_missing: bool) -> None:
        request = pb.DeleteConversationRequest(conversation_id=name, allow_missing=allow_missing)
        self.driver.history.append(f"delete {name}")
        expected = self.driver.world.delete(name, allow_missing=allow_missing)
        if expected is None:
            await self.driver.stub.DeleteConversation(request)
        else:
            await must_fail(self.driver.stub.DeleteConversation(request), expected)
        await self.driver.check_streams()

    def teardown(self) -> None:
        self.run(self.end())

    async def end(self) -> None:
        """Half-closes all streams, which must end well and leave nothing."""
        try:
            for stream in tuple(self.driver.world.streams):
                if stream in self.driver.calls and not stream.failure:
                    await self.driver.half_close(stream)
            for letter in "cd":
                await self.driver.check_state(self.name(letter))
                await self.deleted(self.name(letter), allow_missing=True)
            await self.driver.no_other_stream()
        finally:
            for call in self.driver.calls.values():
                await call.cancel()


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--model", "other?faults=0", model="stub?faults=0") as running:
        yield running
        log = running.log.read_text()
        for word in ("failed", "Traceback", "never retrieved", "never awaited"):
            assert word not in log, log[-3000:]


def run_sequences(
    server: RunningServer, number: int, *, machine: type[Sequences] = Sequences, **options: Any
) -> dict[str, int]:
    machine.counts = {"sequences": 0, "steps": 0}
    machine.loop = loop = asyncio.new_event_loop()

    async def connect() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(server.target)

    machine.channel = loop.run_until_complete(connect())
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=number,
                stateful_step_count=14,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
                **options,
            ),
        )
    finally:
        loop.run_until_complete(machine.channel.close())
        loop.close()
    return machine.counts


def test_any_sequence_of_requests(server: RunningServer) -> None:
    counts = run_sequences(server, DEFAULT_SEQUENCES, derandomize=True)
    assert counts["sequences"] >= DEFAULT_SEQUENCES
    assert counts["steps"] > 5 * counts["sequences"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_sequences_of_requests(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    """In parts with different seeds, as Hypothesis remembers all that it has tried, some 2 MB a sequence."""
    began = time.monotonic()
    total = {"sequences": 0, "steps": 0}
    first = random.randrange(10**6)
    while total["sequences"] < LONG_SEQUENCES:
        part = min(PART_SEQUENCES, LONG_SEQUENCES - total["sequences"])
        counts = run_sequences(server, part, machine=seed(first)(type("Part", (Sequences,), {})))
        total = {name: total[name] + counts[name] for name in total}
        first += 1
        gc.collect()
    with capsys.disabled():
        print(f"\n{total['sequences']:,} sequences, {total['steps']:,} steps, {time.monotonic() - began:.0f} s")


def test_a_server_that_loses_audio_is_found_out(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is made to count one second more than the server received."""

    original = model.Stream.half_close

    def half_close(stream: model.Stream) -> None:
        original(stream)
        stream.received += 16_000

    monkeypatch.setattr(model.Stream, "half_close", half_close)
    with pytest.raises(AssertionError):
        run_sequences(server, 50, derandomize=True, phases=[Phase.generate])
