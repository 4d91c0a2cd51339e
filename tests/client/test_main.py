"""The command `kibun`: help without heavy imports, commands found by name, missing packages named."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from urllib.parse import quote

import pytest
import typer

from kibun.client import main as cli
from kibun.client.installation import EXTRA_OF, install_command
from tests.support import ROOT

HEAVY = ("torch", "transformers", "grpc", "google.protobuf", "numpy", "soundfile", "kibun.server", "kibun.models")


def kibun(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kibun.client.main", *arguments], capture_output=True, text=True, timeout=timeout_s
    )


def test_help_lists_every_command() -> None:
    result = kibun("--help")
    assert result.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert name in result.stdout
        assert command.help in " ".join(result.stdout.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]])
def test_top_level_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, json\n"
        "from kibun.client.main import main\n"
        "try: main(json.loads(sys.argv[1]))\n"
        "except SystemExit: pass\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True)
    assert json.loads(result.stderr.splitlines()[-1]) == []


def test_the_sdk_imports_neither_torch_nor_a_server() -> None:
    code = (
        "import sys, grpc\n"
        "from kibun.client import AsyncClient, Client, StreamConfig, UtteranceResult\n"
        "bad = [m for m in ('torch', 'transformers', 'typer', 'rich', 'soundfile', 'numpy', 'kibun.server') "
        "if m in sys.modules]\n"
        "assert not bad, bad"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_name_of_the_sdk_can_be_had() -> None:
    import kibun.client

    assert set(kibun.client.__all__) == set(kibun.client._EXPORTS)
    for name, module in kibun.client._EXPORTS.items():
        assert getattr(kibun.client, name) is getattr(importlib.import_module(f"kibun.client.{module}"), name)
    source = ast.parse(Path(kibun.client.__file__).read_text())
    imports = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
    for_type_checkers = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    assert for_type_checkers == {name: f"kibun.client.{module}" for name, module in kibun.client._EXPORTS.items()}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = kibun.client.nonsense


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kibun {cli.version_text()}\n"
    assert cli.version_text()[0].isdigit()


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-command"]) == 2
    assert "no-such-command" in capsys.readouterr().err


def test_every_command_can_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    """Each name in the table leads to a function or an application that prints its own help."""
    for name in cli.COMMANDS:
        assert run([name, "--help"]) == 0, name
        assert f"kibun {name}" in capsys.readouterr().out


LIGHT = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

blocked = json.loads(sys.argv[1])
sys.meta_path.insert(0, Block())
from kibun.client.main import main
main(sys.argv[2:])
"""


def without(extras: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`kibun` where the packages of these extras are not installed, as far as it can see."""
    blocked = json.dumps([name for name, extra in EXTRA_OF.items() if extra in extras])
    return subprocess.run(
        [sys.executable, "-c", LIGHT, blocked, *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_points_only_to_what_is_installed() -> None:
    listed = [name for name, command in cli.COMMANDS.items() if command.extra in ("cli", "console")]
    done = without({"server", "train", "tensorboard"}, "--help")
    commands, _, rest = done.stdout.partition("Not installed here: ")
    rows = [line.split()[1] for line in commands.partition("Commands")[2].splitlines() if line.startswith("│ ")]
    assert rows == listed
    rest = " ".join(rest.split())
    assert rest.startswith("demo, serve, models; add with: ")
    assert "'.[server]'" in rest
    assert "'.[train]'" in rest
    assert "Not installed here" not in kibun("--help").stdout
    of_group = " ".join(without({"train"}, "train", "--help").stdout.split())
    assert "Not installed here; add with: " in of_group
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["bench", "front"], "train"),
        (["bench", "paper", "--quick"], "train"),
        (["train", "pr", "--config", "x", "--out", "y"], "train"),
        (["serve", "--model", "demo-tiny"], "server"),
        (["models", "list"], "server"),
        (["stream", "mic"], "mic"),
        (["console"], "console"),
    ],
)
def test_a_command_whose_extra_is_missing_says_what_installs_it(arguments: list[str], extra: str) -> None:
    done = without({"server", "train", "mic", "console"}, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line == f"kibun: this command needs: {install_command(extra)}"
    assert line.endswith(f"pip install -c constraints.txt -e '.[{extra}]'"), "the tests run in a clone"


@pytest.mark.parametrize("origin", ["index", "wheel", "clone", "another folder"])
def test_the_command_that_installs_more_fits_the_installation(tmp_path: Path, origin: str) -> None:
    site, clone = tmp_path / "site", tmp_path / "a clone"
    for folder in (site / "kibun" / "client", site / "kibun-9.dist-info", clone):
        folder.mkdir(parents=True)
    shutil.copy(cli.__file__.replace("main.py", "installation.py"), site / "kibun" / "client")
    (site / "kibun-9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: kibun\nVersion: 9\n")
    if origin != "index":
        address = f"{clone}/kibun.whl" if origin == "wheel" else str(clone)
        content = {"url": f"file://{quote(address)}", "dir_info": {}}
        (site / "kibun-9.dist-info" / "direct_url.json").write_text(json.dumps(content))
    if origin in ("clone", "wheel"):
        (clone / "pyproject.toml").touch()
        (clone / "constraints.txt").touch()
    code = "from kibun.client.installation import install_command; print(install_command('train'))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    there, _, command = done.stdout.strip().rpartition(" && ")
    if origin == "clone":
        assert there == f"cd '{clone}'"
        assert command.endswith("pip install -c constraints.txt '.[train]'")
    else:
        assert there == ""
        assert command.endswith("pip install 'kibun[train]'")


def test_what_can_stand_in_the_environment_is_documented() -> None:
    table = (ROOT / "docs" / "operations.md").read_text()
    variables = {}
    for name in ("serve", "stream", "analyze", "doctor", "demo"):
        app = typer.Typer()
        command = cli.COMMANDS[name]
        app.command()(getattr(import_module(command.module), command.attribute))
        options = typer.main.get_command(app).params
        variables[name] = {str(option.envvar): option.opts[0] for option in options if option.envvar}
    for variable, option in variables["serve"].items():
        assert re.search(rf"\| `{variable}`[^|]*\| `{option}` \|", table), variable
    shared = {"KIBUN_SERVER", "KIBUN_TOKEN", "KIBUN_TLS", "KIBUN_CA", "KIBUN_CERT", "KIBUN_KEY"}
    examined = variables["doctor"].keys() - shared
    assert all(variables["doctor"][name] == variables["serve"][name] for name in examined)
    assert variables["stream"].keys() == variables["analyze"].keys() == shared | {"KIBUN_MODEL"}
    assert all(f"`{variable}`" in table for variable in shared)
    assert set(re.findall(r"`(KIBUN_[A-Z_]+)`", table)) == shared | variables["serve"].keys()


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [("serve", "webrtcvad", "server"), ("stream", "soundfile", "cli"), ("stream", "sounddevice", "mic")],
)
def test_a_missing_package_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, missing: str, extra: str
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli, "import_module", fail)
    assert run([command]) == 2
    assert capsys.readouterr().err == f"kibun: this command needs: {install_command(extra)}\n"


def test_a_missing_module_of_our_own_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'kibun.server.nonsense'", name="kibun.server.nonsense")

    monkeypatch.setattr(cli, "import_module", fail)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["serve"])


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return int(caught.value.code or 0)


def test_proto_prints_where_the_contract_is_without_the_packages_of_the_command_line() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('typer', 'rich', 'grpc', 'numpy')))\n"  # None: cannot be imported
        "from kibun.client.main import main\n"
        "main(['proto'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(done.stdout.strip())
    assert path == ROOT / "protos/kibun/v1/speech_analysis.proto"
    assert "service SpeechAnalysisService" in path.read_text(encoding="utf-8")
