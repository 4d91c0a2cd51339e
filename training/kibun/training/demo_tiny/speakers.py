"""Speakers and manners of speaking: the latent variables behind a generated corpus, and the labels made of them.

A speaker has a body (vocal tract length, habitual pitch, a filter), habits, and five traits. An utterance has five
arousal cues (vocal effort, pitch, pitch range, rate, pausing) and two valence cues (smile, harshness). Cues share a
latent variable and have independent noise; **arousal is the weighted sum of the cues as set**, so a model has to use
every one of them, relative to the speaker. Body and arousal are drawn independently: that a voice is male, female or a
child's, bright or dark, carries no information about arousal.
"""

import dataclasses
import math

import numpy as np

from kibun.training.corpora.splits import Split
from kibun.training.demo_tiny.espeak import VoiceSettings

AROUSAL_WEIGHTS = {"effort": 0.30, "pitch": 0.28, "range": 0.16, "rate": 0.18, "pauses": 0.08}

AROUSAL_PER_UNIT = 1.1  # points of the label when every cue rises by one
PITCH_SEMITONES = 2.8  # per unit of its cue
RATE_OCTAVES = 0.26  # speaking rate per unit of its cue

LANGUAGES: dict[Split, tuple[str, ...]] = {
    "train": (
        "en-us", "en-gb", "de", "de", "fr-fr", "es", "en-gb-scotland", "es-419", "fr-ch", "pl", "pt", "pt-br", "fi",
        "cs", "hu", "tr", "id", "ro", "hr", "da", "lv", "sk", "eo", "sw", "ca", "nb", "sl", "et",
    ),
    "dev": ("nl", "sv", "en-gb-x-rp", "de", "lt"),
    "test": ("it", "af", "en-us-nyc", "de", "eu"),
}  # fmt: skip

VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "", "m1", "m2", "m3", "m4", "m6", "m7", "Andy", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee", "Marco",
        "Michael", "miguel", "aunty", "david", "adam", "f1", "f2", "f4", "f5", "Alicia", "Andrea", "linda", "steph",
        "anika", "grandpa", "Jacky", "john", "norbert", "paul", "quincy", "rob", "sandro", "travis", "victor", "zac",
    ),
    "dev": ("m5", "Gene2", "f3", "Annie", "pedro", "Storm", "caleb"),
    "test": ("m8", "max", "belinda", "steph2", "michel", "ed", "boris", "benjamin"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Speaker:
    """One generated speaker. Frequencies in Hz, tilt in dB per octave."""

    name: str
    split: Split
    gender: str  # "female", "male" or "child": the body drawn, not the variant's name
    language: str
    variant: str
    klatt: int
    formant_scale: float  # 1.0: a man; 1.17: a woman; 1.3: a child
    pitch_hz: float
    pitch_range_semitones: float
    words_per_minute: float
    tilt_db_per_octave: float
    filter_db: tuple[float, ...]  # gains at eight log-spaced frequencies: the speaker's own colour
    formants: tuple[tuple[float, float, float], ...]  # factors of frequency, height, width; first to fifth formant
    effort_band_hz: tuple[float, float]  # between these, effort tilts the spectrum
    breath: float
    traits: tuple[float, ...]  # five z-scores

    def trait_scores(self) -> tuple[float, ...]:
        """The five traits on the scale 1..7."""
        return tuple(round(min(7.0, max(1.0, 4.0 + 1.2 * z)), 3) for z in self.traits)


@dataclasses.dataclass(frozen=True)
class Cues:
    """How one utterance is spoken; each about N(0, 1), 0 = the speaker's habit."""

    effort: float
    pitch: float
    range: float
    rate: float
    pauses: float  # high: few pauses
    smile: float
    harshness: float

    def arousal(self) -> float:
        """Label on 1..5: the cues' weighted sum."""
        total: float = sum(weight * getattr(self, name) for name, weight in AROUSAL_WEIGHTS.items())
        return round(min(5.0, max(1.0, 3.0 + AROUSAL_PER_UNIT * total)), 3)

    def valence(self) -> float:
        """Label on 1..5: smile against harshness."""
        return round(min(5.0, max(1.0, 3.0 + 0.75 * self.smile - 0.55 * self.harshness)), 3)


def draw_speaker(rng: np.random.Generator, name: str, split: Split) -> Speaker:
    """A speaker whose language and voice variant belong to ``split``."""
    gender = str(rng.choice(["male", "female", "child"], p=[0.45, 0.45, 0.1]))
    scale, pitch = {"male": (1.0, 113.0), "female": (1.17, 200.0), "child": (1.3, 260.0)}[gender]
    traits = np.clip(rng.normal(size=5), -2.2, 2.2)
    _openness, _conscientiousness, extraversion, agreeableness, _neuroticism = traits
    return Speaker(
        name=name,
        split=split,
        gender=gender,
        language=str(rng.choice(np.array(LANGUAGES[split]))),
        variant=str(rng.choice(np.array(VARIANTS[split]))),
        klatt=int(rng.integers(1, 7)) if rng.random() < 0.25 else 0,
        formant_scale=float(scale * np.exp(0.05 * np.clip(rng.normal(), -2, 2))),
        pitch_hz=float(pitch * 2 ** (0.17 * np.clip(rng.normal(), -2, 2))),
        pitch_range_semitones=float(10.5 * 2 ** (0.22 * rng.normal() + 0.28 * extraversion)),
        words_per_minute=float(165 * 2 ** (0.12 * rng.normal() + 0.16 * extraversion)),
        tilt_db_per_octave=float(rng.normal(-1.1, 1.4)),
        filter_db=tuple(float(gain) for gain in rng.normal(0, 3.0, size=8)),
        formants=tuple(_formant(rng) for _ in range(5)),
        effort_band_hz=(float(rng.uniform(80, 400)), float(rng.uniform(2500, 7000))),
        breath=float(np.clip(14 + 9 * agreeableness + 3 * rng.normal(), 0, 40)),
        traits=tuple(float(z) for z in traits),
    )


def _formant(rng: np.random.Generator) -> tuple[float, float, float]:
    frequency, height, width = np.exp(np.array([0.04, 0.2, 0.25]) * np.clip(rng.normal(size=3), -2, 2))
    return float(frequency), float(height), float(width)


def draw_cues(rng: np.random.Generator) -> Cues:
    """Cues around a latent arousal and valence (z-scores), each with independent noise."""
    high = float(np.clip(rng.normal(0, 1.1), -2.2, 2.2))
    positive = float(np.clip(rng.normal(), -2, 2))
    noise = rng.normal(size=7)
    own = [float(np.clip(0.75 * high + 0.65 * n, -2.5, 2.5)) for n in noise[:5]]
    smile = float(np.clip(0.85 * positive + 0.5 * noise[5], -2.5, 2.5))
    harsh = float(np.clip(-0.85 * positive + 0.5 * noise[6], -2.5, 2.5))
    return Cues(own[0], own[1], own[2], own[3], own[4], smile, harsh)


def voice_settings(speaker: Speaker, cues: Cues, rng: np.random.Generator) -> VoiceSettings:
    """The voice for espeak-ng. The vocal tract is scaled by resampling later, so pitch and rate are divided here."""
    openness, conscientiousness, _extraversion, _agreeableness, neuroticism = speaker.traits
    semitones = PITCH_SEMITONES * cues.pitch + 0.5 * max(cues.pitch, 0.0) ** 2
    pitch = speaker.pitch_hz * 2 ** (semitones / 12) / speaker.formant_scale
    spread = speaker.pitch_range_semitones * 2 ** (0.5 * cues.range)
    low = pitch * 2 ** (-0.55 * spread / 12)
    return VoiceSettings(
        language=speaker.language,
        variant=speaker.variant,
        pitch_low_hz=max(low, 30.0),
        pitch_high_hz=min(low * 2 ** (spread / 12), 600.0),
        words_per_minute=float(
            np.clip(speaker.words_per_minute * 2 ** (RATE_OCTAVES * cues.rate) / speaker.formant_scale, 80, 400)
        ),
        formants=tuple(
            (frequency * (1 + (0.04 * cues.effort if number == 0 else 0.055 * cues.smile)), height, width)
            for number, (frequency, height, width) in enumerate(speaker.formants)
        ),
        flutter=float(np.clip(6 + 3 * neuroticism + 1.5 * rng.normal(), 0, 22)),
        roughness=round(float(np.clip(1.5 + cues.harshness, 0, 5))),
        consonants_percent=float(np.clip(100 + 35 * openness + 8 * cues.effort, 25, 190)),
        klatt=speaker.klatt,
        word_gap_ms=10 * round(float(np.clip(2 + 2 * conscientiousness, 0, 7))),
    )


def speech_markup(
    words: list[str], speaker: Speaker, cues: Cues, rng: np.random.Generator, mark: str | None = None
) -> str:
    """SSML of ``words``: pauses are rarer and shorter in aroused speech; a conscientious speaker's are regular.

    ``mark`` ends the sentence; None: a random one.
    """
    regular = 1 / (1 + math.exp(-1.5 * speaker.traits[1]))
    chance = 1 / (1 + math.exp(1.9 + 0.9 * cues.pauses))
    every = max(2, round(1 / chance))
    parts: list[str] = []
    for index, word in enumerate(words):
        parts.append(word)
        due = (index + 1) % every == 0 if rng.random() < regular else rng.random() < chance
        if due and index + 1 < len(words):
            spread = 0.15 + 0.6 * (1 - regular)
            length = 280 * 2 ** (-0.35 * cues.pauses + spread * float(rng.normal()))
            parts.append(f'<break time="{int(np.clip(length, 60, 900))}ms"/>')
    return " ".join(parts) + (str(rng.choice(np.array([".", ".", "?", "!"]))) if mark is None else mark)
