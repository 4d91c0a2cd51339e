"""Start, health, credentials, clients that vanish, drain and stop: a real server process from outside."""

import asyncio
import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kibun.bench.faults.servers import free_port
from kibun.server import serving
from kibun.server.api.auth import NO_TOKEN, NOT_ACCEPTED
from kibun.server.audio import silero_network, vad_silero
from kibun.server.errors import StartError
from kibun.server.settings import Settings
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support import ROOT
from tests.support.certificates import make_certificates
from tests.support.serving import (
    RunningServer,
    Talk,
    chunks,
    command,
    config,
    connect,
    converse,
    encode,
    environment,
    finals,
    health_of,
    none_active,
    of_kind,
    problem_of,
    refused,
    serve,
    spoken,
)

Code = grpc.StatusCode
SERVICE = "kibun.v1.SpeechAnalysisService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# ---- starting


async def test_health_and_refusal_while_loading() -> None:
    with serve(model="sleepy", wait=False, port=free_port()) as server:
        for service in ("", SERVICE):
            assert await health_of(server, service) == NOT_SERVING
        async with connect(server) as stub:
            for problem in (
                await refused(stub),
                await problem_of(stub.GetServiceInfo(pb.GetServiceInfoRequest())),
            ):
                assert (problem.code, problem.reason) == (Code.UNAVAILABLE, "LOADING")
                assert problem.retry_s
        server.terminate()
        assert server.wait(30) == 0, "also stops while it loads"


def run_and_fail(*arguments: str, **options: Any) -> str:
    done = subprocess.run(
        command(*arguments, **options), env=environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_port_taken() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        assert port in run_and_fail("--port", port)


def test_port_taken_by_another_server(server: RunningServer) -> None:
    assert str(server.port) in run_and_fail("--port", str(server.port))


def test_certificates_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("not PEM")
    files = [str(tmp_path / "cert.pem")] * 2
    assert files[0] in run_and_fail("--port", "0", "--tls-cert", files[0], "--tls-key", files[1])


def test_a_port_file_that_cannot_be_written_is_named() -> None:
    assert "/no/dir/port" in run_and_fail("--port", "0", "--port-file", "/no/dir/port")


def test_missing_model_is_named() -> None:
    assert "/no/such/bundle" in run_and_fail("--port", "0", model="/no/such/bundle")


def test_a_token_that_is_no_digest_is_named_by_its_line(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("\nacme secret-token\n")
    text = run_and_fail("--token-file", str(tokens))
    assert f"{tokens}:2" in text
    assert "secret-token" not in text


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"token_file": Path("no/such/tokens")}, "no/such/tokens"),
        ({"token_file": Path(os.devnull)}, os.devnull),  # holds none
        ({"tls_cert": Path("cert.pem")}, "--tls-key"),
        ({"tls_cert": Path("cert.pem"), "tls_key": Path("no-key.pem")}, "no-key.pem"),
        ({"tls_client_ca": Path("ca.pem")}, "--tls-cert"),
        ({"host": "0.0.0.0"}, "--tls-cert"),
        ({"host": "::"}, "--insecure"),
        ({"host": "example.org"}, "--tls-cert"),
    ],
)
def test_unusable_files_and_options_are_named(settings: dict[str, Any], named: str) -> None:
    """Before anything is started; how the process ends on a StartError is tested above."""
    with pytest.raises(StartError, match=re.escape(named)):
        asyncio.run(serve_until_stopped(Settings(models=("stub",), **settings)))


def test_a_detector_of_an_unknown_release_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (package,) = find_spec("silero_vad").submodule_search_locations  # type: ignore[union-attr, misc]
    other = (Path(package) / "data" / "silero_vad_16k_op15.onnx").read_bytes()
    build = silero_network.build
    monkeypatch.setattr(silero_network, "build", lambda _: build(other))
    vad_silero._session.cache_clear()
    with pytest.raises(StartError, match=r"install silero-vad 6\.2"):
        asyncio.run(serve_until_stopped(Settings(models=("stub",))))


async def serve_until_stopped(settings: Settings) -> None:
    await serving.Server(settings).run()


async def test_serving_on_ipv6(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with serve("--host", "::1") as server:
        async with grpc.aio.insecure_channel(f"[::1]:{server.port}") as channel:
            assert (await Stub(channel).GetServiceInfo(pb.GetServiceInfoRequest(), timeout=5)).models


# ---- serving


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve("--max-streams", "4", model="stub?delay_s=0.3") as running:
        yield running
        log = running.log.read_text()
        for word in ("failed", "error=", "Traceback", "never retrieved", "never awaited", "exception"):
            assert word not in log, "clients that vanish are no news"


async def test_serving_once_ready(server: RunningServer) -> None:
    for service in ("", SERVICE):
        assert await health_of(server, service) == SERVING


async def reflected(server: RunningServer) -> list[str]:
    async with grpc.aio.insecure_channel(server.target) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await call.done_writing()
        (answer,) = [response async for response in call]
        return [service.name for service in answer.list_services_response.service]


async def test_reflection_only_where_asked_for(server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.target) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        assert await call.code() is Code.UNIMPLEMENTED


async def test_service_info(stub: Stub) -> None:
    info = await stub.GetServiceInfo(pb.GetServiceInfoRequest())
    (model,) = info.models
    assert (model.name, model.is_default, model.synthetic) == ("stub", True, True)
    assert model.license == "LicenseRef-stub"
    assert {s.dimension: (s.min, s.max, s.neutral) for s in info.scales}["valence"] == (1, 5, 3)
    assert {s.dimension: (s.min, s.max, s.neutral) for s in info.scales}["neuroticism"] == (1, 7, 4)
    assert list(info.audio_encodings) == [1, 5, 3, 20]
    assert (info.min_sample_rate_hertz, info.max_sample_rate_hertz) == (8_000, 48_000)
    assert info.max_concurrent_streams == 4
    assert info.default_endpointing_config.HasField("utterance_end_silence")


# ---- clients that vanish


SPEECH = [*chunks(encode(spoken(1.0)))]


async def test_cancel_frees_the_place_and_leaves_the_turn_open(stub: Stub) -> None:
    """Also where the client has half-closed: end of file is not the end of a turn."""
    for half_closed in (False, True):
        fields: dict[str, Any] = {"conversation_id": f"cancelled-{half_closed}", "turn_id": "t1"}
        async with Talk(stub) as talk:
            await talk.send(config(**fields), *SPEECH)
            await talk.until("speech_event")
            if half_closed:
                await talk.call.done_writing()
        await none_active(stub)
        again = await converse(stub, [config(**fields), *SPEECH])
        (started,) = of_kind(again, "stream_started")
        assert started.conversation_created, "nothing of it was answered, so nothing of it was kept"
        assert started.prior_utterance_count == 0
        (ended,) = of_kind(again, "stream_ended")
        (participant,) = ended.conversation.participants
        assert (participant.utterance_count, participant.turn_count) == (1, 1)


async def test_deadline_frees_the_place(stub: Stub) -> None:
    async with Talk(stub, timeout=0.3) as talk:
        await talk.start(turn_id="t1", conversation_id="deadline")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await talk.rest()
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
    await none_active(stub)


CLIENT = """
import asyncio, sys
sys.path[:0] = {path!r}
from tests.support.serving import *
async def main():
    async with grpc.aio.insecure_channel({target!r}) as channel:
        async with Talk(rpc.SpeechAnalysisServiceStub(channel)) as talk:
            await talk.send(config(conversation_id="killed", turn_id="t1"), *chunks(encode(spoken(1.0))))
            await talk.until("speech_event")
            print("speaking", flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_killed_client(server: RunningServer, stub: Stub) -> None:
    code = CLIENT.format(path=[str(ROOT)], target=server.target)
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE, env=environment())
    assert client.stdout is not None
    assert await client.stdout.readline() == b"speaking\n"
    client.kill()
    await client.wait()
    await none_active(stub)
    again = await converse(stub, [config(conversation_id="killed", turn_id="t1"), *SPEECH])
    assert len(finals(again)) == 1
    assert of_kind(again, "stream_ended")[0].conversation.participants[0].utterance_count == 1


async def test_many_streams_opened_and_dropped_leave_nothing(server: RunningServer, stub: Stub) -> None:
    async def open_and_drop(round_: int) -> None:
        async with Talk(stub) as talk:
            await talk.send(config(conversation_id="dropped"), *SPEECH[: round_ % 7])

    for warm_up in range(20):
        await open_and_drop(warm_up)
    threads, before = server.threads_and_rss()
    for round_ in range(300):
        await open_and_drop(round_)
    await none_active(stub)
    after_threads, after = server.threads_and_rss()
    assert after_threads <= threads + 2
    assert after - before < 8_000_000, "a leak of 25 KB a stream would show"
    assert len(finals(await converse(stub, [config(), *SPEECH]))) == 1


# ---- what is kept, and for how long


async def test_conversation_calls(stub: Stub) -> None:
    name = pb.GetConversationRequest(conversation_id="kept")
    await converse(stub, [config(conversation_id="kept", participant_id="a"), *SPEECH])
    await converse(stub, [config(conversation_id="kept", participant_id="b")])
    found = (await stub.GetConversation(name)).conversation
    assert found.state == pb.Conversation.STATE_ACTIVE
    assert found.model == "stub"
    assert [p.participant_id for p in found.participants] == ["a", "b"]
    a, b = found.participants
    assert (a.turn_count, a.utterance_count, b.turn_count, b.utterance_count) == (1, 1, 1, 0)
    assert a.last_emotion == a.mean_emotion
    assert a.last_emotion.arousal > 1
    assert not b.HasField("last_emotion")
    assert not b.HasField("personality")
    assert found.expire_time.ToSeconds() - found.update_time.ToSeconds() == 1800
    done = await stub.CompleteConversation(pb.CompleteConversationRequest(conversation_id="kept"))
    assert done.conversation.state == pb.Conversation.STATE_COMPLETED
    assert done.conversation.participants == found.participants
    await stub.DeleteConversation(pb.DeleteConversationRequest(conversation_id="kept"))
    assert (await problem_of(stub.GetConversation(name))).code is Code.NOT_FOUND
    await stub.DeleteConversation(pb.DeleteConversationRequest(conversation_id="kept", allow_missing=True))
    started = of_kind(await converse(stub, [config(conversation_id="kept")]), "stream_started")[0]
    assert started.conversation_created, "a new one under the old name"


async def test_a_conversation_expires_after_its_last_stream_and_not_before(stub: Stub) -> None:
    name = pb.GetConversationRequest(conversation_id="short")
    async with Talk(stub) as talk:
        await talk.start(conversation_id="short", conversation_ttl={"seconds": 1})
        await asyncio.sleep(1.1)
        assert (await stub.GetConversation(name)).conversation.participants, "an open stream keeps it"
        await talk.finish()
    async with asyncio.timeout(20):
        while (code := await stub.GetConversation(name).code()) is Code.OK:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)
    assert code is Code.NOT_FOUND


async def test_a_later_stream_that_asks_for_no_ttl_keeps_the_conversations_own(stub: Stub) -> None:
    for turn_id, asked, kept in (("t1", {"seconds": 77}, 77), ("t2", None, 77), ("t3", {"seconds": 5}, 5)):
        replies = await converse(stub, [config(conversation_id="own-ttl", turn_id=turn_id, conversation_ttl=asked)])
        started = of_kind(replies, "stream_started")[0]
        assert started.effective_config.conversation_ttl.seconds == kept


# ---- credentials


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    digests = {tenant: hashlib.sha256(f"{tenant}-token".encode()).hexdigest() for tenant in ("acme", "umbrella")}
    path.write_text("# tenants\n" + "".join(f"{tenant} {digest}\n" for tenant, digest in digests.items()))
    return path


@pytest.fixture(scope="module")
def guarded(tokens: Path) -> Iterator[RunningServer]:
    with serve("--token-file", str(tokens), "--reflection") as running:
        yield running
        log = running.log.read_text()
        assert "-token" not in log
        assert hashlib.sha256(b"acme-token").hexdigest() not in log


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {tenant}-token"}


async def test_no_token_and_one_that_is_not_accepted_read_differently(guarded: RunningServer) -> None:
    async with connect(guarded) as stub:
        for text, authorizations in (
            (NO_TOKEN, (None, "", "Bearer", "acme-token", "Basic acme-token")),
            (NOT_ACCEPTED, ("Bearer wrong", "Bearer acme-token ")),
        ):
            for authorization in authorizations:
                metadata = {} if authorization is None else {"authorization": authorization}
                problem = await refused(stub, metadata=metadata)
                assert (problem.code, problem.reason) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
                assert problem.message == text
                info = stub.GetServiceInfo(pb.GetServiceInfoRequest(), metadata=tuple(metadata.items()))
                assert (await problem_of(info)).message == text
        assert of_kind(await converse(stub, [config()], metadata=bearer("acme")), "stream_ended")
    assert await health_of(guarded) == SERVING, "who checks health needs no token"


async def test_tenants_do_not_see_each_other(guarded: RunningServer) -> None:
    acme, umbrella = (tuple(bearer(t).items()) for t in ("acme", "umbrella"))
    fields: dict[str, Any] = {"conversation_id": "shared-name", "turn_id": "t1"}
    async with connect(guarded) as stub:
        await converse(stub, [config(**fields), *SPEECH], metadata=bearer("acme"))
        for call, request in (
            (stub.GetConversation, pb.GetConversationRequest(conversation_id="shared-name")),
            (stub.CompleteConversation, pb.CompleteConversationRequest(conversation_id="shared-name")),
            (stub.DeleteConversation, pb.DeleteConversationRequest(conversation_id="shared-name")),
        ):
            problem = await problem_of(call(request, metadata=umbrella))
            assert (problem.code, problem.reason) == (Code.NOT_FOUND, "CONVERSATION_NOT_FOUND")
        required = config(**fields, require_existing_conversation=True)
        assert (await problem_of(converse(stub, [required], metadata=bearer("umbrella")))).code is Code.NOT_FOUND
        theirs = await converse(stub, [config(**fields)], metadata=bearer("umbrella"))
        assert of_kind(theirs, "stream_started")[0].conversation_created
        name = pb.GetConversationRequest(conversation_id="shared-name")
        kept = await stub.GetConversation(name, metadata=acme)
        assert kept.conversation.participants[0].utterance_count == 1


async def test_reflection_lists_the_service(guarded: RunningServer) -> None:
    assert SERVICE in await reflected(guarded)


# ---- TLS


async def test_tls_and_client_certificates(tmp_path: Path) -> None:
    make_certificates(tmp_path)

    def read(name: str) -> bytes:
        return (tmp_path / name).read_bytes()

    async def ask(server: RunningServer, credentials: grpc.ChannelCredentials | None) -> pb.GetServiceInfoResponse:
        open_channel = grpc.aio.secure_channel if credentials else grpc.aio.insecure_channel
        async with open_channel(server.target, *([credentials] if credentials else [])) as channel:
            info: pb.GetServiceInfoResponse = await Stub(channel).GetServiceInfo(pb.GetServiceInfoRequest(), timeout=5)
            return info

    trusting = grpc.ssl_channel_credentials(read("ca.pem"))
    known = grpc.ssl_channel_credentials(read("ca.pem"), read("client.key"), read("client.pem"))
    own = ("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"))
    with serve(*own) as server:
        assert (await ask(server, trusting)).models
        for stranger in (None, grpc.ssl_channel_credentials()):  # plaintext; another CA
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(server, stranger)
            assert caught.value.code() is Code.UNAVAILABLE
    with serve(*own, "--tls-client-ca", str(tmp_path / "ca.pem")) as server:
        assert (await ask(server, known)).models
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(server, trusting)
        assert caught.value.code() is Code.UNAVAILABLE


# ---- stopping


async def test_drain_lets_open_streams_finish_and_takes_no_new_ones() -> None:
    with serve(model="stub?delay_s=0.2") as server:
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.send(config(conversation_id="last"), *SPEECH[:10])
            await talk.until("stream_started")
            server.terminate()
            assert (await talk.until("stream_warning")).reason == "GOING_AWAY"
            assert await health_of(server) == NOT_SERVING
            for problem in (
                await refused(stub),
                await problem_of(stub.GetConversation(pb.GetConversationRequest(conversation_id="last"))),
            ):
                assert (problem.code, problem.reason) == (Code.UNAVAILABLE, "DRAINING")
                assert problem.retry_s
            await talk.send(*SPEECH[10:])
            responses = await talk.finish()
            assert len(finals(responses)) == 1
            assert of_kind(responses, "turn_result")
            assert responses[-1].HasField("stream_ended")
        assert await asyncio.to_thread(server.wait, 30) == 0


async def test_streams_open_past_the_grace_end_with_a_reason() -> None:
    with serve("--grace", "0.2") as server:
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.start()
            server.terminate()
            assert (await talk.until("stream_warning")).reason == "GOING_AWAY"
            problem = await problem_of(talk.rest())
            assert (problem.code, problem.reason) == (Code.UNAVAILABLE, "DRAINING")
            assert problem.retry_s
        assert await asyncio.to_thread(server.wait, 30) == 0


async def test_the_second_signal_stops_at_once() -> None:
    with serve("--grace", "60") as server:
        async with connect(server) as stub, Talk(stub) as talk:
            await talk.start()
            server.terminate()
            await talk.until("stream_warning")
            server.terminate()
            assert (await problem_of(talk.rest())).reason == "DRAINING"
            assert await asyncio.to_thread(server.wait, 30) == 0, "the minute of grace is not waited for"
        assert "Traceback" not in server.log.read_text()
