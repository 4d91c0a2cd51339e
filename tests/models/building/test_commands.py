"""`kibun models`: what each command prints, and the fix that each error names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kibun.models._transformers import HubertConfig, HubertModel
from kibun.models.building.commands import app
from kibun.models.bundle import load_bundle
from kibun.models.config import KibunConfig
from kibun.models.files import write_checksums
from kibun.models.model import KibunModel
from kibun.models.types import Evidence
from tests.support.bundle_files import edit_json
from tests.support.commands import invoke
from tests.support.tiny_hubert import HUBERT


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = KibunModel(KibunConfig(hubert=HUBERT, condition_ff=32, trained=True, synthetic=True, bundle_name="tiny"))
    model.evidence = (Evidence(1, (1.5, 1.25, 1.0, 0.75, 0.5), (1.0, 1.5, 1.5, 1.0, 1.0), (0.0, 0.5, 0.75, 0.5, 1.0)),)
    model.card = "# The card of tiny\n"
    model.save_pretrained(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    HubertModel(HubertConfig(**HUBERT)).save_pretrained(tmp_path / "hubert")
    return tmp_path / "hubert"


def run(*arguments: object, code: int = 0) -> str:
    return invoke(app, *arguments, code=code)


def test_show_prints_facts_and_card(bundle: Path) -> None:
    text = run("show", bundle)
    for part in (
        "tiny",
        "trained; SYNTHETIC: trained on generated speech: it tells you nothing about real people",
        "hubert, 2 layers shared, 2 per task",
        "1..7",
        "1..5",
        "16000 Hz",
        "F32",
    ):
        assert part in text
    assert "after 1: openness 1.50" in text
    assert "no better than mean  openness after 1\n" in text
    assert "after 1: openness 0.00, conscientiousness 0.50" in text
    assert "the rest is the mean, and 0 is not used" in text
    assert "# The card of tiny" in text


def test_show_as_json_counts_parameters_by_part(bundle: Path) -> None:
    facts = json.loads(run("show", bundle, "--json"))
    model = load_bundle(bundle)
    parameters = facts["parameters"]
    assert (facts["encoder"], facts["personality_encoder"]) == ("hubert", "hubert")
    assert parameters["total"] == sum(p.numel() for p in model.parameters())
    assert parameters["tails.valence"] == sum(p.numel() for p in model.tails["valence"].parameters())
    assert parameters["trunk"] == sum(p.numel() for p in model.trunk.parameters())
    assert sum(count for part, count in parameters.items() if part != "total") == parameters["total"]
    assert (facts["trained"], facts["synthetic"], facts["do_normalize"]) == (True, True, True)
    assert (facts["trait_scale"], facts["emotion_scale"]) == ([1.0, 7.0], [1.0, 5.0])
    assert facts["expected_error"][0]["neuroticism"] == 0.5
    assert facts["size_bytes"] == sum(path.stat().st_size for path in bundle.iterdir())


def test_list_shows_the_bundles_that_come_with_kibun(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kibun.models.files.BUNDLES", bundle.parent)
    (bundle.parent / "empty").mkdir()
    assert run("list").startswith("tiny  version 1, ")
    assert "licence not stated" in run("list")
    assert [facts["name"] for facts in json.loads(run("list", "--json"))] == ["tiny"]
    assert "SYNTHETIC" in run("show", "bundle"), "by the name of its folder"


def test_list_without_bundles_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kibun.models.files.BUNDLES", tmp_path)
    assert "kibun models build" in run("list")


def test_verify_accepts_a_whole_bundle(bundle: Path) -> None:
    assert "checksums match, loads and runs" in run("verify", bundle)
    assert json.loads(run("verify", bundle, "--json"))["ok"] is True


def test_verify_names_what_is_wrong(bundle: Path) -> None:
    card = bundle / "MODEL_CARD.md"
    card.write_text("# Better than it was\n")
    assert "MODEL_CARD.md: does not match sha256" in run("verify", bundle, code=1)
    write_checksums(bundle)
    run("verify", bundle)
    (bundle / "training_args.bin").write_bytes(b"\x80\x04N.")
    assert "training_args.bin: may contain code" in run("verify", bundle, code=1)


def test_verify_runs_the_model_and_not_only_the_checksums(bundle: Path) -> None:
    model = load_bundle(bundle)
    with torch.no_grad():
        model.get_parameter("emotion_heads.arousal.out.weight").fill_(3e38)  # a number, whose products are none
    model.save_pretrained(bundle)
    assert "NaN" in run("verify", bundle, code=1)


def test_build_makes_an_untrained_bundle(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    text = run("build", "--encoder", checkpoint, "--out", out, "--name", "mine", "--seed", 3, "--trunk-layers", 1)
    assert "untrained" in text
    assert "--allow-untrained" in text
    facts = json.loads(run("show", out, "--json"))
    assert (facts["name"], facts["trained"], facts["trunk_layers"], facts["tail_layers"]) == ("mine", False, 1, 3)
    assert "UNTRAINED" in run("show", out)
    assert "untrained" in run("verify", out)


def test_build_reads_what_it_uses_and_names_what_it_cannot(checkpoint: Path, tmp_path: Path) -> None:
    edit_json(checkpoint / "config.json", vocab_size=None)
    run("build", "--encoder", checkpoint, "--out", tmp_path / "made")
    edit_json(checkpoint / "config.json", hidden_size=None)
    text = run("build", "--encoder", checkpoint, "--out", tmp_path / "other", code=1)
    assert text == (f"error: {checkpoint}/config.json: hidden_size is null, allowed is a whole number from 1 to 8192\n")


def test_build_names_the_bundle_after_its_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    run("build", "--encoder", checkpoint, "--out", tmp_path / "made")
    assert json.loads(run("show", tmp_path / "made", "--json"))["name"] == "made"


def test_build_errors_name_the_fix(checkpoint: Path, tmp_path: Path) -> None:
    assert "name another with --out" in run("build", "--encoder", checkpoint, "--out", checkpoint, code=1)
    out = tmp_path / "made"
    assert "no checkpoint found" in run("build", "--encoder", tmp_path / "no", "--out", out, code=1)
    assert "allowed are 0..4" in run("build", "--encoder", checkpoint, "--out", out, "--trunk-layers", 9, code=1)
    assert not out.exists()


@pytest.mark.parametrize("command", ["show", "verify"])
def test_an_unknown_bundle_names_the_fix(command: str) -> None:
    assert "kibun models build --encoder PATH_OR_HUB_ID" in run(command, "no-such-bundle", code=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", "short", "model.safetensors: damaged, or not a safetensors file"),
        ("model.safetensors", "x" * 100, "model.safetensors: damaged, or not a safetensors file"),
        ("config.json", '{"model_type": "kibun"}', "config.json: bundle_name is missing"),
        ("config.json", '{"model_type": "hubert"}', "kibun models build --encoder"),
        ("config.json", "{", "config.json: is not JSON"),
        ("expected_error.json", "[]", "expected_error.json: holds [] where a JSON object is expected"),
    ],
)
def test_show_names_the_file_that_is_not_what_it_should_be(bundle: Path, name: str, content: str, message: str) -> None:
    (bundle / name).write_text(content)
    assert message in run("show", bundle, code=1)


def test_nothing_heavy_is_imported_for_help_or_list() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from kibun.models.building.commands import app\n"
        "assert CliRunner().invoke(app, ['list']).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'grpc'} & set(sys.modules), 'heavy'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
