"""Options that select the server, shared by all commands that talk to one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from kibun.client.channel import check_target
from kibun.client.client import AsyncClient
from kibun.client.options import RetryPolicy

DEFAULT_SERVER = "127.0.0.1:50051"

ServerOption = Annotated[
    str, typer.Option("--server", "-s", envvar="KIBUN_SERVER", metavar="HOST:PORT", help="Server to use.")
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="KIBUN_TOKEN", help="Bearer token (better given by environment).")
]
TlsOption = Annotated[
    bool, typer.Option("--tls", envvar="KIBUN_TLS", help="Use TLS and trust the system's authorities.")
]
CaOption = Annotated[
    Path | None, typer.Option("--ca", envvar="KIBUN_CA", metavar="PEM", help="Use TLS and trust these authorities.")
]
CertOption = Annotated[
    Path | None,
    typer.Option("--cert", envvar="KIBUN_CERT", metavar="PEM", help="Own certificate, for servers that ask for one."),
]
KeyOption = Annotated[Path | None, typer.Option("--key", envvar="KIBUN_KEY", metavar="PEM", help="Its private key.")]
ModelOption = Annotated[str, typer.Option("--model", envvar="KIBUN_MODEL", help="Model to use; default: the server's.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print every response as one JSON line, and nothing else.")]


@dataclass(frozen=True)
class Connection:
    """Which server to use, and how."""

    server: str
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        check_target(self.server)

    @property
    def secure(self) -> bool:
        """Whether TLS is used."""
        return self.tls or self.ca is not None or self.cert is not None

    def client(self, retry: RetryPolicy | None = None) -> AsyncClient:
        """A client of that server; to be made within the event loop that uses it."""
        return AsyncClient(
            self.server,
            token=self.token,
            tls=self.tls,
            root_certificates=self.ca,
            certificate_chain=self.cert,
            private_key=self.key,
            retry=retry,
        )
