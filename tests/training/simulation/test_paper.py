"""`kibun bench paper`: ceilings against brute force, held-out speakers, a miniature of every figure and verdict."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from rich.console import Console
from typer.testing import CliRunner

from kibun.bench.commands import bench_app
from kibun.models.frames import Frames
from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.report_table import to_rich
from kibun.training.simulation import audio as simulated_audio
from kibun.training.simulation import data as simulated_data
from kibun.training.simulation.data import QUICK, SimulationOptions, draw_splits
from kibun.training.simulation.evidence import weigh
from kibun.training.simulation.heads import Encoder, RowName, fit_head, new_head, parameters
from kibun.training.simulation.paper import ROWS, Figures, jobs_for, run_jobs
from kibun.training.simulation.personality import calibrated
from kibun.training.simulation.plot import draw
from kibun.training.simulation.summary import NOTE, mean_sd, summarise
from kibun.training.simulation.tables import HEADS, to_tables
from kibun.training.simulation.verdicts import Claim, Required, judge
from kibun.training.simulation.world import draw_scenes, make_world
from kibun.training.simulation.world_ceilings import ceilings
from tests.support.commands import invoke

TINY = SimulationOptions(
    profiles=40, dev_profiles=12, test_profiles=20, utterances=6, size=16, epochs=2, batch=64, personality_epochs=2
)


@pytest.fixture(scope="module")
def figures() -> Figures:
    """Of every job of world 0 and seed 0."""
    return run_jobs(jobs_for([0], [0]), TINY, 1)[0, 0]


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
    splits = draw_splits(TINY, 0, 0, interaction=True)
    rows = [{tuple(row) for row in each.scenes.z.round(6).tolist()} for each in (splits.train, splits.dev, splits.test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    audible = draw_splits(TINY, 0, 0, interaction=True, evidence=1.0)
    assert np.array_equal(audible.test.scenes.valence, splits.test.scenes.valence)
    assert not torch.equal(audible.test.frames, splits.test.frames)
    assert torch.equal(draw_splits(TINY, 0, 0, interaction=True).train.frames, splits.train.frames)
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
    splits = draw_splits(TINY, 0, 0, interaction=True)
    model = fit_head("concat", splits.train, splits.dev, TINY, 0)
    again = fit_head("concat", splits.train, splits.dev, TINY, 0)
    assert torch.equal(model.estimate(splits.test), again.estimate(splits.test))


def test_worlds_and_seeds_differ_in_what_they_should() -> None:
    one, other_world, other_seed = (
        draw_splits(TINY, world, seed, interaction=True).test for world, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert np.array_equal(one.scenes.z, other_world.scenes.z), "the same speakers"
    assert not np.array_equal(one.scenes.valence, other_world.scenes.valence), "by other rules"
    assert not np.array_equal(one.scenes.z, other_seed.scenes.z)
    some = one.of_speakers(torch.tensor([3, 1]))
    assert torch.equal(some.frames, one.frames.view(*one.shape, *one.frames.shape[1:])[[3, 1]].flatten(0, 1))
    assert torch.equal(some.traits[TINY.utterances :], one.traits[TINY.utterances : 2 * TINY.utterances])


@pytest.mark.parametrize("size", [32, 64])
def test_the_larger_cas_are_as_large_as_ticn_ca(size: int) -> None:
    assert parameters("ca-wide", size) == pytest.approx(parameters("ticn-ca", size), rel=0.01)
    assert parameters("ca-deep", size) == parameters("ticn-ca", size) > 4 * parameters("ca", size)


@pytest.mark.parametrize("row", ["ca-wide", "ca-deep"])
def test_the_larger_cas_hear_frames_and_traits(row: RowName) -> None:
    torch.manual_seed(0)
    head, hidden, traits = new_head(row, 16).eval(), torch.randn(3, 5, 16), 4 + torch.randn(3, 5)
    estimate = head(Frames(hidden, (5, 5, 5)), traits)
    assert estimate.shape == (3,)
    assert not torch.isclose(head(Frames(hidden, (5, 5, 5)), traits.flip(0))[0], estimate[0])
    assert not torch.isclose(head(Frames(hidden.flip(0), (5, 5, 5)), traits)[0], estimate[0])
    # Padding is not heard.
    padded = torch.cat([hidden, 100 * torch.ones(3, 2, 16)], dim=1)
    torch.testing.assert_close(head(Frames(padded, (5, 5, 5)), traits), estimate)


def test_a_line_fitted_on_dev_mends_scale_and_shift() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = 4 + torch.randn(200, 5, generator=rng)
    squeezed = 3 + 0.2 * (truth - 4)  # exact but for scale and shift
    torch.testing.assert_close(calibrated(squeezed[:100], squeezed[100:], truth[100:]), truth[:100].clamp(1, 7))
    noise = torch.randn(200, 5, generator=rng)
    assert (calibrated(noise[:100], noise[100:], truth[100:]) - 4).abs().max() < 1, "what says nothing is the mean"


def test_traits_are_drawn_to_the_mean_as_little_as_they_are_worth() -> None:
    causal = torch.tensor([[[5.0] * 5, [5.0] * 5]])
    drawn = weigh(causal, torch.tensor([[0.0] * 5, [0.5] * 5]))
    assert drawn[0, :, 0].tolist() == [4.0, 4.5]


def test_figures_do_not_depend_on_the_number_of_processes(figures: Figures) -> None:
    jobs = [job for job in jobs_for([0], [0]) if job.row == "concat"]
    assert len(jobs) == 2
    assert run_jobs(jobs, TINY, 2) == {(0, 0): {job.name: figures[job.name] for job in jobs}}


def test_as_sound_every_head_gets_the_same_frozen_trunk(tmp_path: Path) -> None:
    options = dataclasses.replace(
        TINY, profiles=12, dev_profiles=4, test_profiles=4, utterances=3, size=32, audio=True, recognition_epochs=2
    )
    simulated_audio.prepare(options, 0, tmp_path)
    splits = simulated_audio.load_splits(options, 0, 0, tmp_path, interaction=True)
    assert splits.train.frames.shape[0] == 36
    assert splits.train.frames.shape[1] >= 29, "1.2 s at 25 frames per second"
    control = simulated_audio.load_splits(options, 0, 0, tmp_path, interaction=False)
    assert torch.equal(control.train.frames, splits.train.frames), "the same sounds"
    assert not torch.equal(control.train.valence, splits.train.valence), "mean something else"
    elsewhere = simulated_audio.load_splits(options, 1, 0, tmp_path, interaction=True)
    assert torch.equal(elsewhere.train.frames, splits.train.frames)
    assert not torch.equal(elsewhere.train.valence, splits.train.valence)
    one, two = (simulated_audio.TailEncoder(options, 0, tmp_path)(splits.test.frames) for _ in range(2))
    assert torch.equal(one, two)
    # Chance is one in five; two epochs on 36 utterances are enough to hear that cues differ.
    assert simulated_audio.cue_accuracy(0, tmp_path) > 0.22
    jobs = [job for job in jobs_for([0], [0]) if job.is_main and job.interaction]
    figures = run_jobs(jobs, options, 1)[0, 0]
    assert {"ticn_ca", "ceilings.full", "noise.0.4", "cue_accuracy"} <= figures.keys()
    assert "personality.setting1" not in figures


def test_the_command_prints_one_object_with_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simulated_data, "QUICK", TINY)
    out = tmp_path / "figures.json"
    command = ["paper", "--quick", "--worlds", "2", "--seeds", "2", "--jobs", "1", "--profiles", "40", "--json"]
    result = CliRunner().invoke(bench_app, [*command, "--out", str(out), "--plot", str(tmp_path / "heads.svg")])
    payload = json.loads(result.stdout)
    picture = (tmp_path / "heads.svg").read_text()
    assert all(label in picture for label, _, _ in HEADS)
    assert "mean of 2 worlds with its 95% interval" in picture
    assert json.loads(out.read_text()) == payload
    assert result.exit_code == (0 if payload["passed"] else 1)
    assert re.search(r"^heads: 52 of 52, \d+ s$", result.stderr, re.MULTILINE)
    assert [world["world"] for world in payload["worlds"]] == [0, 1]
    pooled = payload["pooled"]
    for name, figure in pooled.items():
        assert figure["values"] == [world[name]["mean"] for world in payload["worlds"]]
        for place in (figure, *(world[name] for world in payload["worlds"])):
            assert place["mean"] == pytest.approx(np.mean(place["values"]))
            assert place["sd"] == pytest.approx(np.std(place["values"], ddof=1))
    assert {row.replace("-", "_") for row in ROWS} <= set(pooled)
    assert [name for name in pooled if name.startswith("noise.")] == [
        f"noise.{sigma}" for sigma in ("0", "0.1", "0.2", "0.4", "0.8", "1.2", "1.6")
    ]
    assert [name for name in pooled if name.endswith(".mixed")] == [
        "constant.mixed", "heard.1.mixed", "heard.2.mixed", "heard.3.mixed", "heard.6.mixed", "truth.mixed",
    ]  # fmt: skip
    for world in payload["worlds"]:
        assert world["noise.0"] == world["ticn_ca"]
        best = np.maximum(world["control.baseline"]["values"], world["control.concat"]["values"])
        assert world["control.gain"]["values"] == pytest.approx(world["control.ticn_ca"]["values"] - best)
    for verdict in payload["verdicts"]:
        assert len(verdict["values"]) == len(verdict["held"]) == 2
    assert payload["note"] == NOTE
    assert "not the gain on IEMOCAP" in NOTE


@pytest.mark.parametrize(
    ("required", "values", "holds"),
    [
        ("all", [0.5, 0.6, 0.7], True),
        ("all", [0.5, 0.6, 0.4], False),
        ("most", [0.5, 0.6, 0.4], True),
        ("most", [0.5, 0.4], False),
        ("no", [0.1, 0.2], False),
    ],
)
def test_a_claim_holds_in_as_many_worlds_as_it_has_to(required: Required, values: list[float], holds: bool) -> None:
    claim = Claim("a ≥ .5", lambda means: means["a"], "CCC", required, 0.5)
    (verdict,) = judge([claim], [{"a": value} for value in values])
    assert verdict.holds == holds
    assert verdict.held == [value >= 0.5 for value in values]
    assert verdict.bounds == "≥ 0.5"


def test_a_verdict_that_fails_is_reported_and_fails_the_command(figures: Figures) -> None:
    assert not summarise({(0, 0): dict(figures)}, TINY, 1.0)["passed"], "two epochs on forty speakers show nothing"
    better = {
        **figures,
        **dict.fromkeys(("ceilings.none", "control.ceilings.none"), 0.4),
        **dict.fromkeys(("ceilings.additive", "control.ceilings.additive", "control.ceilings.full"), 0.6),
        "ceilings.full": 0.9,
        **{"baseline": 0.35, "shuffled": 0.34, "concat": 0.55, "ca": 0.8, "ca_wide": 0.82, "ca_deep": 0.86},
        **{"ticn_ca": 0.85, "ticn_ca_acoustic": 0.85, "ca_acoustic": 0.3},
        **{"control.baseline": 0.35, "control.concat": 0.55, "control.ca": 0.55, "control.ticn_ca": 0.55},
        **{"personality.setting1": 0.3, "personality.setting2": 0.4, "personality.setting3": 0.8},
        **{"personality.setting2_calibrated": 0.82, "personality.causal3": 0.6},
        **{"predicted.setting3": 0.6, "predicted.setting2_calibrated": 0.62},
        **{"constant.plain": 0.3, "constant.mixed": 0.34, "heard.1.plain": 0.2, "heard.1.mixed": 0.36},
        "truth.mixed": 0.84,
        **{f"noise.{s:g}": 0.85 - 0.2 * s * s for s in (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6)},
    }
    result = summarise({(0, 0): dict(better)}, SimulationOptions(), 1.0)
    assert result["passed"]
    # What is not required may fail.
    failing = [each["claim"] for each in result["verdicts"] if not each["holds"]]
    assert len(failing) == 4, failing
    for change in (
        {"baseline": 0.46, "concat": 0.5},
        {"ca": 0.7, "ca_acoustic": 0.6},
        {"ticn_ca": 0.79},
        {"shuffled": 0.41},
        {"control.ticn_ca": 0.58},
        {"ca_deep": 0.95},
        {"personality.setting2": 0.2},
        {"noise.0.1": 0.86},
        {"heard.1.mixed": 0.3},
    ):
        assert not summarise({(0, 0): {**better, **change}}, SimulationOptions(), 1.0)["passed"], change
    # A claim that most worlds have to show may fail in one of three; one that all have to show may not.
    for change, passes in (({"ca": 0.7}, True), ({"ca_deep": 0.95}, False)):
        three = {(world, 0): {**better, **(change if world == 1 else {})} for world in range(3)}
        assert summarise(three, SimulationOptions(), 1.0)["passed"] == passes, change


def test_no_figure_is_cut_at_eighty_columns(figures: Figures) -> None:
    runs = {(world, seed): dict(figures) for world in range(5) for seed in range(3)}
    console = Console(width=80, file=io.StringIO())
    with console.capture() as printed:
        console.print(*(to_rich(table) for table in to_tables(summarise(runs, TINY, 1.0))[:4]))
    found = re.findall(r"\d\.\d*", printed.get())
    assert len(found) > 100
    assert {len(figure) for figure in found} == {5}


def test_one_seed_has_no_sd() -> None:
    assert mean_sd([0.5]) == {"mean": 0.5, "sd": None, "values": [0.5]}


def test_the_figure_shows_each_world_the_mean_its_interval_and_the_ceiling(figures: Figures) -> None:
    worlds = [(0.2, 0.5), (0.3, 0.6), (0.7, 0.9)]
    runs = {(world, seed): dict(figures) for world in range(3) for seed in range(2)}
    for world, (baseline, ceiling) in enumerate(worlds):
        for seed in range(2):
            runs[world, seed] |= {"baseline": baseline + 0.1 * seed, "ceilings.none": ceiling}
    (axes,) = draw(summarise(runs, TINY, 1.0)).axes
    dots, ceiling_mark = axes.lines[:2]
    assert dots.get_xdata() == pytest.approx([0.25, 0.35, 0.75])
    assert ceiling_mark.get_xdata() == pytest.approx([2 / 3] * 2)
    (bar,) = next(found for found in axes.containers if isinstance(found, ErrorbarContainer)).lines[2]
    ((low, high),) = bar.get_segments()
    # Of three values with mean .45 and standard deviation .2646, by a table of Student's t: 4.303.
    assert (low[0], high[0]) == pytest.approx(
        (0.45 - 4.303 * 0.26458 / 3**0.5, 0.45 + 4.303 * 0.26458 / 3**0.5), abs=1e-3
    )
    assert "3 worlds" in axes.get_legend_handles_labels()[1][-1]
    # Of one world its seeds are shown; of a single run no interval.
    (axes,) = draw(summarise({key: runs[key] for key in ((0, 0), (0, 1))}, TINY, 1.0)).axes
    assert axes.lines[0].get_xdata() == pytest.approx([0.2, 0.3])
    assert axes.get_legend_handles_labels()[1][0] == "one seed"
    (axes,) = draw(summarise({(0, 0): runs[0, 0]}, TINY, 1.0)).axes
    bars = [found for found in axes.containers if isinstance(found, ErrorbarContainer)]
    assert bars
    assert not any(found.has_xerr for found in bars)


def test_bad_options_are_named() -> None:
    for arguments, message in (
        (["--profiles", "3"], "profiles is 3, must be at least 10"),
        (["--utterances", "1"], "utterances is 1, must be at least 2"),
        (["--json", "--markdown"], "choose one"),
        (["--audio"], "--quick and --audio exclude each other"),
        (["--out", "/nowhere/at/all.json"], "no such folder"),
        (["--plot", "heads.bmp"], "--plot: heads.bmp: cannot be written as '.bmp'"),
    ):
        assert message in invoke(bench_app, "paper", "--quick", *arguments, code=2)


@pytest.mark.slow
def test_the_quick_benchmark_passes_all_verdicts() -> None:
    result = CliRunner().invoke(bench_app, ["paper", "--quick", "--json"])
    payload = json.loads(result.stdout)
    assert [each for each in payload["verdicts"] if each["required"] != "no" and not each["holds"]] == []
    assert payload["options"]["epochs"] == QUICK.epochs
