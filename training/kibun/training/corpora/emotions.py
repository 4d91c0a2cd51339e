"""Categories of emotion as points of valence and arousal: what an actor was asked for, not what anyone heard.

The norms are those of `kibun.models.categories`.
"""

from collections.abc import Mapping

from kibun.models.categories import NORM_SCALE, NORMS
from kibun.models.types import EMOTION_SCALE
from kibun.training.corpora.lines import rescale

FULL_LEVEL = 80.0
# How far from neutral (0) towards the category's norm (1). CREMA-D gives its low, medium and high 20, 50 and 80 on the
# scale of 0 to 100 that raters used; RAVDESS' normal and strong are taken for medium and high, which is our choice.
STRENGTHS: Mapping[str, float] = {
    "low": 20 / FULL_LEVEL,
    "medium": 50 / FULL_LEVEL,
    "high": 1.0,
    "normal": 50 / FULL_LEVEL,
    "strong": 1.0,
}


def category_emotion(category: str, intensity: str | None = None) -> tuple[float, float]:
    """(valence, arousal) on 1..5 of a category of `NORMS`. ``intensity``: one of `STRENGTHS`; any other, or None: full.

    The norms' 1..9 is mapped linearly to 1..5, and the intensity moves the point along the line from neutral.
    """
    return _rounded(_point(category, STRENGTHS.get(intensity or "", 1.0)))


def voted_emotion(votes: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """(valence, arousal) on 1..5: the mean over raters of the category that each chose, at the level that each gave.

    ``votes``: category -> (share of the raters, their mean level from 0 to 100). Level 80 and above is the full norm.
    """
    points = [(share, _point(category, min(level / FULL_LEVEL, 1.0))) for category, (share, level) in votes.items()]
    total = sum(share for share, _point in points)
    return _rounded((sum(s * p[0] for s, p in points) / total, sum(s * p[1] for s, p in points) / total))


def _point(category: str, strength: float) -> tuple[float, float]:
    valence, arousal = (
        rescale(neutral + strength * (value - neutral), NORM_SCALE, EMOTION_SCALE)
        for value, neutral in zip(NORMS[category], NORMS["neutral"], strict=True)
    )
    return valence, arousal


def _rounded(point: tuple[float, float]) -> tuple[float, float]:
    return round(point[0], 4), round(point[1], 4)
