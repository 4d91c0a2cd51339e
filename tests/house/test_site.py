"""The site of the documentation: it builds, asks for nothing from elsewhere, and its tables are complete."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from docs.site import reasons
from kibun.bench.support.speech_like import lay_out
from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.browser import chromium
from tests.support.programs import of_the_documentation

#: A server's that does not start, and the reasons of an end and of a gap.
NO_ERRORS = {"LOAD_FAILED", "HALF_CLOSE", "COMPLETED", "DELETED", "OTHER_SERVERS_LOST", "SLOW_WATCHER"}


def test_every_reason_that_tests_meet_is_in_the_table_of_errors() -> None:
    """Tests know reasons from servers and clients that run; the table knows them from the code."""
    met = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "reason":
                met |= {
                    text for side in node.comparators for text in texts(side) if re.fullmatch(r"[A-Z_0-9]{4,}", text)
                }
    known = {**reasons.of_server(), **reasons.of_warnings(), **reasons.of_client()}
    assert len(met) > 40
    assert not met - known.keys() - NO_ERRORS


def texts(node: ast.expr) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def test_every_reason_in_the_code_is_in_the_table_of_errors() -> None:
    """By another, coarser look at the code."""
    makers = "Failure|invalid|_exhausted|StreamWarning|AudioError|ErrorDetails"
    made = rf'(?:{makers})\(\s*(?:[\w.]+,\s*|reason=)?"([A-Z_0-9]+)"'
    for folder, known in (
        (reasons.SERVER, {**reasons.of_server(), **reasons.of_warnings()}),
        (reasons.CLIENT, reasons.of_client()),
    ):
        found = {name for path in folder.rglob("*.py") for name in re.findall(made, path.read_text(encoding="utf-8"))}
        assert len(found) > 10
        assert not found - known.keys()


def test_the_table_of_errors_says_what_the_code_says() -> None:
    known = reasons.of_server()
    assert known["SAMPLE_RATE_OUT_OF_RANGE"].kinds == ["INVALID_ARGUMENT"]
    assert known["SAMPLE_RATE_OUT_OF_RANGE"].texts == ["sample rate must be 8,000..48,000 Hz, not *sample_rate_hz*"]
    assert known["TENANT_CONVERSATION_LIMIT"].kinds == ["RESOURCE_EXHAUSTED"]
    assert known["INTERNAL"].kinds == ["INTERNAL"]
    assert "NO_SPEECH" in reasons.of_warnings()
    assert "NO_SPEECH" not in known
    assert {"SLOW_WATCHER", "OTHER_SERVERS_LOST"} <= reasons.of_gaps().keys()
    assert reasons.of_client()["CLIENT_CLOSED"].kinds == ["MisuseError"]
    without = {
        name for found in (known, reasons.of_warnings(), reasons.of_client()) for name in found if not found[name].texts
    }
    assert without <= {"INVALID_JOB"}, "a text that is computed is not found: write it where it is raised"


def test_the_program_for_dialogue_managers_runs(demo_server: ServerProcess, tmp_path: Path) -> None:
    (program,) = of_the_documentation("docs/dialogue.md")
    assert "127.0.0.1:50051" in program
    out = run(program.replace("127.0.0.1:50051", demo_server.target), tmp_path)
    assert "warning NO_SPEECH" in out
    assert out.splitlines()[-1] == "turn 0 None"


def test_the_program_for_researchers_runs(demo_server: ServerProcess, tmp_path: Path) -> None:
    (program,) = of_the_documentation("docs/research.md")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    audio = lay_out([("silence", 0.3), ("speech", 1.5), ("silence", 0.8)]).audio
    soundfile.write(recordings / "a.wav", audio, 16_000, subtype="PCM_16")
    out = run(program.replace("127.0.0.1:50051", demo_server.target), tmp_path)
    assert re.fullmatch(r"recordings/a.wav \[\(\d\.\d+, \d\.\d+, \d\.\d+, \d\.\d+\)\]\n", out)


def test_the_notebook_runs(demo_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, as in the extra dev")
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel, as in the extra dev")
    pytest.importorskip("ipykernel", reason="needs ipykernel, as in the extra dev")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in cells if cell.outputs or cell.execution_count], "clear its outputs"
    monkeypatch.setenv("KIBUN_SERVER", demo_server.target)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    spoken = "".join(output["text"] for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert spoken.splitlines()[-1].startswith("final    to 3.70 s: Emotion(valence=")
    shown = [output["data"] for cell in cells for output in cell.outputs if "data" in output]
    assert [data for data in shown if "image/png" in data]
    assert any("mira" in data["text/plain"] and "extraversion" in data["text/plain"] for data in shown)


def test_the_face_of_a_robot_follows_the_example(demo_server: ServerProcess, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "robot.md").read_text("utf-8")
    (program,) = of_the_documentation("docs/robot.md")
    assert "--conversation robot-1" in page
    (tmp_path / "face.py").write_text(program.replace("127.0.0.1:50051", demo_server.target), encoding="utf-8")
    face = subprocess.Popen([sys.executable, "face.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert face.stdout is not None
    try:
        assert face.stdout.readline() == "watching robot-1\n"
        options = ["--server", demo_server.target, "--conversation", "robot-1", "--speed", "0"]
        command = [sys.executable, str(ROOT / "examples" / "android_agent.py"), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=100)
        shown = face.communicate(timeout=60)[0].splitlines()
    finally:
        face.kill()
    assert face.returncode == 0, "it ends with the conversation"
    finals = [line for line in shown if re.fullmatch(r"mira final [+-]\d\.\d\d [+-]\d\.\d\d", line)]
    assert len(finals) == 6, "of nine utterances, the first three are what is usual"


@pytest.mark.slow
def test_the_commands_of_the_page_on_deployment_work(tmp_path: Path) -> None:
    for tool in ("bash", "openssl", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} on the PATH")
    (commands,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text("utf-8"), re.DOTALL)
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        grpc_port, metrics_port = (found.getsockname()[1] for found in (one, other))
    commands = commands.replace("50051", str(grpc_port)).replace("9464", str(metrics_port))
    script = f"trap 'kill %1; wait' EXIT\nset -e\n{commands}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"server localhost:{grpc_port}" in done.stdout


def run(program: str, folder: Path) -> str:
    (folder / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("material", reason="needs mkdocs-material, as in the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings, as in the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages_of(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_it_builds_without_a_warning_and_asks_for_nothing_from_elsewhere(site: Path) -> None:
    search = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    for word in ("sample_rate_hertz", "sample_rate_hz", "AUDIO_BACKLOG", "SpeakerBaseline", "interim_interval_ms"):
        assert word in search
    for page in pages_of(site):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=.?https?:[^>]*>", text), page
        prose = re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)
        assert not re.findall(r"^[-|] .*|<p>[-|] .*", prose, re.MULTILINE), f"{page}: lists, tables need a blank line"
    python = (site / "python.html").read_text(encoding="utf-8")
    assert "8000..48000; the server resamples." in python, "comments of attributes are shown"
    for name in ("allow_plaintext_token", "allow_incomplete", "on_progress"):
        assert name in python, "so are parameters of constructors and functions"


async def test_pages_opened_as_files_are_searched_and_fit_a_telephone(site: Path) -> None:
    pages = pages_of(site)
    async with chromium() as browser:
        page = await browser.new_page(viewport={"width": 390, "height": 844})
        wide = []
        for path in pages:
            await page.goto(path.as_uri())
            if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append(path.name)
        assert not wide
        await page.set_viewport_size({"width": 1280, "height": 900})
        await page.goto((site / "index.html").as_uri())
        await page.click("input[name=query]")
        await page.keyboard.type("sample_rate_hertz")
        await page.wait_for_selector(".md-search-result__item", timeout=60_000)
        assert "Encodings and rates" in await page.inner_text(".md-search-result__list")
