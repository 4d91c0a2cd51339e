"""Does conditioning emotion on the traits that were heard ever cost against conditioning it on constant ones?"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kibun.models.bundle import KibunConfig, Utterance, load_bundle
from kibun.models.model import KibunModel
from kibun.models.types import CONDITIONED, EMOTIONS, Traits
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import load_manifest
from kibun.training.evaluation.metrics import DRAWS, auc, ccc
from kibun.training.evaluation.report_table import Cell, Row, Table
from kibun.training.evaluation.significance import student_interval

# Emotions as corpora name them, and the side of each dimension that their actors meant. Disgust is on neither side of
# arousal, surprise and calm on neither side of valence.
SIDES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "arousal": (
        frozenset(
            {"anger", "angry", "anxiety", "fear", "fearful", "happiness", "happy", "joy", "surprise", "surprised"}
        ),
        frozenset({"bored", "boredom", "calm", "neutral", "sad", "sadness"}),
    ),
    "valence": (
        frozenset({"happiness", "happy", "joy"}),
        frozenset({"anger", "angry", "anxiety", "disgust", "fear", "fearful", "sad", "sadness"}),
    ),
}
CONDITIONS = ("heard", "first", "constant", "random")

Scores = NDArray[np.float64]  # (N,)
Measure = Callable[[Scores, NDArray[np.intp]], float]  # estimates (N,) and rows of them -> how good they are


class MaterialError(ValueError):
    """The recordings cannot be used; the message says why, and what is needed."""


@dataclass(frozen=True)
class Under:
    """How good a dimension is under a condition, and its gain over the constant one with a 95 % interval."""

    value: float
    gain: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Clip:
    """A recording: its speaker, and the emotion it was acted with or was rated as."""

    path: Path
    speaker: str
    emotion: str | None = None
    valence: float | None = None
    arousal: float | None = None


def measure(
    model_name: str, material: Path, *, conversation: int = 20, seed: int = 0, draws: int = DRAWS
) -> tuple[dict[str, object], Table]:
    """How good valence and arousal are under four conditions, and what heard traits gain or cost, as JSON and a table.

    heard: each speaker's recordings in random order, in conversations of so many, as served: traits of what was heard
    so far. first: each as the first of its speaker. constant: the mean of the training speakers for everyone. random:
    for each speaker a draw from the training speakers' distribution.

    Args:
        material: a manifest with valence or arousal, judged by CCC; or a CSV with the columns file, speaker and
            emotion, judged by the area under the ROC curve of the emotions on either side of SIDES.

    Raises:
        MaterialError, ManifestError: the recordings cannot be used.
    """
    model = load_bundle(model_name)
    if model.config.emotion_head not in CONDITIONED or not model.config.supports_personality:
        raise MaterialError(f"{model_name} hears no traits, or has emotion heads that ignore them: nothing to compare")
    clips = read(material)
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
        raise MaterialError(f"{material}: no emotion in it is one that {model_name} estimates")
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


def read(material: Path) -> list[Clip]:
    """The recordings of a manifest or a CSV. Raises MaterialError, ManifestError."""
    if material.suffix != ".csv":
        items = load_manifest(material, require=("path",))
        clips = [Clip(i.path, i.speaker, valence=i.valence, arousal=i.arousal) for i in items]
    else:
        try:
            with material.open(encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file)
                if lacking := {"file", "speaker", "emotion"} - set(table.fieldnames or ()):
                    raise MaterialError(f"{material}: no column {min(lacking)!r}; needed are file, speaker and emotion")
                clips = [Clip(material.parent / r["file"], r["speaker"], r["emotion"].lower()) for r in table]
        except OSError as error:
            raise MaterialError(f"{material}: cannot be read ({error.strerror})") from error
    if len({clip.speaker for clip in clips}) < 2:
        raise MaterialError(f"{material}: has fewer than two speakers, which are what the bootstrap draws")
    return clips


def estimate(model: KibunModel, clips: Sequence[Clip], conversation: int, seed: int) -> dict[str, dict[str, Scores]]:
    """Each dimension under each condition, (N,); in a model whose utterances are as served."""
    model.train(False)
    rng = np.random.default_rng(seed)
    config = model.config
    centre, scale = _population(config)
    by_speaker: dict[str, list[int]] = {}
    for row, clip in enumerate(clips):
        by_speaker.setdefault(clip.speaker, []).append(row)
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


def _population(config: KibunConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(5,) mean and deviation of the training speakers' traits; the middle and a sixth of the scale if unrecorded."""
    low, high = config.trait_scale
    centre, scale = np.array(config.condition_centre), np.array(config.condition_scale)
    if (centre < low).any():  # a bundle of before traits were standardised: 0 and 1
        return np.full(len(centre), (low + high) / 2), np.full(len(scale), (high - low) / 6)
    return centre, scale


def _measure(clips: Sequence[Clip], dimension: str) -> tuple[Measure, str] | None:
    """How estimates of a dimension are judged, and its name; None where nothing is labelled with it."""
    assert dimension in EMOTIONS
    labels = [getattr(clip, dimension) for clip in clips]
    if any(label is not None for label in labels):
        truth = np.array([np.nan if label is None else label for label in labels])

        def concordance(values: Scores, rows: NDArray[np.intp]) -> float:
            there = rows[np.isfinite(truth[rows])]
            return ccc(values[there], truth[there])

        return concordance, "CCC"
    high, low = SIDES[dimension]
    side = np.array([1 if clip.emotion in high else -1 if clip.emotion in low else 0 for clip in clips])
    if not (side == 1).any() or not (side == -1).any():
        return None

    def area(values: Scores, rows: NDArray[np.intp]) -> float:
        here = side[rows]
        if not (here == 1).any() or not (here == -1).any():
            return float("nan")  # a draw of speakers who acted one side only
        return auc(values[rows[here == 1]], values[rows[here == -1]])

    return area, "AUC"


def _traits(values: NDArray[np.float64]) -> Traits:
    return tuple(map(float, values))  # type: ignore[return-value]
