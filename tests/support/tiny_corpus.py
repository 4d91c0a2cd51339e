"""A corpus of tones in seconds: valence is a pitch, openness another, and a word is a chord. Labels can be heard."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from kibun.models._transformers import quiet
from kibun.models.encoders import encoder_config, encoder_of
from kibun.models.types import TRAITS
from tests.support.tiny_hubert import HUBERT

WORDS = ("one", "two", "three", "four")


def make_corpus(folder: Path, dialogues: tuple[int, int, int] = (6, 2, 2), per_speaker: int = 4, seed: int = 0) -> Path:
    """Two speakers a dialogue; returns the manifest. ``dialogues``: of train, dev and test."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in zip(("train", "dev", "test"), dialogues, strict=True):
        for dialogue in range(count):
            for gender in ("female", "male"):
                traits = rng.uniform(2, 6, 5)
                for number in range(per_speaker):
                    size = int(rng.uniform(0.3, 0.7) * 16_000)
                    time_s = np.arange(size) / 16_000
                    valence = float(rng.uniform(1, 5))
                    audio = 0.2 * np.sin(2 * np.pi * (200 + 60 * valence) * time_s) + 0.01 * rng.normal(size=size)
                    audio += 0.05 * np.sin(2 * np.pi * (1000 + 300 * traits[0]) * time_s)
                    name = f"{split}{dialogue}{gender}{number}"
                    soundfile.write(folder / f"{name}.wav", audio, 16_000, subtype="PCM_16")
                    rows.append(
                        {
                            "id": name,
                            "path": f"{name}.wav",
                            "speaker": f"{split}{dialogue}{gender}",
                            "dialogue": f"{split}{dialogue}",
                            "split": split,
                            "gender": gender,
                            "license": "CC-BY-4.0" if split == "train" else None,
                            "valence": valence,
                            "arousal": 6 - valence,
                            "text": " ".join(rng.choice(WORDS, 2)) if number else "",
                            "seconds": size / 16_000,
                            "traits": dict(zip(TRAITS, map(float, traits), strict=True)),
                        }
                    )
    return write_manifest(folder, rows)


def write_manifest(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """`folder`/manifest.jsonl with these lines."""
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return manifest


def make_hubert(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A tiny checkpoint with random weights, in transformers' layout: a HuBERT's, or of the `model_type` given."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        config = encoder_config({**HUBERT, **settings})
        encoder_of(config).model(config).save_pretrained(folder)
    return folder
