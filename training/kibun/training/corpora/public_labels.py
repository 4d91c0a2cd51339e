"""Label files of public corpora, as published beside the recordings: transcripts, raters' votes, dimensions."""

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kibun.models.types import EMOTION_SCALE
from kibun.training.corpora.emotions import voted_emotion
from kibun.training.corpora.lines import as_float, rescale
from kibun.training.corpora.report import Row

GENDERS = {"female": "female", "male": "male"}
CREMA_D_VOTES = {
    "A": ("angry", "meanAngerResp"),
    "D": ("disgusted", "meanDisgustResp"),
    "F": ("fearful", "meanFearResp"),
    "H": ("happy", "meanHappyResp"),
    "N": ("neutral", "meanNeutralResp"),
    "S": ("sad", "meanSadResp"),
}
VOICE_ONLY = 1  # the others saw the face as well
MSP_SCALE = (1.0, 7.0)
MSP_SPLITS = {"train": "train", "development": "dev", "validation": "dev", "test1": "test", "test2": "test"}
MSP_EMOTIONS = {
    "A": "angry",
    "C": "contemptuous",
    "D": "disgusted",
    "F": "fearful",
    "H": "happy",
    "N": "neutral",
    "S": "sad",
    "U": "surprised",
}


@dataclasses.dataclass
class Labels:
    """Fields of a manifest's lines by name of the recording and by speaker, and doubts about the files."""

    of_recording: dict[str, Row] = dataclasses.field(default_factory=dict)
    of_speaker: dict[str, Row] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def nemo_labels(root: Path) -> Labels:
    """Transcripts of data.tsv."""
    labels = Labels()
    for where, cells in _table(root, "data.tsv", ("file_id", "normalized_text"), "transcripts", labels):
        del where
        labels.of_recording[Path(cells["file_id"]).stem] = {"text": cells["normalized_text"].strip()}
    return labels


def crema_d_labels(root: Path) -> Labels:
    """What raters who only heard the voice chose (processedResults/tabulatedVotes.csv), and the actors' gender.

    tabulatedVotes.csv has a row for each clip and way of presenting it, whose number begins with 1 for the voice alone;
    it counts what finishedResponses.csv lists by rater, and has more than the majorities of summaryTable.csv.
    """
    labels = Labels()
    columns = ("", "fileName", *CREMA_D_VOTES, *(level for _category, level in CREMA_D_VOTES.values()))
    for where, cells in _table(root, "tabulatedVotes.csv", columns, "raters' votes", labels):
        counts = {code: as_float(cells[code]) for code in CREMA_D_VOTES}
        levels = {code: as_float(cells[column]) for code, (_category, column) in CREMA_D_VOTES.items()}
        voters = sum(counts.values())
        if not voters > 0 or any(counts[code] and not 0 <= levels[code] <= 100 for code in counts):
            labels.problems.append(f"{where}: must have counts of votes, and levels from 0 to 100 of those above 0")
        elif as_float(cells[""]) // 100_000 == VOICE_ONLY:
            votes = {
                category: (round(counts[code] / voters, 4), levels[code])
                for code, (category, _column) in CREMA_D_VOTES.items()
                if counts[code]
            }
            valence, arousal = voted_emotion(votes)
            shares = {category: share for category, (share, _level) in votes.items()}
            labels.of_recording[cells["fileName"]] = {"votes": shares, "valence": valence, "arousal": arousal}
    for _where, cells in _table(root, "VideoDemographics.csv", ("ActorID", "Sex"), "the actors' gender", labels):
        labels.of_speaker[cells["ActorID"]] = {"gender": GENDERS.get(cells["Sex"].lower())}
    return labels


def esd_labels(root: Path) -> Labels:
    """Transcripts of each speaker's file, 0011/0011.txt; speakers 1 to 10 speak Mandarin, 11 to 20 English."""
    labels = Labels()
    labels.of_speaker = {f"{number:04d}": {"language": "zh" if number <= 10 else "en"} for number in range(1, 21)}
    files = [path for path in sorted(root.rglob("00[0-2][0-9].txt")) if not path.name.startswith(".")]
    for path in files:
        for line in _decoded(path).splitlines():
            name, _, rest = line.strip().partition("\t")
            if re.fullmatch(r"\d{4}_\d{6}", name):
                labels.of_recording[name] = {"text": rest.split("\t")[0].strip()}
    if not files:
        labels.warnings.append("no transcripts such as 0011/0011.txt: utterances have no text")
    return labels


def msp_podcast_labels(root: Path) -> Labels:
    """Labels/labels_consensus.csv: dimensions from 1 to 7, speakers and splits; and Transcripts, where they are.

    A speaker who is not known ("Unknown") counts as one of their own in each recording. Test1 and Test2 are "test";
    Test3 has no published labels.
    """
    labels = Labels()
    columns = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
    transcripts = {path.stem: path for path in root.rglob("MSP-PODCAST_*.txt")}
    homes: dict[str, tuple[str, str]] = {}
    unknown = 0
    names = ("labels_consensus.csv", "labels_concensus.csv")  # older releases misspell it
    for where, cells in _table(root, names, columns, None, labels):
        name = Path(cells["FileName"]).stem
        if cells["Split_Set"].lower() not in MSP_SPLITS:
            continue  # its labels are withheld
        arousal, valence, dominance = (as_float(cells[column]) for column in ("EmoAct", "EmoVal", "EmoDom"))
        if not all(MSP_SCALE[0] <= value <= MSP_SCALE[1] for value in (arousal, valence, dominance)):
            labels.problems.append(f"{where}: EmoAct, EmoVal and EmoDom must be numbers from 1 to 7")
            continue
        row: Row = {
            "emotion": MSP_EMOTIONS.get(cells["EmoClass"]),
            "valence": rescale(valence, MSP_SCALE, EMOTION_SCALE),
            "arousal": rescale(arousal, MSP_SCALE, EMOTION_SCALE),
            "dominance": rescale(dominance, MSP_SCALE, EMOTION_SCALE),
            "gender": GENDERS.get(cells["Gender"].lower()),
            "published_split": cells["Split_Set"],
            "split": MSP_SPLITS[cells["Split_Set"].lower()],
        }
        speaker = cells["SpkrID"]
        if speaker.lower() == "unknown":
            unknown += 1
        else:
            row["speaker"] = speaker
            before = homes.setdefault(speaker, (row["split"], where))
            if before[0] != row["split"]:
                was = f"but in {before[0]} in {before[1]}"
                labels.problems.append(f"{where}: speaker {speaker} is in {row['split']}, {was}")
        if name in transcripts:
            row["text"] = transcripts[name].read_text(encoding="utf-8", errors="replace").strip()
        labels.of_recording[name] = row
    if unknown:
        labels.warnings.append(f"utterances of unknown speakers, each counted as a speaker of its own: {unknown}")
    return labels


def _table(
    root: Path, names: str | tuple[str, ...], columns: tuple[str, ...], what: str | None, labels: Labels
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(file:line, cells) of a label file below ``root``.

    One that is missing is a warning that ``what`` is missing, or a problem where that is None.
    """
    wanted = (names,) if isinstance(names, str) else names
    paths = [path for name in wanted for path in sorted(root.rglob(name))]
    if not paths:
        if what is None:
            labels.problems.append(f"{root}: no file {wanted[0]} in it or below, which has the labels")
        else:
            labels.warnings.append(f"no file {wanted[0]}: without {what}")
        return
    path = paths[0]
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            hint = "; this is a pointer of Git LFS, get the file with `git lfs pull`" if _is_pointer(path) else ""
            labels.problems.append(f"{path}:1: no column {missing[0]!r}{hint}")
            return
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if any(cells[column] is None for column in columns):
                labels.problems.append(f"{where}: has fewer cells than the header")
                continue
            yield where, {column: cells[column].strip() for column in columns}


def _is_pointer(path: Path) -> bool:
    return path.read_bytes()[:40].startswith(b"version https://git-lfs")


def _decoded(path: Path) -> str:
    """ESD's transcripts come in several encodings."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("gb18030", errors="replace")
