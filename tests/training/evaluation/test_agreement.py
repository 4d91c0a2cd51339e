"""Table I: the published figures from the published annotations, the dropped rater by hand, and wrong files."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from kibun.models.types import TRAITS
from kibun.training.corpora.tipi import ITEM_PAIRS
from kibun.training.eval_commands import eval_app
from kibun.training.evaluation.agreement import drop_farthest, read_scores, table_one, weighted_icc2k
from kibun.training.evaluation.metrics import icc2k
from kibun.training.evaluation.paper_figures import AGREEMENT, UNTRIMMED_ICC2K, UNTRIMMED_KAPPA
from tests.support import ROOT
from tests.support.commands import invoke
from tests.support.ratings import plain_kappa, rated

DATA = ROOT.parent / "shared" / "data" / "pa-iemocap"
FIGURES = ("icc2k", "icc3k", "kappa")

published = pytest.mark.skipif(
    not (DATA / "tipi_labels.csv").is_file(), reason=f"the annotations of PA-IEMOCAP are not in {DATA}"
)


run = functools.partial(invoke, eval_app, "agreement")


@published
def test_every_published_figure_is_reproduced_to_two_decimals() -> None:
    data = json.loads(run("--tipi", DATA / "tipi_labels.csv", "--ocean", DATA / "ocean.csv", "--json"))
    assert list(data) == [*TRAITS, "average"]
    for name, row in data.items():
        for figure in FIGURES:
            assert round(row[figure], 2) == getattr(AGREEMENT[name], figure), (name, figure)
        low, high = row["icc2k_ci95"]
        assert 0 < low < row["icc2k"] < high < 1
        assert row["profiles"] == 302
    for figure in FIGURES:
        assert data["average"][figure] == pytest.approx(np.mean([data[trait][figure] for trait in TRAITS]))
    assert round(data["average"]["untrimmed"]["icc2k"], 2) == UNTRIMMED_ICC2K
    assert round(data["average"]["untrimmed"]["kappa"], 2) == UNTRIMMED_KAPPA


@published
def test_the_table_shows_ours_published_and_the_difference() -> None:
    text = run("--tipi", DATA / "tipi_labels.csv", "--ocean", DATA / "ocean.csv")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["OP", "CO", "EX", "AG", "NE", "avg"] in lines
    at = lines.index(["ICC(3,k)", "0.90", "0.89", "0.89", "0.97", "0.95", "0.92"])
    assert lines[at + 1] == ["published", "0.90", "0.89", "0.89", "0.97", "0.95", "0.92"]
    assert lines[at + 2] == ["difference"] + ["0.00"] * 6
    markdown = run("--tipi", DATA / "tipi_labels.csv", "--ocean", DATA / "ocean.csv", "--markdown")
    assert "| Fleiss' kappa | 0.49 | 0.53 | 0.47 | 0.83 | 0.71 | 0.61 |" in markdown


def test_the_rater_farthest_from_the_mean_is_dropped_the_first_on_ties() -> None:
    scores = [[4, 4, 4, 4, 4, 7], [1, 4, 4, 4, 4, 7], [7, 4, 4, 4, 4, 1], [2, 2, 2, 2, 2, 2], [3, 4, 5, 6, 6.5, 1.5]]
    kept = [[4, 4, 4, 4, 4], [4, 4, 4, 4, 7], [4, 4, 4, 4, 1], [2, 2, 2, 2, 2], [3, 4, 5, 6, 6.5]]
    assert drop_farthest(np.array(scores, float)).tolist() == kept


def test_weighted_icc_equals_the_icc_of_repeated_profiles() -> None:
    ratings = rated(3, 25, 5)
    weights = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), 20)
    plain = [icc2k(np.repeat(ratings, times, axis=0)) for times in weights]
    assert weighted_icc2k(ratings, weights.astype(float)) == pytest.approx(plain)


def test_a_profile_is_high_above_the_median_not_at_it() -> None:
    scores = np.stack([np.round(2 * rated(seed, 30, 6)) / 2 for seed in range(5)], axis=-1)  # (30, 6, 5)
    means = scores.mean(axis=1)
    result = table_one(scores, means, draws=20)
    for index, trait in enumerate(TRAITS):
        high = (scores[:, :, index] > np.median(means[:, index])).astype(np.int64)
        assert result.untrimmed[trait].kappa == pytest.approx(plain_kappa(high))
    at = np.full((30, 5), 4.0)
    at[0] = 5.0
    scores[scores == 4.5] = 4.0
    low = (scores[:, :, 0] > 4.0).astype(np.int64)
    assert table_one(scores, at, draws=20).untrimmed["openness"].kappa == pytest.approx(plain_kappa(low))


def test_the_interval_of_the_average_is_narrower_than_of_a_trait_where_traits_are_independent() -> None:
    scores = np.stack([rated(seed, 80, 6) for seed in range(5)], axis=-1)
    result = table_one(scores, scores.mean(axis=1), draws=400)
    widths = {name: high - low for name, (low, high) in ((n, a.icc2k_ci95) for n, a in result.trimmed.items())}
    average = result.trimmed["average"]
    assert average.icc2k_ci95[0] < average.icc2k < average.icc2k_ci95[1]
    assert 0.25 < widths["average"] / np.mean([widths[trait] for trait in TRAITS]) < 0.7  # 1 / sqrt(5) = .45
    assert result == table_one(scores, scores.mean(axis=1), draws=400)


# Files


def write(folder: Path, items: NDArray[np.float64], traits: NDArray[np.float64], names: list[str]) -> tuple[Path, Path]:
    """(tipi, ocean) files of (P, 6, 10) items and (P, 5) traits in the order of TRAITS, of female speakers."""
    lines = ["dialogue_id,gender,tipi,rater1,rater2,rater3,rater4,rater5,rater6"]
    for name, profile in zip(names, items, strict=True):
        lines += [f"{name},f,{item + 1}," + ",".join(f"{value:g}" for value in profile[:, item]) for item in range(10)]
    (folder / "tipi.csv").write_text("\n".join(lines) + "\n")
    o, c, e, a, n = traits.T
    columns = np.stack([e, a, c, n, o], axis=1)
    rows = [f"{name},f," + ",".join(f"{x:.3f}" for x in row) for name, row in zip(names, columns, strict=True)]
    (folder / "ocean.csv").write_text("\n".join(["dialogue_id,gender,EX,AG,CO,NE,OP", *rows]) + "\n")
    return folder / "tipi.csv", folder / "ocean.csv"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    items = np.random.default_rng(0).integers(1, 8, (8, 6, 10)).astype(float)
    mean = items.mean(axis=1)
    traits = np.array([[(row[a - 1] - row[b - 1] + 8) / 2 for a, b in ITEM_PAIRS] for row in mean])
    return write(tmp_path, items, traits, [f"Ses01F_script0{index}_1" for index in range(1, 9)])


def test_misspelt_dialogue_ids_are_corrected(files: tuple[Path, Path]) -> None:
    tipi, ocean = files
    before = read_scores(tipi, ocean)
    ocean.write_text(ocean.read_text().replace("script0", "script"))
    after = read_scores(tipi, ocean)
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    assert before[0].shape == (8, 6, 5)
    assert np.abs(before[0].mean(axis=1) - before[1]).max() < 0.00051


def test_scores_of_another_release_trigger_a_warning(files: tuple[Path, Path]) -> None:
    tipi, ocean = files
    lines = ocean.read_text().splitlines()
    cells = lines[3].split(",")
    lines[3] = ",".join([*cells[:2], *(f"{float(cell) * 0.9 + 0.3:.3f}" for cell in cells[2:])])
    ocean.write_text("\n".join(lines))
    result = CliRunner().invoke(eval_app, ["agreement", "--tipi", str(tipi), "--ocean", str(ocean), "--json"])
    assert result.exit_code == 0
    assert f"warning: 5 scores of {ocean} are not the mean of the raters of {tipi}" in result.stderr
    json.loads(result.stdout)


def test_files_of_different_profiles_are_refused(files: tuple[Path, Path]) -> None:
    tipi, ocean = files
    ocean.write_text("\n".join(ocean.read_text().splitlines()[:-1]))
    error = run("--tipi", tipi, "--ocean", ocean, code=2)
    assert (
        f"error: {ocean}: field 'dialogue_id': 1 profiles of the other file are missing: Ses01F_script08_1 f" in error
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("rater6", "rater7"), ":1: no column rater6; the header must be dialogue_id,gender"),
        (lambda text: text.replace(",f,1,", ",x,1,"), ":2: field 'gender' is 'x', must be one of f, m"),
        (lambda text: text.replace(",f,1,", ",f,11,"), ":2: field 'tipi' is '11', must be an item from 1 to 10"),
        (lambda text: text.replace(",f,2,", ",f,1,"), ":3: item 1 of this profile was given before"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "Ses01F_script08_1 f: field 'tipi': items 10 are missing"),
        (lambda text: text.splitlines()[0], "has a header but no lines"),
        (lambda text: text.replace(",f,1,", ",f,1,9", 1), "field 'rater1' is '9"),
    ],
)
def test_a_wrong_line_is_named(files: tuple[Path, Path], edit: Callable[[str], str], message: str) -> None:
    tipi, ocean = files
    tipi.write_text(edit(tipi.read_text()))
    error = run("--tipi", tipi, "--ocean", ocean, code=2)
    assert error.startswith(f"error: {tipi}")
    assert message in error


def test_a_missing_file_and_two_forms_at_once_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    tipi, ocean = files
    assert "nowhere.csv: cannot be read" in run("--tipi", tmp_path / "nowhere.csv", "--ocean", ocean, code=2)
    assert "exclude each other" in run("--tipi", tipi, "--ocean", ocean, "--json", "--markdown", code=2)
