"""The comparison as a whole, with the two servers that need no environment of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kibun.models.config import KibunConfig
from kibun.models.model import KibunModel
from tests.support import ROOT
from tests.support.tiny_hubert import HUBERT


@pytest.mark.slow
def test_kibun_and_the_plain_server_hear_the_same_and_a_killed_worker_is_survived(tmp_path: Path) -> None:
    torch.manual_seed(0)
    KibunModel(KibunConfig(hubert=HUBERT, bundle_name="tiny")).save_pretrained(tmp_path / "tiny")
    out, plot = tmp_path / "results.json", tmp_path / "plot.svg"
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "run.py"), "--peers", "kibun,plain gRPC"]
    command += ["--quick", "--seconds", "2", "--capacity", "8", "--model", str(tmp_path / "tiny")]
    command += ["--cache", str(tmp_path / "cache"), "--json", str(out), "--plot", str(plot)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    ours, theirs = results["runs"]
    assert (ours["peer"], theirs["peer"]) == ("kibun", "plain gRPC")
    loads = [run["loads"]["1"] for run in (ours, theirs)]
    kills = [run["kill"]["replies"] for run in (ours, theirs)]
    for replies in (loads, kills):
        heard, asked = ([reply["utterance"] for reply in one] for one in replies)
        assert heard == asked
        gaps = [[reply["due"] - one[0]["due"] for reply in one] for one in replies]
        assert max(abs(a - b) for a, b in zip(*gaps, strict=True)) < 1e-6, "the same moments"
    summary = results["summary"]
    assert summary["kibun"]["loads"]["1"]["answered"] > 0
    assert summary["kibun"]["kill"]["lost"] == 0
    assert summary["plain gRPC"]["loads"]["1"]["answered"] > 0
    assert all(run["kill"]["at"] < max(reply["done"] for reply in run["kill"]["replies"]) for run in (ours, theirs))
    assert min(one["peak_mb"] for one in summary.values()) > 50
    values = [{reply["utterance"]: reply["estimates"] for reply in replies if reply["estimates"]} for replies in loads]
    both = values[0].keys() & values[1].keys()
    assert both
    for utterance in both:
        differences = [abs(a - b) for a, b in zip(values[0][utterance], values[1][utterance], strict=True)]
        assert max(differences) < 1e-4, "one model, and the whole utterance"
    assert plot.stat().st_size > 1000
