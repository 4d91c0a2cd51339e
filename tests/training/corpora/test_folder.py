"""`kibun train prepare folder`: a user's own table becomes a manifest, or every wrong cell is reported."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from kibun.models.types import TRAITS
from kibun.training.audio.reading import load_audio
from kibun.training.commands import train_app
from kibun.training.corpora.folder import FolderOptions, prepare_folder
from kibun.training.corpora.manifest import Item, load_manifest
from kibun.training.corpora.splits import split_speakers
from kibun.training.errors import CorpusError, ManifestError
from tests.support.commands import invoke

BIG_FIVE = {"OP": "1", "CO": "2", "EX": "3.5", "AG": "6", "NE": "7"}

Cells = dict[str, Any]


def cells(number: int, **changes: Any) -> Cells:
    """An utterance of speaker a (even) or b (odd) of one dialogue."""
    speaker = "ab"[number % 2]
    row = {"path": f"wavs/{number}.wav", "speaker": speaker, "dialogue": "d1", "valence": "2", "arousal": "4.5"}
    row |= {"license": "CC-BY-4.0", "corpus": "ours", "emotion": "happy"}
    return row | {"gender": "F" if speaker == "a" else "male", "text": "hm, well"} | BIG_FIVE | changes


def table(folder: Path, rows: list[Cells], name: str = "corpus.csv") -> Path:
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    for number in range(6):
        soundfile.write(folder / "wavs" / f"{number}.wav", np.full(2205, 0.1), 22_050)
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def prepare(path: Path, options: FolderOptions | None = None) -> list[Item]:
    out = path.parent / "manifest.jsonl"
    prepare_folder(path, out, options)
    return load_manifest(out)


def as_typed(row: Cells) -> Cells:
    """What JSONL would have: numbers as numbers, traits as an object."""
    texts = ("path", "speaker", "dialogue", "gender", "text", "license", "corpus", "emotion")
    plain = {name: row[name] for name in texts}
    traits = dict(zip(TRAITS, map(float, BIG_FIVE.values()), strict=True))
    return plain | {"valence": float(row["valence"]), "arousal": float(row["arousal"]), "traits": traits}


@pytest.mark.parametrize(
    ("name", "convert"),
    [("corpus.csv", dict), ("corpus.tsv", dict), ("corpus.jsonl", dict), ("corpus.jsonl", as_typed)],
)
def test_every_kind_of_table_gives_the_same(tmp_path: Path, name: str, convert: Callable[[Cells], Cells]) -> None:
    items = prepare(table(tmp_path, [convert(cells(number)) for number in range(4)], name))
    assert [(item.id, item.speaker, item.gender) for item in items[:2]] == [
        ("wavs/0.wav", "a", "female"),
        ("wavs/1.wav", "b", "male"),
    ]
    for item in items:
        assert (item.valence, item.arousal, item.text, item.split) == (2.0, 4.5, "hm, well", None)
        assert item.traits == (1.0, 2.0, 3.5, 6.0, 7.0)
        assert (item.license, item.corpus, item.emotion) == ("CC-BY-4.0", "ours", "happy")
        assert item.seconds == 0.1
        assert load_audio(item.path).shape == (1600,)


def test_empty_cells_are_absent_values(tmp_path: Path) -> None:
    empty = dict.fromkeys(("valence", "gender", "text", *BIG_FIVE), "")
    items = prepare(table(tmp_path, [cells(0, id=""), cells(1, id="second", **empty)]))
    assert [item.id for item in items] == ["wavs/0.wav", "second"]
    assert (items[1].valence, items[1].gender, items[1].text, items[1].traits) == (None, None, None, None)
    assert items[1].arousal == 4.5


def test_other_scales_are_converted_and_recorded(tmp_path: Path) -> None:
    traits = dict(zip(BIG_FIVE, ("1", "2", "3", "4", "5"), strict=True))
    rows = [cells(0, valence="0", arousal="0.25", **traits), cells(1, valence="1", arousal="0.5", **traits)]
    path = table(tmp_path, rows)
    items = prepare(path, FolderOptions(emotion_scale=(0, 1), trait_scale=(1, 5)))
    assert [(item.valence, item.arousal) for item in items] == [(1.0, 2.0), (5.0, 3.0)]
    assert items[0].traits == (1.0, 2.5, 4.0, 5.5, 7.0)
    report = json.loads((tmp_path / "manifest.report.json").read_text(encoding="utf-8"))
    assert report["found"]["emotion_scale"] == [0, 1]
    assert report["found"]["trait_scale"] == [1, 5]
    assert report["warnings"] == []
    unscaled = prepare_folder(path, tmp_path / "manifest.jsonl")
    assert [warning.split(":")[0] for warning in unscaled.warnings] == [
        "no valence is above 1",
        "no arousal is above 1",
        "no trait is above 5",
    ]
    assert load_manifest(tmp_path / "manifest.jsonl")[0].valence == 0.0
    with pytest.raises(ManifestError, match="emotion scale must be its lowest and its highest"):
        FolderOptions(emotion_scale=(1, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valence": "high"}, ":3: column 'valence' must be a number from 0 to 6, is 'high'"),
        ({"arousal": "67"}, "from 0 to 6, is '67'; if its scale is not 1..5"),
        ({"arousal": "nan"}, ":3: column 'arousal' must be a number"),
        ({"OP": "0.5"}, "column 'OP' must be a number from 1 to 7, is '0.5'; if its scale is not 1..7"),
        ({"CO": ""}, ":3: column 'CO' is empty, but 'OP' is not; give all five or none"),
        ({"speaker": ""}, ":3: column 'speaker' is empty, and needed"),
        ({"path": ""}, ":3: column 'path' is empty, and needed"),
        ({"path": "wavs/9.wav"}, ":3: column 'path': "),
        ({"path": "corpus.csv"}, "cannot be read as audio"),
        ({"path": "wavs/0.wav"}, ":3: column 'id' is 'wavs/0.wav', as in "),
        ({"split": "training"}, ":3: column 'split' must be one of train, dev, test, is 'training'"),
        ({"speaker": "a", "gender": "m"}, ":3: column 'gender' of speaker 'a' is 'male', but 'female' in "),
        ({"speaker": "a", "gender": "", "split": "dev"}, ":3: column 'split' of speaker 'a' is 'dev', but 'train' in "),
        ({"speaker": "a", "gender": "F", "NE": "2"}, ":3: column 'traits' of speaker 'a' of dialogue 'd1' is "),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_named(tmp_path: Path, changes: Cells, message: str) -> None:
    path = table(tmp_path, [cells(0, split="train"), cells(1, split="train") | changes])
    with pytest.raises(CorpusError) as caught:
        prepare(path)
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]
    assert caught.value.problems[0].startswith(str(path))
    assert not (tmp_path / "manifest.jsonl").exists()


def test_all_wrong_cells_are_named_at_once(tmp_path: Path) -> None:
    path = table(tmp_path, [cells(0, valence="x", arousal="y"), cells(1, speaker=""), cells(9)])
    with pytest.raises(CorpusError, match="4 problems; nothing was written") as caught:
        prepare(path)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [f"{path}:{line}:" for line in (2, 2, 3, 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,speaker\n1,2\n", ":1: no column 'dialogue', there are path, speaker"),
        ("path,speaker,dialogue,OP,CO\n1,2,3,4,5\n", "has some of the traits but no column 'extraversion'"),
        ("path,speaker,dialogue,OP,openness\n1,2,3,4,5\n", "columns 'openness' and 'OP' are the same trait"),
        ("path,speaker,path\n1,2,3\n", ":1: column 'path' is there twice"),
        (
            "path,speaker,dialogue,text\n1,2,3,well, no\n",
            ":2: has 5 cells, the header has 4; put text with a separator",
        ),
        ('path,speaker,dialogue\n1,2,"3\n', "not CSV"),
        ("path,speaker,dialogue\n\n", "has no utterances"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "corpus.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        prepare(tmp_path / "corpus.csv")
    assert message in str(caught.value)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("corpus.xlsx", b"PK", r"must be a .csv, .tsv or .jsonl"),
        ("latin.csv", b"path,speaker,dialogue\n1,Jos\xe9,3\n", "not UTF-8"),
        ("corpus.jsonl", b'{"path": 1}\n{\n', "corpus.jsonl:2: not JSON"),
        ("list.jsonl", b"[1]\n", "list.jsonl:1: must be a JSON object"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ManifestError, match=message):
            prepare(tmp_path / name)
    with pytest.raises(ManifestError, match="cannot be read"):
        prepare(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="is the table itself"):
        prepare(table(tmp_path, [cells(0)], "manifest.jsonl"))


def test_decode_reads_audio_in_full(tmp_path: Path) -> None:
    path = table(tmp_path, [cells(0, path="long.flac")])
    soundfile.write(tmp_path / "long.flac", np.random.default_rng(0).normal(0, 0.1, 40_000), 16_000)
    whole = (tmp_path / "long.flac").read_bytes()
    (tmp_path / "long.flac").write_bytes(whole[: len(whole) // 2])
    assert prepare(path)[0].seconds == 2.5  # says the header
    with pytest.raises(CorpusError, match=r":2: column 'path': .*long.flac: "):
        prepare(path, FolderOptions(decode=True))


# ---- random splits -------------------------------------------------------------------------------------------------


def test_speakers_who_talk_together_stay_together() -> None:
    pairs = [(f"d{pair}", f"s{pair}{side}") for pair in range(20) for side in "ab" for _ in range(5)]
    chained = [*pairs, ("late", "s0a"), ("late", "s1a")]  # joins two pairs
    homes = split_speakers(chained, (0.7, 0.1, 0.2), seed=3)
    assert homes == split_speakers(list(reversed(chained)), (0.7, 0.1, 0.2), seed=3)
    assert homes != split_speakers(chained, (0.7, 0.1, 0.2), seed=4)
    for pair in range(20):
        assert homes[f"s{pair}a"] == homes[f"s{pair}b"]
    assert homes["s0a"] == homes["s1b"]
    shares = {
        split: sum(homes[speaker] == split for _dialogue, speaker in pairs) / len(pairs) for split in homes.values()
    }
    assert shares == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.051)


def test_every_split_gets_a_speaker_or_there_is_an_error() -> None:
    three = [(f"d{number}", f"s{number}") for number in range(3)]
    for seed in range(5):
        assert sorted(split_speakers(three, (0.9, 0.05, 0.05), seed).values()) == ["dev", "test", "train"]
    assert set(split_speakers(three, (0.5, 0.0, 0.5), 0).values()) == {"train", "test"}
    with pytest.raises(ManifestError, match=r"3 splits need as many groups of speakers .* there are 2"):
        split_speakers(three[:2], (0.8, 0.1, 0.1), 0)
    with pytest.raises(ManifestError, match="must be 0 or more and sum to 1"):
        split_speakers(three, (0.8, 0.1, 0.2), 0)


def test_the_command(tmp_path: Path) -> None:
    rows = [cells(number, dialogue=f"d{number}", speaker=f"s{number}", loudness="3") for number in range(6)]
    command = ["prepare", "folder", "--table", str(table(tmp_path, rows)), "--out", str(tmp_path / "manifest.jsonl")]
    split = ["--split-speakers", ".6,.2,.2", "--seed", "1"]
    report = json.loads(invoke(train_app, *command, *split, "--json"))
    assert report["warnings"] == ["column 'loudness' is not known and not used"]
    assert {name: group["utterances"] for name, group in report["groups"].items()} == {"dev": 1, "test": 1, "train": 4}
    assert len({item.split for item in load_manifest(tmp_path / "manifest.jsonl", require=("split",))}) == 3
    result = CliRunner().invoke(train_app, command)
    assert result.exit_code == 0, result.output
    assert "warning: column 'loudness' is not known and not used" in result.stderr

    for options, message in (
        (["--emotion-scale", "0"], "--emotion-scale must be LOW,HIGH as numbers, is '0'"),
        (["--trait-scale", "1,x"], "--trait-scale must be LOW,HIGH as numbers, is '1,x'"),
        (["--split-speakers", ".5,.5"], "--split-speakers must be TRAIN,DEV,TEST as numbers"),
        (["--emotion-scale", "0,1"], "column 'valence' must be a number from 0 to 1, is '2'"),
    ):
        assert message in invoke(train_app, *command, *options, code=2)
    table(tmp_path, [row | {"split": "train"} for row in rows])
    assert "has a column 'split' already" in invoke(train_app, *command, *split, code=2)
