"""The command `kibun`: help without heavy imports, commands found by name, missing packages named."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kibun.client import main as cli

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

    for name in kibun.client.__all__:
        assert getattr(kibun.client, name).__name__ == name
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
    assert capsys.readouterr().err == f"kibun: this command needs: pip install 'kibun[{extra}]'\n"


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
