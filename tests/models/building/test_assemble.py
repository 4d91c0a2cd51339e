"""One bundle from several runs: only where the trunks are bit-equal, and it answers as each run's own model did."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kibun.models._transformers import HubertConfig, HubertModel
from kibun.models.building.assemble import assemble, same_bits
from kibun.models.building.build import build_model, save_bundle
from kibun.models.building.checksum import stored_trunk_checksum, trunk_checksum
from kibun.models.building.commands import app
from kibun.models.building.parts import load_parts
from kibun.models.bundle import BundleError, KibunModel, load_bundle
from kibun.models.files import verify
from kibun.models.types import Evidence, Utterance
from tests.support import present
from tests.support.commands import invoke
from tests.support.tiny_hubert import HUBERT as FOUR_LAYERS

HUBERT = {**FOUR_LAYERS, "num_hidden_layers": 2}
EVIDENCE = (
    Evidence(1, (1.5, 1.25, 1.0, 0.75, 0.5)),
    Evidence(8, (1.0, 1.0, 0.5, 0.5, 0.25), (1.0, 1.5, 1.0, 1.0, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)),
)
GIVEN = (2.0, 6.5, 3.0, 7.0, 1.0)
AUDIO = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
HISTORY = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "hubert-tiny", seed=7)


def make_checkpoint(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    HubertModel(HubertConfig(**HUBERT)).save_pretrained(folder)
    return folder


def train(model: KibunModel, seed: int, *, trunk: bool = False) -> KibunModel:
    """What training does to weights, and nothing else: everything that is not frozen moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if trunk or not name.startswith("trunk."):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.config.trained = True
    return model


def make_run(folder: Path, checkpoint: Path, tasks: list[str], seed: int, **settings: Any) -> Path:
    """A run folder as `kibun train` leaves it, its bundle in bundle/."""
    trunk = bool(settings.pop("train_trunk", False))
    model = train(
        build_model(checkpoint, name=folder.name, tasks=tasks, condition_ff=32, **settings), seed, trunk=trunk
    )
    if "personality" in tasks:
        model.evidence = EVIDENCE
    model.card = f"# {folder.name}\n\n- Split: paper, seed {seed}\n\n## Figures\n\n```\n# a comment\n```\n"
    (folder / "checkpoints").mkdir(parents=True)
    save_bundle(model, folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, (run, task) in enumerate((("pr-run", "personality"), ("v-run", "valence"), ("a-run", "arousal")), 1):
        make_run(folder / run, checkpoint, [task], seed)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> dict[str, Path]:
    """One run per task, to be changed at will."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return {"personality": tmp_path / "pr-run", "valence": tmp_path / "v-run", "arousal": tmp_path / "a-run"}


def put_together(runs: dict[str, Path]) -> KibunModel:
    return assemble(load_parts(runs), name="whole")


def refusal(runs: dict[str, Path]) -> str:
    with pytest.raises(BundleError) as caught:
        put_together(runs)
    return str(caught.value)


def edit(run: Path, change: Callable[[KibunModel], None]) -> None:
    """Save a run's bundle again after changing it."""
    model = load_bundle(run / "bundle")
    change(model)
    model.save_pretrained(run / "bundle")


def build(*arguments: object, code: int = 0) -> str:
    return invoke(app, "build", *arguments, code=code)


def test_the_licences_of_all_parts_are_those_of_the_whole(runs: dict[str, Path]) -> None:
    def licensed(name: str, text: str) -> Callable[[KibunModel], None]:
        def change(model: KibunModel) -> None:
            model.config.license, model.license_text = name, text

        return change

    assert put_together(runs).config.license is None
    edit(runs["valence"], licensed("CC-BY-4.0", "By.\n"))
    edit(runs["arousal"], licensed("MIT", "Permission.\n"))
    model = put_together(runs)
    assert model.config.license == "CC-BY-4.0 AND MIT AND not stated", "personality's is unknown"
    assert present(model.license_text).startswith("By.\n")
    assert present(model.license_text).endswith("Permission.\n")
    assert "- Licence of the weights: CC-BY-4.0 AND MIT AND not stated\n" in present(model.card)


# ---- what comes out -------------------------------------------------------------------------------------------


def test_the_whole_answers_as_each_run_did(runs: dict[str, Path], tmp_path: Path) -> None:
    save_bundle(put_together(runs), tmp_path / "out")
    whole = load_bundle(tmp_path / "out")
    [answer] = whole.analyze([Utterance(AUDIO, HISTORY, given_traits=GIVEN)])
    [traits] = load_bundle(runs["personality"] / "bundle").analyze([Utterance(AUDIO, HISTORY)])
    np.testing.assert_array_equal(answer.vector, traits.vector)
    np.testing.assert_allclose(present(answer.conversation_traits), present(traits.conversation_traits), atol=1e-5)
    np.testing.assert_allclose(present(answer.average_traits), present(traits.average_traits), atol=1e-5)
    for task in ("valence", "arousal"):
        empty = np.zeros((0, 0), np.float16)
        [alone] = load_bundle(runs[task] / "bundle").analyze([Utterance(AUDIO, empty, given_traits=GIVEN)])
        assert getattr(answer, task) == pytest.approx(getattr(alone, task), abs=1e-5)
    assert whole.evidence == EVIDENCE
    assert whole.config.trained
    assert not whole.config.synthetic
    assert whole.config.trunk_from == "hubert-tiny"


def test_predicted_traits_condition_the_emotion_of_the_whole(runs: dict[str, Path]) -> None:
    [answer] = put_together(runs).analyze([Utterance(AUDIO, HISTORY)])
    assert answer.condition_source == "conversation"
    assert answer.valence is not None


@pytest.mark.parametrize("tasks", [["personality"], ["valence"], ["personality", "arousal"], ["valence", "arousal"]])
def test_any_subset_makes_a_bundle(runs: dict[str, Path], tasks: list[str]) -> None:
    model = put_together({task: runs[task] for task in reversed(tasks)})
    assert list(model.config.tasks) == tasks
    assert (model.evidence == EVIDENCE) == ("personality" in tasks)


def test_tasks_of_one_run_keep_the_tail_that_they_share(checkpoint: Path, tmp_path: Path) -> None:
    tails = {"valence": "mtl", "arousal": "mtl"}
    both = make_run(tmp_path / "both", checkpoint, ["valence", "arousal"], 4, tail_of=tails)
    model = put_together({"valence": both, "arousal": both})
    assert list(model.tails) == ["valence_arousal"]
    [answer] = model.analyze([Utterance(AUDIO, np.zeros((0, 0), np.float16), given_traits=GIVEN)])
    [before] = load_bundle(both / "bundle").analyze(
        [Utterance(AUDIO, np.zeros((0, 0), np.float16), given_traits=GIVEN)]
    )
    assert (answer.valence, answer.arousal) == pytest.approx((before.valence, before.arousal), abs=1e-5)
    other = make_run(tmp_path / "other", checkpoint, ["valence", "arousal"], 5, tail_of=tails)
    apart = put_together({"valence": both, "arousal": other})
    assert sorted(apart.tails) == ["arousal", "valence"], "one name in two runs is two tails"


def test_one_untrained_or_synthetic_part_marks_the_whole(
    checkpoint: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    def generated(model: KibunModel) -> None:
        model.config.synthetic, model.config.synthetic_parts = True, ("trunk", "arousal")

    edit(runs["arousal"], generated)
    model = put_together(runs)
    assert (model.config.synthetic, model.config.synthetic_parts) == (True, ("trunk", "arousal"))
    assert "**Arousal: trained on generated speech: it tells you nothing about real people.**" in present(model.card)
    save_bundle(build_model(checkpoint, name="raw", tasks=["valence"], condition_ff=32), tmp_path / "raw")
    model = put_together({**runs, "valence": tmp_path / "raw"})
    assert not model.config.trained
    assert "**Valence: untrained: its estimates mean nothing.**" in present(model.card)


def test_the_card_merges_what_the_parts_say(runs: dict[str, Path]) -> None:
    card = present(put_together(runs).card)
    for part in ("# whole (version 1)", "not a diagnosis", "personality of `pr-run`", "SHA-256", "from `hubert-tiny`"):
        assert part in card
    for title, run, seed in (("Personality", "pr-run", 1), ("Valence", "v-run", 2), ("Arousal", "a-run", 3)):
        assert f"## {title}: from `{run}`" in card
        assert f"### {run}\n" in card, "headings of a part's card are two levels down"
        assert f"paper, seed {seed}" in card
    assert "\n# a comment\n" in card, "code is no heading"
    assert str(Path.cwd()) not in card


def test_parts_stored_as_float16_are_stored_so_again(runs: dict[str, Path], tmp_path: Path) -> None:
    for run in runs.values():
        load_bundle(run / "bundle").save_pretrained(run / "bundle", dtype=torch.float16)
    build("--pr", runs["personality"], "--valence", runs["valence"], "--out", tmp_path / "out")
    facts = json.loads(invoke(app, "show", tmp_path / "out", "--json"))
    assert facts["weights_dtype"] == "F16"
    assert facts["trunk_sha256"] == trunk_checksum(load_bundle(runs["personality"] / "bundle"))


def test_a_bundle_that_comes_with_kibun_is_a_part_like_any_other(tmp_path: Path) -> None:
    build("--pr", "demo-tiny", "--valence", "demo-tiny", "--arousal", "demo-tiny", "--out", tmp_path / "out")
    before, after = load_bundle("demo-tiny"), load_bundle(tmp_path / "out")
    assert after.config.synthetic
    theirs = before.state_dict()
    assert all(same_bits(value, theirs[name]) for name, value in after.state_dict().items())
    assert after.evidence == before.evidence


# ---- why not --------------------------------------------------------------------------------------------------


def test_a_trained_trunk_is_named(checkpoint: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    runs["valence"] = make_run(tmp_path / "free", checkpoint, ["valence"], 2, train_trunk=True)
    message = refusal(runs)
    assert "personality (pr-run) and valence (free) cannot share a trunk" in message
    assert "valence's trunk was trained: freeze it" in message
    counts = present(re.search(r"(\d+) of its (\d+) tensors differ, (\S+) first", message))
    model = load_bundle(runs["valence"] / "bundle")
    assert int(counts[1]) == int(counts[2]) == len(model.trunk.state_dict())
    assert counts[3] == next(iter(model.trunk.state_dict()))


def test_a_single_bit_is_enough(runs: dict[str, Path]) -> None:
    def flip(model: KibunModel) -> None:
        with torch.no_grad():
            bits = model.get_parameter("trunk.layers.0.final_layer_norm.bias").view(torch.int32)
            bits[3] ^= 1

    edit(runs["arousal"], flip)
    message = refusal(runs)
    assert "1 of its " in message
    assert "layers.0.final_layer_norm.bias first" in message
    assert "arousal's trunk was trained" in message
    edit(runs["arousal"], flip)
    put_together(runs)


def test_without_a_record_the_tensors_show_the_cause(runs: dict[str, Path]) -> None:
    for run in runs.values():
        edit(run, lambda model: setattr(model.config, "trunk_sha256", None))

    def move(model: KibunModel) -> None:
        with torch.no_grad():
            model.get_parameter("trunk.layers.0.attention.k_proj.weight").add_(0.1)

    edit(runs["valence"], move)
    assert "the convolutions are equal, so the checkpoint is the same" in refusal(runs)
    with_other_front = load_bundle(runs["arousal"] / "bundle")
    with torch.no_grad():
        with_other_front.get_parameter("trunk.feature_extractor.conv_layers.0.conv.weight").add_(0.1)
    with_other_front.save_pretrained(runs["arousal"] / "bundle")
    assert "the convolutions differ too" in refusal({"personality": runs["personality"], "arousal": runs["arousal"]})


def test_another_checkpoint_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "another", seed=8)
    runs["valence"] = make_run(tmp_path / "from-another", other, ["valence"], 2)
    message = refusal(runs)
    assert "they come from different checkpoints, hubert-tiny (" in message
    assert "another (" in message


def test_parts_stored_in_different_precision_are_named(runs: dict[str, Path]) -> None:
    load_bundle(runs["valence"] / "bundle").save_pretrained(runs["valence"] / "bundle", dtype=torch.float16)
    assert "stored differently, personality's as F32 and valence's as F16" in refusal(runs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trunk_layers": 2}, "trunk_layers is 1 in the first and 2 in the second"),
        ({"do_normalize": False}, "do_normalize is True in the first and False in the second"),
    ],
)
def test_trunks_set_up_differently_are_named(
    checkpoint: Path, runs: dict[str, Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    runs["valence"] = make_run(tmp_path / "other", checkpoint, ["valence"], 2, **settings)
    assert message in refusal(runs)


def test_another_architecture_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    HubertModel(HubertConfig(**{**HUBERT, "intermediate_size": 64})).save_pretrained(tmp_path / "wider")
    runs["valence"] = make_run(tmp_path / "wide", tmp_path / "wider", ["valence"], 2)
    assert "hubert.intermediate_size is 48 in the first and 64 in the second" in refusal(runs)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"emotion_head": "concat"}, {"emotion_head": "ca"}, "emotion_head is 'concat' in valence"),
        ({"condition_on": ["openness"]}, {}, "condition_on is ('openness',) in valence"),
        ({"condition_source": "average"}, {}, "condition_source is 'average' in valence"),
        ({"cross_attention_query": "acoustic"}, {}, "cross_attention_query is 'acoustic' in valence"),
        ({"condition_heads": 2}, {}, "condition_heads is 2 in valence"),
        ({"emotion_rescaled_from": [0, 1]}, {}, "emotion_rescaled_from is (0.0, 1.0) in valence"),
    ],
)
def test_heads_that_differ_are_named(
    checkpoint: Path, tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], message: str
) -> None:
    runs = {
        "valence": make_run(tmp_path / "v", checkpoint, ["valence"], 1, **ours),
        "arousal": make_run(tmp_path / "a", checkpoint, ["arousal"], 2, **theirs),
    }
    found = refusal(runs)
    assert message in found
    assert "in arousal (a)" in found


def test_heads_of_raw_traits_are_not_put_together_with_weighted_ones(
    checkpoint: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    raw = {"condition_centre": [0.0] * 5, "condition_scale": [1.0] * 5}
    for seed, task in enumerate(("valence", "arousal")):
        runs[task] = make_run(tmp_path / f"raw-{task}", checkpoint, [task], seed, **raw)
    message = refusal(runs)
    assert "do not go together: condition_centre is [0.0, 0.0, 0.0, 0.0, 0.0], allowed are 1..7" in message
    assert "train valence and arousal anew" in message
    edit(runs["personality"], lambda model: setattr(model, "evidence", None))
    put_together(runs)


def test_settings_that_a_head_does_not_use_may_differ(checkpoint: Path, tmp_path: Path) -> None:
    runs = {
        task: make_run(tmp_path / task, checkpoint, [task], seed, emotion_head="baseline", condition_source=source)
        for seed, (task, source) in enumerate((("valence", "average"), ("arousal", "utterance")))
    }
    [answer] = put_together(runs).analyze([Utterance(AUDIO, np.zeros((0, 0), np.float16))])
    assert answer.valence is not None
    assert answer.condition_traits is None


def test_a_run_that_will_not_do_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    assert f"{runs['valence']}: estimates valence, but not arousal" in refusal({**runs, "arousal": runs["valence"]})
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: neither a bundle nor a run" in refusal({**runs, "arousal": tmp_path / "empty"})
    assert "no bundle 'nowhere'" in refusal({**runs, "arousal": Path("nowhere")})


def test_bits_are_compared_and_not_values() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double())
    assert same_bits(torch.tensor(3), torch.tensor(3))


# ---- checksum and command -------------------------------------------------------------------------------------


def test_the_checksum_is_the_same_loaded_or_not(runs: dict[str, Path]) -> None:
    sums = {stored_trunk_checksum(run / "bundle" / "model.safetensors") for run in runs.values()}
    model = load_bundle(runs["valence"] / "bundle")
    assert sums == {trunk_checksum(model)} == {model.config.trunk_sha256}
    for dtype in (torch.float16, torch.bfloat16):
        model.save_pretrained(runs["valence"] / "bundle", dtype=dtype)
        rounded = load_bundle(runs["valence"] / "bundle")
        assert stored_trunk_checksum(runs["valence"] / "bundle" / "model.safetensors") == trunk_checksum(rounded)
        assert trunk_checksum(rounded) not in sums
    with torch.no_grad():
        model.get_parameter("tails.valence.layers.0.final_layer_norm.bias").add_(1)
    assert trunk_checksum(model) in sums, "tails are not part of it"


def test_build_assembles_and_reports_it(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = build(
        *("--pr", runs["personality"], "--valence", runs["valence"] / "bundle", "--arousal", runs["arousal"]),
        *("--out", out, "--name", "mine", "--version", "2"),
    )
    assert "personality of pr-run, valence of v-run, arousal of a-run; their trunks are bit-equal" in text
    assert f"kibun serve --model {out}`" in text
    verify(out)
    facts = json.loads(invoke(app, "show", out, "--json"))
    assert (facts["name"], facts["version"], facts["trained"]) == ("mine", "2", True)
    assert facts["expected_error"][0]["utterance_count"] == 1
    assert facts["trunk_sha256"][:12] in text
    build("--pr", runs["personality"], "--valence", runs["valence"], "--out", tmp_path / "half", "--half")
    weights = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", out)]
    assert weights[0] < 0.6 * weights[1]
    verify(tmp_path / "half")
    assert load_bundle(tmp_path / "half").config.trained


def test_a_refused_build_leaves_nothing_behind(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    arguments = ("--pr", runs["personality"], "--valence", runs["valence"], "--out", tmp_path / "out")
    build(*arguments[:2], "--valence", runs["arousal"], "--out", tmp_path / "out", code=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kibun.models.files.write_checksums", full)
        assert "cannot be written: No space left" in build(*arguments, code=1)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "out").mkdir()
    build(*arguments)
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "v-run").stat().st_mode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to build from"),
        (["--encoder", "a", "--pr", "b"], "--encoder cannot be combined"),
        (["--encoder", "a", "--emotion", "b"], "--encoder cannot be combined"),
        (["--emotion", "a", "--valence", "b"], "--emotion estimates valence and arousal already"),
        (["--pr", "a", "--seed", "1"], "--seed is for new heads"),
        (["--pr", "a", "--trunk-layers", "1"], "--trunk-layers was fixed"),
        (["--encoder", "a", "--half"], "--half is for bundles of runs"),
    ],
)
def test_one_way_at_a_time(tmp_path: Path, arguments: list[str], message: str) -> None:
    error = build(*arguments, "--out", tmp_path / "out", code=2)
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()
