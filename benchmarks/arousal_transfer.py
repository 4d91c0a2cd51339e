"""Does a bundle's arousal follow pitch, rate and spectral tilt in real voices?

    python benchmarks/arousal_transfer.py jfk.flac lj050-0131.wav [--model demo-tiny] [--json]

Cuts each recording at its pauses, makes every piece lower/slower/softer and higher/faster/more strained in five
steps, and prints the mean arousal (1..5) of the pieces at each step, and how many pieces score higher at +2 than at -2.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from kibun.models.bundle import KibunModel, Utterance, load_bundle
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.demo_tiny.manipulate import CUES, cut_at_pauses, manipulate

LEVELS = (-2, -1, 0, 1, 2)


def read(path: Path) -> np.ndarray:
    """Mono float64 at 16 kHz."""
    audio, rate_hz = soundfile.read(path, always_2d=True)
    return np.asarray(soxr.resample(audio.mean(axis=1), rate_hz, SAMPLE_RATE_HZ))


def arousal(model: KibunModel, pieces: list[np.ndarray]) -> np.ndarray:
    """Arousal of each piece as its speaker's first utterance, traits predicted."""
    nothing = np.zeros((0, model.vector_size), np.float16)
    answers = model.analyze([Utterance(np.asarray(piece, np.float32), nothing) for piece in pieces])
    return np.array([answer.arousal for answer in answers])


def measure(model: KibunModel, path: Path) -> list[dict[str, object]]:
    """One row per cue."""
    pieces = cut_at_pauses(read(path))
    rows: list[dict[str, object]] = []
    for cue in CUES:
        scores = np.stack([arousal(model, [manipulate(piece, cue, level) for piece in pieces]) for level in LEVELS])
        means = scores.mean(axis=1)  # (5, P) -> (5,)
        rows.append(
            {
                "recording": path.name,
                "cue": cue,
                "arousal": [round(float(mean), 3) for mean in means],
                "change": round(float(means[-1] - means[0]), 3),
                "rises_at_every_step": bool((np.diff(means) > 0).all()),
                "pieces_that_rise": int((scores[-1] > scores[0]).sum()),
                "pieces": len(pieces),
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--model", default="demo-tiny")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_bundle(options.model)
    rows = [row for path in options.recordings for row in measure(model, path)]
    if options.as_json:
        print(json.dumps({"model": options.model, "levels": LEVELS, "rows": rows}, indent=2))
        return
    print(f"{'recording':<18}{'cue':<7}" + "".join(f"{level:>+7d}" for level in LEVELS) + "   change  monotone  pieces")
    for row in rows:
        scores = "".join(f"{value:7.2f}" for value in row["arousal"])  # type: ignore[attr-defined]
        monotone = "yes" if row["rises_at_every_step"] else "no"
        share = f"{row['pieces_that_rise']}/{row['pieces']}"
        print(f"{row['recording']:<18}{row['cue']:<7}{scores}{row['change']:>+9.2f}  {monotone:<8}  {share}")


if __name__ == "__main__":
    main()
