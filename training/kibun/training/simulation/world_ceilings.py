"""The best CCC that any estimate could reach on the simulated data, by Monte Carlo.

No function of a predictor's inputs correlates better with valence than the conditional expectation given it, and
concordance never exceeds correlation. So the correlation of that expectation with valence bounds every head:

    none      E[v | segments], the mean over many other profiles
    additive  E[v | segments] + E[v | traits]: the best sum of a function of the segments and one of the traits, since
              the two are drawn independently of each other
    full      E[v | segments, traits]: the simulation without its noise

The bounds are for a head that knows every cue and intensity exactly; one that infers them through noise and a new
voice stays below. They are computed on the scenes that heads are tested on.
"""

import dataclasses

import numpy as np

from kibun.training.simulation.world import EMOTION_RANGE, Floats, Scenes, World, draw_profiles, draw_segments


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Highest CCC of valence without traits, with traits that only shift, and with traits that interact."""

    none: float
    additive: float
    full: float


def ceilings(world: World, scenes: Scenes, seed: int, samples: int = 1000) -> Ceilings:
    """Ceilings on these scenes; `samples` profiles, and as many utterances, stand for their distributions."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    by_segments = np.mean(
        [world.valence(z, scenes.cues, scenes.intensity) for z in draw_profiles(rng, samples)], axis=0
    )  # (P, U)
    cues, intensity = draw_segments(rng, samples)
    by_traits = np.array([world.valence(z, cues, intensity).mean() for z in scenes.z])  # (P,)
    full = np.clip(world.valence(scenes.z[:, None], scenes.cues, scenes.intensity), *EMOTION_RANGE)
    return Ceilings(
        none=_correlation(by_segments, scenes.valence),
        additive=_correlation(by_segments + by_traits[:, None], scenes.valence),
        full=_correlation(full, scenes.valence),
    )


def _correlation(first: Floats, second: Floats) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
