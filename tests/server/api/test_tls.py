"""Certificates that no client would take: refused at the start and by a reload, with the reason."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from kibun.server.api.tls import Certificates
from kibun.server.errors import StartError
from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support.certificates import make_certificates
from tests.support.processes import until
from tests.support.scraping import scrape
from tests.support.serving import RunningServer, serve

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"hours": (-2, -1)}, "certificate has expired"),
    "not yet valid": ({"hours": (1, 2)}, "certificate is not yet valid"),
    "for clients": ({"usage": "client"}, "purpose"),
}


def certificates(folder: Path, ca: Path | None = None) -> Certificates:
    return Certificates(folder / "server.pem", folder / "server.key", ca)


@pytest.mark.parametrize("kind", BAD)
def test_a_certificate_that_no_client_would_take_is_refused(tmp_path: Path, kind: str) -> None:
    options, reason = BAD[kind]
    make_certificates(tmp_path, **options)
    with pytest.raises(StartError, match=rf"server\.pem: no client would accept it now: .*{reason}"):
        certificates(tmp_path)


def test_a_chain_is_looked_at_as_a_client_would(tmp_path: Path) -> None:
    """The authority's own certificate may come along; what is valid is told with its names and its end."""
    make_certificates(tmp_path)
    own, ca = (tmp_path / name for name in ("server.pem", "ca.pem"))
    assert "for 127.0.0.1, valid until" in str(certificates(tmp_path))
    own.write_bytes(own.read_bytes() + ca.read_bytes())
    assert "for 127.0.0.1, valid until" in str(certificates(tmp_path, ca))


def test_authorities_that_have_expired_let_no_client_in(tmp_path: Path) -> None:
    expired = tmp_path / "expired"
    expired.mkdir()
    make_certificates(tmp_path)
    make_certificates(expired, authority_hours=(-2, -1))
    with pytest.raises(StartError, match=r"--tls-client-ca .*: no certificate in it is valid now"):
        certificates(tmp_path, expired / "ca.pem")
    (expired / "ca.pem").write_bytes((expired / "ca.pem").read_bytes() + (tmp_path / "ca.pem").read_bytes())
    assert certificates(tmp_path, expired / "ca.pem")


@asynccontextmanager
async def secured(server: RunningServer, ca: bytes) -> AsyncIterator[Stub]:
    async with grpc.aio.secure_channel(server.target, grpc.ssl_channel_credentials(ca)) as channel:
        yield Stub(channel)


def refused(server: RunningServer, times: int) -> bool:
    return server.log.read_text().count("not reloaded") == times


async def test_a_reload_keeps_what_clients_accept(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    first = (tmp_path / "ca.pem").read_bytes()
    files = [f"--tls-cert={tmp_path / 'server.pem'}", f"--tls-key={tmp_path / 'server.key'}"]
    with serve(*files, "--metrics-port", "0") as server:
        for number, (options, reason) in enumerate([*BAD.values(), ({}, "belongs to the certificate")], 1):
            make_certificates(tmp_path, **options)
            if not options:
                shutil.copy(tmp_path / "client.key", tmp_path / "server.key")
            os.kill(server.process.pid, signal.SIGHUP)
            await until(partial(refused, server, number))
            assert reason in server.log.read_text()
            async with secured(server, first) as stub:
                await stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=10)
        assert scrape(server)("kibun_reload_failures_total") == 4
        make_certificates(tmp_path)
        os.kill(server.process.pid, signal.SIGHUP)
        await until(lambda: "kibun: reloaded certificates for 127.0.0.1, valid until" in server.log.read_text())
        async with secured(server, (tmp_path / "ca.pem").read_bytes()) as stub:
            await stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=10)
