"""espeak-ng as a function: settings in, waveform out.

Each utterance gets its own voice file (pitch, formants, breath, flutter, roughness ...), which espeak-ng reads from a
private view of its data directory. Runs one process per utterance (about 15 ms); nothing is installed or changed.
"""

import dataclasses
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile

ESPEAK_RATE_HZ = 22_050


class EspeakError(RuntimeError):
    """espeak-ng is missing or failed; the message names the fix."""


@dataclasses.dataclass(frozen=True)
class VoiceSettings:
    """A voice for espeak-ng. Factors and percentages are relative to the variant's value."""

    language: str  # espeak-ng language, e.g. "de"
    variant: str  # base voice variant whose file is extended, e.g. "m3"; "" for none
    pitch_low_hz: float
    pitch_high_hz: float
    words_per_minute: float
    formants: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0),) * 5  # factors of frequency, height, width
    flutter: float = 2.0
    roughness: int = 0
    consonants_percent: float = 100.0
    word_gap_ms: int = 0  # between words, at espeak-ng's usual rate; steps of 10
    klatt: int = 0  # 0: espeak-ng's own synthesizer; 1..6: a Klatt source


def find_data_dir() -> Path:
    """The installed ``espeak-ng-data``; raises EspeakError with the fix when espeak-ng is not there."""
    binary = shutil.which("espeak-ng")
    if binary is None:
        raise EspeakError(
            "espeak-ng not found: install it (Debian: apt-get install espeak-ng; macOS: brew install espeak-ng)"
        )
    output = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    path = Path(output.rsplit("Data at:", 1)[-1].strip())
    if not path.is_dir():
        raise EspeakError(f"espeak-ng's data directory {str(path)!r} does not exist: reinstall espeak-ng")
    return path


def version() -> str:
    """Version of the installed espeak-ng, e.g. ``1.51``."""
    find_data_dir()
    output = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    return output.split("text-to-speech:", 1)[-1].split()[0]


class Espeak:
    """A context manager around a private view of espeak-ng's data. Not to be shared between threads."""

    def __init__(self) -> None:
        self._data = find_data_dir()
        self._folder = tempfile.TemporaryDirectory(prefix="kibun-espeak-")
        self._variants = Path(self._folder.name) / "espeak-ng-data" / "voices" / "!v"
        self._variants.mkdir(parents=True)
        for source, target in (
            (self._data, self._variants.parent.parent),
            (self._data / "voices", self._variants.parent),
        ):
            for name in os.listdir(source):
                if name not in ("voices", "!v"):
                    (target / name).symlink_to(source / name)

    def __enter__(self) -> "Espeak":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def speak(self, settings: VoiceSettings, ssml: str) -> np.ndarray:
        """Render ``ssml`` to float32 mono at 22,050 Hz; raises EspeakError when espeak-ng fails."""
        (self._variants / "kibun").write_text(self._voice_file(settings), encoding="utf-8")
        # -z: no pause at the end; -m: SSML.
        rate, gap = str(round(settings.words_per_minute)), str(settings.word_gap_ms // 10)
        voice = f"{settings.language}+kibun"
        command = ["espeak-ng", f"--path={self._folder.name}", "-v", voice, "-s", rate, "-g", gap, "-z", "-m"]
        command += ["--stdout", ssml]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode or not done.stdout:
            raise EspeakError(f"espeak-ng failed for voice {voice!r}: {done.stderr.decode(errors='replace').strip()}")
        audio, rate_hz = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
        if rate_hz != ESPEAK_RATE_HZ:
            raise EspeakError(f"espeak-ng gave {rate_hz} Hz, expected {ESPEAK_RATE_HZ}: use an unmodified espeak-ng")
        return np.asarray(audio, dtype=np.float32)

    def _voice_file(self, settings: VoiceSettings) -> str:
        lines = []
        formants = {number: [100.0, 100.0, 100.0] for number in range(1, 6)}
        if settings.variant:
            for line in (self._data / "voices" / "!v" / settings.variant).read_text(encoding="utf-8").splitlines():
                words = line.split("//")[0].split()
                if not words or words[0] in ("language", "name", "gender", "pitch", "flutter", "roughness", "breath"):
                    continue
                if words[0] == "formant" and words[1].isdigit() and int(words[1]) in formants:
                    values = [float(word) for word in words[2:5]]
                    formants[int(words[1])][: len(values)] = values
                elif words[0] not in ("klatt", "consonants", "echo", "breathw"):
                    lines.append(line)
        for number, (frequency, height, width) in formants.items():
            own = settings.formants[number - 1]
            lines.append(f"formant {number} {frequency * own[0]:.0f} {height * own[1]:.0f} {width * own[2]:.0f}")
        lines.append(f"pitch {settings.pitch_low_hz:.0f} {settings.pitch_high_hz:.0f}")
        lines.append(f"flutter {settings.flutter:.0f}")
        lines.append(f"roughness {settings.roughness}")
        lines.append(f"consonants {settings.consonants_percent:.0f} {settings.consonants_percent:.0f}")
        if settings.klatt:
            lines.append(f"klatt {settings.klatt}")
        return "language variant\nname kibun\n" + "\n".join(lines) + "\n"
