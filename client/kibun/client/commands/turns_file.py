"""Who speaks when: turns read from JSON or RTTM.

JSON: a list of objects {"participant_id": "a", "start_s": 0.0, "end_s": 2.5, "turn_id": "t1", "text": "…"}; the last
two may be left out. RTTM: lines `SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kibun.client.audio_file import shown
from kibun.client.commands.failure import UsageError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ID_RULE = "1 to 64 letters, digits, '_', '.', '-', beginning with a letter or digit"


@dataclass(frozen=True)
class TurnSpan:
    """One turn within a recording."""

    turn_id: str
    participant_id: str
    start_s: float
    end_s: float
    text: str = ""


def load_turns(path: Path, duration_s: float) -> list[TurnSpan]:
    """Turns in order of their start, all within a recording of `duration_s`. Raises UsageError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such file: {shown(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown(path)} cannot be read as text: give a .json or .rttm file ({error})") from error
    if path.suffix.lower() == ".rttm":
        entries = _rttm_entries(path, text)
    elif path.suffix.lower() == ".json":
        entries = _json_entries(path, text)
    else:
        raise UsageError(
            f"{shown(path)}: turns are read from .json or .rttm, not from {path.suffix or 'a file without a suffix'}"
        )
    turns = [
        _turn(f"{shown(path)}, line {line}", entry, number, duration_s)
        for number, (line, entry) in enumerate(entries, 1)
    ]
    if not turns:
        raise UsageError(f"{shown(path)} holds no turns")
    names = [turn.turn_id for turn in turns]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{shown(path)}: turn_id {name!r} is used twice: ids must differ, or be left out")
    return sorted(turns, key=lambda turn: (turn.start_s, turn.end_s))


def _json_entries(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, entry) of each element of the list, read one by one because json itself keeps no lines."""
    decoder = json.JSONDecoder()
    position = _skip(text, 0, "")
    if text[position : position + 1] != "[":
        raise UsageError(f'{shown(path)}, line 1: a list of turns is expected: [{{"participant_id": …}}, …]')
    position = _skip(text, position + 1, "")
    while text[position : position + 1] != "]":
        line = text.count("\n", 0, position) + 1
        try:
            entry, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UsageError(f"{shown(path)}, line {error.lineno}: invalid JSON: {error.msg}") from error
        yield line, entry
        after = _skip(text, position, "")
        if text[after : after + 1] not in (",", "]"):
            raise UsageError(
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
            raise UsageError(
                f"{shown(path)}, line {line}: {len(fields)} fields, where RTTM has "
                "`SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`"
            )
        try:
            start_s, length_s = float(fields[3]), float(fields[4])
        except ValueError:
            raise UsageError(
                f"{shown(path)}, line {line}: start {fields[3]!r} or duration {fields[4]!r} is not a number"
            ) from None
        yield line, {"participant_id": fields[7], "start_s": start_s, "end_s": start_s + length_s}


def _turn(where: str, entry: Any, number: int, duration_s: float) -> TurnSpan:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{where}: a turn is an object with participant_id, start_s and end_s")
    for key in ("participant_id", "start_s", "end_s"):
        if key not in entry:
            raise UsageError(f"{where}: this turn has no {key}")
    times: list[float] = []
    for key in ("start_s", "end_s"):
        if isinstance(entry[key], bool) or not isinstance(entry[key], int | float):
            raise UsageError(f"{where}: {key} must be a number of seconds, not {entry[key]!r}")
        times.append(float(entry[key]))
    start_s, end_s = times
    if not 0 <= start_s < end_s:
        raise UsageError(f"{where}: a turn must end after it starts, and not start before 0: {start_s} to {end_s} s")
    if start_s >= duration_s:
        raise UsageError(f"{where}: the turn starts at {start_s} s, but the audio is {duration_s:.2f} s long")
    turn_id, participant_id = str(entry.get("turn_id") or f"turn-{number}"), str(entry["participant_id"])
    for key, value in (("turn_id", turn_id), ("participant_id", participant_id)):
        if not _ID.fullmatch(value):
            raise UsageError(f"{where}: {key} {value!r} is not a valid id: {_ID_RULE}")
    return TurnSpan(turn_id, participant_id, start_s, min(end_s, duration_s), str(entry.get("text", "")))
