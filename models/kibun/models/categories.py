"""Categories of emotion as points of valence and arousal, from ratings of the words.

The one table is Warriner, Kuperman & Brysbaert (2013), "Norms of valence, arousal, and dominance for 13,915 English
lemmas", Behavior Research Methods 45, 1191-1207, columns V.Mean.Sum and A.Mean.Sum: how pleasant and how excited people
felt when they read the word, from 1 to 9. They rate words, not voices; only their order and rough distances carry over.
"""

from collections.abc import Mapping

from kibun.models.types import EMOTION_SCALE

SOURCE = "Warriner, Kuperman & Brysbaert (2013), norms of the words, 1..9 mapped to 1..5"
NORM_SCALE = (1.0, 9.0)
NORMS: Mapping[str, tuple[float, float]] = {  # (valence, arousal) as published
    "angry": (2.53, 6.20),
    "bored": (2.95, 3.65),
    "calm": (6.89, 1.67),
    "disgusted": (2.68, 4.89),
    "fearful": (2.66, 5.45),
    "happy": (8.47, 6.05),
    "neutral": (5.50, 3.45),
    "sad": (2.10, 3.49),
    "surprised": (6.57, 5.95),  # the word sounds pleasant; acted surprise need not
}

# What checkpoints call these categories, in lower case.
_LABELS: Mapping[str, tuple[str, ...]] = {
    "angry": ("angry", "anger", "ang"),
    "bored": ("bored", "boredom"),
    "calm": ("calm",),
    "disgusted": ("disgusted", "disgust", "dis"),
    "fearful": ("fearful", "fear", "fea"),
    "happy": ("happy", "happiness", "hap"),
    "neutral": ("neutral", "neu"),
    "sad": ("sad", "sadness"),
    "surprised": ("surprised", "surprise", "sur"),
}


def label_point(label: str) -> tuple[float, float] | None:
    """(valence, arousal) on 1..5 of a checkpoint's label; None for one that is not in the table."""
    for category, labels in _LABELS.items():
        if label.strip().lower() in labels:
            valence, arousal = NORMS[category]
            return _mapped(valence), _mapped(arousal)
    return None


def _mapped(value: float) -> float:
    (low, high), (bottom, top) = NORM_SCALE, EMOTION_SCALE
    return round(bottom + (value - low) * (top - bottom) / (high - low), 4)
