"""How far a run is: one bar at a time on a terminal, plain lines elsewhere, and all of it on standard error."""

import io
import re

from rich.console import Console

from kibun.training.progress import Progress


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
