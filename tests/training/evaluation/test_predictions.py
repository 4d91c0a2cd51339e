"""Predictions files: writing and reading, errors, and aligning the files of two models."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.predictions import (
    Estimate,
    Prediction,
    PredictionsError,
    align,
    ccc_of,
    last_of_each,
    pairs_of,
    read_predictions,
    write_predictions,
)
from kibun.training.evaluation.significance import compare, compare_predictions
from tests.support.predictions import utterances


def valences(predictions: list[Prediction]) -> list[float]:
    """Estimates of valence; NaN, which every figure refuses, where there is none."""
    return [np.nan if p.predicted.valence is None else p.predicted.valence for p in predictions]


def test_a_file_is_read_back_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "predictions-test.jsonl"
    written = [*utterances(), Prediction("ü", "d", "s", Estimate())]
    write_predictions(file, written)
    assert read_predictions(file) == written
    assert list(tmp_path.iterdir()) == [file]


def test_nan_is_refused_and_the_old_file_survives(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("before")
    with pytest.raises(ValueError):
        write_predictions(file, [Prediction("a", "d", "s", Estimate(valence=float("nan")))])
    assert file.read_text() == "before"


GOOD = '{"id": "a", "dialogue": "d", "speaker": "s", "valence": 3, "predicted": {"valence": 2}}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no predictions"),
        ("{", ":2: not JSON"),
        ("[1]", ":2: must be a JSON object, is list"),
        (GOOD.replace('"d"', '""'), ":2: field 'dialogue' must be a non-empty string"),
        (GOOD.replace('"id": "a", ', ""), ":2: field 'id' must be a non-empty string, is None"),
        (GOOD.replace("3", '"3"'), ":2: field 'valence' must hold finite numbers, has '3'"),
        (GOOD.replace("3", "NaN"), ":2: field 'valence' must hold finite numbers, has nan"),
        (GOOD.replace('"valence": 3', '"traits": [1, 2]'), ":2: field 'traits' must be a list of openness"),
        (
            GOOD.replace('"valence": 2', '"valance": 2'),
            ":2: field 'predicted': 'valance' is unknown; known are arousal",
        ),
        (GOOD.replace('"valence": 2', '"heard": 0'), "'heard' must be a whole number from 1"),
        (GOOD.replace(', "predicted": {"valence": 2}', ""), "field 'predicted': must be a JSON object, is missing"),
        (GOOD.replace('"speaker"', '"gender": 1, "speaker"'), "field 'gender' must be a string or null, is 1"),
        (GOOD + "\n" + GOOD, ":3: field 'id': 'a' was given before"),
    ],
)
def test_an_error_names_file_line_and_reason(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n" + line)
    with pytest.raises(PredictionsError) as caught:
        read_predictions(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_the_error_of_a_missing_file_says_which_file_to_name(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match=r"nowhere\.jsonl: cannot be read .*predictions-dev\.jsonl"):
        read_predictions(tmp_path / "nowhere.jsonl")


def test_ccc_counts_labelled_utterances_only() -> None:
    found = utterances()
    unlabelled = dataclasses.replace(found[0], id="x", valence=None, predicted=Estimate(valence=99.0))
    assert ccc_of([*found, unlabelled], "valence") == ccc_of(found, "valence")
    assert ccc_of(found, "valence") == ccc(valences(found), [p.valence or np.nan for p in found])
    assert ccc_of(found, "openness", "conversation_traits") == 1
    assert ccc_of(found, "neuroticism", "causal_traits") == 0


def test_ccc_refuses_missing_labels_and_estimates() -> None:
    found = utterances()
    with pytest.raises(PredictionsError, match="no utterance has a label of arousal"):
        ccc_of(found, "arousal")
    silent = dataclasses.replace(found[3], predicted=Estimate())
    with pytest.raises(PredictionsError, match="u3: field 'predicted': has no valence"):
        ccc_of([*found[:3], silent], "valence")
    with pytest.raises(PredictionsError, match=r"u0: .* has no average_traits"):
        ccc_of(found, "openness", "average_traits")
    for figure, field, message in (
        ("openness", None, "name the estimate to use"),
        ("valence", "causal_traits", "one estimate"),
        ("mood", None, "must be one of valence"),
    ):
        with pytest.raises(PredictionsError, match=message):
            ccc_of(found, figure, field)


def test_the_last_utterance_of_each_profile_is_the_one_with_most_heard() -> None:
    found = utterances()
    assert [p.id for p in last_of_each(found)] == ["u8", "u9", "u10", "u11"]
    assert {p.id for p in last_of_each(found[::-1])} == {"u8", "u9", "u10", "u11"}


def test_files_are_aligned_by_id() -> None:
    found, other = utterances(), utterances(offset=1)[::-1]
    pairs = align(found, other)
    assert [(a.id, b.id) for a, b in pairs] == [(p.id, p.id) for p in found]
    with pytest.raises(PredictionsError, match="2 utterances are missing in the second file, 'u10' first"):
        align(found, other[2:])
    with pytest.raises(PredictionsError, match="1 utterances are missing in the first file, 'u0' first"):
        align(found[1:], other)
    with pytest.raises(PredictionsError, match=r"u11: field 'valence' is .* predict both from one manifest"):
        align(found, [dataclasses.replace(other[0], valence=1.0), *other[1:]])
    with pytest.raises(PredictionsError, match="field 'conversation'"):
        align(found, [dataclasses.replace(other[0], speaker="s9"), *other[1:]])


def test_comparing_predictions_equals_comparing_their_arrays() -> None:
    first, second = [utterances(40), utterances(40, offset=0.5)], [utterances(40, offset=2)]
    result = compare_predictions(first, [run[::-1] for run in second], "valence", draws=200, seed=3)
    _, truth, there = pairs_of(first[0], "valence")
    ours, theirs = ([valences(run) for run in side] for side in (first, second))
    assert result == compare(ours, theirs, truth, [p.conversation for p in there], draws=200, seed=3)
    assert (result.clusters, result.points) == (4, 40)
    with pytest.raises(PredictionsError, match="either side"):
        compare_predictions([], [utterances()], "valence")
