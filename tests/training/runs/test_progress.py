"""How far a run is: one bar at a time on a terminal, plain lines elsewhere, and all of it on standard error."""

import io
import re
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from kibun.training.commands import train_app
from kibun.training.runs.folder import read_log
from kibun.training.runs.progress import Progress


def shown(output: io.StringIO) -> list[str]:
    return output.getvalue().splitlines()


def test_off_a_terminal_there_are_plain_lines() -> None:
    output = io.StringIO()
    progress = Progress(every_s=0.0, console=Console(file=output, width=20))
    with progress.stage("training", 3) as stage:
        for _step in range(3):
            stage.advance()
            stage.note("evaluating")
        progress.line("[a] line that is longer than the console is wide")
    assert shown(output)[:3] == [
        "training: 1 of 3",
        "training: 2 of 3",
        "[a] line that is longer than the console is wide",
    ]
    assert re.fullmatch(r"training: 3 of 3, \d+ s", shown(output)[3])
    seldom = io.StringIO()
    with Progress(every_s=3600.0, console=Console(file=seldom)).stage("predicting", 100) as stage:
        for _step in range(100):
            stage.advance()
    assert len(shown(seldom)) == 1


def test_on_a_terminal_a_bar_moves_and_its_lines_stay_above_it() -> None:
    output = io.StringIO()
    progress = Progress(console=Console(file=output, force_terminal=True, width=100))
    for name in ("training", "predicting"):
        with progress.stage(name, 4) as stage:
            stage.advance(3)
            stage.note("evaluating")
            progress.line(f"{name} says")
            stage.note("")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    for name in ("training", "predicting"):
        assert re.search(rf"[\r\n]{name} says\n", text), "a line of its own"
        assert re.search(rf"{name}, evaluating .* 3/4", text)
    assert re.search(r"training: 3 of 4, \d+ s", text)
    assert text.index("training: 3 of 4") < text.index("predicting, evaluating"), "one bar after the other"


def test_other_processes_are_silent() -> None:
    output = io.StringIO()
    progress = Progress(shown=False, console=Console(file=output))
    progress.line("x")
    with progress.stage("training", 2) as stage:
        stage.advance(2)
    assert output.getvalue() == ""
    assert stage.done == 2


def test_a_run_shows_every_stage_to_its_end(world: Path) -> None:
    command = ["pr", "--manifest", str(world / "corpus" / "manifest.jsonl"), "--model.start", str(world / "hubert")]
    settings = [
        "--training.epochs",
        "3",
        "--training.batch",
        "8",
        "--training.patience",
        "1",
        "--training.conversation_steps",
        "6",
    ]
    settings += ["--training.learning_rate", "1e-9", "--training.head_learning_rate", "1e-9"]
    result = CliRunner().invoke(train_app, [*command, *settings, "--out", str(world / "shown")])
    assert result.exit_code == 0, result.output
    number, seconds = r"-?\d+\.\d{4}", r"\d+ s"
    log = read_log(world / "shown")
    expected = [
        r"frames of the frozen trunk: 80 utterances, .*",
        *([rf"frames of the trunk: \d+ of \d+, {seconds}"] if "frames of the trunk" in result.stderr else []),
        *(
            rf"epoch {line['epoch']:g} of 3, step {line['step']} of 18: loss {number}, dev score {number}, "
            + ("best so far" if at == 0 else r"(best so far|not better for 1 of 1 evaluations)")
            for at, line in enumerate(log)
        ),
        rf"training: {log[-1]['step']} of 18, {seconds}",
        rf"predicting: 80 of 80, {seconds}",
        rf"conversation head: 6 of 6, {seconds}",
    ]
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == len(expected), result.stderr
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    assert "epoch" not in result.stdout
