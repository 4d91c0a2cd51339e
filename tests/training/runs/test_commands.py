"""`kibun train pr|ser|mtl` without a file: a flag for every setting, one truth for all ways to give it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kibun.training.commands import train_app
from kibun.training.runs import run as training_runs
from kibun.training.runs.config import SECTIONS, RunConfig, Task, from_dict, setting_flags
from kibun.training.runs.folder import read_figures, read_log
from tests.support.commands import invoke


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that commands were about to train."""
    seen: list[RunConfig] = []

    def keep(config: RunConfig, _folder: Path) -> dict[str, Any]:
        seen.append(config)
        return {}

    monkeypatch.setattr(training_runs, "train_run", keep)
    return seen


def test_every_setting_is_a_flag() -> None:
    settings = [f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)]
    settings += [field.name for field in dataclasses.fields(RunConfig) if field.name not in ("task", *SECTIONS)]
    assert sorted(flag.name for flag in setting_flags()) == sorted(settings)
    shown = invoke(train_app, "ser", "--help")
    assert "--training.learning_rate" in shown
    assert "Allowed: mse, ccc. Default: mse." in " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize(
    ("task", "flags", "content"),
    [
        ("pr", "", {}),
        ("mtl", "--dimension arousal", {"dimension": "arousal", "model": {"head": "baseline"}}),
        ("pr", "--splits paper --version 2 --synthetic true", {"splits": "paper", "version": "2", "synthetic": True}),
        (
            "ser",
            "--dimension valence --model.condition_on openness,neuroticism --model.keep_heads false --model.head ca",
            {"dimension": "valence", "model": {"condition_on": ["openness", "neuroticism"], "head": "ca"}},
        ),
        (
            "pr",
            "--training.epochs 3 --training.learning_rate 1e-4 --training.warmup 0 --training.crop_seconds 4",
            {"training": {"epochs": 3, "learning_rate": 1e-4, "warmup": 0.0, "crop_seconds": 4.0}},
        ),
        (
            "ser",
            "--dimension valence --traits.source noisy --traits.sigma .5 --set traits.sigma=1",
            {"dimension": "valence", "traits": {"source": "noisy", "sigma": 1.0}},
        ),
    ],
)
def test_flags_are_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[RunConfig],
    task: Task,
    flags: str,
    content: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    invoke(train_app, task, "--manifest", "m.jsonl", "--out", "run", *flags.split())
    assert trained == [from_dict(task, {"manifest": "m.jsonl", **content}, tmp_path)]


def test_paths_in_flags_are_of_the_working_directory_and_flags_go_on_top_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[RunConfig]
) -> None:
    (tmp_path / "there" / "hubert").mkdir(parents=True)
    (tmp_path / "here" / "hubert").mkdir(parents=True)
    (tmp_path / "here" / "my.csv").touch()
    file = tmp_path / "there" / "ser.toml"
    file.write_text(
        'manifest = "m.jsonl"\ndimension = "valence"\n[model]\nstart = "hubert"\n[training]\nbatch = 4\nseed = 1\n'
    )
    monkeypatch.chdir(tmp_path / "here")
    command = ("ser", "--config", file, "--out", "run")
    invoke(train_app, *command, "--splits", "my.csv", "--training.seed", "2")
    assert trained[0].manifest == tmp_path / "there" / "m.jsonl"
    assert trained[0].model.start == str(tmp_path / "there" / "hubert")
    assert trained[0].splits == str(tmp_path / "here" / "my.csv")
    assert (trained[0].training.batch, trained[0].training.seed) == (4, 2)
    invoke(train_app, *command, "--manifest", "n.jsonl", "--model.start", "hubert", "--training.trunk_cache", "c")
    assert trained[1].manifest == tmp_path / "here" / "n.jsonl"
    assert trained[1].model.start == str(tmp_path / "here" / "hubert")
    assert trained[1].training.trunk_cache == str(tmp_path / "here" / "c")
    invoke(train_app, *command, "--training.trunk_cache", "c", "--set", "training.trunk_cache=d")
    assert trained[2].training.trunk_cache == str(tmp_path / "there" / "d")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "manifest is missing"),
        ("--manifest m.jsonl --dimension valence", "dimension is for ser and mtl"),
        ("--manifest m.jsonl --training.epochs many", "training.epochs is 'many', must be a whole number"),
        ("--manifest m.jsonl --training.epochs 1.5", "training.epochs is 1.5, must be a whole number"),
        ("--manifest m.jsonl --training.loss mae", "training.loss is 'mae', allowed are mse, ccc"),
        ("--manifest m.jsonl --model.traits openness,,", "model.traits is ['openness', '', ''], allowed are"),
        ("--manifest m.jsonl --training.epoch 1", "No such option"),
    ],
)
def test_a_wrong_flag_is_refused(tmp_path: Path, flags: str, message: str) -> None:
    assert message in invoke(train_app, "pr", "--out", tmp_path / "run", *flags.split(), code=2)
    assert not (tmp_path / "run").exists()


def test_a_run_from_flags_alone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    command = ("pr", "--manifest", "corpus/manifest.jsonl", "--model.start", "hubert", "--out", "flags")
    invoke(train_app, *command, "--training.max_steps", 2, "--training.conversation_steps", 2)
    assert [line["step"] for line in read_log(world / "flags")] == [2]
    assert "conversation" in read_figures(world / "flags")["test"]
