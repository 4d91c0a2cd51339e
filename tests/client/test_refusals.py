"""Servers that cannot be reached, or that refuse: each real fault gets a text of its own, with what to check."""

import contextlib
import hashlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kibun.client import AsyncClient, Client, RetryPolicy
from kibun.client.channel import Credentials
from kibun.client.errors import AuthenticationError, DeadlineError, InvalidRequestError, KibunError, UnavailableError
from kibun.client.explain import explain_unavailable, proxy_of
from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.certificates import make_certificates

DIALOGUE = ROOT / "client" / "kibun" / "client" / "demo" / "dialogue.flac"
ONCE = RetryPolicy(max_attempts=1)
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


async def refusals(target: str, **options: Any) -> str:
    """The message of a call and of a stream, which must be one."""
    async with AsyncClient(target, retry=ONCE, **options) as client:
        with pytest.raises(KibunError) as unary:
            await client.service_info()
        with pytest.raises(type(unary.value)) as stream:
            await client.conversation().turn().__aenter__()
        first, second = (error.value.message.partition(" (")[0] for error in (unary, stream))
        assert first == second
    assert "was lost" not in unary.value.message
    return unary.value.message


# ---- what is at the address


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """The address of something that accepts connections and answers with this, or hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1)
                    if answer is not None:
                        connection.sendall(answer)
                        time.sleep(0.2)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


async def test_a_name_that_has_no_address_is_no_lost_connection() -> None:
    text = await refusals("no-such-host.invalid:50051")
    assert text.startswith(
        "cannot find no-such-host.invalid:50051: the name 'no-such-host.invalid' has no address here"
    )
    assert "check its spelling" in text
    async with AsyncClient("no-such-host.invalid:50051") as client:
        with pytest.raises(UnavailableError, match=r"was not ready within 0\.2 s: cannot find no-such-host\.invalid"):
            await client.wait_until_ready(0.2)


async def test_an_address_where_nothing_listens() -> None:
    assert (await refusals("127.0.0.1:1")).startswith(
        "cannot reach 127.0.0.1:1: start a server there with `kibun serve`"
    )
    assert "or check the path" in await refusals("unix:/no/such/socket")


async def test_a_web_server_is_no_grpc_server() -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as target:
        assert (await refusals(target)).startswith(f"what listens at {target} is no gRPC server: check the port")
        assert "does not use TLS: leave out tls=True" in await refusals(target, tls=True)


async def test_something_that_hangs_up_may_want_tls() -> None:
    with listening(None) as target:
        text = await refusals(target)
        assert text.startswith(f"something listens at {target} but hangs up: if the server uses TLS, pass tls=True")
        assert "--tls or --ca" in text


def test_something_that_never_answers_is_not_said_to_be_absent() -> None:
    text = "connections to all backends failing; connection attempt timed out before receiving SETTINGS frame"
    assert "something listens at h:1 but does not answer" in explain_unavailable(text, "h:1", Credentials())


async def test_a_call_without_an_answer_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        async with AsyncClient(target, timeout_s=0.3) as client:
            with pytest.raises(DeadlineError, match=f"{target} did not answer within 0.3 s: check that a kibun server"):
                await client.service_info()


@pytest.mark.parametrize("text", ["Socket closed", "keepalive watchdog timeout", "GOAWAY received", ""])
def test_what_was_reached_before_is_lost(text: str) -> None:
    assert explain_unavailable(text, "h:1", Credentials()).startswith("the connection to h:1 was lost (")


# ---- proxies


async def test_a_proxy_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    far = "198.51.100.1:50051"  # of a network for documentation
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    text = await refusals(far)
    assert text.startswith(f"cannot reach {far} through the proxy of http_proxy in the environment: check that proxy")
    assert "add 198.51.100.1 to no_proxy" in text
    with listening(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", f"http://user:secret@{proxy}")
        text = await refusals(far, tls=True)
        assert "through the proxy of https_proxy" in text
        assert "secret" not in text
    assert "proxy" not in await refusals("127.0.0.1:1", tls=True), "what is meant for this machine does not leave it"


def test_who_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of("example.org:1") is None
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "localhost, .example.org,10.0.0.0/8")
    for target in ("a.example.org:1", "10.1.2.3:1", "127.0.0.1:1", "unix:/x"):
        assert proxy_of(target) is None, target
    for target in ("example.com:1", "dns:///example.com:1", "11.0.0.1:1"):
        assert proxy_of(target) == "http_proxy", target


# ---- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@contextlib.asynccontextmanager
async def grpc_server(
    certificates: Path | None, *, host: str = "127.0.0.1", mutual: bool = False
) -> AsyncIterator[int]:
    server = grpc.aio.server()
    if certificates is None:
        port = server.add_insecure_port(f"{host}:0")
    else:
        key, chain, ca = ((certificates / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
        credentials = grpc.ssl_server_credentials([(key, chain)], ca if mutual else None, mutual)
        port = server.add_secure_port(f"{host}:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_each_fault_of_tls_is_named(certificates: Path) -> None:
    ca = certificates / "ca.pem"
    async with grpc_server(None) as port:
        text = await refusals(f"127.0.0.1:{port}", root_certificates=ca)
        assert "the server there does not use TLS: leave out tls=True or root_certificates" in text
    async with grpc_server(certificates) as port:
        assert "if the server uses TLS, pass tls=True" in await refusals(f"127.0.0.1:{port}")
        text = await refusals(f"127.0.0.1:{port}", tls=True)
        assert "not signed by an authority that is trusted here" in text
        assert "--ca" in text
    async with grpc_server(certificates, host="127.0.0.2") as port:
        text = await refusals(f"127.0.0.2:{port}", root_certificates=ca)
        assert "its certificate is for another name" in text
        assert "in place of 127.0.0.2" in text
    async with grpc_server(certificates, mutual=True) as port:
        text = await refusals(f"127.0.0.1:{port}", root_certificates=ca)
        assert "if it requires client certificates, pass certificate_chain and private_key" in text


@pytest.mark.parametrize("name", ["root_certificates", "certificate_chain", "private_key"])
@pytest.mark.parametrize("content", [b"", b"no PEM", b"\x30\x82\x01\x0a"])
def test_what_is_no_pem_is_refused_by_name(name: str, content: bytes) -> None:
    whole = {
        "certificate_chain": b"-----BEGIN CERTIFICATE-----",
        "private_key": b"-----BEGIN EC PRIVATE KEY-----",
    }
    with pytest.raises(InvalidRequestError, match=f"{name} holds no PEM") as caught:
        Client("localhost:1", **{**whole, name: content})  # type: ignore[arg-type]
    assert caught.value.field == name


# ---- tokens


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that knows one token that is valid and one that has expired."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    known = {"valid": "", "old": " expires=2020-01-01"}
    lines = [f"lab {hashlib.sha256(token.encode()).hexdigest()}{more}\n" for token, more in known.items()]
    tokens.write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        arguments = ["--loader", "tests.support.stub_model:load", "--token-file", str(tokens)]
        with ServerProcess("stub", arguments) as server:
            yield server.target


async def test_a_missing_token_and_a_wrong_one_read_differently(guarded: str) -> None:
    missing = await refusals(guarded)
    assert missing.startswith(f"{guarded} requires a token, and none was given: pass token=")
    for token in ("wrong", "old", "v" * 5000):
        wrong = await refusals(guarded, token=token)
        assert wrong.startswith(f"{guarded} does not accept the token: check token=")
        assert token not in wrong.replace("token", "")
    for text in (missing, wrong):
        assert all(name in text for name in ("token=", "--token", "KIBUN_TOKEN"))
    async with AsyncClient(guarded) as client:
        await client.wait_until_ready(10)  # needs no token
        for call in (client.get_conversation, client.complete_conversation, client.delete_conversation):
            with pytest.raises(AuthenticationError, match="none was given"):
                await call("c")
        with pytest.raises(AuthenticationError, match="none was given"):
            await client.analyze(b"\0\0" * 16_000)
    async with AsyncClient(guarded, token="valid") as client:
        assert (await client.service_info()).models


@pytest.mark.parametrize("token", ["secret\n", "sec\tret", " secret", "sécret", "secret\0", "\t"])
def test_a_token_with_what_no_token_has_is_refused_before_it_is_sent(token: str) -> None:
    with pytest.raises(InvalidRequestError, match="the token begins or ends with a blank") as caught:
        Client("localhost:1", token=token)
    assert caught.value.field == "token"
    assert "secret" not in str(caught.value)


def test_a_web_server_in_earnest() -> None:
    """Python's own, as people have it running, and the sync client."""
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with Client(f"127.0.0.1:{server.server_port}") as client, pytest.raises(UnavailableError, match="is no gRPC"):
            client.service_info()
        server.shutdown()
        thread.join()


# ---- what gRPC's core writes itself


def test_grpcs_own_lines_stay_off_stderr(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without the right authority and one without TLS; both sides would log each handshake that fails."""

    def lines(*options: str) -> list[str]:
        command = [sys.executable, "-m", "kibun.client.main", "stream", str(DIALOGUE), "--server", server.target]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        return done.stderr.splitlines()

    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    own = ["--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key")]
    with ServerProcess("stub", ["--loader", "tests.support.stub_model:load", *own]) as server:
        for options in (["--tls"], []):
            assert [line.partition(":")[0] for line in lines(*options)] == ["kibun"]
        assert not [line for line in server.stderr.splitlines() if ".cc:" in line]
        monkeypatch.setenv("GRPC_VERBOSITY", "info")  # whoever asks for them gets them
        assert [line for line in lines("--tls") if ".cc:" in line]
