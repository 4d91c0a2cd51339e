"""The rooms of the house: what exists where, and who may import whom."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "server": "server",
    "client": "client",
    "models": "models",
    "training": "training",
    "bench": "benchmarks",
    "v1": "protos",
}

# room: the rooms it may import
ALLOWED_ROOMS = {
    "v1": {"v1"},
    "models": {"models"},
    "server": {"server", "v1", "models"},
    "client": {"client", "v1"},
    "training": {"training", "models"},
    "bench": {"bench", "training", "models", "server", "client", "v1"},
}
# package: the modules of the server that may import it (session and the rest are tested without any of these)
SERVER_DOORS = {
    "grpc": {"service", "gate", "health", "tls", "serving"},
    "grpc_status": {"gate"},
    "grpc_health": {"health"},
    "grpc_reflection": {"serving"},
    "google": {"service", "convert", "status"},
    "kibun.v1": {"service", "convert"},
    "torch": {"worker"},
    "transformers": {"worker"},
    "kibun.models": {"worker", "serving"},
    "typer": {"main"},
    "redis": {"redis_link"},
    "prometheus_client": {"exporter"},
    "opentelemetry": {"tracing"},
}


def sources(room: str) -> list[Path]:
    return [p for p in (ROOT / ROOMS[room] / "kibun" / room).rglob("*.py") if "_pb2" not in p.name]


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at any depth: lazily too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely, so that a reader sees the room"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    assert sources(room), "the room is empty"
    for path in sources(room):
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("kibun.")}
        assert rooms <= ALLOWED_ROOMS[room], f"{path} reaches into {rooms - ALLOWED_ROOMS[room]}"


@pytest.mark.parametrize("package", SERVER_DOORS)
def test_inside_the_server_only_its_doors_import(package: str) -> None:
    for path in sources("server"):
        if any(name == package or name.startswith(f"{package}.") for name in imports(path)):
            assert path.stem in SERVER_DOORS[package], f"{path} imports {package}"


def test_the_client_needs_no_torch() -> None:
    for path in sources("client"):
        assert not {n.split(".")[0] for n in imports(path)} & {"torch", "transformers", "torchaudio", "soxr"}


def test_nothing_hides_the_namespace_package() -> None:
    assert not list(ROOT.glob("*/kibun/__init__.py")), "kibun/__init__.py hides every other room"


def test_every_room_is_typed_and_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]
    for room, folder in ROOMS.items():
        assert (ROOT / folder / "kibun" / room / "py.typed").exists()
        assert folder in build["dev-mode-dirs"]
        assert f"{folder}/kibun" in build["targets"]["wheel"]["packages"]


def test_client_imports_without_torch_where_torch_is_installed() -> None:
    code = (
        "import sys, kibun.client\n"
        "heavy = {'torch', 'transformers', 'torchaudio', 'typer', 'kibun.models', 'kibun.server'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_committed_stubs_match_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, as in the extra dev")
    proto = "kibun/v1/speech_analysis.proto"
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *out, proto]
    subprocess.run(command, check=True, cwd=ROOT / "protos")
    generated = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert len(generated) == 3
    for path in generated:
        committed = ROOT / "protos" / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes(), f"{committed.name} is stale: see CONTRIBUTING.md"
