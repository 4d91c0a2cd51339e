"""What a server loads: the weights and the refusals of `load_bundle`, without transformers."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kibun.models.bundle import BundleError, load_bundle
from kibun.models.encoder_settings import EncoderSettings
from kibun.models.encoders import encoder_config
from kibun.models.fields import ENCODERS, check_encoder
from kibun.models.files import CONFIG, WEIGHTS, write_checksums
from kibun.models.model import KibunModel
from kibun.models.packed_model import pack
from kibun.models.settings import BundleSettings, read_settings
from kibun.models.stored import load_stored
from kibun.models.types import Utterance
from tests.support.bundle_files import edit_json
from tests.support.tiny_hubert import HUBERT, VARIANTS, WAVLM, noise, tiny_model

PARTS = [
    pytest.param({}, id="default"),
    pytest.param({"tail_of": {"valence": "emotion", "arousal": "emotion"}, "familiarity": True}, id="shared-tail"),
    pytest.param({"tasks": ["valence", "arousal"], "emotion_head": "regression"}, id="emotion-alone"),
    pytest.param({"tasks": ["personality"]}, id="personality-alone"),
    pytest.param({"emotion_head": "readout", "readout_pooling": "layers", "readout_hidden": 1}, id="readout-layers"),
    pytest.param({"emotion_head": "readout", "readout_pooling": "attentive"}, id="readout-attentive"),
    pytest.param({"personality_hubert": {**HUBERT, **WAVLM}, "emotion_head": "ca"}, id="own-trunk"),
    pytest.param({"hubert": {**HUBERT, "hidden_act": "quick_gelu"}}, id="activation-of-transformers"),
]


def saved(folder: Path, *, dtype: torch.dtype | None = None, **settings: Any) -> KibunModel:
    """A trained bundle whose norms, gates and biases are off their starting values."""
    model = tiny_model(trained=True, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder, dtype=dtype)
    return model


def requests(model: KibunModel) -> list[Utterance]:
    given = None if model.config.supports_personality else (2.0, 6.5, 3.0, 6.0, 1.0)
    history = np.random.default_rng(1).standard_normal((2, model.vector_size)).astype(np.float16)
    return [Utterance(noise(samples, samples), history, given) for samples in (400, 16_000, 27_123)]


def assert_serves_the_same(folder: Path) -> None:
    """What a server loads has the same weights, and answers the same to the last bit."""
    plain, stored = load_bundle(folder, mapped=True), load_stored(folder)
    state = stored.state_dict()
    assert list(state) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name
    asked = requests(plain)
    for one, other in zip(pack(plain).analyze(asked), pack(stored).analyze(asked), strict=True):
        assert np.array_equal(one.vector, other.vector)
        assert one.numbers() == other.numbers()
        assert one.condition_weight == other.condition_weight


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_encoder_serves_as_transformers_modules_do(tmp_path: Path, variant: dict[str, Any]) -> None:
    saved(tmp_path, hubert={**HUBERT, **variant})
    assert_serves_the_same(tmp_path)


@pytest.mark.parametrize("settings", PARTS)
def test_every_part_serves_as_the_trained_one_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    saved(tmp_path, **settings)
    assert_serves_the_same(tmp_path)


def test_a_server_answers_the_same_however_many_threads_load_it(tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 1}
    model, before = saved(tmp_path, hubert={**HUBERT, **wide}), torch.get_num_threads()
    vectors = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            packed = pack(load_stored(tmp_path))
            assert torch.get_num_threads() == threads
            torch.set_num_threads(1)
            vectors.append(packed.vectors(packed.encode([torch.from_numpy(noise(16_000, 1))])))
    finally:
        torch.set_num_threads(before)
    assert model.vector_size == 64
    assert all(torch.equal(vectors[0], other) for other in vectors)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mapped files")
def test_a_packed_model_leaves_its_file(tmp_path: Path) -> None:
    saved(tmp_path)
    stored = load_stored(tmp_path)
    maps = Path("/proc/self/maps")
    assert str(tmp_path) in maps.read_text()
    packed = pack(stored)
    assert str(tmp_path) not in maps.read_text()
    assert packed.dtype == torch.float32


def test_weights_in_half_precision_serve_as_float32(tmp_path: Path) -> None:
    saved(tmp_path, dtype=torch.float16)
    assert {value.dtype for value in load_stored(tmp_path).state_dict().values()} == {torch.float32}
    assert_serves_the_same(tmp_path)


def test_weights_of_torch_before_its_parametrizations_are_read(tmp_path: Path) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in state.items()
    }
    assert renamed.keys() != state.keys()
    save_file(renamed, tmp_path / WEIGHTS, metadata={"format": "pt"})
    write_checksums(tmp_path)
    assert_serves_the_same(tmp_path)


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda state: state.pop("personality_head.out.bias"), id="lacks one"),
        pytest.param(lambda state: state.update(extra=torch.zeros(2)), id="one more"),
        pytest.param(lambda state: state.update({"personality_head.out.bias": torch.zeros(4)}), id="another shape"),
        pytest.param(lambda state: state["personality_head.out.bias"].fill_(float("nan")), id="no number"),
        pytest.param(lambda state: state["trunk.layers.0.layer_norm.bias"].fill_(float("inf")), id="infinity"),
        pytest.param(lambda state: state.update({"extra": torch.zeros(2, dtype=torch.int8)}), id="a dtype"),
        pytest.param(lambda state: [state.pop(name) for name in list(state)[9:]], id="too few"),
        pytest.param(
            lambda state: (
                state.update({"extra": torch.zeros(2), "personality_head.out.bias": torch.zeros(4)})
                or state.pop("personality_head.out.weight")
            ),
            id="several",
        ),
    ],
)
def test_weights_are_refused_in_the_words_of_load_bundle(tmp_path: Path, change: Change) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    change(state)
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    write_checksums(tmp_path)
    assert_same_refusal(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"trained": False},
        {"tasks": ["personality", "arousal"]},
        {"condition_ff": 8},
        {"condition_source": "guess"},
        {"condition_heads": 5},
        {"emotion_head": "best"},
        {"trunk_layers": 9},
        {"hubert": {**HUBERT, "conv_stride": [5, 2]}},
        {"hubert": {**HUBERT, "model_type": "whisper"}},
        {"hubert": {**HUBERT, "hidden_size": 4096}},
        {"condition_centre": [0.0] * 5, "familiarity": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_are_refused_in_the_words_of_load_bundle(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved(tmp_path, familiarity="familiarity" in changes)
    edit_json(tmp_path / CONFIG, **changes)
    write_checksums(tmp_path)
    assert_same_refusal(tmp_path)


def test_damaged_files_are_refused_in_the_words_of_load_bundle(tmp_path: Path) -> None:
    saved(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: len(content) // 2])
    assert_same_refusal(tmp_path)  # the checksum
    write_checksums(tmp_path)
    assert_same_refusal(tmp_path)  # safetensors


def assert_same_refusal(folder: Path) -> None:
    with pytest.raises(BundleError) as plain:
        load_bundle(folder)
    with pytest.raises(BundleError) as served:
        load_stored(folder)
    assert str(served.value) == str(plain.value)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_has_the_defaults_of_transformers(kind: str) -> None:
    expected = encoder_config({"model_type": kind})
    settings = EncoderSettings.of(check_encoder({"model_type": kind}))
    for field in dataclasses.fields(settings):
        if hasattr(expected, field.name):
            assert getattr(settings, field.name) == getattr(expected, field.name), field.name
    unused = {"hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"}
    assert ENCODERS[kind].keys() - unused <= {field.name for field in dataclasses.fields(settings)}


def test_settings_are_those_of_the_configuration(tmp_path: Path) -> None:
    model = saved(tmp_path, personality_hubert={**HUBERT, **WAVLM}, condition_centre=[4.0] * 5, synthetic=True)
    settings = read_settings(tmp_path)
    for field in dataclasses.fields(BundleSettings):
        if field.name not in ("hubert", "personality_hubert"):
            assert getattr(settings, field.name) == getattr(model.config, field.name), field.name
    assert settings.min_samples == model.config.min_samples
    assert settings.personality_hubert_config.num_buckets == WAVLM["num_buckets"]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"familiarity": True}, id="hubert"),
        pytest.param(
            {
                "hubert": {**HUBERT, **WAVLM},
                "personality_hubert": {**HUBERT, "conv_pos_batch_norm": True},
                "emotion_head": "readout",
                "readout_pooling": "attentive",
                "readout_hidden": 1,
            },
            id="wavlm",
        ),
    ],
)
def test_serving_a_bundle_imports_no_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Nor torch's compiler; either takes seconds. In a process of its own, as the tests' has imported both."""
    saved(tmp_path, **settings)
    script = (
        "import sys\n"
        "from kibun.server.inference.runner import BatchRunner\n"
        "from kibun.server.inference.worker import load_models\n"
        "from kibun.server.inference.worker_protocol import LoadOptions\n"
        "BatchRunner(load_models(LoadOptions('', (sys.argv[1],), device='cpu')).models).warm_up(1.0)\n"
        "heavy = {'transformers', 'accelerate', 'sympy', 'scipy', 'torch._dynamo', 'torch.distributed.tensor'}\n"
        "sys.exit(f'imported {found}' if (found := heavy & set(sys.modules)) else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
