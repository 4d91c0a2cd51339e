"""A small generated corpus structured like IEMOCAP: five sessions of two dialogues by two speakers, IEMOCAP's ids."""

from pathlib import Path

import numpy as np
import soundfile

from kibun.models.types import TRAITS
from tests.support.tiny_corpus import write_manifest


def make_sessions(folder: Path, per_speaker: int = 3, seed: int = 0) -> Path:
    """60 utterances of 0.4 s; returns the manifest. Labels are random; valence and openness are audible."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    time_s = np.arange(6400) / 16_000
    for session in range(1, 6):
        for recorded in "FM":
            dialogue = f"Ses0{session}{recorded}_impro01"
            for letter, gender in (("F", "female"), ("M", "male")):
                traits = rng.uniform(2, 6, 5)
                for number in range(per_speaker):
                    valence = float(rng.uniform(1, 5))
                    audio = 0.2 * np.sin(2 * np.pi * (200 + 80 * valence) * time_s) + 0.01 * rng.normal(size=6400)
                    audio += 0.1 * np.sin(2 * np.pi * (1000 + 300 * traits[0]) * time_s)
                    name = f"{dialogue}_{letter}{number:03}"
                    soundfile.write(folder / f"{name}.wav", audio, 16_000, subtype="PCM_16")
                    rows.append(
                        {
                            "id": name,
                            "path": f"{name}.wav",
                            "speaker": f"Ses0{session}{letter}",
                            "dialogue": dialogue,
                            "gender": gender,
                            "text": "yes",
                            "valence": valence,
                            "arousal": float(rng.uniform(1, 5)),
                            "traits": dict(zip(TRAITS, map(float, traits), strict=True)),
                            "seconds": 0.4,
                        }
                    )
    return write_manifest(folder, rows)
