"""The parts of `kibun bench serve`: what is sent, what is counted, what is reported. Its figures are not tested."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kibun.bench.commands import bench_app
from kibun.bench.load.generator import Clients
from kibun.bench.load.serve import Latency, ServeFigures, Start, Throughput, difference, latency, make_report, schedule
from kibun.bench.support import material
from kibun.bench.support.bare import Bare
from kibun.bench.support.child import Child, ChildError
from kibun.client.server_process import ServerProcess
from tests.support import serving

UTTERANCES = material.utterances(3, 0.8, 1.6)
LENGTHS = [len(pcm) for pcm in UTTERANCES]


def test_arrivals_bring_the_audio_that_was_asked_for_and_end_within_the_time() -> None:
    lengths = [0.8, 2.0, 8.5]
    arrivals = schedule(lengths, 30.0, 20.0, seed=1)
    assert sum(lengths[index] for index, _ in arrivals) == pytest.approx(600.0, abs=max(lengths) / 2)
    ends = [begin + lengths[index] for index, begin in arrivals]
    assert max(ends) - min(ends) <= 20.0
    assert [begin for _, begin in arrivals] == sorted(begin for _, begin in arrivals)
    assert arrivals[0][1] == 0.0
    assert arrivals == schedule(lengths, 30.0, 20.0, seed=1)
    assert len(schedule(lengths, 0.001, 1.0, seed=1)) == 1


def test_material_is_read_as_it_was_written(tmp_path: Path) -> None:
    material.write(tmp_path / "material.npz", UTTERANCES)
    read = material.read(tmp_path / "material.npz")
    assert [pcm.tolist() for pcm in read] == [pcm.tolist() for pcm in UTTERANCES]


def test_served_and_bare_analyse_the_same_and_alike(demo_server: ServerProcess) -> None:
    order = [0, 1, 2, 1, 0, 2]
    served = Clients(demo_server.target, UTTERANCES).handle("push", order=order, streams=3)
    idle = Clients(demo_server.target, UTTERANCES).handle("push", order=[0], streams=2)
    assert (idle["streams"], idle["finals"]) == (2, [(0, LENGTHS[0])])
    bare = Bare(UTTERANCES)
    assert bare.handle("load", model="demo-tiny", precision="fp32")["threads"] >= 1
    estimates = bare.handle("run", order=order)["estimates"]
    assert sorted(served["finals"]) == sorted((index, LENGTHS[index]) for index in order)
    assert set(served["first_turns"]) <= set(estimates) == {0, 1, 2}
    assert 0 <= difference(estimates, served["first_turns"]) <= 1e-5
    assert difference({"0": (3.0, 2.0)}, {"0": (3.0, 2.5)}) == 0.5


def test_clients_tell_finals_refusals_and_losses_apart() -> None:
    fails = UTTERANCES[0].copy()
    fails[0] = 32768 // 8  # the stub raises
    with serving.serve("--max-streams", "2", "--vad", "webrtc") as server:
        clients = Clients(server.target, [*UTTERANCES, fails])
        crowded = clients.handle("speak", arrivals=[(2, 0.0), (2, 0.0), (0, 0.5), (1, 0.5)])
        failing = clients.handle("speak", arrivals=[(3, 0.0)])
    assert crowded["finals"] == [(2, LENGTHS[2])] * 2
    assert len(crowded["final_ms"]) == len(crowded["refusal_ms"]) == 2
    assert crowded["refusals"] == {"TOO_MANY_STREAMS": 2}
    assert (crowded["without_retry_info"], crowded["lost"]) == (0, [])
    assert (failing["finals"], failing["refusal_ms"], failing["lost"]) == ([], [], ["MODEL_FAILED"])


def _heard(**what: Any) -> dict[str, Any]:
    return {"final_ms": [], "refusal_ms": [], "late_ms": [], "lost": [], "refusals": {}, "without_retry_info": 0} | what


def _measured(latencies: tuple[Latency, ...]) -> ServeFigures:
    throughput = Throughput(10.0, 5, 2, 8, 6.0, 5.7, 0.95, (0.94, 0.95, 0.96), 0.3, 0.3, 0.02, 0.01, 0.91, 0.0)
    return ServeFigures("a model", "cpu", "fp32", 8.5, Start(5.0, 70.0, 900.0), throughput, latencies)


def test_report_gives_the_figures_at_60_percent_and_under_overload() -> None:
    calm = _heard(final_ms=[100.0] * 19 + [200.0], late_ms=[1.0])
    over = _heard(final_ms=[150.0], refusal_ms=[2.0, 4.0], refusals={"OVERLOADED": 2}, lost=["INTERNAL"])
    loads = ((0.2, calm), (0.6, calm), (0.9, calm), (3.0, over))
    latencies = tuple(latency(load, sum(map(len, (h["final_ms"], h["refusal_ms"], h["lost"]))), h) for load, h in loads)
    machine: dict[str, Any] = {"gemm_tflops_fp32": 0.1, "gemm_tflops_bf16": None, "bf16_left_out": "emulated"}
    report = make_report([_measured(latencies)], machine, counted=True)
    payload = json.loads(json.dumps(report.payload))
    p95 = float(np.percentile(calm["final_ms"], 95))
    assert payload["served_over_bare"] == 0.95
    assert payload["final_latency_ms"] == {"p50": 100.0, "p95": p95, "p99": pytest.approx(181.0)}
    assert (payload["refused"], payload["refused_count"], payload["finals_lost"]) == (0.5, 2, 1)
    assert payload["overload"] == {"p95": 150.0, "ratio_to_60": 150.0 / p95, "refusal_ms": 4.0}
    assert payload["throughput"]["a model"]["share_of_gemm_fp32"] == pytest.approx(3.0 * 14.3 * 1.57 / 100)
    assert "share_of_gemm_bf16" not in payload["throughput"]["a model"]
    assert any("bf16 not measured: emulated" in note for note in report.tables[0].notes)
    (axes,) = report.draw().axes
    assert axes.get_legend_handles_labels()[1] == ["p50", "p95", "p99", "2 × p95 at 60 %"]
    # Of twenty finals with one late, the median's interval is known; the 95th percentile may lie beyond all of them.
    assert payload["by_load"][0]["intervals"] == [[100.0, 100.0], [100.0, None], [100.0, None]]
    assert [label.get_text().split("\n")[1] for label in axes.get_xticklabels()] == ["all admitted"] * 3 + [
        "50% refused"
    ]


def test_report_of_an_overload_in_which_nothing_was_admitted() -> None:
    nothing = _heard(refusal_ms=[2.0], refusals={"OVERLOADED": 1})
    latencies = tuple(latency(load, 1, nothing) for load in (0.2, 0.6, 0.9, 3.0))
    machine = {"gemm_tflops_fp32": 0.1, "gemm_tflops_bf16": 0.2, "bf16_left_out": None}
    report = make_report([_measured(latencies)], machine, counted=False)
    assert report.payload["overload"]["ratio_to_60"] is None
    assert "gflops_per_core" not in report.payload["throughput"]["a model"]


def test_child_that_ends_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    message = r"kibun\.bench\.load\.generator ended with exit code 1 when asked to push"
    with (
        Child("kibun.bench.load.generator", "127.0.0.1:1", "no-such-file.npz") as child,
        pytest.raises(ChildError, match=message),
    ):
        child.ask("push", order=[0], streams=1)
    assert "no-such-file.npz" in capfd.readouterr().err


def test_misuse_is_said_before_anything_is_measured() -> None:
    for arguments, message in (("--model", "no bundle 'nowhere'"), ("--plot", "nowhere: cannot be written")):
        result = CliRunner().invoke(bench_app, ["serve", arguments, "nowhere"])
        assert result.exit_code == 2
        assert message in result.output


def test_clients_need_no_torch() -> None:
    code = "import sys, kibun.bench.load.generator; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
