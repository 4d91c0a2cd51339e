"""Does a bundle's arousal follow pitch, rate and spectral tilt in real voices, and across voices?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from kibun.models.bundle import load_bundle
from kibun.models.model import KibunModel
from kibun.models.types import SAMPLE_RATE_HZ, Utterance
from kibun.training.demo_tiny.manipulate import (
    CUES,
    Cue,
    change_rate,
    change_tilt,
    cut_at_pauses,
    manipulate,
    shift_pitch,
)
from kibun.training.evaluation.metrics import auc
from kibun.training.evaluation.report_table import Cell, Row, Table

Audio = npt.NDArray[np.float64]  # (N,) mono at 16 kHz

LEVELS = (-2, -1, 0, 1, 2)
PITCH_SEMITONES, RATE_OCTAVES, TILT_DB_PER_OCTAVE = 5.0, 0.3, 2.5  # at full strength
CUE_NOISE = np.array([1.2, 0.1, 0.8])  # standard deviation on each of them


def measure(model_name: str, recordings: Sequence[Path]) -> tuple[dict[str, object], Table]:
    """Mean arousal (1..5) of each recording's pieces at five levels of each cue, as JSON and as a table.

    Every recording is cut at its pauses and each piece made lower, slower and softer, or higher, faster and more
    strained.
    """
    model = load_bundle(model_name)
    rows = [_row(model, path.name, pieces, cue) for path in recordings for pieces in [_pieces(path)] for cue in CUES]
    columns = ("recording, cue", *(f"{level:+d}" for level in LEVELS), "change", "monotone", "pieces that rise")
    table = Table(f"Arousal of {model_name} by level", columns, tuple(row for _, row in rows))
    return {"model": model_name, "levels": LEVELS, "rows": [figures for figures, _ in rows]}, table


def measure_pooled(model_name: str, folder: Path, seed: int = 0) -> tuple[dict[str, object], Table]:
    """The area under the ROC curve of aroused against subdued, speakers pooled, as JSON and as a table.

    folder: holds one folder of recordings per speaker. Every recording is made into an aroused and a subdued version,
    each at a random strength and with its own noise on every cue, so that cues contradict each other at times. Nothing
    is calibrated by speaker: a high male voice has to stand above a low female one.
    """
    rng = np.random.default_rng(seed)
    model = load_bundle(model_name)
    high, low, means = {}, {}, {}
    for speaker in sorted(path for path in folder.iterdir() if path.is_dir()):
        recordings = [_read(path) for path in sorted(speaker.iterdir())]
        means[speaker.name] = float(_arousal(model, recordings).mean())
        high[speaker.name] = _arousal(model, [_version(audio, 1.0, rng) for audio in recordings])
        low[speaker.name] = _arousal(model, [_version(audio, -1.0, rng) for audio in recordings])
    by_speaker = {name: auc(high[name], low[name]) for name in high}
    pooled = auc(np.concatenate(list(high.values())), np.concatenate(list(low.values())))
    spread = float(np.std(list(means.values())))
    figures = {
        "auc_pooled": pooled,
        "auc_by_speaker": by_speaker,
        "untouched_mean": means,
        "untouched_spread": spread,
        "recordings": sum(map(len, high.values())),
    }
    rows = [Row(name, (Cell(by_speaker[name]), Cell(means[name]))) for name in high]
    rows.append(Row("all, pooled", (Cell(pooled), Cell(None))))
    notes = (f"the means of the untouched recordings spread by {spread:.2f} (standard deviation over speakers)",)
    return figures, Table("Aroused against subdued", ("speaker", "AUC", "untouched mean"), tuple(rows), notes)


def _row(model: KibunModel, name: str, pieces: list[Audio], cue: Cue) -> tuple[dict[str, object], Row]:
    scores = np.stack([_arousal(model, [manipulate(piece, cue, level) for piece in pieces]) for level in LEVELS])
    means = scores.mean(axis=1)  # (5, pieces) -> (5,)
    rising, monotone = int((scores[-1] > scores[0]).sum()), bool((np.diff(means) > 0).all())
    change = float(means[-1] - means[0])
    figures = {
        "recording": name,
        "cue": cue,
        "arousal": [round(float(mean), 3) for mean in means],
        "change": round(change, 3),
        "rises_at_every_step": monotone,
        "pieces_that_rise": rising,
        "pieces": len(pieces),
    }
    cells = [*map(float, means), change, "yes" if monotone else "no", f"{rising}/{len(pieces)}"]
    return figures, Row(f"{name}, {cue}", tuple(map(Cell, cells)))


def _version(audio: Audio, direction: float, rng: np.random.Generator) -> Audio:
    """The recording more (+1) or less (-1) aroused, at a quarter to 85 % of full strength."""
    strength = direction * rng.uniform(0.25, 0.85)
    full = np.array([PITCH_SEMITONES if direction > 0 else 0.3 * PITCH_SEMITONES, RATE_OCTAVES, TILT_DB_PER_OCTAVE])
    pitch, rate, tilt = strength * full + CUE_NOISE * rng.normal(size=3)
    return change_tilt(change_rate(shift_pitch(audio, pitch), 2**rate), tilt)


def _pieces(path: Path) -> list[Audio]:
    return cut_at_pauses(_read(path))


def _read(path: Path) -> Audio:
    audio, rate_hz = soundfile.read(path, always_2d=True)
    return np.asarray(soxr.resample(audio.mean(axis=1), rate_hz, SAMPLE_RATE_HZ))


def _arousal(model: KibunModel, pieces: Sequence[npt.NDArray[np.floating]]) -> Audio:
    """(pieces,): each as its speaker's first utterance, traits predicted."""
    nothing = np.zeros((0, model.vector_size), np.float16)
    answers = model.analyze([Utterance(np.asarray(piece, np.float32), nothing) for piece in pieces])
    return np.array([answer.arousal for answer in answers])
