"""Checkpoints with anything wrong in any file: built, or refused in one line that names file and field; never run."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kibun.models._transformers import HubertConfig, HubertModel
from kibun.models.building.build import build_model, save_bundle
from kibun.models.building.emotion_checkpoint import build_emotion_model
from kibun.models.bundle import load_bundle
from kibun.models.files import BundleError
from tests.support import ROOT
from tests.support.bundle_files import each, edit_json, write_json
from tests.support.tiny_corpus import make_corpus, make_hubert
from tests.support.tiny_hubert import HUBERT, WAVLM

NAN, INFINITY = float("nan"), float("inf")


def refusal(checkpoint: Path, build: Callable[..., Any] = build_model) -> str:
    with pytest.raises(BundleError) as caught:
        build(checkpoint, name="new", **({"condition_ff": 32} if build is build_model else {}))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert str(checkpoint) in text
    return text


# ---- config.json


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": None},
        {"vocab_size": "32"},
        {"layerdrop": None, "mask_time_prob": "high", "classifier_proj_size": -1, "pad_token_id": []},
        {"architectures": None, "transformers_version": None, "dtype": "complex512", "id2label": 5},
        {"quantization_config": {"quant_method": "nonsense"}, "_attn_implementation": "someone/kernels"},
        {"attn_implementation": "someone/kernels", "fusion_config": {"x": True}, "transformers_weights": "../../x"},
        {"hidden_dropout": 0, "layer_norm_eps": 1},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_what_is_not_used_is_left_alone(checkpoint: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    edit_json(checkpoint / "config.json", **changes)
    save_bundle(build_model(checkpoint, name="new", condition_ff=32), tmp_path / "bundle")
    load_bundle(tmp_path / "bundle", allow_untrained=True)


WRONG: list[tuple[str, Any]] = [
    *each("hidden_size", None, "768", 768.0, 0, -32, 10**9, 10**30, True, [32], {}, NAN),
    *each("num_hidden_layers", None, "4", 0, -4, 10**9),
    *each("num_attention_heads", None, 0, 5, 64),
    *each("intermediate_size", None, "48", 0, 10**9),
    *each("conv_dim", None, 16, [], [16] * 6, [16] * 100, ["16"] * 7, [0] * 7, "16"),
    *each("conv_kernel", None, [10], [10, 3, 3, 3, 3, 2, -2]),
    *each("conv_stride", None, [0] * 7, [4096] * 7, [5, 2, 2, 2, 2, 2, 2.0]),
    *each("conv_bias", None, "false", 0),
    *each("layer_norm_eps", None, "1e-5", NAN, INFINITY, -1),
    *each("hidden_act", None, "evil", 3),
    *each("feat_extract_norm", None, "batch"),
    *each("num_conv_pos_embeddings", None, 0, 10**9),
    *each("num_conv_pos_embedding_groups", None, 0, 5),
    *each("do_stable_layer_norm", None, "yes"),
    *each("hidden_dropout", None, 1.5, NAN),
    *each("model_type", None, "bert", 5, ["hubert"]),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_setting_that_cannot_be_is_named(checkpoint: Path, name: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{name: value})
    text = refusal(checkpoint)
    assert f"{checkpoint / 'config.json'}: " in text
    assert name in text


WRONG_IN_WAVLM = [
    *each("num_buckets", None, 0, 3, 10**9, 2.5),
    *each("max_bucket_distance", None, 0, -1, NAN, 10**9, 3),
    *each("add_adapter", None, True),
    *each("adapter_attn_dim", 16),
]


@pytest.mark.parametrize(("name", "value"), WRONG_IN_WAVLM)
def test_a_setting_of_wavlm_that_cannot_be_is_named(tmp_path: Path, name: str, value: Any) -> None:
    checkpoint = make_hubert(tmp_path / "wavlm", **WAVLM)
    edit_json(checkpoint / "config.json", **{name: value})
    text = refusal(checkpoint)
    assert f"{checkpoint / 'config.json'}: {name} is " in text


@pytest.mark.parametrize("taken", ["wav2vec2", "wavlm", "hubert"])
def test_weights_of_another_kind_are_refused(tmp_path: Path, taken: str) -> None:
    """A HuBERT's and a wav2vec 2.0's weights are alike and taken for each other; a WavLM has more."""
    checkpoint = make_hubert(tmp_path / "made", **({"model_type": "hubert"} if taken == "wavlm" else WAVLM))
    edit_json(checkpoint / "config.json", model_type=taken)
    what = "lacks 13 weights that" if taken == "wavlm" else "has 13 weights that config.json has no place for"
    assert what in refusal(checkpoint)


def test_a_missing_setting_is_that_of_hubert_base(checkpoint: Path) -> None:
    """As transformers has it; where the weights are of another size, the first that does not fit is named."""
    content = json.loads((checkpoint / "config.json").read_text())
    write_json(checkpoint / "config.json", {key: value for key, value in content.items() if key != "hidden_act"})
    assert build_model(checkpoint, name="new", condition_ff=32).config.hubert_config.hidden_act == "gelu"
    write_json(checkpoint / "config.json", {"model_type": "hubert"})
    assert "config.json: describes a model of " in refusal(checkpoint)
    edit_json(checkpoint / "config.json", **{**content, "num_hidden_layers": 100})
    assert "config.json: describes a model of " in refusal(checkpoint), "before memory is spent on it"
    write_json(checkpoint / "config.json", {key: value for key, value in content.items() if key != "model_type"})
    assert "config.json: model_type is null" in refusal(checkpoint)


CONTENTS = {
    "empty": b"",
    "null": b"null",
    "a list": b"[1, 2]",
    "a number": b"5",
    "cut": b'{"model_type": "hub',
    "binary": bytes(range(256)),
    "utf-16": '{"model_type": "hubert"}'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "long digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "huge": b'{"model_type": "' + b"x" * (5 << 20) + b'"}',
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_what_is_no_configuration_is_named(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)
    assert f"{checkpoint / name}: " in refusal(checkpoint)


def test_a_byte_order_mark_is_none_of_the_configuration(checkpoint: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (checkpoint / name).write_bytes(b"\xef\xbb\xbf" + (checkpoint / name).read_bytes())
    assert build_model(checkpoint, name="new", condition_ff=32).config.do_normalize is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *each("do_normalize", None, "false", 0, []),
        *each("sampling_rate", None, "16000", 8000, 16000.5, NAN),
        ("feature_extractor_type", "WhisperFeatureExtractor"),
        ("feature_size", 80),
    ],
)
def test_a_wrong_preprocessor_is_named(checkpoint: Path, name: str, value: Any) -> None:
    edit_json(checkpoint / "preprocessor_config.json", **{name: value})
    assert f"preprocessor_config.json: {name} is " in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *each("id2label", None, [], "valence", {"0": 1, "1": "valence"}, {"7": "valence"}),
        ("classifier_proj_size", None),
        ("architectures", 5),
        ("add_adapter", None),
        ("hidden_size", "32"),
        ("conv_dim", [16] * 3),
    ],
)
def test_an_emotion_checkpoint_is_checked_in_the_same_way(checkpoint: Path, name: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{"id2label": {"0": "arousal", "1": "valence"}, name: value})
    text = refusal(checkpoint, build_emotion_model)
    assert "config.json: " in text
    assert name in text


# ---- weights


def with_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object], suffix: str) -> None:
    state = {name: value.clone() for name, value in load_file(checkpoint / "model.safetensors").items()}
    change(state)
    (checkpoint / "model.safetensors").unlink()
    if suffix == ".bin":
        torch.save(state, checkpoint / "pytorch_model.bin")
    else:
        save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})


WEIGHT = "encoder.layers.0.attention.k_proj.weight"
ADAPTER = "encoder.layers.0.adapter_layer.norm.weight"


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(WEIGHT), f"lacks 1 weights .*{WEIGHT}"),
        (lambda state: state.clear(), r"config\.json: describes a model of 37,024 weights, but the checkpoint has 0"),
        (
            lambda state: state.update({ADAPTER: torch.zeros(3)}),
            f"has 1 weights .* no place for, {ADAPTER}",
        ),
        (lambda state: state.update({WEIGHT: torch.zeros(3, 5)}), f"lacks 1 weights .*{WEIGHT}"),
        (lambda state: state[WEIGHT].view(-1)[7:8].fill_(NAN), f"{WEIGHT} holds NaN or infinity"),
        (lambda state: state[WEIGHT].fill_(-INFINITY), f"{WEIGHT} holds NaN or infinity"),
        (
            lambda state: state.update({WEIGHT: torch.full((32, 32), 1e300, dtype=torch.float64)}),
            f"{WEIGHT} holds NaN or infinity",
        ),
        (lambda state: state.update({WEIGHT: state[WEIGHT].to(torch.int8)}), f"{WEIGHT} holds int8, allowed are"),
        (lambda state: state.update({WEIGHT: torch.zeros(32, 32, dtype=torch.complex64)}), f"{WEIGHT} holds complex"),
    ],
    ids=["missing", "none", "adapter", "shape", "nan", "infinite", "too large", "int", "complex"],
)
def test_weights_that_cannot_be_are_named(
    checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str, suffix: str
) -> None:
    with_weights(checkpoint, change, suffix)
    with pytest.raises(BundleError, match=message):
        build_model(checkpoint, name="new")
    refusal(checkpoint)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 1000, None], ids=["empty", "short", "long", "cut"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_of_weights_is_named(checkpoint: Path, name: str, content: bytes | None) -> None:
    """Also where the other kind is whole: which of two files was meant is not guessed."""
    if name == "pytorch_model.bin":
        with_weights(checkpoint, lambda state: None, ".bin")
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert f"{checkpoint / name}: damaged" in refusal(checkpoint)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"a": 5}, torch.zeros(3), {1: torch.zeros(3)}])
def test_a_pickle_of_anything_but_tensors_is_refused(checkpoint: Path, content: Any) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save(content, checkpoint / "pytorch_model.bin")
    assert f"{checkpoint / 'pytorch_model.bin'}: " in refusal(checkpoint)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_torchscript_archive_is_refused_like_a_pickle(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.jit.script(torch.nn.Linear(2, 2)).save(checkpoint / "pytorch_model.bin")  # type: ignore[no-untyped-call]
    assert "pytorch_model.bin: damaged, or holds more than tensors" in refusal(checkpoint)


def test_what_is_no_folder_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is a file: name the folder" in refusal(checkpoint / "model.safetensors")
    (checkpoint / "config.json").rename(checkpoint / "config.txt")
    assert "this folder holds no config.json" in refusal(checkpoint)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr("kibun.models.building.checkpoint.cached_file", unreachable)
    assert "there is no such folder, and the Hugging Face hub says: no connection to the hub" in refusal(tmp_path / "x")


@pytest.mark.parametrize("name", ["preprocessor_config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).mkdir()
    assert f"{checkpoint / name}: is not a file that can be read" in refusal(checkpoint)


def test_fewer_layers_than_there_are_are_another_model(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", num_hidden_layers=2)
    assert "model.safetensors: has 32 weights that config.json has no place for, encoder.layers.2" in refusal(
        checkpoint
    )


def sharded(checkpoint: Path) -> Path:
    model = HubertModel(HubertConfig(**HUBERT))
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="50KB")
    return checkpoint / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "", "a/b.safetensors", "x.bin", "..\\x.safetensors", "x.py"]
)
def test_an_index_names_only_files_beside_it(checkpoint: Path, name: str) -> None:
    index = sharded(checkpoint)
    names = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**names, "masked_spec_embed": name})
    assert f"{index}: weight_map names {json.dumps(name)}" in refusal(checkpoint)


@pytest.mark.parametrize("value", [None, [], {}, "model.safetensors", {"a": 5}, {"a": None}])
def test_an_index_that_is_none_is_named(checkpoint: Path, value: Any) -> None:
    index = sharded(checkpoint)
    edit_json(index, weight_map=value)
    assert f"{index}: weight_map is {json.dumps(value)}" in refusal(checkpoint)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    sharded(checkpoint)
    shard = sorted(checkpoint.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard}: missing" in refusal(checkpoint)


# ---- code


PLANTED = "import pathlib; pathlib.Path(__file__).with_name('executed').touch()\n"
NAMES = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "processor_config.json")


def plant(checkpoint: Path, model_type: str) -> None:
    """Code of its own for everything that transformers might make of a checkpoint."""
    (checkpoint / "planted.py").write_text(PLANTED + "class Planted: pass\n")
    autos = ("Config", "Model", "FeatureExtractor", "Processor", "Tokenizer", "ModelForAudioClassification")
    code = {"auto_map": {f"Auto{kind}": "planted.Planted" for kind in autos}, "custom_pipelines": {"x": {}}}
    for name in NAMES:
        content = json.loads((checkpoint / name).read_text()) if (checkpoint / name).exists() else {}
        write_json(checkpoint / name, {**content, **code})
    edit_json(checkpoint / "config.json", model_type=model_type)
    write_json(checkpoint / "adapter_config.json", {"base_model_name_or_path": "someone/else", "peft_type": "LORA"})


# Every way in which a checkpoint is read; each ends the program, which must go on to the next.
PROGRAM = """
import sys
from kibun.client.main import main
checkpoint, folder = sys.argv[1:]
for number, arguments in enumerate((
    ["models", "build", "--encoder", checkpoint, "--out", f"{folder}/a"],
    ["models", "build", "--emotion", checkpoint, "--out", f"{folder}/b"],
    ["models", "show", checkpoint],
    ["models", "verify", checkpoint],
    ["train", "pr", "--config", f"{folder}/run.toml", "--out", f"{folder}/run"],
)):
    try:
        main(arguments)
    except SystemExit as end:
        print("END", number, end.code, flush=True)
"""


@pytest.mark.parametrize("model_type", ["hubert", "planted"])
def test_no_code_of_a_checkpoint_runs_and_nothing_is_asked(checkpoint: Path, tmp_path: Path, model_type: str) -> None:
    """With a terminal attached, where transformers would ask."""
    plant(checkpoint, model_type)
    manifest = make_corpus(tmp_path / "corpus", (1, 1, 1), 1)
    (tmp_path / "run.toml").write_text(
        f'manifest = "{manifest}"\n[model]\nstart = "{checkpoint}"\n[training]\nbatch = 2\nmax_steps = 1\n'
    )
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(checkpoint), str(tmp_path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub")},
    )
    os.close(theirs)
    output = b""
    deadline = time.monotonic() + 240
    while (time.monotonic() < deadline and select.select([ours], [], [], 1)[0]) or program.poll() is None:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                output += os.read(ours, 65_536)
            except OSError:  # the other end is closed
                break
        assert time.monotonic() < deadline, output.decode()
    program.wait(60)
    os.close(ours)
    text = output.decode()
    assert text.count("END") == 5, text
    assert "Traceback" not in text
    assert not any(word in text.lower() for word in ("trust_remote_code", "[y/n]", "do you wish")), text
    assert not list(tmp_path.rglob("executed"))
    assert ("END 0 0" in text) == (model_type == "hubert"), "what fits is built by kibun's own classes"
