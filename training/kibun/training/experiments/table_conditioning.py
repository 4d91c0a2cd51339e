"""Tables IV, VI, VII and VIII: emotion conditioned on true, predicted and noisy traits, and fold by fold.

Gao et al., IEEE TAC 2025. Each function lists the rows of its table; all have the same controls.
"""

import dataclasses
from collections.abc import Sequence

from kibun.training.experiments.emotion_table import (
    TITLES,
    Column,
    EmotionTable,
    Entry,
    Fold,
    Sheet,
    conditioned,
    controls,
    read_fold,
    short,
)
from kibun.training.experiments.options import check_words
from kibun.training.experiments.run_store import RunStore
from kibun.training.experiments.study import UNCONDITIONED, Place, Study, find_splits
from kibun.training.runs.config import ConfigError

# Where the traits of a test come from -> the setting of a run of `pr`; "oracle": the true traits.
TRAITS_FROM = {
    "setting1": "utterance",
    "setting2": "average",
    "setting3": "conversation",
    "causal3": "causal",
    "oracle": "truth",
}
BASELINE = Entry("baseline", "baseline")
MEAN, POOLED = "mean of folds", "pooled"


def conditioning(
    study: Study,
    runs: RunStore,
    heads: Sequence[str],
    trait_sets: Sequence[tuple[str, ...]],
    shuffled: Sequence[str] | None = None,
) -> EmotionTable:
    """Table IV: the baseline, and each conditioned head with each set of true traits.

    shuffled: heads of the control rows; None: the last conditioned one of `heads`; ["all"]: all of these.
    Raises ConfigError for an unknown head; errors of the corpus as `read_fold` does.
    """
    check_words(heads, "--models", tuple(TITLES), "no model")
    able = [head for head in heads if head not in UNCONDITIONED]
    if shuffled is None or list(shuffled) == ["all"]:
        shuffled = able[-1:] if shuffled is None else able
    _check_conditioned(shuffled, "--shuffled")
    entries = [BASELINE, *(Entry(TITLES[head], head) for head in heads if head in UNCONDITIONED and head != "baseline")]
    entries += [conditioned(head, traits) for head in able for traits in trait_sets]
    sheets = _by_dimension(study, "Table IV: emotion conditioned on true traits")
    return EmotionTable("IV", study, runs, (*entries, *controls(*shuffled)), sheets, ())


def emotion(
    study: Study,
    runs: RunStore,
    head: str,
    traits_from: Sequence[str],
    trait_sets: Sequence[tuple[str, ...]],
    *,
    train_with: str,
) -> EmotionTable:
    """Table VI: one head, tested with true traits and with those that personality runs of the same seed predict.

    trait_sets: a row for each set, of a model that sees these traits alone. The personality runs predict all five.
    train_with: "truth", or "same": predicted traits are used in training and on dev too. Raises as `conditioning` does.
    """
    _check_conditioned([head], "--model")
    check_words(traits_from, "--traits-from", tuple(TRAITS_FROM))
    check_words([train_with], "--train-with", ("truth", "same"))
    rows = [
        dataclasses.replace(entry, label=f"{entry.label}, {short(traits)}", condition_on=traits)
        for entry in (_with_traits_from(head, name, train_with=train_with) for name in traits_from)
        for traits in trait_sets
    ]
    with_what = {
        "truth": "Trained with true traits; predicted ones in the test only.",
        "same": "Trained, chosen and tested with predicted traits; those of train come from a model that was trained on"
        " them and are better than those of test.",
    }[train_with]
    below = (
        f"{with_what} Setting 1: of each utterance; 2: their mean over the conversation; 3: the conversation head over"
        " the whole conversation; causal 3: over the utterances so far, as a service can.",
    )
    sheets = _by_dimension(study, f"Table VI: {TITLES[head]} with predicted traits")
    return EmotionTable("VI", study, runs, (BASELINE, *rows, *controls(head)), sheets, below)


def noise(study: Study, runs: RunStore, head: str, sigmas: Sequence[float], draws: int) -> EmotionTable:
    """Table VII: one head trained with true traits, tested with Gaussian noise on them.

    sigmas: standard deviations on the 1..7 scale. draws: of noise, one value per profile and trait each; the same for
    all runs. Raises as `conditioning` does.
    """
    _check_conditioned([head], "--model")
    if min(sigmas) < 0:
        raise ConfigError(f"--sigma: {min(sigmas):g} is below 0; give standard deviations on the 1..7 scale")
    noisy = [
        Entry(
            f"{TITLES[head]}, sigma {sigma:g}",
            head,
            tested_with="noisy",
            sigma=sigma,
            draws=draws,
        )
        for sigma in sigmas
    ]
    below = (
        f"Noise of sigma on the true traits of test, limited to 1..7: one value per profile and trait. Above 0, a"
        f" seed's CCC is the mean over {draws} draws, the same draws for every seed.",
    )
    sheets = _by_dimension(study, f"Table VII: {TITLES[head]} tested with noise on the true traits")
    return EmotionTable("VII", study, runs, (BASELINE, *noisy, *controls(head)), sheets, below)


def loso(study: Study, runs: RunStore, head: str, folds: Sequence[str], traits_from: Sequence[str]) -> EmotionTable:
    """Table VIII: baseline, and one head tested with true and with predicted traits, leaving one session out.

    folds: names or paths of splits, which replace those of the settings. Each fold is trained and tested alone.
    Raises ConfigError for an unknown head or setting, no such splits, and folds that test an utterance twice; errors of
    the corpus as `read_fold` does.
    """
    _check_conditioned([head], "--model")
    check_words(traits_from, "--traits-from", tuple(TRAITS_FROM))
    splits = {fold: find_splits(fold) for fold in folds}
    entries = [Entry("baseline", "baseline"), *(_with_traits_from(head, name) for name in traits_from), *controls(head)]
    sheets = []
    for dimension in study.dimensions:
        tested = {name: read_fold(study, Place(dimension, where), name) for name, where in splits.items()}
        _check_disjoint(tested)
        columns = [Column(name, (fold,)) for name, fold in tested.items()]
        together = tuple(tested.values())
        columns += [Column(MEAN, together, averaged=True), Column(POOLED, together)]
        sheets.append(Sheet(dimension, f"Table VIII: {dimension}, leave one session out", tuple(columns)))
    below = (f"{POOLED}: one CCC over the test utterances of all folds; {MEAN}: of their CCCs, without a test.",)
    return EmotionTable("VIII", study, runs, tuple(entries), tuple(sheets), below, tuple(folds))


def _with_traits_from(head: str, name: str, *, train_with: str = "truth") -> Entry:
    """A head tested with the traits of `name`, one of TRAITS_FROM."""
    setting = TRAITS_FROM[name]
    words = {"oracle": "true", "causal3": "causal setting 3"}.get(name, f"setting {name[-1]}")
    return Entry(
        f"{TITLES[head]}, {words} traits",
        head,
        trained_with="truth" if train_with == "truth" else setting,
        tested_with=setting,
    )


def _by_dimension(study: Study, title: str) -> tuple[Sheet, ...]:
    """One report with a column for each dimension, by the settings' splits."""
    columns = tuple(Column(place.dimension, (read_fold(study, place),)) for place in study.places)
    return (Sheet("emotion", title, columns),)


def _check_conditioned(heads: Sequence[str], option: str) -> None:
    able = tuple(head for head in TITLES if head not in UNCONDITIONED)
    check_words(heads, option, able, "no conditioned model")


def _check_disjoint(folds: dict[str, Fold]) -> None:
    first: dict[str, str] = {}
    for name, fold in folds.items():
        for item in fold.test:
            if item.id in first:
                raise ConfigError(
                    f"--folds: utterance {item.id!r} is tested by {first[item.id]} and by {name}; pooled figures"
                    " need folds without common test utterances"
                )
            first[item.id] = name
