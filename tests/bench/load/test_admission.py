"""`kibun bench admission`: what it simulates, what it reports. Its figures are not tested."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from kibun.bench.commands import bench_app
from kibun.bench.load import admission
from kibun.bench.load.admission import CROWDS, Extent, Point, make_report
from kibun.bench.load.simulation import MEAN_S, Machine, People, simulate

PLAN = Extent(seeds=2, slots=(1, 2), targets_s=(0.3,), finals=30, shortest_s=10.0)
POINT = Point(0.3, 0.04, 0.14, 0.7, 1.0, 1.2, 1.9, 1.9, 0.1, 0.01, 0.0, 0)


def test_the_same_seed_is_the_same_crowd() -> None:
    runs = [simulate(Machine(0.1, 0.03, slots=2), People(0.5, 150.0, turns=3.0), seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0].turns > runs[0].offered


def test_a_crowd_brings_the_load_that_it_is_said_to_bring() -> None:
    machine = Machine(0.05, 0.0, slots=2)
    seen = simulate(machine, People(0.5, 200.0), seed=3)
    assert seen.offered * MEAN_S / (200.0 * machine.speech_rate) == pytest.approx(0.5, rel=0.1)
    assert seen.lost == 0
    assert seen.streams == seen.answered == seen.offered - seen.refused


def test_a_figure_for_every_machine_target_and_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "QUICK", PLAN)
    report = admission.measure(quick=True)
    payload = json.loads(json.dumps(report.payload))
    assert {slots: [p["target_s"] for p in points] for slots, points in payload["frontier"].items()} == {
        "1": [0.3],
        "2": [0.3],
    }
    assert all(set(by) == set(CROWDS) for by in payload["defaults"].values())
    assert payload["finals_lost"] == 0
    assert payload["seeds"] == 2
    (axes,) = report.draw().axes
    assert axes.get_legend_handles_labels()[1][:2] == ["1 core", "2 cores"]


@pytest.mark.parametrize("worse", [{}, {"refused_calm": 0.06}, {"refused_busy": 0.16}, {"slowdown": 2.1}, {"lost": 1}])
def test_the_report_says_whether_the_default_keeps_to_what_is_wanted(worse: dict[str, float]) -> None:
    default = replace(POINT, **worse)  # type: ignore[arg-type]
    payload = make_report(PLAN, {2: [POINT]}, {"2 cores": dict.fromkeys(CROWDS, default)}).payload
    assert payload["meets"] == {"2 cores": not worse}
    assert payload["finals_lost"] == len(CROWDS) * worse.get("lost", 0)


def test_misuse_is_said_before_anything_is_simulated() -> None:
    result = CliRunner().invoke(bench_app, ["admission", "--plot", "nowhere"])
    assert result.exit_code == 2
    assert "nowhere: cannot be written" in result.output
