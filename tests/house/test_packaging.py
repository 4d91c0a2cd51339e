"""What a user gets from `pip install`: in fresh virtual environments, from a wheel and in editable form."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support import ROOT

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

    def install(self, *what: str | Path) -> None:
        run(self.python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *what)


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


def test_editable_install(environment: Environment) -> None:
    environment.install("-e", ROOT)
    run(environment.python, "-c", CLIENT)
    where = run(environment.python, "-c", "import kibun.client; print(kibun.client.__file__)")
    assert Path(where.strip()).is_relative_to(ROOT)


@pytest.mark.parametrize("protobuf", ["5.29.6", "6.33.0", "7.36.2"])
def test_stubs_import_on_every_protobuf_we_allow(environment: Environment, wheel: Path, protobuf: str) -> None:
    run(environment.python, "-m", "pip", "install", "-q", wheel, f"protobuf=={protobuf}")
    run(environment.python, "-c", CLIENT)


@pytest.mark.timeout(900)
def test_the_wheel_serves_its_own_demo(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    environment.install(f"{wheel}[server]")
    done = subprocess.run(
        [environment.bin / "kibun", "demo", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    run(environment.python, "-c", "from transformers import HubertModel")
    assert sum("turn_result" in message for message in messages) >= 2
