"""`kibun bridge` and `kibun console`: the contract as a WebSocket, and a page on top of it."""

import asyncio
import ipaddress
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlsplit

import typer

from kibun.client.bridge.app import BridgeOptions
from kibun.client.bridge.serving import BridgeServer
from kibun.client.commands.connection import (
    DEFAULT_SERVER,
    CaOption,
    CertOption,
    Connection,
    KeyOption,
    ServerOption,
    TlsOption,
    TokenOption,
)
from kibun.client.commands.failure import CommandError, UsageError

HostOption = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any that is free.")]
OriginOption = Annotated[
    list[str] | None,
    typer.Option("--origin", metavar="URL", help="Pages of this address may use it too; may be repeated."),
]
MaxSocketsOption = Annotated[int, typer.Option("--max-sockets", min=1, help="Sockets that may be open at once.")]
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
DEFAULT_MAX_SOCKETS = 64


def bridge(
    server: ServerOption = DEFAULT_SERVER,
    host: HostOption = DEFAULT_HOST,
    port: PortOption = DEFAULT_PORT,
    origin: OriginOption = None,
    max_sockets: MaxSocketsOption = DEFAULT_MAX_SOCKETS,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
) -> None:
    """Serve the contract to browsers, as a WebSocket.

    Pages of this machine may use it, and those named by --origin. --token is for sockets that bring none of their own:
    whoever reaches the bridge then has its rights.
    """
    connection = Connection(server, token, tls, ca, cert, key)
    made = make(connection, host, port, origin or [], max_sockets)
    typer.echo(f"kibun bridge: ws://{address(host, made.port)}/v1/stream, to {server}; Ctrl-C stops it")
    asyncio.run(made.run())


def console(
    server: ServerOption = DEFAULT_SERVER,
    host: HostOption = DEFAULT_HOST,
    port: PortOption = DEFAULT_PORT,
    origin: OriginOption = None,
    max_sockets: MaxSocketsOption = DEFAULT_MAX_SOCKETS,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
) -> None:
    """Serve a page that shows what the server hears: of a microphone or a recording, in the browser.

    It has all that `kibun bridge` has. Nothing of it comes from outside.
    """
    connection = Connection(server, token, tls, ca, cert, key)
    made = make(connection, host, port, origin or [], max_sockets, page=True)
    typer.echo(f"kibun console: http://{address(host, made.port)}, to {server}; Ctrl-C stops it")
    asyncio.run(made.run())


def make(
    connection: Connection,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    origins: list[str] | None = None,
    max_sockets: int = DEFAULT_MAX_SOCKETS,
    *,
    page: bool = False,
    demo: bool = False,
) -> BridgeServer:
    """A bridge that listens. Raises CommandError, InvalidRequestError."""
    connection.client()  # to refuse wrong options now
    if connection.token and not _is_loopback(host):
        raise UsageError(
            f"--token with --host {host} would give everybody who reaches the bridge the token's rights: leave it out, "
            "and have each page send its own"
        )
    options = BridgeOptions(
        client_of=lambda token: replace(connection, token=token or connection.token).client(),
        origins=[checked_origin(origin) for origin in origins or []],
        max_sockets=max_sockets,
        page=page,
        demo=demo,
    )
    try:
        return BridgeServer(options, host, port)
    except OSError as error:
        raise CommandError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another with --host and --port, 0 for any port"
        ) from None


def checked_origin(origin: str) -> str:
    """As browsers send it. Raises UsageError."""
    parts = urlsplit(origin.lower())
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise UsageError(f"--origin {origin}: write it as https://robot.example, with the port unless it is the usual")
    return f"{parts.scheme}://{parts.netloc}"


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
