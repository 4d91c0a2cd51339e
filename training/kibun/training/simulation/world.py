"""Simulated data with known ground truth: rules by which cues in a voice and the speaker's traits make valence.

An utterance is four cue segments of five types, each with an intensity. The effect of a cue on valence depends on the
speaker (traits change its sign and its weight) and on the cue before it:

    v = 3 + 2 · sum_k softmax_k(G[c_k] · z) · e_k · tanh(a[c_k] + B[c_k] · z) · flip[c_(k-1)] + 0.3 · m · z + noise

z are the five traits as deviations from 4. Arousal is a dimension without any interaction: intensity plus a share of
the traits. In a control world G = B = 0: traits only shift valence there.

Everything is drawn by numpy generators from seeds, so the same seed gives the same world and the same scenes.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CUE_NAMES = ("rise", "fall", "peak", "dip", "flat")
"""The five types of cue, named after their pitch contour in the audio version."""

SEGMENTS = 4  # cues per utterance
TRAIT_CENTRE, TRAIT_REACH = 4.0, 3.0  # traits are 4 + z, within 1..7
QUIETEST, LOUDEST = 0.2, 1.0  # intensity e
EMOTION_RANGE = (0.5, 5.5)  # labels are clipped to what IEMOCAP's means of raters reach
NOISE = 0.2  # standard deviation of the unpredictable part, on the emotion scale


@dataclasses.dataclass(frozen=True)
class World:
    """The rules by which segments and traits make valence and arousal; rows of (5, 5) are cue types, columns traits.

    salience: G, (5, 5). bias: a, (5,). sign: B, (5, 5). flip: (6,) of ±1 by the cue before, at first "none".
    offset: m, (5,). arousal_offset: (5,).
    """

    salience: Floats
    bias: Floats
    sign: Floats
    flip: Floats
    offset: Floats
    arousal_offset: Floats

    def valence(self, z: Floats, cues: Integers, intensity: Floats) -> Floats:
        """Valence without noise, not clipped: z (..., 5), cues and intensity (..., 4), broadcastable -> (...)."""
        weight = np.exp(_of_cue(z @ self.salience.T, cues))  # (..., 4)
        weight = weight / weight.sum(axis=-1, keepdims=True)
        sign = _of_cue(np.tanh(self.bias + z @ self.sign.T), cues)  # (..., 4)
        before = np.concatenate([np.zeros_like(cues[..., :1]), cues[..., :-1] + 1], axis=-1)  # (..., 4)
        contribution = (weight * intensity * sign * self.flip[before]).sum(axis=-1)
        return np.asarray(3 + 2 * contribution + 0.3 * (z @ self.offset))

    def arousal(self, z: Floats, intensity: Floats) -> Floats:
        """Arousal without noise, not clipped: z (..., 5), intensity (..., 4) -> (...)."""
        middle = (QUIETEST + LOUDEST) / 2
        return np.asarray(3 + 4 * (intensity.mean(axis=-1) - middle) + 0.3 * (z @ self.arousal_offset))


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The utterances of P speakers, U each: z (P, 5), cues and intensity (P, U, 4), valence and arousal (P, U)."""

    z: Floats
    cues: Integers
    intensity: Floats
    valence: Floats
    arousal: Floats

    @property
    def traits(self) -> Floats:
        """(P, 5) on the scale 1..7."""
        return TRAIT_CENTRE + self.z


def make_world(seed: int = 0, *, interaction: bool = True) -> World:
    """The world of this seed; without interaction, traits only shift valence (the control world)."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    salience, sign = 1.5 * _unit_rows(rng), 1.5 * _unit_rows(rng)
    bias = rng.permutation([-1.0, -0.5, 0.0, 0.5, 1.0])
    flip = np.concatenate([[1.0], rng.permutation([1.0, 1.0, 1.0, -1.0, -1.0])])
    offset, arousal_offset = _unit_rows(rng)[:2]
    if not interaction:
        salience, sign = np.zeros_like(salience), np.zeros_like(sign)
    return World(salience, bias, sign, flip, offset, arousal_offset)


def draw_profiles(rng: np.random.Generator, count: int) -> Floats:
    """(count, 5) traits as deviations from 4, independent, standard normal within ±3."""
    return np.clip(rng.normal(size=(count, 5)), -TRAIT_REACH, TRAIT_REACH)


def draw_segments(rng: np.random.Generator, *shape: int) -> tuple[Integers, Floats]:
    """Cue types and intensities, (*shape, 4) each, independent of who speaks."""
    cues = rng.integers(0, len(CUE_NAMES), (*shape, SEGMENTS))
    return cues, rng.uniform(QUIETEST, LOUDEST, (*shape, SEGMENTS))


def draw_scenes(world: World, rng: np.random.Generator, profiles: int, utterances: int) -> Scenes:
    """Draw speakers with their traits, and the utterances of each."""
    z = draw_profiles(rng, profiles)
    cues, intensity = draw_segments(rng, profiles, utterances)
    valence = world.valence(z[:, None], cues, intensity) + NOISE * rng.normal(size=(profiles, utterances))
    arousal = world.arousal(z[:, None], intensity) + NOISE * rng.normal(size=(profiles, utterances))
    return Scenes(z, cues, intensity, np.clip(valence, *EMOTION_RANGE), np.clip(arousal, *EMOTION_RANGE))


def _of_cue(table: Floats, cues: Integers) -> Floats:
    """(..., 5) values by cue type -> (..., 4) values of these cues."""
    shape = np.broadcast_shapes(table.shape[:-1], cues.shape[:-1])
    table, cues = np.broadcast_to(table, (*shape, table.shape[-1])), np.broadcast_to(cues, (*shape, cues.shape[-1]))
    return np.take_along_axis(table, cues, axis=-1)


def _unit_rows(rng: np.random.Generator) -> Floats:
    """(5, 5), each row of length one in a random direction."""
    rows = rng.normal(size=(5, 5))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
