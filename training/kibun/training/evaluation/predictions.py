"""Predictions files: a model's estimates for every utterance of a split beside the truth, one JSON object a line.

    {"id", "dialogue", "speaker", "gender", "valence": 1..5 or null, "arousal": …, "traits": [5] or null,
     "predicted": {"valence", "arousal", "utterance_traits", "average_traits", "conversation_traits", "causal_traits",
                   "heard"}}

A null truth is a label that the corpus lacks; ``predicted`` omits what the model does not estimate. Unknown fields
beside ``predicted`` are ignored, unknown fields in it are an error.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kibun.models.evidence import measured
from kibun.models.files import written_atomically
from kibun.models.types import EMOTIONS, TRAITS, Evidence, Traits
from kibun.training.corpora.lines import json_objects
from kibun.training.evaluation.metrics import ccc

TRAIT_FIELDS = ("utterance_traits", "average_traits", "conversation_traits", "causal_traits")
# Equal for all utterances of a profile, which therefore counts once.
PROFILE_FIELDS = ("average_traits", "conversation_traits")
UTTERANCE_COUNTS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50)
"""Numbers of a speaker's utterances after which the error of the traits is reported."""


class PredictionsError(ValueError):
    """A predictions file cannot be used; the message names file, line, field and the fix."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A model's estimates for one utterance, None where it makes none: emotion on 1..5, traits on 1..7.

    utterance_traits: setting 1, this utterance alone.
    average_traits: setting 2, the mean of setting 1 over the speaker's utterances of the dialogue.
    conversation_traits: setting 3 over the whole conversation.
    causal_traits: setting 3 over the utterances up to and including this one, `heard` of them.
    """

    valence: float | None = None
    arousal: float | None = None
    utterance_traits: Traits | None = None
    average_traits: Traits | None = None
    conversation_traits: Traits | None = None
    causal_traits: Traits | None = None
    heard: int | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One utterance: the truth (None where the corpus has no label) and the model's estimate."""

    id: str
    dialogue: str
    speaker: str
    predicted: Estimate
    gender: str | None = None
    valence: float | None = None
    arousal: float | None = None
    traits: Traits | None = None

    @property
    def conversation(self) -> tuple[str, str]:
        """(dialogue, speaker), which has one profile of traits and is one cluster of the bootstrap."""
        return self.dialogue, self.speaker


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a predictions file whole or not at all. Raises ValueError for NaN and infinities."""
    lines = [json.dumps(_as_row(prediction), allow_nan=False, ensure_ascii=False) for prediction in predictions]
    with written_atomically(path) as draft:
        draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_predictions(path: Path) -> list[Prediction]:
    """Read and check a predictions file.

    Raises PredictionsError: unreadable, empty, a line that is not JSON, a field missing or wrong, an id twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "name a predictions-dev.jsonl or predictions-test.jsonl of a run of `kibun train`"
        raise PredictionsError(f"{path}: cannot be read ({error}); {fix}") from error
    predictions: dict[str, Prediction] = {}
    for where, row in json_objects(path, text, PredictionsError):
        prediction = _prediction(where, row)
        if prediction.id in predictions:
            raise PredictionsError(f"{where}: field 'id': {prediction.id!r} was given before")
        predictions[prediction.id] = prediction
    if not predictions:
        raise PredictionsError(f"{path}: has no predictions")
    return list(predictions.values())


def check_figure(figure: str, field: str | None) -> None:
    """Raise PredictionsError unless figure is an emotion and field None, or a trait and field one of TRAIT_FIELDS."""
    if figure not in (*EMOTIONS, *TRAITS):
        raise PredictionsError(f"dimension {figure!r}: must be one of {', '.join((*EMOTIONS, *TRAITS))}")
    if figure in TRAITS and field not in TRAIT_FIELDS:
        raise PredictionsError(f"{figure}: name the estimate to use: {', '.join(TRAIT_FIELDS)}; given is {field!r}")
    if figure in EMOTIONS and field is not None:
        raise PredictionsError(f"{figure}: there is one estimate of an emotion; {field!r} is for traits")


def pairs_of(
    predictions: Sequence[Prediction], figure: str, field: str | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Prediction]]:
    """(predicted (N,), truth (N,), their utterances) of the utterances that have a label.

    figure: valence, arousal, or a trait; a trait needs ``field``, one of TRAIT_FIELDS.
    Raises PredictionsError as `check_figure` does, where nothing is labelled, and where a labelled utterance has no
    estimate.
    """
    check_figure(figure, field)
    predicted, truth, there = [], [], []
    for prediction in predictions:
        label = _value(prediction, figure, "traits")
        if label is None:
            continue
        estimate = _value(prediction.predicted, figure, field)
        if estimate is None:
            fix = "evaluate a model that estimates it"
            raise PredictionsError(f"{prediction.id}: field 'predicted': has no {field or figure}; {fix}")
        predicted.append(estimate)
        truth.append(label)
        there.append(prediction)
    if not there:
        raise PredictionsError(f"no utterance has a label of {figure}: nothing to compare with")
    return np.array(predicted), np.array(truth), there


def ccc_of(predictions: Sequence[Prediction], figure: str, field: str | None = None) -> float:
    """CCC over the labelled utterances; arguments and errors as for `pairs_of`.

    To count each conversation profile once, pass `units_of(predictions, field)`.
    """
    predicted, truth, _ = pairs_of(predictions, figure, field)
    return ccc(predicted, truth)


def expected_error(
    predictions: Sequence[Prediction], centre: Sequence[float], counts: Sequence[int] = UTTERANCE_COUNTS
) -> tuple[Evidence, ...]:
    """What the causal traits are worth, for every count of utterances that some conversation reaches.

    predictions: of speakers that were held out, and chose nothing either. centre: (5,) mean of the training speakers.
    Raises PredictionsError as `pairs_of` does.
    """
    there = [row for row in predictions if row.traits is not None and row.predicted.heard in counts]
    if not there:
        return ()
    pairs = [pairs_of(there, trait, "causal_traits")[:2] for trait in TRAITS]
    estimated, truth = (np.stack([pair[side] for pair in pairs], axis=1) for side in (0, 1))
    heard = np.array([row.predicted.heard for row in there])
    return evidence_by_count(heard, estimated, truth, centre, counts)


def evidence_by_count(
    heard: NDArray[np.int64],
    estimated: NDArray[np.floating],
    truth: NDArray[np.floating],
    centre: Sequence[float],
    counts: Sequence[int] = UTTERANCE_COUNTS,
    speakers: NDArray[np.integer] | None = None,
) -> tuple[Evidence, ...]:
    """What traits (N, 5), each estimated after `heard` (N,) utterances, are worth at every one of `counts` there is.

    speakers: (N,), a number for each speaker, where several estimates are of the same one; None: all are of others.
    """
    rows = []
    for count in counts:
        if (here := heard == count).any():
            some = None if speakers is None else len(np.unique(speakers[here]))
            rows.append(measured(count, estimated[here], truth[here], centre, some))
    return tuple(rows)


def last_of_each(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The last utterance of every conversation profile: the one with the highest `heard`, else the last in order."""
    last: dict[tuple[str, str], Prediction] = {}
    for prediction in predictions:
        before = last.get(prediction.conversation)
        if before is None or (prediction.predicted.heard or 0) >= (before.predicted.heard or 0):
            last[prediction.conversation] = prediction
    return list(last.values())


def units_of(predictions: Sequence[Prediction], field: str | None) -> list[Prediction]:
    """The utterances that count: one of each conversation for PROFILE_FIELDS, else all."""
    return last_of_each(predictions) if field in PROFILE_FIELDS else list(predictions)


def align(first: Sequence[Prediction], second: Sequence[Prediction]) -> list[tuple[Prediction, Prediction]]:
    """Pairs of the same utterance, in the order of ``first``.

    Raises PredictionsError where an utterance is on one side only, or both sides disagree on its truth or conversation.
    """
    here, there = {p.id: p for p in first}, {p.id: p for p in second}
    for side, lacking in (("second", here.keys() - there.keys()), ("first", there.keys() - here.keys())):
        if lacking:
            fix = "compare predictions of one split"
            raise PredictionsError(
                f"{len(lacking)} utterances are missing in the {side} file, {min(lacking)!r} first; {fix}"
            )
    for ours in here.values():
        theirs = there[ours.id]
        for field in ("conversation", "valence", "arousal", "traits"):
            if getattr(ours, field) != getattr(theirs, field):
                raise PredictionsError(
                    f"{ours.id}: field {field!r} is {getattr(ours, field)!r} in the first file and"
                    f" {getattr(theirs, field)!r} in the second; predict both from one manifest"
                )
    return [(ours, there[ours.id]) for ours in here.values()]


def _value(source: Prediction | Estimate, figure: str, traits_field: str | None) -> float | None:
    if figure in EMOTIONS:
        return cast(float | None, getattr(source, figure))
    traits = getattr(source, traits_field or "")
    return None if traits is None else cast(float, traits[TRAITS.index(figure)])


def _as_row(prediction: Prediction) -> dict[str, Any]:
    row = dataclasses.asdict(prediction)
    estimates = {name: value for name, value in row.pop("predicted").items() if value is not None}
    return {**row, "predicted": estimates}


def _prediction(where: str, row: dict[str, Any]) -> Prediction:
    for field in ("id", "dialogue", "speaker"):
        if not isinstance(row.get(field), str) or not row[field]:
            raise PredictionsError(f"{where}: field {field!r} must be a non-empty string, is {row.get(field)!r}")
    if not isinstance(row.get("gender"), str | None):
        raise PredictionsError(f"{where}: field 'gender' must be a string or null, is {row['gender']!r}")
    return Prediction(
        id=row["id"],
        dialogue=row["dialogue"],
        speaker=row["speaker"],
        gender=row.get("gender"),
        predicted=_estimate(f"{where}: field 'predicted'", row.get("predicted")),
        valence=_number(where, row, "valence"),
        arousal=_number(where, row, "arousal"),
        traits=_traits(where, row, "traits"),
    )


def _estimate(where: str, row: Any) -> Estimate:
    if not isinstance(row, dict):
        raise PredictionsError(f"{where}: must be a JSON object, is {'missing' if row is None else type(row).__name__}")
    known = {field.name for field in dataclasses.fields(Estimate)}
    for field in sorted(row.keys() - known):
        raise PredictionsError(f"{where}: {field!r} is unknown; known are {', '.join(sorted(known))}")
    heard = row.get("heard")
    if heard is not None and (isinstance(heard, bool) or not isinstance(heard, int) or heard < 1):
        raise PredictionsError(f"{where}: 'heard' must be a whole number from 1, is {heard!r}")
    return Estimate(
        valence=_number(where, row, "valence"),
        arousal=_number(where, row, "arousal"),
        utterance_traits=_traits(where, row, "utterance_traits"),
        average_traits=_traits(where, row, "average_traits"),
        conversation_traits=_traits(where, row, "conversation_traits"),
        causal_traits=_traits(where, row, "causal_traits"),
        heard=heard,
    )


def _number(where: str, row: dict[str, Any], field: str) -> float | None:
    value = row.get(field)
    return None if value is None else _finite(where, field, value)


def _traits(where: str, row: dict[str, Any], field: str) -> Traits | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != len(TRAITS):
        raise PredictionsError(f"{where}: field {field!r} must be a list of {', '.join(TRAITS)}, is {value!r}")
    return cast(Traits, tuple(_finite(where, field, number) for number in value))


def _finite(where: str, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PredictionsError(f"{where}: field {field!r} must hold finite numbers, has {value!r}")
    return float(value)
