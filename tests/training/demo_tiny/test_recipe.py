"""demo-tiny: from espeak-ng to a served bundle by one command, its parts, and the committed bundle."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from kibun.models.bundle import KibunModel, Utterance, load_bundle, resolve_bundle
from kibun.models.files import verify
from kibun.models.types import NEUTRAL_TRAITS, TRAITS
from kibun.training.audio.augment import ROOMS, Augment
from kibun.training.audio.reading import load_audio
from kibun.training.commands import train_app
from kibun.training.demo_tiny import recipe
from kibun.training.demo_tiny.config import tiny_config
from kibun.training.demo_tiny.corpus import CorpusOptions
from kibun.training.demo_tiny.evaluate import analyze_causally
from kibun.training.demo_tiny.manipulate import Cue, change_rate, change_tilt, cut_at_pauses, manipulate, shift_pitch
from kibun.training.demo_tiny.recipe import Recipe
from kibun.training.demo_tiny.trunk import SpeakerBatches, TrunkOptions, mixed_traits
from kibun.training.evaluation.predictions import expected_error
from kibun.training.filter_bank import new_model
from kibun.training.runs.config import load_config
from kibun.training.runs.folder import read_figures, read_log
from tests.support import present
from tests.support.commands import invoke
from tests.support.tiny_items import item

NOTHING = np.zeros((0, 96), np.float16)
LEARNT = {"trunk", "personality", "valence", "arousal"}  # from generated speech


TINY = Recipe(
    CorpusOptions(
        utterances=42,
        utterances_per_speaker=3,
        seed=1,
        max_seconds=2.0,
        dev_share=0.3,
        test_share=0.1,
        audio_format="wav",
    ),
    TrunkOptions(steps=6, speakers=8, per_speaker=2, evaluations=2, crop_seconds=(1.0, 1.1), average_decay=0.5),
    ("training.epochs=1", "training.conversation_steps=10", "training.batch=8", "training.micro_batch=8"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of `kibun train demo-tiny --quick` at a tiny size, and the figures that the command printed."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "QUICK", TINY)
        options = ("--quick", "--seed", 3, "--version", 7, "--json", "--threads", 0)
        return out, json.loads(invoke(train_app, "demo-tiny", "--out", out, *options))


def test_one_command_makes_the_bundle_from_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    out, figures = made
    log = read_log(out / "trunk")
    assert [line["step"] for line in log] == [3, 6]
    assert log[-1]["loss"]["loss"] < log[0]["loss"]["loss"]
    assert json.loads((out / "trunk" / "figures.json").read_text())["seed"] == 3
    assert not list((out / "trunk").glob("*checkpoint*"))
    for name, dimension in (("pr", None), ("arousal", "arousal"), ("valence", "valence")):
        assert read_figures(out / name)["dimension"] == dimension
        run = load_config(None, out / name / "config.toml")
        assert run.synthetic
        assert run.model.freeze == ("trunk" if name == "pr" else "acoustics")
        assert run.training.seed == 3

    model = load_bundle(out / "demo-tiny")
    verify(out / "demo-tiny")
    assert model.config.trained
    assert model.config.synthetic
    assert (model.config.license, set(model.config.synthetic_parts or ())) == ("Apache-2.0", LEARNT)
    assert (model.config.bundle_name, model.config.bundle_version) == ("demo-tiny", "7")
    assert model.evidence is not None
    assert [row.utterance_count for row in model.evidence] == [1, 2, 3]
    card = model.card or ""
    for said in (
        "kibun train demo-tiny --out",
        "--quick --seed 3 --version 7",
        "not a diagnosis",
        "42 utterances",
        "| arousal |",
    ):
        assert said in card, said
    assert str(out) not in card
    trunk = load_bundle(out / "trunk" / "bundle").trunk.state_dict()
    for key, value in model.trunk.state_dict().items():
        assert torch.equal(value, trunk[key].half().float()), key
    answer = model.analyze([Utterance(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), NOTHING)])[0]
    assert answer.arousal is not None
    assert 1 <= answer.arousal <= 5
    assert set(figures["test_ccc"]) == {"valence", "arousal", *TRAITS}
    assert figures["bundle_bytes"] < 2_000_000


def test_started_again_the_command_redoes_only_the_measuring(made: tuple[Path, dict[str, Any]]) -> None:
    out, figures = made
    files = [path for folder in ("corpus", "trunk", "pr", "arousal", "valence") for path in (out / folder).rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = recipe.make_demo_tiny(out, TINY, version="7", seed=3, command="again")
    assert again["test_ccc"] == figures["test_ccc"]
    assert {path: path.stat().st_mtime_ns for path in files} == before
    other = dataclasses.replace(TINY, corpus=dataclasses.replace(TINY.corpus, seed=2))
    with pytest.raises(ValueError, match="holds a corpus of other options"):
        recipe.make_demo_tiny(out, other, version="7", seed=3, command="again")


def test_what_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = invoke(train_app, "demo-tiny", "--out", tmp_path / "out", code=2)
    assert "apt-get install espeak-ng" in error
    rows = [item(f"{speaker}") for speaker in range(2) for _ in range(3)]
    with pytest.raises(ValueError, match="2 speakers have 2 utterances or more, a batch needs 8"):
        SpeakerBatches(rows, TrunkOptions())


def test_one_trunk_three_tails_and_the_same_start_for_the_same_seed() -> None:
    one, two, other = (new_model(seed, tiny_config()) for seed in (0, 0, 1))
    assert set(one.tails) == {"personality", "valence", "arousal"}
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert sum(parameter.numel() for parameter in one.parameters()) < 950_000


def test_causal_history_is_what_is_served(tmp_path: Path) -> None:
    model = new_model(0, tiny_config())
    rng = np.random.default_rng(0)
    traits = (2.0, 3.0, 4.0, 5.0, 6.0)
    items = []
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", rng.integers(-3000, 3000, 8000).astype(np.int16), 16_000)
        items.append(dataclasses.replace(item("s", tmp_path / f"{number}.wav", traits), id=str(number)))
    rows = analyze_causally(model, items)
    assert [(row.id, row.predicted.heard) for row in rows] == [("0", 1), ("1", 2), ("2", 3)]
    history = NOTHING
    for row, each in zip(rows, items, strict=True):
        [direct] = model.analyze([Utterance(load_audio(each.path), history)])
        assert row.predicted.causal_traits == direct.conversation_traits
        assert (row.predicted.valence, row.predicted.arousal) == (direct.valence, direct.arousal)
        history = np.concatenate([history, direct.vector[None]])
    evidence = expected_error(rows, NEUTRAL_TRAITS, counts=(1, 3, 9))
    assert [row.utterance_count for row in evidence] == [1, 3]
    first = present(rows[0].predicted.causal_traits)
    assert evidence[0].error == pytest.approx([abs(p - t) for p, t in zip(first, traits, strict=True)], abs=1e-3)


def test_conditioning_traits_are_mixed_and_do_not_teach_the_personality_tail() -> None:
    truth = torch.full((4000, 5), 2.0)
    alone = torch.full((4000, 5), 5.0, requires_grad=True)
    torch.manual_seed(0)
    mixed = mixed_traits(truth, alone, torch.full((4000, 5), 6.0))
    assert not mixed.requires_grad
    for value, share in ((2.0, 0.2), (5.0, 0.2), (6.0, 0.25), (4.0, 0.2)):
        assert float((mixed == value).all(1).float().mean()) == pytest.approx(share, abs=0.03)
    assert float(mixed.min()) >= 1
    assert float(mixed.max()) <= 7


def test_rooms_are_repeatable_and_leave_shape_and_scale() -> None:
    for index in range(6):
        audio = torch.randn(16_000, generator=torch.Generator().manual_seed(index))
        one, two, other = (Augment(ROOMS)(audio, key=(4, number)) for number in (index, index, index + 100))
        assert torch.equal(one, two)
        assert one.shape == audio.shape
        assert torch.isfinite(one).all()
        assert float(one.square().mean()) == pytest.approx(1.0, abs=1e-3)
        assert not torch.allclose(one, audio, atol=0.1)
        assert not torch.allclose(one, other, atol=0.1)


def test_manipulations_do_what_they_say() -> None:
    time_s = np.arange(32_000) / 16_000
    tone = np.sum([np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 30)], axis=0)

    def pitch_hz(audio: np.ndarray) -> float:
        middle = audio[8000:12000]
        lags = np.arange(40, 250)
        return float(16_000 / lags[np.argmax([middle[:-lag] @ middle[lag:] for lag in lags])])

    assert len(change_rate(tone, 1.25)) == pytest.approx(len(tone) / 1.25, abs=900)
    assert pitch_hz(change_rate(tone, 1.25)) == pytest.approx(120, rel=0.03)
    assert pitch_hz(shift_pitch(tone, 4.0)) == pytest.approx(120 * 2 ** (4 / 12), rel=0.03)
    assert len(shift_pitch(tone, 4.0)) == pytest.approx(len(tone), abs=900)
    before, after = (np.abs(np.fft.rfft(x)) for x in (tone, change_tilt(tone, 2.0)))
    octave_db = 20 * np.log10(after[3840] / before[3840] / (after[1920] / before[1920]))  # 1920 and 960 Hz
    assert octave_db == pytest.approx(2.0, abs=0.01)


# ---- the committed bundle ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_tiny() -> KibunModel:
    return load_bundle("demo-tiny")


def test_committed_bundle_is_small_whole_and_described(demo_tiny: KibunModel) -> None:
    folder = resolve_bundle("demo-tiny")
    verify(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    assert demo_tiny.config.synthetic
    assert demo_tiny.config.trained
    assert (demo_tiny.config.license, set(demo_tiny.config.synthetic_parts or ())) == ("Apache-2.0", LEARNT)
    assert demo_tiny.config.do_normalize
    card = demo_tiny.card or ""
    for said in ("synthetic", "generated speech", "not a diagnosis", "kibun synth speech", "kibun train pr", "CCC"):
        assert said in card, said
    assert demo_tiny.evidence is not None
    counts = [row.utterance_count for row in demo_tiny.evidence]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert all(len(row.error) == len(TRAITS) for row in demo_tiny.evidence)


def test_level_carries_nothing(demo_tiny: KibunModel) -> None:
    audio = np.random.default_rng(0).normal(0, 0.02, 24_000).astype(np.float32)
    quiet, loud = demo_tiny.analyze([Utterance(audio, NOTHING), Utterance(audio * 20, NOTHING)])
    assert quiet.arousal == pytest.approx(loud.arousal, abs=1e-2)


@pytest.mark.parametrize("name", ["jfk.flac", "lj050-0131.wav"])
def test_arousal_follows_manipulations_of_real_speech(demo_tiny: KibunModel, shared_data: Path, name: str) -> None:
    audio, rate_hz = soundfile.read(shared_data / "speech" / name, always_2d=True)
    pieces = cut_at_pauses(soxr.resample(audio.mean(1), rate_hz, 16_000))

    def mean(cue: Cue, level: float) -> float:
        requests = [Utterance(manipulate(piece, cue, level), NOTHING) for piece in pieces]
        return float(np.mean([answer.arousal for answer in demo_tiny.analyze(requests)]))

    steps = [mean("all", level) for level in (-2, -1, 0, 1, 2)]
    assert (np.diff(steps) > 0).all()
    assert steps[-1] - steps[0] > 1.0
    assert mean("rate", 2) - mean("rate", -2) > 0.2
    assert mean("tilt", 2) - mean("tilt", -2) > 0.5
    assert mean("pitch", 2) - mean("pitch", -2) > -0.2  # the weakest cue: docs/demo-tiny.md
