"""From espeak-ng to a served bundle in one test, and checks of the bundle that is committed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from typer.testing import CliRunner

from kibun.models.bundle import KibunModel, Utterance, load_bundle, resolve_bundle
from kibun.models.files import verify
from kibun.models.types import TRAITS
from kibun.training.audio.rooms import Augment, AugmentOptions
from kibun.training.commands import train_app
from kibun.training.corpora.manifest import Item
from kibun.training.demo_tiny.config import new_tiny_model
from kibun.training.demo_tiny.corpus import CorpusOptions, render_corpus
from kibun.training.demo_tiny.data import CropCollator
from kibun.training.demo_tiny.effects import EFFORT_DB_PER_OCTAVE
from kibun.training.demo_tiny.evaluate import analyze_causally, expected_error
from kibun.training.demo_tiny.manipulate import Cue, change_rate, change_tilt, cut_at_pauses, manipulate, shift_pitch
from kibun.training.demo_tiny.pairs import Change, draw_change, make_pair
from kibun.training.demo_tiny.recipe import train_tiny
from kibun.training.demo_tiny.speakers import AROUSAL_WEIGHTS, PITCH_SEMITONES, RATE_OCTAVES
from kibun.training.demo_tiny.trainer import TrainOptions, mixed_traits
from kibun.training.losses import pair_loss
from kibun.training.runs.config import Task, load_config
from tests.support import ROOT

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
NOTHING = np.zeros((0, 96), np.float16)


@needs_espeak
def test_corpus_to_bundle_to_estimates(tmp_path: Path) -> None:
    corpus = CorpusOptions(
        utterances=30,
        utterances_per_speaker=3,
        seed=1,
        max_seconds=2.0,
        dev_share=0.1,
        test_share=0.1,
        audio_format="wav",
    )
    manifest = render_corpus(tmp_path / "corpus", corpus)
    options = TrainOptions(
        steps=12,
        warmup_steps=2,
        speakers_per_batch=8,
        utterances_per_speaker=2,
        evaluations=2,
        crop_seconds=(1.0, 1.1),
        seed=3,
        average_decay=0.5,
    )
    figures = train_tiny(manifest, tmp_path / "bundle", tmp_path / "work", options, "mini", "7", ("the command",))
    log = [json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["step"] for line in log} == {6, 12}
    assert log[-1]["loss"] < log[0]["loss"]
    assert figures["options"]["seed"] == 3

    model = load_bundle(tmp_path / "bundle")
    assert model.config.trained
    assert model.config.synthetic
    assert (model.config.bundle_name, model.config.bundle_version) == ("mini", "7")
    assert model.expected_error is not None
    assert [count for count, _errors in model.expected_error] == [1, 2, 3]
    assert "the command" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "kibun synth speech --out corpus --utterances 30 --seed 1" in (model.card or "")
    answer = model.analyze([Utterance(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), NOTHING)])[0]
    assert answer.arousal is not None
    assert 1 <= answer.arousal <= 5


def test_missing_manifest_and_too_few_speakers_are_said(tmp_path: Path) -> None:
    command = [
        "tiny",
        "--manifest",
        str(tmp_path / "manifest.jsonl"),
        "--out",
        str(tmp_path / "bundle"),
        "--steps",
        "1",
    ]
    result = CliRunner().invoke(train_app, command)
    assert result.exit_code == 2
    assert "kibun synth speech" in result.output

    rng = np.random.default_rng(0)
    rows = []
    for index, split in enumerate(["train"] * 6 + ["dev", "test"]):
        soundfile.write(tmp_path / f"{index}.wav", rng.normal(0, 0.1, 17_000), 16_000)
        row = {"path": f"{index}.wav", "speaker": f"{split}{index % 2}", "dialogue": "d", "split": split, "text": "a"}
        rows.append(row | {"arousal": 3, "valence": 3, "traits": dict.fromkeys(TRAITS, 4)})
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = CliRunner().invoke(train_app, command)
    assert result.exit_code == 2
    assert "2 speakers have 2 utterances or more, a batch needs 8" in result.output
    assert not (tmp_path / "bundle").exists()


def test_crops_are_equally_long_with_silent_margins() -> None:
    item = Item("x", Path("x"), "s", "s", "train", "", 2.5, 3.5, (4.0,) * 5)
    examples = [(np.full(size, 3000, np.int16), item) for size in (16_000, 40_000, 80_000)]
    collator = CropCollator(None, (1.5, 2.5), np.random.default_rng(0), margin_chance=1.0)
    starts = []
    for _ in range(20):
        batch = collator(examples)
        audio = batch["input_values"]
        assert audio.shape[0] == 3
        assert 1.5 * 16_000 <= audio.shape[1] <= 2.5 * 16_000
        assert batch["arousal"].tolist() == [3.5] * 3
        assert batch["traits"].shape == (3, 5)
        speech = audio > 0
        assert 0.5 * 16_000 <= int(speech[0].sum()) <= 16_000  # margins may leave less room than the utterance is long
        starts.append(int(speech[2].int().argmax()))
    assert max(starts) > 1600
    assert max(starts) <= 0.5 * 16_000


def test_a_change_is_worth_what_the_generator_says() -> None:
    assert Change(PITCH_SEMITONES, 0, 0).arousal() == pytest.approx(1.1 * AROUSAL_WEIGHTS["pitch"])
    assert Change(0, -RATE_OCTAVES, 0).arousal() == pytest.approx(-1.1 * AROUSAL_WEIGHTS["rate"])
    assert Change(0, 0, 2 * EFFORT_DB_PER_OCTAVE).arousal() == pytest.approx(2.2 * AROUSAL_WEIGHTS["effort"])
    rng = np.random.default_rng(0)
    drawn = [draw_change(rng) for _ in range(400)]
    cues = np.array([(change.semitones, change.rate_octaves, change.db_per_octave) for change in drawn])
    for cue in range(3):  # each alone at times, up and down
        alone = cues[(cues[:, [c for c in range(3) if c != cue]] == 0).all(1), cue]
        assert len(alone) > 30
        assert (alone > 0).any()
        assert (alone < 0).any()
    assert (cues != 0).all(1).sum() > 100


def test_a_pair_has_one_length_and_one_band_and_differs_in_the_cue() -> None:
    time_s = np.arange(32_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 30)).astype(np.float32)
    same, copy = make_pair(tone, Change(0, 0, 0))
    assert np.array_equal(same, copy)
    one, other = make_pair(tone, Change(0, 0.4, 0))
    assert len(one) == len(other) == pytest.approx(32_000 / 2**0.4, abs=900)
    assert np.allclose(one[2000:-2000], tone[2000 : len(one) - 2000], atol=0.02)
    one, other = make_pair(tone, Change(0, 0, -2.0))
    before, after = (np.abs(np.fft.rfft(x)) for x in (one, other))
    assert 20 * np.log10(after[3840] / before[3840] / (after[1920] / before[1920])) == pytest.approx(-2.0, abs=0.05)


def test_both_of_a_pair_get_the_same_crop_margins_channel_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    item = Item("x", Path("x"), "s", "s", "train", "", 2.5, 3.5, (4.0,) * 5)
    examples = [((3000 * rng.normal(size=40_000)).astype(np.int16), item) for _ in range(6)]

    def collate(change: Change) -> dict[str, torch.Tensor]:
        monkeypatch.setattr("kibun.training.demo_tiny.data.draw_change", lambda _rng: change)
        augment = Augment(AugmentOptions(), torch.Generator().manual_seed(1))
        return CropCollator(augment, (1.5, 2.5), np.random.default_rng(2), pair_every=2)(examples)

    nothing = collate(Change(0, 0, 0))
    assert nothing["arousal_change"].tolist() == [0, 0, 0]
    assert torch.equal(nothing["changed"], nothing["input_values"][::2])
    assert not torch.allclose(nothing["input_values"][1::2], nothing["input_values"][::2])
    tilted = collate(Change(0, 0, 2.0))
    assert tilted["arousal_change"].tolist() == pytest.approx([Change(0, 0, 2.0).arousal()] * 3)
    assert torch.allclose(tilted["input_values"], nothing["input_values"], atol=1e-5)
    assert not torch.allclose(tilted["changed"], nothing["changed"], atol=0.1)


def test_pair_loss_wants_the_right_change_of_arousal_and_none_of_valence() -> None:
    truth = torch.linspace(-1, 1, 9)
    assert float(pair_loss(truth, truth, torch.zeros(9))) == pytest.approx(0, abs=1e-6)
    assert float(pair_loss(truth, truth, torch.ones(9))) == pytest.approx(0.2)
    assert float(pair_loss(-truth, truth, torch.zeros(9))) > float(pair_loss(0 * truth, truth, torch.zeros(9))) > 0.9


def test_one_trunk_three_tails_and_the_same_start_for_the_same_seed() -> None:
    one, two, other = (new_tiny_model(seed) for seed in (0, 0, 1))
    assert set(one.tails) == {"personality", "valence", "arousal"}
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert sum(parameter.numel() for parameter in one.parameters()) < 950_000


def test_causal_history_is_what_is_served() -> None:
    model = new_tiny_model(0).eval()
    rng = np.random.default_rng(0)
    traits = (2.0, 3.0, 4.0, 5.0, 6.0)
    item = Item("x", Path("x"), "s", "s", "test", "", 3.0, 3.0, traits)
    examples = [(rng.integers(-3000, 3000, 8000).astype(np.int16), item) for _ in range(3)]
    heard = analyze_causally(model, examples)
    assert [h.count for h in heard] == [1, 2, 3]
    history = np.stack([h.answer.vector for h in heard[:2]])
    direct = model.analyze([Utterance(examples[2][0].astype(np.float32) / 32768, history)])[0]
    assert heard[2].answer.conversation_traits == direct.conversation_traits
    errors = expected_error(heard, counts=(1, 3, 9))
    assert [count for count, _errors in errors] == [1, 3]
    first = heard[0].answer.conversation_traits
    assert first is not None
    assert errors[0][1] == pytest.approx([abs(p - t) for p, t in zip(first, traits, strict=True)], abs=1e-3)


def test_conditioning_traits_are_mixed_and_do_not_teach_the_personality_tail() -> None:
    truth = torch.full((4000, 5), 2.0)
    alone = torch.full((4000, 5), 5.0, requires_grad=True)
    mixed = mixed_traits(truth, alone, torch.full((4000, 5), 6.0), torch.Generator().manual_seed(0))
    assert not mixed.requires_grad
    for value, share in ((2.0, 0.2), (5.0, 0.2), (6.0, 0.25), (4.0, 0.2)):
        assert float((mixed == value).all(1).float().mean()) == pytest.approx(share, abs=0.03)
    assert float(mixed.min()) >= 1
    assert float(mixed.max()) <= 7


def test_augmentation_is_repeatable_and_keeps_shape_and_scale() -> None:
    audio = torch.randn(6, 16_000, generator=torch.Generator().manual_seed(0))
    one, two = (Augment(AugmentOptions(), torch.Generator().manual_seed(4))(audio) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == audio.shape
    assert torch.isfinite(one).all()
    assert torch.allclose(one.square().mean(1), torch.ones(6), atol=1e-3)
    assert not torch.allclose(one, audio, atol=0.1)


def test_manipulations_do_what_they_say() -> None:
    time_s = np.arange(32_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 30))

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


def test_committed_bundle_is_small_whole_and_says_what_it_is(demo_tiny: KibunModel) -> None:
    folder = resolve_bundle("demo-tiny")
    verify(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    assert demo_tiny.config.synthetic
    assert demo_tiny.config.trained
    assert demo_tiny.config.do_normalize
    card = demo_tiny.card or ""
    for said in ("synthetic", "generated speech", "not a diagnosis", "kibun synth speech", "kibun train tiny", "CCC"):
        assert said in card, said
    assert demo_tiny.expected_error is not None
    counts = [count for count, _errors in demo_tiny.expected_error]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert all(len(errors) == len(TRAITS) for _count, errors in demo_tiny.expected_error)


@pytest.mark.parametrize(("task", "name"), [("pr", "pr"), ("ser", "valence"), ("ser", "arousal")])
def test_its_runs_can_be_run_again(task: Task, name: str) -> None:
    run = load_config(task, ROOT / "docs" / "demo-tiny" / f"{name}.toml")
    assert run.synthetic
    assert run.model.freeze == "trunk"
    assert run.dimension == (None if task == "pr" else name)


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
