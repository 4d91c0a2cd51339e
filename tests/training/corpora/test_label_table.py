"""Features and labels of the same rows: what is read, and one clear error for each thing that is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from kibun.models.types import TRAITS
from kibun.training.corpora.label_table import read_features, read_label_table
from kibun.training.errors import CorpusError, ManifestError
from tests.support.label_world import LabelWorld, write_labels

WORLD = LabelWorld(sessions=2, dialogues=2, each=2)


def test_columns_may_have_short_or_long_names(tmp_path: Path) -> None:
    _x, rows = WORLD.draw()
    short = read_label_table(write_labels(tmp_path / "short.csv", rows))
    names = dict(zip(("OP", "CO", "EX", "AG", "NE"), TRAITS, strict=True))
    long_rows = [{names.get(key, key): value for key, value in row.items()} for row in rows]
    jsonl = tmp_path / "long.jsonl"
    jsonl.write_text("\n".join(map(json.dumps, long_rows)), encoding="utf-8")
    long = read_label_table(jsonl)
    assert short == long
    assert short.groups == ("session 1",) * 8 + ("session 2",) * 8
    item, row = short.items[5], rows[5]
    assert (item.id, item.dialogue, item.speaker) == ("5", row["dialogue"], row["speaker"])
    assert (item.valence, item.arousal) == (row["valence"], row["arousal"])
    assert item.traits == tuple(row[name] for name in names)


def test_sessions_come_from_a_column_or_iemocaps_ids_or_not_at_all(tmp_path: Path) -> None:
    _x, rows = WORLD.draw()
    for row in rows:
        row["session"] = "a" if row["dialogue"] in ("Ses01F_impro000", "Ses02F_impro003") else "b"
    groups = read_label_table(write_labels(tmp_path / "column.csv", rows)).groups
    assert groups == ("session a",) * 4 + ("session b",) * 8 + ("session a",) * 4
    for row in rows:
        row["dialogue"] = str(row["dialogue"]).replace("impro0", "script1_")
    spelt = [item.dialogue for item in read_label_table(write_labels(tmp_path / "spelling.csv", rows)).items]
    assert spelt[::4] == ["Ses01F_script01_00", "Ses01F_script01_01", "Ses02F_script01_02", "Ses02F_script01_03"]
    for row in rows:
        del row["session"]
        row["dialogue"] = f"dialogue {row['dialogue']}"
    assert read_label_table(write_labels(tmp_path / "none.csv", rows)).groups is None


def test_one_emotion_suffices_where_one_is_asked_for(tmp_path: Path) -> None:
    _x, rows = WORLD.draw()
    for row in rows:
        del row["arousal"]
    path = write_labels(tmp_path / "valence.csv", rows)
    assert read_label_table(path, ("valence",)).items[0].arousal is None
    with pytest.raises(
        ManifestError, match=r"no column 'arousal'; needed are dialogue, speaker, valence, arousal, ope"
    ):
        read_label_table(path)


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    _x, rows = WORLD.draw()
    rows[1]["AG"] = 5.5  # the other row of this speaker of this dialogue says something else
    rows[3]["valence"] = ""
    rows[4]["NE"] = 0.5
    rows[6]["arousal"] = "nan"
    path = write_labels(tmp_path / "bad.csv", rows)
    with pytest.raises(CorpusError) as caught:
        read_label_table(path)
    traits, empty, low, no_number = caught.value.problems
    assert traits.startswith(f"{path}:3: traits of speaker 'Ses01_F' of dialogue 'Ses01F_impro000' are (")
    assert traits.endswith(f"in {path}:2; they must be the same throughout")
    assert empty == f"{path}:5: column 'valence' is empty, and needed"
    assert low == f"{path}:6: column 'NE' must be a number from 1 to 7, is '0.5'"
    assert no_number == f"{path}:8: column 'arousal' must be a number from 0 to 6, is 'nan'"


def test_ids_and_sessions_must_agree(tmp_path: Path) -> None:
    _x, rows = WORLD.draw()
    for index, row in enumerate(rows):
        row |= {"id": f"u{index}" if index != 7 else "u6", "session": 1 if index < 6 else 2}
    with pytest.raises(CorpusError) as caught:
        read_label_table(write_labels(tmp_path / "bad.csv", rows))
    assert any("column 'id' is 'u6', as in" in problem for problem in caught.value.problems)
    assert any(
        "session of dialogue 'Ses01F_impro001' is 'session 2', but 'session 1'" in p for p in caught.value.problems
    )


def test_both_names_of_a_trait_are_too_many(tmp_path: Path) -> None:
    _x, rows = WORLD.draw()
    path = write_labels(tmp_path / "two.csv", [{**row, "openness": 4} for row in rows])
    with pytest.raises(ManifestError, match="columns 'openness' and 'OP' are the same trait"):
        read_label_table(path)


def test_features_of_any_number_type_become_float32(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for kind in (np.float64, np.float16, np.int16, np.bool_):
        np.save(path, np.arange(6).reshape(3, 2).astype(kind))
        read = read_features(path, 3)
        assert read.dtype == np.float32
        assert np.array_equal(read, np.arange(6).reshape(3, 2).astype(kind).astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4), r"has the shape \(4,\), must be \(N, D\)"),
        (np.zeros((4, 0)), r"has the shape \(4, 0\)"),
        (np.zeros((5, 2)), "has 5 rows, but the labels have 4"),
        (np.full((4, 2), "a"), "must hold real numbers"),
        (np.zeros((4, 2), dtype=complex), "must hold real numbers"),
        (np.array([[0, 0], [0, 0], [0, np.nan], [0, 0]]), "row 2, column 1 is nan; all values must be finite"),
        (np.full((4, 2), 1e300), r"row 0, column 0 is 1e\+300; all values must be finite float32"),
        (np.zeros((4, 5000), dtype=np.int8), "must have at most"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_wrong_features_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    with pytest.raises(ManifestError, match=message):
        read_features(path, 4)


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with pytest.raises(ManifestError, match=r"no such file; write one with numpy\.save"):
        read_features(path, 4)
    path.write_bytes(b"text")
    with pytest.raises(ManifestError, match="no array of numbers in numpy"):
        read_features(path, 4)
    np.save(path, np.array([[None]]))
    with pytest.raises(ManifestError, match="no array of numbers in numpy"):
        read_features(path, 1)
    np.savez(tmp_path / "x.npz", np.zeros((4, 2)))
    with pytest.raises(ManifestError, match="holds several arrays"):
        read_features(tmp_path / "x.npz", 4)
