"""Simulated features: frames as an encoder might make them, without any encoder.

A cue lasts two frames. A frame is the cue's embedding, moved along another one by the intensity, coloured and shifted
by the speaker's timbre, with noise on top: all in fixed random directions of an H-dimensional space. The previous
cue is not in a frame; an encoder that sees several frames has to infer it.

With evidence, a cue also shows two of the speaker's traits, under noise that is new in every utterance.
"""

import numpy as np
from numpy.typing import NDArray

from kibun.training.simulation.world import CUE_NAMES, Floats, Scenes

FRAMES_PER_CUE = 2
TIMBRE_SIZE = 8  # independent ways in which voices differ
FRAME_NOISE = 0.5  # sd in each direction; cues differ by about 1.4
MANNER_SPREAD = 1.5  # standard deviation, in units of a trait, of the noise on a trait in one utterance


def draw_frames(
    scenes: Scenes, rng: np.random.Generator, *, size: int, world_seed: int, evidence: float = 0.0
) -> NDArray[np.float32]:
    """Frames of all utterances, (P, U, 8, size); every speaker gets a new timbre.

    evidence: strength with which traits show; 0: not at all.
    """
    directions = np.random.default_rng(np.random.SeedSequence(world_seed, spawn_key=(4, size)))
    by_cue, by_intensity = directions.normal(size=(2, len(CUE_NAMES), size))
    colour, shift = directions.normal(size=(2, TIMBRE_SIZE, size)) / np.sqrt(TIMBRE_SIZE)
    by_trait = directions.normal(size=(5, size)) / np.sqrt(5)
    profiles = len(scenes.z)

    loudness = 2 * (scenes.intensity - 0.6)[..., None]
    frames = by_cue[scenes.cues] + loudness * by_intensity[scenes.cues]  # (P, U, 4, H)
    timbre = rng.normal(size=(profiles, TIMBRE_SIZE))
    frames = frames * (1 + 0.15 * timbre @ colour)[:, None, None] + 0.5 * (timbre @ shift)[:, None, None]
    if evidence:
        frames = frames + evidence * _manner(scenes, rng) @ by_trait
    frames = np.repeat(frames, FRAMES_PER_CUE, axis=2)  # (P, U, 8, H)
    return np.asarray(frames + FRAME_NOISE * rng.normal(size=frames.shape), dtype=np.float32)


def _manner(scenes: Scenes, rng: np.random.Generator) -> Floats:
    """(P, U, 4, 5) strength with which each cue shows each trait; a cue of type c shows traits c and c + 1 alone."""
    profiles, utterances, _ = scenes.cues.shape
    noisy = scenes.z[:, None] + MANNER_SPREAD * rng.normal(size=(profiles, utterances, 5))  # (P, U, 5)
    shows = np.eye(5) + np.roll(np.eye(5), 1, axis=1)  # by type
    return np.asarray(shows[scenes.cues] * noisy[:, :, None])
