"""A small IEMOCAP of noise and invented words, with the folders, line formats and stray files of real copies."""

import csv
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

DIALOGUES = (
    "Ses01F_impro01",
    "Ses01F_script01_1",
    "Ses01M_impro01",
    "Ses01M_script01_1b",
    "Ses02F_impro05a",
    "Ses02M_script02_2",
)
ALL_SESSIONS = tuple(
    f"Ses{session:02d}{mocap}_{name}" for session in range(1, 6) for mocap in "FM" for name in ("impro01", "script01_1")
)
"""Two dialogues of each session and mocap letter: enough for every split of the paper."""

ITEM_PAIRS = {"EX": (1, 6), "AG": (7, 2), "CO": (3, 8), "NE": (4, 9), "OP": (5, 10)}
WORDS = (
    "well",
    "I",
    "never",
    "said",
    "that",
    "you",
    "could",
    "go",
    "home",
    "and",
    "leave",
    "me",
    "here",
    "with",
    "this",
)
EMOTIONS = ("neu", "fru", "ang", "sad", "hap", "exc", "xxx", "sur", "fea", "oth", "dis")


@dataclasses.dataclass(frozen=True)
class FakeIemocap:
    """Its files, and the number of utterances and the dialogues in them."""

    root: Path
    tipi: Path
    ocean: Path
    utterances: int
    dialogues: tuple[str, ...]


def make(
    folder: Path,
    *,
    dialogues: Sequence[str] = DIALOGUES,
    utterances_per_speaker: int = 3,
    seed: int = 0,
    seconds: tuple[float, float] = (0.3, 0.6),
) -> FakeIemocap:
    """Write ``folder``/IEMOCAP_full_release and the two label files; the same for the same arguments.

    Each speaker has traits, a voice pitch and a level of arousal of their own, so that there is something to learn.
    """
    rng = np.random.default_rng(seed)
    root = folder / "IEMOCAP_full_release"
    profiles = {(dialogue, gender): rng.integers(1, 8, (6, 10)) for dialogue in dialogues for gender in "mf"}
    for dialogue in dialogues:
        session = root / f"Session{int(dialogue[3:5])}"
        _write_dialogue(session, dialogue, utterances_per_speaker, seconds, rng)
        _write_stray_files(session, dialogue)
    _write_tipi(folder / "tipi_labels.csv", profiles)
    _write_ocean(folder / "ocean.csv", profiles)
    return FakeIemocap(
        root,
        folder / "tipi_labels.csv",
        folder / "ocean.csv",
        2 * utterances_per_speaker * len(dialogues),
        tuple(dialogues),
    )


def _write_dialogue(
    session: Path, dialogue: str, each: int, seconds: tuple[float, float], rng: np.random.Generator
) -> None:
    evaluations, wavs = session / "dialog" / "EmoEvaluation", session / "sentences" / "wav" / dialogue
    for part in (evaluations, session / "dialog" / "transcriptions", wavs):
        part.mkdir(parents=True, exist_ok=True)
    evaluated = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    transcribed = []
    clock_s = 6.2901
    # Turns alternate, but files list them by speaker, as some files of scripted dialogues do.
    turns = [(letter, number) for number in range(each) for letter in "FM"]
    blocks = {}
    for letter, number in turns:
        name = f"{dialogue}_{letter}{number:03d}"
        size = int(rng.uniform(*seconds) * 16_000)
        start_s, clock_s = clock_s, clock_s + size / 16_000
        arousal = float(rng.integers(2, 11)) / 2
        valence = 5.5 if (letter, number) == ("M", 1) else float(rng.integers(2, 11)) / 2
        _write_voice(wavs / f"{name}.wav", letter, arousal, size, rng)
        emotion = EMOTIONS[int(rng.integers(len(EMOTIONS)))]
        blocks[(letter, number)] = [
            f"[{start_s:.4f} - {clock_s:.4f}]\t{name}\t{emotion}\t[{valence:.4f}, {arousal:.4f}, 0.5000]",
            "C-E2:\tNeutral;\t()",
            "C-F1:\tFrustration; Other;\t(slightly annoyed)",
            "A-E3:\tval 3; act 2; dom  2;\t()",
            "A-M1:\tval 2; act 3; dom ;\t()",
            "",
        ]
        transcribed.append(f"{name} [{start_s:08.4f}-{clock_s:08.4f}]: {_transcript(letter, number, rng)}")
        clock_s += 0.2
    for key in sorted(blocks):
        evaluated += blocks[key]
    transcribed.insert(1, "M: Okay.")
    transcribed.append(f"{dialogue}_FXX0 [{clock_s:08.4f}-{clock_s + 1:08.4f}]: never evaluated")
    line_end = "\r\n" if "script" in dialogue else "\n"
    _write(evaluations / f"{dialogue}.txt", evaluated, line_end)
    _write(session / "dialog" / "transcriptions" / f"{dialogue}.txt", transcribed, line_end)


def _transcript(letter: str, number: int, rng: np.random.Generator) -> str:
    """Words; a woman's first one is empty as in Ses04F_impro07, a man's is only laughter."""
    if letter == "F" and number == 0:
        return ""
    if letter == "M" and number == 0:
        return "[LAUGHTER]"
    words = " ".join(rng.choice(WORDS, int(rng.integers(2, 7)))).capitalize() + "."
    return f"[BREATHING] {words} [LAUGHTER]" if number == 1 else words


def _write_voice(path: Path, letter: str, arousal: float, size: int, rng: np.random.Generator) -> None:
    """A buzz, higher and brighter with arousal, and some noise."""
    pitch_hz = (210 if letter == "F" else 120) * (1 + 0.1 * arousal)
    time_s = np.arange(size) / 16_000
    voice = sum((arousal / 5) ** (k / 4) * np.sin(2 * np.pi * pitch_hz * k * time_s) / k for k in range(1, 12))
    soundfile.write(path, 0.1 * voice + rng.normal(0, 0.01, size), 16_000, subtype="PCM_16")


def _write_stray_files(session: Path, dialogue: str) -> None:
    """Files that real copies contain and that are no part of the corpus."""
    fork = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"
    (session / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt").write_bytes(fork)
    (session / "sentences" / "wav" / dialogue / f"._{dialogue}_F000.wav").write_bytes(fork)
    for place in ("dialog/EmoEvaluation/Categorical", "dialog/lab/Ses01_F", "dialog/wav", "sentences/MOCAP_head"):
        (session / place).mkdir(parents=True, exist_ok=True)
    _write(session / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialogue}_e2_cat.txt", ["x :Neutral; ()"], "\n")
    _write(session / "dialog" / "lab" / "Ses01_F" / f"{dialogue}.lab", ["6.29 8.23 x"], "\n")
    (session / "dialog" / "wav" / f"._{dialogue}.wav").write_bytes(fork)


def misspelt(dialogue: str) -> str:
    """The spelling of some dialogue ids in the published label files."""
    return re.sub(r"script0(\d)", r"script\1", dialogue) if dialogue[5] == "M" else dialogue


def _write_tipi(path: Path, profiles: dict[tuple[str, str], np.ndarray]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # ends lines with \r\n, as the published file does
        writer.writerow(["dialogue_id", "gender", "tipi", *(f"rater{number}" for number in range(1, 7))])
        for (dialogue, gender), items in profiles.items():
            writer.writerows([misspelt(dialogue), gender, item + 1, *items[:, item]] for item in range(10))


def _write_ocean(path: Path, profiles: dict[tuple[str, str], np.ndarray]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dialogue_id", "gender", *ITEM_PAIRS])
        for (dialogue, gender), items in sorted(profiles.items()):
            scores = [((items[:, a - 1] - items[:, b - 1] + 8) / 2).mean() for a, b in ITEM_PAIRS.values()]
            writer.writerow([misspelt(dialogue), gender, *(round(float(score), 3) for score in scores)])


def _write(path: Path, lines: Sequence[str], line_end: str) -> None:
    path.write_bytes("".join(line + line_end for line in lines).encode())
