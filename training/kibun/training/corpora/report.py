"""Shared steps of making a manifest: how paths are stored, counts, and writing manifest and report."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kibun.models.files import written_atomically
from kibun.training.errors import CorpusError

Row = dict[str, Any]
"""One line of a manifest."""

Progress = Callable[[int, int], None]
"""Called with the number of utterances done and their total."""

LABELS = ("text", "valence", "arousal", "traits", "gender", "split")


def no_progress(done: int, total: int) -> None:
    """A `Progress` that does nothing."""


@dataclasses.dataclass(frozen=True)
class CorpusReport:
    """Counts of a corpus. ``groups``: utterances, dialogues and conversations of each session or split.

    ``labelled``: numbers of utterances with text, valence and so on. ``found``: facts that only this kind of corpus
    has. ``ignored``: files that were not used. ``warnings``: differences from what was expected.
    """

    corpus: str
    manifest: str
    utterances: int
    dialogues: int
    conversations: int
    speakers: int
    hours: float
    shortest_s: float
    longest_s: float
    groups: dict[str, dict[str, int]]
    labelled: dict[str, int]
    found: dict[str, Any]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]


def count(rows: Sequence[Row], group_by: str | None) -> dict[str, Any]:
    """The counted fields of a `CorpusReport`; ``group_by``: the field whose values are the groups."""
    seconds = [row["seconds"] for row in rows]
    names = sorted({str(row[group_by]) for row in rows}) if group_by else []
    parts = {name: [row for row in rows if str(row[group_by or ""]) == name] for name in names}
    return {
        **_sizes(rows),
        "speakers": len({row["speaker"] for row in rows}),
        "hours": round(sum(seconds) / 3600, 3),
        "shortest_s": min(seconds),
        "longest_s": max(seconds),
        "groups": {name: _sizes(part) for name, part in parts.items()},
        "labelled": {field: sum(row.get(field) is not None for row in rows) for field in LABELS},
    }


def _sizes(rows: Sequence[Row]) -> dict[str, int]:
    return {
        "utterances": len(rows),
        "dialogues": len({row["dialogue"] for row in rows}),
        "conversations": len({(row["dialogue"], row["speaker"]) for row in rows}),
    }


def stored_path(audio: Path, folder: Path) -> str:
    """The path of an audio file in a manifest in ``folder``: relative if it lies inside, else absolute."""
    audio, folder = audio.resolve(), folder.resolve()
    return audio.relative_to(folder).as_posix() if audio.is_relative_to(folder) else str(audio)


def write_corpus(out: Path, rows: Iterable[Row], report: CorpusReport) -> None:
    """Write the manifest and, beside it, its report; an earlier manifest stays whole until the new one is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False)
        for row in rows
    )
    _replace(out, "".join(f"{line}\n" for line in lines))
    _replace(report_path(out), json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False) + "\n")


def report_path(manifest: Path) -> Path:
    """``corpus.report.json`` of ``corpus.jsonl``."""
    return manifest.with_suffix(".report.json")


def raise_problems(what: str, problems: Sequence[str]) -> None:
    """Raise CorpusError with all problems, if there are any."""
    if problems:
        raise CorpusError(what, problems)


def _replace(path: Path, text: str) -> None:
    with written_atomically(path) as draft:
        draft.write_text(text, encoding="utf-8")
