"""What is kept of a run: exactly what it was, under a name that changes with all that it depends on."""

import os
from pathlib import Path

import pytest

from kibun.client.recordings.kept import KeptResults
from kibun.client.recordings.rows import FileResult, FileStatus, row_without


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(b"not looked at")
    return tmp_path / "a.wav"


def result_of(path: Path) -> FileResult:
    status = FileStatus("no_speech", "NO_SPEECH", "no utterance was found", 0.1 + 0.2)
    return FileResult(path, status, [{**row_without(path, status), "valence": 1 / 3}], ["a"], ["b"], "c")


def test_it_comes_back_as_it_was_for_whatever_path_has_the_content(tmp_path: Path, audio: Path) -> None:
    kept = KeptResults(tmp_path / "kept", "model 1", reuse=True)
    key = kept.key(audio, "options")
    assert key is not None
    assert kept.load(key, audio) is None
    kept.save(key, result_of(audio))
    other = audio.rename(tmp_path / "b.wav")
    assert kept.key(other, "options") == key
    loaded = kept.load(key, other)
    assert loaded == FileResult(**{**vars(result_of(other)), "kept": True})
    assert not any("a.wav" in path.read_text() for path in kept.folder.iterdir())
    kept.forget()
    assert list(kept.folder.iterdir()) == []


def test_its_name_changes_with_what_it_depends_on(tmp_path: Path, audio: Path) -> None:
    kept = KeptResults(tmp_path / "kept", "model 1", reuse=True)
    keys = [kept.key(audio, "options"), kept.key(audio, "others")]
    keys.append(KeptResults(tmp_path / "kept", "model 2", reuse=True).key(audio, "options"))
    audio.write_bytes(b"not looked at!")
    keys.append(kept.key(audio, "options"))
    assert len(set(keys)) == 4
    assert kept.key(tmp_path / "none.wav", "options") is None
    assert kept.key(tmp_path, "options") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": [], "status": {"what": 1}}', '{"rows": 3}'])
def test_what_is_not_ours_is_no_result(tmp_path: Path, audio: Path, content: str) -> None:
    kept = KeptResults(tmp_path, "model", reuse=True)
    (tmp_path / "k.json").write_text(content)
    assert kept.load("k", audio) is None


def test_what_nobody_came_back_for_goes(tmp_path: Path, audio: Path) -> None:
    folder = tmp_path / "kept"
    kept = KeptResults(folder, "model", reuse=True)
    for name, days in (("old", 31), ("young", 29)):
        kept.save(name, result_of(audio))
        then = (folder / f"{name}.json").stat().st_mtime - days * 86_400
        os.utime(folder / f"{name}.json", (then, then))
    KeptResults(folder, "model", reuse=False)
    assert [path.name for path in folder.iterdir()] == ["young.json"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, audio: Path) -> None:
    kept = KeptResults(audio / "kept", "model", reuse=True)
    kept.save("k", result_of(audio))
    assert "kept: Not a directory" in kept.problem
