"""Pairs of an utterance as it is and made more or less aroused, for a loss on differences.

A model that has seen only generated voices mistakes much in a real voice for arousal. Trained on how two versions of
one voice must differ, it learns the cues rather than the voices that happen to have them.
"""

import dataclasses

import numpy as np

from kibun.training.demo_tiny.effects import EFFORT_DB_PER_OCTAVE
from kibun.training.demo_tiny.manipulate import change_rate, change_tilt, limit_band, shift_pitch
from kibun.training.demo_tiny.speakers import AROUSAL_PER_UNIT, AROUSAL_WEIGHTS, PITCH_SEMITONES, RATE_OCTAVES

LARGEST = np.array([4.0, 0.4, 3.0])  # semitones, octaves of speaking rate, dB per octave
KINDS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])  # which cues change
KIND_SHARES = np.array([0.3, 0.15, 0.15, 0.4])
OWN_SHARE = 0.3  # how far the cues of a change in all three may differ from each other


@dataclasses.dataclass(frozen=True)
class Change:
    """How a version differs from the original; all three 0: not at all."""

    semitones: float
    rate_octaves: float
    db_per_octave: float

    def arousal(self) -> float:
        """Change of the label on the 1..5 scale, by the weights and units of the generator's cues."""
        return AROUSAL_PER_UNIT * (
            AROUSAL_WEIGHTS["pitch"] * self.semitones / PITCH_SEMITONES
            + AROUSAL_WEIGHTS["rate"] * self.rate_octaves / RATE_OCTAVES
            + AROUSAL_WEIGHTS["effort"] * self.db_per_octave / EFFORT_DB_PER_OCTAVE
        )


def draw_change(rng: np.random.Generator) -> Change:
    """One cue alone or all of them, up or down, at a random strength."""
    kind = KINDS[rng.choice(len(KINDS), p=KIND_SHARES)]  # (3,)
    strength = rng.uniform(-1, 1) + (OWN_SHARE * rng.uniform(-1, 1, 3) if kind.all() else 0.0)
    semitones, rate_octaves, db_per_octave = LARGEST * kind * strength
    return Change(float(semitones), float(rate_octaves), float(db_per_octave))


def make_pair(audio: np.ndarray, change: Change) -> tuple[np.ndarray, np.ndarray]:
    """(N,) at 16 kHz -> the original and its changed version, (M,) float32 each, M <= N.

    Both end with the shorter of the two and have the same band, so that they differ in neither length nor bandwidth.
    """
    original = np.asarray(audio, dtype=np.float64)
    changed = shift_pitch(original, change.semitones)
    if change.rate_octaves:
        changed = change_rate(changed, 2**change.rate_octaves)
    if change.db_per_octave:
        changed = change_tilt(changed, change.db_per_octave)
    size = min(len(original), len(changed))
    one, other = (limit_band(version[:size]).astype(np.float32) for version in (original, changed))
    return one, other
