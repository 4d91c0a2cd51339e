"""PA-IEMOCAP's traits, read as published and checked against the raters' ten items."""

from pathlib import Path

import numpy as np

from kibun.models.types import TRAITS, Traits
from kibun.training.corpora.tipi import OCEAN_COLUMNS, Profile, read_ocean, read_tipi, trait_scores

# ocean.csv has three decimals; a mean of six raters' half points is never halfway between two of them.
TOLERANCE = 0.0006


def read_profiles(tipi: Path, ocean: Path, problems: list[str]) -> dict[Profile, Traits]:
    """Published traits of every (dialogue, "f" or "m"), 1..7; spelling of dialogue ids is corrected.

    Rows of ``ocean`` that are not the mean of their six raters in ``tipi``, and profiles that are in only one of the
    files, are added to ``problems``.

    Raises:
        LabelError: one of the files cannot be used at all.
    """
    items, rows = read_tipi(tipi), read_ocean(ocean)
    published = {profile: traits for profile, (_where, traits) in rows.items()}
    named = {profile: f"{where}: {' '.join(profile)}" for profile, (where, _traits) in rows.items()}
    problems += [f"{named[profile]} has no items in {tipi}" for profile in sorted(published.keys() - items.keys())]
    problems += [f"{tipi}: {' '.join(each)} has no row in {ocean}" for each in sorted(items.keys() - published.keys())]
    for profile in sorted(published.keys() & items.keys()):
        means = trait_scores(items[profile]).mean(axis=0)  # (5,) over the six raters
        problems += [
            f"{named[profile]}: field {OCEAN_COLUMNS[index]!r} is {published[profile][index]:g}, but the mean"
            f" {TRAITS[index]} of its six raters in {tipi} is {means[index]:.3f}"
            for index in np.flatnonzero(np.abs(means - np.array(published[profile])) > TOLERANCE)
        ]
    return published
