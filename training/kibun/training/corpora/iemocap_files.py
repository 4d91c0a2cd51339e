"""The text files of IEMOCAP, parsed line by line: evaluations, transcriptions and utterance ids.

Lines that cannot be parsed are recorded in `Notes` with file and line; nothing is skipped silently.
"""

import dataclasses
import re
from pathlib import Path

from kibun.training.corpora.lines import as_float
from kibun.training.corpora.manifest import EMOTION_RANGE

# Ses01F_script02_1_M003: session 1, F wears the motion capture, and M, the letter before the last number, speaks.
# XX stands in ids of utterances that were transcribed but not segmented.
_ID = re.compile(r"(?P<dialogue>Ses(?P<session>\d\d)[FM]_(?:impro|script)\w+)_(?P<letter>[FM])(?:XX)?\d+")
_DIALOGUE = re.compile(r"Ses(?P<session>\d\d)[FM]_(?:impro|script)\w+")
_EVALUATION = re.compile(
    r"\[\s*(?P<start>\S+)\s+-\s+(?P<end>\S+?)\s*\]\s+(?P<id>\S+)\s+(?P<emotion>\w+)\s+\[(?P<numbers>[^\]]*)\]"
)
# One rater's opinion: `C-E2: Neutral; ()` or `A-F1: val 3; act 2; dom 2; ()`. Only the raters' means are used.
_RATER = re.compile(r"[AC]-[A-Z]+\d*:")
_TRANSCRIPT = re.compile(r"(?P<id>Ses\S+)\s+\[(?P<times>[^\]]*)\]:(?P<text>.*)")
# [LAUGHTER], [BREATHING], ++GARBAGE++: sounds, not words.
_MARKUP = re.compile(r"\[[^\]]*\]|\+\+\w+\+\+")


@dataclasses.dataclass
class Notes:
    """Findings of parsing: problems prevent the manifest from being written, the rest is only reported.

    unknown_lines: lines (file:line) of EmoEvaluation that are no utterance, rating or header and not blank.
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    unknown_lines: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class UtteranceId:
    """The parts of an utterance's name."""

    dialogue: str
    session: int
    letter: str  # of the speaker, "F" or "M"

    @property
    def speaker(self) -> str:
        """The actor, e.g. ``Ses01_F``: two in each session, the same in all of its dialogues."""
        return f"Ses{self.session:02d}_{self.letter}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The raters' judgement of an utterance: their means, nearly always in 1..5, and the majority's emotion.

    start_s, end_s: seconds from the start of the dialogue. where: file:line.
    """

    id: str
    where: str
    start_s: float
    end_s: float
    emotion: str
    valence: float
    arousal: float
    dominance: float


def parse_id(name: str) -> UtteranceId | None:
    """The parts of an utterance id; None if it is none of IEMOCAP's."""
    match = _ID.fullmatch(name)
    return UtteranceId(match["dialogue"], int(match["session"]), match["letter"]) if match else None


def dialogue_session(name: str) -> int | None:
    """The session of a dialogue id; None if it is none of IEMOCAP's."""
    match = _DIALOGUE.fullmatch(name)
    return int(match["session"]) if match else None


def read_evaluations(path: Path, notes: Notes) -> list[Evaluation]:
    """The utterances in one dialogue's file of EmoEvaluation, in file order."""
    found = []
    lines = _lines(path, notes)
    for number, line in enumerate(lines, 1):
        where, line = f"{path}:{number}", line.strip()
        if not line or line.startswith("%") or _RATER.match(line):
            continue
        match = _EVALUATION.fullmatch(line)
        if match:
            found += _evaluation(where, match, path.stem, notes.problems)
        elif line.startswith("[") or "Ses" in line:
            expected = "[START - END] ID EMOTION [VALENCE, ACTIVATION, DOMINANCE]"
            notes.problems.append(f"{where}: malformed line {line[:80]!r}, must be {expected}")
        else:
            notes.unknown_lines.append(where)
    if lines and not found:
        notes.problems.append(f"{path}: has no utterance")
    return found


def _evaluation(where: str, match: re.Match[str], dialogue: str, problems: list[str]) -> list[Evaluation]:
    """A list of one evaluation; an empty one, and a problem, if the line is wrong."""
    identity = parse_id(match["id"])
    if identity is None or identity.dialogue != dialogue:
        problems.append(f"{where}: field ID is {match['id']!r}, must be {dialogue}_ and F or M and a number")
        return []
    start_s, end_s = as_float(match["start"]), as_float(match["end"])
    if not 0 <= start_s < end_s:
        times = f"[{match['start']} - {match['end']}]"
        problems.append(f"{where}: time range {times} must be two numbers of seconds, 0 or more and rising")
        return []
    low, high = EMOTION_RANGE
    scores = [as_float(part) for part in match["numbers"].split(",")]
    if len(scores) != 3 or not all(low <= score <= high for score in scores):
        names = "valence, activation, dominance"
        problems.append(f"{where}: [{match['numbers']}] must be {names} as three numbers from {low:g} to {high:g}")
        return []
    return [Evaluation(match["id"], where, start_s, end_s, match["emotion"], *scores)]


@dataclasses.dataclass(frozen=True)
class Transcripts:
    """The transcripts of one dialogue, by utterance id and as written. without_id: lines that have none."""

    texts: dict[str, str]
    without_id: int  # such as `M: Okay.`


def read_transcripts(path: Path, notes: Notes) -> Transcripts:
    """Read one dialogue's file of dialog/transcriptions."""
    texts: dict[str, str] = {}
    without_id = 0
    lines = _lines(path, notes)
    for number, line in enumerate(lines, 1):
        where, line = f"{path}:{number}", line.strip()
        match = _TRANSCRIPT.fullmatch(line)
        if match:
            text = match["text"].strip()
            if texts.setdefault(match["id"], text) != text:
                problem = f"{where}: {match['id']} is transcribed twice, and differently; keep one of the lines"
                notes.problems.append(problem)
        elif line.startswith("Ses"):
            notes.problems.append(f"{where}: malformed line {line[:80]!r}, must be ID [START-END]: TEXT")
        elif line:
            without_id += 1
    if lines and not texts:
        notes.problems.append(f"{path}: transcribes no utterance")
    return Transcripts(texts, without_id)


def spoken_words(transcript: str) -> str:
    """The transcript without marks for sounds such as ``[LAUGHTER]``; "" where there is nothing else."""
    return " ".join(_MARKUP.sub(" ", transcript).split())


def _lines(path: Path, notes: Notes) -> list[str]:
    """The lines of a text file; no lines, and a problem, if it is empty or no text file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        notes.problems.append(f"{path}: {reason}")
        return []
    if not content.strip() or b"\0" in content:
        notes.problems.append(f"{path}: {'is no text file' if content.strip() else 'is empty'}")
        return []
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        notes.warnings.append(f"{path}:{line}: not UTF-8 (byte {content[error.start]:#04x}), read as Latin-1")
        return content.decode("latin-1").splitlines()
