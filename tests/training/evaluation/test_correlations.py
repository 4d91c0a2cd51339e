"""Tables II and III on manifests with known correlations, with missing labels and with undefined correlations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress

from kibun.models.types import EMOTIONS, TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.eval_commands import eval_app
from kibun.training.evaluation.correlations import correlate, to_tables
from tests.support.commands import invoke
from tests.support.tiny_corpus import write_manifest


def row(
    index: int,
    dialogue: str,
    speaker: str,
    gender: str | None,
    traits: Sequence[float] | None,
    emotion: tuple[float | None, float | None],
) -> dict[str, Any]:
    valence, arousal = emotion
    return {
        "id": f"u{index}",
        "path": f"u{index}.wav",  # audio is not needed, and not there
        "dialogue": dialogue,
        "speaker": speaker,
        "gender": gender,
        "traits": None if traits is None else dict(zip(TRAITS, traits, strict=True)),
        "valence": valence,
        "arousal": arousal,
    }


def corpus(dialogues: int = 14, seed: int = 0) -> list[dict[str, Any]]:
    """Two speakers a dialogue, 2 to 7 utterances each; agreeable speakers sound pleasant, women more so."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for dialogue in range(dialogues):
        for speaker, gender in (("F", "female"), ("M", "male")):
            traits = rng.uniform(1, 7, 5).round(3).tolist()
            for _ in range(int(rng.integers(2, 8))):
                valence = 3 + (0.3 if gender == "female" else 0.1) * (traits[3] - 4) + 0.5 * rng.normal()
                emotion = (float(np.clip(valence, 0, 6)), float(rng.uniform(1, 5)))
                rows.append(row(len(rows), f"d{dialogue}", f"{speaker}{dialogue}", gender, traits, emotion))
    return rows


def run(folder: Path, rows: list[dict[str, Any]], *arguments: str, code: int = 0) -> str:
    """Standard output, or standard error where the command is to fail."""
    manifest = write_manifest(folder, rows)
    return invoke(eval_app, "correlations", "--manifest", manifest, *arguments, code=code)


def plain(rows: list[dict[str, Any]], trait: str, emotion: str) -> tuple[int, float, float]:
    line = linregress([r["traits"][trait] for r in rows], [r[emotion] for r in rows])
    return len(rows), line.rvalue, line.pvalue


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a speaker and dialogue, with the mean emotion."""
    profiles: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in rows:
        profiles.setdefault((one["dialogue"], one["speaker"]), []).append(one)
    return [{**m[0], **{e: float(np.mean([x[e] for x in m])) for e in EMOTIONS}} for m in profiles.values()]


@pytest.mark.parametrize("level", ["utterance", "conversation"])
def test_every_correlation_equals_the_plain_one(tmp_path: Path, level: str) -> None:
    rows = corpus()
    data = json.loads(run(tmp_path, rows, "--level", level, "--json"))
    assert list(data) == ["all", "male", "female"]
    points = rows if level == "utterance" else means(rows)
    for group in data:
        members = [one for one in points if group in ("all", one["gender"])]
        assert data[group]["left_out"] == {}
        for trait in TRAITS:
            for emotion in EMOTIONS:
                n, r, p = plain(members, trait, emotion)
                assert data[group]["n"] == n
                assert data[group][trait][emotion] == {"r": pytest.approx(r), "p": pytest.approx(p)}
    assert data["all"]["n"] == (28 if level == "conversation" else len(rows))
    assert data["female"]["agreeableness"]["valence"]["r"] > data["male"]["agreeableness"]["valence"]["r"] > 0


def test_one_speaker_in_two_dialogues_is_two_profiles(tmp_path: Path) -> None:
    rows = corpus()
    for one in rows:
        one["speaker"] = one["speaker"][0]  # the same two actors throughout
    assert json.loads(run(tmp_path, rows, "--level", "conversation", "--json"))["all"]["n"] == 28


def test_printed_tables_explain_the_stars_and_the_missing_published_figures(tmp_path: Path) -> None:
    rows = corpus()
    text = run(tmp_path, rows, "--level", "utterance", "--by", "gender")
    for name, count in (("all", len(rows)), *((g, sum(r["gender"] == g for r in rows)) for g in ("male", "female"))):
        assert f"Table II, {name}: Pearson's r of traits and emotion over {count} utterances" in text
    assert text.count("not corrected") == 1  # notes for all come once, at the end
    assert "p takes utterances as independent" in text
    assert "Published figures are shown for IEMOCAP's 10,039 utterances only." in text
    r = json.loads(run(tmp_path, rows, "--level", "utterance", "--json"))["all"]["agreeableness"]["valence"]["r"]
    line = next(line for line in text.splitlines() if "agreeableness" in line)
    assert line.split()[1:5] == [f"{r:.3f}", "***", "<", "0.001"]
    markdown = run(tmp_path, rows, "--level", "conversation", "--markdown")
    assert markdown.startswith("**Table III, all")
    assert "female" not in markdown
    assert "|  | valence | p | arousal | p |" in markdown


def test_the_published_figures_stand_beside_those_of_the_whole_corpus() -> None:
    rng = np.random.default_rng(0)
    items = [
        Item(
            str(index), Path(str(index)), str(index), str(index), gender="male" if index < 5_239 else "female",
            valence=float(rng.uniform(1, 5)), arousal=3.0 + index % 2, traits=tuple(rng.uniform(1, 7, 5)),
        )
        for index in range(10_039)
    ]  # fmt: skip
    everyone, men, women = to_tables(correlate(items, "utterance"), by_gender=True)
    assert [row.cells[0].published for row in everyone.rows] == [0.527, 0.327, 0.350, 0.508, -0.447]
    assert [row.cells[2].published for row in men.rows] == [0.092, -0.189, 0.287, -0.095, 0.198]
    assert women.rows[3].cells[0].published == 0.546
    assert all(row.cells[1].published is None for row in everyone.rows)  # p is our own
    (fewer,) = to_tables(correlate(items[1:], "utterance"), by_gender=False)
    assert all(cell.published is None for row in fewer.rows for cell in row.cells)


def test_utterances_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = corpus()
    without = [
        row(900, "x", "A", "male", None, (3.0, 3.0)),
        row(901, "x", "B", "male", [4] * 5, (None, 3.0)),
        row(902, "x", "C", "female", [4] * 5, (3.0, None)),
        row(903, "x", "D", None, None, (None, None)),
    ]
    data = json.loads(run(tmp_path, [*rows, *without], "--level", "utterance", "--json"))
    bare = json.loads(run(tmp_path, rows, "--level", "utterance", "--json"))
    assert data["all"].pop("left_out") == {"traits": 2, "valence": 1, "arousal": 1}
    assert data["male"].pop("left_out") == {"traits": 1, "valence": 1}
    assert data["female"].pop("left_out") == {"arousal": 1}
    for group in bare.values():
        group.pop("left_out")
    assert data == bare
    text = run(tmp_path, [*rows, *without], "--level", "utterance")
    assert "Left out: 2 without traits, 1 without valence, 1 without arousal (utterances)." in text


def test_speakers_without_gender_are_only_in_all_and_a_note_reports_it(tmp_path: Path) -> None:
    rows = corpus()
    for one in rows:
        if one["dialogue"] in ("d0", "d1"):
            one["gender"] = None if one["dialogue"] == "d0" else "other"
    data = json.loads(run(tmp_path, rows, "--level", "conversation", "--json"))
    assert [data[group]["n"] for group in data] == [28, 12, 12]
    text = run(tmp_path, rows, "--level", "conversation", "--by", "gender")
    assert "4 conversations are marked neither male nor female: in all only." in text


def test_a_constant_label_gives_null_and_its_reason(tmp_path: Path) -> None:
    rows = corpus()
    for one in rows:
        one["arousal"] = 3.0
        one["traits"]["openness"] = 4.0
    output = run(tmp_path, rows, "--level", "utterance", "--json")
    assert "NaN" not in output
    cells = json.loads(output)["all"]
    assert cells["openness"]["valence"] == {"r": None, "p": None, "reason": "openness is the same everywhere"}
    assert cells["neuroticism"]["arousal"] == {"r": None, "p": None, "reason": "arousal is the same everywhere"}
    assert cells["neuroticism"]["valence"]["r"] is not None
    text = run(tmp_path, rows, "--level", "utterance")
    assert "–: undefined, arousal is the same everywhere." in text


def test_too_few_points_give_null_in_a_group_and_an_error_overall(tmp_path: Path) -> None:
    rows = [one for one in corpus() if one["gender"] == "male" or one["dialogue"] in ("d0", "d1")]
    female = json.loads(run(tmp_path, rows, "--level", "conversation", "--json"))["female"]
    assert female["n"] == 2
    assert female["openness"]["valence"] == {"r": None, "p": None, "reason": "needs at least 3, has 2"}
    for one in rows[2:]:
        one["valence"] = None
    error = run(tmp_path, rows, "--level", "utterance", code=2)
    assert error.startswith("error: 2 utterances have traits, valence and arousal, a correlation needs at least 3; ")
    assert f"{len(rows) - 2} of {len(rows)} utterances lack valence" in error


@pytest.mark.parametrize(("field", "value"), [("gender", "male"), ("traits", dict.fromkeys(TRAITS, 4.0))])
def test_a_profile_that_contradicts_itself_is_named(tmp_path: Path, field: str, value: object) -> None:
    rows = corpus()
    rows[1] = {**rows[1], field: value}
    error = run(tmp_path, rows, "--level", "conversation", code=2)
    assert f"error: u1: field {field!r} is " in error
    assert "in u0: one speaker of one dialogue has one" in error


def test_wrong_options_and_a_missing_manifest_are_refused(tmp_path: Path) -> None:
    assert "exclude each other" in run(tmp_path, corpus(), "--level", "utterance", "--json", "--markdown", code=2)
    assert "'utterance', 'conversation'" in run(tmp_path, corpus(), "--level", "speaker", code=2)
    missing = ("correlations", "--manifest", tmp_path / "no", "--level", "utterance")
    assert "cannot be read" in invoke(eval_app, *missing, code=2)
