"""Bundles on disk: equal after loading, refused when damaged, unsafe or untrained; built from HuBERT checkpoints."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kibun.models._transformers import AutoConfig, AutoModel, HubertConfig, HubertModel
from kibun.models.building.build import build_model
from kibun.models.building.facts import read_facts
from kibun.models.building.self_test import self_test
from kibun.models.bundle import BundleError, KibunConfig, KibunModel, bundle_names, load_bundle, resolve_bundle
from kibun.models.files import BUNDLES, FILES, joint_license, verify, write_checksums
from kibun.models.types import TRAITS, Evidence, Utterance
from tests.support import present
from tests.support.bundle_files import Payload, each, edit_json, write_json
from tests.support.tiny_hubert import HUBERT, noise, tiny_model

EVIDENCE = (
    Evidence(1, (1.5, 1.25, 1.0, 0.75, 0.5)),
    Evidence(8, (1.0, 1.0, 0.5, 0.5, 0.25), (1.0, 1.5, 1.0, 1.0, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)),
)
REQUEST = Utterance(
    np.random.default_rng(0).standard_normal(8_000).astype(np.float32),
    np.random.default_rng(1).standard_normal((2, 32)).astype(np.float16),
)


def make_model(**settings: Any) -> KibunModel:
    return tiny_model(**{"trained": True, **settings})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    make_model(bundle_name="tiny").save_pretrained(folder)
    return folder


def current_umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_saved_and_loaded_every_bit_is_equal(tmp_path: Path) -> None:
    model = make_model(condition_source="average", do_normalize=False, synthetic=True, trunk_layers=1)
    model.evidence, model.card = EVIDENCE, "# A card\n"
    model.save_pretrained(tmp_path)
    loaded = load_bundle(tmp_path)
    assert not loaded.training
    assert loaded.dtype == torch.float32
    assert weights(loaded).keys() == weights(model).keys()
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(loaded).items())
    assert loaded.evidence == EVIDENCE
    assert loaded.card == "# A card\n"
    assert loaded.config.synthetic_parts == ("trunk", *loaded.config.tasks)
    for field in ("condition_source", "do_normalize", "synthetic", "trained", "trunk_layers", "tasks", "trait_scale"):
        assert getattr(loaded.config, field) == getattr(model.config, field), field
    [before], [after] = model.analyze([REQUEST]), loaded.analyze([REQUEST])
    assert np.array_equal(before.vector, after.vector)
    assert (before.valence, before.conversation_traits) == (after.valence, after.conversation_traits)
    [again] = load_bundle(tmp_path).analyze([REQUEST])
    assert (again.valence, again.conversation_traits) == (after.valence, after.conversation_traits)


def test_transformers_auto_classes_know_bundles(bundle: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(bundle), KibunConfig)
    model = AutoModel.from_pretrained(bundle)
    assert isinstance(model, KibunModel)
    assert model.dtype == torch.float32


def test_float16_weights_halve_the_file_and_load_as_float32(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert model.dtype == torch.float32, "saving does not change the model"
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_bundle(tmp_path / "half")
    assert {value.dtype for value in weights(loaded).values()} == {torch.float32}
    assert all(torch.equal(value, weights(model)[name].half().float()) for name, value in weights(loaded).items())
    assert read_facts(tmp_path / "half").weights_dtype == "F16"


def test_a_weight_beyond_float16_is_not_saved_as_infinity(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.personality_head.out.bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"personality_head\.out\.bias"):
        model.save_pretrained(tmp_path, dtype=torch.float16)


def test_checksums_are_those_of_sha256sum(bundle: Path) -> None:
    verify(bundle)
    for line in (bundle / "sha256").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    result = subprocess.run(["sha256sum", "-c", "sha256"], cwd=bundle, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("OK") == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: does not match sha256"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, "sha256"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: missing"):
        load_bundle(bundle)


def test_a_licence_goes_with_the_bundle(tmp_path: Path) -> None:
    model = make_model(license="CC-BY-NC-SA-4.0")
    model.license_text = "Attribution, not for money.\n"
    model.save_pretrained(tmp_path)
    loaded = load_bundle(tmp_path, allow_untrained=True)
    assert (loaded.config.license, loaded.license_text) == ("CC-BY-NC-SA-4.0", model.license_text)
    assert (read_facts(tmp_path).license, read_facts(tmp_path).license_text) == (
        model.config.license,
        model.license_text,
    )
    assert "Licence: CC-BY-NC-SA-4.0" in present(loaded.card)
    text = (tmp_path / "LICENSE").read_text()
    (tmp_path / "LICENSE").write_text("Do as you like.\n")
    with pytest.raises(BundleError, match="LICENSE: does not match sha256"):
        verify(tmp_path)
    (tmp_path / "LICENSE").unlink()
    with pytest.raises(BundleError, match="LICENSE: missing, and the bundle came with it"):
        verify(tmp_path)
    (tmp_path / "LICENSE").write_text(text)
    verify(tmp_path)
    model.license_text = None
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "LICENSE").exists()
    verify(tmp_path)
    (tmp_path / "LICENSE").write_text("Slipped in.\n")
    with pytest.raises(BundleError, match="LICENSE: does not match sha256"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("licenses", "joint"),
    [
        (["MIT"], "MIT"),
        ([None, None], None),
        ([], None),
        (["MIT", "CC-BY-4.0", "MIT"], "MIT AND CC-BY-4.0"),
        (["MIT AND CC-BY-4.0", "CC-BY-4.0 AND Apache-2.0"], "MIT AND CC-BY-4.0 AND Apache-2.0"),
        ([None, "MIT"], "MIT AND not stated"),
        (["MIT AND not stated", "ODbL-1.0"], "MIT AND ODbL-1.0 AND not stated"),
        (["not stated"], None),
    ],
)
def test_all_licences_apply_to_what_is_made_of_several(licenses: list[str | None], joint: str | None) -> None:
    assert joint_license(licenses) == joint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "model.pkl", "extra.ckpt", "notes.txt"])
def test_pickles_are_refused_whatever_they_are_called(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(BundleError, match=rf"{name}: may contain code"):
        load_bundle(bundle)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("save", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save], ids=["pickle", "torch"])
def test_a_pickle_in_place_of_the_weights_is_refused(bundle: Path, tmp_path: Path, save: Callable[..., None]) -> None:
    save(Payload(tmp_path / "executed"), bundle / "model.safetensors")
    write_checksums(bundle)  # an attacker who plants a pickle can also write checksums
    with pytest.raises(BundleError, match=r"model\.safetensors: may contain code"):
        load_bundle(bundle)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x05"])
def test_weights_that_start_like_a_pickle_by_chance_are_none(bundle: Path, start: bytes) -> None:
    """A safetensors file starts with the length of its header; spaces may fill that up to any multiple of 8."""
    file = bundle / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    longer = next(n for n in range(length, 1 << 20) if n.to_bytes(8, "little").startswith(start))
    header = content[8 : 8 + length].ljust(longer)
    file.write_bytes(longer.to_bytes(8, "little") + header + content[8 + length :])
    assert file.read_bytes().startswith(start)
    write_checksums(bundle)
    assert load_bundle(bundle).config.trained


def test_a_file_that_is_not_part_of_a_bundle_is_named(bundle: Path) -> None:
    (bundle / ".gitattributes").touch()
    verify(bundle)
    write_json(bundle / "adapter_config.json", {"base_model_name_or_path": "elsewhere"})
    with pytest.raises(BundleError, match=r"adapter_config\.json: not part of a bundle"):
        load_bundle(bundle)


def test_damaged_weights_with_matching_checksums_are_a_bundle_error(bundle: Path) -> None:
    content = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(content[: len(content) // 2])
    write_checksums(bundle)
    with pytest.raises(BundleError, match=r"model\.safetensors: damaged"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["config.json", "MODEL_CARD.md", "sha256"])
def test_a_folder_in_place_of_a_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"tasks": ["personality", "arousal"]}, "has no place for, .*valence", id="not for these weights"),
        pytest.param(
            {"condition_ff": 8}, r"weights of another shape than config\.json describes, ", id="another shape"
        ),
        pytest.param({"condition_source": "guess"}, "condition_source", id="impossible"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(bundle: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(bundle / "config.json", **changes)
    write_checksums(bundle)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *each("hubert", None, [], "hubert"),
        *each("hubert.hidden_size", None, "32", 10**9),
        *each("hubert.num_hidden_layers", None, 0, 10**9),
        *each("hubert.conv_stride", [5, 2], [0] * 7),
        *each("trunk_layers", None, "2", -1, 9),
        *each("tasks", None, "valence", ["anger"], [], [5]),
        *each("tail_of", [], {"valence": 5}, {"valence": "../x"}),
        *each("condition_ff", None, 0, 10**9),
        *each("condition_heads", None, 0, 5),
        *each("condition_on", None, ["charm"]),
        *each("conversation_size", "64", -1),
        *each("head_dropout", None, 2, float("nan"), 10**400),
        *each("trait_scale", None, [1], [7, 1], ["1", "7"], [1, float("nan")], [1, 10**400], [-1e300, 1e300]),
        *each("emotion_scale", 5, [1, 5, 9]),
        *each("emotion_rescaled_from", 0, [1, 1]),
        *each("sampling_rate", None, "16000", 8000),
        *each("trained", None, "yes", 1),
        *each("do_normalize", None, "no"),
        *each("bundle_name", None, "", "a\nb", 5),
        *each("emotion_head", None, "best"),
    ],
)
def test_a_setting_that_cannot_be_is_named(bundle: Path, name: str, value: Any) -> None:
    content = json.loads((bundle / "config.json").read_text())
    section, _, field = name.rpartition(".")
    (content[section] if section else content)[field] = value
    write_json(bundle / "config.json", content)
    write_checksums(bundle)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    assert f"{bundle / 'config.json'}: " in str(caught.value)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "5", "\ufeff{}", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "expected_error.json"])
def test_a_file_that_is_no_json_object_is_named(bundle: Path, name: str, content: str) -> None:
    (bundle / name).write_text(content, encoding="utf-8")
    write_checksums(bundle)
    for read in (load_bundle, read_facts):
        with pytest.raises(BundleError, match=rf"{name}: ") as caught:
            read(bundle)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"utterance_count": None}, "utterance_count is null"),
        ({"utterance_count": 1.5}, "utterance_count is 1.5"),
        ({"utterance_count": 1}, "must rise"),
        ({"openness": "1.0"}, "openness is"),
        ({"openness": float("nan")}, "openness is NaN"),
        ({"openness": -1}, "openness is -1"),
        ({"openness": 10**400}, "openness is 1000"),
    ],
)
def test_an_expected_error_that_cannot_be_is_named(bundle: Path, changes: dict[str, Any], message: str) -> None:
    rows = [{"utterance_count": count, **dict.fromkeys(TRAITS, 1.0)} for count in (1, 2)]
    write_json(bundle / "expected_error.json", {"by_utterance_count": [rows[0], {**rows[1], **changes}]})
    write_checksums(bundle)
    with pytest.raises(BundleError, match=rf"expected_error\.json: by_utterance_count\[1\]\..*{message}"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": {"openness": 0.5}}, "weight.conscientiousness is missing"),
        ({"weight": dict.fromkeys(TRAITS, 1.5)}, "weight.openness is 1.5, allowed is a number from 0 to 1"),
        ({"weight": {**dict.fromkeys(TRAITS, 1.0), "openness": 10**400}}, "weight.openness is 1000"),
        ({"weight": 1}, "weight is 1, allowed is null or an object"),
        ({"error_of_mean": dict.fromkeys(TRAITS, -1)}, "error_of_mean.openness is -1"),
    ],
)
def test_evidence_that_cannot_be_is_named(bundle: Path, changes: dict[str, Any], message: str) -> None:
    row = {"utterance_count": 1, **dict.fromkeys(TRAITS, 1.0), **changes}
    write_json(bundle / "expected_error.json", {"by_utterance_count": [row]})
    write_checksums(bundle)
    with pytest.raises(BundleError, match=rf"expected_error\.json: by_utterance_count\[0\]\.{message}"):
        load_bundle(bundle)


def test_errors_of_older_bundles_have_full_weight(bundle: Path) -> None:
    row = {"utterance_count": 2, **dict.fromkeys(TRAITS, 1.25)}
    write_json(bundle / "expected_error.json", {"by_utterance_count": [row]})
    write_checksums(bundle)
    assert load_bundle(bundle).evidence == (Evidence(2, (1.25,) * 5, None, (1.0,) * 5),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition_centre": [4.0] * 4}, "condition_centre is .* a list of 5 to 5 values"),
        ({"condition_centre": None}, "condition_centre is null"),
        ({"condition_scale": [1.0, 1.0, 0.0, 1.0, 1.0]}, "condition_scale is .* a number from 0.001"),
        ({"condition_scale": [1.0, 1.0, float("nan"), 1.0, 1.0]}, "condition_scale is .* a number from 0.001"),
    ],
)
def test_a_centre_or_scale_that_cannot_be_is_named(bundle: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(bundle / "config.json", **changes)
    write_checksums(bundle)
    for read in (load_bundle, read_facts):
        with pytest.raises(BundleError, match=rf"config\.json: {message}"):
            read(bundle)


@pytest.mark.parametrize("lacking", ["condition_centre", "condition_scale"])
def test_a_bundle_has_both_centre_and_scale_or_neither(bundle: Path, lacking: str) -> None:
    config = json.loads((bundle / "config.json").read_text())
    del config[lacking]
    write_json(bundle / "config.json", config)
    write_checksums(bundle)
    for read in (load_bundle, read_facts):
        with pytest.raises(BundleError, match=rf"config\.json: {lacking} is missing"):
            read(bundle)


@pytest.mark.parametrize("settings", [{"condition_centre": (1.0,)}, {"condition_scale": (1.0, 1.0, 1.0, 1.0, -1.0)}])
def test_a_config_refuses_such_a_centre_or_scale(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is .* 5 finite numbers"):
        make_model(**settings)


def test_an_older_bundle_reads_raw_traits(tmp_path: Path) -> None:
    """Its heads were trained on them: what it said it still says, to the last bit."""
    model = make_model(condition_centre=[0.0] * 5, condition_scale=[1.0] * 5)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config.pop("condition_centre"), config.pop("condition_scale")) == ([0.0] * 5, [1.0] * 5)
    write_json(tmp_path / "config.json", config)
    write_checksums(tmp_path)
    given = Utterance(noise(8_000), np.zeros((0, 32), np.float16), given_traits=(2.0, 6.5, 3.0, 7.0, 1.0))
    [before] = model.analyze([given])
    for loaded in (load_bundle(tmp_path, allow_untrained=True), AutoModel.from_pretrained(tmp_path)):
        assert loaded.config.condition_centre == (0.0,) * 5
        [after] = loaded.analyze([given])
        assert (after.valence, after.arousal) == (before.valence, before.arousal)
    hub = KibunConfig.from_dict({k: v for k, v in config.items() if k != "hubert"})
    assert (hub.condition_centre, hub.condition_scale) == ((0.0,) * 5, (1.0,) * 5)
    assert KibunConfig().condition_centre == (4.0,) * 5, "new bundles standardise"


def test_heard_traits_are_drawn_to_no_centre_beyond_their_scale(tmp_path: Path) -> None:
    """A head of raw traits has a centre of 0: with weights it would silently get traits that nobody has."""
    model = make_model(condition_centre=[0.0] * 5, condition_scale=[1.0] * 5)
    model.evidence = EVIDENCE
    model.save_pretrained(tmp_path)
    with pytest.raises(BundleError, match=r"condition_centre is \[0\.0.*allowed are 1\.\.7 where heard") as caught:
        load_bundle(tmp_path)
    assert "\n" not in str(caught.value)
    model.config.condition_source = "average"  # which is not weighted
    model.save_pretrained(tmp_path)
    load_bundle(tmp_path)


@pytest.mark.parametrize("reach", [(2.0, 1.0), (-2.0, 1.0), (-2.0, -1.0)])
def test_a_familiarity_whose_distances_cannot_be_is_named(tmp_path: Path, reach: tuple[float, float]) -> None:
    model = make_model(familiarity=True)
    model.save_pretrained(tmp_path)
    load_bundle(tmp_path)
    present(model.conversation_head.familiarity).reach.copy_(torch.tensor(reach))
    model.save_pretrained(tmp_path)
    with pytest.raises(BundleError, match=r"familiarity\.reach is .* the nearer first"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["LICENSE", "MODEL_CARD.md"])
def test_a_text_that_is_too_long_is_named(bundle: Path, name: str) -> None:
    (bundle / name).write_text("x" * (4 << 20))
    write_checksums(bundle)
    load_bundle(bundle)
    (bundle / name).write_text("x" * ((4 << 20) + 1))
    write_checksums(bundle)
    for read in (load_bundle, read_facts):
        with pytest.raises(BundleError, match=rf"{name}: larger than 4 MiB"):
            read(bundle)


def test_a_card_that_is_no_text_is_named(bundle: Path) -> None:
    (bundle / "MODEL_CARD.md").write_bytes(b"\xff\xfe\xfa")
    write_checksums(bundle)
    for read in (load_bundle, read_facts):
        with pytest.raises(BundleError, match=r"MODEL_CARD\.md: cannot be read as text"):
            read(bundle)


def test_settings_that_transformers_would_act_on_are_left_alone(bundle: Path) -> None:
    """They could name code or other files; what is no setting of a bundle is not read."""
    edit_json(
        bundle / "config.json",
        auto_map={"AutoModel": "planted.Planted"},
        attn_implementation="someone/kernels",
        quantization_config={"quant_method": "nonsense"},
        transformers_weights="../../elsewhere.safetensors",
        fusion_config={"patch_embeddings": True},
    )
    write_checksums(bundle)
    assert load_bundle(bundle).config.trained


# ---- weights that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(bundle: Path, tmp_path: Path, value: float) -> None:
    model = load_bundle(bundle)
    state = weights(model)
    with torch.no_grad():
        model.get_parameter("emotion_heads.arousal.out.bias").fill_(value)
    with pytest.raises(ValueError, match=r"emotion_heads\.arousal\.out\.bias holds NaN or infinity"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, bundle / "model.safetensors")
    write_checksums(bundle)
    with pytest.raises(BundleError, match=r"model\.safetensors: emotion_heads\.arousal\.out\.bias holds NaN"):
        load_bundle(bundle)


def test_whole_numbers_are_no_weights(bundle: Path) -> None:
    state = weights(load_bundle(bundle))
    state["emotion_heads.arousal.out.bias"] = state["emotion_heads.arousal.out.bias"].to(torch.int32)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, bundle / "model.safetensors")
    write_checksums(bundle)
    with pytest.raises(BundleError, match=r"emotion_heads\.arousal\.out\.bias holds I32, allowed are"):
        load_bundle(bundle)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    make_model(tasks=["personality"]).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", tasks=["personality", "arousal"])
    write_checksums(tmp_path)
    with pytest.raises(BundleError, match=r"lacks \d+ weights that config\.json describes, .*arousal"):
        load_bundle(tmp_path)


def test_an_untrained_bundle_is_refused_unless_allowed(tmp_path: Path) -> None:
    make_model(trained=False).save_pretrained(tmp_path)
    with pytest.raises(BundleError, match=r"untrained.*--allow-untrained"):
        load_bundle(tmp_path)
    assert not load_bundle(tmp_path, allow_untrained=True).config.trained


def test_an_unknown_name_lists_the_bundles_and_how_to_make_one() -> None:
    with pytest.raises(BundleError) as caught:
        load_bundle("no-such-bundle")
    for part in ("no-such-bundle", "kibun models build --encoder", *bundle_names()):
        assert part in str(caught.value)


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json: missing"):
        load_bundle(tmp_path)


def test_a_checkpoint_in_place_of_a_bundle_names_the_fix(checkpoint: Path) -> None:
    with pytest.raises(BundleError, match='a "hubert" checkpoint') as caught:
        load_bundle(checkpoint)
    assert f"kibun models build --encoder {checkpoint} --out" in str(caught.value)


def test_a_bundle_is_as_readable_as_the_umask_says(bundle: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in bundle.iterdir()} == {0o666 & ~current_umask()}


@pytest.mark.parametrize("name", bundle_names())
def test_bundles_that_come_with_kibun_are_small_whole_and_run(name: str) -> None:
    folder = resolve_bundle(name)
    facts = read_facts(folder)
    assert facts.size_bytes < 2_000_000
    assert facts.trained
    assert not facts.synthetic or "synthetic" in present(facts.card).lower()
    licence = ["LICENSE"] if folder.parent != BUNDLES else []
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "sha256", *licence])
    self_test(load_bundle(name))


def test_a_bundle_of_the_repository_is_found_by_name_in_a_clone_only(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "models" / "bundles"
    home.mkdir(parents=True)
    shutil.copytree(bundle, home / "voices-tiny")
    package = tmp_path / "models" / "kibun" / "models" / "bundles"
    package.mkdir(parents=True)
    monkeypatch.setattr("kibun.models.files.BUNDLES", package)
    with pytest.raises(BundleError, match=r"not in the package, as it is licensed under CC BY-NC-SA 4\.0: clone"):
        resolve_bundle("voices-tiny")
    assert bundle_names() == []
    (tmp_path / "pyproject.toml").touch()
    assert resolve_bundle("voices-tiny") == home / "voices-tiny"
    assert bundle_names() == ["voices-tiny"]


# ---- build ----------------------------------------------------------------------------------------------------


def test_a_built_bundle_holds_the_checkpoint(checkpoint: Path) -> None:
    model = build_model(checkpoint, name="new", condition_ff=32)
    full = HubertModel.from_pretrained(checkpoint).train(False)
    waveform = torch.from_numpy(REQUEST.audio)
    with torch.no_grad():
        expected = full(waveform[None]).last_hidden_state
        for task in ("personality", "valence", "arousal"):
            assert torch.equal(model.tail(task)(model.encode([waveform])).hidden, expected)
    assert model.config.trunk_layers == model.config.tail_layers == 2
    assert model.config.do_normalize is False, "what the checkpoint's preprocessor_config.json says"
    assert not model.config.trained
    assert not model.training
    assert "Untrained" in present(model.card)


def test_a_built_bundle_survives_saving(checkpoint: Path, tmp_path: Path) -> None:
    build_model(checkpoint, name="new", condition_ff=32, trunk_layers=3).save_pretrained(tmp_path / "out")
    with pytest.raises(BundleError, match="--allow-untrained"):
        load_bundle(tmp_path / "out")
    loaded = load_bundle(tmp_path / "out", allow_untrained=True)
    assert (loaded.config.trunk_layers, loaded.config.tail_layers) == (3, 1)
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_normalize"] is False
    assert loaded.analyze([REQUEST])[0].valence is not None


def test_heads_depend_on_the_seed_alone(checkpoint: Path) -> None:
    state = torch.random.get_rng_state()
    first, same, other = (
        weights(build_model(checkpoint, name="new", seed=seed, condition_ff=32)) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["personality_head.out.weight"], other["personality_head.out.weight"])
    assert torch.equal(first["trunk.layers.0.attention.k_proj.weight"], other["trunk.layers.0.attention.k_proj.weight"])


def test_a_checkpoint_with_its_own_head_will_do(checkpoint: Path, tmp_path: Path) -> None:
    """Published checkpoints are often HubertForCTC or a classifier; old ones hold a pickled state dict."""
    from transformers import HubertForCTC

    torch.manual_seed(8)
    ctc = HubertForCTC(HubertConfig(**HUBERT))
    ctc.save_pretrained(tmp_path / "ctc")
    model = build_model(tmp_path / "ctc", name="new", condition_ff=32)
    assert model.config.do_normalize, "without a preprocessor_config.json, transformers' default"
    norm = "layers.0.final_layer_norm.weight"
    assert torch.equal(model.get_parameter(f"trunk.{norm}"), ctc.get_parameter(f"hubert.encoder.{norm}"))
    state = {name.removeprefix("hubert."): value for name, value in ctc.state_dict().items()}
    (checkpoint / "model.safetensors").unlink()
    torch.save(state, checkpoint / "pytorch_model.bin")
    pickled = build_model(checkpoint, name="new", condition_ff=32)
    assert torch.equal(
        pickled.trunk.feature_projection.projection.weight, state["feature_projection.projection.weight"]
    )


def test_a_checkpoint_cannot_run_code_while_a_bundle_is_built(checkpoint: Path, tmp_path: Path) -> None:
    """Of somebody else's pickled weights only tensors are read; a bundle is written as safetensors."""
    (checkpoint / "model.safetensors").unlink()
    torch.save({"layer": Payload(tmp_path / "executed")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(BundleError, match=r"pytorch_model\.bin: damaged, or holds more than tensors"):
        build_model(checkpoint, name="new")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "bert"}, "model_type is \"bert\", supported are 'hubert', 'wav2vec2'"),
        ("preprocessor_config.json", {"sampling_rate": 8_000}, "8000 Hz, only 16000 Hz"),
        ("config.json", {"num_hidden_layers": 5}, r"lacks \d+ weights"),
    ],
)
def test_another_kind_of_checkpoint_is_refused(
    checkpoint: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit_json(checkpoint / file, **changes)
    with pytest.raises(BundleError, match=message):
        build_model(checkpoint, name="new")


def test_a_checkpoint_without_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no checkpoint found"):
        build_model(tmp_path / "nowhere", name="new")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="holds no weights"):
        build_model(checkpoint, name="new")
