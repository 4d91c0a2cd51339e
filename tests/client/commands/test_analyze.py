"""`kibun analyze` and `analyze_files` through a real server: speakers, what is resumed, every format, figures."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import audformat
import matplotlib
import numpy as np
import pandas
import pympi
import pytest
import soundfile
from praatio import textgrid
from rich.cells import cell_len

from kibun.client import AsyncConversation, InputError, Traits
from kibun.client.commands.table import shortened
from kibun.client.estimates import TRAITS
from kibun.client.installation import install_command
from kibun.client.recordings import AnalysisProgress, analyze_files
from kibun.client.recordings.analysis import identity
from kibun.client.recordings.rows import COLUMNS, SUMMARY_COLUMNS
from kibun.client.recordings.turns_file import find_turns
from kibun.client.resources import ServiceInfo
from kibun.client.server_process import ServerProcess
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support import ROOT
from tests.support.commands import Kibun
from tests.support.stub_model import WAITS, Barrier

DEMO = ROOT / "client" / "kibun" / "client" / "demo"
STUB = ["--loader", "tests.support.stub_model:load", "--vad", "webrtc"]  # the dialogue's voices are generated


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where results are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def surroundings(cache: Path) -> Iterator[None]:
    """Child processes find the stand-in model; what is kept lies apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("COLUMNS", "80")
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # looking for fonts takes seconds
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture
def kept(cache: Path) -> Path:
    """The folder with what is kept, which is empty."""
    folder = cache / "kibun" / "analyses"
    for path in folder.glob("*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Barrier:
    return Barrier(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def target(surroundings: None, gate: Barrier) -> Iterator[str]:
    with ServerProcess(f"stub?gate={gate}", STUB) as server:
        yield server.target


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """8 s of two speakers, 16 kHz; speech begins at once."""
    samples, rate_hz = soundfile.read(DEMO / "dialogue.flac", dtype="int16", start=6000, frames=8 * 16000)
    assert rate_hz == 16000
    return np.asarray(samples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speech: np.ndarray) -> Path:
    """a, b, c and d, all different, and a file that is no audio."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, name in enumerate("abcd"):
        soundfile.write(folder / f"{name}.wav", speech[: 80000 + 8000 * number] // (number + 1), 16000)
    (folder / "bad.wav").write_text("this is text")
    return folder


@pytest.fixture
def turns_opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many turns were opened, under "turns"."""
    counts: Counter[str] = Counter()
    turn = AsyncConversation.turn

    def counted(self: AsyncConversation, *arguments: Any, **options: Any) -> Any:
        counts["turns"] += 1
        return turn(self, *arguments, **options)

    monkeypatch.setattr(AsyncConversation, "turn", counted)
    return counts


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


# -- what is resumed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_ended_is_resumed(
    kibun: Kibun,
    target: str,
    gate: Barrier,
    kept: Path,
    speech: np.ndarray,
    tmp_path: Path,
    turns_opened: Counter[str],
    how: signal.Signals,
) -> None:
    """What was done is in the output, and is not done again; the whole is what it would have been, byte for byte."""
    files = [tmp_path / f"{name}.wav" for name in "abcd"]
    for number, path in enumerate(files):
        soundfile.write(path, speech[: 80000 + 8000 * number], 16000)
    stuck = speech.copy()
    stuck[0] = int(WAITS * 32768)  # the model waits at the gate
    soundfile.write(files[2], stuck, 16000)
    for path in Path(str(gate)).glob("*"):
        path.unlink()
    out = tmp_path / "out.csv"
    arguments = ["analyze", *map(str, files), "--server", target, "-f", "csv", "-o", str(out), "-j", "2"]
    process = subprocess.Popen([sys.executable, "-m", "kibun.client.main", *arguments], stderr=subprocess.PIPE)
    while len(list(kept.glob("*.json"))) < 3 or not gate.arrived:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert {Path(row["file"]).name for row in read_csv(out.read_text())} == {"a.wav", "b.wav", "d.wav"}
        assert b"stopped: 3 of 4 files are done and written; to go on, run the same command with --resume" in err
    else:
        assert {Path(row["file"]).name for row in read_csv(out.read_text())} == {"a.wav", "b.wav"}, "in their order"
    gate.open()
    assert kibun(*arguments, "--resume") == 0
    assert turns_opened["turns"] == 1, "c alone"
    assert "3 of 4 files had been analysed before" in kibun.err
    resumed = out.read_bytes()
    assert kibun(*arguments) == 0
    assert turns_opened["turns"] == 5
    assert out.read_bytes() == resumed
    assert list(kept.iterdir()) == [], "nothing is kept of a run that was complete and not to be resumed"


def test_what_changed_is_computed_anew_and_nothing_else(
    kibun: Kibun, target: str, kept: Path, folder: Path, speech: np.ndarray, tmp_path: Path, turns_opened: Counter[str]
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes((folder / f"{name}.wav").read_bytes())

    def opened(*options: str | Path) -> int:
        before = turns_opened["turns"]
        assert kibun("analyze", tmp_path, "--server", target, "-f", "jsonl", "--resume", *options) == 0
        return turns_opened["turns"] - before

    assert opened() == 2
    first = kibun.out
    assert opened() == 0
    assert kibun.out == first
    (tmp_path / "b.wav").rename(tmp_path / "e.wav")
    assert opened() == 0, "a name is no content"
    soundfile.write(tmp_path / "e.wav", speech[:100_000], 16000)
    assert opened() == 1
    assert opened("--channel", "1") == 2
    traits = tmp_path / "traits.csv"
    traits.write_text(f"file,{','.join(TRAITS)}\na,1,2,3,4,5\n")
    assert opened("--traits", traits) == 1
    turns = tmp_path / "turns.csv"
    turns.write_text("file,speaker,start,end\na,x,0,3\ne,y,0,3\n")
    assert opened("--turns", turns) == 2
    turns.write_text("file,speaker,start,end\na,x,0,3\ne,y,0,3.5\n")
    assert opened("--turns", turns) == 1
    another = pb.GetServiceInfoResponse.Model(name="m", version="1", is_default=True, fingerprint="another server's")
    assert identity_of(another) != identity_of(pb.GetServiceInfoResponse.Model(name="m", version="1", is_default=True))
    next(kept.iterdir()).write_text("{")
    assert opened() + opened("--channel", "1") + opened("--turns", turns) + opened("--traits", traits) <= 1


def identity_of(model: pb.GetServiceInfoResponse.Model) -> str:
    return identity(ServiceInfo.from_proto(pb.GetServiceInfoResponse(models=[model])), "")


# -- who speaks


def test_each_channel_is_a_speaker_at_the_same_times(
    kibun: Kibun, target: str, speech: np.ndarray, tmp_path: Path, folder: Path
) -> None:
    shift = 16000
    left, right = np.pad(speech, (shift, shift)), np.pad(speech, (2 * shift, 0))
    soundfile.write(tmp_path / "two.flac", np.column_stack([left, right // 2]), 16000)
    options = ["--server", target, "-f", "jsonl"]
    assert kibun("analyze", tmp_path / "two.flac", "--speakers", "channels", *options) == 0
    rows = kibun.lines
    assert [row["start_s"] for row in rows] == sorted(row["start_s"] for row in rows)
    for number in (1, 2):
        assert kibun("analyze", tmp_path / "two.flac", "--channel", number, *options) == 0
        of_channel = [row for row in rows if row["participant"] == f"channel-{number}"]
        alike = ("start_s", "end_s", "valence", "arousal", *TRAITS, "utterance_count", "duration_s")
        assert [[row[key] for key in alike] for row in of_channel] == [
            [row[key] for key in alike] for row in kibun.lines
        ]
    starts = [min(r["start_s"] for r in rows if r["participant"] == f"channel-{number}") for number in (1, 2)]
    assert starts[1] - starts[0] == pytest.approx(1.0, abs=0.1)
    assert kibun("analyze", tmp_path / "two.flac", *options) == 0
    assert "its 2 channels differ" in kibun.err
    assert "--speakers channels takes each for a speaker" in kibun.err
    assert kibun("analyze", folder / "a.wav", "--speakers", "channels", *options) == 1
    assert (kibun.lines[0]["status"], kibun.lines[0]["reason"]) == ("failed", "NO_CHANNEL")
    assert "it has 1 channel: --speakers channels is for recordings with a channel per speaker" in kibun.err


@pytest.fixture(scope="module")
def meetings(shared_data: Path) -> Path:
    return shared_data / "conversation"


def test_turns_of_real_meetings_and_back_through_other_tools(
    kibun: Kibun, target: str, meetings: Path, tmp_path: Path
) -> None:
    """Speakers are those of the RTTMs, also MÉO069; what TextGrid, EAF and RTTM hold is what the rows hold."""
    files = [meetings / "dev01.flac", meetings / "trn01.flac", meetings / "trn03.flac"]
    arguments: list[str | Path] = ["analyze", *files, "--turns", meetings, "--server", target]
    assert kibun(*arguments, "-f", "jsonl") == 0
    rows = kibun.lines
    expected = find_turns(meetings, files)
    for path in files:
        for row in (row for row in rows if row["file"] == str(path)):
            (turn,) = [turn for turn in expected[path] if turn.turn_id == row["turn_id"]]
            assert row["participant"] == turn.participant_id
            assert turn.start_s - 0.001 <= row["start_s"] < row["end_s"] <= turn.end_s + 0.001
            assert row["duration_s"] == pytest.approx(30.0, abs=0.001)
    assert {"MÉO069", "MEE012", "FEO066"} <= {row["participant"] for row in rows}

    assert kibun(*arguments, "-f", "textgrid", "-o", tmp_path / "grids", "--resume") == 0
    assert kibun(*arguments, "-f", "eaf", "-o", tmp_path / "eafs", "--resume") == 0
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == [f"{path.stem}.TextGrid" for path in files]
    for path in files:
        wanted = {
            (f"{row['participant']} {name}", round(row["start_s"], 3), round(row["end_s"], 3), f"{row[name]:.2f}")
            for row in rows
            for name in ("valence", "arousal", *TRAITS)
            if row["file"] == str(path)
        }
        assert from_praatio(tmp_path / "grids" / f"{path.stem}.TextGrid") == wanted
        assert from_pympi(tmp_path / "grids" / f"{path.stem}.TextGrid") == wanted
        assert from_elan(tmp_path / "eafs" / f"{path.stem}.eaf") == wanted

    assert kibun(*arguments, "-f", "rttm", "-o", tmp_path / "all.rttm", "--resume") == 0
    for path, turns in find_turns(tmp_path / "all.rttm", files).items():
        of_file = [row for row in rows if row["file"] == str(path)]
        assert Counter((t.participant_id, round(t.start_s, 3), round(t.end_s, 3)) for t in turns) == Counter(
            (row["participant"], round(row["start_s"], 3), round(row["end_s"], 3)) for row in of_file
        )


Annotations = set[tuple[str, float, float, str]]


def from_praatio(path: Path) -> Annotations:
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="error")
    assert grid.maxTimestamp == pytest.approx(30.0, abs=0.001)
    return {
        (name, round(entry.start, 3), round(entry.end, 3), entry.label)
        for name in grid.tierNames
        for entry in grid.getTier(name).entries
    }


def from_pympi(path: Path) -> Annotations:
    grid = pympi.TextGrid(str(path))
    return {
        (tier.name, round(start, 3), round(end, 3), text)
        for tier in grid.get_tiers()
        for start, end, text in tier.get_intervals()
        if text
    }


def from_elan(path: Path) -> Annotations:
    eaf = pympi.Eaf(str(path))
    names = eaf.get_tier_names()
    assert {eaf.get_parameters_for_tier(name)["PARTICIPANT"] for name in names} == {n.rsplit(" ", 1)[0] for n in names}
    (linked,) = eaf.get_linked_files()
    assert linked["MEDIA_URL"].startswith("file:///")
    assert linked["MEDIA_URL"].endswith(f"{path.stem}.flac")
    return {
        (name, start / 1000, end / 1000, text)
        for name in names
        for start, end, text in eaf.get_annotation_data_for_tier(name)
    }


def test_turns_that_overlap_and_names_with_quotes_fit_into_tiers(
    kibun: Kibun, target: str, folder: Path, tmp_path: Path
) -> None:
    turns = tmp_path / "a.csv"
    turns.write_text('speaker,start,end\n"Zoë ""Z"" <b>",0,3.5\n"Zoë ""Z"" <b>",2,4.5\n')
    for form, name in (("textgrid", "x.TextGrid"), ("eaf", "x.eaf")):
        arguments = [
            "analyze",
            folder / "a.wav",
            "--turns",
            turns,
            "--server",
            target,
            "-f",
            form,
            "-o",
            tmp_path / name,
        ]
        assert kibun(*arguments) == 0, kibun.err
        assert 'Zoë "Z" <b>' not in kibun.err
    grid = textgrid.openTextgrid(str(tmp_path / "x.TextGrid"), includeEmptyIntervals=False, reportingMode="error")
    tier = grid.getTier(next(name for name in grid.tierNames if name.endswith("valence")))
    assert len(tier.entries) >= 2
    assert 'Zoë "Z" <b> arousal' in pympi.Eaf(str(tmp_path / "x.eaf")).get_tier_names()


def test_given_traits_of_speakers(kibun: Kibun, target: str, folder: Path, tmp_path: Path) -> None:
    turns, traits = tmp_path / "a.csv", tmp_path / "traits.csv"
    turns.write_text("speaker,start,end\nann,0,2.5\nben,2.5,5\n")
    traits.write_text(f"speaker,{','.join(TRAITS)}\nben,1,2,3,4,5\n")
    arguments = ["analyze", folder / "a.wav", "--turns", turns, "--server", target, "-f", "jsonl", "--traits", traits]
    assert kibun(*arguments) == 0
    sources = {row["participant"]: row["condition_source"] for row in kibun.lines}
    assert sources["ben"] == "given"
    assert sources["ann"] == "conversation"
    traits.write_text(f"speaker,{','.join(TRAITS)}\nbenn,1,2,3,4,5\n")
    assert kibun(*arguments) == 2
    assert "none of its 1 rows is about a speaker of --turns" in kibun.err


# -- what has a row, and what it is written as


@pytest.fixture(scope="module")
def turns_of_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("turns") / "turns.csv"
    path.write_text("file,speaker,start,end\na,ann,0,2.5\na,ben,2.5,5\nb,ann,0,5\nc.wav,cleo,0.5,5.5\n")
    return path


def test_a_row_per_speaker_or_file_sums_up_those_of_utterances(
    kibun: Kibun, target: str, folder: Path, turns_of_folder: Path
) -> None:
    """Every file has one, also the one without turns and the one that is no audio."""
    arguments: list[str | Path] = ["analyze", folder, "--turns", turns_of_folder, "--server", target, "-f", "jsonl"]
    assert kibun(*arguments) == 1
    utterances = kibun.lines
    statuses = {"a.wav": "ok", "b.wav": "ok", "bad.wav": "failed", "c.wav": "ok", "d.wav": "failed"}
    for by, keys in (("speaker", ("file", "participant")), ("file", ("file",))):
        assert kibun(*arguments, "--by", by) == 1
        rows = kibun.lines
        assert {Path(row["file"]).name: row["status"] for row in rows} == statuses
        assert len(rows) == (6 if by == "speaker" else 5)
        for row in rows:
            assert list(row) == list(SUMMARY_COLUMNS)
            of_it = [u for u in utterances if all(u[key] == row[key] for key in keys) and u["utterance_id"]]
            assert row["utterance_count"] == len(of_it)
            if not of_it:
                assert row["status"] == "failed"
                assert row["reason"] in ("FORMAT_UNKNOWN", "NO_TURNS")
                continue
            assert row["arousal"] == pytest.approx(np.mean([u["arousal"] for u in of_it]), abs=2e-6)
            if len(of_it) > 1:
                assert row["arousal_sd"] == pytest.approx(np.std([u["arousal"] for u in of_it], ddof=1), abs=2e-6)
            assert row["speech_s"] == pytest.approx(sum(u["end_s"] - u["start_s"] for u in of_it), abs=2e-6)
            several = len({u["participant"] for u in of_it}) > 1
            assert several == (by == "file" and Path(row["file"]).name == "a.wav")
            assert row["openness"] == (None if several else of_it[-1]["openness"])
            assert row["participant"] == (None if several else of_it[0]["participant"])
            assert row["participant_count"] == 1 + several


def test_formats_for_programs_hold_the_same(
    kibun: Kibun, target: str, folder: Path, turns_of_folder: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = ["analyze", folder, "--turns", turns_of_folder, "--server", target, "--resume"]
    assert kibun(*arguments, "-f", "jsonl") == 1
    rows = kibun.lines
    assert kibun(*arguments, "-f", "tsv") == 1
    read = list(csv.DictReader(kibun.out.splitlines(), delimiter="\t"))
    assert read == [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]

    for by, columns in (("utterance", COLUMNS), ("file", SUMMARY_COLUMNS)):
        path = tmp_path / f"{by}.parquet"
        assert kibun(*arguments, "-f", "parquet", "-o", path, "--by", by) == 1
        frame = pandas.read_parquet(path)
        assert tuple(frame.columns) == columns
        assert frame["valence"].dtype == "float64"
        assert frame["utterance_count"].dtype == "Int64"
    frame = pandas.read_parquet(tmp_path / "utterance.parquet")
    assert [{k: None if pandas.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")] == rows

    assert kibun(*arguments, "-f", "labelstudio", "-o", tmp_path / "tasks.json") == 1
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [(Path(task["data"]["audio"]).name, task["data"]["status"]) for task in tasks] == [
        *(("a.wav", "ok"), ("b.wav", "ok"), ("bad.wav", "failed"), ("c.wav", "ok"), ("d.wav", "failed")),
    ]
    for task in tasks:
        of_file = [row for row in rows if row["file"] == task["data"]["audio"] and row["utterance_id"]]
        assert ("predictions" in task) == bool(of_file)
        regions = task["predictions"][0]["result"] if of_file else []
        speakers = [r["value"] for r in regions if r["type"] == "labels"]
        assert [(v["start"], v["end"], v["labels"]) for v in speakers] == [
            (row["start_s"], row["end_s"], [row["participant"]]) for row in of_file
        ]
        arousal = [(r["value"]["start"], r["value"]["number"]) for r in regions if r["from_name"] == "arousal"]
        assert arousal == [(row["start_s"], row["arousal"]) for row in of_file]
        assert {len([r for r in regions if r["id"] == one["id"]]) for one in regions} <= {8}


def test_files_of_one_name_do_not_overwrite_each_other(
    kibun: Kibun, target: str, folder: Path, tmp_path: Path, speech: np.ndarray
) -> None:
    for name in ("s1/x.wav", "s2/x.wav", "s2/x.flac"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "in" / name, speech, 16000)
    out = tmp_path / "out"
    assert kibun("analyze", tmp_path / "in", "--server", target, "-f", "textgrid", "-o", out) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == ["s1/x.TextGrid", "s2/x.flac.TextGrid", "s2/x.wav.TextGrid"]


def test_what_cannot_be_is_told_before_anything_is_sent(kibun: Kibun, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    a, somewhere = folder / "a.wav", ["--server", "127.0.0.1:1"]
    turns = tmp_path / "x.rttm"
    turns.write_text("SPEAKER a 1 0 soon <NA> <NA> ann <NA> <NA>\n")
    wrong: list[tuple[list[str | Path], str]] = [
        ([a, "--speakers", "two"], "is not one of 'one'"),
        ([a, "--by", "turn"], "is not one of 'utterance'"),
        (
            [a, "--speakers", "channels", "--turns", turns],
            "--speakers channels takes each channel for a speaker: leave out --turns",
        ),
        ([a, "--speakers", "channels", "--channel", "1"], "leave out --channel"),
        ([a, "--turns", turns], f"{turns}, line 1: start '0' or duration 'soon' is not a number"),
        ([a, "--turns", tmp_path / "none.rttm"], "no such file"),
        ([a, "--turns", tmp_path], "no file in it has the name of a recording"),
        ([a, "-f", "eaf"], "-f eaf writes a file per recording: name a folder for them with -o FOLDER"),
        (
            [a, "-f", "textgrid", "-o", tmp_path / "file"],
            "is a file: name a folder, or a file with the suffix .TextGrid",
        ),
        ([folder, "-f", "eaf", "-o", tmp_path / "x.eaf"], "is one file, and 5 recordings have one each: name a folder"),
        ([a, "-f", "parquet"], "-f parquet is not for a terminal: name a file with -o FILE"),
        ([a, "-f", "parquet", "-o", tmp_path / "none" / "x"], "name a file in a folder that exists"),
        (
            [a, "-f", "rttm", "--by", "file"],
            "jsonl, csv, tsv or parquet, not for -f rttm",
        ),
        ([a, "--plot", "x.gif"], "--plot x.gif: end its name in .png, .svg, .pdf"),
        ([a, "--plot", tmp_path / "none" / "x.png"], "name a file in a folder that exists"),
    ]
    for arguments, message in wrong:
        assert kibun("analyze", *arguments, *somewhere) == 2, (arguments, kibun.err)
        assert message in " ".join(kibun.err.split()), (arguments, kibun.err)
        assert kibun.out == ""


@pytest.mark.parametrize(
    ("options", "package"),
    [
        (["-f", "parquet", "-o", "x"], "pyarrow"),
        (["-f", "eaf", "-o", "x"], "pympi"),
        (["--plot", "x.png"], "matplotlib"),
    ],
)
def test_a_missing_package_is_told_with_what_installs_it(
    kibun: Kibun, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], package: str
) -> None:
    monkeypatch.setattr("kibun.client.recordings.formats.is_there", lambda name: name != package)
    assert kibun("analyze", folder / "a.wav", "--server", "127.0.0.1:1", *options) == 2
    assert f"needs {package}: {install_command('analyze')}" in kibun.err


# -- for people


def test_the_table_fits_80_columns_and_names_keep_their_ends(
    kibun: Kibun, target: str, speech: np.ndarray, tmp_path: Path
) -> None:
    deep = tmp_path / "a corpus with a long name" / "session 01 of the first recording day" / "speaker 0001"
    deep.mkdir(parents=True)
    soundfile.write(deep / "utterances.wav", speech, 16000)
    soundfile.write(tmp_path / "日本語の長い長い長い長い長い長い名前の音声ファイル.wav", speech, 16000)
    turns = tmp_path / "turns.csv"
    lines = [f"{path.stem},a participant with a name,0,4\n{path.stem},b,4,8\n" for path in tmp_path.rglob("*.wav")]
    turns.write_text("file,speaker,start,end\n" + "".join(lines))
    for options in ([], ["--by", "speaker"], ["--by", "file"], ["--turns", turns], ["-o", tmp_path / "table.txt"]):
        assert kibun("analyze", tmp_path, "--server", target, *options) == 0, kibun.err
        text = (tmp_path / "table.txt").read_text() if "-o" in options else kibun.out
        assert [line for line in text.splitlines() if cell_len(line) > 80] == []
        summary = text[text.rindex(" file ") :]
        assert "utterances.wav" in summary or "ances.wav" in summary
        assert "…" in summary
        assert "音声ファイル.wav" in summary or "ファイル.wav" in summary
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abc…fghijk"
    assert cell_len(shortened("日本語" * 9, 10)) <= 10


def test_the_figure_of_each_recording(
    kibun: Kibun, demo_server: ServerProcess, tmp_path: Path, speech: np.ndarray
) -> None:
    arguments: list[str | Path] = ["analyze", DEMO / "dialogue.flac", "--turns", DEMO / "dialogue.json"]
    arguments += ["--server", demo_server.target, "--resume", "-f", "jsonl"]
    assert kibun(*arguments, "--plot", tmp_path / "x.svg") == 0
    rows = kibun.lines
    texts = "".join(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
    for text in (
        "valence",
        "arousal",
        *TRAITS,
        "mira",
        "jonas",
        "dialogue.flac",
        "tells you nothing about real people",
    ):
        assert text in texts
    assert "with their expected error" in texts
    first = (tmp_path / "x.svg").read_bytes()
    assert kibun(*arguments, "--plot", tmp_path / "x.svg") == 0
    assert (tmp_path / "x.svg").read_bytes() == first
    figure = drawn(rows)
    bars = [line for line in figure.axes[0].lines if line.get_linewidth() == 4]
    wanted = sorted((row["start_s"], row["end_s"], row["valence"]) for row in rows)
    assert np.allclose(sorted((*line.get_xdata(), line.get_ydata()[0]) for line in bars), wanted, atol=1e-5)
    (band, _) = figure.axes[2].collections
    known = [row for row in rows if row["participant"] == rows[0]["participant"]]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(max(row["openness"] + row["openness_error"] for row in known), abs=1e-5)
    soundfile.write(tmp_path / "y.wav", speech, 16000)
    soundfile.write(tmp_path / "z.wav", speech // 2, 16000)
    two: list[str | Path] = ["analyze", tmp_path / "y.wav", tmp_path / "z.wav", "--server", demo_server.target]
    assert kibun(*two, "--plot", tmp_path / "p.png") == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"p-y.png", "p-z.png"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.glob("*.png"))


def drawn(rows: list[dict[str, Any]]) -> Any:
    from kibun.client.recordings.plot import draw
    from kibun.client.recordings.rows import FileResult, FileStatus

    return draw(FileResult(Path("dialogue.flac"), FileStatus("ok", duration_s=rows[0]["duration_s"]), rows))


# -- from Python


def test_a_frame_with_the_index_of_audformat(target: str, folder: Path, speech: np.ndarray, kibun: Kibun) -> None:
    seen: list[AnalysisProgress] = []
    frame = analyze_files(folder, server=target, on_progress=seen.append)
    assert audformat.is_segmented_index(frame.index)
    audformat.assert_index(frame.index)
    table = audformat.Table(frame.index)
    table["arousal"] = audformat.Column()
    table["arousal"].set(frame["arousal"].astype(float))
    assert [(progress.done, progress.total, progress.file.name, progress.status) for progress in seen] == [
        *((1, 5, "a.wav", "ok"), (2, 5, "b.wav", "ok"), (3, 5, "bad.wav", "failed")),
        *((4, 5, "c.wav", "ok"), (5, 5, "d.wav", "ok")),
    ]
    assert kibun("analyze", folder, "--server", target, "-f", "jsonl") == 1
    assert len(frame) == len(kibun.lines)
    for (file, start, end), row in zip(frame.index, kibun.lines, strict=True):
        assert file == row["file"]
        if row["status"] == "failed":
            assert (start, pandas.isna(end)) == (pandas.Timedelta(0), True)
        else:
            assert start.total_seconds() == pytest.approx(row["start_s"], abs=1e-9)
            assert end.total_seconds() == pytest.approx(row["end_s"], abs=1e-9)
    assert frame["arousal"].dropna().tolist() == pytest.approx(
        [r["arousal"] for r in kibun.lines if r["arousal"]], abs=1e-6
    )
    assert frame.loc[str(folder / "bad.wav"), "reason"].tolist() == ["FORMAT_UNKNOWN"]


async def test_from_a_notebook_with_turns_traits_and_resume(
    target: str, folder: Path, kept: Path, turns_of_folder: Path, turns_opened: Counter[str]
) -> None:
    """That is, where an event loop runs."""
    options: Any = {
        "server": target,
        "turns": turns_of_folder,
        "traits": {"ben": Traits(1, 2, 3, 4, 5)},
        "resume": True,
    }
    first = analyze_files([folder / "a.wav", str(folder / "b.wav")], **options)
    assert turns_opened["turns"] == 3
    assert first.groupby("participant")["condition_source"].first().to_dict() == {"ann": "conversation", "ben": "given"}
    again = analyze_files([folder / "a.wav", str(folder / "b.wav")], **options)
    assert turns_opened["turns"] == 3
    pandas.testing.assert_frame_equal(first, again)


def test_wrong_arguments_from_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, r'needs model=, to load, or the server="host:port"'),
        ({"server": "127.0.0.1:1", "speakers": "two"}, "speakers must be 'one' or 'channels', not 'two'"),
        ({"server": "127.0.0.1:1", "speakers": "channels", "channel": 1}, "leave out channel"),
        ({"server": "127.0.0.1:1", "speakers": "channels", "turns": "x"}, "leave out speakers"),
        ({"server": "127.0.0.1:1", "turns": "x.txt"}, "turns are read from"),
        ({"server": "127.0.0.1:1", "jobs": 0}, "jobs must be 1 or more, not 0"),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            analyze_files(folder / "a.wav", **options)
    with pytest.raises(InputError, match="no such file or folder"):
        analyze_files(folder / "none", server="127.0.0.1:1")
    monkeypatch.setattr("kibun.client.recordings.formats.is_there", lambda name: name != "pandas")
    with pytest.raises(InputError, match=r"analyze_files needs pandas: .*pip install .*\[analyze\]"):
        analyze_files(folder / "a.wav", server="127.0.0.1:1")
