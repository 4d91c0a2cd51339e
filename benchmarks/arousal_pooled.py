"""Does a bundle rank high above low arousal when many real speakers are pooled?

    python benchmarks/arousal_pooled.py FOLDER [--model demo-tiny] [--json]

FOLDER has one folder of recordings per speaker. Every recording is made into an aroused and a subdued version, each at
a random strength and with noise of its own on every cue (pitch, rate, tilt), so that cues contradict each other at
times. Speakers are pooled without any calibration: a high male voice has to stand above a low female one.
Prints the area under the ROC curve of high against low over all speakers, each speaker's own, and the spread of
the untouched recordings' means over speakers (in points of the 1..5 scale).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from arousal_transfer import arousal, read

from kibun.models.bundle import load_bundle
from kibun.training.demo_tiny.manipulate import change_rate, change_tilt, shift_pitch
from kibun.training.evaluation.metrics import auc

PITCH_SEMITONES, RATE_OCTAVES, TILT_DB_PER_OCTAVE = 5.0, 0.3, 2.5  # at full strength
NOISE = np.array([1.2, 0.1, 0.8])  # sd on each of them


def version(audio: np.ndarray, direction: float, rng: np.random.Generator) -> np.ndarray:
    """``audio`` more (+1) or less (-1) aroused, at a quarter to 85 % of full strength."""
    strength = direction * rng.uniform(0.25, 0.85)
    full = np.array([PITCH_SEMITONES if direction > 0 else 0.3 * PITCH_SEMITONES, RATE_OCTAVES, TILT_DB_PER_OCTAVE])
    pitch, rate, tilt = strength * full + NOISE * rng.normal(size=3)
    return change_tilt(change_rate(shift_pitch(audio, pitch), 2**rate), tilt)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="demo-tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    model = load_bundle(options.model)
    high, low, means = {}, {}, {}
    for folder in sorted(path for path in options.folder.iterdir() if path.is_dir()):
        recordings = [read(path) for path in sorted(folder.iterdir())]
        means[folder.name] = float(arousal(model, recordings).mean())
        high[folder.name] = arousal(model, [version(audio, 1.0, rng) for audio in recordings])
        low[folder.name] = arousal(model, [version(audio, -1.0, rng) for audio in recordings])
    figures = {
        "auc_pooled": auc(np.concatenate(list(high.values())), np.concatenate(list(low.values()))),
        "auc_by_speaker": {name: auc(high[name], low[name]) for name in high},
        "untouched_mean": means,
        "untouched_spread": float(np.std(list(means.values()))),
        "recordings": sum(map(len, high.values())),
    }
    if options.as_json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{figures['recordings']} recordings of {len(high)} speakers")
    print(f"AUC, speakers pooled: {figures['auc_pooled']:.3f}")
    for name in high:
        print(f"  {name:<24} AUC {auc(high[name], low[name]):.3f}   untouched {means[name]:.2f}")
    print(f"spread of untouched means over speakers: {figures['untouched_spread']:.2f}")


if __name__ == "__main__":
    main()
