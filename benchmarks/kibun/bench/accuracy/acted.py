"""How well a bundle ranks acted emotions, by corpus: as served, and relative to how each speaker sounded before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kibun.client.baseline import SpeakerBaseline
from kibun.client.estimates import Emotion
from kibun.models.bundle import load_bundle
from kibun.models.types import EMOTIONS
from kibun.training.corpora.manifest import Item, load_manifest
from kibun.training.errors import ManifestError
from kibun.training.evaluation.report_table import Table
from kibun.training.voices.measure import Figures, by_corpus, estimate, figures_of, table


def measure(
    model_name: str, manifests: Sequence[Path], *, relative: bool, seed: int, split: str | None = None
) -> tuple[dict[str, object], Table]:
    """The area under the ROC curve by corpus, and over corpora the plain mean, as JSON and as a table.

    Args:
        manifests: of recordings with a category of emotion. split: only its utterances; None: all.
        relative: also as `kibun.client.SpeakerBaseline` has them, a speaker's utterances in random order of `seed`: the
            estimate minus the mean of the earlier ones; beside the absolute estimates of the same utterances.

    Raises BundleError, ManifestError.
    """
    model = load_bundle(model_name)
    items = [
        item
        for path in manifests
        for item in load_manifest(path, require=("path", "emotion"))
        if split is None or item.split == split
    ]
    if not items:
        raise ManifestError(f"no utterance is in the split {split!r}")
    estimates = estimate(model, items)
    figures: dict[str, Figures] = {}
    for corpus, rows in by_corpus(items).items():
        some, theirs = [items[row] for row in rows], {n: [v[row] for row in rows] for n, v in estimates.items()}
        figures[corpus] = figures_of(some, theirs)
        if relative and set(theirs) == set(EMOTIONS):
            figures |= _relative(corpus, some, theirs, seed)
    means = {name: _mean([figures[corpus] for corpus in by_corpus(items)], name) for name in estimates}
    payload: dict[str, object] = {
        "model": model_name,
        "utterances": len(items),
        "by_corpus": {corpus: each.as_json() for corpus, each in figures.items()},
        "mean_auc": means,
    }
    note = ", ".join(f"{name} {value:.3f}" for name, value in means.items() if value is not None)
    return payload, table(f"{model_name} on acted emotions", figures, (f"mean over corpora: {note}",))


def _relative(
    corpus: str, items: Sequence[Item], estimates: Mapping[str, Sequence[float]], seed: int
) -> dict[str, Figures]:
    """Of the utterances that have a baseline: estimates relative to it, and the same ones as they are."""
    baseline = SpeakerBaseline()
    order = np.random.default_rng(seed).permutation(len(items))
    found = [
        (row, relative)
        for row in order
        if (relative := baseline.add(items[row].speaker, Emotion(*(estimates[name][row] for name in EMOTIONS))))
    ]
    some = [items[row] for row, _relative in found]
    after = f"after {baseline.min_utterances} others of the speaker"
    return {
        f"{corpus}, {after}": figures_of(some, {n: [v[row] for row, _ in found] for n, v in estimates.items()}),
        f"{corpus}, {after}, relative": figures_of(some, {n: [getattr(r, n) for _, r in found] for n in EMOTIONS}),
    }


def _mean(figures: Sequence[Figures], name: str) -> float | None:
    areas = [each.ranked[name].auc for each in figures if name in each.ranked]
    return float(np.mean(areas)) if areas else None
