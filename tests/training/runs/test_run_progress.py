"""What a run shows of its progress: every stage to its end, on standard error."""

import re
from pathlib import Path

from typer.testing import CliRunner

from kibun.training.commands import train_app
from kibun.training.runs.folder import read_log


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
        rf"conversation heads without some speakers: 30 of 30, {seconds}",
    ]
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == len(expected), result.stderr
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    assert "epoch" not in result.stdout
