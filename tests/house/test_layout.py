"""The rooms of the house: what exists where, and who may import whom."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDERS = {
    "v1": "protos",
    "models": "models",
    "server": "server",
    "client": "client",
    "training": "training",
    "bench": "benchmarks",
}

# The architecture. Each row is a room of `kibun` (a folder, or a file that is a room of its own) and the rooms that it
# imports. A row names rows above it alone, so imports only ever point upwards in this table.
# A bare "server" is what lies in kibun/server itself and has no row of its own: the process.
HOUSE = {
    "v1": "",
    "models.types": "",
    "models": "models.types",
    "models.building": "models.types models",
    # ---- bytes -> audio -> session -> inference, and what is learned -> conversation
    "server.errors": "",
    "server.audio": "models.types",
    "server.observability": "models.types server.errors",
    "server.inference": "models.types models server.observability",
    "server.conversation": "models.types server.errors server.audio",
    "server.session": "models.types server.errors server.audio server.observability server.inference"
    " server.conversation",
    "server.api": "v1 models.types server.errors server.audio server.observability server.inference server.conversation"
    " server.session",
    "server": "models.types models server.errors server.audio server.observability server.inference"
    " server.conversation server.session server.api",
    # ---- the SDK, and the command line on top of it
    "client": "v1",
    "client.bridge": "v1 client",
    "client.recordings": "client",
    "client.checkup": "client",
    "client.commands": "client client.bridge client.recordings client.checkup",
    "client.main": "client client.commands",
    # ---- corpora -> runs -> experiments
    "training.errors": "",
    "training.options": "",
    "training.losses": "",
    "training.fit": "",
    "training.progress": "",
    "training.filter_bank": "models.types models",
    "training._transformers": "models",
    "training.audio": "models.types training.errors",
    "training.corpora": "models.types models training.errors training.audio",
    "training.evaluation": "models.types models training.errors training.corpora",
    "training.runs": "models.types models models.building training.errors training.losses training.fit"
    " training.progress training._transformers training.audio training.corpora training.evaluation",
    "training.experiments": "models.types training.errors training.options training.corpora"
    " training.evaluation training.runs",
    "training.experiments.labels": "models.types models training.errors training.options training.losses training.fit"
    " training.corpora training.evaluation training.runs training.experiments",
    "training.demo_tiny": "models.types models models.building training.losses training.filter_bank training.audio"
    " training.corpora training.evaluation training.runs",
    "training.simulation": "models.types models training.errors training.options training.losses training.fit"
    " training.progress training.filter_bank training.corpora training.evaluation",
    "training.voices": "models.types models models.building training.errors training.losses training.filter_bank"
    " training.audio training.corpora training.evaluation training.runs",
    "training": "models models.building training.errors training.options training.corpora training.evaluation"
    " training.runs training.experiments training.experiments.labels training.demo_tiny training.simulation"
    " training.voices",
    # ---- what all of it costs, and what breaks it
    "bench.support": "models.types models server.inference training.evaluation",
    "bench.faults": "v1 models.types server client training.evaluation bench.support",
    "bench.load": "v1 models.types server.audio server.inference server.conversation server.session server client"
    " training.evaluation bench.support",
    "bench.cost": "models.types models server.audio server.inference server.conversation server.session"
    " training.corpora training.evaluation training.runs bench.support",
    "bench.accuracy": "models.types models server.audio client training.errors training.audio training.corpora"
    " training.evaluation training.demo_tiny training.voices bench.support",
    "bench": "models.types models client training.errors training.evaluation training.simulation bench.support"
    " bench.faults bench.load bench.cost bench.accuracy",
}

# Every other package (but numpy, which may be anywhere): the rooms or single modules that import it.
DOORS = {
    "grpc": "server.api.gate server.api.health server.api.messages server.api.service server.api.tls server.serving"
    " client.channel client.status client.transport bench.faults bench.load",
    "grpc_health": "server.api.health client.client bench.load.soak_clients",
    "grpc_reflection": "server.serving",
    "grpc_status": "server.api.gate",
    "google": "server.observability.tracing server.conversation.codec server.api.messages server.api.requests"
    " server.api.responses server.api.service server.api.status client bench.faults.stub_client",
    "torch": "models server.inference.worker training bench",
    "transformers": "models._transformers training._transformers",
    "huggingface_hub": "models.hub",
    "accelerate": "training.runs",
    "safetensors": "models.weights models.building.checkpoint training.runs",
    "webrtcvad": "server.audio.vad_webrtc",
    "onnxruntime": "server.audio.vad_silero",
    "soxr": "server.audio.decoder client.mono training bench.accuracy",
    "soundfile": "client.audio_file training bench.cost bench.accuracy",
    "sounddevice": "client.commands",
    "prometheus_client": "server.observability.exporter server.observability.joined server.observability.metrics",
    "opentelemetry": "server.observability.tracing",
    "redis": "server.conversation.redis_connection",
    "starlette": "client.bridge",
    "uvicorn": "client.bridge",
    "typer": "server.main client.main client.commands models.building.commands training bench",
    "rich": "client.commands training",
    "matplotlib": "client.recordings.plot training.evaluation.plots training.simulation.plot bench",
    "pandas": "client.recordings.formats client.recordings.frame",
    "pympi": "client.recordings.annotations",
    "scipy": "training",
    "statsmodels": "training.evaluation.metrics",
    "jiwer": "training.evaluation.metrics",
}


def modules() -> dict[str, Path]:
    """Every module of the product, as "server.audio.vad"; a package goes by its own name."""
    found = {}
    for room, folder in FOLDERS.items():
        home = ROOT / folder / "kibun"
        for path in (home / room).rglob("*.py"):
            if "_pb2" not in path.name:
                found[".".join(path.relative_to(home).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


@cache
def imports(path: Path) -> set[str]:
    """Every module that the file imports, at any depth: lazily too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely, so that a reader sees the room"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return found


MODULES = modules()
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def room_of(name: str) -> str:
    """The row of HOUSE that a module, or a name in it, belongs to."""
    parts = name.split(".")
    return next(room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in HOUSE)


def lies_in(module: str, rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms.split())


def test_the_table_reads_one_way() -> None:
    rows = list(HOUSE)
    for number, (room, imported) in enumerate(HOUSE.items()):
        assert set(imported.split()) <= set(rows[:number]), f"{room} imports a room below it"
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert packages <= set(HOUSE), "a folder that is not in the table"
    assert set(HOUSE) <= {*MODULES, "v1"}, "a room that is not there"


@pytest.mark.parametrize("room", HOUSE)
def test_a_room_imports_what_the_table_says_and_nothing_else(room: str) -> None:
    found: dict[str, str] = {}
    for module, path in MODULES.items():
        if room_of(module) == room:
            ours = [name.removeprefix("kibun.") for name in imports(path) if name.startswith("kibun.")]
            found |= {room_of(name): module for name in ours if room_of(name) != room}
    allowed = set(HOUSE[room].split())
    assert not found.keys() - allowed, {f"{by} imports {name}" for name, by in found.items() if name not in allowed}
    assert not allowed - found.keys(), "the table says more than is so"


def test_the_architecture_page_shows_the_same_map() -> None:
    """docs/architecture.md; it leaves out what every room may import."""
    everybodys = {"models.types", "server.errors", "training.errors", "training.options"}
    shown: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `") and line.count("|") == 4:
            rooms, _, imported = (re.findall(r"`([\w.]+)`", cell) for cell in line.strip("|").split("|"))
            shown |= {room: set(imported) for room in rooms if room in HOUSE}
    assert shown.keys() == HOUSE.keys() - everybodys
    leaves = {
        f"training.{name}" for name in ("losses", "fit", "progress", "filter_bank", "_transformers")
    }  # share one line
    for room in shown.keys() - leaves:
        assert shown[room] == set(HOUSE[room].split()) - everybodys, room


def test_other_packages_come_in_by_their_doors() -> None:
    used: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for package in {name.split(".")[0] for name in imports(path)}:
            if package not in sys.stdlib_module_names and package not in ("kibun", "numpy"):
                used.setdefault(package, set()).add(module)
    assert used.keys() == DOORS.keys()
    for package, users in used.items():
        assert not (strangers := {m for m in users if not lies_in(m, DOORS[package])}), f"{strangers}: {package}"
        doors = DOORS[package].split()
        assert not (idle := [d for d in doors if not any(lies_in(m, d) for m in users)]), f"{idle}: no {package}"


def test_a_room_says_what_it_is_for() -> None:
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            said = ast.get_docstring(ast.parse(path.read_text()))
            assert said, f"{name}: two lines at the top of its __init__.py, please"


def test_tests_lie_in_rooms_of_the_same_names() -> None:
    homes = {ROOT / "tests" / room: ROOT / folder / "kibun" / room for room, folder in FOLDERS.items()}
    for path in TESTS:
        for tests, home in homes.items():
            if path.is_relative_to(tests):
                assert (home / path.parent.relative_to(tests)).is_dir(), f"{path}: no room has this name"


def test_no_test_module_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        borrowed = [name for name in imports(path) if re.match(r"tests\..*\btest_", name)]
        assert not borrowed, f"{path} imports {borrowed}: what two modules need lies in tests/support"


def test_no_two_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    # The contract names its messages once; the client and the server have a class each for some of them.
    twins = ["client", "server"]
    shared = {n: at for n, at in homes.items() if len(at) > 1 and sorted(m.split(".")[0] for m in at) != twins}
    assert not shared


def test_nothing_hides_the_namespace_package() -> None:
    assert not list(ROOT.glob("*/kibun/__init__.py")), "kibun/__init__.py hides every other room"


def test_every_room_is_typed_and_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]
    for room, folder in FOLDERS.items():
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


@pytest.mark.parametrize(
    ("folder", "proto", "kinds"),
    [
        ("protos", "kibun/v1/speech_analysis.proto", ("python", "pyi", "grpc_python")),
        ("server", "kibun/server/conversation/store.proto", ("python", "pyi")),
    ],
)
def test_committed_stubs_match_the_proto(folder: str, proto: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, as in the extra dev")
    out = [f"--{kind}_out={tmp_path}" for kind in kinds]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / folder}", *out, proto]
    subprocess.run(command, check=True, cwd=ROOT / folder)
    generated = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert len(generated) == len(kinds)
    for path in generated:
        committed = ROOT / folder / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes(), f"{committed.name} is stale: see CONTRIBUTING.md"
