"""`kibun train prepare iemocap` on a fake copy with every line format, and on the published annotations."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from kibun.models.types import TRAITS
from kibun.training.commands import train_app
from kibun.training.corpora.iemocap import prepare_iemocap
from kibun.training.corpora.iemocap_files import parse_id, spoken_words
from kibun.training.corpora.manifest import load_manifest, read_manifest
from kibun.training.corpora.profiles import read_profiles
from kibun.training.corpora.report import CorpusReport
from kibun.training.corpora.splits import read_splits, split_names
from kibun.training.errors import CorpusError
from tests.support import ROOT
from tests.support.commands import invoke
from tests.support.fake_iemocap import ALL_SESSIONS, FakeIemocap, make
from tests.support.programs import of_the_documentation

PUBLISHED = ROOT.parent / "shared" / "data" / "pa-iemocap"
needs_annotations = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"no annotations of PA-IEMOCAP in {PUBLISHED}")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> FakeIemocap:
    return make(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def fake(pristine: FakeIemocap, tmp_path: Path) -> FakeIemocap:
    """A copy to be broken."""
    shutil.copytree(pristine.root.parent, tmp_path, dirs_exist_ok=True)
    root, tipi, ocean = (tmp_path / path.name for path in (pristine.root, pristine.tipi, pristine.ocean))
    return FakeIemocap(root, tipi, ocean, pristine.utterances, pristine.dialogues)


def prepare(fake: FakeIemocap, out: Path, sessions: tuple[int, ...] | None = None) -> CorpusReport:
    return prepare_iemocap(fake.root, fake.tipi, fake.ocean, out, sessions)


def problems(fake: FakeIemocap) -> tuple[str, ...]:
    out = fake.root.parent / "manifest.jsonl"
    with pytest.raises(CorpusError) as caught:
        prepare(fake, out)
    assert not out.exists()
    return caught.value.problems


def test_the_program_of_the_page_on_corpora_runs(pristine: FakeIemocap, tmp_path: Path) -> None:
    (program,) = of_the_documentation("docs/corpora.md")
    prepare(pristine, tmp_path / "iemocap.jsonl")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "dev and test" in done.stdout


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_bytes().decode()
    after = change(before)
    assert before != after
    path.write_bytes(after.encode())


def file(fake: FakeIemocap, dialogue: str, kind: str = "EmoEvaluation") -> Path:
    return fake.root / f"Session{int(dialogue[3:5])}" / "dialog" / kind / f"{dialogue}.txt"


def test_ids_name_dialogue_session_and_speaker() -> None:
    one = parse_id("Ses05M_script01_1b_F012")
    assert one is not None
    assert (one.dialogue, one.session, one.speaker) == ("Ses05M_script01_1b", 5, "Ses05_F")
    extra = parse_id("Ses03F_impro02_MXX1")
    assert extra is not None
    assert (extra.dialogue, extra.speaker) == ("Ses03F_impro02", "Ses03_M")
    assert parse_id("Ses03F_impro02") is None
    assert parse_id("._Ses03F_impro02_M001") is None
    assert spoken_words("[LAUGHTER]  Oh, [BREATHING] well. ++GARBAGE++ ") == "Oh, well."


def test_every_utterance_is_found_and_nothing_else(fake: FakeIemocap, tmp_path: Path) -> None:
    report = prepare(fake, tmp_path / "manifest.jsonl")
    items = load_manifest(
        tmp_path / "manifest.jsonl", require=("path", "text", "valence", "arousal", "traits", "gender", "seconds")
    )
    assert report.utterances == len(items) == fake.utterances
    assert (report.dialogues, report.conversations, report.speakers) == (6, 12, 4)
    assert report.groups["1"] == {"utterances": 24, "dialogues": 4, "conversations": 8}
    assert {item.dialogue for item in items} == set(fake.dialogues)
    assert {item.speaker for item in items} == {"Ses01_F", "Ses01_M", "Ses02_F", "Ses02_M"}
    for item in items:
        assert item.gender == {"F": "female", "M": "male"}[item.id[-4]]
        assert item.speaker == item.id[:5] + "_" + item.id[-4]
        assert item.seconds == pytest.approx(soundfile.info(item.path).duration, abs=1e-4)
    assert report.found == {
        "without_transcript": 0,
        "empty_transcript": 6,
        "sounds_only": 6,
        "with_markup": 18,
        "transcribed_only": 6,
        "transcript_lines_without_id": 6,
    }
    assert len(report.ignored) == 12
    assert all(Path(path).name.startswith("._") for path in report.ignored)
    assert report.warnings == (
        "utterances: 36, the whole corpus has 10,039",
        "dialogues: 6, the whole corpus has 151",
        "profiles: 12, the whole corpus has 302",
    )
    assert json.loads((tmp_path / "manifest.report.json").read_text(encoding="utf-8"))["utterances"] == 36


def test_labels_are_those_of_the_files(fake: FakeIemocap, tmp_path: Path) -> None:
    prepare(fake, tmp_path / "manifest.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = {}
    for dialogue in fake.dialogues:
        for line in file(fake, dialogue).read_text().split("\n"):
            if line.startswith("["):
                times, name, emotion, numbers = line.strip().split("\t")
                evaluated[name] = (times, emotion, [float(number) for number in numbers[1:-1].split(",")])
    with fake.ocean.open(encoding="utf-8", newline="") as opened:
        ocean = {
            (row["dialogue_id"].replace("script01", "script1"), row["gender"]): row for row in csv.DictReader(opened)
        }
    assert {row["id"] for row in rows} == evaluated.keys()
    for row in rows:
        times, emotion, (valence, activation, dominance) = evaluated[row["id"]]
        assert times == f"[{row['start_s']:.4f} - {row['end_s']:.4f}]"
        assert (row["emotion"], row["valence"], row["arousal"], row["dominance"]) == (
            emotion,
            valence,
            activation,
            dominance,
        )
        misspelt = row["dialogue"].replace("script01", "script1").replace("Ses02M_script02", "Ses02M_script2")
        published = ocean[(misspelt, row["gender"][0])]
        columns = dict(zip(TRAITS, ("OP", "CO", "EX", "AG", "NE"), strict=True))
        assert row["traits"] == {trait: float(published[column]) for trait, column in columns.items()}
    assert max(row["valence"] for row in rows) == 5.5  # beyond the scale, and left so
    for dialogue in fake.dialogues:
        starts = [row["start_s"] for row in rows if row["dialogue"] == dialogue]
        assert starts == sorted(starts)
    texts = {row["id"]: row["text"] for row in rows}
    assert texts["Ses01F_impro01_F000"] == texts["Ses01F_impro01_M000"] == ""
    assert "[" not in "".join(texts.values())


def test_paths_are_relative_only_below_the_manifest(fake: FakeIemocap, tmp_path: Path) -> None:
    for out, absolute in ((tmp_path / "a.jsonl", False), (tmp_path / "made" / "for" / "it" / "b.jsonl", True)):
        prepare(fake, out)
        stored = json.loads(out.read_text(encoding="utf-8").split("\n")[0])["path"]
        assert Path(stored).is_absolute() == absolute
        assert all(item.path.is_file() for item in load_manifest(out))


def test_a_wav_may_have_any_rate(fake: FakeIemocap, tmp_path: Path) -> None:
    wav = next(fake.root.glob("Session1/sentences/wav/*/Ses*.wav"))
    samples, _rate = soundfile.read(wav)
    soundfile.write(wav, np.repeat(samples, 3), 48_000)
    assert prepare(fake, tmp_path / "manifest.jsonl").utterances == fake.utterances


IMPRO = "Ses01F_impro01"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("impro01_M001", "impro02_M001"), ":27: field ID is 'Ses01F_impro02_M001', must be"),
        (lambda text: text.replace("[6.2901 -", "[9.2901 -"), ":3: time range [9.2901 - "),
        (lambda text: text.replace("[6.2901 -", "[six -"), ":3: time range [six - "),
        (lambda text: text.replace("5.5000,", "6.5000,", 1), "must be valence, activation, dominance as three"),
        (lambda text: text.replace(", 0.5000]", "]", 1), "must be valence, activation, dominance as three numbers"),
        (lambda text: text.replace("[6.2901 - ", "6.2901 - "), ":3: malformed line '6.2901 - "),
        (lambda text: text.replace("_M002\t", "_M001\t"), "Ses01F_impro01_M001 was evaluated before, in "),
        (lambda text: text.split("\n")[0], "has no utterance"),
        (lambda text: "", "is empty"),
        (lambda text: "\0" + text, "is no text file"),
    ],
)  # fmt: skip
def test_a_broken_evaluation_is_named(fake: FakeIemocap, change: Callable[[str], str], expected: str) -> None:
    edit(file(fake, IMPRO), change)
    found = problems(fake)
    assert len(found) == 1
    assert found[0].startswith(str(file(fake, IMPRO)))
    assert expected in found[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("_F001 [", "_F001 ", 1), "malformed line 'Ses01F_impro01_F001 "),
        (lambda text: text + "Ses01F_impro01_F001 [1-2]: Else.\n", "is transcribed twice, and differently"),
        (lambda text: "M: Okay.\n", "transcribes no utterance"),
    ],
)  # fmt: skip
def test_a_broken_transcription_is_named(fake: FakeIemocap, change: Callable[[str], str], expected: str) -> None:
    path = file(fake, IMPRO, "transcriptions")
    edit(path, change)
    found = problems(fake)
    assert len(found) == 1
    assert found[0].startswith(str(path))
    assert expected in found[0]


def test_all_problems_are_listed_at_once(fake: FakeIemocap) -> None:
    wavs = fake.root / "Session1" / "sentences" / "wav"
    (wavs / IMPRO / f"{IMPRO}_F001.wav").unlink()
    (wavs / IMPRO / f"{IMPRO}_F002.wav").write_bytes(b"not audio at all")
    soundfile.write(wavs / IMPRO / f"{IMPRO}_M001.wav", np.zeros((4000, 2)), 16_000)
    soundfile.write(wavs / IMPRO / f"{IMPRO}_M002.wav", np.zeros(0), 16_000)
    file(fake, "Ses01F_script01_1").unlink()
    file(fake, "Ses01M_impro01", "transcriptions").unlink()
    cut = wavs / "Ses01M_impro01" / "Ses01M_impro01_F002.wav"
    cut.write_bytes(cut.read_bytes()[:4000])
    shutil.rmtree(wavs / "Ses01M_script01_1b")
    shutil.rmtree(fake.root / "Session2" / "dialog" / "transcriptions")
    found = problems(fake)
    for path, said in (
        (wavs / IMPRO / f"{IMPRO}_F001.wav", "no such file"),
        (wavs / IMPRO / f"{IMPRO}_F002.wav", "cannot be read as audio"),
        (wavs / IMPRO / f"{IMPRO}_M001.wav", "has 2 channels"),
        (wavs / IMPRO / f"{IMPRO}_M002.wav", "has no samples"),
        (cut, "is cut off: 4000 of"),
        (file(fake, "Ses01F_script01_1"), "no such file, but the dialogue has traits"),
        (file(fake, "Ses01M_impro01", "transcriptions"), "no such file"),
        (wavs / "Ses01M_script01_1b", "no such folder"),
        (fake.root / "Session2" / "dialog" / "transcriptions", "no such folder"),
    ):
        assert sum(problem.startswith(f"{path}: {said}") for problem in found) == 1, (path, said, found)
    assert len(found) == 9


def test_oddities_are_warnings(fake: FakeIemocap, tmp_path: Path) -> None:
    edit(file(fake, IMPRO), lambda text: text.replace("A-E3:", "Rater E3:", 1))
    texts = file(fake, IMPRO, "transcriptions")
    lines = texts.read_text().split("\n")
    texts.write_text("\n".join(line for line in lines if "_M002 " not in line) + "\nJos\xe9: Hm.\n", encoding="latin-1")
    wavs = fake.root / "Session1" / "sentences" / "wav" / IMPRO
    shutil.copy(wavs / f"{IMPRO}_F001.wav", wavs / f"{IMPRO}_F009.wav")
    soundfile.write(wavs / f"{IMPRO}_M001.wav", np.zeros(32_000), 16_000)
    (wavs / "notes.doc").write_text("x")
    report = prepare(fake, tmp_path / "manifest.jsonl")
    said = "\n".join(report.warnings)
    assert f"lines of unknown kind in EmoEvaluation: 1 ({file(fake, IMPRO)}:6)" in said
    assert "utterances without a transcript: 1" in said
    assert "not UTF-8 (byte 0xe9), read as Latin-1" in said
    assert f"wavs that were never evaluated: 1 ({wavs / f'{IMPRO}_F009.wav'})" in said
    assert f"wavs more than 0.1 s off the times of their evaluation: 1 ({IMPRO}_M001)" in said
    assert str(wavs / "notes.doc") in report.ignored
    item = next(item for item in load_manifest(tmp_path / "manifest.jsonl") if item.id == f"{IMPRO}_M002")
    assert item.text is None


def test_traits_are_checked_against_the_raters(fake: FakeIemocap) -> None:
    lines = fake.ocean.read_text().split("\n")
    dialogue, gender, extraversion, *rest = lines[3].split(",")
    lines[3] = ",".join([dialogue, gender, f"{float(extraversion) + 0.001:.3f}", *rest])
    fake.ocean.write_text("\n".join(lines[:-2]))  # and the last profile is gone: the man of Ses02M_script02_2
    found = problems(fake)
    assert any(f"{fake.ocean}:4: Ses01F_script01_1 f: field 'EX' is" in problem for problem in found)
    assert any(problem.startswith(f"{fake.tipi}: Ses02M_script02_2 m has no row in") for problem in found)
    assert any("Ses02M_script02_2.txt: the dialogue has no traits of its male speaker" in problem for problem in found)
    assert len(found) == 3


def test_missing_sessions_are_errors(fake: FakeIemocap, tmp_path: Path) -> None:
    shutil.rmtree(fake.root / "Session2")
    assert problems(fake) == (
        f"{fake.root / 'Session2'}: no such folder; name the sessions that there are, each with --session",
    )
    assert prepare(fake, tmp_path / "manifest.jsonl", sessions=(1,)).utterances == 24


def command(fake: FakeIemocap, out: Path) -> list[str]:
    where = ("--iemocap", fake.root, "--tipi", fake.tipi, "--ocean", fake.ocean, "--out", out)
    return ["prepare", "iemocap", *map(str, where)]


def test_the_command(fake: FakeIemocap, tmp_path: Path) -> None:
    result = CliRunner().invoke(train_app, command(fake, tmp_path / "manifest.jsonl"))
    assert result.exit_code == 0, result.output
    assert "warning: utterances: 36, the whole corpus has 10,039" in result.stderr
    assert "12 files ignored" in result.stdout
    assert json.loads(invoke(train_app, *command(fake, tmp_path / "manifest.jsonl"), "--json"))["conversations"] == 12

    file(fake, IMPRO).unlink()
    result = CliRunner().invoke(train_app, [*command(fake, tmp_path / "manifest.jsonl"), "--json"])
    assert result.exit_code == 2
    assert str(file(fake, IMPRO)) in json.loads(result.stdout)["problems"][0]
    assert result.stderr.startswith(
        f"error: {fake.root}: cannot be made into a manifest: 1 problem; nothing was written"
    )
    fake.tipi.unlink()
    error = invoke(train_app, *command(fake, tmp_path / "manifest.jsonl"), code=2)
    assert "tipi_labels.csv: cannot be read" in error


def test_an_old_manifest_survives_a_failure(fake: FakeIemocap, tmp_path: Path) -> None:
    prepare(fake, tmp_path / "manifest.jsonl")
    before = (tmp_path / "manifest.jsonl").read_bytes()
    file(fake, IMPRO).unlink()
    with pytest.raises(CorpusError):
        prepare(fake, tmp_path / "manifest.jsonl")
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


def test_every_split_of_the_paper_on_all_sessions(tmp_path: Path) -> None:
    fake = make(tmp_path, dialogues=ALL_SESSIONS, utterances_per_speaker=1, seconds=(0.1, 0.2))
    report = prepare(fake, tmp_path / "manifest.jsonl")
    assert report.utterances == 40
    for name, left_out, shared in (
        ("paper", 8, ("Ses01_F", "Ses01_M")),
        ("paper_2to5", 0, ("Ses01_F", "Ses01_M")),
        ("loso_5", 0, ()),
    ):
        read = read_manifest(tmp_path / "manifest.jsonl", splits=name)
        assert (read.left_out, read.shared_speakers) == (left_out, shared)
        assert {item.split for item in read.items} == {"train", "dev", "test"}
    assert {
        item.dialogue[:6]
        for item in read_manifest(tmp_path / "manifest.jsonl", splits="paper").items
        if item.split == "dev"
    } == {"Ses01F"}


def test_the_fake_is_the_same_for_the_same_seed(pristine: FakeIemocap, tmp_path: Path) -> None:
    for path in sorted(make(tmp_path).root.parent.rglob("*.*")):
        if path.is_file():
            assert path.read_bytes() == (pristine.root.parent / path.relative_to(tmp_path)).read_bytes()
    make(tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "ocean.csv").read_bytes() != pristine.ocean.read_bytes()


# ---- the published annotations -------------------------------------------------------------------------------------


@needs_annotations
def test_published_traits_are_the_means_of_their_raters() -> None:
    found: list[str] = []
    profiles = read_profiles(PUBLISHED / "tipi_labels.csv", PUBLISHED / "ocean.csv", found)
    assert found == []
    assert len(profiles) == 302
    assert len({dialogue for dialogue, _gender in profiles}) == 151
    with (PUBLISHED / "ocean.csv").open(newline="") as opened:
        written = {row["dialogue_id"] for row in csv.DictReader(opened)}
    assert len(written - {dialogue for dialogue, _gender in profiles}) == 29  # misspelt, and corrected


@needs_annotations
def test_split_files_are_the_paper_s_and_cover_these_dialogues() -> None:
    profiles = read_profiles(PUBLISHED / "tipi_labels.csv", PUBLISHED / "ocean.csv", [])
    dialogues = {dialogue for dialogue, _gender in profiles}
    session = {dialogue: int(dialogue[3:5]) for dialogue in dialogues}
    assert split_names() == ["loso_1", "loso_2", "loso_3", "loso_4", "loso_5", "paper", "paper_2to5"]
    for name, last in (("paper", 4), ("paper_2to5", 5)):
        halves = {"F": "dev", "M": "test"}
        expected = {
            each: halves[each[5]] if session[each] == 1 else "train" for each in dialogues if session[each] <= last
        }
        assert read_splits(name) == expected
        assert (
            sum(split == "dev" for split in expected.values())
            == sum(split == "test" for split in expected.values())
            == 14
        )
    for fold in range(1, 6):
        kind = {fold: "test", fold % 5 + 1: "dev"}
        assert read_splits(f"loso_{fold}") == {each: kind.get(session[each], "train") for each in dialogues}
