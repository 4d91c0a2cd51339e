"""`kibun train prepare NAME` on tiny copies of public corpora, named and labelled as they are published."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kibun.models.categories import NORMS
from kibun.training.commands import train_app
from kibun.training.corpora.emotions import category_emotion, voted_emotion
from kibun.training.corpora.manifest import load_manifest
from kibun.training.corpora.public import PublicOptions, prepare_public
from kibun.training.corpora.public_corpora import PUBLIC
from kibun.training.corpora.report import CorpusReport
from kibun.training.errors import CorpusError, ManifestError
from tests.support import present
from tests.support.commands import invoke

Lines = dict[str, dict[str, Any]]

VOTES_HEADER = (
    '"","A","D","F","H","N","S","fileName","numResponses","agreement","emoVote","meanEmoResp","meanAngerResp",'
    '"meanDisgustResp","meanFearResp","meanHappyResp","meanNeutralResp","meanSadResp"'
)
MSP_HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"


def record(root: Path, *names: str, channels: int = 1) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full((4800, channels), 0.1), 16_000)
    return root


def write(root: Path, name: str, *lines: str, encoding: str = "utf-8") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def prepare(name: str, root: Path, options: PublicOptions | None = None) -> tuple[Lines, CorpusReport]:
    """The manifest's lines by the recording's name, and the report."""
    out = root / "manifest.jsonl"
    report = prepare_public(PUBLIC[name], root, out, options)
    items = load_manifest(out)
    assert all(item.seconds == 0.3 for item in items)
    assert {(item.corpus, item.license) for item in items} == {(name, PUBLIC[name].license)}
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {row["id"].removeprefix(f"{name}/"): row for row in rows}, report


def fields(row: dict[str, Any], *names: str) -> list[Any]:
    return [row.get(name) for name in names]


def test_ravdess(tmp_path: Path) -> None:
    record(tmp_path, "Actor_01/03-01-05-01-01-01-01.wav", "Actor_24/03-01-05-02-02-02-24.flac")
    record(tmp_path, "Actor_01/03-02-05-01-01-01-01.wav", "Actor_25/03-01-05-01-01-01-25.wav")
    rows, report = prepare("ravdess", tmp_path)
    assert list(rows) == ["03-01-05-01-01-01-01", "03-01-05-02-02-02-24"]
    normal, strong = rows.values()
    names = ("speaker", "dialogue", "gender", "language", "emotion", "intensity", "text")
    assert fields(normal, *names) == [
        *("ravdess-01", "ravdess-01", "male", "en", "angry", "normal", "kids are talking by the door"),
    ]
    assert fields(strong, *names[2:]) == ["female", "en", "angry", "strong", "dogs are sitting by the door"]
    assert fields(strong, "valence", "arousal") == [1.765, 3.6]
    assert 3.25 > normal["valence"] > strong["valence"]
    assert 2.225 < normal["arousal"] < strong["arousal"]
    assert len(report.ignored) == 2
    assert report.warnings[0].startswith("recordings whose names are none of RAVDESS: 2 (")
    assert "utterances: 2, the whole corpus has 1,440" in report.warnings


def test_nemo(tmp_path: Path) -> None:
    record(tmp_path, "samples/EB0_happiness_76.wav", "samples/WR0_surprised_64.wav")
    without, report = prepare("nemo", tmp_path)
    assert "no file data.tsv: without transcripts" in report.warnings
    assert without["EB0_happiness_76"].get("text") is None
    write(
        tmp_path,
        "data.tsv",
        "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage",
        "EB0_happiness_76.wav\thappiness\tWoda jest zimna.\twoda jest zimna\t        EB0\tfemale\t27",
    )
    rows, _report = prepare("nemo", tmp_path)
    assert fields(rows["EB0_happiness_76"], "speaker", "gender", "emotion", "text") == [
        *("nemo-EB0", "female", "happy", "woda jest zimna"),
    ]
    assert fields(rows["WR0_surprised_64"], "gender", "emotion", "language", "intensity") == [
        *("male", "surprised", "pl", None),
    ]
    assert fields(rows["EB0_happiness_76"], "valence", "arousal") == [4.735, 3.525]


def test_crema_d_takes_the_votes_of_those_who_only_heard_the_voice(tmp_path: Path) -> None:
    record(tmp_path, "AudioWAV/1001_IEO_ANG_HI.wav", "AudioWAV/1001_IEO_ANG_LO.wav", "AudioWAV/1040_ITH_SAD_X.wav")
    record(tmp_path, "AudioMP3/1001_IEO_ANG_HI.mp3")
    write(
        tmp_path,
        "processedResults/tabulatedVotes.csv",
        VOTES_HEADER,
        '"100010",6,0,0,0,2,0,"1001_IEO_ANG_HI",8,0.75,"A",70,40,-1,-1,-1,100,-1',
        '"200010",0,0,0,8,0,0,"1001_IEO_ANG_HI",8,1,"H",80,-1,-1,-1,80,-1,-1',
    )
    write(tmp_path, "VideoDemographics.csv", '"ActorID","Age","Sex","Race","Ethnicity"', '1001,51,"Male","x","y"')
    rows, report = prepare("crema-d", tmp_path)
    names = ("path", "gender", "emotion", "intensity", "text", "votes")
    assert fields(rows["1001_IEO_ANG_HI"], *names) == [
        *("AudioWAV/1001_IEO_ANG_HI.wav", "male", "angry", "high", "it's eleven o'clock"),
        {"angry": 0.75, "neutral": 0.25},
    ]
    # Six of eight chose anger, at half of the full level: three eighths of the way from neutral.
    neutral, angry = category_emotion("neutral"), category_emotion("angry")
    expected = [n + 0.375 * (a - n) for n, a in zip(neutral, angry, strict=True)]
    assert fields(rows["1001_IEO_ANG_HI"], "valence", "arousal") == pytest.approx(expected, abs=1e-4)
    assert fields(rows["1001_IEO_ANG_LO"], "valence", "arousal") == list(category_emotion("angry", "low"))
    assert fields(rows["1040_ITH_SAD_X"], "gender", "intensity") == [None, "unspecified"]
    assert any("there twice, of which one is used: 1 (" in warning for warning in report.warnings)


def test_crema_d_names_bad_votes(tmp_path: Path) -> None:
    record(tmp_path, "1001_IEO_ANG_HI.wav")
    row = '"100010",{},0,0,0,0,0,"1001_IEO_ANG_HI",8,0.75,"A",70,{},-1,-1,-1,-1,-1'
    write(tmp_path, "tabulatedVotes.csv", VOTES_HEADER, row.format(0, 50), row.format(1, -1), row.format(1, 50))
    assert [problem.split(":")[1] for problem in problems("crema-d", tmp_path)] == ["2", "3"]
    write(tmp_path, "tabulatedVotes.csv", "version https://git-lfs.github.com/spec/v1", "oid sha256:0", "size 4057953")
    assert problems("crema-d", tmp_path)[0].endswith("get the file with `git lfs pull`")


def test_emodb(tmp_path: Path) -> None:
    record(tmp_path, "wav/03a01Fa.wav", "wav/16b10Wb.wav", "wav/08a02La.wav", "wav/09b09Nb.wav")
    rows, _report = prepare("emodb", tmp_path)
    assert [row["emotion"] for row in rows.values()] == ["happy", "bored", "neutral", "angry"]
    assert fields(rows["03a01Fa"], "speaker", "gender", "language", "text") == [
        *("emodb-03", "male", "de", "der lappen liegt auf dem eisschrank"),
    ]
    assert rows["16b10Wb"]["gender"] == "female"


def test_tess(tmp_path: Path) -> None:
    record(
        tmp_path,
        "OAF_Fear/OAF_back_fear.wav",
        "YAF_pleasant_surprised/YAF_dog_ps.wav",
        "OAF_neutral/OA_bite_neutral.wav",
    )
    record(tmp_path, "TESS again/OAF_Fear/OAF_back_fear.wav")
    rows, report = prepare("tess", tmp_path)
    assert [fields(row, "speaker", "emotion", "text") for row in rows.values()] == [
        ["tess-OA", "fearful", "say the word back"],
        ["tess-OA", "neutral", "say the word bite"],
        ["tess-YA", "surprised", "say the word dog"],
    ]
    assert {row["gender"] for row in rows.values()} == {"female"}
    assert report.utterances == 3
    assert len(report.ignored) == 1


@pytest.mark.parametrize(("encoding", "speaker"), [("utf-8", "0011"), ("utf-16", "0011"), ("gb18030", "0001")])
def test_esd(tmp_path: Path, encoding: str, speaker: str) -> None:
    record(tmp_path, f"ESD/{speaker}/Angry/{speaker}_000351.wav", f"ESD/{speaker}/Surprise/train/{speaker}_001401.wav")
    said = "打远一看" if speaker == "0001" else "The nine the eggs, I keep."
    write(tmp_path, f"ESD/{speaker}/{speaker}.txt", f"{speaker}_000351\t{said}\tAngry", encoding=encoding)
    rows, _report = prepare("esd", tmp_path)
    assert fields(rows[f"{speaker}_000351"], "speaker", "emotion", "text", "language") == [
        *(f"esd-{speaker}", "angry", said, "zh" if speaker == "0001" else "en"),
    ]
    assert fields(rows[f"{speaker}_001401"], "emotion", "text") == ["surprised", None]


def test_msp_podcast(tmp_path: Path) -> None:
    name = "MSP-PODCAST_0001_000{}"
    record(tmp_path, *(f"Audios/{name.format(number)}.wav" for number in range(1, 6)))
    write(
        tmp_path,
        "Labels/labels_consensus.csv",
        MSP_HEADER,
        f"{name.format(1)}.wav,A,7,1,4,17,Male,Train",
        f"{name.format(2)}.wav,X,2.5,4,5.5,Unknown,Unknown,Development",
        f"{name.format(3)}.wav,H,4,7,4,18,Female,Test1",
        f"{name.format(4)}.wav,N,4,4,4,Unknown,Unknown,Test2",
        f"{name.format(5)}.wav,,,,,Unknown,Unknown,Test3",
        f"{name.format(9)}.wav,N,4,4,4,17,Male,Train",
    )
    write(tmp_path, f"Transcripts/{name.format(1)}.txt", "well, you know")
    rows, report = prepare("msp-podcast", tmp_path)
    assert fields(rows[name.format(1)], "speaker", "gender", "emotion", "valence", "arousal", "dominance", "split") == [
        *("msp-podcast-17", "male", "angry", 1.0, 5.0, 3.0, "train"),
    ]
    assert fields(rows[name.format(1)], "text", "published_split") == ["well, you know", "Train"]
    assert fields(rows[name.format(2)], "speaker", "emotion", "valence", "arousal", "dominance", "split") == [
        *("msp-podcast-0001_0002", None, 3.0, 2.0, 4.0, "dev"),
    ]
    assert [row["split"] for row in rows.values()] == ["train", "dev", "test", "test"]
    assert report.found["valence_and_arousal"] == "from listeners' ratings"
    assert report.warnings == (
        "utterances of unknown speakers, each counted as a speaker of its own: 2",
        f"recordings without labels: 1 (msp-podcast/{name.format(5)})",
        f"labels without a recording: 1 ({name.format(9)})",
    )


def test_msp_podcast_needs_its_labels(tmp_path: Path) -> None:
    record(tmp_path, "Audios/MSP-PODCAST_0001_0001.wav")
    assert "no file labels_consensus.csv in it or below" in problems("msp-podcast", tmp_path)[0]
    lines = ("MSP-PODCAST_0001_0001.wav,A,8,1,4,17,Male,Train", "MSP-PODCAST_0001_0002.wav,A,6,1,4,17,Male,Train")
    write(tmp_path, "labels_concensus.csv", MSP_HEADER, *lines, "MSP-PODCAST_0001_0003.wav,A,6,1,4,17,Male,Test1")
    found = problems("msp-podcast", tmp_path)
    assert "EmoAct, EmoVal and EmoDom must be numbers from 1 to 7" in found[0]
    assert "speaker 17 is in test, but in train in" in found[1]


def problems(name: str, root: Path, options: PublicOptions | None = None) -> Sequence[str]:
    out = root / "manifest.jsonl"
    with pytest.raises(CorpusError) as caught:
        prepare_public(PUBLIC[name], root, out, options)
    assert not out.exists()
    return caught.value.problems


@pytest.mark.parametrize("name", PUBLIC)
def test_a_folder_without_the_corpus_says_what_was_expected(tmp_path: Path, name: str) -> None:
    (found,) = problems(name, tmp_path)
    assert PUBLIC[name].example in found
    assert PUBLIC[name].homepage in found
    record(tmp_path, "holidays.wav")
    assert "there are 1 others, such as" in problems(name, tmp_path)[0]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_corpus_recognises_its_own_example_alone(tmp_path: Path, name: str) -> None:
    record(tmp_path, PUBLIC[name].example)
    if name == "msp-podcast":
        write(tmp_path, "labels_consensus.csv", MSP_HEADER, "MSP-PODCAST_0001_0008.wav,A,7,1,4,17,Male,Train")
    rows, _report = prepare(name, tmp_path)
    assert len(rows) == 1
    for other in PUBLIC.keys() - {name}:
        assert "has no recording of" in invoke(train_app, "prepare", other, "--root", tmp_path, code=2)


def test_recordings_that_cannot_be_used_are_named_or_left_out(tmp_path: Path) -> None:
    record(tmp_path, "03a01Fa.wav")
    record(tmp_path, "03a02Fa.wav", channels=2)
    (tmp_path / "03a04Fa.wav").write_bytes(b"no audio")
    (tmp_path / "._03a01Fa.wav").write_bytes(b"a Mac's twin")
    first, second = problems("emodb", tmp_path)
    assert "has 2 channels, must be mono" in first
    assert "--skip-unusable" in second
    rows, report = prepare("emodb", tmp_path, PublicOptions(skip_unusable=True))
    assert list(rows) == ["03a01Fa"]
    assert any(warning.startswith("recordings left out as they cannot be used: 2 (") for warning in report.warnings)


def test_splits_by_named_speakers_or_at_random(tmp_path: Path) -> None:
    record(tmp_path, *(f"{speaker}a01Fa.wav" for speaker in ("03", "08", "09", "10")))
    rows, report = prepare("emodb", tmp_path, PublicOptions(dev=("08",), test=("emodb-09", "10")))
    assert [row["split"] for row in rows.values()] == ["train", "dev", "test", "test"]
    assert {name: group["utterances"] for name, group in report.groups.items()} == {"dev": 1, "test": 2, "train": 1}
    random = []
    for seed in (0, 0, 1, 2, 3):
        rows, _report = prepare("emodb", tmp_path, PublicOptions(shares=(0.5, 0.25, 0.25), seed=seed))
        random.append(tuple(row["split"] for row in rows.values()))
    assert random[0] == random[1]
    assert len(set(random)) > 1
    for options, message in (
        ({"dev": ("17",)}, "--dev 17: no such speaker of EmoDB; there are emodb-03, "),
        ({"dev": ("08",), "test": ("emodb-08",)}, "is in dev and in test"),
    ):
        with pytest.raises(ManifestError, match=message):
            prepare("emodb", tmp_path, PublicOptions(**options))  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="give one or the other"):
        PublicOptions(dev=("08",), shares=(0.5, 0.25, 0.25))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ravdess", "nemo"])
def test_real_recordings_are_read_as_they_are_labelled(tmp_path: Path, shared_data: Path, name: str) -> None:
    root = shared_data / "emotion" / name
    if not root.is_dir():
        pytest.skip(f"no such folder: {root}")
    report = prepare_public(PUBLIC[name], root, tmp_path / "manifest.jsonl")
    assert report.utterances == PUBLIC[name].utterances
    items = {item.path.name: item for item in load_manifest(tmp_path / "manifest.jsonl")}
    with (root / "labels.csv").open(encoding="utf-8", newline="") as file:
        labels = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert items.keys() == labels.keys()
    for file_name, row in labels.items():
        item, emotion = items[file_name], row["emotion"]
        assert (item.speaker, present(item.gender)[0]) == (row["speaker"], row["gender"])
        assert item.emotion == {"disgust": "disgusted", **PUBLIC["nemo"].emotions}.get(emotion, emotion)
        assert item.seconds == pytest.approx(float(row["seconds"]), abs=0.01)


def test_the_command_writes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "corpus", "03a01Fa.wav", "08a01Fa.wav")
    monkeypatch.chdir(tmp_path)
    shown = invoke(train_app, "prepare", "emodb", "--root", "corpus", "--test", "08", "--json")
    assert "emotions: happy 2" in invoke(train_app, "prepare", "emodb", "--root", "corpus", "--test", "08")
    assert json.loads(shown)["found"]["emotions"] == {"happy": 2}
    assert [item.split for item in load_manifest(tmp_path / "emodb.jsonl")] == ["train", "test"]


def test_every_category_has_a_norm_and_keeps_the_order_that_voices_have() -> None:
    assert {category for corpus in PUBLIC.values() for category in corpus.emotions.values()} <= NORMS.keys()
    points = {category: category_emotion(category) for category in NORMS}
    assert points["neutral"] == (3.25, 2.225)
    assert points["angry"] == (1.765, 3.6)  # (2.53, 6.20) of 1..9
    assert all(1 <= value <= 5 for point in points.values() for value in point)
    loud, quiet = ("angry", "fearful", "happy", "surprised"), ("neutral", "sad", "bored", "calm")
    assert min(points[name][1] for name in loud) > max(points[name][1] for name in quiet)
    assert max(points[name][0] for name in ("angry", "fearful", "disgusted", "sad", "bored")) < points["neutral"][0]
    assert category_emotion("neutral", "strong") == category_emotion("neutral", "normal")
    assert voted_emotion({"happy": (1.0, 80.0)}) == category_emotion("happy")
    assert voted_emotion({"happy": (1.0, 100.0)}) == category_emotion("happy")
    assert voted_emotion({"happy": (0.5, 0.0), "neutral": (0.5, 90.0)}) == category_emotion("neutral")
