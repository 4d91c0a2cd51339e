"""Writes the simulated data as a corpus: audio files and a manifest, or features in one file.

Two speakers take turns in a dialogue, and each speaks in one only. Labels are the ground truth: valence, arousal,
traits, and the names of the cues as text. The same seed gives the same files, whatever the number of processes.
"""

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
from kibun.training.simulation.world import Scenes, draw_scenes, make_world
from kibun.training.simulation.world_audio import cue_text, draw_manner, draw_voice, render
from kibun.training.simulation.world_ceilings import ceilings
from kibun.training.simulation.world_features import draw_frames

HELD_OUT_SHARE = 0.15  # of the dialogues, in dev and in test each


@dataclasses.dataclass(frozen=True)
class WorldCorpusOptions:
    """What to render."""

    dialogues: int = 200  # two speakers each
    utterances: int = 10  # of each speaker in a dialogue
    seed: int = 0  # of speakers and utterances
    world: int = 0  # seed of the rules
    interaction: bool = True  # False: the control world
    evidence: float = 1.0  # how audible traits are; 0: not at all
    audio_format: str = "flac"  # "flac" or "wav", 16 bit

    def __post_init__(self) -> None:
        if self.dialogues < 3:
            raise ValueError(f"dialogues is {self.dialogues}, must be at least 3: one for each split")
        if self.utterances < 1:
            raise ValueError(f"utterances is {self.utterances}, must be at least 1")
        if self.seed < 0 or self.world < 0:
            raise ValueError("seed and world must not be negative")
        if not 0 <= self.evidence <= 10:
            raise ValueError(f"evidence is {self.evidence:g}, must be from 0 to 10")
        if self.audio_format not in ("flac", "wav"):
            raise ValueError(f"format must be 'flac' or 'wav', not {self.audio_format!r}")

    def splits(self) -> list[str]:
        """The split of every dialogue; each split has at least one."""
        held_out = max(1, round(self.dialogues * HELD_OUT_SHARE))
        return [*["train"] * (self.dialogues - 2 * held_out), *["dev"] * held_out, *["test"] * held_out]

    def scenes(self) -> Scenes:
        """The utterances of all speakers; those of dialogue d are 2 d and 2 d + 1."""
        world = make_world(self.world, interaction=self.interaction)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(2,)))
        return draw_scenes(world, rng, 2 * self.dialogues, self.utterances)


def write_world_audio(
    folder: Path,
    options: WorldCorpusOptions,
    jobs: int = 1,
    progress: Callable[[int], None] = lambda dialogues: None,
) -> Path:
    """Render audio, `manifest.jsonl` and `corpus.json` (settings, and the ceilings on test); returns the manifest.

    `progress` is called with the number of new dialogues.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes, splits = options.scenes(), options.splits()
    test = [speaker for speaker in range(2 * options.dialogues) if splits[speaker // 2] == "test"]
    bound = ceilings(make_world(options.world, interaction=options.interaction), speakers(scenes, test), options.seed)
    settings = {**dataclasses.asdict(options), "valence_ceilings_on_test": dataclasses.asdict(bound)}
    (folder / "corpus.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tasks = [
        (dialogue, splits[dialogue], speakers(scenes, [2 * dialogue, 2 * dialogue + 1]), options, folder)
        for dialogue in range(options.dialogues)
    ]
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        for rows in render_in_order(_render_dialogue, tasks, jobs):
            file.writelines(json.dumps(row) + "\n" for row in rows)
            progress(1)
    return folder / MANIFEST_NAME


def speakers(scenes: Scenes, which: list[int]) -> Scenes:
    """The scenes of some of the speakers."""
    return Scenes(*(getattr(scenes, field.name)[which] for field in dataclasses.fields(Scenes)))


def _render_dialogue(
    dialogue: int, split: str, scenes: Scenes, options: WorldCorpusOptions, folder: Path
) -> list[dict[str, Any]]:
    # Everything about a dialogue depends on (seed, dialogue) alone.
    rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(3, dialogue)))
    voices = [draw_voice(rng), draw_voice(rng)]
    name = f"d{dialogue:04d}"
    (folder / "audio" / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for turn in range(options.utterances):
        for side, voice in enumerate(voices):
            manner = draw_manner(rng, scenes.z[side], options.evidence)
            audio = render(voice, scenes.cues[side, turn], scenes.intensity[side, turn], manner, rng)
            identity = f"{name}_{'ab'[side]}{turn:02d}"
            path = Path("audio") / name / f"{identity}.{options.audio_format}"
            soundfile.write(folder / path, audio, SAMPLE_RATE_HZ, subtype="PCM_16")
            rows.append(
                {
                    "id": identity,
                    "path": path.as_posix(),
                    "speaker": f"s{2 * dialogue + side:04d}",
                    "dialogue": name,
                    "split": split,
                    "text": cue_text(scenes.cues[side, turn]),
                    "valence": round(float(scenes.valence[side, turn]), 4),
                    "arousal": round(float(scenes.arousal[side, turn]), 4),
                    "traits": dict(zip(TRAITS, scenes.traits[side].round(4).tolist(), strict=True)),
                    "gender": voice.gender,
                    "license": LICENSE,
                    "seconds": round(len(audio) / SAMPLE_RATE_HZ, 3),
                }
            )
    return rows


def write_world_features(folder: Path, options: WorldCorpusOptions, size: int = 32) -> Path:
    """Write `world.npz`: frames (P, U, 8, size), traits (P, 5), valence, arousal, cues, intensity, split (P,)."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = options.scenes()
    rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(5,)))
    np.savez_compressed(
        folder / "world.npz",
        frames=draw_frames(scenes, rng, size=size, world_seed=options.world, evidence=options.evidence),
        traits=scenes.traits,
        valence=scenes.valence,
        arousal=scenes.arousal,
        cues=scenes.cues,
        intensity=scenes.intensity,
        split=np.repeat(options.splits(), 2),
    )
    return folder / "world.npz"
