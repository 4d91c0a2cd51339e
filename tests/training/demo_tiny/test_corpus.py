"""The generator: the same seed gives the same corpus, and nothing of dev or test occurs in training."""

import json
import shutil
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kibun.training.commands import synth_app
from kibun.training.corpora.splits import SPLITS
from kibun.training.demo_tiny.corpus import CorpusOptions, render_corpus
from kibun.training.demo_tiny.dialogue import render_dialogue
from kibun.training.demo_tiny.espeak import Espeak, EspeakError, VoiceSettings, find_data_dir
from kibun.training.demo_tiny.speakers import AROUSAL_WEIGHTS, VARIANTS, Cues, draw_cues, draw_speaker, voice_settings
from kibun.training.demo_tiny.texts import PHRASES, make_text, phrases
from tests.support import ROOT
from tests.support.commands import invoke

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
CALM = Cues(0, 0, 0, 0, 0, 0, 0)


def test_voices_and_texts_are_held_out() -> None:
    for one, other in combinations(SPLITS, 2):
        assert not set(VARIANTS[one]) & set(VARIANTS[other])
        assert all(not set(phrases(language, one)) & set(phrases(language, other)) for language in PHRASES)
    rng = np.random.default_rng(0)
    made_up = {split: {word for _ in range(60) for word in make_text(rng, "xx", split, 5)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not made_up[one] & made_up[other]


def test_arousal_is_the_weighted_sum_of_its_cues_and_nothing_else() -> None:
    assert sum(AROUSAL_WEIGHTS.values()) == pytest.approx(1)
    assert CALM.arousal() == 3.0
    for cue in AROUSAL_WEIGHTS:
        assert replace(CALM, **{cue: 1.0}).arousal() == pytest.approx(3 + 1.1 * AROUSAL_WEIGHTS[cue], abs=1e-3)
    assert replace(CALM, smile=2.0, harshness=2.0).arousal() == 3.0
    assert Cues(9, 9, 9, 9, 9, 0, 0).arousal() == 5.0


def test_body_and_arousal_are_independent() -> None:
    rng = np.random.default_rng(3)
    pairs = [(draw_speaker(rng, "s", "train"), draw_cues(rng).arousal()) for _ in range(1500)]
    arousal = np.array([score for _speaker, score in pairs])
    for feature in ("pitch_hz", "formant_scale", "tilt_db_per_octave", "words_per_minute", "breath"):
        values = np.array([getattr(speaker, feature) for speaker, _score in pairs])
        assert abs(np.corrcoef(values, arousal)[0, 1]) < 0.08, feature


def test_aroused_settings_are_higher_and_faster() -> None:
    speaker = draw_speaker(np.random.default_rng(0), "s", "train")
    low, high = (voice_settings(speaker, Cues(a, a, a, a, a, 0, 0), np.random.default_rng(1)) for a in (-1.5, 1.5))
    assert high.pitch_high_hz > low.pitch_high_hz
    assert high.pitch_high_hz / high.pitch_low_hz > low.pitch_high_hz / low.pitch_low_hz
    assert high.words_per_minute > low.words_per_minute
    assert high.formants[0][0] > low.formants[0][0]


@needs_espeak
def test_same_seed_same_corpus_whatever_the_jobs(tmp_path: Path) -> None:
    options = CorpusOptions(utterances=6, utterances_per_speaker=2, seed=5, max_seconds=2.0, audio_format="wav")
    one, two = (render_corpus(tmp_path / name, options, jobs) for name, jobs in (("one", 1), ("two", 2)))
    assert one.read_bytes() == two.read_bytes()
    rows = [json.loads(line) for line in one.read_text(encoding="utf-8").splitlines()]
    assert {row["split"] for row in rows} == {"train", "dev", "test"}
    assert {row["license"] for row in rows} == {"Apache-2.0"}
    for row in rows:
        assert (tmp_path / "one" / row["path"]).read_bytes() == (tmp_path / "two" / row["path"]).read_bytes()
        audio, rate_hz = soundfile.read(tmp_path / "one" / row["path"])
        assert rate_hz == 16_000
        assert len(audio) <= 32_000
        assert 0.1 < np.abs(audio).max() <= 0.51  # 0.5 before the end was cut off
    other = render_corpus(tmp_path / "three", replace(options, seed=6), 1)
    assert other.read_bytes() != one.read_bytes()


@needs_espeak
def test_espeak_speaks_as_it_is_asked() -> None:
    plain = VoiceSettings("en-us", "m1", 90, 110, 160)
    with Espeak() as espeak:
        slow, fast = (espeak.speak(replace(plain, words_per_minute=rate), "the window is open") for rate in (110, 260))
        high = espeak.speak(replace(plain, pitch_low_hz=180, pitch_high_hz=220), "the window is open")
        with pytest.raises(EspeakError, match="xx-none"):
            espeak.speak(replace(plain, language="xx-none"), "hello")
    assert len(fast) < 0.7 * len(slow)
    assert _pitch_hz(high) == pytest.approx(2 * _pitch_hz(slow), rel=0.15)


def _pitch_hz(audio: np.ndarray) -> float:
    """Median over loud frames of the autocorrelation's peak between 60 and 400 Hz."""
    frames = np.stack([audio[start : start + 1100] for start in range(0, len(audio) - 1100, 550)])
    loud = frames[(frames**2).mean(1) > np.quantile((frames**2).mean(1), 0.6)]
    lags = np.arange(22_050 // 400, 22_050 // 60)
    return float(np.median([22_050 / lags[np.argmax([f[:-lag] @ f[lag:] for lag in lags])] for f in loud]))


@needs_espeak
def test_dialogue_is_the_committed_one(tmp_path: Path) -> None:
    """The story, its turns and its size; audio may differ in detail with the version of espeak-ng."""
    audio, rate_hz = soundfile.read(render_dialogue(tmp_path))
    turns = json.loads((tmp_path / "dialogue.json").read_text(encoding="utf-8"))
    committed = ROOT / "client/kibun/client/demo"
    kept = json.loads((committed / "dialogue.json").read_text(encoding="utf-8"))
    assert [turn["text"] for turn in turns] == [turn["text"] for turn in kept]
    assert [turn["arousal"] for turn in turns] == [turn["arousal"] for turn in kept]
    assert (committed / "dialogue.flac").stat().st_size < 1_000_000
    assert rate_hz == 16_000
    assert 60 <= len(audio) / rate_hz <= 90
    assert len({turn["participant_id"] for turn in turns}) == 2
    assert all(one["end_s"] + 0.3 < other["start_s"] for one, other in pairwise(turns))


def test_missing_espeak_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EspeakError, match="apt-get install espeak-ng"):
        find_data_dir()
    error = invoke(synth_app, "speech", "--out", tmp_path / "corpus", "--utterances", 3, code=2)
    assert "apt-get install espeak-ng" in error
    assert not (tmp_path / "corpus").exists()


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_seconds"):
        CorpusOptions(min_seconds=5, max_seconds=2)
    assert "'flac' or 'wav'" in invoke(synth_app, "speech", "--out", tmp_path, "--format", "mp3", code=2)
