"""TLS files as `kibun doctor` judges them: real certificates, each with one thing wrong."""

import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from kibun.client.checkup import certificates
from kibun.client.checkup.certificates import Pair
from kibun.client.checkup.finding import Finding
from tests.support.certificates import make_certificates

SERVER_OPTIONS = ("--tls-cert", "--tls-key")


def server_pair(folder: Path) -> Pair:
    return Pair(folder / "server.pem", folder / "server.key", "server", SERVER_OPTIONS)


def client_pair(folder: Path) -> Pair:
    return Pair(folder / "client.pem", folder / "client.key", "client", ("--cert", "--key"))


def broken(findings: list[Finding]) -> list[str]:
    return [f"{finding.name}: {finding.detail}" for finding in findings if finding.state == "broken"]


def test_a_good_pair_is_taken_under_its_name(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    findings = certificates.pair(server_pair(tmp_path), authorities=tmp_path / "ca.pem", names=["127.0.0.1"])
    assert [finding.state for finding in findings] == ["ok"] * 3
    assert "for 127.0.0.1, valid until " in findings[0].detail
    clients = certificates.pair(client_pair(tmp_path), authorities=tmp_path / "ca.pem", names=[])
    assert [finding.state for finding in clients] == ["ok"] * 2
    assert certificates.authorities(tmp_path / "ca.pem", "--ca").detail.startswith("test CA, valid until ")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"hours": (-2, -1)}, "expired at "),
        ({"hours": (1, 2)}, "is not valid before "),
        ({"usage": "client"}, "is for clients only"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(tmp_path: Path, made: dict[str, Any], said: str) -> None:
    make_certificates(tmp_path, **made)
    (text,) = broken(certificates.pair(server_pair(tmp_path), authorities=tmp_path / "ca.pem", names=["127.0.0.1"]))
    assert said in text


def test_one_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    make_certificates(tmp_path, hours=(-2000, 240))
    (first, *_) = certificates.pair(server_pair(tmp_path), authorities=None, names=[])
    assert (first.state, "10 days from now: renew it" in first.detail) == ("warning", True)
    make_certificates(tmp_path, hours=(-1, 23))  # one of a day, as some authorities give, is not always about to end
    (first, *_) = certificates.pair(server_pair(tmp_path), authorities=None, names=[])
    assert first.state == "ok"


def test_names_are_matched_as_a_client_matches_them(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    names = ["127.0.0.1", "::1", "localhost", "not a name", ""]
    _, *found, _ = certificates.pair(server_pair(tmp_path), authorities=tmp_path / "ca.pem", names=names)
    assert [finding.state for finding in found] == ["ok", *["broken"] * 4]
    assert "it covers 127.0.0.1 (subjectAltName)" in found[2].detail
    assert "not a host name or address" in found[4].detail


def test_another_authority_does_not_vouch_for_it(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_certificates(tmp_path)
    make_certificates(other)
    (text,) = broken(certificates.pair(server_pair(tmp_path), authorities=other / "ca.pem", names=[]))
    assert f"{other / 'ca.pem'} does not vouch for it" in text
    *_, unnamed = certificates.pair(server_pair(tmp_path), authorities=None, names=[])
    assert (unnamed.state, "clients need --ca" in unnamed.detail) == ("warning", True)
    *_, unnamed = certificates.pair(client_pair(tmp_path), authorities=None, names=[])
    assert "the server needs --tls-client-ca" in unnamed.detail


def test_a_chain_is_looked_at_from_its_first_certificate(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    own, ca = (tmp_path / name for name in ("server.pem", "ca.pem"))
    own.write_bytes(own.read_bytes() + ca.read_bytes())
    found = certificates.pair(server_pair(tmp_path), authorities=ca, names=["127.0.0.1"])
    assert [finding.state for finding in found] == ["ok"] * 3


def test_files_that_nobody_could_use(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = server_pair(tmp_path)

    def said() -> str:
        (text,) = broken(certificates.pair(files, authorities=None, names=["127.0.0.1"]))
        return text

    good = files.key.read_text()
    shutil.copy(tmp_path / "client.key", files.key)
    assert f"the key {files.key} belongs to another certificate: give --tls-key the key" in said()
    files.key.write_text(good.replace("-----BEGIN PRIVATE KEY-----\n", "-----BEGIN PRIVATE KEY-----\nx"))
    assert "cannot be used" in said()
    files.key.write_text("nothing")
    assert "has no PEM private key: --tls-key needs" in said()
    files.key.unlink()
    assert f"cannot read {files.key}: No such file or directory: give --tls-key" in said()
    files.key.write_text(good)
    files.certificate.write_bytes(b"\xff\x00")
    assert "no PEM certificate is in it: --tls-cert needs" in said()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to encrypt a key: apt-get install openssl")
def test_an_encrypted_key_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = server_pair(tmp_path)
    command: list[str | Path] = [
        "openssl",
        "pkey",
        "-in",
        files.key,
        "-aes256",
        "-passout",
        "pass:x",
        "-out",
        tmp_path / "new.key",
    ]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "new.key").rename(files.key)
    (text,) = broken(certificates.pair(files, authorities=None, names=[]))
    assert "is encrypted, and nobody is there to type its password: openssl pkey" in text


def test_authorities_that_vouch_for_nothing_any_more(tmp_path: Path) -> None:
    make_certificates(tmp_path, authority_hours=(-2, -1))
    ca = tmp_path / "ca.pem"
    expired = certificates.authorities(ca, "--ca")
    assert (expired.state, "test CA expired at " in expired.detail) == ("broken", True)
    old = ca.read_text()
    make_certificates(tmp_path)
    ca.write_text(old + ca.read_text())
    assert certificates.authorities(ca, "--ca").state == "warning"
    assert "each trusted for itself" in certificates.authorities(tmp_path / "server.pem", "--ca").detail
    ca.write_text("nothing")
    assert "no PEM certificate is in it" in certificates.authorities(ca, "--ca").detail
    ca.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert "is damaged" in certificates.authorities(ca, "--ca").detail
    assert "cannot read" in certificates.authorities(tmp_path / "absent", "--ca").detail


def test_a_port_that_speaks_no_tls_is_told(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = certificates.shown("127.0.0.1", port, tmp_path / "ca.pem", None)
        thread.join()
    assert found is not None
    assert (found.state, found.detail.startswith("no TLS there (")) == ("broken", True)
    assert certificates.shown("127.0.0.1", port, tmp_path / "ca.pem", None) is None
