"""Tables II and III from label files alone: published tables of IEMOCAP, EmoEvaluation without audio, PA-IEMOCAP."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kibun.training.corpora.emotion_labels import read_label_files, read_whole_table
from kibun.training.corpora.iemocap import EXPECTED, prepare_iemocap
from kibun.training.corpora.manifest import read_manifest
from kibun.training.corpora.tipi import read_ocean
from kibun.training.errors import CorpusError, ManifestError
from kibun.training.eval_commands import eval_app
from tests.support import ROOT
from tests.support.commands import invoke
from tests.support.fake_iemocap import FakeIemocap, make, misspelt

OCEAN = ROOT.parent / "shared" / "data" / "pa-iemocap" / "ocean.csv"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeIemocap:
    """With its audio taken away after a manifest was made of it."""
    made = make(tmp_path_factory.mktemp("labels"))
    prepare_iemocap(made.root, made.tipi, made.ocean, made.root.parent / "manifest.jsonl")
    for session in made.root.glob("Session*"):
        shutil.rmtree(session / "sentences")
    return made


def write(path: Path, columns: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def correlations(emotion: Path, ocean: Path, *options: str, code: int = 0) -> str:
    level = ("--level", "utterance", "--json")
    return invoke(eval_app, "correlations", "--emotion", emotion, "--ocean", ocean, *level, *options, code=code)


def test_label_files_say_what_a_manifest_says(fake: FakeIemocap, tmp_path: Path) -> None:
    manifest = fake.root.parent / "manifest.jsonl"
    expected = {item.id: item for item in read_manifest(manifest, require=()).items}
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in fake.root.glob("Session*/dialog/EmoEvaluation/*.txt"):
        shutil.copy(path, flat)
    rows: list[list[object]] = [
        [f"IEMOCAP/{misspelt(item.dialogue)}{item.id.removeprefix(item.dialogue)}.wav", item.valence, item.arousal]
        for item in expected.values()
    ]
    table = write(tmp_path / "labels.csv", ["wav_file", "val", "act"], rows)
    for emotion in (fake.root, fake.root / "Session1", flat, table):
        items = read_label_files(emotion, fake.ocean).items
        assert len(items) == (
            sum("Ses01" in name for name in expected) if emotion.name == "Session1" else len(expected)
        )
        for item in items:
            true = expected[item.id]
            assert item.traits is not None
            fields = ("speaker", "dialogue", "gender", "valence", "arousal", "traits")
            assert [getattr(item, name) for name in fields] == [getattr(true, name) for name in fields]
    plain = invoke(eval_app, "correlations", "--manifest", manifest, "--level", "utterance", "--json")
    for emotion in (fake.root, table):
        found = json.loads(correlations(emotion, fake.ocean))
        assert found["all"]["n"] == len(expected)
        for trait, cells in json.loads(plain)["all"].items():
            if trait not in ("n", "left_out"):
                for name, cell in cells.items():
                    assert found["all"][trait][name] == pytest.approx(cell)


def test_what_is_missing_is_counted_and_warned_of(fake: FakeIemocap, tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["Ses01F_impro01_F000", 2.5, 3.5],
        ["Ses01F_impro01_F001", "", 3.5],
        ["Ses01F_impro01_M000", 4.5, 1.5],
        ["Ses05F_impro01_M000", 4.5, 1.5],
    ]
    labels = read_label_files(write(tmp_path / "some.csv", ["id", "V", "A"], rows), fake.ocean)
    assert [item.valence for item in labels.items] == [2.5, None, 4.5, 4.5]
    assert [item.traits is None for item in labels.items] == [False, False, False, True]
    assert labels.warnings[0] == f"utterances: 4, the whole corpus has {EXPECTED['utterances']:,}"
    assert labels.warnings[-1].startswith(f"profiles with traits but no utterance: {2 * len(fake.dialogues) - 2} (")


def test_every_bad_row_is_named(fake: FakeIemocap, tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["Ses01F_impro01_F000", 2.5, 3.5],
        ["Ses01F_impro01_F000", 2.5, 3.5],
        ["a clip", 2.5, 3.5],
        ["Ses01F_impro01_F001", 9, 3.5],
    ]
    path = write(tmp_path / "bad.csv", ["id", "valence", "arousal"], rows)
    with pytest.raises(CorpusError) as caught:
        read_label_files(path, fake.ocean)
    again, strange, high = caught.value.problems
    assert again == f"{path}:3: Ses01F_impro01_F000 is also in {path}:2; keep one of the two"
    assert strange.startswith(f"{path}:4: 'a clip' is no utterance id of IEMOCAP")
    assert high == f"{path}:5: column 'valence' must be a number from 0 to 6, is '9'"
    with pytest.raises(ManifestError, match=r"no column 'arousal'; name one of them arousal or activation or act"):
        read_label_files(write(tmp_path / "short.csv", ["id", "valence"], [["Ses01F_impro01_F000", 2]]), fake.ocean)
    with pytest.raises(ManifestError, match="columns val, V are the same"):
        read_label_files(write(tmp_path / "two.csv", ["id", "val", "V", "A"], [["x", 2, 2, 2]]), fake.ocean)
    with pytest.raises(ManifestError, match="has no file of EmoEvaluation; name the folder"):
        read_label_files(tmp_path, fake.ocean)


def test_one_kind_of_labels_is_given(fake: FakeIemocap) -> None:
    both = ("correlations", "--level", "utterance", "--ocean", fake.ocean)
    assert "give either --manifest, or --emotion, with --ocean unless" in invoke(eval_app, *both, code=2)
    folder = ("correlations", "--level", "utterance", "--emotion", fake.root)
    assert "holds no traits: give PA-IEMOCAP's ocean.csv with --ocean" in invoke(eval_app, *folder, code=2)
    assert "give either" in correlations(fake.root, fake.ocean, "--manifest", str(fake.ocean), code=2)


WHOLE = ["activation", "dominance", "valence", "gender", "Extraversion", "AG", "Conscientiousness", "NE", "Openness"]


def test_a_table_may_hold_the_traits_itself(fake: FakeIemocap, tmp_path: Path) -> None:
    """The columns of the table that PA-IEMOCAP's authors publish, which names nobody."""
    items = [item for item in read_label_files(fake.root, fake.ocean).items if item.traits is not None]
    rows: list[list[object]] = []
    for item in items:
        assert item.traits is not None
        openness, conscientiousness, extraversion, agreeableness, neuroticism = item.traits
        gender = str(item.gender)[0].upper()
        big_five = [extraversion, agreeableness, conscientiousness, neuroticism, openness]
        rows.append([item.arousal, 3, item.valence, gender, *big_five])
    table = write(tmp_path / "iemocap.csv", WHOLE, rows)
    at = ("correlations", "--json", "--level")
    expected = json.loads(correlations(fake.root, fake.ocean))
    assert json.loads(invoke(eval_app, *at, "utterance", "--emotion", table)) == expected
    refused = invoke(eval_app, *at, "conversation", "--emotion", table, code=2)
    assert "does not say who speaks: --level conversation needs a column id or speaker" in refused
    speakers = [[*cells, f"{item.dialogue}_{item.speaker}"] for cells, item in zip(rows, items, strict=True)]
    named = write(tmp_path / "named.csv", [*WHOLE, "speaker"], speakers)
    ids = write(tmp_path / "ids.csv", [*WHOLE, "id"], [[*c, i.id] for c, i in zip(rows, items, strict=True)])
    by_files = invoke(eval_app, *at, "conversation", "--emotion", fake.root, "--ocean", fake.ocean)
    for whole in (named, ids):
        assert json.loads(invoke(eval_app, *at, "conversation", "--emotion", whole)) == json.loads(by_files)


def test_a_bad_row_of_such_a_table_is_named(tmp_path: Path) -> None:
    good: list[object] = [3, 3, 3, "F", 4, 4, 4, 4, 4]
    bad = [[*good[:3], "x", *good[4:]], [*good[:4], "", *good[5:]], [*good[:8], 8]]
    path = write(tmp_path / "bad.csv", WHOLE, [good, *bad])
    with pytest.raises(CorpusError) as caught:
        read_whole_table(path)
    gender, empty, high = caught.value.problems
    assert gender == f"{path}:3: column 'gender' is 'x', allowed are m, f, male and female"
    assert empty == f"{path}:4: column 'Extraversion' is empty, and needed"
    assert high == f"{path}:5: column 'Openness' must be a number from 1 to 7, is '8'"
    with pytest.raises(ManifestError, match="no column 'openness'; name one of them openness or op"):
        read_whole_table(write(tmp_path / "short.csv", WHOLE[:-1], [good[:-1]]))


@pytest.mark.skipif(not OCEAN.is_file(), reason=f"no annotations of PA-IEMOCAP at {OCEAN}")
def test_all_published_profiles_meet_generated_labels(tmp_path: Path) -> None:
    """The ids of a whole corpus, with labels that follow agreeableness."""
    rng = np.random.default_rng(0)
    rows: list[list[object]] = []
    for (dialogue, gender), (_where, traits) in sorted(read_ocean(OCEAN).items()):
        for number in range(3):
            valence = float(np.clip(1 + 0.5 * traits[3] + 0.2 * rng.normal(), 1, 5))
            rows.append([f"{dialogue}_{gender.upper()}{number:03d}", valence, float(rng.uniform(1, 5))])
    emotion = write(tmp_path / "labels.csv", ["TURN_NAME", "V", "A"], rows)
    found = json.loads(correlations(emotion, OCEAN))["all"]
    assert (found["n"], found["left_out"]) == (3 * 302, {})
    assert found["agreeableness"]["valence"]["r"] > 0.9
    level = ("--level", "conversation", "--by", "gender")
    text = invoke(eval_app, "correlations", "--emotion", emotion, "--ocean", OCEAN, *level)
    assert "Table III, all: Pearson's r of traits and emotion over 302 conversations" in text
    assert "Table III, female: Pearson's r of traits and emotion over 151 conversations" in text
