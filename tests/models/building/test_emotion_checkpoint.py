"""Public dimensional emotion checkpoints as bundles, against plain models of transformers; random weights throughout.

The layout is that of audEERING's wav2vec2-large-robust-12-ft-emotion-msp-dim at a tiny size; no pretrained weights
were at hand.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from kibun.models._transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)
from kibun.models.building.assemble import same_bits
from kibun.models.building.build import build_model, save_bundle
from kibun.models.building.commands import app
from kibun.models.building.emotion_checkpoint import build_emotion_model
from kibun.models.building.self_test import self_test
from kibun.models.bundle import BundleError, KibunModel, load_bundle
from kibun.models.config import KibunConfig
from kibun.models.files import verify
from kibun.models.types import Evidence, Utterance
from tests.support import present
from tests.support.bundle_files import Payload, edit_json
from tests.support.commands import invoke
from tests.support.tiny_hubert import HUBERT as FOUR_LAYERS
from tests.support.tiny_hubert import noise

HUBERT = {**FOUR_LAYERS, "num_hidden_layers": 2}
LABELS = {0: "arousal", 1: "dominance", 2: "valence"}
WAV2VEC2 = {**HUBERT, "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
NOTHING = np.zeros((0, 0), np.float16)
EVIDENCE = (Evidence(1, (1.5, 1.25, 1.0, 0.75, 0.5)),)

M = TypeVar("M", bound=nn.Module)


class Head(nn.Module):
    """Written again from the checkpoint's page."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, outputs)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.out_proj(torch.tanh(self.dense(pooled)))  # (B, outputs)
        return outputs


class Checkpoint(nn.Module):
    """Encoder and head with the weight names of the published file."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = Head(config.hidden_size, len(config.id2label or {}))

    def forward(self, waveform: np.ndarray) -> torch.Tensor:
        """(N,) -> (outputs,), as a user of transformers would."""
        normal = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        hidden = self.wav2vec2(torch.from_numpy(normal)[None]).last_hidden_state  # (1, T, H)
        outputs: torch.Tensor = self.classifier(hidden.mean(dim=1))[0]
        return outputs


def shaken(model: M, seed: int = 0) -> M:
    """Move weights off their starting values, so that a forgotten norm or bias shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.train(False)


def make(folder: Path, *, labels: dict[int, str] | None = None, pickled: bool = False, **config: Any) -> Checkpoint:
    """Write a checkpoint as its makers would, and return the plain model."""
    from safetensors.torch import save_file

    torch.manual_seed(3)
    settings = Wav2Vec2Config(**{**WAV2VEC2, **config}, id2label=labels or LABELS)
    settings.architectures = ["Wav2Vec2ForSpeechClassification"]
    model = shaken(Checkpoint(settings))
    settings.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    preprocessor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def unlimited(model: KibunModel, *waveforms: np.ndarray) -> dict[str, torch.Tensor]:
    """Estimates before they are limited to the scale."""
    with torch.no_grad():
        return model.emotion(model.encode([torch.from_numpy(waveform) for waveform in waveforms]), None)


def check_equal(model: KibunModel, plain: Checkpoint) -> None:
    waveforms = (noise(8_000, 1), noise(16_000, 2), noise(4_321, 3))
    with torch.no_grad():
        expected = torch.stack([plain(waveform) for waveform in waveforms])  # (B, outputs) of 0..1
    actual = unlimited(model, *waveforms)
    names = list((plain.wav2vec2.config.id2label or {}).values())
    for name in ("valence", "arousal"):
        torch.testing.assert_close(actual[name], 4 * expected[:, names.index(name)] + 1, atol=1e-5, rtol=0)
    assert not torch.allclose(actual["valence"], actual["arousal"], atol=1e-2)


# ---- equality -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="large-robust"),
        pytest.param({"do_stable_layer_norm": False}, id="post-norm"),
        pytest.param({"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}, id="base"),
    ],
)
def test_estimates_are_those_of_the_checkpoint_rescaled(tmp_path: Path, config: dict[str, Any]) -> None:
    plain = make(tmp_path / "public", **config)
    check_equal(build_emotion_model(tmp_path / "public", name="real"), plain)


def test_the_saved_bundle_estimates_the_same_within_the_scale(tmp_path: Path) -> None:
    plain = make(tmp_path / "public")
    save_bundle(build_emotion_model(tmp_path / "public", name="real"), tmp_path / "out")
    verify(tmp_path / "out")
    model = load_bundle(tmp_path / "out")
    check_equal(model, plain)
    assert model.config.trained
    assert (model.vector_size, model.config.conditioned, list(model.tails)) == (0, False, ["emotion"])
    assert (model.config.trunk_layers, model.config.tail_layers) == (1, 1)
    assert model.config.emotion_rescaled_from == (0.0, 1.0)
    [answer] = model.analyze([Utterance(noise(8_000), NOTHING)])
    assert 1 <= present(answer.valence) <= 5
    assert 1 <= present(answer.arousal) <= 5
    assert answer.condition_traits is None
    self_test(model)


@pytest.mark.parametrize("labels", [{0: "valence", 1: "arousal"}, {0: "Dominance", 1: "Valence", 2: "Activation"}])
def test_the_order_is_that_of_id2label(tmp_path: Path, labels: dict[int, str]) -> None:
    plain = make(tmp_path / "public", labels=labels)
    model = build_emotion_model(tmp_path / "public", name="real")
    plain.wav2vec2.config.id2label = {
        row: {"activation": "arousal"}.get(label.lower(), label.lower()) for row, label in labels.items()
    }
    check_equal(model, plain)


@pytest.mark.parametrize("trunk_layers", [0, 2])
def test_where_the_trunk_ends_changes_nothing(tmp_path: Path, trunk_layers: int) -> None:
    plain = make(tmp_path / "public")
    model = build_emotion_model(tmp_path / "public", name="real", trunk_layers=trunk_layers)
    assert model.config.tail_layers == 2 - trunk_layers
    check_equal(model, plain)


def test_pickled_and_old_weight_names_load(tmp_path: Path) -> None:
    """Old files have `weight_g` and `weight_v` where new ones have parametrizations; many exist as pickles only."""
    plain = make(tmp_path / "public", pickled=True)
    file = tmp_path / "public" / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    assert any("parametrizations.weight.original0" in name for name in state), "new names first"
    check_equal(build_emotion_model(tmp_path / "public", name="real"), plain)
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, file)
    check_equal(build_emotion_model(tmp_path / "public", name="real"), plain)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Wav2Vec2ForSequenceClassification, Wav2Vec2Config(**WAV2VEC2, id2label=LABELS)),
        (HubertForSequenceClassification, HubertConfig(**HUBERT, id2label=LABELS)),
    ],
)
def test_checkpoints_for_sequence_classification_load_too(tmp_path: Path, kind: type[Any], config: Any) -> None:
    torch.manual_seed(5)
    plain = shaken(kind(config))
    plain.save_pretrained(tmp_path / "public")
    model = build_emotion_model(tmp_path / "public", name="real")
    waveform = noise(8_000)
    normal = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    with torch.no_grad():
        logits = plain(torch.from_numpy(normal)[None]).logits[0]
    actual = unlimited(model, waveform)
    assert actual["arousal"].item() == pytest.approx(4 * logits[0].item() + 1, abs=1e-5)
    assert actual["valence"].item() == pytest.approx(4 * logits[2].item() + 1, abs=1e-5)
    assert model.config.emotion_head == "baseline"


# ---- with personality -----------------------------------------------------------------------------------------


def make_personality(folder: Path, **settings: Any) -> KibunModel:
    torch.manual_seed(4)
    hubert = {**HUBERT, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}
    model = KibunModel(
        KibunConfig(**{"hubert": hubert, "tasks": ["personality"], "trained": True, "do_normalize": False, **settings})
    )
    model.evidence, model.card = EVIDENCE, "# pr\n\n- Split: paper\n"
    save_bundle(model, folder / "bundle")
    return load_bundle(folder / "bundle")


def test_personality_of_another_size_has_its_own_trunk(tmp_path: Path) -> None:
    plain, theirs = make(tmp_path / "public"), make_personality(tmp_path / "pr", synthetic=True)
    built = build_emotion_model(tmp_path / "public", name="real", personality=tmp_path / "pr")
    save_bundle(built, tmp_path / "out")
    model = load_bundle(tmp_path / "out")
    check_equal(model, plain)
    history = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float16)
    for count in (8_000, 5_001):
        samples = noise(count) + np.float32(0.05)
        [answer] = model.analyze([Utterance(samples, history)])
        [alone] = theirs.analyze([Utterance(samples, history)])
        np.testing.assert_allclose(answer.vector, alone.vector, atol=2e-3)
        np.testing.assert_allclose(present(answer.conversation_traits), present(alone.conversation_traits), atol=1e-4)
        assert answer.valence is not None
        assert answer.condition_traits is None
    assert model.evidence == EVIDENCE
    assert (model.config.synthetic, model.config.synthetic_parts) == (True, ("personality",)), "one part is"
    card = present(model.card)
    assert "**Personality: trained on generated speech: it tells you nothing about real people.**" in card
    assert "## Personality: from `pr`" in card
    assert "- Split: paper" in card
    self_test(model)


def test_personality_trained_on_the_checkpoint_itself_shares_its_trunk(tmp_path: Path) -> None:
    plain = make(tmp_path / "public")
    emotion = build_emotion_model(tmp_path / "public", name="real")
    theirs = make_personality(tmp_path / "pr", hubert=emotion.config.hubert_config.to_dict(), do_normalize=True)
    theirs.trunk.load_state_dict(emotion.trunk.state_dict())
    theirs.save_pretrained(tmp_path / "pr" / "bundle")
    model = build_emotion_model(tmp_path / "public", name="real", personality=tmp_path / "pr")
    assert model.personality_trunk is None
    check_equal(model, plain)
    [answer] = model.analyze([Utterance(noise(8_000), np.zeros((0, 32), np.float16))])
    [alone] = theirs.analyze([Utterance(noise(8_000), np.zeros((0, 32), np.float16))])
    np.testing.assert_allclose(answer.vector, alone.vector, atol=2e-3)
    with torch.no_grad():
        theirs.get_parameter("trunk.layers.0.final_layer_norm.bias")[0] += 1e-6
    theirs.save_pretrained(tmp_path / "pr" / "bundle")
    apart = build_emotion_model(tmp_path / "public", name="real", personality=tmp_path / "pr")
    assert apart.personality_trunk is not None, "one bit more and there are two"
    copied = apart.personality_trunk.state_dict()
    assert all(same_bits(value, copied[name]) for name, value in theirs.trunk.state_dict().items())


def test_a_separate_personality_trunk_can_be_a_part_again(tmp_path: Path) -> None:
    make(tmp_path / "public")
    make_personality(tmp_path / "pr")
    first = build_emotion_model(tmp_path / "public", name="first", personality=tmp_path / "pr")
    save_bundle(first, tmp_path / "first")
    again = build_emotion_model(tmp_path / "public", name="again", personality=tmp_path / "first")
    theirs = first.state_dict()
    assert all(same_bits(value, theirs[name]) for name, value in again.state_dict().items())
    assert again.config.personality_do_normalize is False


# ---- what it says and what it refuses -------------------------------------------------------------------------


def test_the_card_names_the_rescaling_and_the_source(tmp_path: Path) -> None:
    make(tmp_path / "public")
    (tmp_path / "public" / "README.md").write_text(
        "---\nlanguage: en\nlicense: cc-by-nc-sa-4.0\ntags:\n- x\n---\n# X\n"
    )
    out = tmp_path / "out"
    printed = invoke(app, "build", "--emotion", tmp_path / "public", "--out", out)
    assert "rescaled from 0..1 to 1..5; its licence is in MODEL_CARD.md" in printed
    card = (out / "MODEL_CARD.md").read_text()
    for part in ("Licence of the emotion checkpoint: cc-by-nc-sa-4.0", "**Rescaled**", "`public`", "not a diagnosis"):
        assert part in card
    shown = invoke(app, "show", out)
    assert "RESCALED from 0..1" in shown
    assert "valence and arousal share a tail" in shown
    assert json.loads(invoke(app, "show", out, "--json"))["emotion_rescaled_from"] == [0, 1]


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (None, "unknown: see the checkpoint's page"),
        ("# No front matter\nlicense: mit\n", "unknown: see the checkpoint's page"),
        ("---\nlicense:\n- apache-2.0\n---\n", "apache-2.0"),
        ('---\nlicense: "mit" # really\n---\n', "mit"),
        ("---\nlicense_name: own\n---\n", "unknown: see the checkpoint's page"),
    ],
)
def test_the_licence_is_read_and_never_guessed(tmp_path: Path, readme: str | None, licence: str) -> None:
    make(tmp_path / "public")
    if readme is not None:
        (tmp_path / "public" / "README.md").write_text(readme)
    model = build_emotion_model(tmp_path / "public", name="real")
    assert f"Licence of the emotion checkpoint: {licence}.**" in present(model.card)
    assert model.config.license == (None if licence.startswith("unknown") else licence)


def test_audeerings_licence_is_mentioned_where_its_page_is_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "audeering" / "wav2vec2")
    monkeypatch.chdir(tmp_path)
    assert "CC-BY-NC-SA-4.0" in present(build_emotion_model("audeering/wav2vec2", name="real").card)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, "names no output 'valence'"),
        ({"id2label": {"0": "arousal", "1": "dominance", "2": "anger"}}, "names no output 'valence'"),
        ({"id2label": {"0": "arousal", "1": "valence"}}, "lacks 2 weights"),
        ({"pooling_mode": "max"}, 'config.json: pooling_mode is "max", allowed is one of "mean"'),
        ({"add_adapter": True}, "config.json: add_adapter is true, allowed is false"),
        ({"num_hidden_layers": 3}, "lacks 16 weights"),
        ({"architectures": ["Wav2Vec2ForSequenceClassification"]}, "lacks"),
        ({"model_type": "bert"}, "model_type is \"bert\", supported are 'hubert', 'wav2vec2', 'wavlm', 'ser'"),
    ],
)
def test_what_cannot_be_wrapped_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path / "public")
    edit_json(tmp_path / "public" / "config.json", **changes)
    with pytest.raises(BundleError) as caught:
        build_emotion_model(tmp_path / "public", name="real")
    assert message in str(caught.value)
    assert str(tmp_path / "public") in str(caught.value)


def test_a_checkpoint_cannot_run_code_while_it_is_wrapped(tmp_path: Path) -> None:
    make(tmp_path / "public", pickled=True)
    torch.save({"layer": Payload(tmp_path / "executed")}, tmp_path / "public" / "pytorch_model.bin")
    with pytest.raises(BundleError, match=r"pytorch_model\.bin: damaged, or holds more than tensors"):
        build_emotion_model(tmp_path / "public", name="real")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_without_an_emotion_head_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    HubertModel(HubertConfig(**HUBERT, id2label=LABELS)).save_pretrained(tmp_path / "public")
    with pytest.raises(BundleError, match=r"lacks 4 weights .*classifier\.dense\.bias first"):
        build_emotion_model(tmp_path / "public", name="real")
    with pytest.raises(BundleError, match="no checkpoint found"):
        build_emotion_model(tmp_path / "nowhere", name="real")


def test_personality_from_a_bundle_without_it_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "public")
    torch.manual_seed(0)
    HubertModel(HubertConfig(**HUBERT)).save_pretrained(tmp_path / "hubert")
    save_bundle(build_model(tmp_path / "hubert", name="v", tasks=["valence"]), tmp_path / "v")
    with pytest.raises(BundleError, match="estimates valence, but not personality"):
        build_emotion_model(tmp_path / "public", name="real", personality=tmp_path / "v")
