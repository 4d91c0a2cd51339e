"""Manifests of the corpora of `public_corpora`, from their file names and label files as published.

Recordings may have been converted or moved, but their names must be the published ones.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kibun.training.audio.reading import audio_seconds
from kibun.training.corpora.emotions import category_emotion
from kibun.training.corpora.public_corpora import PublicCorpus
from kibun.training.corpora.public_labels import Labels
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
from kibun.training.corpora.splits import split_speakers
from kibun.training.errors import ManifestError

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")  # of two files of the same name, the one that comes first here
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class PublicOptions:
    """How a corpus is split and checked. dev, test: speakers, as published or as in the manifest; the others train."""

    dev: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    shares: tuple[float, float, float] | None = None  # of train, dev and test, at random by speaker
    seed: int = 0
    decode: bool = False  # read every recording in full, not only its header
    skip_unusable: bool = False  # leave out recordings that cannot be used, instead of reporting them as problems

    def __post_init__(self) -> None:
        if self.shares is not None and (self.dev or self.test):
            raise ManifestError("--split-speakers splits at random, --dev and --test by name: give one or the other")


@dataclasses.dataclass
class _Found:
    """The recordings of a folder: by name, and those that are not used."""

    recordings: dict[str, tuple[Path, re.Match[str]]] = dataclasses.field(default_factory=dict)
    unknown: list[str] = dataclasses.field(default_factory=list)
    copies: list[str] = dataclasses.field(default_factory=list)
    unusable: list[str] = dataclasses.field(default_factory=list)


def prepare_public(
    corpus: PublicCorpus, root: Path, out: Path, options: PublicOptions | None = None, progress: Progress = no_progress
) -> CorpusReport:
    """Write the manifest ``out`` and its report from a folder with a copy of the corpus.

    Beside a manifest's own fields a line has ``corpus``, ``license``, ``language``, ``emotion`` (a category) and what
    else is published: ``intensity``, ``votes``, ``dominance``. A speaker's lines are one dialogue, as there is none.

    Raises:
        CorpusError: no file of this corpus, recordings that cannot be used, or label files that cannot; it lists all,
            and nothing is written.
        ManifestError: speakers that do not exist, or that cannot be split as asked.
    """
    options = options or PublicOptions()
    found = _find(corpus, root)
    labels = corpus.labels(root) if corpus.labels is not None else Labels()
    problems = list(labels.problems)
    rows: list[Row] = []
    for name, (path, match) in found.recordings.items():
        progress(len(rows), len(found.recordings))
        try:
            seconds = audio_seconds(path, options.decode)
        except ManifestError as error:
            found.unusable.append(str(error))
            continue
        rows.append(_row(corpus, name, match, labels) | {"path": stored_path(path, out.parent), "seconds": seconds})
    if not options.skip_unusable:
        problems += [f"{reason} (or leave such recordings out with --skip-unusable)" for reason in found.unusable]
    raise_problems(f"{root}: cannot be made into a manifest of {corpus.title}", problems)
    unlabelled = [row["id"] for row in rows if row["valence"] is None]
    rows = [row | {"seconds": round(row["seconds"], 4)} for row in rows if row["valence"] is not None]
    if not rows:
        raise_problems(f"{root}: no recording has labels", [*labels.warnings, *found.unusable])
    rows = _split(corpus, rows, options)
    warnings = [
        *labels.warnings,
        *_summary("recordings without labels", unlabelled),
        *_summary("labels without a recording", sorted(labels.of_recording.keys() - found.recordings.keys())),
    ]
    report = _report(corpus, rows, out, found, warnings)
    write_corpus(out, rows, report)
    return report


def _find(corpus: PublicCorpus, root: Path) -> _Found:
    """The recordings in a folder and below. Copies from a Mac have hidden ``._`` twins, which are none."""
    found = _Found()
    pattern = re.compile(rf"(?:.*/)?{corpus.pattern}", re.IGNORECASE)
    paths = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    for path in sorted(paths, key=lambda path: (SUFFIXES.index(path.suffix.lower()), path)):
        match = pattern.fullmatch(path.relative_to(root).with_suffix("").as_posix())
        if match is None:
            found.unknown.append(str(path))
        elif path.stem in found.recordings:
            found.copies.append(str(path))
        else:
            found.recordings[path.stem] = path, match
    found.recordings = dict(sorted(found.recordings.items()))
    if not found.recordings:
        here = f", there are {len(found.unknown)} others, such as {found.unknown[0]}" if found.unknown else ""
        hint = f"its files are named like {corpus.example} ({', '.join(SUFFIXES)}){here}; get it from {corpus.homepage}"
        raise_problems(f"{root}: has no recording of {corpus.title}", [hint])
    return found


def _row(corpus: PublicCorpus, name: str, match: re.Match[str], labels: Labels) -> Row:
    """A line of the manifest but for its audio; labels of a file win over those of the name."""
    codes = {group: code or "" for group, code in match.groupdict().items()}
    speaker = codes["speaker"].upper()
    category = _meaning(corpus.emotions, codes.get("emotion"))
    intensity = _meaning(corpus.intensities, codes.get("intensity"))
    valence, arousal = category_emotion(category, intensity) if category is not None else (None, None)
    sentence = corpus.texts.get(codes.get("sentence", "").lower(), codes.get("word"))
    row: Row = {
        "id": f"{corpus.name}/{name}",
        "path": None,  # keeps its place in the line
        "corpus": corpus.name,
        "license": corpus.license,
        "language": corpus.language,
        "speaker": speaker,
        "gender": corpus.genders.get(speaker),
        "emotion": category,
        "intensity": intensity,
        "valence": valence,
        "arousal": arousal,
        "text": corpus.said.format(sentence.lower()) if sentence is not None else None,
    }
    row |= labels.of_speaker.get(speaker, {}) | labels.of_recording.get(name, {})
    row["speaker"] = f"{corpus.name}-{row['speaker']}"
    row["dialogue"] = row.get("dialogue") or row["speaker"]
    return row


def _meaning(codes: Mapping[str, str], code: str | None) -> str | None:
    return codes.get(code.lower()) if code is not None else None


def _split(corpus: PublicCorpus, rows: list[Row], options: PublicOptions) -> list[Row]:
    """The rows with their split: as asked, else as published."""
    if options.shares is not None:
        homes = split_speakers([(row["dialogue"], row["speaker"]) for row in rows], options.shares, options.seed)
        return [row | {"split": homes[row["speaker"]]} for row in rows]
    if not (options.dev or options.test):
        return rows
    known = {row["speaker"] for row in rows}
    named: dict[str, str] = {}
    for split, names in (("dev", options.dev), ("test", options.test)):
        for name in names:
            speaker = name if name in known else f"{corpus.name}-{name}"
            if speaker not in known:
                there = ", ".join(sorted(known)[:100])
                raise ManifestError(f"--{split} {name}: no such speaker of {corpus.title}; there are {there}")
            if named.setdefault(speaker, split) != split:
                raise ManifestError(f"--{split} {name}: is in dev and in test; keep each speaker in one split")
    return [row | {"split": named.get(row["speaker"], "train")} for row in rows]


def _report(
    corpus: PublicCorpus, rows: Sequence[Row], out: Path, found: _Found, warnings: Sequence[str]
) -> CorpusReport:
    notes = [
        *warnings,
        *_summary(f"recordings whose names are none of {corpus.title}", found.unknown),
        *_summary("recordings that are there twice, of which one is used", found.copies),
        *_summary("recordings left out as they cannot be used", found.unusable),
    ]
    if corpus.utterances is not None and len(rows) != corpus.utterances:
        notes.append(f"utterances: {len(rows):,}, the whole corpus has {corpus.utterances:,}")
    rated = any("votes" in row or "dominance" in row for row in rows)
    facts = {
        "license": corpus.license,
        "homepage": corpus.homepage,
        "emotions": dict(sorted(Counter(row["emotion"] for row in rows if row["emotion"] is not None).items())),
        "valence_and_arousal": "from listeners' ratings" if rated else "of the acted category's word, not ratings",
    }
    split = "split" if any(row.get("split") is not None for row in rows) else None
    ignored = (*found.unknown, *found.copies)
    return CorpusReport(
        corpus.name, str(out), **count(rows, split), found=facts, ignored=ignored, warnings=tuple(notes)
    )


def _summary(what: str, names: Sequence[str]) -> list[str]:
    """How many, and the first three; nothing if there are none."""
    more = ", …" if len(names) > SHOWN else ""
    return [f"{what}: {len(names)} ({', '.join(names[:SHOWN])}{more})"] if names else []
