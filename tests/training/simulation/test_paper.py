"""`kibun bench paper`: ceilings against brute force, held-out speakers, a miniature of every figure and verdict."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kibun.bench.commands import bench_app
from kibun.training.evaluation.metrics import ccc
from kibun.training.simulation import audio as simulated_audio
from kibun.training.simulation import data as simulated_data
from kibun.training.simulation.data import QUICK, SimulationOptions, draw_splits
from kibun.training.simulation.heads import Encoder, fit_head
from kibun.training.simulation.paper import PAPER_HEADS, Figures, jobs_for, run_jobs
from kibun.training.simulation.summary import NOTE, mean_sd, summarise
from kibun.training.simulation.world import draw_scenes, make_world
from kibun.training.simulation.world_ceilings import ceilings
from tests.support.commands import invoke

TINY = SimulationOptions(
    profiles=40, dev_profiles=12, test_profiles=20, utterances=6, size=16, epochs=2, batch=64, personality_epochs=2
)


@pytest.fixture(scope="module")
def figures() -> Figures:
    """Of every job of seed 0."""
    return run_jobs(jobs_for([0]), TINY, 1)[0]


def test_no_estimate_beats_its_ceiling() -> None:
    world = make_world(0)
    scenes = draw_scenes(world, np.random.default_rng(1), 60, 20)
    bound = ceilings(world, scenes, seed=0)
    assert bound.none < bound.additive < bound.full < 1
    assert ccc(world.valence(scenes.z[:, None], scenes.cues, scenes.intensity).ravel(), scenes.valence.ravel()) == (
        pytest.approx(bound.full, abs=0.01)
    )
    # No line through the best guess from the segments alone correlates better than that guess.
    rng = np.random.default_rng(2)
    others = np.mean([world.valence(rng.normal(size=5), scenes.cues, scenes.intensity) for _ in range(500)], axis=0)
    assert np.corrcoef(others.ravel(), scenes.valence.ravel())[0, 1] == pytest.approx(bound.none, abs=0.02)
    plain = make_world(0, interaction=False)
    control = ceilings(plain, draw_scenes(plain, np.random.default_rng(1), 60, 20), seed=0)
    assert control.additive == pytest.approx(control.full, abs=0.01)
    assert control.none < control.additive - 0.05


def test_speakers_and_voices_are_held_out_and_scenes_do_not_depend_on_evidence() -> None:
    splits = draw_splits(TINY, 0, interaction=True)
    rows = [{tuple(row) for row in each.scenes.z.round(6).tolist()} for each in (splits.train, splits.dev, splits.test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    audible = draw_splits(TINY, 0, interaction=True, evidence=1.0)
    assert np.array_equal(audible.test.scenes.valence, splits.test.scenes.valence)
    assert not torch.equal(audible.test.frames, splits.test.frames)
    assert torch.equal(draw_splits(TINY, 0, interaction=True).train.frames, splits.train.frames)
    shuffled = splits.train.shuffled(0)
    assert not (shuffled.traits == splits.train.traits).all(dim=1).any()
    assert torch.equal(shuffled.traits.sort(dim=0).values, splits.train.traits.sort(dim=0).values)


def test_the_encoder_sees_no_later_frame() -> None:
    torch.manual_seed(0)
    encoder, frames = Encoder(8), torch.randn(1, 6, 8)
    later = torch.cat([frames[:, :4], torch.randn(1, 2, 8)], dim=1)
    torch.testing.assert_close(encoder(frames)[:, :4], encoder(later)[:, :4])
    assert not torch.allclose(encoder(frames)[:, 4:], encoder(later)[:, 4:])


def test_a_head_is_of_its_best_epoch_on_dev() -> None:
    splits = draw_splits(TINY, 0, interaction=True)
    model = fit_head("concat", splits.train, splits.dev, TINY, 0)
    again = fit_head("concat", splits.train, splits.dev, TINY, 0)
    assert torch.equal(model.estimate(splits.test), again.estimate(splits.test))


def test_figures_do_not_depend_on_the_number_of_processes(figures: Figures) -> None:
    jobs = [job for job in jobs_for([0]) if job.head == "concat"]
    assert len(jobs) == 2
    assert run_jobs(jobs, TINY, 2) == {0: {job.name: figures[job.name] for job in jobs}}


def test_as_sound_every_head_gets_the_same_frozen_trunk(tmp_path: Path) -> None:
    options = dataclasses.replace(
        TINY, profiles=12, dev_profiles=4, test_profiles=4, utterances=3, size=32, audio=True, recognition_epochs=2
    )
    simulated_audio.prepare(options, 0, tmp_path)
    splits = simulated_audio.load_splits(options, 0, tmp_path, interaction=True)
    assert splits.train.frames.shape[0] == 36
    assert splits.train.frames.shape[1] >= 58, "1.2 s at 50 frames per second"
    control = simulated_audio.load_splits(options, 0, tmp_path, interaction=False)
    assert torch.equal(control.train.frames, splits.train.frames), "the same sounds"
    assert not torch.equal(control.train.valence, splits.train.valence), "mean something else"
    one, two = (simulated_audio.TailEncoder(options, 0, tmp_path)(splits.test.frames) for _ in range(2))
    assert torch.equal(one, two)
    # Chance is one in five; two epochs on 36 utterances are enough to hear that cues differ.
    assert simulated_audio.cue_accuracy(0, tmp_path) > 0.22
    jobs = [job for job in jobs_for([0]) if job.is_main and job.interaction]
    figures = run_jobs(jobs, options, 1)[0]
    assert {"ticn_ca", "ceilings.full", "noise.0.4", "cue_accuracy"} <= figures.keys()
    assert "personality.setting1" not in figures


def test_the_command_prints_one_object_with_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simulated_data, "QUICK", TINY)
    out = tmp_path / "figures.json"
    command = ["paper", "--quick", "--seeds", "2", "--jobs", "1", "--profiles", "40", "--json", "--out", str(out)]
    result = CliRunner().invoke(bench_app, command)
    payload = json.loads(result.stdout)
    assert json.loads(out.read_text()) == payload
    assert result.exit_code == (0 if payload["passed"] else 1)
    for place in (
        *(payload[head.replace("-", "_")] for head in PAPER_HEADS),
        payload["shuffled"],
        payload["control"],
        *payload["ceilings"].values(),
        *payload["personality"].values(),
        *payload["noise"].values(),
    ):
        assert place["mean"] == pytest.approx(np.mean(place["values"]))
        assert place["sd"] == pytest.approx(np.std(place["values"], ddof=1))
    assert set(payload["ceilings"]) == {"none", "additive", "full"}
    assert list(payload["noise"]) == ["0", "0.1", "0.2", "0.4", "0.8", "1.2", "1.6"]
    assert payload["noise"]["0"] == payload["ticn_ca"]
    best = [max(pair) for pair in zip(*(payload["control"][h]["values"] for h in ("baseline", "concat")), strict=True)]
    gains = np.subtract(payload["control"]["ticn_ca"]["values"], best)
    assert payload["control"]["values"] == pytest.approx(gains.tolist())
    assert payload["note"] == NOTE
    assert "not the gain on IEMOCAP" in NOTE


def test_a_verdict_that_fails_is_reported_and_fails_the_command(figures: Figures) -> None:
    payload = summarise({0: dict(figures)}, dataclasses.replace(TINY, profiles=1000), 1.0)
    below = {each["claim"]: each["holds"] for each in payload["verdicts"]}
    assert not below["Concat + .2 < CA"], "two epochs on forty speakers cannot show it"
    assert not payload["passed"]
    better = {
        **figures,
        "baseline": 0.3,
        "concat": 0.45,
        "ca": 0.8,
        "ticn_ca": 0.85,
        "shuffled": 0.31,
        "control.baseline": 0.5,
        "control.concat": 0.7,
        "control.ca": 0.7,
        "control.ticn_ca": 0.7,
        **{
            f"personality.{name}": value
            for name, value in zip(("setting1", "setting2", "setting3"), (0.3, 0.4, 0.8), strict=True)
        },
        "personality.causal3": 0.6,
        "predicted.setting3": 0.6,
        **{f"noise.{s:g}": 0.85 - 0.2 * s * s for s in (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6)},
    }
    assert summarise({0: dict(better)}, SimulationOptions(), 1.0)["passed"]
    for change in (
        {"baseline": 0.42},
        {"concat": 0.61},
        {"ticn_ca": 0.79},
        {"shuffled": 0.36},
        {"control.ticn_ca": 0.72},
        {"ca": 0.99, "ticn_ca": 0.995},
        {"personality.setting2": 0.2},
        {"noise.0.1": 0.86},
    ):
        assert not summarise({0: {**better, **change}}, SimulationOptions(), 1.0)["passed"], change


def test_one_seed_has_no_sd() -> None:
    assert mean_sd([0.5]) == {"mean": 0.5, "sd": None, "values": [0.5]}


def test_bad_options_are_named() -> None:
    for arguments, message in (
        (["--profiles", "3"], "profiles is 3, must be at least 10"),
        (["--world", "-1"], "world is -1"),
        (["--json", "--markdown"], "choose one"),
        (["--audio"], "--quick and --audio exclude each other"),
        (["--out", "/nowhere/at/all.json"], "no such folder"),
    ):
        assert message in invoke(bench_app, "paper", "--quick", *arguments, code=2)


@pytest.mark.slow
def test_the_quick_benchmark_passes_all_verdicts() -> None:
    result = CliRunner().invoke(bench_app, ["paper", "--quick", "--json"])
    payload = json.loads(result.stdout)
    assert [each["claim"] for each in payload["verdicts"] if not each["holds"]] == []
    assert payload["options"]["epochs"] == QUICK.epochs
