"""`kibun doctor`: which parts of this machine and installation work, and how to fix those that do not."""

import asyncio
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kibun.client.commands.connection import DEFAULT_SERVER, CaOption, Connection, ServerOption, TlsOption, TokenOption
from kibun.client.errors import KibunError
from kibun.client.installation import install_command, is_installed, is_there
from kibun.client.options import RetryPolicy

State = Literal["ok", "absent", "broken"]

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


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: State
    detail: str
    # False: kibun's client works without it.
    required: bool = False


def doctor(
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check this machine and this installation.

    The exit code is 1 when something is broken, not when it is merely absent.
    """
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
        asyncio.run(_server(Connection(server, token, tls, ca))),
    ]
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2, ensure_ascii=False))
    else:
        _show(findings)
    if any(finding.state == "broken" or (finding.required and finding.state != "ok") for finding in findings):
        raise typer.Exit(1)


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


async def _server(connection: Connection) -> Finding:
    name = f"server {connection.server}"
    async with connection.client(RetryPolicy(max_attempts=1)) as client:
        try:
            info = await client.service_info()
        except KibunError as error:
            return Finding(name, "absent", error.message)
    models = ", ".join(model.name for model in info.models)
    return Finding(name, "ok", f"kibun {info.server_version}, models: {models}")


def _show(findings: list[Finding]) -> None:
    colours = {"ok": "green", "absent": "yellow", "broken": "red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", ""):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        state = Text(finding.state, style=colours[finding.state])
        table.add_row(state, Text(finding.name), Text(finding.detail))  # Text: "kibun[mic]" is no markup
    Console().print(table)
