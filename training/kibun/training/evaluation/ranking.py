"""How well estimates rank acted emotions: the area under the ROC curve, with an interval over speakers.

A corpus of acted speech says which emotion was meant, not how aroused or pleasant it sounds. That an angry voice should
score above a calm one needs no scale, so such corpora can compare bundles that were trained on other labels.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kibun.training.evaluation.metrics import DRAWS

# The categories that an emotion dimension should rank above others; categories on neither side are left out.
ABOVE_BELOW: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "arousal": (frozenset({"angry", "fearful", "happy", "surprised"}), frozenset({"neutral", "calm", "sad", "bored"})),
    "valence": (frozenset({"happy"}), frozenset({"angry", "fearful", "sad", "disgusted"})),
}


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Area under the ROC curve; low..high: its 95 % interval over speakers, None with fewer than two.

    within: mean over speakers of the area among each one's own utterances, which an offset of a voice or a microphone
    cannot change; None where no speaker has both sides.
    """

    auc: float
    low: float | None
    high: float | None
    within: float | None
    speakers: int
    utterances: int


def rank(
    scores: ArrayLike, categories: Sequence[str | None], speakers: Sequence[Hashable], dimension: str, seed: int = 0
) -> Ranking | None:
    """How well (N,) scores of "valence" or "arousal" put the categories above that should be; None without both sides.

    The interval: percentiles over draws of whole speakers, with replacement.
    """
    above, below = (np.array([category in side for category in categories]) for side in ABOVE_BELOW[dimension])
    values = np.asarray(scores, dtype=float)
    if not above.any() or not below.any():
        return None
    names = {name: index for index, name in enumerate(dict.fromkeys(speakers))}
    owners = np.array([names[speaker] for speaker in speakers])
    won, pairs = _pairs_by_speaker(values[above], owners[above], values[below], owners[below], len(names))
    own = np.diag(pairs) > 0
    low, high = _interval(won, pairs, seed) if len(names) > 1 else (None, None)
    return Ranking(
        float(won.sum() / pairs.sum()),
        low,
        high,
        float((np.diag(won)[own] / np.diag(pairs)[own]).mean()) if own.any() else None,
        len(np.unique(owners[above | below])),
        int((above | below).sum()),
    )


def _pairs_by_speaker(
    above: NDArray[np.float64],
    above_by: NDArray[np.int64],
    below: NDArray[np.float64],
    below_by: NDArray[np.int64],
    n: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(S, S) pairs ranked rightly (ties count half), and all pairs, by the speakers of the upper and lower member."""
    won, pairs = np.zeros((n, n)), np.zeros((n, n))
    of_each = np.bincount(above_by, minlength=n)
    for speaker in range(n):
        lower = np.sort(below[below_by == speaker])
        beaten = (np.searchsorted(lower, above, "left") + np.searchsorted(lower, above, "right")) / 2
        won[:, speaker] = np.bincount(above_by, weights=beaten, minlength=n)
        pairs[:, speaker] = of_each * len(lower)
    return won, pairs


def _interval(won: NDArray[np.float64], pairs: NDArray[np.float64], seed: int) -> tuple[float | None, float | None]:
    count = len(won)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS)  # (draws, S)
    # A draw may lack one side altogether: it has no area.
    total = (drawn @ pairs * drawn).sum(1)
    areas = (drawn @ won * drawn).sum(1)[total > 0] / total[total > 0]
    return (float(np.percentile(areas, 2.5)), float(np.percentile(areas, 97.5))) if areas.size else (None, None)
