"""What a user gets from `pip install`: in fresh virtual environments, from a wheel and in editable form.

With `-s` it prints the figures of the tables in README.md and docs/sdk.md: how long an installation takes, and how
large it is.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

import kibun.client
from kibun.bench.support.speech_like import lay_out
from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.programs import of_the_documentation

CLIENT = "import kibun.client, kibun.v1.speech_analysis_pb2, kibun.v1.speech_analysis_pb2_grpc"
SNIPPET = """
from tests.support import ROOT
from kibun.client import AsyncClient

async def main() -> None:
    async with AsyncClient("127.0.0.1:50051") as client:
        reveal_type(client)
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("kibun-*.whl"))


class Environment:
    """A separate virtual environment."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"

    def install(self, *what: str | Path, constraints: Path = ROOT / "constraints.txt") -> None:
        run(self.python, "-m", "pip", "install", "-q", "-c", constraints, *what)

    def has(self) -> dict[str, str]:
        """What is installed: name → version."""
        listed = json.loads(run(self.python, "-m", "pip", "list", "--format", "json"))
        return {package["name"].lower(): package["version"] for package in listed}

    def size_mb(self) -> float:
        files = [path.lstat() for path in self.bin.parent.rglob("*") if path.is_file() and not path.is_symlink()]
        return sum(file.st_size for file in files) / 1e6


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


def test_the_wheel_alone_is_a_client(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    environment.install(wheel)
    run(environment.python, "-c", CLIENT)
    done = subprocess.run([environment.bin / "kibun", "--help"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'kibun[cli]'" in done.stderr
    assert Path(run(environment.bin / "kibun", "proto").strip()).is_relative_to(environment.bin.parent)
    # A folder of the user's own with the name of a room does not shadow it.
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    subprocess.run([environment.python, "-c", CLIENT], check=True, cwd=tmp_path)


def test_type_checkers_see_the_installed_wheel(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    environment.install(wheel, "mypy", "types-protobuf")
    program = tmp_path / "program.py"
    program.write_text(SNIPPET)
    seen = run(environment.python, "-m", "mypy", "--strict", program)
    assert 'Revealed type is "kibun.client' in seen


# -- each installation, and the first thing that it is for


class User:
    """Who has installed something: in a folder with a recording, beside a server that runs."""

    def __init__(self, environment: Environment, folder: Path, target: str) -> None:
        self.environment, self.folder, self.target = environment, folder, target
        audio = lay_out([("silence", 0.3), ("speech", 1.5), ("silence", 0.8)]).audio
        soundfile.write(folder / "speech.wav", audio, 16_000, subtype="PCM_16")

    def kibun(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.environment.bin / "kibun", *arguments], cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def first_program(user: User) -> None:
    program = of_the_documentation("README.md")[0].replace("127.0.0.1:50051", user.target)
    command: list[str | Path] = [user.environment.python, "-c", program]
    done = subprocess.run(command, cwd=user.folder, capture_output=True, text=True, check=False)
    assert "Emotion(valence=" in done.stdout, done.stderr


def stream(user: User) -> None:
    assert "utterance_result" in user.kibun("stream", "speech.wav", "--server", user.target, "--json")


def console(user: User) -> None:
    command: list[str | Path] = [user.environment.bin / "kibun", "console", "--server", user.target, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            (address,) = re.findall(r"http://[\d.:]+", line)
            with urllib.request.urlopen(address) as page:
                assert b"<title>" in page.read()
        finally:
            process.terminate()


def analyze(user: User) -> None:
    user.kibun("analyze", "speech.wav", "--server", user.target, "-f", "parquet", "-o", "rows.parquet")
    assert (user.folder / "rows.parquet").read_bytes()[:4] == b"PAR1"


def demo(user: User) -> None:
    messages = [json.loads(line) for line in user.kibun("demo", "--json").splitlines()]
    assert sum("turn_result" in message for message in messages) >= 2
    run(user.environment.python, "-c", "from transformers import HubertModel")


def corpus(user: User) -> None:
    user.kibun("synth", "world", "--audio", "--dialogues", "3", "--out", "world")
    assert (user.folder / "world" / "manifest.jsonl").exists()


USES: dict[str, Callable[[User], None]] = {
    "": first_program,
    "[cli]": stream,
    "[console]": console,
    "[analyze]": analyze,
    "[server]": demo,
    "[train]": corpus,
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
@pytest.mark.parametrize("extra", USES, ids=lambda extra: extra or "client")
def test_each_installation_does_what_it_is_for(
    environment: Environment, wheel: Path, demo_server: ServerProcess, tmp_path: Path, extra: str, editable: bool
) -> None:
    before, begin = environment.size_mb(), time.monotonic()
    environment.install(*(["-e", f"{ROOT}{extra}"] if editable else [f"{wheel}{extra}"]))
    took_s = time.monotonic() - begin
    print(f"\n.{extra} {'editable' if editable else 'wheel'}: {environment.size_mb() - before:.0f} MB, {took_s:.0f} s")
    where = run(environment.python, "-c", "import kibun.client; print(kibun.client.__file__)")
    assert Path(where.strip()).is_relative_to(ROOT) == editable
    USES[extra](User(environment, tmp_path, demo_server.target))


# -- beside the packages of somebody's application


@pytest.mark.parametrize("protobuf", ["5.29.6", "6.33.6", "7.36.2"])
def test_a_stream_works_on_every_protobuf_we_allow(
    environment: Environment, wheel: Path, demo_server: ServerProcess, tmp_path: Path, protobuf: str
) -> None:
    """Its server may have another one. As docs/sdk.md has it: constraints.txt without protobuf and what goes by it."""
    pins = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    (tmp_path / "others.txt").write_text("".join(pin for pin in pins if not re.match("protobuf==|grpcio-", pin)))
    environment.install(wheel, f"protobuf=={protobuf}", constraints=tmp_path / "others.txt")
    assert environment.has()["protobuf"] == protobuf
    run(environment.python, "-c", CLIENT)
    first_program(User(environment, tmp_path, demo_server.target))


# What an application imports of each framework.
FRAMEWORKS = {
    "pipecat-ai": "pipecat.processors.frame_processor, pipecat.serializers.protobuf, pipecat.tests.utils",
    "livekit-agents": "livekit.agents, livekit.rtc",
    "roslibpy": "roslibpy",
    "retico-core": "retico_core",
    "pika": "pika",
}

ASYNC = """
import asyncio

from kibun.client import AsyncClient, AudioFile

async def main():
    async with AsyncClient({target!r}) as client:
        async with client.conversation("robot").turn(audio=AudioFile("speech.wav")) as turn:
            print((await turn.result(timeout_s=600.0)).emotion)

asyncio.run(main())
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_and_kibun_share_an_environment(
    environment: Environment, wheel: Path, demo_server: ServerProcess, tmp_path: Path, framework: str
) -> None:
    """Under constraints.txt as it is, without torch, and in one process in either order of imports."""
    if framework == "retico-core" and not Path("/usr/include/portaudio.h").exists():
        pytest.skip("retico-core builds PyAudio: apt install gcc portaudio19-dev")
    before = environment.size_mb()
    environment.install(f"{wheel}[cli]", framework)
    print(f"\n{framework} with kibun[cli]: {environment.size_mb() - before:.0f} MB")
    run(environment.python, "-m", "pip", "check")
    assert "torch" not in environment.has()
    user = User(environment, tmp_path, demo_server.target)
    theirs = f"import {FRAMEWORKS[framework]}"
    for imports in ([theirs, CLIENT], [CLIENT, theirs]):
        program = "\n".join([*imports, ASYNC.format(target=user.target)])
        done = subprocess.run(
            [environment.python, "-c", program], cwd=user.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Emotion(valence=" in done.stdout


# -- a type checker of the user's own


def test_pyright_finds_nothing_in_the_documentations_programs(
    environment: Environment, wheel: Path, tmp_path: Path
) -> None:
    """In basic mode, beside an installed wheel; and of the SDK's interface it knows every type that is its own."""
    environment.install(wheel, "basedpyright")
    sources = tmp_path / "src"
    sources.mkdir()
    for page in ("README.md", "docs/dialogue.md", "docs/files.md", "docs/research.md", "docs/robot.md", "docs/sdk.md"):
        for number, program in enumerate(of_the_documentation(page)):
            (sources / f"{Path(page).stem}_{number}.py").write_text(program)
    for example in (ROOT / "examples").glob("*.py"):
        if "from kibun.client" in (source := example.read_text()):  # not one that does without the SDK
            (sources / example.name).write_text(source)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "basic", "include": ["src"]}))
    assert (errors := pyright(environment, tmp_path)) == []
    program = (sources / "sdk_0.py").read_text()
    (sources / "sdk_0.py").write_text(program.replace("timeout_s=10.0", 'timeout_s="10"'))
    errors = pyright(environment, tmp_path)
    assert len(errors) == 1, errors
    assert "timeout_s" in errors[0]


def pyright(environment: Environment, project: Path) -> list[str]:
    """What it has to say of a user's project."""
    command: list[str | Path] = [
        environment.bin / "basedpyright",
        "--outputjson",
        "--pythonpath",
        environment.python,
        "-p",
        project,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] >= 8, done.stdout
    return [f"{Path(item['file']).name}: {item['message']}" for item in found["generalDiagnostics"]]


def test_pyright_knows_the_types_of_the_interface(environment: Environment, wheel: Path) -> None:
    """All but those of messages, whose constructors take a bare Mapping in the stubs that protoc writes."""
    environment.install(wheel, "basedpyright")
    command: list[str | Path] = [
        environment.bin / "basedpyright",
        "--verifytypes",
        "kibun.client",
        "--ignoreexternal",
        "--outputjson",
    ]
    paths = {"PATH": f"{environment.bin}:/usr/bin:/bin", "VIRTUAL_ENV": str(environment.bin.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
    found = json.loads(done.stdout)["typeCompleteness"]
    print(f"\ncompleteness {found['completenessScore']:.1%}: {found['exportedSymbolCounts']}")
    interface = set(kibun.client._EXPORTS.values())
    said = [
        (symbol["name"], diagnostic["message"])
        for symbol in found["symbols"]
        for diagnostic in symbol["diagnostics"]
        if symbol["isExported"] and symbol["name"].split(".")[2] in interface
    ]
    own = [item for item in said if "missing type annotation" in item[1] or "is unknown" in item[1]]
    assert not own
