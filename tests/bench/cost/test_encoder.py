"""`kibun bench encoder` on a tiny HuBERT: every figure that it promises, and what is counted."""

import json
from collections.abc import Callable, Mapping

import pytest

from kibun.bench.cost import encoder
from kibun.bench.support import machine, timing
from kibun.models._transformers import HubertConfig
from kibun.models.precision import EMULATED
from tests.support.tiny_hubert import hubert_config


@pytest.fixture(autouse=True)
def _not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {encoder.PAPER: 0.6, encoder.FP32: 0.2, encoder.BF16: 0.1}

    def interleaved(paths: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        for path in paths.values():
            path()
        return {name: [seconds.get(name, 1.0)] * rounds for name in paths}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    monkeypatch.setattr(machine, "gemm_tflops", lambda dtype, device: 0.1)


def test_every_promised_figure_is_there_and_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "emulates_bfloat16", lambda: False)
    report = encoder.measure(quick=True, config=hubert_config())
    payload = json.loads(json.dumps(report.payload, allow_nan=False))
    assert payload["ratio_fp32"] == pytest.approx(3.0)
    assert payload["ratio_bf16"] == pytest.approx(6.0)
    assert 0 < payload["max_diff_fp32"] < 1e-5
    assert payload["batched_diff_fp32"] < 1e-5
    assert 1e-5 < payload["pooled_error_bf16"] < 0.02
    assert payload["bf16_left_out"] is None
    assert [row["audio_s"] for row in payload["lengths"]] == [1.0, 5.0]
    assert [row["ms"][encoder.FP32] for row in payload["lengths"]] == [pytest.approx(200.0)] * 2
    for row in payload["lengths"]:
        gflop = encoder.counted_gflop(hubert_config(), row["audio_s"])
        assert row["share_of_peak"] == pytest.approx(
            {"fp32": gflop / 0.2 / 1000 / 0.1, "bf16": gflop / 0.1 / 1000 / 0.1}
        )
    assert report.tables[0].title.startswith("Times as fast as three HubertModels")
    assert len(report.tables) == 3


def test_a_cpu_that_emulates_bfloat16_is_not_measured_in_it_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "emulates_bfloat16", lambda: True)
    report = encoder.measure(quick=True, config=hubert_config())
    payload = json.loads(json.dumps(report.payload, allow_nan=False))
    assert payload["ratio_fp32"] == pytest.approx(3.0)
    assert payload["ratio_bf16"] is None
    assert payload["pooled_error_bf16"] is None
    assert payload["bf16_left_out"] == EMULATED
    measured = [payload["gemm_tflops"], payload["batch"]["audio_s_per_s"], *(row["ms"] for row in payload["lengths"])]
    assert not any("bf16" in name for names in measured for name in names)
    assert f"bf16 was not measured: {EMULATED}" in "\n".join(report.tables[1].notes)
    (axes,) = report.draw().axes
    assert [text.get_text() for text in axes.texts] == [f"no bf16: {EMULATED}"]


@pytest.mark.parametrize(("seconds", "gflop"), [(2.0, 14.0), (5.0, 14.3), (10.0, 14.8)])
def test_the_arithmetic_is_that_of_hubert_base(seconds: float, gflop: float) -> None:
    """One full model: 14.0, 14.3 and 14.8 GFLOP per second of audio, as counted from its operations."""
    config = HubertConfig(num_hidden_layers=6)  # three layers, and three tails of three: the twelve of one full model
    assert encoder.counted_gflop(config, seconds) / seconds == pytest.approx(gflop, abs=0.15)
