"""Results as annotations that tools for speech and labelling read: TextGrid, EAF, RTTM, Label Studio."""

import json
import mimetypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kibun.client.audio_file import as_text, shown
from kibun.client.errors import InputError
from kibun.client.estimates import TRAITS
from kibun.client.recordings.rows import FileResult, Row, number, rounded
from kibun.client.standard_streams import printable

DIMENSIONS = ("valence", "arousal", *TRAITS)


@dataclass(frozen=True)
class Tier:
    """One dimension of one participant; intervals (start, end, value) in seconds, in order and without overlap."""

    participant: str
    dimension: str
    intervals: tuple[tuple[float, float, float], ...]

    @property
    def name(self) -> str:
        """As the tier is called."""
        return f"{printable(self.participant)} {self.dimension}"


def tiers(result: FileResult) -> list[Tier]:
    """A tier per participant and dimension; those without any estimate are left out.

    Where one participant's turns overlap, an interval begins where the one before ends, as tiers hold one at a time.
    """
    found = []
    for participant in result.participants:
        for dimension in DIMENSIONS:
            intervals: list[tuple[float, float, float]] = []
            for row in result.utterances:
                if row["participant"] != participant or row[dimension] is None:
                    continue
                # Whole milliseconds, as ELAN counts them.
                start_s = max(round(number(row["start_s"]), 3), intervals[-1][1] if intervals else 0.0)
                end_s = round(number(row["end_s"]), 3)
                if end_s > start_s:
                    intervals.append((start_s, end_s, number(row[dimension])))
            if intervals:
                found.append(Tier(participant, dimension, tuple(intervals)))
    return found


class FilePerRecording:
    """A TextGrid or EAF for each recording, in a folder, written as soon as the recording is done.

    What lies in folders below each other lies so in `folder` too. Recordings without utterances have none.
    """

    def __init__(self, folder: Path, suffix: str, files: Sequence[Path]) -> None:
        self._suffix = suffix
        self._targets = targets(folder, suffix, files)

    def write(self, result: FileResult) -> None:
        if not result.utterances:
            return
        target = self._targets[result.path]
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kibun-") as folder:
            whole = Path(folder, "whole")
            (_write_textgrid if self._suffix == ".TextGrid" else _write_eaf)(result, whole)
            os.replace(whole, target)

    def finish(self) -> None: ...


def targets(folder: Path, suffix: str, files: Sequence[Path]) -> dict[Path, Path]:
    """Which file is written for each recording; `folder` itself where it has the suffix, for a single one."""
    distinct = list(dict.fromkeys(files))
    if folder.suffix.lower() == suffix.lower() and not folder.is_dir():
        if len(distinct) > 1:
            raise InputError(
                f"-o {shown(folder)} is one file, and {len(distinct)} recordings have one each: name a folder"
            )
        return {distinct[0]: folder}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o {shown(folder)} is a file: name a folder, or a file with the suffix {suffix}")
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in distinct])
    places = {path: Path(os.path.relpath(os.path.abspath(path), common)) for path in distinct}
    stems = [place.with_suffix("") for place in places.values()]
    # a.wav and a.flac, side by side, keep their whole names.
    return {
        path: folder / (place.with_suffix(suffix) if stems.count(place.with_suffix("")) == 1 else f"{place}{suffix}")
        for path, place in places.items()
    }


def _write_textgrid(result: FileResult, path: Path) -> None:
    from pympi.Praat import TextGrid

    found = tiers(result)
    # An end that is rounded up may lie behind the recording's.
    grid = TextGrid(xmax=max([result.duration_s, *(tier.intervals[-1][1] for tier in found)]))
    for tier in found:
        made = grid.add_tier(tier.name.replace('"', '""'))  # which pympi writes as it is
        for start_s, end_s, value in tier.intervals:
            made.add_interval(start_s, end_s, f"{value:.2f}", check=False)
    grid.to_file(str(path))


def _write_eaf(result: FileResult, path: Path) -> None:
    from pympi.Elan import Eaf

    eaf = Eaf(author="kibun")
    eaf.remove_tier("default")
    mime = mimetypes.guess_type(result.path.name)[0] or "audio/*"
    eaf.add_linked_file(result.path.absolute().as_uri(), printable(as_text(f"./{result.path.name}")), mime)
    for tier in tiers(result):
        eaf.add_tier(tier.name, part=printable(tier.participant))
        for start_s, end_s, value in tier.intervals:
            eaf.add_annotation(tier.name, round(start_s * 1000), round(end_s * 1000), f"{value:.2f}")
    eaf.to_file(str(path))


class RttmRows:
    """Who speaks when: a line per utterance. RTTM has no place for estimates, nor for recordings without speech."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file or sys.stdout

    def write(self, result: FileResult) -> None:
        name = _word(as_text(result.path.stem))
        for row in result.utterances:
            start_s, length_s = number(row["start_s"]), number(row["end_s"]) - number(row["start_s"])
            who = _word(str(row["participant"]))
            print(f"SPEAKER {name} 1 {start_s:.3f} {length_s:.3f} <NA> <NA> {who} <NA> <NA>", file=self._file)
        self._file.flush()

    def finish(self) -> None: ...


def _word(text: str) -> str:
    """RTTM's fields end at spaces."""
    return printable(re.sub(r"\s+", "_", text))


class LabelStudioTasks:
    """A JSON list with a task for each recording, whose predictions are regions with a speaker and numbers."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file or sys.stdout
        self._tasks: list[dict[str, Any]] = []

    def write(self, result: FileResult) -> None:
        row = result.rows[0]
        data = {"audio": row["file"], **{name: row[name] for name in ("status", "reason", "message")}}
        task: dict[str, Any] = {"data": data}
        if spoken := result.utterances:
            regions = [part for at, row in enumerate(spoken) for part in _region(f"utterance-{at + 1}", rounded(row))]
            task["predictions"] = [{"model_version": row["model"], "result": regions}]
        self._tasks.append(task)

    def finish(self) -> None:
        json.dump(self._tasks, self._file, indent=1, ensure_ascii=(self._file.encoding or "").lower() != "utf-8")
        self._file.write("\n")


def _region(name: str, row: Row) -> Iterator[dict[str, Any]]:
    span = {"start": row["start_s"], "end": row["end_s"]}
    of_region = {"id": name, "to_name": "audio"}
    yield {**of_region, "from_name": "speaker", "type": "labels", "value": {**span, "labels": [row["participant"]]}}
    for dimension in DIMENSIONS:
        if row[dimension] is not None:
            value = {**span, "number": row[dimension]}
            yield {**of_region, "from_name": dimension, "type": "number", "value": value}
