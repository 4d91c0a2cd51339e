"""Errors of tables of runs, the runs that they would train, and the names of runs. Nothing is trained here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kibun.models.types import TRAITS
from kibun.training.eval_commands import eval_app
from kibun.training.evaluation.metrics import ccc
from kibun.training.experiments.run_store import RunStore
from kibun.training.experiments.scores import score
from kibun.training.experiments.study import Place, read_study
from kibun.training.runs.config import ConfigError, TraitOptions
from tests.support import ROOT
from tests.support.session_corpus import make_sessions
from tests.support.tiny_corpus import write_manifest

GUIDE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
BASE = 'manifest = "corpus/manifest.jsonl"\nsplits = "paper"\n[training]\nbatch = 8\n'


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    make_sessions(folder / "corpus")
    return folder


@pytest.fixture
def lab(corpus: Path, tmp_path: Path) -> Path:
    """A folder of the test's own, with the corpus and base.toml."""
    shutil.copytree(corpus / "corpus", tmp_path / "corpus")
    (tmp_path / "base.toml").write_text(BASE, encoding="utf-8")
    return tmp_path


def invoke(lab: Path, *command: str, config: str | None = None) -> Result:
    name, *options = command
    shared = ["--config", config or str(lab / "base.toml"), "--runs", str(lab / "runs")]
    return CliRunner().invoke(eval_app, [name, *shared, *options])


def error(lab: Path, *command: str, config: str | None = None) -> str:
    """The message of a command that fails before it trains anything."""
    result = invoke(lab, *command, config=config)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: "), result.stderr
    assert not (lab / "runs").exists()
    return result.stderr


def change(lab: Path, **changes: object) -> None:
    """Change fields of every line of the manifest; None takes the field away."""
    write_manifest(lab / "corpus", [row | changes for row in manifest(lab)])


def manifest(lab: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (lab / "corpus" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("command", "runs"),
    [("conditioning", 120), ("personality", 3), ("emotion", 51), ("noise", 18), ("loso", 105), ("multitask", 39)],
)
def test_what_a_table_of_the_paper_trains(lab: Path, command: str, runs: int) -> None:
    manifest = str(lab / "corpus" / "manifest.jsonl")
    result = invoke(lab, command, "--manifest", manifest, "--dry-run", "--json", config="iemocap")
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert (listed["missing"], len(listed["runs"])) == (runs, runs)
    assert not (lab / "runs").exists()
    (line,) = [line for line in GUIDE.splitlines() if line.startswith("|") and f"`kibun eval {command}`" in line]
    assert f"| {runs} |" in line


def test_tables_share_their_runs(lab: Path) -> None:
    names: dict[str, set[str]] = {}
    for command in ("conditioning", "personality", "emotion", "noise", "loso", "multitask"):
        result = invoke(lab, command, "--dry-run", "--json")
        names[command] = {run["name"] for run in json.loads(result.stdout)["runs"]}
    assert names["emotion"] | names["noise"] <= names["conditioning"] | names["personality"]
    assert len(set().union(*names.values())) == 258
    assert "all of them together are 258 runs" in " ".join(GUIDE.split())


def test_control_rows_are_those_of_the_option(lab: Path) -> None:
    command = ("conditioning", "--models", "concat,ca", "--traits", "all", "--seeds", "0", "--dimension", "arousal")
    for shuffled, heads in (
        (["--shuffled", "all"], ["concat", "ca"]),
        (["--shuffled", "concat"], ["concat"]),
        ([], ["ca"]),
    ):
        listed = json.loads(invoke(lab, *command, *shuffled, "--dry-run", "--json").stdout)
        names = [run["name"] for run in listed["runs"]]
        assert [name.split("-")[2] for name in names if "-shuffled-" in name] == heads
        assert any(name.startswith("ser-arousal-baseline-") for name in names)  # which stars are against


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("conditioning", "--models", "baseline,lstm"), "--models: 'lstm' is no model; allowed are baseline,"),
        (("conditioning", "--traits", "each,XY"), "--traits: 'XY' is unknown; allowed are each, all, OP or openness"),
        (("conditioning", "--shuffled", "baseline"), "--shuffled: 'baseline' is no conditioned model; allowed are con"),
        (("conditioning", "--seeds", "0,0"), "--seeds: '0,0': write each value once"),
        (("conditioning", "--seeds", "1,01"), "--seeds: '1,01': give each seed once"),
        (("conditioning", "--seeds", "-1"), "--seeds: '-1' must be a whole number from 0"),
        (("conditioning", "--dimension", "anger"), "--dimension: 'anger' is unknown; allowed are valence, arousal"),
        (("conditioning", "--json", "--markdown"), "exclude each other"),
        (("conditioning", "--set", "training.lr=1"), "training.lr is no setting"),
        (
            ("conditioning", "--set", "training.seed=1"),
            "training.seed is what the table varies; leave it out and use --seeds",
        ),
        (
            ("conditioning", "--set", "dimension=valence"),
            "dimension is what the table varies; leave it out and use --dimens",
        ),
        (("conditioning", "--set", "traits.sigma=.1"), "traits.sigma is what the table varies"),
        (("personality", "--setting", "4"), "--setting: '4' is unknown; allowed are 1, 2, 3"),
        (("personality", "--setting", "1", "--causal"), "--causal is a form of setting 3"),
        (("emotion", "--model", "baseline"), "--model: 'baseline' is no conditioned model"),
        (("emotion", "--traits-from", "setting4"), "--traits-from: 'setting4' is unknown; allowed are setting1,"),
        (("noise", "--sigma", "0,-1"), "--sigma: -1 is below 0"),
        (("noise", "--sigma", "0,a"), "--sigma: 'a' must be a number"),
        (("noise", "--sigma", "nan"), "--sigma: 'nan' must be a number"),
        (("noise", "--sigma", ".1,0.1"), "--sigma: '0.1' must be a number, and given once"),
        (("loso", "--folds", "loso_9"), "loso_9: no splits of this name that come with kibun (loso_1,"),
        (("loso", "--folds", "loso_1,paper"), "is tested by loso_1 and by paper"),
        (("emotion", "--traits", "XY"), "--traits: 'XY' is unknown; allowed are each, all, OP or openness"),
        (("multitask", "--traits", "each,all"), "--traits: a trait is in two of the models"),
        (("multitask", "--setting", "1,2"), "choose one of 1, 2, 3"),
        (("multitask", "--set", "splits=nowhere"), "no splits 'nowhere'"),
        (("multitask", "--manifest", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
    ],
)
def test_a_wrong_option_is_refused(lab: Path, command: tuple[str, ...], message: str) -> None:
    assert message in error(lab, *command)


def test_several_processes_are_refused(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "give each GPU a command with its own --seeds" in error(lab, "personality")


def test_a_wrong_config_file_is_refused(lab: Path) -> None:
    assert "neither a TOML file nor one of the recipes that come with kibun (iemocap" in error(
        lab, "emotion", config="nothing"
    )
    assert "manifest is missing" in error(lab, "emotion", config="iemocap")
    ser = lab / "ser.toml"
    ser.write_text('manifest = "corpus/manifest.jsonl"\n[model]\nhead = "ca"\n', encoding="utf-8")
    said = error(lab, "emotion", config=str(ser))
    assert f"{ser}: model.head is what the table varies" in said
    ser.write_text("manifest = ", encoding="utf-8")
    assert f"{ser}: is not TOML" in error(lab, "emotion", config=str(ser))
    pr = lab / "pr.toml"
    pr.write_text('manifest = "corpus/manifest.jsonl"\nsplits = "loso_1"\n', encoding="utf-8")
    assert "different manifests or splits" in error(lab, "emotion", "--pr-config", str(pr))


@pytest.mark.parametrize("field", ["traits", "valence", "arousal"])
def test_missing_labels_are_named_before_anything_is_trained(lab: Path, field: str) -> None:
    change(lab, **{field: None})
    for command in ("conditioning", "emotion", "noise", "loso", "multitask"):
        assert f"manifest.jsonl:1: field '{field}' is missing, and needed here" in error(lab, command)
    if field == "traits":
        assert "field 'traits' is missing" in error(lab, "personality")
    else:  # personality needs no emotion, and the other dimension can be had alone
        assert invoke(lab, "personality", "--dry-run").exit_code == 0
        other = {"valence": "arousal", "arousal": "valence"}[field]
        assert invoke(lab, "noise", "--dry-run", "--dimension", other).exit_code == 0


def test_missing_splits_are_named(lab: Path) -> None:
    (lab / "base.toml").write_text('manifest = "corpus/manifest.jsonl"\n', encoding="utf-8")
    for command in ("conditioning", "personality", "multitask"):
        assert "manifest.jsonl:1: field 'split' is missing, and needed here" in error(lab, command)
    assert invoke(lab, "loso", "--dry-run").exit_code == 0  # which brings its own
    change(lab, split="train")
    assert "split 'dev' has no utterances" in error(lab, "conditioning")


def test_a_split_with_one_profile_is_refused(lab: Path) -> None:
    kept = [row for row in manifest(lab) if not (row["dialogue"].startswith("Ses01M") and row["speaker"] == "Ses01F")]
    write_manifest(lab / "corpus", kept)
    assert "split 'test' has one speaker-conversation" in error(lab, "noise")


SHUFFLED = TraitOptions(source="shuffled")


def test_a_run_is_named_after_its_settings_and_data(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    study = read_study(str(lab / "base.toml"))
    place = Place("valence", "paper")
    runs = RunStore(lab / "runs")
    name = runs.name(study.ser(place, 1, "ticn-ca"))
    assert name.startswith("ser-valence-ticn-ca-OCEAN-paper-seed1-")
    assert runs.name(study.ser(place, 1, "ca", ("openness",), SHUFFLED)).startswith("ser-valence-ca-O-shuffled-paper-")
    assert runs.name(study.pr(0, None)).startswith("pr-seed0-")
    assert runs.name(study.mtl(Place("arousal", "loso_3"), 2)).startswith("mtl-arousal-loso_3-seed2-")
    assert runs.name(study.mtl(Place("arousal", "loso_3"), 2, ("neuroticism",))).startswith("mtl-arousal-N-loso_3-")
    # A baseline is one run, whatever the traits; a place elsewhere with the same content is the same run.
    assert study.ser(place, 1, "baseline", ("openness",), SHUFFLED) == study.ser(place, 1, "baseline")
    moved = tmp_path_factory.mktemp("moved")
    shutil.copytree(lab / "corpus", moved / "corpus")
    shutil.copy(lab / "base.toml", moved / "base.toml")
    elsewhere = read_study(str(moved / "base.toml"))
    assert RunStore(moved).name(elsewhere.ser(place, 1, "ticn-ca")) == name
    # A label, a setting, the splits, the personality run that predicts: another run.
    others = {
        RunStore(moved).name(
            read_study(str(moved / "base.toml"), settings=["training.epochs=7"]).ser(place, 1, "ticn-ca")
        ),
        runs.name(study.ser(Place("valence", "loso_1"), 1, "ticn-ca")),
        *(
            runs.name(
                study.ser(place, 1, "ticn-ca", TRAITS, TraitOptions("predicted", run=f"/x/pr-{pr}", setting="causal"))
            )
            for pr in "ab"
        ),
    }
    change(moved, valence=3.0)
    others.add(RunStore(moved).name(elsewhere.ser(place, 1, "ticn-ca")))
    assert len(others | {name}) == 6


def test_a_splits_file_is_identified_by_its_content(lab: Path) -> None:
    splits = lab / "mine.csv"
    splits.write_text("dialogue,split\nSes01F_impro01,test\n", encoding="utf-8")
    study = read_study(str(lab / "base.toml"))
    first = RunStore(lab).name(study.pr(0, str(splits)))
    assert first.startswith("pr-mine-seed0-")
    splits.write_text("dialogue,split\nSes01F_impro01,dev\n", encoding="utf-8")
    assert RunStore(lab).name(study.pr(0, str(splits))) != first


def test_score_is_the_mean_over_seeds_of_the_mean_over_draws() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 40)
    clusters = [(f"d{index // 5}", "a") for index in range(40)]
    seeds = [[truth + rng.normal(0, sigma, 40) for _draw in range(3)] for sigma in (0.2, 0.5)]
    weak = [[rng.uniform(1, 5, 40)], [rng.uniform(1, 5, 40)]]
    found = score(truth, clusters, seeds, weak, published=0.5, runs=("a", "b"))
    assert found.values == pytest.approx([np.mean([ccc(draw, truth) for draw in draws]) for draws in seeds])
    assert found.comparison is not None
    assert found.comparison.first == pytest.approx(found.mean)
    assert found.comparison.p < 0.001
    assert found.cell().stars == "***"
    assert found.plain()["published"] == 0.5
    alone = score(truth, clusters, seeds[:1])
    assert (alone.comparison, alone.sd) == (None, None)


def test_a_study_holds_the_shared_settings(lab: Path) -> None:
    study = read_study(str(lab / "base.toml"), seeds=(3,), dimensions=("arousal",))
    assert study.places == [Place("arousal", "paper")]
    assert study.ser(study.places[0], 3, "ca").training.seed == 3
    with pytest.raises(ConfigError, match="leave it out"):
        read_study(str(lab / "base.toml"), settings=["name=x"])
