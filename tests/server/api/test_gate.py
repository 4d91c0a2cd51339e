"""Which calls are admitted, and how much each tenant may use: real servers, real sockets."""

import asyncio
import hashlib
import os
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2

from kibun.client import AsyncClient, ResourceExhaustedError, StreamConfig
from kibun.server.api.gate import _certified_tenant
from kibun.server.errors import Failure
from kibun.server.session.wall_clock import BURST_S, MessageThrottle
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.certificates import make_certificates
from tests.support.processes import until
from tests.support.serving import (
    RunningServer,
    Talk,
    chunks,
    config,
    connect,
    converse,
    encode,
    end_of_turn,
    finals,
    health_of,
    of_kind,
    problem_of,
    refused,
    serve,
    spoken,
)

Code = grpc.StatusCode
SPEECH = chunks(encode(spoken(0.8)))  # 2.0 s of audio in 20 messages


def line(token: str, tenant: str, **options: object) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return " ".join([tenant, digest, *(f"{key}={value}" for key, value in options.items())]) + "\n"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    tokens = tmp_path_factory.mktemp("gate") / "tokens"
    tokens.write_text(
        line("few", "few-streams", streams=1)
        + line("little", "little-audio", audio_s_per_minute=5)
        + line("rare", "rare-messages", messages_per_s=3)
        + line("free", "free")
    )
    with serve("--token-file", str(tokens), "--max-streams", "3", "--tenant-streams", "2") as running:
        yield running


# ---- metadata


@pytest.mark.parametrize(
    "metadata",
    [{"x-note": "n" * 16_384}, {f"x-note-{n}": "" for n in range(65)}, {"x-note": "n" * 40_000}],
    ids=["long", "many", "long before the gate"],
)
async def test_metadata_is_bounded(stub: Stub, metadata: dict[str, str]) -> None:
    problem = await refused(stub, metadata={**bearer("free"), **metadata})
    assert (problem.code, problem.reason, problem.field) == (Code.INVALID_ARGUMENT, "METADATA_TOO_LARGE", "metadata")
    call = stub.GetServiceInfo(pb.GetServiceInfoRequest(), metadata=tuple({**bearer("free"), **metadata}.items()))
    assert (await problem_of(call)).reason == "METADATA_TOO_LARGE"


# ---- places


async def test_a_tenants_places_are_its_own(server: RunningServer, stub: Stub) -> None:
    async with Talk(stub, metadata=tuple(bearer("few").items())) as talk:
        await talk.start()
        problem = await refused(stub, metadata=bearer("few"))
        assert (problem.code, problem.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_STREAM_LIMIT")
        assert problem.quota == "concurrent streams of a tenant"
        assert problem.retry_s
        large = pb.AnalyzeRequest(audio_content=bytes(4 * 2**20))
        call = stub.Analyze(large, metadata=tuple(bearer("few").items()))
        assert (await problem_of(call)).reason == "TENANT_STREAM_LIMIT", "before it is looked at"
        assert finals(await converse(stub, [config(), *SPEECH], metadata=bearer("free"))), "others have room"
        assert of_kind(await talk.finish(), "stream_ended")
    assert of_kind(await converse(stub, [config()], metadata=bearer("few")), "stream_ended"), "the place is free again"


async def test_a_full_server_refuses_at_once_and_still_answers_health_checks(server: RunningServer, stub: Stub) -> None:
    async with (
        Talk(stub, metadata=tuple(bearer("free").items())) as one,
        Talk(stub, metadata=tuple(bearer("free").items())) as two,
        Talk(stub, metadata=tuple(bearer("little").items())) as three,
    ):
        for talk in (one, two, three):
            await talk.start()
        assert (await refused(stub, metadata=bearer("free"))).reason == "TOO_MANY_STREAMS"
        problem = await refused(stub, metadata=bearer("few"))
        assert (problem.code, problem.reason, problem.quota) == (
            Code.RESOURCE_EXHAUSTED,
            "TOO_MANY_STREAMS",
            "concurrent streams",
        )
        assert problem.retry_s
        assert await health_of(server) == health_pb2.HealthCheckResponse.SERVING
        info = await stub.GetServiceInfo(pb.GetServiceInfoRequest(), metadata=tuple(bearer("few").items()))
        assert info.active_stream_count == 3


# ---- audio and messages


async def test_audio_over_the_limit_ends_the_stream_after_what_was_heard(server: RunningServer, stub: Stub) -> None:
    """Five seconds a minute: after 4.9 one more message, of 3 s, is allowed, but none after it."""
    speech = [message for _ in range(5) for message in SPEECH]
    async with Talk(stub, metadata=tuple(bearer("little").items())) as talk:
        await talk.send(config(), *speech[:49], *chunks(bytes(96_000), 96_000), speech[0])
        problem = await problem_of(talk.rest())
        assert (problem.code, problem.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_AUDIO_LIMIT")
        assert problem.quota == "audio seconds per minute of a tenant"
        assert problem.retry_s
        assert problem.retry_s > 1
        assert len(finals(talk.responses)) == 3, "of all that came before"
    again = await refused(stub, metadata=bearer("little"))
    assert again.reason == "TENANT_AUDIO_LIMIT"
    request = pb.AnalyzeRequest(config=config().streaming_config, audio_content=bytes(3200))
    call = stub.Analyze(request, metadata=tuple(bearer("little").items()))
    assert (await problem_of(call)).reason == "TENANT_AUDIO_LIMIT"
    assert len(finals(await converse(stub, [config(), *speech], metadata=bearer("free")))) == 5, "others are unhurt"


async def test_messages_over_the_limit_end_the_stream(server: RunningServer) -> None:
    """With the SDK, which finds the server's status behind a write that came too late for it."""
    async with AsyncClient(server.target, token="rare") as client:
        with pytest.raises(ResourceExhaustedError) as caught:  # noqa: PT012
            async with client.stream(StreamConfig()) as stream:
                for _ in range(200):
                    await stream.push(bytes(2))
                    await asyncio.sleep(0)
                await stream.wait_ended()
        assert caught.value.reason == "TENANT_MESSAGE_LIMIT"
        assert caught.value.retry_after_s


def test_a_pace_spreads_messages_after_a_burst() -> None:
    throttle = MessageThrottle(10)
    now, waited = 100.0, []
    for _ in range(60):
        waited.append(throttle.wait_s(now))
        now += waited[-1]
    burst = round(10 * BURST_S)
    assert waited[:burst] == [0] * burst
    assert sum(waited) == pytest.approx((60 - burst) / 10)
    assert throttle.wait_s(now + BURST_S) == 0, "after a pause a burst is allowed again"


async def test_small_messages_are_throttled_and_nothing_changes() -> None:
    """A message for each sample: all are read, no faster than permitted, and the results are the same."""
    payload = encode(spoken(0.5, rate=8000, pause=0.2), "mulaw")
    fields: dict[str, Any] = {"rate": 8000, "encoding": pb.AUDIO_ENCODING_MULAW, "turn_id": "t"}
    with serve("--max-message-rate", "2000") as server:
        async with connect(server) as stub:
            whole = await converse(stub, [config(conversation_id="w", **fields), *chunks(payload)])
            began = time.monotonic()
            drip = await converse(stub, [config(conversation_id="d", **fields), *chunks(payload, 1)])
            took_s = time.monotonic() - began
    assert finals(drip) == finals(whole)
    assert finals(whole)
    assert took_s > (len(payload) - BURST_S * 2000) / 2000 - 0.1, "8,800 messages, 4,000 of them at once"


# ---- credentials that change


async def hang_up(server: RunningServer, seen: str) -> None:
    """SIGHUP, and what the log says then."""
    before = server.log.read_text().count(seen)
    os.kill(server.process.pid, signal.SIGHUP)
    await until(lambda: server.log.read_text().count(seen) > before)


async def test_tokens_are_read_again_and_what_was_revoked_ends(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(line("old", "acme") + line("other", "umbrella"))
    with serve("--token-file", str(tokens)) as server:
        async with connect(server) as stub, Talk(stub, metadata=tuple(bearer("old").items())) as talk:
            other = Talk(stub, metadata=tuple(bearer("other").items()))
            for each in (talk, other):
                await each.send(config(), *SPEECH)
                await each.until("utterance_result", is_final=True)
            tokens.write_text("nonsense\n")
            await hang_up(server, "not reloaded")
            assert of_kind(await converse(stub, [config()], metadata=bearer("old")), "stream_ended")
            tokens.write_text(line("new", "acme") + line("other", "umbrella"))
            await hang_up(server, "kibun: reloaded ")
            problem = await problem_of(talk.rest())
            assert (problem.code, problem.reason) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert (await refused(stub, metadata=bearer("old"))).reason == "UNAUTHENTICATED"
            assert of_kind(await converse(stub, [config()], metadata=bearer("new")), "stream_ended")
            assert of_kind(await other.finish(), "stream_ended"), "another tenant's stream goes on"


async def test_a_stream_ends_when_its_token_expires(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(line("long", "acme"))
    with serve("--token-file", str(tokens)) as server:
        async with connect(server) as stub:
            then = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 4))
            tokens.write_text(line("short", "acme", expires=then) + line("long", "acme"))
            await hang_up(server, "kibun: reloaded ")
            async with Talk(stub, metadata=tuple(bearer("short").items())) as talk:
                await talk.start()
                assert (await problem_of(talk.rest())).reason == "UNAUTHENTICATED"
            assert (await refused(stub, metadata=bearer("short"))).reason == "UNAUTHENTICATED"
            assert of_kind(await converse(stub, [config()], metadata=bearer("long")), "stream_ended")


async def test_a_certificate_names_its_tenant_and_can_be_renewed(tmp_path: Path) -> None:
    make_certificates(tmp_path, clients=("robot-1", "robot-2", "Robot Nr. 3", "robot-1\0x"))

    def known(who: str) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(*((tmp_path / f"{who}{end}").read_bytes() for end in (".key", ".pem")))

    def trusting(who: str) -> grpc.ChannelCredentials:
        ca, key, chain = (tmp_path / name for name in ("ca.pem", f"{who}.key", f"{who}.pem"))
        return grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), chain.read_bytes())

    own = [f"--tls-{kind}={tmp_path / name}" for kind, name in (("cert", "server.pem"), ("key", "server.key"))]
    name = pb.GetConversationRequest(conversation_id="c")
    with serve(*own, "--tls-client-ca", str(tmp_path / "ca.pem")) as server:
        for who in ("robot-1", "robot-2", "Robot Nr. 3"):
            async with grpc.aio.secure_channel(server.target, trusting(who)) as channel:
                stub = Stub(channel)
                assert (await problem_of(stub.GetConversation(name))).reason == "CONVERSATION_NOT_FOUND"
                started = of_kind(await converse(stub, [config(conversation_id="c")]), "stream_started")[0]
                assert started.conversation_created, "whatever the others have"
                assert (await stub.GetConversation(name)).conversation.conversation_id == "c"
        async with grpc.aio.secure_channel(server.target, trusting("robot-1x")) as channel:
            assert (await problem_of(Stub(channel).GetConversation(name))).reason == "UNAUTHENTICATED", "not robot-1's"
        make_certificates(tmp_path)  # by another authority
        os.kill(server.process.pid, signal.SIGHUP)
        async with asyncio.timeout(10):
            while True:
                async with grpc.aio.secure_channel(server.target, trusting("client")) as channel:
                    try:
                        await Stub(channel).GetServiceInfo(pb.GetServiceInfoRequest(), timeout=5)
                        break
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is Code.UNAVAILABLE, error  # noqa: PT017
                await asyncio.sleep(0.05)


def test_no_certificate_can_ask_for_anothers_tenant() -> None:
    """What gRPC hands on of certificates; it cuts names at a NUL."""

    def tenant(subject: bytes, common: bytes | None, *others: bytes, der: bytes = b"") -> str:
        pem = ssl.DER_cert_to_PEM_cert(der).encode()
        properties = {"x509_subject": [subject], "x509_pem_cert": [pem], "x509_subject_alternative_name": list(others)}
        properties |= {} if common is None else {"x509_common_name": [common]}
        return _certified_tenant(SimpleNamespace(auth_context=lambda: properties))

    assert tenant(b"CN=a,O=b", b"a", b"127.0.0.1") == "a"
    assert tenant(b"O=b", None, b"robot.example", der=b"\x82\x0drobot.example\x30") == "robot.example"
    hashed = tenant(b"CN=Robot 3", b"Robot 3")
    assert tenant(b"CN=" + hashed.encode(), hashed.encode()) not in (hashed, tenant(b"CN=Robot 4", b"Robot 4"))
    for subject, common, der in ((rb"CN=a\00x", b"a", b""), (rb"CN=\00x", b"", b""), (b"", None, b"\x82\x03a\0x")):
        with pytest.raises(Failure, match="holds a NUL"):
            tenant(subject, common, b"a", der=der)
    assert _certified_tenant(SimpleNamespace(auth_context=dict)) == ""


# ---- what gRPC itself sees first


async def test_one_request_where_one_is_expected(stub: Stub, server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.target) as channel:
        raw = channel.stream_unary("/kibun.v1.SpeechAnalysisService/GetServiceInfo")
        problem = await problem_of(raw(iter(()), metadata=tuple(bearer("free").items())))
        assert (problem.code, problem.reason) == (Code.INVALID_ARGUMENT, "EMPTY_REQUEST")
        unary = channel.unary_unary(
            "/kibun.v1.SpeechAnalysisService/GetServiceInfo",
            response_deserializer=pb.GetServiceInfoResponse.FromString,
        )
        info = await unary(b"", metadata=tuple(bearer("free").items()))
        assert MessageToDict(info)["serverVersion"]


async def test_a_request_that_never_comes(tmp_path: Path) -> None:
    with serve("--config-timeout", "0.3") as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = channel.stream_stream("/kibun.v1.SpeechAnalysisService/GetServiceInfo")()
            problem = await problem_of(call.read())
            assert (problem.code, problem.reason) == (Code.DEADLINE_EXCEEDED, "CONFIG_TIMEOUT")


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["plain", "bomb"])
async def test_a_message_over_the_limit_is_refused_with_its_size_and_leaves_memory_flat(
    server: RunningServer, compression: grpc.Compression
) -> None:
    """gRPC itself refuses it, before anything of ours could say more; a bomb of 40 MB weighs 40 kB on its way."""
    _, before = server.threads_and_rss()
    async with connect(server, **{"grpc.max_send_message_length": -1}) as stub:
        async with Talk(stub, metadata=tuple(bearer("free").items()), compression=compression) as talk:
            await talk.start()
            await talk.send(pb.StreamingAnalyzeRequest(audio_content=bytes(40 * 2**20)))
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
                await talk.rest()
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        _, after = server.threads_and_rss()
        assert after - before < 20 * 2**20
        assert finals(await converse(stub, [config(), *SPEECH], metadata=bearer("free")))


async def test_ids_end_where_a_turn_does(stub: Stub) -> None:
    """A next turn id is an id like any other."""
    problem = await refused(stub, config(), end_of_turn("a\nb"), metadata=bearer("free"))
    assert (problem.reason, problem.field) == ("INVALID_ID", "end_of_turn.next_turn_id")
