"""Renders a labelled corpus with espeak-ng: audio files and a JSONL manifest, the same for the same seed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from kibun.models.types import SAMPLE_RATE_HZ, TRAITS
from kibun.training.corpora.manifest import MANIFEST_NAME
from kibun.training.corpora.rendering import LICENSE, render_in_order
from kibun.training.corpora.splits import Split
from kibun.training.demo_tiny.effects import finish
from kibun.training.demo_tiny.espeak import Espeak, find_data_dir, version
from kibun.training.demo_tiny.speakers import (
    RATE_OCTAVES,
    Cues,
    Speaker,
    draw_cues,
    draw_speaker,
    speech_markup,
    voice_settings,
)
from kibun.training.demo_tiny.texts import make_text


@dataclasses.dataclass(frozen=True)
class CorpusOptions:
    """What to render."""

    utterances: int = 6000
    utterances_per_speaker: int = 20
    seed: int = 0
    min_seconds: float = 1.5
    max_seconds: float = 4.5
    dev_share: float = 0.12  # half of them choose, half calibrate
    test_share: float = 0.08
    audio_format: str = "flac"  # "flac" or "wav", 16 bit

    def __post_init__(self) -> None:
        if self.utterances < 1 or self.utterances_per_speaker < 1:
            raise ValueError("utterances and utterances_per_speaker must be at least 1")
        if not 0.5 <= self.min_seconds <= self.max_seconds <= 30:
            raise ValueError("seconds: 0.5 <= min_seconds <= max_seconds <= 30")
        if self.audio_format not in ("flac", "wav"):
            raise ValueError(f"audio_format must be 'flac' or 'wav', not {self.audio_format!r}")

    def command(self) -> str:
        """The command line that renders this corpus."""
        return (
            f"kibun synth speech --out corpus --utterances {self.utterances} --seed {self.seed}"
            f" --per-speaker {self.utterances_per_speaker} --min-seconds {self.min_seconds:g}"
            f" --max-seconds {self.max_seconds:g} --format {self.audio_format}"
        )

    def speaker_splits(self) -> list[Split]:
        """The split of every speaker; each split has at least one when there are three or more."""
        count = max(1, -(-self.utterances // self.utterances_per_speaker))
        dev, test = (max(1, round(count * share)) for share in (self.dev_share, self.test_share))
        if count < 3:
            return ["train"] * count
        return [*["train"] * (count - dev - test), *["dev"] * dev, *["test"] * test]  # type: ignore[list-item]


def render_utterance(
    espeak: Espeak,
    speaker: Speaker,
    cues: Cues,
    words: list[str],
    rng: np.random.Generator,
    mark: str | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """One utterance: 16 kHz float32 audio and the settings that made it; ``mark`` as in `speech_markup`."""
    settings = voice_settings(speaker, cues, rng)
    audio = finish(espeak.speak(settings, speech_markup(words, speaker, cues, rng, mark)), speaker, cues, rng)
    return audio, dataclasses.asdict(settings)


def _render_speaker(index: int, split: Split, options: CorpusOptions, folder: Path) -> list[dict[str, Any]]:
    # Everything about a speaker hangs on (seed, index) alone, so the number of jobs changes nothing.
    rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(index,)))
    speaker = draw_speaker(rng, f"{split}-{index:05d}", split)
    (folder / "audio" / speaker.name).mkdir(parents=True, exist_ok=True)
    rows = []
    with Espeak() as espeak:
        for number in range(options.utterances_per_speaker):
            cues = draw_cues(rng)
            seconds = rng.uniform(options.min_seconds, options.max_seconds)
            rate = speaker.words_per_minute * 2 ** (RATE_OCTAVES * cues.rate)
            words = make_text(rng, speaker.language.split("-")[0], split, round(seconds * rate / 60) + 1)
            audio, settings = render_utterance(espeak, speaker, cues, words, rng)
            audio = audio[: int(options.max_seconds * SAMPLE_RATE_HZ)]
            path = Path("audio") / speaker.name / f"{number:03d}.{options.audio_format}"
            soundfile.write(folder / path, audio, SAMPLE_RATE_HZ, subtype="PCM_16")
            rows.append(
                {
                    "path": path.as_posix(),
                    "speaker": speaker.name,
                    "dialogue": speaker.name,
                    "split": split,
                    "text": " ".join(words),
                    "seconds": round(len(audio) / SAMPLE_RATE_HZ, 3),
                    "arousal": cues.arousal(),
                    "valence": cues.valence(),
                    "traits": dict(zip(TRAITS, speaker.trait_scores(), strict=True)),
                    "gender": speaker.gender,
                    "license": LICENSE,
                    "settings": {
                        "cues": {name: round(value, 4) for name, value in dataclasses.asdict(cues).items()},
                        "espeak": _rounded(settings),
                        "formant_scale": round(speaker.formant_scale, 4),
                        "tilt_db_per_octave": round(speaker.tilt_db_per_octave, 3),
                    },
                }
            )
    return rows


def _rounded(value: Any) -> Any:
    """``value`` with every float in it rounded for the manifest."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


def render_corpus(
    folder: Path, options: CorpusOptions, jobs: int = 1, progress: Callable[[int], None] = lambda count: None
) -> Path:
    """Render the corpus into ``folder`` and return the manifest's path.

    ``progress`` is called with the number of new utterances. Raises EspeakError when espeak-ng is missing.
    """
    find_data_dir()  # fail before any file is written
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(index, split, options, folder) for index, split in enumerate(options.speaker_splits())]
    (folder / "corpus.json").write_text(
        json.dumps({"command": options.command(), "espeak_ng": version(), **dataclasses.asdict(options)}, indent=2)
        + "\n",
        encoding="utf-8",
    )
    manifest = folder / MANIFEST_NAME
    left = options.utterances
    with manifest.open("w", encoding="utf-8") as file:
        for rows in render_in_order(_render_speaker, tasks, jobs):
            for row in rows[:left]:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            left -= min(left, len(rows))
            progress(len(rows))
    return manifest
