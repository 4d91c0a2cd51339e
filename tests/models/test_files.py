"""Atomic writing: readers find the old content or the new, and a failed write leaves nothing."""

from pathlib import Path

import pytest

from kibun.models.files import written_atomically


@pytest.mark.parametrize("fsync", [False, True])
def test_the_new_content_appears_only_when_it_is_whole(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "figures.json"
    path.write_text("old")
    with written_atomically(path, fsync=fsync) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
        assert draft.parent == path.parent, "another file system would make the move a copy"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_moved_as_a_whole(tmp_path: Path) -> None:
    with written_atomically(tmp_path / "bundle") as draft:
        draft.mkdir()
        (draft / "config.json").write_text("{}")
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*"))] == [
        Path("bundle"),
        Path("bundle/config.json"),
    ]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path, folder: bool) -> None:
    def fail_half_way() -> None:
        with written_atomically(path) as draft:
            if folder:
                draft.mkdir()
            (draft / "part" if folder else draft).write_text("ne")
            raise KeyboardInterrupt

    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with written_atomically(path) as first, written_atomically(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the last to finish"
    assert list(tmp_path.iterdir()) == [path]
