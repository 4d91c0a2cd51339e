"""Which dialogue is for training, which for choosing, which for testing: files, not code.

A splits file is a CSV with the columns ``dialogue`` and ``split``. Those of the paper come with kibun, beside this
file; their dialogue ids are IEMOCAP's own.
"""

import csv
from pathlib import Path

from kibun.training.errors import ManifestError

SPLITS = ("train", "dev", "test")
SPLIT_FILES = Path(__file__).parent / "splits"
COLUMNS = ("dialogue", "split")


def split_names() -> list[str]:
    """Names of the splits that come with kibun."""
    return sorted(path.stem for path in SPLIT_FILES.glob("*.csv"))


def resolve_splits(name_or_path: str | Path) -> Path:
    """The file of a split given by path, or by the name of one that comes with kibun; ManifestError if none."""
    for path in (Path(name_or_path), SPLIT_FILES / f"{name_or_path}.csv"):
        if path.is_file():
            return path
    raise ManifestError(
        f"no splits {str(name_or_path)!r}: neither a CSV file with the columns {', '.join(COLUMNS)} nor one of those"
        f" that come with kibun ({', '.join(split_names())})"
    )


def read_splits(name_or_path: str | Path) -> dict[str, str]:
    """Dialogue -> "train", "dev" or "test".

    Raises:
        ManifestError: no such file, a column missing, another split's name, or a dialogue named twice.
    """
    path = resolve_splits(name_or_path)
    splits: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ManifestError(f"{path}:1: no column {missing[0]!r}; the first line must be {','.join(COLUMNS)}")
        for row in rows:
            dialogue, split = (row[name] or "" for name in COLUMNS)
            where = f"{path}:{rows.line_num}"
            if split not in SPLITS:
                raise ManifestError(f"{where}: column 'split' is {split!r}, must be one of {', '.join(SPLITS)}")
            if not dialogue:
                raise ManifestError(f"{where}: column 'dialogue' is empty")
            if splits.setdefault(dialogue, split) != split:
                raise ManifestError(f"{where}: dialogue {dialogue!r} is in {split!r} and in {splits[dialogue]!r}")
    if not splits:
        raise ManifestError(f"{path}: names no dialogue")
    return splits
