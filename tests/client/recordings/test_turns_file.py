"""Who speaks when: every kind of file, one for all recordings or one for each, and what is wrong with it."""

from pathlib import Path

import pytest
from praatio import textgrid

from kibun.client.errors import InputError
from kibun.client.recordings.turns_file import TurnSpan, find_turns, load_turns

RTTM = "SPEAKER x 1 0.5 1.0 <NA> <NA> ann <NA> <NA>\nSPEAKER x 1 1.25 2.0 <NA> <NA> ben <NA> <NA>\n"
JSON = """[{"participant_id": "ann", "start_s": 0.5, "end_s": 1.5},
 {"participant_id": "ben", "start_s": 1.25, "end_s": 3.25}]"""
X = [TurnSpan("turn-1", "ann", 0.5, 1.5), TurnSpan("turn-2", "ben", 1.25, 3.25)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.rttm", RTTM),
        ("x.json", JSON),
        ("x.csv", "participant_id,start_s,end_s\nann,0.5,1.5\nben,1.25,3.25\n"),
        ("x.csv", "\ufeffSpeaker;Start;Duration\nann;0.5;1\n\nben;1.25;2\n"),
        ("x.tsv", "start\tend\tparticipant\tother\n0.5\t1.5\tann\t\n1.25\t3.25\tben\tz\n"),
    ],
)
def test_every_kind_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = write(tmp_path / name, text)
    assert load_turns(path, 60.0) == X
    assert find_turns(path, [Path("anything.wav")]) == {Path("anything.wav"): X}
    assert load_turns(path, 2.0)[1].end_s == 2.0, "no longer than the audio"


@pytest.mark.parametrize("form", ["short_textgrid", "long_textgrid"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_textgrid_as_another_program_writes_it(tmp_path: Path, form: str, encoding: str) -> None:
    grid = textgrid.Textgrid()
    said = 'he said "no" = 3 [1]: 4.5'
    grid.addTier(textgrid.IntervalTier("Zoë B", [(0.5, 1.5, said), (2.0, 2.5, "1.0")], 0, 5))
    grid.addTier(textgrid.PointTier("clicks", [(0.7, "x")], 0, 5))
    grid.addTier(textgrid.IntervalTier("ben", [(1.25, 3.25, "yes")], 0, 5))
    path = tmp_path / "x.TextGrid"
    grid.save(str(path), format=form, includeBlankSpaces=True)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    turns = find_turns(path, [Path("x.wav")])[Path("x.wav")]
    assert [(turn.participant_id, turn.start_s, turn.end_s, turn.text) for turn in turns] == [
        ("Zoë B", 0.5, 1.5, said),
        ("ben", 1.25, 3.25, "yes"),
        ("Zoë B", 2.0, 2.5, "1.0"),
    ]


def test_one_file_for_several_recordings(tmp_path: Path) -> None:
    path = write(tmp_path / "all.rttm", RTTM + RTTM.replace(" x ", " y ").replace("ann", "cleo"))
    files = [Path("a/x.wav"), Path("b/y.flac"), Path("z.wav")]
    found = find_turns(path, files)
    assert list(found) == files[:2], "z is in none of its lines"
    assert [turn.participant_id for turn in found[files[1]]] == ["cleo", "ben"]
    table = write(
        tmp_path / "all.csv", "file,speaker,start,end\na/x.wav,ann,0.5,1.5\ny.flac,ben,1,2\nx,ben,1.25,3.25\n"
    )
    assert find_turns(table, files)[files[0]] == X


def test_a_folder_with_a_file_for_each(tmp_path: Path) -> None:
    turns = tmp_path / "turns"
    write(turns / "one" / "x.rttm", RTTM)
    write(turns / "two" / "x.RTTM", RTTM.replace("ann", "cleo"))
    write(turns / "y.json", JSON)
    write(turns / "notes.txt", "x")
    files = [tmp_path / "audio" / "one" / "x.wav", tmp_path / "audio" / "two" / "x.wav", Path("y.wav"), Path("z.wav")]
    found = find_turns(turns, files)
    assert list(found) == files[:3]
    assert [turn.participant_id for turn in found[files[1]]] == ["cleo", "ben"]
    with pytest.raises(InputError, match=r"both .*x.rttm and .*x.RTTM have the name of x.wav"):
        find_turns(turns, [Path("x.wav")])
    with pytest.raises(InputError, match=r"no file in it has the name of a recording: for q.wav it should be q with"):
        find_turns(turns, [Path("q.wav")])


def test_turns_that_do_not_say_of_which_recording(tmp_path: Path) -> None:
    two = [Path("x.wav"), Path("y.wav")]
    with pytest.raises(InputError, match="does not say which of the 2 recordings it is about"):
        find_turns(write(tmp_path / "t.json", JSON), two)
    with pytest.raises(InputError, match=r"is about q, not about x: names of recordings have to be those of the files"):
        find_turns(write(tmp_path / "t.rttm", RTTM.replace(" x ", " q ")), two)


GRID = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n5\n<exists>\n1\n"IntervalTier"\n"ann"\n0\n5\n1\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "start,end\n1,2\n", "line 1: no column participant_id or participant or speaker"),
        ("x.csv", "speaker,start\nann,1\n", "line 1: no column end_s, end, duration_s or duration"),
        (
            "x.csv",
            "speaker,start,end\nann,1,2\nben,0:03,4\n",
            "line 3: start_s must be a number of seconds, not '0:03'",
        ),
        ("x.csv", "speaker,start,end\nann,1,\n", "line 2: this turn has no end_s"),
        ("x.csv", "speaker,start,end\n,1,2\n", "line 2: this turn has no participant_id"),
        ("x.csv", "speaker,start,end\nann,nan,2\n", "line 2: a turn must end after it starts"),
        ("x.csv", "speaker,start,end\nann,1,inf\n", "line 2: a turn must end after it starts"),
        ("x.csv", "speaker,start,end\n", "holds no turns"),
        ("x.TextGrid", "ooBinaryFile\x08TextGrid", "is a binary TextGrid: in Praat, use Save as text file"),
        ("x.TextGrid", '"ooTextFile"\n"PitchTier"\n', "line 2: this is not a TextGrid"),
        ("x.TextGrid", GRID + '1\n"oops"\n', 'line 14: xmax of an interval is expected, not "oops"'),
        ("x.TextGrid", GRID + "1\n2\n", "line 14: ends where the text of an interval is expected"),
        ("x.TextGrid", GRID + '2\n1\n"hm"\n', "line 13: a turn must end after it starts"),
        ("x.lab", "", "turns are read from .json, .rttm, .csv, .tsv or .TextGrid, not from .lab"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(InputError) as caught:
        find_turns(path, [Path("x.wav")])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
