"""`kibun train voices`: from manifests to a bundle that is served, figures of voices not heard, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kibun.models.bundle import Utterance, load_bundle
from kibun.models.categories import NORMS
from kibun.models.files import verify
from kibun.training.commands import train_app
from kibun.training.corpora.emotions import category_emotion
from kibun.training.runs.folder import read_log
from kibun.training.voices import recipe
from kibun.training.voices.batches import CATEGORIES, UNNAMED, BatchOptions, VoiceBatches
from kibun.training.voices.corpora import read_corpora
from kibun.training.voices.recipe import VoicesOptions, folds, make_voices
from tests.support.commands import invoke

TINY = VoicesOptions(steps=3, check_steps=1, batch=BatchOptions(speakers=4, per_speaker=3, crop_seconds=(0.7, 0.8)))
EMOTIONS = ("angry", "calm", "happy", "sad")


def write_corpus(folder: Path, speakers: int, *, test: int = 0, license: str | None = "CC BY 4.0") -> Path:
    """A manifest of noise: excited emotions are bright, calm ones dull. test: speakers in the test split."""
    folder.mkdir()
    rng = np.random.default_rng(len(folder.name))
    rows = []
    for speaker in range(speakers):
        for emotion in EMOTIONS:
            audio = rng.normal(size=16_000)
            if category_emotion(emotion)[1] < 2.5:
                audio = np.convolve(audio, np.ones(12) / 12, "same")
            audio[:2_000] = audio[-2_000:] = 0.0
            name = f"{speaker}-{emotion}.wav"
            soundfile.write(folder / name, 0.1 * audio, 16_000)
            valence, arousal = category_emotion(emotion)
            row: dict[str, Any] = {
                "path": name,
                "speaker": f"{folder.name}-{speaker}",
                "dialogue": "d",
                "emotion": emotion,
            }
            row |= {"valence": valence, "arousal": arousal, "seconds": 1.0, "corpus": folder.name, "license": license}
            rows.append(row | ({"split": "test" if speaker < test else "train"} if test else {}))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], dict[str, Any]]:
    """OUT of `kibun train voices --quick` at a tiny size, its manifests, and the figures that the command printed."""
    folder = tmp_path_factory.mktemp("voices")
    manifests = [write_corpus(folder / "north", 3, test=1), write_corpus(folder / "south", 2, license="CC0")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "QUICK", TINY)
        arguments = [part for path in manifests for part in ("--manifest", path)]
        (folder / "terms.txt").write_text("as the corpora\n")
        arguments += ["--license-file", folder / "terms.txt"]
        options = ("--out", folder / "out", "--quick", "--seed", 3, "--name", "mine", "--threads", 1, "--json")
        return folder / "out", manifests, json.loads(invoke(train_app, "voices", *arguments, *options))


def test_one_command_makes_a_bundle_that_is_served(made: tuple[Path, list[Path], dict[str, Any]]) -> None:
    out, _manifests, figures = made
    verify(out / "mine")
    model = load_bundle(out / "mine")
    assert (model.config.bundle_name, model.config.trained, model.config.synthetic) == ("mine", True, False)
    assert not model.config.supports_personality
    assert model.config.license == "Apache-2.0 AND CC BY 4.0 AND CC0"  # of demo-tiny, and of the corpora
    assert (out / "mine" / "LICENSE").read_text() == model.license_text == "as the corpora\n"
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    [answer] = model.analyze([Utterance(audio, np.zeros((0, 0), np.float16))])
    for value in (answer.valence, answer.arousal):
        assert value is not None
        assert 1 <= value <= 5
    assert figures["bundle_bytes"] < 2_000_000
    card = model.card or ""
    for said in ("north: 3 speakers, 12 utterances", "CC BY 4.0 AND CC0", "Acted emotion", "3 steps", "seed 3"):
        assert said in card, said
    assert str(out) not in card
    net = load_bundle(out / "net" / "bundle").state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, net[key].half().float()), key


def test_figures_are_of_voices_that_a_net_did_not_hear(made: tuple[Path, list[Path], dict[str, Any]]) -> None:
    out, manifests, figures = made
    labels = {"north, corpus not heard": 3, "south, corpus not heard": 2, "north, speakers not heard": 1}
    assert {name: each["ranked"]["arousal"]["speakers"] for name, each in figures["figures"].items()} == labels
    assert all(0 <= each["ranked"][name]["auc"] <= 1 for each in figures["figures"].values() for name in each["ranked"])
    for fold in folds(read_corpora(manifests)):
        heard = {item.speaker for corpus in fold.train for item in corpus.items}
        assert heard
        assert not heard & {item.speaker for item in fold.test}
        assert [line["step"] for line in read_log(out / fold.name)] == [1]
    everyone = {item.speaker for corpus in read_corpora(manifests) for item in corpus.items}
    assert len(everyone) == 5


def test_started_again_nothing_is_trained_anew(made: tuple[Path, list[Path], dict[str, Any]]) -> None:
    out, manifests, figures = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    corpora = read_corpora(manifests)
    command = (load_bundle(out / "mine").card or "").split("```")[1].strip()  # another one would be in the card
    again = make_voices(out, corpora, TINY, name="mine", version="1", seed=3, command=command)
    assert again == figures
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match="begun with other corpora, seed or options"):
        make_voices(out, corpora, TINY, name="mine", version="1", seed=4, command="again")


def test_cut_off_it_ends_with_the_same_weights(made: tuple[Path, list[Path], dict[str, Any]], tmp_path: Path) -> None:
    out, manifests, _figures = made
    corpora = read_corpora(manifests)
    draws = []

    class CutOff(Exception): ...

    def cut_off(batches: VoiceBatches, step: int) -> dict[str, torch.Tensor]:
        draws.append(step)
        if len(draws) == 2:
            raise CutOff
        return draw(batches, step)

    draw = VoiceBatches.draw
    options = {"name": "mine", "version": "1", "seed": 3, "command": "again", "measure": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceBatches, "draw", cut_off)
        with pytest.raises(CutOff):
            make_voices(tmp_path, corpora, TINY, **options)  # type: ignore[arg-type]
        make_voices(tmp_path, corpora, TINY, **options)  # type: ignore[arg-type]
    assert draws == [0, 1, 1, 2]
    whole, resumed = (load_bundle(folder / "net" / "bundle").state_dict() for folder in (out, tmp_path))
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_a_batch_has_several_emotions_of_each_speaker_and_corpora_take_turns(tmp_path: Path) -> None:
    corpora = read_corpora([write_corpus(tmp_path / "one", 6), write_corpus(tmp_path / "two", 2)])
    options = dataclasses.replace(TINY.batch, speakers=2, per_speaker=4)
    batches, same = (VoiceBatches([corpus.items for corpus in corpora], options, 0) for _ in range(2))
    for step in (1, 0):
        batch, again = batches.draw(step), same.draw(step)
        assert all(torch.equal(value, again[name]) for name, value in batch.items())
        for speaker in batch["category"].reshape(2, 4).tolist():
            assert sorted(CATEGORIES[each] for each in speaker) == sorted(EMOTIONS)
    unnamed = [dataclasses.replace(item, emotion=None) for item in corpora[0].items]
    assert set(VoiceBatches([unnamed], options, 0).draw(0)["category"].tolist()) == {UNNAMED}
    assert set(NORMS) == set(CATEGORIES)


def test_without_a_start_the_net_begins_at_random(
    made: tuple[Path, list[Path], dict[str, Any]], tmp_path: Path
) -> None:
    _out, manifests, _figures = made
    options = dataclasses.replace(TINY, steps=1, start=None)
    make_voices(tmp_path, read_corpora(manifests), options, name="x", version="1", seed=0, command="c", measure=False)
    card = load_bundle(tmp_path / "x").card or ""
    assert "1 steps from random weights" in card
    assert "Not measured" in card


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    def refused(*options: Any) -> str:
        return " ".join(invoke(train_app, "voices", "--out", tmp_path / "out", *options, code=2).split())

    one = write_corpus(tmp_path / "one", 2)
    assert "give each corpus once" in refused("--manifest", one, "--manifest", one)
    assert "give it with --manifest" in refused("--manifest", one, "--synthetic", one)
    other = write_corpus(tmp_path / "other", 1)
    other.write_text(other.read_text().replace('"other-0"', '"one-0"'))
    assert "speaker 'one-0' is in one and in other" in refused("--manifest", one, "--manifest", other)
    few = write_corpus(tmp_path / "few", 1)
    few.write_text(few.read_text().splitlines()[0] + "\n")
    assert "no speaker has 4 utterances" in refused("--manifest", few, "--no-measure")
    bare = write_corpus(tmp_path / "bare", 1)
    bare.write_text(bare.read_text().replace('"arousal"', '"excitement"'))
    assert "field 'arousal' is missing" in refused("--manifest", bare)
    (tmp_path / "few" / "corpus.json").write_text("{}")
    assert "give it with --synthetic" in refused("--manifest", few)
    assert "no bundle 'nosuch'" in refused("--manifest", one, "--start", "nosuch"), "before OUT is looked at"
    assert "does not exist" in refused("--manifest", one, "--license-file", tmp_path / "nope.txt")
