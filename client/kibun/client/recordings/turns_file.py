"""Who speaks when: turns read from JSON, RTTM, CSV or TextGrid; one file for all recordings, or a folder of them.

JSON: a list of objects {"participant_id": "a", "start_s": 0.0, "end_s": 2.5, "turn_id": "t1", "text": "…"}; the last
two may be left out, and `file` names the recording where there are several. CSV: a header with the same names, or
`participant` or `speaker`, `start`, `end` or `duration`. RTTM: lines
`SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`. TextGrid: an interval tier per participant, in which
each interval with a text is a turn.
"""

import csv
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kibun.client.audio_file import shown
from kibun.client.errors import InputError

SUFFIXES = (".json", ".rttm", ".csv", ".tsv", ".textgrid")
KINDS = ".json, .rttm, .csv, .tsv or .TextGrid"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ID_RULE = "1 to 64 letters, digits, '_', '.', '-', beginning with a letter or digit"
# What a column of a CSV may be called.
_COLUMNS = {
    "participant_id": ("participant_id", "participant", "speaker"),
    "start_s": ("start_s", "start"),
    "end_s": ("end_s", "end"),
    "duration_s": ("duration_s", "duration"),
    "file": ("file", "recording", "name"),
    "turn_id": ("turn_id",),
    "text": ("text",),
}


@dataclass(frozen=True)
class TurnSpan:
    """One turn within a recording."""

    turn_id: str
    participant_id: str
    start_s: float
    end_s: float
    text: str = ""


@dataclass(frozen=True)
class _Entry:
    """A turn as it stands in a file; `recording` is "" where the file does not say which one it is about."""

    where: str
    recording: str
    values: Any


def load_turns(path: Path, duration_s: float) -> list[TurnSpan]:
    """Turns of one recording, of `duration_s`, in order of their start, with ids that a server takes.

    Raises InputError naming the line.
    """
    entries = _read(path)
    turns = _turns(path, entries)
    for entry, turn in zip(entries, turns, strict=True):
        for key in ("turn_id", "participant_id"):
            if not _ID.fullmatch(value := getattr(turn, key)):
                raise InputError(f"{entry.where}: {key} {value!r} is not a valid id: {_ID_RULE}")
        if turn.start_s >= duration_s:
            raise InputError(
                f"{entry.where}: the turn starts at {turn.start_s} s, but the audio is {duration_s:.2f} s long"
            )
    return within(turns, duration_s)


def within(turns: Sequence[TurnSpan], duration_s: float) -> list[TurnSpan]:
    """Turns in order of their start, none longer than the recording."""
    cut = [replace(turn, end_s=min(turn.end_s, duration_s)) for turn in turns]
    return sorted(cut, key=lambda turn: (turn.start_s, turn.end_s))


def find_turns(path: Path, recordings: Sequence[Path]) -> dict[Path, list[TurnSpan]]:
    """Turns of each recording that has some, from one file or from a folder with a file of the same name for each.

    Names of participants may be anything. Raises InputError, also where no recording has turns.
    """
    found: dict[Path, list[TurnSpan]] = {}
    if path.is_dir():
        by_stem: dict[str, list[Path]] = {}
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                by_stem.setdefault(_composed(file.stem), []).append(file)
        for recording in recordings:
            if file_of_it := _nearest(recording, by_stem.get(_composed(recording.stem), [])):
                found[recording] = _turns_of(recording, file_of_it, _read(file_of_it), alone=True)
        if not found:
            raise InputError(
                f"--turns {shown(path)}: no file in it has the name of a recording: for {shown(recordings[0])} it "
                f"should be {shown(recordings[0].stem)} with {KINDS}"
            )
        return found
    entries = _read(path)
    for recording in recordings:
        if turns := _turns_of(recording, path, entries, alone=len(recordings) == 1):
            found[recording] = turns
    if not found:
        names = list(dict.fromkeys(entry.recording for entry in entries))
        if names == [""]:
            raise InputError(
                f"--turns {shown(path)} does not say which of the {len(recordings)} recordings it is about: give it a "
                "column file, or a folder with one file of turns per recording"
            )
        raise InputError(
            f"--turns {shown(path)} is about {shown(names[0])}{' and others' * (len(names) > 1)}, not about "
            f"{shown(recordings[0].stem)}: names of recordings have to be those of the files"
        )
    return found


def _nearest(recording: Path, files: list[Path]) -> Path | None:
    """The only file, or of several the one in a folder of the same name."""
    if len(files) > 1:
        files = [file for file in files if file.resolve().parent.name == recording.resolve().parent.name] or files
    if len(files) > 1:
        raise InputError(
            f"--turns: both {shown(files[0])} and {shown(files[1])} have the name of {shown(recording)}: keep one, or "
            "put each into a folder named as the recording's"
        )
    return files[0] if files else None


def _turns_of(recording: Path, path: Path, entries: list[_Entry], *, alone: bool) -> list[TurnSpan]:
    names = {_composed(name) for name in (str(recording), recording.name, recording.stem)}
    of_it = [entry for entry in entries if _composed(entry.recording) in names]
    if not of_it and alone and len({entry.recording for entry in entries}) == 1:
        of_it = entries
    return within(_turns(path, of_it), float("inf")) if of_it else []


def _composed(name: str) -> str:
    # Names of files may be decomposed (macOS), those in a file mostly are not.
    return unicodedata.normalize("NFC", name)


def _turns(path: Path, entries: list[_Entry]) -> list[TurnSpan]:
    turns = [_turn(entry, number) for number, entry in enumerate(entries, 1)]
    names = [turn.turn_id for turn in turns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{shown(path)}: turn_id {twice!r} is used twice: ids must differ, or be left out")
    return turns


def _turn(entry: _Entry, number: int) -> TurnSpan:
    where, values = entry.where, entry.values
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: a turn is an object with participant_id, start_s and end_s")
    for key in ("participant_id", "start_s", "end_s"):
        if values.get(key) in (None, ""):
            raise InputError(f"{where}: this turn has no {key}")
    times: list[float] = []
    for key in ("start_s", "end_s"):
        if isinstance(values[key], bool) or not isinstance(values[key], int | float):
            raise InputError(f"{where}: {key} must be a number of seconds, not {values[key]!r}")
        times.append(float(values[key]))
    start_s, end_s = times
    if not 0 <= start_s < end_s < float("inf"):
        raise InputError(f"{where}: a turn must end after it starts, and not start before 0: {start_s} to {end_s} s")
    turn_id, participant_id = str(values.get("turn_id") or f"turn-{number}"), str(values["participant_id"])
    return TurnSpan(turn_id, participant_id, start_s, end_s, str(values.get("text") or ""))


# -- reading


def _read(path: Path) -> list[_Entry]:
    """What a file holds, in its order; at least one entry. Raises InputError."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise InputError(
            f"{shown(path)}: turns are read from {KINDS}, not from {path.suffix or 'a file without a suffix'}"
        )
    try:
        text = _text(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"no such file: {shown(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)} cannot be read as text: give a {KINDS} file ({error})") from error
    readers = {".rttm": _rttm_entries, ".json": _json_entries, ".textgrid": _textgrid_entries}
    entries = [
        _Entry(f"{shown(path)}, line {line}", str(values.pop("file", "") or "") if type(values) is dict else "", values)
        for line, values in readers.get(kind, _csv_entries)(path, text)
    ]
    if not entries:
        raise InputError(f"{shown(path)} holds no turns")
    return entries


def _text(content: bytes) -> str:
    """Spreadsheets write a byte order mark, and Praat UTF-16 where it needs more than ASCII."""
    return content.decode("utf-16" if content[:2] in (b"\xfe\xff", b"\xff\xfe") else "utf-8-sig")


def _json_entries(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, entry) of each element of the list, read one by one because json itself keeps no lines."""
    decoder = json.JSONDecoder()
    position = _skip(text, 0, "")
    if text[position : position + 1] != "[":
        raise InputError(f'{shown(path)}, line 1: a list of turns is expected: [{{"participant_id": …}}, …]')
    position = _skip(text, position + 1, "")
    while text[position : position + 1] != "]":
        line = text.count("\n", 0, position) + 1
        try:
            entry, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise InputError(f"{shown(path)}, line {error.lineno}: invalid JSON: {error.msg}") from error
        yield line, entry
        after = _skip(text, position, "")
        if text[after : after + 1] not in (",", "]"):
            raise InputError(
                f"{shown(path)}, line {text.count(chr(10), 0, after) + 1}: invalid JSON: expected ',' or ']'"
            )
        position = _skip(text, after, ",")


def _skip(text: str, position: int, also: str) -> int:
    while position < len(text) and (text[position].isspace() or text[position] in also):
        position += 1
    return position


def _rttm_entries(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.splitlines(), 1):
        fields = content.split()
        if not fields or fields[0].startswith(";") or fields[0] != "SPEAKER":
            continue
        if len(fields) < 8:
            raise InputError(
                f"{shown(path)}, line {line}: {len(fields)} fields, where RTTM has "
                "`SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`"
            )
        try:
            start_s, length_s = float(fields[3]), float(fields[4])
        except ValueError:
            raise InputError(
                f"{shown(path)}, line {line}: start {fields[3]!r} or duration {fields[4]!r} is not a number"
            ) from None
        yield line, {"file": fields[1], "participant_id": fields[7], "start_s": start_s, "end_s": start_s + length_s}


def _csv_entries(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    # Line by line as they are: a text may hold line ends.
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    found = {key: next((name for name in known if name in names), None) for key, known in _COLUMNS.items()}
    if missing := [key for key in ("participant_id", "start_s") if found[key] is None]:
        raise InputError(f"{shown(path)}, line 1: no column {' or '.join(_COLUMNS[missing[0]])}")
    if found["end_s"] is None and found["duration_s"] is None:
        raise InputError(f"{shown(path)}, line 1: no column end_s, end, duration_s or duration")
    reader.fieldnames = names
    for row in reader:
        values: dict[str, Any] = {key: (row.get(name) or "").strip() for key, name in found.items() if name}
        if not any(values.get(key) for key in ("participant_id", "start_s", "end_s")):
            continue  # an empty line, or a recording in which nobody speaks
        for key in ("start_s", "end_s", "duration_s"):
            try:
                values[key] = float(values[key]) if values.get(key) else None
            except ValueError:
                raise InputError(
                    f"{shown(path)}, line {reader.line_num}: {key} must be a number of seconds, not {values[key]!r}"
                ) from None
        length_s = values.pop("duration_s")
        # What `kibun analyze` writes has the end of the utterance, and the length of the file.
        if values["end_s"] is None and values["start_s"] is not None and length_s is not None:
            values["end_s"] = values["start_s"] + length_s
        yield reader.line_num, values


# Texts in quotes, and numbers and <exists> that stand free: all else in a TextGrid is for people to read.
_TOKEN = re.compile(r'"(?:[^"]|"")*"|(?<!\S)[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\S)|<exists>|<absent>')


class _Tokens:
    """What a TextGrid says, token by token, with lines."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._tokens = _TOKEN.finditer(text)
        self._at = 0
        self.line = 1

    def next(self, kind: type[str] | type[float], what: str) -> Any:
        token = next(self._tokens, None)
        if token is None:
            raise InputError(f"{shown(self._path)}, line {self.line}: ends where {what} is expected")
        self.line += self._text.count("\n", self._at, token.start())
        self._at = token.start()
        value = token.group()
        if value.startswith('"') != (kind is str) or (kind is float and value.startswith("<")):
            raise InputError(f"{shown(self._path)}, line {self.line}: {what} is expected, not {value}")
        return value[1:-1].replace('""', '"') if kind is str else float(value)

    def skip(self) -> None:
        next(self._tokens, None)


def _textgrid_entries(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    if text.startswith("ooBinaryFile"):
        raise InputError(f"{shown(path)} is a binary TextGrid: in Praat, use Save as text file")
    tokens = _Tokens(path, text)
    if tokens.next(str, '"ooTextFile"') != "ooTextFile" or tokens.next(str, '"TextGrid"') != "TextGrid":
        raise InputError(f"{shown(path)}, line {tokens.line}: this is not a TextGrid")
    tokens.next(float, "xmin")
    tokens.next(float, "xmax")
    tokens.skip()
    for _ in range(int(tokens.next(float, "the number of tiers"))):
        intervals = tokens.next(str, "the class of a tier") == "IntervalTier"
        participant = tokens.next(str, "the name of a tier").strip()
        tokens.next(float, "xmin")
        tokens.next(float, "xmax")
        for _ in range(int(tokens.next(float, "the number of intervals"))):
            start_s = tokens.next(float, "xmin of an interval" if intervals else "the time of a point")
            line = tokens.line
            end_s = tokens.next(float, "xmax of an interval") if intervals else start_s
            label = tokens.next(str, "the text of an interval").strip()
            if intervals and label:
                yield line, {"participant_id": participant, "start_s": start_s, "end_s": end_s, "text": label}
