"""What heard traits are worth, by how many utterances they were heard in, and the condition that this makes of them.

A trait that was heard in one utterance is mostly noise. Emotion is therefore conditioned on

    c + w · (t − c)

with c the population's mean (`BundleSettings.condition_centre`), t the trait as heard so far, and w its weight after
this many utterances: 0 for a trait that tells nothing, for which every speaker then counts as an average one; 1 for one
to be taken as it is.

The weight is the slope of the least-squares line through (c, c) of truth on estimate, over speakers who were held out:
of all factors the one with the smallest error, and the posterior mean where both are normal. It is 1 for an estimate
that is as cautious as it should be, which 1 − (error / error of the mean)² would shrink a second time. A trait that
these speakers do not show to tell anything, its slope within two standard errors of 0, gets 0: it is not used.

A trait may have an error above that of guessing the mean and still tell much, if it is too bold. Its weight mends that:
drawn to the mean it has an error below. In simulated conversations traits heard in one utterance are like that, and
without them valence would be worse than without any traits (docs/results.md).

All of this was measured on voices like those of training. In others the weight is smaller, by
`kibun.models.personality.Familiarity`.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kibun.models.types import FULL_WEIGHT, Evidence, Traits


def measured(
    utterance_count: int, estimated: ArrayLike, truth: ArrayLike, centre: ArrayLike, speakers: int | None = None
) -> Evidence:
    """The evidence of traits estimated for held-out speakers after `utterance_count` utterances each.

    Args:
        estimated, truth: (S, 5) on the trait scale, S >= 1.
        centre: (5,), the population's mean: of the training speakers, not of these.
        speakers: how many there are, where several estimates of each are given; None: as many as estimates.

    Returns:
        Errors and weights, rounded to 3 decimals.
    """
    middle = np.asarray(centre, np.float64)
    away = np.asarray(estimated, np.float64) - middle  # (S, 5)
    true = np.asarray(truth, np.float64) - middle  # (S, 5)
    error = np.sqrt(np.mean((away - true) ** 2, axis=0))  # (5,)
    error_of_mean = np.sqrt(np.mean(true**2, axis=0))
    spread = np.sum(away**2, axis=0)
    spread = np.where(spread > 0, spread, 1)  # of an estimate that never leaves the mean, whose slope is 0
    slope = np.sum(away * true, axis=0) / spread
    standard_error = np.sqrt(np.sum((true - slope * away) ** 2, axis=0) / spread / max((speakers or len(true)) - 1, 1))
    weight = np.where(slope > 2 * standard_error, slope.clip(0, 1), 0)
    return Evidence(utterance_count, _traits(error), _traits(error_of_mean), _traits(weight))


def after(rows: Sequence[Evidence], utterance_count: int) -> Evidence | None:
    """The row of the most utterances that are not more than these; None where these are fewer than in any row."""
    fitting = [row for row in rows if row.utterance_count <= utterance_count]
    return fitting[-1] if fitting else None


def weight(rows: Sequence[Evidence] | None, utterance_count: int) -> Traits:
    """The weight of traits heard in this many utterances: that of `after`, else of the first row.

    rows: rising in utterance_count. None or empty: nothing is known of the traits, which count in full.
    """
    if not rows:
        return FULL_WEIGHT
    return (after(rows, utterance_count) or rows[0]).weight


def shrunk(traits: ArrayLike, weights: ArrayLike, centre: ArrayLike) -> NDArray[np.float64]:
    """c + w · (t − c): traits (..., 5) drawn towards the centre (5,) by weights (..., 5).

    Weight 1 leaves a trait as it is and weight 0 gives the centre, both to the last bit.
    """
    share = np.asarray(weights, np.float64)
    return cast(NDArray[np.float64], share * np.asarray(traits, np.float64) + (1 - share) * np.asarray(centre))


def _traits(values: NDArray[np.float64]) -> Traits:
    return cast(Traits, tuple(round(float(value), 3) for value in values))
