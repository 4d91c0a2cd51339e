"""Splits into train, dev and test: by files that name dialogues, or at random by speaker.

A splits file is a CSV with the columns ``dialogue`` and ``split``. Those of the paper come with kibun, in the folder
split_files; their dialogue ids are IEMOCAP's own.
"""

import csv
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np

from kibun.training.errors import ManifestError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
SPLIT_FILES = Path(__file__).parent / "split_files"
COLUMNS = ("dialogue", "split")


def split_names() -> list[str]:
    """Names of the splits that come with kibun."""
    return sorted(path.stem for path in SPLIT_FILES.glob("*.csv"))


def resolve_splits(name_or_path: str | Path) -> Path:
    """The splits file of this path, or of this name among those that come with kibun. Raises ManifestError if none."""
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


def split_speakers(
    conversations: Collection[tuple[str, str]], shares: tuple[float, float, float], seed: int
) -> dict[str, str]:
    """Speaker -> split, at random, the same for the same seed.

    ``conversations``: (dialogue, speaker), once for each utterance. ``shares``: of the utterances in train, dev and
    test, summing to 1. Speakers who share a dialogue get the same split; each split with a share gets at least one such
    group, and the shares are met as nearly as the groups allow.

    Raises:
        ManifestError: a share is negative, they do not sum to 1, or there are fewer groups than splits.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ManifestError(f"shares of {', '.join(SPLITS)} must be 0 or more and sum to 1, are {shares}")
    groups = _groups(conversations)
    open_splits = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    if len(groups) < len(open_splits):
        fix = "give a column 'split', or a splits file, that assigns dialogues to train, dev and test"
        raise ManifestError(
            f"{len(open_splits)} splits need as many groups of speakers that never talk with each other, there are"
            f" {len(groups)}; {fix}"
        )
    left = {split: share * len(conversations) for split, share in zip(SPLITS, shares, strict=True) if share > 0}
    sizes = Counter(speaker for _dialogue, speaker in conversations)
    homes: dict[str, str] = {}
    order = np.random.default_rng(seed).permutation(len(groups))
    for done, index in enumerate(order):
        empty = [split for split in open_splits if split not in homes.values()]
        choices = empty if len(empty) == len(groups) - done else open_splits
        split = max(choices, key=lambda name: left[name])
        homes |= dict.fromkeys(groups[index], split)
        left[split] -= sum(sizes[speaker] for speaker in groups[index])
    return homes


def _groups(conversations: Collection[tuple[str, str]]) -> list[list[str]]:
    """Sorted groups of speakers, such that speakers who share a dialogue share a group."""
    speakers = sorted({speaker for _dialogue, speaker in conversations})
    leader = {speaker: speaker for speaker in speakers}

    def find(speaker: str) -> str:
        while leader[speaker] != speaker:
            speaker = leader[speaker]
        return speaker

    first: dict[str, str] = {}
    for dialogue, speaker in sorted(set(conversations)):
        one, two = find(first.setdefault(dialogue, speaker)), find(speaker)
        leader[max(one, two)] = min(one, two)
    groups: dict[str, list[str]] = {}
    for speaker in speakers:
        groups.setdefault(find(speaker), []).append(speaker)
    return [groups[name] for name in sorted(groups)]
