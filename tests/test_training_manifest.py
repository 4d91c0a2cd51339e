"""A wrong manifest says which line and which field."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kibun.training.manifest import ManifestError, load_audio, load_manifest

TRAITS = {"openness": 4, "conscientiousness": 4, "extraversion": 4, "agreeableness": 4, "neuroticism": 4}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "path": "a.wav",
        "speaker": "s1",
        "dialogue": "d1",
        "split": "train",
        "text": "hello",
        "arousal": 3.5,
        "valence": 2,
        "traits": TRAITS,
    } | changes


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    soundfile.write(folder / "a.wav", np.zeros(1600), 16_000)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "manifest.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder / "manifest.jsonl"


def test_reads_what_is_right(tmp_path: Path) -> None:
    items = load_manifest(write(tmp_path, row(), "", row(speaker="s2", split="dev")))
    assert [item.split for item in items] == ["train", "dev"]
    assert items[0].traits == (4.0,) * 5
    assert load_audio(items[0]).shape == (1600,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "manifest.jsonl:2: not JSON"),
        ("[]", "manifest.jsonl:2: must be a JSON object"),
        (row(arousal="high"), "manifest.jsonl:2: field 'arousal'"),
        (row(arousal=True), "manifest.jsonl:2: field 'arousal'"),
        (row(valence=9), "manifest.jsonl:2: field 'valence' must be a number from 0 to 6"),
        (row(split="eval"), "manifest.jsonl:2: field 'split' is 'eval'"),
        (row(path="b.wav"), "manifest.jsonl:2: field 'path': no such file"),
        (row(speaker=""), "manifest.jsonl:2: field 'speaker'"),
        (row(traits=None), "manifest.jsonl:2: field 'traits'"),
        (row(traits=TRAITS | {"openness": 0}), "manifest.jsonl:2: field 'openness' must be a number from 1 to 7"),
        (row(split="test"), "speaker 's1' is in 'test' and in 'train'"),
    ],
)
def test_names_line_and_field(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(tmp_path, row(), line))
    assert message in str(caught.value)


def test_missing_and_empty_manifests(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="kibun synth speech"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="no utterances"):
        load_manifest(write(tmp_path, ""))


def test_audio_at_another_rate_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, row())
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8_000)
    with pytest.raises(ManifestError, match="8000 Hz"):
        load_audio(load_manifest(path)[0])
