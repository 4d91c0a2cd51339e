"""Encoders' checkpoints as they are published, random weights in each layout: all of them build, and can be trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kibun.models.building.build import build_model, save_bundle
from kibun.models.bundle import load_bundle
from kibun.models.encoders import EncoderModel, encoder_config, encoder_of
from kibun.models.types import Utterance
from tests.support.tiny_hubert import HUBERT as FOUR_LAYERS
from tests.support.tiny_hubert import WAVLM

HUBERT: dict[str, Any] = {**FOUR_LAYERS, "num_hidden_layers": 3}
TASKS = ("personality", "valence")
State = dict[str, torch.Tensor]


def as_it_is(state: State) -> State:
    return state


def old_names(state: State) -> State:
    """Weight norm as torch named it before parametrizations."""
    renamed = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in renamed.items():
        assert any(new in name for name in state)
        state = {name.replace(new, old): value for name, value in state.items()}
    return state


def with_ctc(state: State, prefix: str = "hubert") -> State:
    """HubertForCTC: everything under a prefix, and a head that is not wanted."""
    size = HUBERT["hidden_size"]
    head = {"lm_head.weight": torch.zeros(32, size), "lm_head.bias": torch.zeros(32)}
    return {**{f"{prefix}.{name}": value for name, value in state.items()}, **head}


def halved(state: State) -> State:
    return {name: value.half() for name, value in state.items()}


def without_mask(state: State) -> State:
    """fairseq conversions without the embedding that only masked training needs."""
    return {name: value for name, value in state.items() if name != "masked_spec_embed"}


@dataclass(frozen=True)
class Layout:
    """How a published checkpoint differs from the smallest base one."""

    config: dict[str, Any] = field(default_factory=dict)
    state: Callable[[State], State] = as_it_is
    files: str = "safetensors"  # or "pickle", "shards"
    do_normalize: bool | None = True  # None: without a preprocessor_config.json


LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
LAYOUTS = {
    "base": Layout(do_normalize=False),
    "japanese-or-chinese-base": Layout(files="pickle"),
    "before-parametrizations": Layout(state=old_names, files="pickle"),
    "distilled": Layout({"num_hidden_layers": 2, "feat_proj_layer_norm": False}, files="pickle", do_normalize=None),
    "large": Layout(LARGE),
    "large-fine-tuned-ctc": Layout({**LARGE, "architectures": ["HubertForCTC"]}, with_ctc),
    "ctc-old-pickle": Layout({"architectures": ["HubertForCTC"]}, lambda state: with_ctc(old_names(state)), "pickle"),
    "half-precision": Layout(state=halved),
    "shards": Layout(files="shards"),
    "without-mask-embedding": Layout(state=without_mask),
    "batch-norm": Layout({"conv_pos_batch_norm": True}),
    "wav2vec2-base": Layout({"model_type": "wav2vec2"}, files="pickle"),
    "wav2vec2-large-robust-fine-tuned-ctc": Layout(
        {**LARGE, "model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}, lambda s: with_ctc(s, "wav2vec2")
    ),
    "wavlm-base-plus": Layout(WAVLM, old_names, "pickle", do_normalize=False),
    "wavlm-large": Layout({**WAVLM, **LARGE, "conv_bias": False}, files="shards"),
}


def publish(folder: Path, layout: Layout) -> EncoderModel:
    """Write a checkpoint of this layout; return the plain model with the weights that are in it."""
    torch.manual_seed(7)
    config = encoder_config({**HUBERT, **layout.config})
    model: EncoderModel = encoder_of(config).model(config).train(False)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases off their starting values, so that a lost one shows
            parameter.add_(0.05 * torch.randn_like(parameter))
            if layout.state is halved:
                parameter.copy_(parameter.half())
    folder.mkdir()
    state = {name: value.clone() for name, value in layout.state(dict(model.state_dict())).items()}
    if layout.files == "shards":
        model.save_pretrained(folder, max_shard_size="50KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    else:
        from safetensors.torch import save_file

        config.save_pretrained(folder)
        if layout.files == "pickle":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if layout.do_normalize is not None:
        content = {"do_normalize": layout.do_normalize, "sampling_rate": 16_000, "feature_size": 1}
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return model


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_builds_to_the_bit_and_trains(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    full = publish(tmp_path / name, layout)
    model = build_model(tmp_path / name, name="new", condition_ff=32, tasks=TASKS)
    assert model.config.do_normalize is (layout.do_normalize is not False)
    assert model.config.trunk_layers == layout.config.get("num_hidden_layers", 3) // 2
    waveform = torch.from_numpy(np.random.default_rng(0).standard_normal(8_000).astype(np.float32))
    normal = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
    with torch.no_grad():
        expected = full((normal if model.config.do_normalize else waveform)[None]).last_hidden_state
        for task in TASKS:
            actual = model.tail(task)(model.encode([waveform])).hidden
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert model.config.hubert_config.model_type == layout.config.get("model_type", "hubert")
    theirs = full.encoder.layers[-1].state_dict()
    ours = model.tail("valence").layers[-1].state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())

    check_that_it_trains(model)
    save_bundle(model, tmp_path / "out")
    loaded = load_bundle(tmp_path / "out", allow_untrained=True)
    history = np.zeros((0, model.vector_size), np.float16)
    request = Utterance(waveform.numpy(), history)
    model.train(False)
    [before], [after] = model.analyze([request]), loaded.analyze([request])
    assert before.valence == pytest.approx(after.valence, abs=1e-5)


def check_that_it_trains(model: Any) -> None:
    """A step of the optimiser moves tails and heads, and not the frozen trunk."""
    model.freeze_trunk()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    output = model(torch.randn(2, 4_000, generator=generator), [4_000, 3_000])
    loss = (output.traits - 2).square().mean() + (output.valence - 1).square().mean()
    loss.backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        if key.startswith("trunk.") or key.endswith("rel_attn_embed.weight"):
            assert torch.equal(value, before[key]), key
    for part in ("tails.personality.", "tails.valence.", "emotion_heads.valence.", "personality_head."):
        assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items() if k.startswith(part)), part
