"""Rows of `kibun analyze`: one per utterance, speaker or file, the same columns in every format."""

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kibun.client.audio_file import as_text
from kibun.client.estimates import TRAITS, Traits
from kibun.client.events import PersonalityUpdate, StreamStarted, UtteranceResult
from kibun.client.recordings.turns_file import TurnSpan

Row = dict[str, str | float | int | bool | None]


class RowsBy(enum.StrEnum):
    """What has a row."""

    UTTERANCE = "utterance"
    SPEAKER = "speaker"  # of a file
    FILE = "file"


# Of the whole file, and the same in all of its rows.
_OF_FILE = (
    # As named or found; bytes that are not UTF-8 as \xNN.
    "file",
    # ok: the whole file was analysed; no_speech: it was, and holds no utterance; incomplete: it was cut off or damaged,
    # and what is there was analysed; failed: it was not analysed. A file without utterances has one row, without them.
    "status",
    # Stable name of why the status is not ok, and the sentence.
    "reason",
    "message",
    # Of the audio; None where the file could not be read, or came through a pipe.
    "duration_s",
)
_TRAIT_COLUMNS = (
    # Apparent traits of the speaker from all utterances up to this one, scale 1..7, and their evidence.
    *TRAITS,
    *(f"{name}_error" for name in TRAITS),
    # Names of the traits whose error is not below that of guessing the mean for everyone, by spaces; they are worth
    # nothing. None: none is, or it is unknown.
    "no_better_than_mean",
)
# None (an empty cell) where nothing was estimated: too little speech, or a model that does not estimate it.
COLUMNS = (
    *_OF_FILE,
    # As the file of turns names them, channel-1 and so on, or "speaker".
    "participant",
    # As the file of turns names it.
    "turn_id",
    "utterance_id",
    "start_s",
    "end_s",
    "analyzed_s",
    # Scale 1..5, 3 neutral.
    "valence",
    "arousal",
    *_TRAIT_COLUMNS,
    "utterance_count",
    "speech_s",
    # Apparent traits from this utterance alone.
    *(f"utterance_{name}" for name in TRAITS),
    # What emotion was conditioned on: given traits, or predicted ones of some kind.
    "condition_source",
    "model",
    "synthetic_model",
)
# With `RowsBy.SPEAKER` and `RowsBy.FILE`.
SUMMARY_COLUMNS = (
    *_OF_FILE,
    # None: the row is of a file with several.
    "participant",
    "participant_count",
    "utterance_count",
    # Length of the utterances together; from the first one's start to the last one's end.
    "speech_s",
    "start_s",
    "end_s",
    # Means over the utterances, and their standard deviations; None of fewer than two.
    "valence",
    "valence_sd",
    "arousal",
    "arousal_sd",
    # After the last utterance; None for several speakers, whose traits have no mean.
    *_TRAIT_COLUMNS,
    "model",
    "synthetic_model",
)


@dataclass(frozen=True)
class FileStatus:
    """What became of a file: see `COLUMNS`."""

    status: str
    reason: str = ""
    message: str = ""
    duration_s: float | None = None


@dataclass
class FileResult:
    """What became of one file: its rows, of which there is always one, and what to say about it."""

    path: Path
    status: FileStatus
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # What is true of the model, and so the same for every file.
    model_notes: list[str] = field(default_factory=list)
    # Why the file failed, or what of it is missing.
    problem: str = ""
    # Analysed by an earlier run.
    kept: bool = False

    @property
    def utterances(self) -> list[Row]:
        """Rows of utterances, in order of their start; none where nobody was heard."""
        return [row for row in self.rows if row["utterance_id"] is not None]

    @property
    def participants(self) -> list[str]:
        """Those who were heard, in the order in which they began."""
        return list(dict.fromkeys(str(row["participant"]) for row in self.utterances))

    @property
    def duration_s(self) -> float:
        """Of the audio; where that is unknown, up to the end of the last utterance."""
        ends = [number(row["end_s"]) for row in self.utterances]
        return max([self.status.duration_s or 0.0, *ends])


def row_without(path: Path, status: FileStatus, started: StreamStarted | None = None) -> Row:
    """The row of a file in which no utterance was found or that failed."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= _of_file(path, status)
    if started is not None:
        row |= {"model": started.model, "synthetic_model": started.synthetic_model}
    return row


def _of_file(path: Path, status: FileStatus) -> Row:
    return {
        "file": as_text(path),
        "status": status.status,
        "reason": status.reason or None,
        "message": status.message or None,
        "duration_s": status.duration_s,
    }


def row_of(
    path: Path,
    status: FileStatus,
    span: TurnSpan,
    final: UtteranceResult,
    update: PersonalityUpdate | None,
    started: StreamStarted,
) -> Row:
    """The row of one utterance of the turn `span`; `update` is what was known of the speaker after it."""
    known = update.personality if update else None
    emotion = final.emotion
    row: Row = _of_file(path, status) | {
        "participant": span.participant_id,
        "turn_id": span.turn_id or None,
        "utterance_id": final.utterance_id,
        "start_s": final.start_s,
        "end_s": final.end_s,
        "analyzed_s": final.analyzed_s,
        "valence": None if emotion is None else emotion.valence,
        "arousal": None if emotion is None else emotion.arousal,
        "no_better_than_mean": (" ".join(known.no_better_than_mean) if known else "") or None,
        "utterance_count": None if known is None else known.utterance_count,
        "speech_s": None if known is None else known.speech_s,
        "condition_source": None if final.condition is None else final.condition.source.value,
        "model": started.model,
        "synthetic_model": started.synthetic_model,
    }
    row |= _traits("{}", known.traits if known else None)
    row |= _traits("{}_error", known.expected_error if known else None)
    row |= _traits("utterance_{}", final.personality.traits if final.personality else None)
    return {column: row[column] for column in COLUMNS}


def _traits(pattern: str, traits: Traits | None) -> Row:
    return {pattern.format(name): None if traits is None else getattr(traits, name) for name in TRAITS}


def rows_by(result: FileResult, by: RowsBy) -> list[Row]:
    """Rows of a file: of its utterances, or one for each of its speakers, or one."""
    if by is RowsBy.UTTERANCE:
        return result.rows
    spoken = result.utterances
    if by is RowsBy.FILE or not spoken:
        return [summary(result.rows, len(result.participants))]
    return [summary([row for row in spoken if row["participant"] == who], 1) for who in result.participants]


def summary(rows: Sequence[Row], participant_count: int) -> Row:
    """One row, with `SUMMARY_COLUMNS`, for rows of one file; `participant_count` of them speak."""
    spoken = [row for row in rows if row["utterance_id"] is not None]
    found: Row = dict.fromkeys(SUMMARY_COLUMNS)
    found |= {name: rows[0][name] for name in (*_OF_FILE, "model", "synthetic_model")}
    found |= {"participant_count": participant_count, "utterance_count": len(spoken)}
    found["speech_s"] = sum((number(row["end_s"]) - number(row["start_s"]) for row in spoken), 0.0)
    if spoken:
        found["start_s"] = min(number(row["start_s"]) for row in spoken)
        found["end_s"] = max(number(row["end_s"]) for row in spoken)
    for name in ("valence", "arousal"):
        values = [number(row[name]) for row in spoken if row[name] is not None]
        found[name] = statistics.fmean(values) if values else None
        found[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    if participant_count == 1:
        found["participant"] = rows[0]["participant"]
        last = next((row for row in reversed(spoken) if row[TRAITS[0]] is not None), None)
        found |= {name: last[name] if last else None for name in _TRAIT_COLUMNS}
    return found


def number(value: object) -> float:
    """A number in a cell; 0 for an empty one."""
    return float(value) if isinstance(value, int | float) else 0.0


def rounded(row: Row) -> Row:
    """Estimates are 32-bit floats: further digits carry no information."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
