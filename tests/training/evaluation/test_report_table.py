"""One table in three forms, and the command that compares two models."""

import functools
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from kibun.training.eval_commands import eval_app
from kibun.training.evaluation.predictions import read_predictions, write_predictions
from kibun.training.evaluation.report_table import Cell, Row, Table, show, stars, to_markdown, to_rich
from kibun.training.evaluation.significance import compare_predictions
from tests.support.commands import invoke
from tests.support.predictions import utterances

TABLE = Table(
    "Table X: CCC",
    ("model", "valence", "arousal"),
    (
        Row(
            "baseline", (Cell.of_seeds([0.70, 0.69, 0.71], published=0.69), Cell(0.5, stars="**", interval=(0.4, 0.6)))
        ),
        Row("a|b", (Cell(-0.001), Cell(None))),
        Row("n", (Cell(12), Cell("all"))),
    ),
    ("* is a star.", "Second note."),
)


def terminal(table: Table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(to_rich(table))
    return console.export_text()


@pytest.mark.parametrize(
    ("p", "mark"), [(None, ""), (0.05, ""), (0.049, "*"), (0.01, "*"), (0.0099, "**"), (0.001, "**"), (0.0009, "***")]
)
def test_stars(p: float | None, mark: str) -> None:
    assert stars(p) == mark


def test_a_cell_of_seeds_has_their_mean_and_sample_deviation() -> None:
    cell = Cell.of_seeds([1.0, 2.0, 3.0])
    assert (cell.value, cell.sd) == (2.0, 1.0)
    assert Cell.of_seeds([0.5]) == Cell(0.5)


def test_the_terminal_shows_values_published_and_difference() -> None:
    text = terminal(TABLE)
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    assert ["baseline", "0.70 ± 0.01", "0.50 [0.40, 0.60] **"] in lines
    assert ["published", "0.69", "–"] in lines
    assert ["difference", "+0.01", "–"] in lines
    assert ["a|b", "0.00", "–"] in lines  # no minus before zero
    assert ["n", "12", "all"] in lines
    assert text.index("n  ") < text.index("* is a star.") < text.index("Second note.")


def test_a_narrow_terminal_truncates_nothing() -> None:
    assert "…" not in terminal(TABLE, width=30)


def test_a_file_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    wide = Table("Wide", ("", *(f"column number {index}" for index in range(12))), (Row("r", (Cell(0.5),) * 12),))
    show([wide], {})
    assert "column number 11" in capsys.readouterr().out


def test_markdown_escapes_markup() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "**Table X: CCC**",
        "",
        "| model | valence | arousal |",
        "|---|--:|--:|",
        r"| baseline | 0.70 ± 0.01 | 0.50 [0.40, 0.60] \*\* |",
        "| &nbsp;&nbsp;published | 0.69 | – |",
        "| &nbsp;&nbsp;difference | +0.01 | – |",
        r"| a\|b | 0.00 | – |",
        "| n | 12 | all |",
        "",
        r"\* is a star.  ",
        "Second note.",
    ]


def test_show_prints_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    show([TABLE], {"ccc": 0.7}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"ccc": 0.7}
    show([TABLE, TABLE], {}, as_markdown=True)
    assert capsys.readouterr().out == to_markdown(TABLE) + "\n\n" + to_markdown(TABLE) + "\n"
    with pytest.raises(ValueError, match="exclude each other"):
        show([TABLE], {}, as_json=True, as_markdown=True)
    with pytest.raises(ValueError, match="JSON"):
        show([TABLE], {"x": float("nan")}, as_json=True)


def test_cells_refuse_nan_and_tables_refuse_rows_of_another_length() -> None:
    for sd, interval in ((float("inf"), None), (None, (0.1, float("nan")))):
        with pytest.raises(ValueError, match="finite numbers only"):
            Cell(0.5, sd=sd, interval=interval)
    with pytest.raises(ValueError, match="finite numbers only"):
        Cell(float("nan"))
    with pytest.raises(ValueError, match=r"row 'r' has 1 cells for \('a', 'b'\)"):
        Table("T", ("", "a", "b"), (Row("r", (Cell(1),)),))


# kibun eval compare


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    made = []
    for index, offset in enumerate((0.0, 0.1, 2.0)):
        made.append(tmp_path / f"{index}.jsonl")
        write_predictions(made[-1], utterances(60, offset))
    return made[0], made[1], made[2]


run = functools.partial(invoke, eval_app, "compare")


def test_compare_prints_both_models_and_the_difference(files: tuple[Path, Path, Path]) -> None:
    one, two, other = files
    arguments = ("--first", one, "--first", two, "--second", other, "--draws", 300, "--seed", 5)
    data = json.loads(run(*arguments, "--json"))
    runs = [[read_predictions(path) for path in side] for side in ((one, two), (other,))]
    expected = compare_predictions(runs[0], runs[1], "valence", draws=300, seed=5)
    assert data["p"] == expected.p
    assert (data["difference"], data["stars"], data["points"]) == (expected.difference, expected.stars, 60)
    text = run(*arguments)
    assert f"{expected.first:.3f}" in text
    assert "60 scores of 4 speaker-conversations" in text
    assert run(*arguments, "--markdown").startswith("**Do the two models differ?**")


def test_compare_refuses_wrong_files_and_dimensions(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, two, _ = files
    short = tmp_path / "short.jsonl"
    write_predictions(short, utterances(50))
    assert "10 utterances are missing in the second file" in run("--first", one, "--second", short, code=2)
    assert "mood" in run("--first", one, "--second", two, "--dimension", "mood", code=2)
    assert "name the estimate to use" in run("--first", one, "--second", two, "--dimension", "openness", code=2)
    assert "no utterance has a label of arousal" in run(
        "--first", one, "--second", two, "--dimension", "arousal", code=2
    )
    assert "cannot be read" in run("--first", tmp_path / "no", "--second", two, code=2)
