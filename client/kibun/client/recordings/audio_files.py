"""Which files are audio: those that are named, and those that lie in a folder."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kibun.client.audio_file import shown
from kibun.client.errors import InputError

# Tried, as libsndfile reads them.
_READABLE = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp1", ".mp2", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc", ".gsm", ".vox", ".8svx"),
)
# Tried too, so that they are told with the command that converts them, not left out without a word.
_FOREIGN = (
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".aac", ".wma", ".wmv", ".asf", ".webm", ".weba", ".mka"),
    *(".mkv", ".amr", ".awb", ".ac3", ".eac3", ".dts", ".ape", ".wv", ".tta", ".mpc", ".spx", ".ra", ".rm", ".avi"),
    *(".mpg", ".mpeg", ".flv", ".ogv", ".dsf", ".dff"),
)
# How files begin that can be read, for those whose names do not tell.
_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b".snd", b"FORM", b"caff", b"riff", b"NIST_1A", b"ID3")


@dataclass
class Found:
    """What is to be analysed, in order, and what was left out."""

    files: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    # Folders that could not be listed, with the reason.
    unread: dict[Path, str] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """Lines for people about what was left out."""
        lines = [f"{shown(folder)} cannot be searched: {why}" for folder, why in self.unread.items()]
        if self.ignored:
            kinds = Counter(path.suffix.lower() or "no suffix" for path in self.ignored)
            listed = ", ".join(f"{count} {shown(kind)}" for kind, count in kinds.most_common(5))
            more = "" if len(kinds) <= 5 else ", …"
            what = "1 file that holds" if len(self.ignored) == 1 else f"{len(self.ignored)} files that hold"
            lines.append(f"ignored {what} no audio: {listed}{more}")
        return lines


def find_audio(paths: Sequence[Path]) -> Found:
    """Files as named, and all audio files below folders, in order of their names; links are followed.

    Raises InputError where nothing is found.
    """
    found = Found()
    seen: set[tuple[int, int]] = set()
    for path in paths:
        if os.path.isdir(path):
            found.files.extend(sorted(_below(path, found, seen)))
        else:
            found.files.append(path)
    if not any(str(path) == "-" or os.path.lexists(path) for path in found.files):
        missing = [path for path in paths if not os.path.lexists(path)]
        problem = (
            f"no such file or folder: {shown(missing[0])}" if missing else f"no audio in {shown(paths[0])} or below it"
        )
        raise InputError("; ".join([problem, *found.remarks()]))
    return found


def _below(folder: Path, found: Found, seen: set[tuple[int, int]]) -> list[Path]:
    def failed(error: OSError) -> None:
        found.unread[Path(error.filename)] = error.strerror or str(error)

    audio: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # reached by another way, or a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in (Path(parent, name) for name in names):
            (audio if _is_audio(path) else found.ignored).append(path)
    return audio


def _is_audio(path: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith("._"):  # what macOS puts beside each file of a foreign disk
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        if suffix in _READABLE or suffix in _FOREIGN:
            return True
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return suffix in _READABLE or suffix in _FOREIGN  # to be told: a broken link, no permission
    return head.startswith(_MAGIC) and (
        head[:4] not in (b"RIFF", b"RIFX", b"FORM") or head[8:12] in (b"WAVE", b"AIFF", b"AIFC")
    )
