"""The figures: their content is read from matplotlib's artists; file formats; errors."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

from kibun.models.files import resolve_bundle
from kibun.models.types import TRAITS
from kibun.training.evaluation import plots
from kibun.training.evaluation.predictions import Prediction, PredictionsError, ccc_of, write_predictions
from kibun.training.plot_commands import plot_app
from tests.support.commands import invoke
from tests.support.predictions import utterances

RESULTS = {
    "single": {"arousal": {"mean": 0.7, "sd": 0.01}, "valence": {"mean": 0.61, "sd": 0.02}},
    "multitask": {"valence": {"mean": -0.05, "sd": 0.05}, "arousal": {"mean": 0.69, "sd": None}},
}
STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_predictions(tmp_path / "p.jsonl", utterances(60))
    return tmp_path / "p.jsonl"


run = functools.partial(invoke, plot_app)


def test_hexbin_shows_every_utterance_the_diagonal_and_the_regression() -> None:
    predictions = utterances(60)
    axes, beside = plots.hexbin(predictions, "valence").axes
    assert axes.get_title(loc="left") == f"valence: CCC {ccc_of(predictions, 'valence'):.3f}, 60 utterances"
    assert np.asarray(axes.collections[0].get_array()).sum() == 60
    assert axes.get_xlim() == axes.get_ylim()
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    assert (lines["predicted = true"][:, 0] == lines["predicted = true"][:, 1]).all()
    truth = np.array([p.valence for p in predictions], float)
    said = np.array([p.predicted.valence for p in predictions], float)
    slope = np.cov(truth, said, ddof=0)[0, 1] / truth.var()
    ends = lines[f"regression, slope {slope:.2f}"]
    assert ends[:, 1] == pytest.approx(said.mean() + slope * (ends[:, 0] - truth.mean()))
    assert beside.get_ylabel() == "utterances (log scale)"


def test_hexbin_counts_a_conversation_once_for_estimates_of_conversations() -> None:
    axes = plots.hexbin(utterances(60), "openness", "conversation_traits", "Setting 3").axes[0]
    assert axes.get_title(loc="left") == "Setting 3: CCC 1.000, 4 conversations"
    assert (
        plots.hexbin(utterances(60), "openness", "causal_traits")
        .axes[0]
        .get_title(loc="left")
        .endswith("60 utterances")
    )


def test_hexbin_of_a_constant_truth_has_no_regression() -> None:
    predictions = [dataclasses.replace(p, valence=3.0) for p in utterances(20)]
    labels = [line.get_label() for line in plots.hexbin(predictions, "valence").axes[0].lines]
    assert not any("regression" in str(label) for label in labels)


def test_multitask_has_a_bar_and_its_error_for_each_figure() -> None:
    axes = plots.multitask(RESULTS).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["valence", "arousal"]
    bars, single, _, multi = axes.containers
    assert isinstance(bars, ErrorbarContainer)
    assert isinstance(single, BarContainer)
    assert isinstance(multi, BarContainer)
    assert [bar.get_height() for bar in single] == [0.61, 0.7]
    assert [bar.get_height() for bar in multi] == [-0.05, 0.69]
    ends = bars.lines[2][0].get_segments()
    assert ends[0][:, 1].tolist() == pytest.approx([0.59, 0.63])
    assert {text.get_text() for text in axes.texts} == {"0.61", "0.70", "−0.05", "0.69"}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], '"single"'),
        ({"single": RESULTS["single"]}, 'needs an object "multitask"'),
        ({**RESULTS, "single": {}}, 'needs an object "single"'),
        ({**RESULTS, "single": {"valence": {"mean": 1, "sd": 0}}}, "arousal: in one of single and multitask only"),
        ({kind: {"mood": {"mean": 1, "sd": 0}} for kind in RESULTS}, "mood: no such figure; known are valence"),
        ({kind: {"valence": {"mean": None, "sd": 0}} for kind in RESULTS}, "single.valence: must be"),
        ({kind: {"valence": {"mean": 0.5, "sd": -1}} for kind in RESULTS}, "single.valence: must be"),
        ({kind: {"valence": 0.5} for kind in RESULTS}, "single.valence: must be"),
    ],
)
def test_multitask_refuses_another_form(tmp_path: Path, results: object, message: str) -> None:
    table = tmp_path / "results.json"
    table.write_text(json.dumps(results))
    error = run("multitask", "--table", table, "--out", tmp_path / "x.png", code=2)
    assert error.startswith(f"error: {table}")
    assert message in error
    assert not (tmp_path / "x.png").exists()


def test_heard_shows_the_errors_of_a_predictions_file() -> None:
    predictions = utterances(10)  # four conversations of 3, 3, 2 and 2 utterances; causal traits are 4 throughout
    errors, measured = plots.measured_errors(predictions)
    assert measured == {1: 4, 2: 4, 3: 2}
    for count, values in errors:
        truth = np.array([p.traits for p in predictions if p.predicted.heard == count], float)
        assert values == pytest.approx(np.sqrt(((truth - 4) ** 2).mean(axis=0)))
    axes = plots.error_by_count(errors, "T", measured).axes[0]
    assert [line.get_label() for line in axes.lines] == [*TRAITS, "mean of the five"]
    assert axes.lines[5].get_ydata() == pytest.approx([np.mean(values) for _, values in errors])
    assert [label.get_text() for label in axes.child_axes[0].get_xticklabels()] == ["4", "4", "2"]
    with pytest.raises(PredictionsError, match="causal_traits"):
        plots.measured_errors([Prediction("a", "d", "s", predictions[0].predicted)])


def test_heard_shows_the_expected_error_of_a_bundle(tmp_path: Path) -> None:
    run("heard", "--bundle", "demo-tiny", "--out", tmp_path / "heard.svg")
    text = (tmp_path / "heard.svg").read_text(encoding="utf-8")
    assert "demo-tiny (synthetic speech)" in text
    rows = json.loads((resolve_bundle("demo-tiny") / "expected_error.json").read_text())["by_utterance_count"]
    assert f">{rows[-1]['utterance_count']}<" in text


def test_of_many_counts_only_multiples_are_labelled() -> None:
    errors = [(count, [1.0] * 5) for count in range(1, 40)]
    ticks = plots.error_by_count(errors, "T").axes[0].get_xticks()
    assert ticks.tolist() == [1, 5, 10, 15, 20, 25, 30, 35]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_a_picture_has_the_format_of_its_suffix_and_is_reproducible(file: Path, suffix: str) -> None:
    out = file.parent / "new folder" / f"picture{suffix}"
    assert run("hexbin", "--predictions", file, "--out", out) == f"wrote {out}\n"
    first = out.read_bytes()
    assert first.startswith(STARTS[suffix.lower()])
    run("hexbin", "--predictions", file, "--out", out)
    assert out.read_bytes() == first


@pytest.mark.parametrize("name", ["picture.gif", "picture", "picture.jpeg"])
def test_an_unknown_suffix_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    for command in (["hexbin", "--predictions"], ["multitask", "--table"], ["heard", "--predictions"]):
        error = run(*command, tmp_path / "nowhere", "--out", tmp_path / name, code=2)
        assert "end it in .png, .svg, .pdf" in error
        assert name in error


def test_errors_name_what_cannot_be_drawn(file: Path) -> None:
    out = file.parent / "x.png"
    assert "no utterance has a label of arousal" in run(
        "hexbin", "--predictions", file, "--dimension", "arousal", "--out", out, code=2
    )
    assert "name the estimate to use" in run(
        "hexbin", "--predictions", file, "--dimension", "openness", "--out", out, code=2
    )
    assert "dimension 'mood': must be one of valence" in run(
        "hexbin", "--predictions", file, "--dimension", "mood", "--out", out, code=2
    )
    assert "give either --bundle or --predictions" in run("heard", "--out", out, code=2)
    assert "give either" in run("heard", "--bundle", "demo-tiny", "--predictions", file, "--out", out, code=2)
    assert "no bundle 'nosuch'" in run("heard", "--bundle", "nosuch", "--out", out, code=2)
    assert "not JSON" in run("multitask", "--table", file, "--out", out, code=2)
    with pytest.raises(plots.PlotError, match="no error by number of utterances"):
        plots.error_by_count([], "bundle")


def log_of(scores: list[float], **changes: object) -> list[dict[str, object]]:
    return [
        {
            "step": 6 * number,
            "epoch": float(number),
            "loss": {"loss": 2.0 / number, "ctc": 8.0 / number},
            "dev": {"score": score, "valence": score, "openness": score / 2, "wer": 1.0},
            **changes,
        }
        for number, score in enumerate(scores, 1)
    ]


def test_curves_show_losses_figures_and_what_was_kept() -> None:
    losses, reached = plots.curves(log_of([0.1, 0.4, 0.3]), "my run").axes
    assert losses.get_title(loc="left") == "my run: kept is step 12 (dotted)"
    assert losses.get_yscale() == "log"
    drawn = {str(line.get_label()): np.asarray(line.get_xydata()) for axes in (losses, reached) for line in axes.lines}
    assert drawn["all together"].tolist() == [[1, 2.0], [2, 1.0], [3, pytest.approx(2 / 3)]]
    assert drawn["CTC"][:, 1].tolist() == [8.0, 4.0, pytest.approx(8 / 3)]
    assert drawn["valence (chooses)"].tolist() == [[1, 0.1], [2, 0.4], [3, 0.3]]
    assert drawn["openness"][:, 1].tolist() == [0.05, 0.2, 0.15]
    assert not any("wer" in label or "score" in label for label in drawn)
    # Without epochs by step; with a score that is no figure by itself, that too.
    log = log_of([0.1, 0.4], dev={"score": 0.25, "openness": 0.2, "neuroticism": 0.3})
    _, reached = plots.curves([{k: v for k, v in line.items() if k != "epoch"} for line in log], "pr").axes
    assert reached.get_xlabel() == "step"
    assert [str(line.get_label()) for line in reached.lines][-1] == "score (chooses)"


@pytest.mark.parametrize("name", ["curves.png", "a.svg"])
def test_a_run_folder_shows_its_curves(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log_of([0.1, 0.2])))
    option = () if name == "curves.png" else ("--out", tmp_path / name)
    assert str(tmp_path / name) in run("run", tmp_path, *option)
    assert (tmp_path / name).read_bytes().startswith(STARTS[Path(name).suffix])


def test_what_has_no_curves_is_named(tmp_path: Path) -> None:
    assert "log.jsonl: missing; give the folder of a run" in run("run", tmp_path, code=2)
    (tmp_path / "log.jsonl").touch()
    assert "has no evaluation yet" in run("run", tmp_path, code=2)
    for line in ({"step": 1}, {"step": 1, "loss": {}, "dev": {}}, log_of([0.1], step="x")[0]):
        (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
        assert "evaluation 1 is not one of a run" in run("run", tmp_path, code=2)


def test_help_does_not_import_heavy_packages() -> None:
    code = (
        "import sys, kibun.training.eval_commands, kibun.training.plot_commands;"
        "print([m for m in ('matplotlib', 'scipy', 'torch', 'numpy', 'rich.table') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lying_bars_have_the_colour_of_their_group_and_their_interval() -> None:
    bars = [
        plots.IntervalBar("acoustics", "no traits", 0.3, (0.25, 0.4)),
        plots.IntervalBar("both", "true traits", 0.6, (0.5, 0.65)),
        plots.IntervalBar("both", "shuffled traits", -0.1, (-0.2, 0.0)),
    ]
    drawn = plots.interval_bars({"valence": bars, "arousal": bars}, "what traits add")
    assert [axes.get_xlabel() for axes in drawn.axes] == ["CCC of valence", "CCC of arousal"]
    for axes in drawn.axes:
        lying = [container for container in axes.containers if isinstance(container, BarContainer)]
        assert [[bar.get_width() for bar in some] for some in lying] == [[0.3], [0.6], [-0.1]]
        assert len({some[0].get_facecolor() for some in lying}) == 3
        whiskers = [
            sorted(some.errorbar[2][0].get_segments()[0][:, 0].tolist()) for some in lying if some.errorbar is not None
        ]
        assert whiskers == [pytest.approx(list(bar.interval)) for bar in bars]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first bar is on top
    with pytest.raises(plots.PlotError, match="needs one panel or more, each with the same labels"):
        plots.interval_bars({"valence": bars, "arousal": bars[:2]}, "what traits add")
