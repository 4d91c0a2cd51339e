"""`kibun synth world`: the world itself, and corpora made of it."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.audio.reading import load_audio
from kibun.training.commands import synth_app
from kibun.training.corpora.manifest import load_manifest
from kibun.training.simulation.world import CUE_NAMES, draw_scenes, make_world
from kibun.training.simulation.world_audio import draw_voice, render
from kibun.training.simulation.world_ceilings import ceilings
from tests.support.commands import invoke

run = functools.partial(invoke, synth_app, "world")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    run("--audio", "--out", folder, "--dialogues", 6, "--utterances", 3, "--seed", 4, "--json")
    return folder


def test_valence_is_the_formula_spelt_out() -> None:
    world = make_world(3)
    rng = np.random.default_rng(0)
    z, cues, intensity = rng.normal(size=5), [1, 4, 4, 0], [0.3, 0.9, 0.5, 1.0]
    weights = [np.exp(float(world.salience[cue] @ z)) for cue in cues]
    total = 0.0
    for k, cue in enumerate(cues):
        flip = world.flip[0] if k == 0 else world.flip[cues[k - 1] + 1]
        total += weights[k] / sum(weights) * intensity[k] * np.tanh(world.bias[cue] + world.sign[cue] @ z) * flip
    expected = 3 + 2 * total + 0.3 * float(world.offset @ z)
    assert world.valence(z, np.array(cues), np.array(intensity)) == pytest.approx(expected)


def test_order_matters_and_traits_turn_a_cue_around() -> None:
    world = make_world(0)
    loud = np.ones(4)
    assert world.valence(np.zeros(5), np.array([0, 1, 2, 3]), loud) != pytest.approx(
        world.valence(np.zeros(5), np.array([3, 2, 1, 0]), loud)
    )
    cue, z = np.zeros(4, dtype=np.int64), 2 * world.sign[0]
    shift = 0.3 * float(world.offset @ z)
    up, down = world.valence(z, cue, loud) - shift, world.valence(-z, cue, loud) + shift
    assert (up - 3) * (down - 3) < 0


def test_ceilings_rise_with_what_is_known_and_agree_where_nothing_interacts() -> None:
    rng = np.random.default_rng(1)
    world, control = make_world(0), make_world(0, interaction=False)
    known = ceilings(world, draw_scenes(world, rng, 60, 10), 0, samples=300)
    assert known.none + 0.1 < known.additive < known.full - 0.2
    shifted = ceilings(control, draw_scenes(control, rng, 60, 10), 0, samples=300)
    assert shifted.additive == pytest.approx(shifted.full, abs=1e-6)


def test_the_corpus_loads_and_holds_dialogues_of_two(corpus: Path) -> None:
    items = load_manifest(
        corpus / "manifest.jsonl",
        require=("path", "split", "text", "traits", "valence", "arousal", "gender", "license"),
    )
    assert len(items) == 36
    assert {item.split for item in items} == {"train", "dev", "test"}
    assert len({item.conversation for item in items}) == 12 == len({item.speaker for item in items})
    for item in items:
        assert set((item.text or "").split()) <= set(CUE_NAMES)
        assert len(load_audio(item.path)) / SAMPLE_RATE_HZ == pytest.approx(item.seconds, abs=1e-3)


def test_the_same_seed_gives_the_same_files_by_any_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    run("--audio", "--dialogues", 6, "--utterances", 3, "--seed", 4, "--json", "--jobs", 2, "--out", tmp_path)
    for path in [corpus / "manifest.jsonl", *sorted(corpus.rglob("*.flac"))]:
        assert path.read_bytes() == (tmp_path / path.relative_to(corpus)).read_bytes(), path.name


def test_corpus_json_holds_settings_and_ceilings(corpus: Path) -> None:
    description = json.loads((corpus / "corpus.json").read_text())
    assert description["seed"] == 4
    assert description["interaction"] is True
    bound = description["valence_ceilings_on_test"]
    assert bound["none"] < bound["full"] <= 1


def test_louder_cues_are_louder_and_nothing_clips() -> None:
    rng = np.random.default_rng(2)
    for _ in range(5):
        voice, cues = draw_voice(rng), rng.integers(0, 5, 4)
        quiet, loud = (render(voice, cues, np.full(4, e), np.zeros(5), rng) for e in (0.2, 1.0))
        assert len(quiet) == len(loud) == round(1.2 * SAMPLE_RATE_HZ)
        assert np.std(loud) > 3 * np.std(quiet)
        assert np.abs(loud).max() < 1.0


def test_features_go_into_one_file(tmp_path: Path) -> None:
    run("--out", tmp_path, "--dialogues", 4, "--utterances", 2)
    with np.load(tmp_path / "world.npz") as arrays:
        assert arrays["frames"].shape == (8, 2, 8, 32)
        assert arrays["traits"].shape == (8, 5)
        assert set(arrays["split"]) == {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dialogues", "2"), "dialogues is 2, must be at least 3"),
        (("--utterances", "0"), "utterances is 0"),
        (("--evidence", "-1"), "evidence is -1, must be from 0 to 10"),
        (("--format", "mp3"), "format must be 'flac' or 'wav'"),
    ],
)
def test_impossible_options_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in run("--audio", "--out", tmp_path / "corpus", *arguments, code=2)
    assert not (tmp_path / "corpus").exists()
