"""Manifests and splits files: reading, and errors that name line and field."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import Item, license_of, load_manifest, read_manifest
from kibun.training.errors import ManifestError
from kibun.training.runs.utterances import Utterances

TRAITS = {"openness": 4, "conscientiousness": 4, "extraversion": 4, "agreeableness": 4, "neuroticism": 4}
EVERYTHING = ("path", "split", "text", "valence", "arousal", "traits", "gender", "seconds")


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "path": "a.wav",
        "speaker": "s1",
        "dialogue": "d1",
        "split": "train",
        "text": "hello",
        "arousal": 3.5,
        "valence": 2,
        "traits": TRAITS,
        "gender": "female",
        "seconds": 0.1,
    } | changes


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    soundfile.write(folder / "a.wav", np.zeros(1600), 16_000)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "manifest.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder / "manifest.jsonl"


def test_a_correct_manifest_is_read(tmp_path: Path) -> None:
    manifest = write(tmp_path, row(), "", row(id="two", speaker="s2", split="dev", text="a\u2028b", unknown=1))
    items = load_manifest(manifest, require=EVERYTHING)
    assert [(item.id, item.split, item.text) for item in items] == [
        ("one", "train", "hello"),
        ("two", "dev", "a\u2028b"),
    ]
    assert items[0].traits == (4.0,) * 5
    assert items[0].conversation == ("d1", "s1")
    assert (items[0].valence, items[0].arousal, items[0].gender, items[0].seconds) == (2.0, 3.5, "female", 0.1)
    assert load_audio(items[0].path).shape == (1600,)


def test_missing_fields_are_none_and_the_path_is_the_id(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"path": "a.wav", "speaker": "s", "dialogue": "d", "valence": None})
    item = load_manifest(manifest)[0]
    assert item.id == "a.wav"
    assert [getattr(item, name) for name in EVERYTHING[1:]] == [None] * 7
    for name in EVERYTHING[1:]:
        with pytest.raises(ManifestError, match=f"manifest.jsonl:1: field '{name}' is missing"):
            load_manifest(manifest, require=(name,))
    with pytest.raises(ValueError, match="no fields of a manifest"):
        load_manifest(manifest, require=("loudness",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "manifest.jsonl:2: not JSON"),
        ("[]", "manifest.jsonl:2: must be a JSON object"),
        (row(arousal="high"), "manifest.jsonl:2: field 'arousal'"),
        (row(arousal=True), "manifest.jsonl:2: field 'arousal'"),
        (row(valence=9), "manifest.jsonl:2: field 'valence' must be a number from 0 to 6"),
        (row(valence=float("nan")), "manifest.jsonl:2: field 'valence' must be a number from 0 to 6"),
        (row(split="eval"), "manifest.jsonl:2: field 'split' is 'eval'"),
        (row(path="b.wav"), "manifest.jsonl:2: field 'path': no such file"),
        (row(path=""), "manifest.jsonl:2: field 'path' must be a non-empty string"),
        (row(speaker=""), "manifest.jsonl:2: field 'speaker'"),
        (row(text=3), "manifest.jsonl:2: field 'text'"),
        (row(traits=[4] * 5), "manifest.jsonl:2: field 'traits'"),
        (row(traits=TRAITS | {"openness": 0}), "manifest.jsonl:2: field 'openness' must be a number from 1 to 7"),
        (row(id="two", split="test"), "manifest.jsonl:2: field 'split': speaker 's1' is in 'test' and in 'train'"),
        (row(), "manifest.jsonl:2: field 'id': 'one' is also in"),
    ],
)
def test_an_error_names_line_and_field(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(tmp_path, row(), line))
    assert message in str(caught.value)


def test_missing_and_empty_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"kibun train prepare.*kibun synth speech"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="no utterances"):
        load_manifest(write(tmp_path, ""))
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="not UTF-8"):
        load_manifest(tmp_path / "manifest.jsonl")


def test_audio_files_need_not_exist_where_path_is_not_required(tmp_path: Path) -> None:
    manifest = write(tmp_path, row(path="elsewhere.wav"))
    assert load_manifest(manifest, require=("valence", "traits"))[0].path == tmp_path / "elsewhere.wav"


# ---- splits --------------------------------------------------------------------------------------------------------


def splits_file(folder: Path, *lines: str) -> Path:
    (folder / "mine.csv").write_text("\n".join(["dialogue,split", *lines]) + "\n", encoding="utf-8")
    return folder / "mine.csv"


def three(folder: Path) -> Path:
    """Three dialogues: two of the same speaker, one of another."""
    people = (("d1", "s1"), ("d2", "s1"), ("d3", "s2"))
    rows = [row(id=dialogue, dialogue=dialogue, speaker=speaker, split="train") for dialogue, speaker in people]
    return write(folder, *rows)


def test_a_splits_file_replaces_the_field(tmp_path: Path) -> None:
    read = read_manifest(three(tmp_path), splits=splits_file(tmp_path, "d1,test", "d9,test"), require=("split",))
    assert [(item.id, item.split) for item in read.items] == [("d1", "test")]
    assert (read.left_out, read.absent, read.shared_speakers) == (2, ("d9",), ())
    assert read.warnings() == [
        "utterances left out, their dialogue being in no split: 2",
        "dialogues of the splits that the manifest lacks: 1 (d9 first)",
    ]


def test_dev_and_test_may_share_speakers_only_by_a_splits_file(tmp_path: Path) -> None:
    read = read_manifest(three(tmp_path), splits=splits_file(tmp_path, "d1,dev", "d2,test", "d3,train"))
    assert read.shared_speakers == ("s1",)
    assert "share the speakers s1" in read.warnings()[0]
    for lines in (("d1,train", "d2,test"), ("d1,dev", "d2,train")):
        with pytest.raises(ManifestError, match=r"speaker 's1' is in .*by .*mine.csv"):
            read_manifest(three(tmp_path), splits=splits_file(tmp_path, *lines))
    within = write(tmp_path, row(split="dev"), row(id="two", split="test"))
    with pytest.raises(ManifestError, match="keep each speaker in one split"):
        read_manifest(within)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["d1,training"], "mine.csv:2: column 'split' is 'training', must be one of train, dev, test"),
        (["d1,train", ",dev"], "mine.csv:3: column 'dialogue' is empty"),
        (["d1,train", "d1,dev"], "mine.csv:3: dialogue 'd1' is in 'dev' and in 'train'"),
        (["d1"], "mine.csv:2: column 'split' is ''"),
        ([], "names no dialogue"),
        (["d7,train"], "no dialogue of it is in"),
    ],
)
def test_an_error_in_a_splits_file_names_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(three(tmp_path), splits=splits_file(tmp_path, *lines))
    assert message in str(caught.value)


def test_missing_splits_are_refused(tmp_path: Path) -> None:
    manifest = three(tmp_path)
    with pytest.raises(ManifestError, match="no splits 'papre': neither a CSV file"):
        load_manifest(manifest, splits="papre")
    (tmp_path / "mine.csv").write_text("id,split\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"mine.csv:1: no column 'dialogue'"):
        load_manifest(manifest, splits=tmp_path / "mine.csv")


def test_utterances_in_memory_keep_sixteen_bits_exactly(tmp_path: Path) -> None:
    manifest = write(tmp_path, row())
    samples = np.random.default_rng(0).integers(-32768, 32768, 20_000).astype(np.int16)
    samples[:2] = -32768, 32767
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="PCM_16")
    utterances = Utterances(load_manifest(manifest), np.zeros((1, 5), np.float32), min_samples=0)
    for _ in range(2):
        assert np.array_equal(utterances.read(0) * 32768, samples)


def test_the_licences_of_all_corpora_are_named_once() -> None:
    def of(*licenses: str | None) -> str:
        return license_of([Item("x", Path("x"), "s", "d", license=license) for license in licenses])

    assert of("ODbL-1.0", "CC-BY-NC-SA-4.0", "ODbL-1.0") == "CC-BY-NC-SA-4.0 AND ODbL-1.0"
    assert of(None, "ODbL-1.0", None) == "ODbL-1.0 AND not stated"
    assert of("MIT AND ODbL-1.0", "CC0-1.0 AND MIT") == "CC0-1.0 AND MIT AND ODbL-1.0"
    assert of(None) == "not stated"
