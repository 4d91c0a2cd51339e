"""Does conditioning emotion on the traits that were heard ever cost against conditioning it on constant ones?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kibun.models.bundle import KibunConfig, Utterance, load_bundle
from kibun.models.files import BundleError
from kibun.models.model import KibunModel
from kibun.models.types import CONDITIONED, Traits
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import Item, load_manifest
from kibun.training.errors import ManifestError
from kibun.training.evaluation.metrics import DRAWS, auc, ccc
from kibun.training.evaluation.ranking import ABOVE_BELOW
from kibun.training.evaluation.report_table import Cell, Row, Table
from kibun.training.evaluation.significance import student_interval

CONDITIONS = ("heard", "first", "constant", "random")

Scores = NDArray[np.float64]  # (N,)
Measure = Callable[[Scores, NDArray[np.intp]], float]  # estimates (N,) and rows of them -> how good they are


@dataclass(frozen=True)
class Under:
    """How good a dimension is under a condition, and its gain over the constant one with a 95 % interval."""

    value: float
    gain: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)


def measure(
    model_name: str,
    manifest: Path,
    *,
    per_speaker: int | None = None,
    conversation: int = 20,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[dict[str, object], Table]:
    """How good valence and arousal are under four conditions, and what heard traits gain or cost, as JSON and a table.

    heard: each speaker's recordings in random order, in conversations of so many, as served: traits of what was heard
    so far. first: each as the first of its speaker. constant: the mean of the training speakers for everyone. random:
    for each speaker a draw from the training speakers' distribution.

    Args:
        manifest: of recordings with a category of emotion, judged by the area under the ROC curve of ABOVE_BELOW's two
            sides; where it has not both, by the CCC with valence and arousal.
        per_speaker: at most so many recordings of each speaker, drawn at random; None: all.

    Raises:
        BundleError, ManifestError: the bundle or the recordings cannot be used, and why.
    """
    model = load_bundle(model_name)
    if model.config.emotion_head not in CONDITIONED or not model.config.supports_personality:
        raise BundleError(f"{model_name} hears no traits, or has emotion heads that ignore them: nothing to compare")
    clips = read(manifest, per_speaker, seed)
    estimates = estimate(model, clips, conversation, seed)
    dimensions: dict[str, object] = {}
    costs = []
    rows = []
    for name in model.config.emotions:
        if (judged := _measure(clips, name)) is None:
            continue
        measure_of, what = judged
        found = compare(estimates[name], [clip.speaker for clip in clips], measure_of, seed, draws)
        dimensions[name] = {"measure": what, **{condition: asdict(found[condition]) for condition in CONDITIONS}}
        if found["heard"].interval[1] < 0 or found["first"].interval[1] < 0:
            costs.append(name)
        cells = [Cell(found[condition].value) for condition in CONDITIONS]
        cells += [Cell(found[c].gain, interval=found[c].interval) for c in CONDITIONS if c != "constant"]
        rows.append(Row(f"{name} ({what})", tuple(cells)))
    if not rows:
        raise ManifestError(f"{manifest}: has neither categories of emotion nor valence or arousal to judge by")
    speakers = len({clip.speaker for clip in clips})
    payload: dict[str, object] = {
        "model": model_name,
        "clips": len(clips),
        "speakers": speakers,
        "conversation": conversation,
        "seed": seed,
        "dimensions": dimensions,
        "costs": costs,
    }
    columns = ("", *CONDITIONS, *(f"{name} - constant" for name in CONDITIONS if name != "constant"))
    title = f"{model_name} on {len(clips)} recordings of {speakers} speakers"
    notes = ("differences with 95 % interval by paired bootstrap over speakers",)
    return payload, Table(title, columns, tuple(rows), notes, digits=3)


def read(manifest: Path, per_speaker: int | None, seed: int) -> list[Item]:
    """The recordings, or at most so many of each speaker, drawn at random. Raises ManifestError."""
    items = load_manifest(manifest, require=("path",))
    by_speaker = _by_speaker(items)
    if len(by_speaker) < 2:
        raise ManifestError(f"{manifest}: has fewer than two speakers, which are what the bootstrap draws")
    if per_speaker is None:
        return items
    rng = np.random.default_rng([seed, 1])
    return [items[row] for rows in by_speaker.values() for row in sorted(rng.permutation(rows)[:per_speaker])]


def estimate(model: KibunModel, clips: Sequence[Item], conversation: int, seed: int) -> dict[str, dict[str, Scores]]:
    """Each dimension under each condition, (N,); in a model whose utterances are as served."""
    model.train(False)
    rng = np.random.default_rng(seed)
    config = model.config
    centre, scale = _population(config)
    by_speaker = _by_speaker(clips)
    found = {name: {condition: np.zeros(len(clips)) for condition in CONDITIONS} for name in config.emotions}
    nothing = np.zeros((0, model.vector_size), np.float16)
    for speaker in sorted(by_speaker):
        drawn = _traits(np.clip(centre + scale * rng.normal(size=5), *config.trait_scale))
        history = nothing
        for number, row in enumerate(rng.permutation(by_speaker[speaker])):
            audio = load_audio(clips[row].path)
            if number % conversation == 0:
                history = nothing
            requests = {
                "heard": Utterance(audio, history),
                "first": Utterance(audio, nothing),
                "constant": Utterance(audio, nothing, given_traits=_traits(centre)),
                "random": Utterance(audio, nothing, given_traits=drawn),
            }
            answers = dict(zip(requests, model.analyze(list(requests.values())), strict=True))
            history = np.concatenate([history, answers["heard"].vector[None]])
            for name in config.emotions:
                for condition, answer in answers.items():
                    found[name][condition][row] = getattr(answer, name)
    return found


def compare(
    estimates: Mapping[str, Scores], speakers: Sequence[str], measure_of: Measure, seed: int, draws: int
) -> dict[str, Under]:
    """The value of each condition; but for the constant one, its gain over that and the 95 % interval of the gain.

    Speakers are drawn with replacement, the same for both sides.
    """
    names = sorted(set(speakers))
    rows_of = {name: np.flatnonzero(np.array(speakers) == name) for name in names}
    everyone = np.arange(len(speakers))
    rng = np.random.default_rng(seed)
    sets = [np.concatenate([rows_of[names[i]] for i in rng.integers(0, len(names), len(names))]) for _ in range(draws)]
    drawn = {name: np.array([measure_of(values, rows) for rows in sets]) for name, values in estimates.items()}
    found: dict[str, Under] = {}
    base = measure_of(estimates["constant"], everyone)
    for name, values in estimates.items():
        value = measure_of(values, everyone)
        spread = float(np.nanstd(drawn[name] - drawn["constant"], ddof=1))
        low, high, _p = student_interval(value - base, spread, len(names), len(names) - 1)
        found[name] = Under(round(value, 4), round(value - base, 4), (round(low, 4), round(high, 4)))
    return found


def _by_speaker(items: Sequence[Item]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(item.speaker, []).append(row)
    return rows


def _population(config: KibunConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(5,) mean and deviation of the training speakers' traits; the middle and a sixth of the scale if unrecorded."""
    low, high = config.trait_scale
    centre, scale = np.array(config.condition_centre), np.array(config.condition_scale)
    if (centre < low).any():  # a bundle of before traits were standardised: 0 and 1
        return np.full(len(centre), (low + high) / 2), np.full(len(scale), (high - low) / 6)
    return centre, scale


def _measure(items: Sequence[Item], dimension: str) -> tuple[Measure, str] | None:
    """How estimates of a dimension are judged, and its name; None where nothing is labelled with it.

    By category first: most labels of acted speech are categories put into numbers.
    """
    above, below = (np.array([item.emotion in side for item in items]) for side in ABOVE_BELOW[dimension])
    if above.any() and below.any():

        def area(values: Scores, rows: NDArray[np.intp]) -> float:
            upper, lower = rows[above[rows]], rows[below[rows]]
            # A draw of speakers who acted one side only has no area.
            return auc(values[upper], values[lower]) if len(upper) and len(lower) else float("nan")

        return area, "AUC"
    labels = [getattr(item, dimension) for item in items]
    truth = np.array([np.nan if label is None else label for label in labels])
    if not np.isfinite(truth).any():
        return None

    def concordance(values: Scores, rows: NDArray[np.intp]) -> float:
        there = rows[np.isfinite(truth[rows])]
        return ccc(values[there], truth[there])

    return concordance, "CCC"


def _traits(values: NDArray[np.float64]) -> Traits:
    return tuple(map(float, values))  # type: ignore[return-value]
