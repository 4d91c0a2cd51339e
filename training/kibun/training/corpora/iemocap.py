"""A manifest made from a copy of IEMOCAP and the traits of PA-IEMOCAP: every file is read, every doubt reported."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kibun.models.types import TRAITS, Traits
from kibun.training.audio.reading import SAME_DURATION_S, audio_seconds
from kibun.training.corpora.iemocap_files import (
    Evaluation,
    Notes,
    Transcripts,
    dialogue_session,
    parse_id,
    read_evaluations,
    read_transcripts,
    spoken_words,
)
from kibun.training.corpora.profiles import read_profiles
from kibun.training.corpora.report import (
    CorpusReport,
    Progress,
    Row,
    count,
    no_progress,
    raise_problems,
    stored_path,
    write_corpus,
)
from kibun.training.corpora.tipi import Profile
from kibun.training.errors import ManifestError

EXPECTED = {"utterances": 10_039, "dialogues": 151, "conversations": 302}
GENDERS = {"F": "female", "M": "male"}
LICENSE = "LicenseRef-IEMOCAP-Release AND MIT"  # audio and emotion; the traits of PA-IEMOCAP


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """The files of one dialogue."""

    name: str
    session: int
    evaluations: Path
    transcripts: Path
    wavs: Path


@dataclasses.dataclass
class _Findings:
    """Findings about the files, for the report."""

    notes: Notes = dataclasses.field(default_factory=Notes)
    ignored: list[str] = dataclasses.field(default_factory=list)
    other_durations: list[str] = dataclasses.field(default_factory=list)
    unevaluated_wavs: list[str] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(
        default_factory=lambda: {
            "without_transcript": 0,
            "empty_transcript": 0,
            "sounds_only": 0,
            "with_markup": 0,
            "transcribed_only": 0,
            "transcript_lines_without_id": 0,
        }
    )


def prepare_iemocap(
    root: Path,
    tipi: Path,
    ocean: Path,
    out: Path,
    sessions: Collection[int] | None = None,
    decode: bool = False,
    progress: Progress = no_progress,
) -> CorpusReport:
    """Write the manifest ``out`` and its report. Utterances are sorted by dialogue and in the order they were spoken.

    ``root`` holds Session1 … Session5; ``tipi`` and ``ocean`` are PA-IEMOCAP's tipi_labels.csv and ocean.csv.
    ``sessions``: the only ones to use; None: all that have traits or a folder, and each must have both. ``decode``:
    read every wav in full, not only its header.

    Raises:
        CorpusError: files are missing, unreadable or contradict each other; it lists all problems, nothing is written.
        LabelError: an annotation file cannot be used.
    """
    findings = _Findings()
    profiles = read_profiles(tipi, ocean, findings.notes.problems)
    there = {int(folder.name[7:]) for folder in root.glob("Session[0-9]") if folder.is_dir()}
    if not there:
        hint = "name the folder that holds Session1 to Session5, often called IEMOCAP_full_release"
        raise_problems(f"{root}: is no copy of IEMOCAP", [f"{root / 'Session1'}: no such folder; {hint}"])
    of_dialogue = {dialogue: dialogue_session(dialogue) for dialogue, _gender in sorted(profiles)}
    strange = [dialogue for dialogue, session in of_dialogue.items() if session is None]
    findings.notes.problems += [f"{ocean}: {dialogue!r} is no dialogue id of IEMOCAP" for dialogue in strange]
    labelled = {session for session in of_dialogue.values() if session is not None}
    wanted = there | labelled if sessions is None else set(sessions)
    profiles = {profile: traits for profile, traits in profiles.items() if of_dialogue[profile[0]] in wanted}
    dialogues = _find_dialogues(root, wanted, profiles, findings)
    texts = [_read_dialogue(dialogue, findings) for dialogue in dialogues]
    _check_ids([evaluation for evaluations, _transcripts in texts for evaluation in evaluations], findings)
    rows: list[Row] = []
    done = 0
    total = sum(len(evaluations) for evaluations, _transcripts in texts)
    for dialogue, (evaluations, transcripts) in zip(dialogues, texts, strict=True):
        durations = _durations(dialogue, evaluations, decode, findings)
        rows += _rows(dialogue, durations, transcripts, profiles, out.parent, findings)
        done += len(evaluations)
        progress(done, total)
    raise_problems(f"{root}: cannot be made into a manifest", findings.notes.problems)
    report = _report(rows, profiles, out, findings)
    write_corpus(out, rows, report)
    return report


def _find_dialogues(
    root: Path, sessions: Collection[int], profiles: dict[Profile, Traits], findings: _Findings
) -> list[Dialogue]:
    """The dialogues with a file in EmoEvaluation; those that only have traits are reported as missing."""
    found: dict[str, Dialogue] = {}
    for session in sorted(sessions):
        folder = root / f"Session{session}"
        if not folder.is_dir():
            fix = "name the sessions that there are, each with --session"
            findings.notes.problems.append(f"{folder}: no such folder; {fix}")
            continue
        for path in _files(folder / "dialog" / "EmoEvaluation", findings):
            if path.suffix != ".txt" or dialogue_session(path.stem) is None:
                findings.ignored.append(str(path))
            elif dialogue_session(path.stem) != session:
                findings.notes.problems.append(f"{path}: lies in {folder.name}; move it to its own session")
            else:
                found[path.stem] = _dialogue(root, path.stem, session)
        for path in _files(folder / "dialog" / "transcriptions", findings):
            if path.stem not in found or path.suffix != ".txt":
                findings.ignored.append(str(path))
    for name in sorted({dialogue for dialogue, _gender in profiles} - found.keys()):
        missing = _dialogue(root, name, dialogue_session(name) or 0).evaluations
        if missing.parent.is_dir():  # a missing folder is reported once, not for each of its files
            findings.notes.problems.append(f"{missing}: no such file, but the dialogue has traits")
    findings.notes.problems += [
        f"{found[name].evaluations}: the dialogue has no traits of its {GENDERS[letter]} speaker"
        for name in sorted(found)
        for letter in GENDERS
        if (name, letter.lower()) not in profiles
    ]
    return [found[name] for name in sorted(found)]


def _dialogue(root: Path, name: str, session: int) -> Dialogue:
    folder = root / f"Session{session}"
    texts, wavs = folder / "dialog" / "transcriptions" / f"{name}.txt", folder / "sentences" / "wav" / name
    return Dialogue(name, session, folder / "dialog" / "EmoEvaluation" / f"{name}.txt", texts, wavs)


def _files(folder: Path, findings: _Findings) -> list[Path]:
    """Sorted visible files of a folder; a missing folder is a problem. Copies from a Mac have hidden ``._`` twins."""
    if not folder.is_dir():
        findings.notes.problems.append(f"{folder}: no such folder")
        return []
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    findings.ignored += [str(path) for path in files if path.name.startswith(".")]
    return [path for path in files if not path.name.startswith(".")]


def _read_dialogue(dialogue: Dialogue, findings: _Findings) -> tuple[list[Evaluation], Transcripts]:
    evaluations = read_evaluations(dialogue.evaluations, findings.notes)
    transcripts = Transcripts({}, 0)
    if dialogue.transcripts.parent.is_dir():  # otherwise reported once, as a folder
        transcripts = read_transcripts(dialogue.transcripts, findings.notes)
    ids = {evaluation.id for evaluation in evaluations}
    findings.counts["transcribed_only"] += len(transcripts.texts.keys() - ids)
    findings.counts["transcript_lines_without_id"] += transcripts.without_id
    for path in _files(dialogue.wavs, findings):
        if path.suffix != ".wav":
            findings.ignored.append(str(path))
        elif path.stem not in ids:
            findings.unevaluated_wavs.append(str(path))
    return sorted(evaluations, key=lambda evaluation: (evaluation.start_s, evaluation.id)), transcripts


def _check_ids(evaluations: list[Evaluation], findings: _Findings) -> None:
    first: dict[str, str] = {}
    for evaluation in evaluations:
        if first.setdefault(evaluation.id, evaluation.where) != evaluation.where:
            findings.notes.problems.append(
                f"{evaluation.where}: {evaluation.id} was evaluated before, in {first[evaluation.id]}"
            )


def _durations(
    dialogue: Dialogue, evaluations: list[Evaluation], decode: bool, findings: _Findings
) -> list[tuple[Evaluation, float]]:
    """The utterances whose wav can be read, with its duration in seconds."""
    found = []
    for evaluation in evaluations:
        try:
            seconds = audio_seconds(dialogue.wavs / f"{evaluation.id}.wav", decode)
        except ManifestError as error:
            if dialogue.wavs.is_dir():  # otherwise reported once, as a folder
                findings.notes.problems.append(f"{error} (named in {evaluation.where})")
            continue
        # The wav was cut at these times: where they differ a lot, it belongs to another utterance.
        if abs(seconds - (evaluation.end_s - evaluation.start_s)) > SAME_DURATION_S:
            findings.other_durations.append(evaluation.id)
        found.append((evaluation, seconds))
    return found


def _rows(
    dialogue: Dialogue,
    durations: list[tuple[Evaluation, float]],
    transcripts: Transcripts,
    profiles: dict[Profile, Traits],
    folder: Path,
    findings: _Findings,
) -> Iterator[Row]:
    for evaluation, seconds in durations:
        identity = parse_id(evaluation.id)
        assert identity is not None  # read_evaluations drops invalid ids
        traits = profiles.get((dialogue.name, identity.letter.lower()))
        if traits is None:
            continue  # reported before, once for the whole profile
        yield {
            "id": evaluation.id,
            "path": stored_path(dialogue.wavs / f"{evaluation.id}.wav", folder),
            "speaker": identity.speaker,
            "dialogue": dialogue.name,
            "session": dialogue.session,
            "corpus": "iemocap",
            "license": LICENSE,
            "gender": GENDERS[identity.letter],
            **_texts(transcripts.texts.get(evaluation.id), findings.counts),
            "valence": evaluation.valence,
            "arousal": evaluation.arousal,
            "dominance": evaluation.dominance,
            "emotion": evaluation.emotion,
            "traits": dict(zip(TRAITS, traits, strict=True)),
            "seconds": round(seconds, 4),
            "start_s": evaluation.start_s,
            "end_s": evaluation.end_s,
        }


def _texts(transcript: str | None, counts: dict[str, int]) -> Row:
    """``text``: the words, for CTC and word error rate; ``transcript``: as written, with marks such as [LAUGHTER]."""
    if transcript is None:
        counts["without_transcript"] += 1
        return {"text": None}
    words = spoken_words(transcript)
    counts["empty_transcript"] += not transcript
    counts["with_markup"] += words != " ".join(transcript.split())
    counts["sounds_only"] += bool(transcript) and not words
    return {"text": words, "transcript": transcript}


def _report(rows: list[Row], profiles: dict[Profile, Traits], out: Path, findings: _Findings) -> CorpusReport:
    counted: dict[str, Any] = count(rows, "session")
    warnings = [
        f"{'profiles' if name == 'conversations' else name}: {counted[name]:,}, the whole corpus has {number:,}"
        for name, number in EXPECTED.items()
        if counted[name] != number
    ]
    silent = profiles.keys() - {(row["dialogue"], row["gender"][0]) for row in rows}
    for what, places in (
        ("profiles without an utterance", [" ".join(profile) for profile in sorted(silent)]),
        ("lines of unknown kind in EmoEvaluation", findings.notes.unknown_lines),
        ("wavs that were never evaluated", findings.unevaluated_wavs),
        (f"wavs more than {SAME_DURATION_S:g} s off the times of their evaluation", findings.other_durations),
    ):
        if places:
            more = ", …" if len(places) > 3 else ""
            warnings.append(f"{what}: {len(places)} ({', '.join(places[:3])}{more})")
    if findings.counts["without_transcript"]:
        warnings.append(f"utterances without a transcript: {findings.counts['without_transcript']}")
    return CorpusReport(
        "iemocap",
        str(out),
        **counted,
        found=dict(findings.counts),
        ignored=tuple(findings.ignored),
        warnings=(*findings.notes.warnings, *warnings),
    )
