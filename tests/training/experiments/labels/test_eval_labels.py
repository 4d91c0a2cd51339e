"""`kibun eval labels` on generated worlds whose truth is known: its controls must come out right."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kibun.training.corpora.label_table import read_label_table
from kibun.training.errors import ManifestError
from kibun.training.eval_commands import eval_app
from kibun.training.evaluation.metrics import ccc
from kibun.training.experiments.labels.folds import make_folds, warnings_about
from kibun.training.experiments.labels.nets import EPOCHS
from kibun.training.experiments.labels.study import LabelOptions, ModelRow, rows_of
from tests.support.commands import invoke
from tests.support.fake_iemocap import ALL_SESSIONS
from tests.support.label_world import LabelWorld, write_labels

LINEAR = ("--no-nets", "--no-heads", "--seeds", "0,1")
TINY = LabelWorld(additive=0.4, sessions=2, dialogues=3, each=2, features=3)


def run(folder: Path, world: LabelWorld, *options: str) -> dict[str, Any]:
    features, labels = world.write(folder)
    arguments = ("--features", features, "--labels", labels, "--dimension", "valence", *options)
    return json.loads(invoke(eval_app, "labels", *arguments, "--json"))  # type: ignore[no-any-return]


def scores(data: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    return {(r["form"], r["model"], r["traits"]): r["ccc"] for r in data["rows"] if r["traits"] == r["trained_with"]}


def differences(data: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["first"]["form"], one["name"]): one["comparison"] for one in data["differences"]}


def nothing(one: dict[str, Any], at_most: float = 0.03) -> bool:
    """No difference worth a word: the interval covers 0, or nearly, and is small."""
    return bool(one["low"] <= 0.002 and one["high"] >= -0.002 and abs(one["difference"]) < at_most)


def test_where_traits_act_by_themselves_interaction_adds_nothing(tmp_path: Path) -> None:
    data = run(tmp_path, LabelWorld(additive=0.6), *LINEAR)
    found, apart = scores(data), differences(data)
    assert found["linear", "traits only", "true"] > 0.3
    assert abs(found["linear", "traits only", "shuffled"]) < 0.1
    assert apart["linear", "both − acoustics"]["low"] > 0.1
    assert nothing(apart["linear", "audio × traits, own ridge − both"])
    # 60 columns that mean nothing cost what they cost: 480 rows of train are few for them.
    assert -0.06 < apart["linear", "audio × traits − both"]["difference"] < 0.01
    # Five columns that mean nothing, with as few values as there are profiles, cost a little.
    assert -0.06 < apart["linear", "both (shuffled) − acoustics"]["difference"] < 0.02
    # Inaudible: what is predicted adds nothing.
    assert nothing(apart["linear", "both (ridge on the conversation's mean) − acoustics"], 0.06)
    assert max(abs(one["ccc"]) for one in data["traits"]["ridge"].values()) < 0.2
    noisy = [found["linear", "both", f"noise_{sigma}"] for sigma in ("1.6", "0.8", "0.4")]
    assert found["linear", "acoustics", "none"] < noisy[0] < noisy[1] < noisy[2] < found["linear", "both", "true"]


def test_where_traits_and_voice_interact_products_gain(tmp_path: Path) -> None:
    data = run(tmp_path, LabelWorld(additive=0.3, product=0.5), *LINEAR)
    found, apart = scores(data), differences(data)
    assert apart["linear", "audio × traits − both"]["low"] > 0.1
    assert found["linear", "audio × traits", "true"] > 0.8
    assert nothing(apart["linear", "audio × traits, own ridge (shuffled) − acoustics"], 0.05)
    assert apart["linear", "audio × traits, own ridge − both"]["low"] > 0.1


def test_where_traits_are_noise_nothing_is_gained(tmp_path: Path) -> None:
    data = run(tmp_path, LabelWorld(), *LINEAR)
    found = scores(data)
    assert abs(found["linear", "traits only", "true"]) < 0.05
    for (_, name), one in differences(data).items():
        if name.startswith("audio × traits") and "own ridge" not in name:
            assert -0.06 < one["difference"] < 0.01, name
        else:
            assert nothing(one, 0.01) or name == "both − traits only", name


def test_where_traits_are_audible_predicted_ones_come_close(tmp_path: Path) -> None:
    data = run(tmp_path, LabelWorld(additive=0.6, audible=1.0), *LINEAR)
    found, apart = scores(data), differences(data)
    assert min(one["ccc"] for one in data["traits"]["ridge"].values()) > 0.75
    assert apart["linear", "both (ridge on the conversation's mean) − acoustics"]["low"] > 0.02
    assert found["linear", "both", "true"] - 0.06 < found["linear", "both", "ridge"] < found["linear", "both", "true"]
    trained = next(r for r in data["rows"] if r["traits"] == "ridge" and r["trained_with"] == "true")
    assert trained["ccc"] == pytest.approx(found["linear", "both", "ridge"], abs=0.03)


def test_plain_rows_are_least_squares_of_standardised_columns(tmp_path: Path) -> None:
    world = LabelWorld(additive=0.3, product=0.5, features=3)  # 23 columns with products, 480 rows of train
    found = scores(run(tmp_path, world, "--no-nets", "--no-heads", "--quick"))
    x, rows = world.draw()
    traits = np.array([[row[name] for name in ("OP", "CO", "EX", "AG", "NE")] for row in rows], dtype=np.float64)
    truth = np.array([row["valence"] for row in rows], dtype=np.float64)
    session = np.array([str(row["dialogue"])[:5] for row in rows])
    textbook: dict[str, list[float]] = {}
    for name in np.unique(session):
        train, test = session != name, session == name
        one, other = ((a - a[train].mean(axis=0)) / a[train].std(axis=0) for a in (x.astype(np.float64), traits))
        both = np.concatenate([one, other], axis=1)
        products = np.einsum("nd,nk->ndk", one, other).reshape(len(both), -1)
        for model, columns in (
            ("acoustics", one),
            ("traits only", other),
            ("both", both),
            ("audio × traits", np.concatenate([both, products], axis=1)),
        ):
            ones = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
            weights = np.linalg.lstsq(ones[train], truth[train], rcond=None)[0]
            textbook.setdefault(model, []).append(ccc(ones[test] @ weights, truth[test]))
    for model, values in textbook.items():
        mine = found["linear", model, "none" if model == "acoustics" else "true"]
        assert mine == pytest.approx(np.mean(values), abs=0.003), model  # a ridge of 1 is not quite none
    assert np.mean(textbook["audio × traits"]) > np.mean(textbook["both"]) + 0.1


def test_everything_is_there_in_tables_json_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kibun.training.experiments.labels.nets.EPOCHS", 2)
    monkeypatch.setattr("kibun.training.experiments.labels.trait_heads.EPOCHS", 1)
    for module in ("nets", "trait_heads"):
        monkeypatch.setattr(f"kibun.training.experiments.labels.{module}.STEPS_PER_EPOCH", 2)
    features, labels = TINY.write(tmp_path)
    arguments = ("labels", "--features", features, "--labels", labels, "--seeds", "0,1", "--sigma", ".8")
    picture = tmp_path / "bars.svg"
    data = json.loads(invoke(eval_app, *arguments, "--plot", picture, "--json"))
    assert [data[name] for name in ("table", "splits", "utterances", "size", "conversations", "seeds")] == [
        "labels", "loso", 24, 3, 12, [0, 1],
    ]  # fmt: skip
    assert [fold["name"] for fold in data["folds"]] == ["without session 1", "without session 2"]
    rows = {(r["emotion"], *(r[name] for name in ("form", "model", "traits", "trained_with"))): r for r in data["rows"]}
    expected = rows_of(LabelOptions(("valence", "arousal"), (0, 1), (0.8,)), 3)
    assert set(rows) == {(e, *dataclasses.astuple(row)) for e in ("valence", "arousal") for row in expected}
    assert ModelRow("net", "CA", "shuffled", "shuffled") in expected
    for row in rows.values():
        random = row["form"] == "net" or row["traits"] not in ("none", "true", "ridge")
        assert len(row["values"]) == (2 if random else 1)
        assert row["ccc"] == pytest.approx(np.mean(row["folds"])) == pytest.approx(np.mean(row["values"]))
        assert row["interval"][0] <= row["ccc"] <= row["interval"][1]
    settings = {"ridge", "noise_0.8", "setting1", "setting2", "setting2_calibrated", "setting3", "causal3"}
    assert set(data["traits"]) == settings
    assert data["published"]["valence"]["paper, Table IV: baseline"] == 0.698
    drawn = picture.read_text(encoding="utf-8")
    assert "small net: CA over parts of the vector" in drawn
    assert "CCC of arousal" in drawn
    text = invoke(eval_app, *arguments)
    for words in (
        "valence: true traits and their control, CCC",
        "arousal: traits predicted from the same features, or noisy, CCC",
        "small net: modulation − both",
        "setting 2, calibrated",
        "paper, Table VI: TICN-CA, setting 3 traits, all",
        "TICN is left out: it needs frames over time",
        "How well the traits themselves are predicted",
    ):
        assert words in text
    assert EPOCHS > 2  # the constant itself is not changed


def test_one_feature_has_no_cross_attention(tmp_path: Path) -> None:
    data = run(tmp_path, dataclasses.replace(TINY, features=12), *LINEAR)
    assert data["left_out"] == []
    features, labels = TINY.write(tmp_path)
    np.save(features, np.load(features)[:, :1])
    arguments = ("labels", "--features", features, "--labels", labels, *LINEAR)
    assert "CA is left out: one feature is one key" in invoke(eval_app, *arguments)
    assert not [row for row in rows_of(LabelOptions(("valence",)), 1) if row.model == "CA"]


def test_the_papers_splits_give_one_fold_and_its_warning(tmp_path: Path) -> None:
    _x, rows = dataclasses.replace(TINY, sessions=5, dialogues=4).draw()
    for index, row in enumerate(rows):
        dialogue = ALL_SESSIONS[index * len(ALL_SESSIONS) // len(rows)]
        row |= {"dialogue": dialogue, "speaker": f"{dialogue[:5]}_{'FM'[index // 2 % 2]}"}
    table = read_label_table(write_labels(tmp_path / "labels.csv", rows))
    (fold,) = make_folds(table, "paper")
    names = [{table.items[row].dialogue[:6] for row in part} for part in (fold.train, fold.dev, fold.test)]
    assert names == [{f"Ses0{n}{m}" for n in (2, 3, 4) for m in "FM"}, {"Ses01F"}, {"Ses01M"}]
    assert np.array_equal(fold.fit, fold.train)
    assert len(set(fold.parts[fold.train])) == 3
    warnings = list(warnings_about(table, [fold]))
    assert warnings[0].startswith("utterances of dialogues that the splits do not name, left out:")
    assert warnings[1].startswith("dev and test share the speakers Ses01_F, Ses01_M")


def test_folds_keep_sessions_apart_and_dev_is_a_fifth_of_trains_dialogues(tmp_path: Path) -> None:
    table = read_label_table(LabelWorld(sessions=4, dialogues=5, each=2).write(tmp_path)[1])
    folds = make_folds(table, "loso")
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(len(table.items)))
    for fold in folds:
        dialogues = [{table.items[row].dialogue for row in part} for part in (fold.fit, fold.dev, fold.test)]
        assert [len(each) for each in dialogues] == [12, 3, 5]
        assert not set.intersection(*dialogues)
        assert len(fold.fit) + len(fold.dev) == len(fold.train)
        for rest, part in fold.without_parts():
            sessions = [{table.items[row].dialogue[:5] for row in rows} for rows in (rest, part)]
            assert [len(each) for each in sessions] == [2, 1]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"dialogue": "here"}, (), "add a column 'session' to the labels"),
        ({"session": "one"}, (), "needs two sessions or more, the labels have ['session one']"),
        ({}, ("--splits", "paper"), "names no dialogue of train or of test that the labels have"),
        ({}, ("--splits", "nowhere"), "no splits 'nowhere'"),
        ({}, ("--seeds", "x"), "--seeds: 'x' must be a whole number"),
        ({}, ("--sigma", "0,inf"), "--sigma: 'inf' must be a number"),
        ({}, ("--plot", "bars.gif"), "cannot be written as '.gif'"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(
    tmp_path: Path, change: dict[str, object], options: tuple[str, ...], message: str
) -> None:
    x, rows = TINY.draw()
    np.save(tmp_path / "x.npy", x)
    if "dialogue" in change:
        rows = [{**row, "dialogue": f"d{row['dialogue']}"} for row in rows]
    elif change:
        rows = [row | change for row in rows]
    labels = write_labels(tmp_path / "labels.csv", rows)
    error = invoke(eval_app, "labels", "--features", tmp_path / "x.npy", "--labels", labels, *options, code=2)
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error


def test_too_few_conversations_are_refused(tmp_path: Path) -> None:
    _x, rows = TINY.draw()
    table = read_label_table(write_labels(tmp_path / "l.csv", rows[:14]))  # one conversation in session 2
    with pytest.raises(ManifestError, match="without session 1: train has 1 speaker-conversations, needs 4 or more"):
        make_folds(table, "loso")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "world",
    [
        LabelWorld(additive=0.6, product=0.0),
        LabelWorld(additive=0.3, product=0.5),
        LabelWorld(),
        LabelWorld(additive=0.6, audible=0.8),
    ],
    ids=["additive", "interaction", "noise", "audible"],
)
def test_nets_and_heads_come_out_right_too(tmp_path: Path, world: LabelWorld) -> None:
    # Large enough for the bounds: at 3 × 20 × 12 with one seed, traits that nobody can hear cost .058.
    big = dataclasses.replace(world, sessions=5, dialogues=14, each=16, features=20)
    data = run(tmp_path, big, "--seeds", "0,1")
    found, apart = scores(data), differences(data)
    modulated = apart["net", "modulation − both"]
    if world.product:
        assert modulated["low"] > -0.01  # a net of both learns the product as well
        assert found["net", "modulation", "true"] > found["linear", "both", "true"] + 0.1
        assert apart["linear", "audio × traits − both"]["low"] > 0.1
    else:
        assert modulated["difference"] < 0.03
        assert nothing(apart["linear", "audio × traits, own ridge − both"])
    for form in ("linear", "net"):
        gain = apart[form, "both − acoustics"]
        assert gain["low"] > 0.02 if world.additive else nothing(gain)  # the lowest is .066 [.048, .084]
        assert abs(found[form, "traits only", "shuffled"]) < 0.1
        assert abs(found[form, "both", "shuffled"] - found[form, "acoustics", "none"]) < 0.05
        for setting in ("setting 2", "setting 2, calibrated", "setting 3", "causal setting 3"):
            predicted = apart[form, f"both ({setting}) − acoustics"]
            if world.audible and setting != "causal setting 3":
                assert predicted["low"] > 0, setting
            else:
                assert abs(predicted["difference"]) < 0.05 or world.audible, setting
    for setting in ("setting2", "setting3"):
        mean = np.mean([one["ccc"] for one in data["traits"][setting].values()])
        assert mean > 0.6 if world.audible else mean < 0.15, setting
