"""`kibun doctor` on what a server is to run with: files, ports, stores, clocks."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kibun.client.checkup.finding import Finding
from kibun.client.commands import doctor
from tests.support.certificates import make_certificates
from tests.support.commands import Kibun
from tests.support.serving import RunningServer, serve


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[RunningServer]:
    """It asks its clients for certificates."""
    options = {"cert": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
    with serve(*(f"--tls-{option}={files / file}" for option, file in options.items())) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is looked at elsewhere, and takes seconds."""
    monkeypatch.setattr(doctor, "_probe", lambda name, code, needed, fix: Finding(name, "ok", ""))


def examined(kibun: Kibun, code: int, *arguments: Any) -> dict[str, dict[str, Any]]:
    assert kibun("doctor", "--json", *arguments) == code, kibun.out + kibun.err
    return {finding["name"]: finding for finding in json.loads(kibun.out)["findings"]}


def test_a_server_that_asks_for_certificates(kibun: Kibun, files: Path, server: RunningServer) -> None:
    own = ("--cert", files / "client.pem", "--key", files / "client.key")
    found = examined(kibun, 0, "--server", server.target, "--ca", files / "ca.pem", *own)
    assert "models: stub" in found[f"server {server.target}"]["detail"]
    assert "for 127.0.0.1, valid until" in found[f"certificate of {server.target}"]["detail"]
    assert found["clock, server"]["state"] == "ok"
    assert found[f"client certificate {files / 'client.pem'}"]["state"] == "ok"
    name = server.target.replace("127.0.0.1", "localhost")
    found = examined(kibun, 1, "--server", name, "--ca", files / "ca.pem", *own)
    assert "use a name in --server that it covers" in found[f"certificate of {name}"]["detail"]


def test_another_authority_than_the_servers(kibun: Kibun, files: Path, server: RunningServer, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    found = examined(kibun, 1, "--server", server.target, "--ca", tmp_path / "ca.pem")
    certificate = found[f"certificate of {server.target}"]
    assert "is not its authority: give --ca the one that signed it" in certificate["detail"]
    found = examined(kibun, 1, "--server", server.target, "--ca", files / "ca.pem")
    asked = found[f"server {server.target}"]
    assert asked["state"] == "broken"
    assert "(on the command line --cert and --key)" in asked["detail"]
    assert asked["detail"].endswith(f"(process {server.process.pid})")
    found = examined(kibun, 1, "--server", server.target, "--ca", tmp_path / "server.key")
    assert found[f"server {server.target}"]["detail"].startswith("not asked: root_certificates holds no PEM")
    assert found["clock"]["state"] == "absent"


def test_what_a_server_is_to_run_with(kibun: Kibun, files: Path, server: RunningServer) -> None:
    options = ("--tls-cert", files / "server.pem", "--tls-key", files / "server.key", "--tls-client-ca")
    more = ("--ca", files / "ca.pem", "--name", "127.0.0.1", "--name", "robot.example", "--port", server.port)
    found = examined(kibun, 1, *options, files / "ca.pem", *more, "--server", "127.0.0.1:1", "--store", "memory")
    states = {name: finding["state"] for name, finding in found.items()}
    assert states["server certificate, name 127.0.0.1"] == "ok"
    assert states["server certificate, name robot.example"] == "broken"
    assert states["server certificate, authority"] == "ok"
    assert states["store memory"] == "ok"
    assert states[f"port {server.port} of 127.0.0.1"] == "broken"
    assert f"(process {server.process.pid})" in found[f"port {server.port} of 127.0.0.1"]["detail"]
    assert found["server 127.0.0.1:1"]["detail"].endswith("nothing listens there")


def test_a_server_that_is_named_has_to_answer(kibun: Kibun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(kibun, 1, "--server", "127.0.0.1:1")
    assert found["server 127.0.0.1:1"]["state"] == "broken"
    monkeypatch.setenv("KIBUN_SERVER", "127.0.0.1:1")
    assert examined(kibun, 1)["server 127.0.0.1:1"]["state"] == "broken"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"table {hashlib.sha256(b'right').hexdigest()}\n")
    tokens.chmod(0o600)
    with serve("--token-file", str(tokens)) as closed:
        name = f"server {closed.target}"
        assert "requires a token" in examined(kibun, 1, "--server", closed.target)[name]["detail"]
        assert examined(kibun, 0, "--server", closed.target, "--token", "right")[name]["state"] == "ok"


def test_the_environment_of_a_server_is_examined(
    kibun: Kibun, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(files / "client.key", tmp_path / "server.key")
    for name, value in (("CERT", files / "server.pem"), ("KEY", tmp_path / "server.key")):
        monkeypatch.setenv(f"KIBUN_TLS_{name}", str(value))
    monkeypatch.setenv("KIBUN_STORE", "redis://:hunter2@127.0.0.1:1")
    assert kibun("doctor") == 1
    said = " ".join(kibun.out.split())
    assert "belongs to another certificate" in said
    assert said.endswith("2 broken")
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-cert", "x.pem"], "--tls-cert goes with --tls-key"),
        (["--tls-key", "x.key"], "--tls-key goes with --tls-cert"),
        (["--key", "x.key"], "--key goes with --cert"),
        (["--name", "robot.example"], "--name is for the names of a certificate"),
        (["--port", "70000"], "less than or equal to 65535"),
        (["--server", "nowhere"], "'nowhere' is not an address: write HOST:PORT"),
        (["--server", "robot.example:1", "--token", "x"], "would travel to robot.example:1 in clear text"),
    ],
)
def test_it_is_told_what_was_called_wrongly(kibun: Kibun, arguments: list[str], message: str) -> None:
    assert kibun("doctor", *arguments) == 2
    assert message in " ".join(kibun.err.replace("│", "").split())
    assert kibun.out == ""
