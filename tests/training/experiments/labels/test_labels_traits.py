"""Traits that are predicted, noisy or exchanged: cross-fitted, causal, calibrated, and never a peep at the truth."""

import numpy as np
import pytest
import torch

from kibun.models.types import TRAITS
from kibun.training.corpora.label_table import LabelTable, read_label_table
from kibun.training.experiments.labels import trait_heads
from kibun.training.experiments.labels.folds import make_folds
from kibun.training.experiments.labels.trait_heads import CrossFitted, fit_trait_heads, profiles_of
from kibun.training.experiments.labels.trait_sources import RIDGE, SHUFFLED, TRUE, TraitSources, trait_quality
from tests.support.label_world import LabelWorld

AUDIBLE = LabelWorld(audible=1.0, sessions=4, dialogues=6, each=6, features=10)


@pytest.fixture(scope="module")
def audible(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, LabelTable]:
    features, labels = AUDIBLE.write(tmp_path_factory.mktemp("audible"))
    return np.load(features), read_label_table(labels)


def test_heads_hear_audible_traits_and_settings_are_what_they_say(audible: tuple[np.ndarray, LabelTable]) -> None:
    array, labels = audible
    fold = make_folds(labels, "loso")[0]
    model = fit_trait_heads(array, labels.items, fold.train, 0)
    profiles = profiles_of(labels.items, fold.test)
    found = [model.predict(profile) for profile in profiles]
    truth = np.array([labels.items[profile[0]].traits for profile in profiles])
    for setting in ("setting2", "setting2_calibrated", "setting3"):
        whole = np.stack([each[setting][0] for each in found])
        assert np.corrcoef(whole.ravel(), truth.ravel())[0, 1] > 0.7, setting
    for profile, each in zip(profiles, found, strict=True):
        vectors = model.vectors(profile)
        assert each["setting2"] == pytest.approx(np.tile(each["setting1"].mean(axis=0), (len(profile), 1)), abs=1e-5)
        with torch.no_grad():
            causal = model.conversation.causal(vectors).clamp(1, 7).numpy()
        assert each["causal3"] == pytest.approx(causal, abs=1e-5)
        assert each["causal3"][-1] == pytest.approx(each["setting3"][-1], abs=1e-5)
        slope, offset = model.line
        assert each["setting2_calibrated"] == pytest.approx(np.clip(slope * each["setting2"] + offset, 1, 7), abs=1e-5)


def test_a_long_conversation_is_estimated_in_parts(
    audible: tuple[np.ndarray, LabelTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    array, labels = audible
    monkeypatch.setattr(trait_heads, "EPOCHS", 1)
    model = fit_trait_heads(array, labels.items, make_folds(labels, "loso")[0].train, 0)
    rows = np.arange(37)
    whole = model.predict(rows)["causal3"]
    monkeypatch.setattr(trait_heads, "_CELLS_AT_ONCE", 5 * 37 * 37)
    assert model.predict(rows)["causal3"] == pytest.approx(whole, abs=1e-5)


def test_no_part_of_train_is_predicted_by_what_was_trained_on_it(
    audible: tuple[np.ndarray, LabelTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    array, labels = audible
    seen: list[set[int]] = []

    def watched(*arguments: object) -> trait_heads.VectorPersonality:
        monkeypatch.setattr(trait_heads, "EPOCHS", 1)
        model = fit_trait_heads(*arguments)  # type: ignore[arg-type]
        rows = set(np.asarray(arguments[2]).tolist())
        seen.append(rows)
        predict = model.predict

        def checked(profile: np.ndarray) -> dict[str, np.ndarray]:
            assert not rows & set(profile.tolist())
            return predict(profile)

        monkeypatch.setattr(model, "predict", checked)
        return model

    monkeypatch.setattr(trait_heads, "fit_trait_heads", watched)
    heads, folds = CrossFitted(array, labels.items), make_folds(labels, "loso")
    for fold in folds:
        found = heads.traits(fold, 0)
        for traits in found.values():
            assert len(np.unique(traits[np.concatenate([fold.train, fold.test])], axis=0)) > len(folds)
    assert len(seen) == 4 + 6  # every train, and every pair of sessions left out: those are shared by two folds


def test_the_ridge_of_conversations_is_cross_fitted(audible: tuple[np.ndarray, LabelTable]) -> None:
    array, labels = audible
    folds = make_folds(labels, "loso")
    sources = TraitSources(array, labels.items, (0,), (), None)
    quality = trait_quality(RIDGE, labels.items, folds, [sources.of_fold(fold)[RIDGE] for fold in folds])
    assert min(quality.ccc) > 0.7
    assert all(error < constant for error, constant in zip(quality.rmse, quality.mean_rmse, strict=True))
    # Traits that are drawn anew cannot be predicted, on train as little as on test.
    rng = np.random.default_rng(0)
    deaf = rng.normal(size=array.shape).astype(np.float32)
    truth = np.array([item.traits for item in labels.items])
    found = TraitSources(deaf, labels.items, (0,), (), None).of_fold(folds[0])[RIDGE][0]
    for rows in (folds[0].train, folds[0].test):
        assert abs(np.corrcoef(found[rows].ravel() - truth.mean(), truth[rows].ravel() - truth.mean())[0, 1]) < 0.4


def test_exchanged_and_noisy_traits_stay_within_their_split_and_scale(audible: tuple[np.ndarray, LabelTable]) -> None:
    array, labels = audible
    fold = make_folds(labels, "loso")[1]
    found = TraitSources(array, labels.items, (0, 1), (0.8,), None).of_fold(fold)
    truth = found[TRUE][0]
    assert len(found[SHUFFLED]) == 2
    assert not np.array_equal(found[SHUFFLED][0], found[SHUFFLED][1])
    for shuffled in found[SHUFFLED]:
        for rows in (fold.train, fold.test):
            there = {tuple(np.round(row, 3)) for row in truth[rows]}
            assert {tuple(np.round(row.astype(float), 3)) for row in shuffled[rows]} == there
            assert not (np.abs(shuffled[rows] - truth[rows]).max(axis=1) < 1e-4).any()
        for profile in profiles_of(labels.items, np.arange(len(labels.items))):
            assert (shuffled[profile] == shuffled[profile[0]]).all()
    noisy = found["noise_0.8"][0]
    assert noisy.min() >= 1
    assert noisy.max() <= 7
    inside = (noisy > 1) & (noisy < 7)
    assert (noisy - truth)[inside].std() == pytest.approx(0.75, abs=0.12)
    assert truth.shape[1] == len(TRAITS)
