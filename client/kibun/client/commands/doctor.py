"""`kibun doctor`: which parts of this machine, installation and deployment work, and how to fix those that do not."""

import asyncio
import json
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kibun.client.channel import is_local
from kibun.client.checkup import certificates, clock, ports, store
from kibun.client.checkup.finding import Finding, State
from kibun.client.client import AsyncClient
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
from kibun.client.commands.failure import UsageError
from kibun.client.errors import InvalidRequestError, KibunError
from kibun.client.installation import install_command, is_installed, is_there
from kibun.client.options import RetryPolicy

MIN_PYTHON = (3, 11)
_REQUIRED = ("grpcio", "grpcio-status", "protobuf", "numpy")
_OPTIONAL = {
    "typer": "cli",
    "rich": "cli",
    "soundfile": "cli",
    "sounddevice": "mic",
    "torch": "server",
    "transformers": "server",
    "safetensors": "server",
    "webrtcvad-wheels": "server",
    "soxr": "server",
    "onnxruntime": "server",
    "silero-vad": "server",
}

# Each runs in a separate Python: a broken torch must not crash the doctor, and the client never imports it.
_TORCH = "import torch; print(torch.__version__ + ',', torch.cuda.device_count() or 'no', 'CUDA device(s)')"
_TRANSFORMERS = "import transformers; transformers.HubertModel; print(transformers.__version__)"
_PROBE_TIMEOUT_S = 60


_DEPLOYMENT = "A server's deployment"  # of --help


def doctor(
    context: typer.Context,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    store_address: Annotated[
        str | None,
        typer.Option(
            "--store",
            envvar="KIBUN_STORE",
            metavar="memory|URL",
            help="Store as given to kibun serve: whether it answers, rights, version, memory, persistence, clock.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="KIBUN_TLS_CERT",
            metavar="PEM",
            help="A server's certificate: dates, key, purpose, names, authority (of --ca, else the system's).",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(envvar="KIBUN_TLS_KEY", metavar="PEM", help="Its private key.", rich_help_panel=_DEPLOYMENT),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="KIBUN_TLS_CLIENT_CA",
            metavar="PEM",
            help="Authorities of the certificates of clients; --cert is held to them.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="What clients call the server, so what --tls-cert has to cover. Repeatable.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    port: Annotated[
        list[int] | None,
        typer.Option(
            envvar="KIBUN_PORT",
            min=0,
            max=65535,
            help="A port to listen on: free, or taken by what. Repeatable.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="KIBUN_HOST", help="Address to listen on.", rich_help_panel=_DEPLOYMENT)
    ] = "127.0.0.1",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check this machine, this installation and, where options name it, what a server is to run with.

    In the environment that kibun serve gets, it looks at what that would use.

    The exit code is 1 when something is broken, as is a server that --server names and that does not answer; 0 when it
    is merely absent or a warning; 2 when called wrongly.
    """
    connection = Connection(server, token, tls, ca, cert, key)
    own = _pair(cert, key, "client", ("--cert", "--key"))
    servers = _pair(tls_cert, tls_key, "server", ("--tls-cert", "--tls-key"))
    if name and servers is None:
        raise UsageError("--name is for the names of a certificate: give its files by --tls-cert and --tls-key")
    findings = [
        _python(),
        *_packages(),
        _probe(
            "torch",
            _TORCH,
            needed=f"serve: {install_command('server')}",
            fix="reinstall it: pip install --force-reinstall torch",
        ),
        _probe(
            "transformers",
            _TRANSFORMERS,
            needed=f"serve: {install_command('server')}",
            fix="where torchaudio is to blame, which kibun does without: pip uninstall torchaudio; else reinstall it",
        ),
        _espeak(),
        *_microphones(),
        *_bundles(),
        *_files(ca, own, servers, tls_client_ca, name or []),
    ]
    if store_address is not None:
        findings += store.examine(store_address)
    findings += [ports.listening(host, number) for number in port or []]
    default = context.get_parameter_source("server")
    findings += _server(connection, own, is_named=default is not None and default.name != "DEFAULT")
    if not any(finding.name.startswith("clock") for finding in findings):
        findings.append(clock.alone())
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2, ensure_ascii=False))
    else:
        _show(findings)
    if any(finding.state == "broken" or (finding.required and finding.state != "ok") for finding in findings):
        raise typer.Exit(1)


def _pair(
    certificate: Path | None, key: Path | None, role: certificates.Role, options: tuple[str, str]
) -> certificates.Pair | None:
    """Raises UsageError for one without the other."""
    if certificate is not None and key is not None:
        return certificates.Pair(certificate, key, role, options)
    if certificate is not None or key is not None:
        there, missing = options if key is None else reversed(options)
        raise UsageError(f"{there} goes with {missing}: a certificate and its private key are of use together only")
    return None


def _python() -> Finding:
    wanted = ".".join(map(str, MIN_PYTHON))
    detail = f"{platform.python_version()} ({platform.platform(terse=True)})"
    if sys.version_info >= MIN_PYTHON:
        return Finding("python", "ok", detail, required=True)
    return Finding("python", "broken", f"{detail}: kibun needs {wanted} or newer", required=True)


def _packages() -> list[Finding]:
    findings = []
    for name in (*_REQUIRED, *_OPTIONAL):
        required = name in _REQUIRED
        try:
            findings.append(Finding(f"package {name}", "ok", version(name), required))
        except PackageNotFoundError:
            fix = (
                f"reinstall it: {sys.executable} -m pip install {name}"
                if required
                else install_command(_OPTIONAL[name])
            )
            findings.append(Finding(f"package {name}", "absent", fix, required))
    return findings


def _probe(name: str, code: str, *, needed: str, fix: str, broken: State = "broken") -> Finding:
    """Whether a package that may be absent can be imported; `broken`: the state of one that cannot."""
    if not is_there(name):
        return Finding(name, "absent", f"needed to {needed}")
    try:
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name, broken, f"its import took more than {_PROBE_TIMEOUT_S} s: {fix}")
    if result.returncode == 0:
        return Finding(name, "ok", f"imports: {result.stdout.strip()}")
    lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
    return Finding(name, broken, f"does not import ({lines[-1]}): {fix}")


def _espeak() -> Finding:
    path = shutil.which("espeak-ng")
    if path is None:
        return Finding("espeak-ng", "absent", "needed for `kibun synth` only: apt-get install espeak-ng")
    return Finding("espeak-ng", "ok", path)


def _microphones() -> list[Finding]:
    if not is_there("sounddevice"):
        return [Finding("microphones", "absent", f"needed for `kibun stream mic`: {install_command('mic')}")]
    from kibun.client.commands.mic import input_devices

    try:
        import sounddevice

        devices = input_devices(sounddevice)
    except Exception as error:
        # PortAudio reports its troubles with several classes, one of them made by itself.
        return [Finding("microphones", "absent", f"{error}: e.g. apt-get install libportaudio2")]
    if not devices:
        return [Finding("microphones", "absent", "none was found: plug one in, or check the system's permissions")]
    return [Finding(f"microphone mic:{index}", "ok", f"{name}, {rate_hz} Hz") for index, name, rate_hz in devices]


def _bundles() -> list[Finding]:
    spec = find_spec("kibun.models")
    roots = [Path(root) / "bundles" for root in (spec.submodule_search_locations or ())] if spec else []
    bundles = sorted(config.parent for root in roots if root.is_dir() for config in root.glob("*/config.json"))
    if not bundles:
        fix = "make one with `kibun models build`" if is_installed("server") else install_command("server")
        return [Finding("bundles", "absent", f"no model comes with this installation: {fix}")]
    return [Finding(f"bundle {bundle.name}", "ok", str(bundle)) for bundle in bundles]


def _files(
    ca: Path | None,
    own: certificates.Pair | None,
    servers: certificates.Pair | None,
    client_ca: Path | None,
    names: list[str],
) -> list[Finding]:
    """All TLS files that were named."""
    findings = []
    for path, option in ((ca, "--ca"), (client_ca, "--tls-client-ca")):
        if path is not None:
            findings.append(certificates.authorities(path, option))
    unreadable = {finding.name for finding in findings if finding.state == "broken"}
    for pair, trusted in ((servers, ca), (own, client_ca)):
        if pair is not None and f"authorities {trusted}" not in unreadable:
            findings += certificates.pair(pair, authorities=trusted, names=names)
    return findings


def _server(connection: Connection, own: certificates.Pair | None, *, is_named: bool) -> list[Finding]:
    """Whether a server answers, with which certificate, and what its clock reads; if not, who has its port.

    `is_named`: somebody wants one there. Otherwise that nothing can be reached is no fault.
    """
    findings = []
    host, _, number = connection.server.rpartition(":")
    host = host.strip("[]")
    has_port = number.isdigit() and not host.startswith(("unix", "dns", "ipv4", "ipv6", "xds"))
    if connection.secure and has_port:
        shown = certificates.shown(host, int(number), connection.ca, own)
        findings += [shown] if shown is not None else []
    try:
        client = connection.client(RetryPolicy(max_attempts=1))
    except InvalidRequestError as error:
        if not connection.secure:
            raise
        return [*findings, Finding(f"server {connection.server}", "broken", f"not asked: {error.message}")]
    answered = asyncio.run(_ask(client))
    if answered[0].state != "ok" and has_port and is_local(connection.server):
        who = ports.who_listens(int(number))
        text = f"; who listens there is {who}" if who else "; nothing listens there"
        state: State = "broken" if is_named else "warning" if who else "absent"
        answered[0] = replace(answered[0], state=state, detail=answered[0].detail + text)
    return [*findings, *answered]


async def _ask(client: AsyncClient) -> list[Finding]:
    name = f"server {client.target}"
    async with client:
        try:
            await client.service_info()  # connects, which takes a while, and makes a clock read late
            asked_at = time.time()
            info = await client.service_info()
            answered_at = time.time()
        except KibunError as error:
            return [Finding(name, "broken", error.message)]
    models = ", ".join(model.name for model in info.models)
    findings = [Finding(name, "ok", f"kibun {info.server_version}, models: {models}")]
    if info.server_time is not None:
        findings.append(clock.compared("server", asked_at, info.server_time.timestamp(), answered_at))
    return findings


def _show(findings: list[Finding]) -> None:
    colours = {"ok": "green", "absent": "dim", "warning": "yellow", "broken": "red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", ""):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        state = Text(finding.state, style=colours[finding.state])
        table.add_row(state, Text(finding.name), Text(finding.detail))  # Text: "kibun[mic]" is no markup
    console = Console()
    console.print(table)
    counts = [(state, sum(finding.state == state for finding in findings)) for state in ("broken", "warning")]
    if any(count for _, count in counts):
        console.print(", ".join(f"{count} {state}" for state, count in counts if count))
