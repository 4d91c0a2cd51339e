"""Every layout of public emotion checkpoints on every encoder, against transformers' own forward; random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kibun.models._transformers import (
    HubertForSequenceClassification,
    Wav2Vec2ForSequenceClassification,
    WavLMForSequenceClassification,
)
from kibun.models.building.build import save_bundle
from kibun.models.building.commands import app
from kibun.models.building.emotion_checkpoint import build_emotion_model
from kibun.models.bundle import BundleError, KibunModel, load_bundle
from kibun.models.categories import NORMS, label_point
from kibun.models.config import KibunConfig
from kibun.models.encoders import encoder_config, encoder_of
from kibun.models.files import verify
from kibun.models.packed_model import pack
from kibun.models.types import EMOTIONS, Utterance
from tests.support import present
from tests.support.bundle_files import each, edit_json
from tests.support.commands import invoke
from tests.support.tiny_hubert import HUBERT, WAVLM, noise

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "hubert": (HubertForSequenceClassification, {}),
    "wav2vec2": (Wav2Vec2ForSequenceClassification, {"model_type": "wav2vec2"}),
    "wavlm": (WavLMForSequenceClassification, WAVLM),
}
SMALL = {**HUBERT, "num_hidden_layers": 3, "classifier_proj_size": 24}
DIMENSIONS = {0: "arousal", 1: "dominance", 2: "valence"}
SUPERB = {0: "neu", 1: "hap", 2: "ang", 3: "sad"}
WAVES = (noise(4_321), 8 * noise(16_000, 1), np.sin(np.arange(8_000, dtype=np.float32) / 9), noise(16_000, 3).cumsum())
NOTHING = np.zeros((0, 0), np.float16)


def shaken(model: Any) -> Any:
    """Weights off their starting values, so that a forgotten one shows; those of heads far enough to tell outputs."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            in_head = not name.startswith(("hubert", "wav2vec2", "wavlm", "ssl_model"))
            size = 0.15 if in_head else 0.5 if "rel_pos" in name or "rel_attn" in name else 0.05
            parameter.add_(size * torch.randn_like(parameter))
    return model.train(False)


def sequence(folder: Path, kind: str, labels: dict[int, str], **config: Any) -> Any:
    """A ...ForSequenceClassification checkpoint as its makers would write it; returns the plain model."""
    head, settings = KINDS[kind]
    torch.manual_seed(0)
    plain = shaken(head(encoder_config({**SMALL, **settings, "id2label": labels, **config})))
    plain.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 16_000}))
    return plain


def outputs(plain: Any) -> torch.Tensor:
    """(B, C): each waveform alone, as transformers computes it."""
    with torch.no_grad():
        return torch.cat([plain(torch.from_numpy(wave)[None]).logits for wave in WAVES])


def expected(logits: torch.Tensor, labels: dict[int, str]) -> dict[str, torch.Tensor]:
    """Each dimension (B,) by what the outputs are called."""
    names = list(labels.values())
    if "valence" in names:
        return {name: 4 * logits[:, names.index(name)] + 1 for name in EMOTIONS}
    points = torch.tensor([present(label_point(name)) for name in names])  # (C, 2)
    return dict(zip(EMOTIONS, (logits.softmax(1) @ points).unbind(1), strict=True))


def check(model: KibunModel, wanted: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Together and alone, plain, saved and packed, before estimates are limited to the scale."""
    for name in EMOTIONS:
        assert wanted[name].std() > 1e-3, "or the test would not see what the audio does"
    save_bundle(model, tmp_path / "out")
    verify(tmp_path / "out")
    waves = [torch.from_numpy(wave) for wave in WAVES]
    with torch.no_grad():
        for each_model in (model, load_bundle(tmp_path / "out")):
            together = each_model.emotion(each_model.encode(waves), None)
            alone = [each_model.emotion(each_model.encode([wave]), None) for wave in waves]
            for name in EMOTIONS:
                torch.testing.assert_close(together[name], wanted[name], atol=1e-5, rtol=1e-5)
                one_by_one = torch.cat([estimate[name] for estimate in alone])
                torch.testing.assert_close(one_by_one, wanted[name], atol=1e-5, rtol=1e-5)
        packed = pack(load_bundle(tmp_path / "out"), torch.float32)
        frames = packed.encode(waves)
        together = packed.emotion(frames, None)
        picked = packed.emotion(frames.rows([2, 0]), None)
        for name in EMOTIONS:
            torch.testing.assert_close(together[name], wanted[name], atol=2e-5, rtol=2e-5)
            assert torch.equal(picked[name], together[name][[2, 0]])
            for row, wave in enumerate(waves):
                assert torch.equal(packed.emotion(packed.encode([wave]), None)[name][0], together[name][row])
    [answer] = packed.analyze([Utterance(WAVES[0], np.zeros((0, packed.vector_size), np.float16))])
    assert answer.valence == pytest.approx(float(wanted["valence"][0].clamp(1, 5)), abs=1e-4)


@pytest.mark.parametrize("weighted", [False, True], ids=["last", "weighted"])
@pytest.mark.parametrize("labels", [DIMENSIONS, SUPERB], ids=["dimensions", "categories"])
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", KINDS)
def test_sequence_classification(
    tmp_path: Path, kind: str, large: bool, labels: dict[int, str], weighted: bool
) -> None:
    config: dict[str, Any] = {"use_weighted_layer_sum": weighted, "do_stable_layer_norm": large}
    config["feat_extract_norm"] = "layer" if large else "group"
    plain = sequence(tmp_path / "public", kind, labels, **config)
    model = build_emotion_model(tmp_path / "public", name="public", trunk_layers=2 if weighted else None)
    assert model.config.hubert_config.model_type == kind
    check(model, expected(outputs(plain), labels), tmp_path)


@pytest.mark.parametrize("trunk_layers", [0, 3])
def test_where_the_trunk_ends_changes_no_weighted_sum(tmp_path: Path, trunk_layers: int) -> None:
    plain = sequence(tmp_path / "public", "wavlm", SUPERB, use_weighted_layer_sum=True)
    model = build_emotion_model(tmp_path / "public", name="public", trunk_layers=trunk_layers)
    check(model, expected(outputs(plain), SUPERB), tmp_path)


class Odyssey(nn.Module):
    """Written from the description of the baseline: attentive statistics, hidden layers, outputs."""

    def __init__(self, config: Any, outputs: int, hidden: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.ssl_model = encoder_of(config).model(config)
        self.pool_model = nn.Module()
        self.pool_model.sap_linear = nn.Linear(size, size)
        self.pool_model.attention = nn.Parameter(torch.randn(size, 1))
        self.ser_model = nn.Module()
        widths = [2 * size, *[size] * (hidden - 1)]
        self.ser_model.fc = nn.ModuleList(
            [nn.Sequential(nn.Linear(each, size), nn.LayerNorm(size), nn.ReLU(), nn.Dropout()) for each in widths]
        )
        self.ser_model.out = nn.Sequential(nn.Linear(size, outputs))

    def forward(self, waveform: np.ndarray, mean: float, std: float) -> torch.Tensor:
        """(N,) to (1, outputs), with the input scaled as the checkpoint's page says."""
        scaled = (torch.from_numpy(waveform)[None] - mean) / (std + 1e-6)
        x = self.ssl_model(scaled, attention_mask=torch.ones_like(scaled)).last_hidden_state[0]  # (T, H)
        score = torch.tanh(self.pool_model.sap_linear(x)) @ self.pool_model.attention  # type: ignore[operator]
        weight = score.softmax(0)  # (T, 1)
        centre = (weight * x).sum(0)
        spread = ((weight * x**2).sum(0) - centre**2).clamp(min=1e-5).sqrt()
        hidden = torch.cat([centre, spread])[None]
        for layer in self.ser_model.fc:  # type: ignore[union-attr]
            hidden = layer(hidden)
        result: torch.Tensor = self.ser_model.out(hidden)  # type: ignore[operator]
        return result


def odyssey(folder: Path, labels: dict[int, str], hidden: int = 1, **changes: Any) -> Odyssey:
    from safetensors.torch import save_file

    torch.manual_seed(2)
    encoder = {**SMALL, **WAVLM, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
    plain: Odyssey = shaken(Odyssey(encoder_config(encoder), len(labels), hidden))
    folder.mkdir()
    state = {name: value.contiguous() for name, value in plain.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    content = {
        **{name: value for name, value in encoder.items() if name != "model_type"},
        "model_type": "ser",
        "architectures": ["SERModel"],
        "auto_map": {"AutoConfig": "pipeline_utils.SERConfig", "AutoModelForAudioClassification": "evil.SERModel"},
        "ssl_type": "microsoft/wavlm-large",
        "num_classes": len(labels),
        "classifier_hidden_layers": hidden,
        "id2label": {str(row): label for row, label in labels.items()},
        "sampling_rate": 16_000,
        "mean": -0.01,
        "std": 0.11,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return plain


@pytest.mark.parametrize(
    ("labels", "hidden"), [(DIMENSIONS, 1), (DIMENSIONS, 3), ({0: "Angry", 1: "Sad", 2: "Happy", 3: "Neutral"}, 2)]
)
def test_the_odyssey_baseline(tmp_path: Path, labels: dict[int, str], hidden: int) -> None:
    plain = odyssey(tmp_path / "public", labels, hidden)
    with torch.no_grad():
        logits = torch.cat([plain(wave, -0.01, 0.11) for wave in WAVES])
        unscaled = torch.cat([plain(wave, 0.0, 1.0) for wave in WAVES])
    assert (logits - unscaled).abs().max() > 0.01, "the scale of the input matters"
    check(build_emotion_model(tmp_path / "public", name="public"), expected(logits, labels), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_regression_head_on_any_encoder(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(4)
    config = encoder_config({**SMALL, **KINDS[kind][1], "id2label": DIMENSIONS})
    plain = nn.ModuleDict({kind: encoder_of(config).model(config)})
    plain["classifier"] = nn.ModuleDict({"dense": nn.Linear(32, 32), "out_proj": nn.Linear(32, 3)})
    shaken(plain)
    config.save_pretrained(tmp_path / "public")
    state = {name: value.contiguous() for name, value in plain.state_dict().items()}
    save_file(state, tmp_path / "public" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "public" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    head: Any = plain["classifier"]
    with torch.no_grad():
        means = torch.cat([plain[kind](torch.from_numpy(wave)[None]).last_hidden_state.mean(1) for wave in WAVES])
        logits = head["out_proj"](torch.tanh(head["dense"](means)))
    check(build_emotion_model(tmp_path / "public", name="public"), expected(logits, DIMENSIONS), tmp_path)


def test_personality_on_a_wavlm_beside_emotion_on_all_layers(tmp_path: Path) -> None:
    """It has a trunk of its own, of its own kind; emotion is as without it, also taken out and put together again."""
    plain = sequence(tmp_path / "public", "hubert", SUPERB, use_weighted_layer_sum=True)
    torch.manual_seed(5)
    theirs = KibunModel(KibunConfig(hubert={**SMALL, **WAVLM}, tasks=["personality"], do_normalize=False, trained=True))
    save_bundle(theirs, tmp_path / "pr" / "bundle")
    model = build_emotion_model(tmp_path / "public", name="public", personality=tmp_path / "pr")
    kinds = model.config.hubert_config.model_type, model.config.personality_hubert_config.model_type
    assert kinds == ("hubert", "wavlm")
    check(model, expected(outputs(plain), SUPERB), tmp_path)
    history = np.zeros((0, 32), np.float16)
    [answer] = model.analyze([Utterance(WAVES[0], history)])
    [alone] = theirs.train(False).analyze([Utterance(WAVES[0], history)])
    np.testing.assert_allclose(present(answer.utterance_traits), present(alone.utterance_traits), atol=1e-4)
    parts = [part for name in EMOTIONS for part in (f"--{name}", tmp_path / "out")]
    invoke(app, "build", *parts, "--out", tmp_path / "again")
    [again] = load_bundle(tmp_path / "again").analyze([Utterance(WAVES[0], NOTHING)])
    assert (again.valence, again.arousal) == (answer.valence, answer.arousal)


def test_a_bundle_says_whose_points_its_categories_have(tmp_path: Path) -> None:
    sequence(tmp_path / "public", "hubert", SUPERB, use_weighted_layer_sum=True)
    text = invoke(app, "build", "--emotion", tmp_path / "public", "--out", tmp_path / "out")
    assert "from its categories by a table" in text
    text = " ".join(invoke(app, "show", tmp_path / "out").split())
    assert "FROM CATEGORIES (valence / arousal): neu 3.25 / 2.225, hap 4.735 / 3.525" in text
    assert text.count("Warriner, Kuperman & Brysbaert (2013)") == 2, "in the row and in the card"
    assert "It never heard a rating of valence or arousal" in text
    facts = json.loads(invoke(app, "show", tmp_path / "out", "--json"))
    assert facts["emotion_points"]["sad"] == pytest.approx([1.55, 2.245])
    assert facts["emotion_rescaled_from"] is None


def test_every_category_has_labels_and_a_point_on_the_scale() -> None:
    for category in NORMS:
        assert all(1 <= value <= 5 for value in present(label_point(category.upper())))
    assert label_point("contempt") is None


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ({0: "angry", 1: "contempt"}, {}, "categories that have no point of valence and arousal: contempt; those that"),
        ({row: f"LABEL_{row}" for row in range(3)}, {}, "names no output 'valence' (it names LABEL_0, LABEL_1, L"),
        ({0: "valence", 1: "angry"}, {}, "names no output 'arousal'"),
        (SUPERB, {"problem_type": "multi_label_classification"}, "problem_type is"),
        (SUPERB, {"use_weighted_layer_sum": "yes"}, "use_weighted_layer_sum is"),
        (SUPERB, {"use_weighted_layer_sum": True}, "lacks 1 weights"),
        (SUPERB, {"num_hidden_layers": 4}, "lacks"),
        (SUPERB, {"add_adapter": True}, "add_adapter is true, allowed is false"),
        (SUPERB, {"architectures": ["SomebodysEmotionModel"]}, "names no output 'valence'"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, labels: dict[int, str], changes: dict[str, Any], message: str
) -> None:
    sequence(tmp_path / "public", "wavlm", labels)
    edit_json(tmp_path / "public" / "config.json", **changes)
    refused(tmp_path / "public", message)


WRONG_IN_SER = [
    *each("ssl_type", None, "someone/else", 5),
    *each("num_classes", None, 0, 4, 10**9),
    *each("classifier_hidden_layers", None, 0, 17, 1.5),
    *each("sampling_rate", None, 8_000),
    *each("mean", None, "0", float("nan"), 1e30),
    *each("std", None, 0, -1, float("inf")),
    *each("num_buckets", 0),
    *each("hidden_size", 0),
    *each("id2label", None, {"0": "arousal"}),
]


@pytest.mark.parametrize(("name", "value"), WRONG_IN_SER)
def test_a_setting_of_the_odyssey_baseline_that_cannot_be_is_named(tmp_path: Path, name: str, value: Any) -> None:
    odyssey(tmp_path / "public", DIMENSIONS, **{name: value})
    refused(tmp_path / "public", name)


def test_an_odyssey_baseline_without_its_encoder_is_refused(tmp_path: Path) -> None:
    odyssey(tmp_path / "public", DIMENSIONS)
    content = json.loads((tmp_path / "public" / "config.json").read_text())
    del content["ssl_type"]
    (tmp_path / "public" / "config.json").write_text(json.dumps(content))
    refused(tmp_path / "public", "ssl_type is missing")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        build_emotion_model(folder, name="public")
    text = str(caught.value)
    assert message in text
    assert str(folder) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emotion_points": [[3, 3]]}, "emotion_points has 1 points"),
        ({"emotion_points": [[3, 3], [3, 9]]}, "emotion_points of 'b' is"),
        ({"emotion_head": "baseline"}, "emotion_classes needs emotion_head 'readout'"),
        ({"readout_pooling": "max"}, "readout_pooling is 'max'"),
    ],
)
def test_impossible_readouts_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"emotion_head": "readout", "emotion_classes": ["a", "b"], "emotion_points": [[3, 3], [2, 4]]}
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        KibunConfig(hubert=SMALL, **{**settings, **changes})
