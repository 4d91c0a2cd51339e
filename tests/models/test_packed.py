"""The served form of the encoder against the modules that are trained: the plain path is the oracle of the fast one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kibun.models import packed, precision
from kibun.models.config import KibunConfig
from kibun.models.crew import Crew
from kibun.models.frames import Frames
from kibun.models.model import KibunModel
from kibun.models.packed import (
    HEIGHTS,
    TILE_ROWS,
    WASTE,
    HeadLinear,
    Packed,
    PackedLinear,
    PackedTail,
    PackedTrunk,
    Tile,
    _attend,
    _attention,
    _Pairs,
    tiles,
)
from kibun.models.packed_model import PackedModel, pack
from kibun.models.types import Analysis, Utterance
from tests.support.tiny_hubert import VARIANTS, WAVLM, full_model, hubert_config, split, waveforms

# One frame, one and a bit, a tile exactly, mixed, several tiles of the front.
LENGTHS = (400, 719, 720, 400 + 320 * 63, 16_000, 30_001, 400 + 320 * 140)


def tiny(seed: int = 0, **changes: Any) -> KibunModel:
    torch.manual_seed(seed)
    hubert = {name: value for name, value in hubert_config().to_dict().items() if not name.startswith("_")}
    sizes = {"trunk_layers": 2, "conversation_size": 16, "conversation_heads": 2, "condition_ff": 32}
    model: KibunModel = KibunModel(KibunConfig(**{"hubert": hubert, **sizes, **changes})).train(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def utterances(model: KibunModel | PackedModel, *lengths: int) -> list[Utterance]:
    rng = np.random.default_rng(3)
    return [
        Utterance(
            rng.standard_normal(length).astype(np.float32) * 0.1,
            rng.standard_normal((k, model.vector_size)).astype(np.float16),
            (2.0, 3.0, 4.0, 5.0, 6.0) if not model.config.supports_personality else None,
        )
        for k, length in enumerate(lengths)
    ]


def same(one: Analysis, other: Analysis) -> bool:
    """Bit for bit."""
    return all(map(np.array_equal, astuple(one), astuple(other)))


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_packed_encoder_is_the_plain_one(changes: dict[str, Any]) -> None:
    trunk, tail = split(full_model(hubert_config(**changes)), 2)
    packed_trunk, packed_tail = PackedTrunk(trunk, torch.float32), PackedTail(tail, torch.float32)
    waves = waveforms(*LENGTHS)
    with torch.inference_mode():
        packed = packed_tail(packed_trunk(waves))
        expected = [tail(trunk([wave])).hidden[0] for wave in waves]
    assert packed.lengths == tuple(len(frames) for frames in expected)
    assert (packed.hidden - torch.cat(expected)).abs().max() < 1e-5


def test_the_group_norm_is_folded_right_where_the_waveform_is_far_from_zero() -> None:
    full = full_model(hubert_config(feat_extract_norm="group", conv_bias=True))
    packed, exact = PackedTrunk(split(full, 0)[0], torch.float32), split(full, 0)[0].double()
    (noise,) = waveforms(8_000)
    # Of a constant nothing is left but rounding, divided by the square root of GroupNorm's epsilon.
    for wave, bound in (
        (noise + 3.0, 1e-5),
        (1e-3 * noise, 1e-5),
        (torch.zeros(4_000), 1e-5),
        (torch.ones(4_000), 5e-4),
    ):
        with torch.inference_mode():
            assert (packed([wave]).hidden - exact([wave.double()]).hidden[0]).abs().max() < bound


@pytest.mark.parametrize("changes", [{}, {"model_type": "wav2vec2"}, WAVLM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_utterance_gives_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    trunk, tail = split(full_model(hubert_config(**changes)), 2)
    packed_trunk, packed_tail = PackedTrunk(trunk, dtype), PackedTail(tail, dtype)
    waves = waveforms(*LENGTHS)
    with torch.inference_mode():
        together = packed_tail(packed_trunk(waves)).parts()
        for wave, part in zip(waves, together, strict=True):
            assert torch.equal(packed_tail(packed_trunk([wave])).hidden, part.hidden[0])


@pytest.mark.parametrize("changes", [{}, {"model_type": "wav2vec2"}, WAVLM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_utterance_gives_the_same_bits_whoever_helps(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    trunk, tail = split(full_model(hubert_config(**changes)), 2)
    packed_trunk, packed_tail = PackedTrunk(trunk, dtype), PackedTail(tail, dtype)

    @torch.inference_mode()
    def encode(waves: Sequence[Tensor]) -> Tensor:
        return torch.as_tensor(packed_tail(packed_trunk(waves)).hidden)

    def led(crew: Crew) -> list[Tensor]:
        """Two batches at once, each in a thread of its own, of which the last helps the first."""
        batches = [waves, [long]]
        done: list[Future[Tensor]] = [Future() for _ in batches]
        for batch, future in zip(batches, done, strict=True):
            crew.submit(lambda batch=batch, future=future: future.set_result(encode(batch)))  # type: ignore[misc]
        return [future.result(60) for future in done]

    waves, long = waveforms(*LENGTHS), waveforms(100_000)[0]
    alone = [encode(waves), encode([long])]
    assert max(len(frames) for frames in alone) > 300, "several tiles"
    for threads in (2, 5):
        assert all(map(torch.equal, led(Crew(threads)), alone))


@pytest.mark.parametrize("alone", [True, False], ids=["avx2", "more"])
@pytest.mark.parametrize("changes", [{"feat_extract_norm": "group"}, {"feat_extract_norm": "layer", "conv_bias": True}])
def test_both_ways_of_the_front_are_the_plain_one_and_alone_as_in_a_batch(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], alone: bool
) -> None:
    """The way of CPUs with AVX2 alone, and that of all others, whichever this one is."""
    monkeypatch.setattr(packed, "_avx2_alone", lambda: alone)
    trunk, tail = split(full_model(hubert_config(**changes)), 2)
    packed_trunk, packed_tail = PackedTrunk(trunk, torch.float32), PackedTail(tail, torch.float32)
    assert any(isinstance(module, _Pairs) for module in packed_trunk.modules()) == alone
    waves = waveforms(*LENGTHS)
    with torch.inference_mode():
        together = packed_tail(packed_trunk(waves)).parts()
        for wave, part in zip(waves, together, strict=True):
            assert (part.hidden - tail(trunk([wave])).hidden).abs().max() < 1e-5
            assert torch.equal(packed_tail(packed_trunk([wave])).hidden, part.hidden[0])


@settings(max_examples=30)
@given(st.integers(3, 70), st.booleans(), st.booleans())
def test_outputs_in_pairs_are_the_convolution_and_each_depends_on_its_window_alone(
    rows: int, biased: bool, gelu: bool
) -> None:
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(32, 16, 3), torch.randn(32) if biased else None, torch.randn(rows, 16)
    pairs = _Pairs(weight, bias, gelu=gelu)
    with torch.inference_mode():
        y = pairs(x)
        exact = torch.nn.functional.conv1d(
            x.T[None].double(), weight.double(), None if bias is None else bias.double(), stride=2
        )[0].T
        assert y.shape == exact.shape
        assert (y - (torch.nn.functional.gelu(exact) if gelu else exact)).abs().max() < 2e-5
        index = rows % len(y)
        others = torch.randn_like(x)
        others[2 * index : 2 * index + 3] = x[2 * index : 2 * index + 3]
        assert torch.equal(pairs(others)[index], y[index])


@pytest.mark.parametrize("changes", [{}, WAVLM])
def test_bfloat16_is_near(changes: dict[str, Any]) -> None:
    trunk, tail = split(full_model(hubert_config(**changes)), 2)
    packed_trunk, packed_tail = PackedTrunk(trunk, torch.bfloat16), PackedTail(tail, torch.bfloat16)
    (wave,) = waveforms(16_000)
    with torch.inference_mode():
        expected, actual = tail(trunk([wave])).mean()[0], packed_tail(packed_trunk([wave])).mean()[0]
    difference = float((actual - expected).norm() / expected.norm())
    assert 1e-5 < difference < 0.02  # it is another precision, and not another model


def test_padded_attention_is_attention_within_each_utterance() -> None:
    """The way of devices other than a CPU."""
    torch.manual_seed(0)
    lengths = (5, 1, 9)
    qkv = torch.randn(sum(lengths), 3 * 8)
    expected = _attend(qkv, lengths, heads=2)
    padded = torch.nn.utils.rnn.pad_sequence(list(torch.split(qkv, list(lengths))), batch_first=True)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    assert (_attention(padded, mask, 2)[mask] - expected).abs().max() < 1e-6


def test_padded_attention_of_wavlm_is_attention_within_each_utterance() -> None:
    torch.manual_seed(0)
    lengths, heads = (5, 1, 9), 2
    qkv, position = torch.randn(sum(lengths), 3 * 8 + 2 * heads), (torch.randn(heads, 9, 9), torch.randn(heads, 1))
    expected = _attend(qkv, lengths, heads, position)
    assert (expected - _attend(qkv[:, : 3 * 8], lengths, heads)).abs().max() > 0.1, "the bias matters"
    padded = torch.nn.utils.rnn.pad_sequence(list(torch.split(qkv, list(lengths))), batch_first=True)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    assert (_attention(padded, mask, heads, position)[mask] - expected).abs().max() < 1e-6


@given(st.integers(1, 3_000))
def test_tiles_cover_all_rows_once_and_waste_little(rows: int) -> None:
    cut = list(tiles(rows))
    assert [start for start, _, _ in cut] == [sum(count for _, count, _ in cut[:k]) for k in range(len(cut))]
    assert sum(count for _, count, _ in cut) == rows
    assert all(height in HEIGHTS and count <= height for _, count, height in cut)
    assert all(count == height for _, count, height in cut[:-1])
    assert sum(height for _, _, height in cut) - rows <= max(TILE_ROWS + 8, rows / 7)


@given(st.integers(1, 3_000), st.integers(2, 20))
def test_tiles_for_several_threads_cover_all_rows_once_and_cost_what_they_may(rows: int, threads: int) -> None:
    def cost(cut: Sequence[Tile]) -> int:
        return sum(height + TILE_ROWS for _, _, height in cut)

    cut = tiles(rows, threads=threads)
    assert [row for start, count, _ in cut for row in range(start, start + count)] == list(range(rows))
    assert all(height in HEIGHTS and count <= height for _, count, height in cut)
    assert cost(cut) <= (1 + WASTE * threads) * cost(tiles(rows))
    assert len(cut) >= 2 or rows < 96


@settings(max_examples=20)
@given(st.integers(1, 300), st.sampled_from([1, 3, 10]))
def test_a_head_linear_is_a_linear(rows: int, batch: int) -> None:
    linear = torch.nn.Linear(24, 40)
    x = torch.randn(batch, rows, 24)
    with torch.inference_mode():
        actual = HeadLinear(linear, torch.float32)(x)
        assert (actual - linear(x)).abs().max() < 1e-5
        assert torch.equal(HeadLinear(linear, torch.float32)(x[:, :1]), actual[:, :1])  # a row owes nothing to others


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="ticn-ca"),
        pytest.param({"emotion_head": "ca"}, id="ca"),
        pytest.param({"emotion_head": "concat"}, id="concat"),
        pytest.param({"emotion_head": "regression"}, id="regression"),
        pytest.param({"emotion_head": "baseline", "tail_of": {"valence": "both", "arousal": "both"}}, id="shared-tail"),
        pytest.param({"tasks": ["valence", "arousal"]}, id="without-personality"),
        pytest.param({"tasks": ["personality"]}, id="personality-alone"),
    ],
)
def test_a_packed_model_analyses_as_the_plain_one_and_alone_as_in_a_batch(changes: dict[str, Any]) -> None:
    plain = tiny(**changes)
    requests = utterances(plain, 400, 9_000, 16_000, 31_000)
    expected = plain.analyze(requests)
    packed = pack(plain, torch.float32)
    together = packed.analyze(requests)
    assert precision.largest_difference(expected, together) < 1e-3  # of vectors rounded to float16
    for request, analysis in zip(requests, together, strict=True):
        assert same(packed.analyze([request])[0], analysis)


def test_a_packed_model_includes_personality_s_own_trunk() -> None:
    own = hubert_config(hidden_size=48, num_hidden_layers=3, num_attention_heads=4).to_dict()
    own = {name: value for name, value in own.items() if not name.startswith("_")}
    plain = tiny(personality_hubert=own, personality_trunk_layers=1)
    requests = utterances(plain, 5_000, 12_345)
    expected = plain.analyze(requests)
    actual = pack(plain).analyze(requests)
    assert actual[0].vector.shape == (48,)
    assert precision.largest_difference(expected, actual) < 1e-3


def test_packing_uses_the_model_up() -> None:
    plain = tiny()
    packed = pack(plain)
    assert not hasattr(plain, "trunk")
    assert not plain.tails
    with pytest.raises(ValueError, match=r"float32 and torch\.bfloat16"):
        pack(tiny(), torch.float16)
    with pytest.raises(KeyError):
        packed.tail("anger")


def test_packed_frames_can_be_picked() -> None:
    frames = Packed(torch.arange(12.0).view(6, 2), (1, 3, 2))
    picked = frames.rows([2, 0])
    assert picked.lengths == (2, 1)
    assert picked.hidden[:, 0].tolist() == [8.0, 10.0, 0.0]
    assert frames.rows([0, 1, 2]) is frames
    assert torch.equal(frames.mean(), torch.stack([part.mean(0) for part in torch.split(frames.hidden, [1, 3, 2])]))
    assert all(isinstance(part, Frames) for part in frames.parts())


# ---- precision


def counted(model: Callable[[], KibunModel]) -> tuple[Callable[[], KibunModel], list[int]]:
    calls: list[int] = []

    def load() -> KibunModel:
        calls.append(1)
        return model()

    return load, calls


def test_float32_is_used_if_asked_for_and_for_a_small_model() -> None:
    load, calls = counted(tiny)
    chosen = precision.packed_for(load, "fp32")
    assert (chosen.model.dtype, chosen.reason) == (torch.float32, "float32, as asked for")
    chosen = precision.packed_for(load, "auto")
    assert chosen.model.dtype == torch.float32
    assert "too small to gain" in chosen.reason
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("max_error", "dtype", "loads", "said"),
    [
        pytest.param(2.0, torch.bfloat16, 2, "bfloat16: 2.0 times as fast here, check estimates differ by", id="near"),
        pytest.param(0.0, torch.float32, 3, "float32: in bfloat16, check estimates differ by", id="too-far"),
    ],
)
def test_auto_takes_bfloat16_where_it_is_faster_and_near_enough(
    monkeypatch: pytest.MonkeyPatch, max_error: float, dtype: torch.dtype, loads: int, said: str
) -> None:
    monkeypatch.setattr(precision, "MIN_SIZE", 0)
    monkeypatch.setattr(precision, "emulates_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_gain", lambda config: 2.0)
    monkeypatch.setattr(precision, "MAX_ERROR", max_error)
    load, calls = counted(tiny)
    chosen = precision.packed_for(load, "auto")
    assert (chosen.model.dtype, len(calls)) == (dtype, loads)
    assert chosen.reason.startswith(said)
    difference = precision.largest_difference(
        precision.check_estimates(tiny()), precision.check_estimates(chosen.model)
    )
    assert difference < (1e-3 if dtype == torch.float32 else 2.0)


def test_auto_stays_in_float32_where_bfloat16_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MIN_SIZE", 0)
    monkeypatch.setattr(precision, "emulates_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_gain", lambda config: 0.8)
    chosen = precision.packed_for(tiny, "auto")
    assert (chosen.model.dtype, chosen.reason) == (torch.float32, "float32: bfloat16 is 0.8 times as fast here")
    assert not chosen.slower


@pytest.mark.parametrize(
    ("able", "emulated"),
    [
        pytest.param(
            {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, True, id="avx2"
        ),
        pytest.param({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False, id="zen-4"),
        pytest.param({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False, id="amx"),
        pytest.param({"architecture": "arm64", "bf16": False, "sve_bf16": False}, True, id="arm"),
        pytest.param({"architecture": "ppc64"}, False, id="unknown"),
    ],
)
def test_auto_times_nothing_where_the_cpu_emulates_bfloat16(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, Any], emulated: bool
) -> None:
    timed: list[KibunConfig] = []

    def gain(config: KibunConfig) -> float:
        timed.append(config)
        return 0.8

    monkeypatch.setattr(precision, "MIN_SIZE", 0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    monkeypatch.setattr(precision, "bfloat16_gain", gain)
    chosen = precision.packed_for(tiny, "auto")
    assert (chosen.model.dtype, len(timed)) == (torch.float32, 0 if emulated else 1)
    assert (precision.EMULATED in chosen.reason) == emulated


def test_bfloat16_that_was_asked_for_is_taken_with_a_warning_where_it_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "emulates_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "bfloat16_gain", lambda config: 0.07)
    chosen = precision.packed_for(tiny, "bf16")
    assert (chosen.model.dtype, chosen.slower) == (torch.bfloat16, True)
    assert chosen.reason.startswith(f"bfloat16: {precision.EMULATED} (0.07 times as fast here), check estimates")
    assert chosen.reason.endswith("; --precision auto takes float32")


def test_the_gain_is_timed_with_the_model_s_own_sizes() -> None:
    assert precision.bfloat16_gain(tiny().config) > 0


def test_a_product_in_bfloat16_comes_out_in_it() -> None:
    linear = torch.nn.Linear(16, 8)
    y = PackedLinear(linear, dtype=torch.bfloat16)(torch.randn(8, 16))
    assert y.dtype == torch.bfloat16
    assert y.shape == (8, 8)
