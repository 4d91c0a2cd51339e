"""Tables of many runs: runs are trained once, and every figure is checked by plain arithmetic on predictions files."""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from typer.testing import CliRunner, Result

from kibun.models.types import TRAITS
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.splits import SPLIT_FILES
from kibun.training.eval_commands import eval_app
from kibun.training.plot_commands import plot_app
from kibun.training.runs import run as training_runs
from kibun.training.runs.run import load_run
from tests.support.session_corpus import make_sessions
from tests.support.tiny_corpus import make_hubert

BASE = """
manifest = "corpus/manifest.jsonl"
splits = "paper"
[model]
start = "hubert"
condition_ff = 32
[training]
batch = 8
micro_batch = 8
max_steps = 2
learning_rate = 1e-3
head_learning_rate = 5e-2
conversation_steps = 5
"""
IV = ("conditioning", "--models", "baseline,ca", "--traits", "OP,all", "--seeds", "0,1", "--dimension", "valence")
VI = ("emotion", "--model", "ca", "--traits", "OP,all", "--seeds", "0,1", "--dimension", "valence")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with corpus/, hubert/, base.toml and the runs of all tests."""
    folder = tmp_path_factory.mktemp("lab")
    make_sessions(folder / "corpus")
    make_hubert(folder / "hubert")
    (folder / "base.toml").write_text(BASE, encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small to share: handing work over costs more than doing it
    gc.collect()
    gc.freeze()  # each training run collects garbage; it need not look at what imports have made
    yield folder
    gc.unfreeze()
    torch.set_num_threads(threads)


def invoke(lab: Path, *command: str) -> Result:
    name, *options = command
    shared = ["--config", str(lab / "base.toml"), "--runs", str(lab / "runs")]
    return CliRunner().invoke(eval_app, [name, *shared, *options])


def evaluate(lab: Path, *command: str) -> dict[str, Any]:
    """The JSON of a command."""
    result = invoke(lab, *command, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def rows_of(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by label, after a check that every score holds together."""
    for row in report["rows"]:
        for score in row["scores"].values():
            assert score["mean"] == pytest.approx(np.mean(score["values"]), abs=1e-12)
            if len(score["values"]) > 1:
                assert score["sd"] == pytest.approx(np.std(score["values"], ddof=1), abs=1e-12)
            else:
                assert score["sd"] is None
    return {row["label"]: row for row in report["rows"]}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def corpus(lab: Path, *dialogues: str) -> list[dict[str, Any]]:
    """The manifest's lines whose dialogue begins so."""
    return [row for row in read(lab / "corpus" / "manifest.jsonl") if row["dialogue"].startswith(dialogues)]


def ccc(predicted: ArrayLike, truth: ArrayLike) -> float:
    x, y = np.array(predicted), np.array(truth)
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def ccc_of_file(path: Path, figure: str = "valence") -> float:
    rows = read(path)
    return ccc([row["predicted"][figure] for row in rows], [row[figure] for row in rows])


def least_squares(train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> list[float]:
    """Valence of test from true traits, by the normal equations on train."""
    x, z = (np.array([[1.0, *(row["traits"][trait] for trait in TRAITS)] for row in rows]) for rows in (train, test))
    y = np.array([row["valence"] for row in train])
    return [float(value) for value in z @ np.linalg.solve(x.T @ x, x.T @ y)]


def test_table_four(lab: Path) -> None:
    found = evaluate(lab, *IV)
    assert (found["table"], found["seeds"], found["synthetic"]) == ("IV", [0, 1], False)
    (report,) = found["reports"]
    rows = rows_of(report)
    assert list(rows) == ["baseline", "CA, OP", "CA, all", "traits only", "CA, shuffled traits"]
    for label, row in rows.items():
        score = row["scores"]["valence"]
        files = [lab / "runs" / name / "predictions-test.jsonl" for name in score["runs"]]
        if label == "traits only":
            assert files == []
            train, test = corpus(lab, "Ses02", "Ses03", "Ses04"), corpus(lab, "Ses01M")
            assert (len(train), len(test)) == (36, 6)
            assert score["values"] == [
                pytest.approx(ccc(least_squares(train, test), [row["valence"] for row in test]), abs=1e-4)
            ]
        else:
            assert score["values"] == pytest.approx([ccc_of_file(file) for file in files], abs=1e-9)
            assert ["seed0" in str(files[0]), "seed1" in str(files[1]), len(files)] == [True, True, 2]
        if label == "baseline":
            assert "comparison" not in score
            assert score["published"] == 0.698
        else:
            comparison = score["comparison"]
            assert comparison["first"] == pytest.approx(score["mean"], abs=1e-9)
            assert comparison["second"] == pytest.approx(rows["baseline"]["scores"]["valence"]["mean"], abs=1e-9)
            assert (comparison["clusters"], comparison["points"]) == (2, 6)
            assert "published" not in score  # of CA nothing is known
    estimates = {
        label: read(lab / "runs" / row["scores"]["valence"]["runs"][0] / "predictions-test.jsonl")
        for label, row in rows.items()
        if label != "traits only"
    }
    assert len({json.dumps([row["predicted"] for row in some]) for some in estimates.values()}) == 4
    assert rows["CA, OP"]["traits"] == ["openness"]
    assert rows["CA, shuffled traits"]["trained_with"] == "shuffled"
    # The paper's splits choose and test on the same speakers, and leave session 5 out.
    assert any("dev and test share the speakers Ses01F, Ses01M" in warning for warning in found["warnings"])
    assert any("left out" in warning and "12" in warning for warning in found["warnings"])
    assert any("dev and test share" in note for note in report["notes"])
    assert report["notes"][-1].startswith("Published: 1 of 5 cells are at hand")


def test_finished_runs_are_only_read(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = evaluate(lab, *IV)

    def refuse(*_unused: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training_runs, "train_run", refuse)
    assert evaluate(lab, *IV) == before
    result = invoke(lab, *IV, "--markdown")
    assert "8 runs: 8 finished, 0 to train" in result.stderr
    assert "| &nbsp;&nbsp;published | 0.698 |" in result.stdout
    assert "| traits only |" in result.stdout
    result = invoke(lab, *IV, "--dry-run")
    assert result.stdout.count("finished") == 8
    listed = evaluate(lab, *IV, "--dry-run", "--seeds", "1,2")
    assert listed["missing"] == 4
    assert [run["state"] for run in listed["runs"]] == ["finished"] * 4 + ["missing"] * 4


def test_an_interrupted_run_is_resumed_and_gives_the_same_table(lab: Path) -> None:
    before = evaluate(lab, *IV)
    cut = lab / "runs" / rows_of(before["reports"][0])["CA, OP"]["scores"]["valence"]["runs"][1]
    (cut / "figures.json").unlink()
    (cut / "predictions-test.jsonl").unlink()
    states = {run["name"]: run["state"] for run in evaluate(lab, *IV, "--dry-run")["runs"]}
    assert states.pop(cut.name) == "begun"
    assert set(states.values()) == {"finished"}
    result = invoke(lab, *IV, "--json")
    assert "8 runs: 7 finished, 1 to train" in result.stderr
    assert f"run 1 of 1: {cut.name}" in result.stderr
    again = json.loads(result.stdout)["reports"][0]
    for label, row in rows_of(before["reports"][0]).items():
        values = rows_of(again)[label]["scores"]["valence"]["values"]
        assert values == pytest.approx(row["scores"]["valence"]["values"], abs=1e-4)


def test_table_five(lab: Path) -> None:
    found = evaluate(lab, "personality", "--seeds", "0,1")
    reports = {report["name"]: report for report in found["reports"]}
    assert list(reports) == ["ccc", "rmse", "heard"]
    agreement, errors = rows_of(reports["ccc"]), rows_of(reports["rmse"])
    settings = {
        "setting 1, utterance": "utterance_traits",
        "setting 2, mean of utterances": "average_traits",
        "setting 3, conversation": "conversation_traits",
        "causal setting 3, utterances so far": "causal_traits",
    }
    assert list(agreement) == list(settings)
    assert list(errors) == ["train's mean", *settings]
    for label, field in settings.items():
        names = agreement[label]["scores"]["openness"]["runs"]
        for seed, name in enumerate(names):
            rows = read(lab / "runs" / name / "predictions-test.jsonl")
            if field in ("average_traits", "conversation_traits"):
                rows = list({(row["dialogue"], row["speaker"]): row for row in rows}.values())
                assert len(rows) == 2
            estimates = np.array([row["predicted"][field] for row in rows])
            truth = np.array([row["traits"] for row in rows])
            by_trait = [ccc(estimates[:, k], truth[:, k]) for k in range(5)]
            for k, trait in enumerate(TRAITS):
                assert agreement[label]["scores"][trait]["values"][seed] == pytest.approx(by_trait[k], abs=1e-9)
                error = float(np.sqrt(np.mean((estimates[:, k] - truth[:, k]) ** 2)))
                assert errors[label]["scores"][trait]["values"][seed] == pytest.approx(error, abs=1e-9)
            assert agreement[label]["scores"]["average"]["values"][seed] == pytest.approx(np.mean(by_trait), abs=1e-9)
    heard = rows_of(reports["heard"])
    assert list(heard) == [f"after {count} utterances (2 conversations)" for count in (1, 2, 3)]
    assert heard["after 3 utterances (2 conversations)"]["scores"]["average"]["values"] == pytest.approx(
        errors["setting 3, conversation"]["scores"]["average"]["values"], abs=1e-9
    )
    train = corpus(lab, "Ses02", "Ses03", "Ses04")
    guess = np.mean([row["traits"]["openness"] for row in train])
    truth = np.array([row["traits"]["openness"] for row in corpus(lab, "Ses01M")])
    expected = float(np.sqrt(np.mean((guess - truth) ** 2)))
    assert errors["train's mean"]["scores"]["openness"]["mean"] == pytest.approx(expected, abs=1e-5)
    causal = evaluate(lab, "personality", "--seeds", "0", "--setting", "3", "--causal")
    assert [row["setting"] for row in causal["reports"][0]["rows"]] == ["conversation", "causal"]
    whole = evaluate(lab, "personality", "--seeds", "0", "--setting", "1,2")
    assert [report["name"] for report in whole["reports"]] == ["ccc", "rmse"]


@torch.inference_mode()
def alone(run: Path, lab: Path, test: Sequence[Mapping[str, Any]], traits: Sequence[Sequence[float]]) -> list[float]:
    """Valence of each utterance by itself under given traits: the plain reference."""
    model = load_run(run, "cpu").kibun
    said = []
    for row, given in zip(test, traits, strict=True):
        waveform = torch.from_numpy(load_audio(lab / "corpus" / row["path"]))
        tail = model.tail("valence")(model.encode([waveform]))
        value = model.emotion_heads["valence"](tail, torch.tensor([list(given)]))
        said.append(float(value.clamp(1, 5)))
    return said


def test_table_six(lab: Path) -> None:
    found = evaluate(lab, *VI)
    rows = rows_of(found["reports"][0])
    labels = [f"CA, {name} traits" for name in ("setting 1", "setting 2", "setting 3", "causal setting 3", "true")]
    assert list(rows) == [
        "baseline",
        *(f"{label}, {which}" for label in labels for which in ("OP", "all")),
        "traits only",
        "CA, shuffled traits",
    ]
    same = evaluate(lab, *IV)["reports"][0]
    for which in ("OP", "all"):
        assert rows[f"CA, true traits, {which}"]["scores"] == rows_of(same)[f"CA, {which}"]["scores"]
    assert rows["CA, setting 3 traits, OP"]["traits"] == ["openness"]
    test = corpus(lab, "Ses01M")
    for label, field in (
        (f"{labels[0]}, all", "utterance_traits"),
        (f"{labels[3]}, all", "causal_traits"),
        (f"{labels[3]}, OP", "causal_traits"),
    ):
        score = rows[label]["scores"]["valence"]
        assert len(score["runs"]) == 4
        for seed in (0, 1):
            pr, ser = (lab / "runs" / name for name in score["runs"][2 * seed : 2 * seed + 2])
            assert pr.name.startswith("pr-")
            predicted = {row["id"]: row["predicted"][field] for row in read(pr / "predictions-test.jsonl")}
            said = alone(ser, lab, test, [predicted[row["id"]] for row in test])
            assert score["values"][seed] == pytest.approx(ccc(said, [row["valence"] for row in test]), abs=1e-3)
    tested = sorted((lab / "runs" / score["runs"][1] / "tested").glob("predicted-*.jsonl"))
    assert len(tested) == 4
    assert len(read(tested[0])) == len(test)


def test_table_six_trained_with_the_same_traits(lab: Path) -> None:
    command = ("emotion", "--model", "ca", "--seeds", "0", "--dimension", "valence", "--traits-from", "setting2")
    report = evaluate(lab, *command, "--train-with", "same", "--traits", "all")["reports"][0]
    row = rows_of(report)["CA, setting 2 traits, all"]
    assert (row["trained_with"], row["tested_with"]) == ("average", "average")
    personality, emotion = row["scores"]["valence"]["runs"]
    assert emotion.startswith("ser-valence-ca-OCEAN-predicted-paper-seed0-")
    assert row["scores"]["valence"]["mean"] == pytest.approx(
        ccc_of_file(lab / "runs" / emotion / "predictions-test.jsonl"), abs=1e-9
    )
    config = (lab / "runs" / emotion / "config.toml").read_text(encoding="utf-8")
    assert f'{personality}"' in config
    assert 'setting = "average"' in config


def test_table_seven(lab: Path) -> None:
    options = ("--model", "ca", "--seeds", "0,1", "--dimension", "valence", "--draws", "3")
    found = evaluate(lab, "noise", *options, "--sigma", "0,.5,1.6")
    rows = rows_of(found["reports"][0])
    assert list(rows) == [
        "baseline",
        *(f"CA, sigma {sigma}" for sigma in ("0", "0.5", "1.6")),
        "traits only",
        "CA, shuffled traits",
    ]
    assert [row.get("sigma") for row in rows.values()] == [None, 0, 0.5, 1.6, None, None]
    clean = rows["CA, sigma 0"]["scores"]["valence"]
    assert clean == rows_of(evaluate(lab, *IV)["reports"][0])["CA, all"]["scores"]["valence"]
    noisy = rows["CA, sigma 1.6"]["scores"]["valence"]
    for seed, name in enumerate(noisy["runs"]):
        files = sorted((lab / "runs" / name / "tested").glob("noise1.6-draw?-*.jsonl"))
        assert len(files) == 3
        each = [ccc_of_file(file) for file in files]
        assert len(set(each)) == 3
        assert noisy["values"][seed] == pytest.approx(np.mean(each), abs=1e-9)
    assert noisy["comparison"]["first"] == pytest.approx(noisy["mean"], abs=1e-9)
    assert noisy["values"] != clean["values"]


def test_figure_three(lab: Path, tmp_path: Path) -> None:
    """As in the paper, a multi-task model has one trait: it says nothing of the others."""
    out, dimension = tmp_path / "results.json", "valence"
    command = ("multitask", "--seeds", "0,1", "--dimension", dimension, "--traits", "OP,NE", "--out", str(out))
    found = evaluate(lab, *command)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    rows = rows_of(found["reports"][0])
    pairs = {
        "valence, with OP": ("valence", "openness"),
        "valence, with NE": ("valence", "neuroticism"),
        "openness, with valence": ("openness", "openness"),
        "neuroticism, with valence": ("neuroticism", "neuroticism"),
    }
    assert list(rows) == ["valence", "openness", "neuroticism", "traits, average", *pairs]
    for label, (figure, estimated) in pairs.items():
        for column, kind in (("single task", "single"), ("multi-task", "multitask")):
            score = rows[label]["scores"][column]
            for seed, name in enumerate(score["runs"]):
                start = "ser-valence-baseline-" if figure == "valence" else "pr-"
                assert name.startswith(f"mtl-valence-{estimated[0].upper()}-paper" if kind == "multitask" else start)
                predicted = read(lab / "runs" / name / "predictions-test.jsonl")
                if figure == "valence":
                    expected = ccc_of_file(lab / "runs" / name / "predictions-test.jsonl")
                else:
                    at = TRAITS.index(figure)
                    estimates = [row["predicted"]["utterance_traits"][at] for row in predicted]
                    expected = ccc(estimates, [row["traits"][at] for row in predicted])
                if kind == "multitask":
                    others = [at for at, trait in enumerate(TRAITS) if trait != estimated]
                    for row in predicted:
                        for setting in ("utterance", "average", "conversation", "causal"):
                            assert [row["predicted"][f"{setting}_traits"][at] for at in others] == [4.0] * 4
                assert score["values"][seed] == pytest.approx(expected, abs=1e-9)
    both = [rows[label]["scores"]["multi-task"]["values"] for label in list(pairs)[:2]]
    assert rows["valence"]["scores"]["multi-task"]["values"] == pytest.approx(np.mean(both, axis=0), abs=1e-12)
    for label in ("valence", "openness", "neuroticism"):
        for column, kind in (("single task", "single"), ("multi-task", "multitask")):
            assert found[kind][label]["mean"] == pytest.approx(rows[label]["scores"][column]["mean"], abs=1e-12)
            assert found[kind][label]["sd"] == pytest.approx(rows[label]["scores"][column]["sd"], abs=1e-12)
    comparison = rows["valence, with OP"]["scores"]["multi-task"]["comparison"]
    assert comparison["second"] == pytest.approx(rows["valence"]["scores"]["single task"]["mean"], abs=1e-9)
    drawn = CliRunner().invoke(plot_app, ["multitask", "--table", str(out), "--out", str(tmp_path / "bars.png")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "bars.png").stat().st_size > 5000
    shared = ("--seeds", "0", "--dimension", "valence", "--setting", "3", "--traits", "all")
    whole = evaluate(lab, "multitask", *shared)
    assert whole["single"]["openness"]["sd"] is None
    rows = rows_of(whole["reports"][0])
    assert list(rows)[:8] == ["valence", *TRAITS, "traits, average", "valence, with all"]
    assert rows["openness, with valence"]["scores"]["multi-task"]["comparison"]["points"] == 2


def test_table_eight(lab: Path) -> None:
    options = ("--model", "ca", "--seeds", "0", "--dimension", "valence", "--folds", "loso_1,loso_2")
    found = evaluate(lab, "loso", *options)
    (report,) = found["reports"]
    assert report["columns"] == ["loso_1", "loso_2", "mean of folds", "pooled"]
    rows = rows_of(report)
    assert list(rows) == ["baseline", "CA, true traits", "CA, setting 3 traits", "traits only", "CA, shuffled traits"]
    scores = rows["CA, true traits"]["scores"]
    files = [lab / "runs" / scores[fold]["runs"][0] / "predictions-test.jsonl" for fold in ("loso_1", "loso_2")]
    assert [read(file)[0]["dialogue"][:5] for file in files] == ["Ses01", "Ses02"]
    each = [ccc_of_file(file) for file in files]
    assert [scores[fold]["mean"] for fold in ("loso_1", "loso_2")] == pytest.approx(each, abs=1e-9)
    assert scores["mean of folds"]["mean"] == pytest.approx(np.mean(each), abs=1e-9)
    together = [row for file in files for row in read(file)]
    pooled = ccc([row["predicted"]["valence"] for row in together], [row["valence"] for row in together])
    assert scores["pooled"]["mean"] == pytest.approx(pooled, abs=1e-9)
    assert (scores["pooled"]["comparison"]["points"], scores["pooled"]["comparison"]["clusters"]) == (24, 8)
    assert "comparison" not in scores["mean of folds"]
    control = rows["traits only"]["scores"]["loso_1"]
    homes = dict(line.split(",") for line in (SPLIT_FILES / "loso_1.csv").open())
    train = [row for row in read(lab / "corpus/manifest.jsonl") if homes[row["dialogue"]].strip() == "train"]
    test = corpus(lab, "Ses01")
    assert control["mean"] == pytest.approx(ccc(least_squares(train, test), [row["valence"] for row in test]), abs=1e-4)
    assert all("published" not in score for row in rows.values() for score in row["scores"].values())
    assert any(warning.startswith("loso_1: ") and "lacks" in warning for warning in found["warnings"])
