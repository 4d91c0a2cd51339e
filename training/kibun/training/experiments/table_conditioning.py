"""Tables IV, VI and VII: emotion with personality, by way of conditioning, by source of the traits, under noise.

Gao et al., IEEE TAC 2025. All three are lines over the emotion dimensions on test, with the same controls.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from kibun.models.types import TRAITS
from kibun.training.evaluation.paper_figures import VALENCE_CCC
from kibun.training.experiments import notes as said
from kibun.training.experiments.rows import (
    CONTROL_NOTES,
    STARS_AGAINST,
    TITLES,
    Column,
    Entry,
    check_heads,
    check_settings,
    controls,
    fill,
    hear_with_predicted,
    plan,
    read_column,
    tested_with_predicted,
    trained,
    trained_with_predicted,
)
from kibun.training.experiments.run_store import Runs
from kibun.training.experiments.scores import Draws, Report, Result
from kibun.training.experiments.study import UNCONDITIONED, Place, Study
from kibun.training.runs.config import ConfigError, RunConfig
from kibun.training.runs.trait_source import add_noise, true_traits

# Where the traits of a test come from -> the setting of a run of `pr`; "oracle": the true traits.
TRAITS_FROM = {
    "setting1": "utterance",
    "setting2": "average",
    "setting3": "conversation",
    "causal3": "causal",
    "oracle": "truth",
}
BASELINE = {"valence": VALENCE_CCC["baseline"]}
TRUE_TRAITS = {"valence": VALENCE_CCC["ticn-ca, true traits"]}


@dataclasses.dataclass(frozen=True)
class EmotionTable:
    """A table whose columns are the emotion dimensions.

    prepare: tests trained models with other traits for all lines at once, so that each encodes an utterance only once.
    """

    table: str
    title: str
    study: Study
    runs: Runs
    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    prepare: Callable[[], None] = lambda: None

    def plan(self) -> list[RunConfig]:
        """The runs that it needs, in the order to train them."""
        return plan(self.study, self.study.places, self.entries)

    def evaluate(self) -> Result:
        """The table, from finished runs."""
        self.prepare()
        warnings = said.warnings(self.columns)
        notes = (
            f"{said.test_size(self.columns)} {said.spread(self.study)}",
            STARS_AGAINST,
            *self.notes,
            *CONTROL_NOTES,
            *said.closing(self.study, warnings),
        )
        lines = fill(self.study, self.runs, self.columns, self.entries)
        columns = tuple(column.name for column in self.columns)
        report = Report("emotion", self.title, "CCC", columns, tuple(lines), notes)
        return Result(self.table, (report,), warnings, said.facts(self.study))


def conditioning(
    study: Study,
    runs: Runs,
    heads: Sequence[str],
    trait_sets: Sequence[Sequence[str]],
    shuffled: Sequence[str] | None = None,
) -> EmotionTable:
    """Table IV: the baseline, and each conditioned head with each set of true traits.

    shuffled: heads of the control rows; None: the last conditioned one of `heads`; ["all"]: all of these.
    Raises ConfigError for an unknown head, and errors of the corpus as `read_column` does.
    """
    check_heads(heads, "--models")
    conditioned = [head for head in heads if head not in UNCONDITIONED]
    if shuffled is None or list(shuffled) == ["all"]:
        shuffled = conditioned[-1:] if shuffled is None else conditioned
    check_heads(shuffled, "--shuffled", conditioned=True)
    entries = [_baseline(study, runs)]
    entries += [trained(study, runs, head) for head in heads if head in UNCONDITIONED and head != "baseline"]
    for head in conditioned:
        for traits in trait_sets:
            published = TRUE_TRAITS if head == "ticn-ca" and tuple(traits) == TRAITS else {}
            entries.append(trained(study, runs, head, traits, published=published))
    entries += controls(study, runs, shuffled)
    known = "valence of the baseline and of TICN-CA with all true traits (abstract)"
    notes = (said.published(study.emotion.splits, known),)
    return EmotionTable(
        "IV", "Table IV: emotion conditioned on true traits", study, runs, _columns(study), tuple(entries), notes
    )


def emotion(study: Study, runs: Runs, head: str, traits_from: Sequence[str], *, train_with: str) -> EmotionTable:
    """Table VI: one head, tested with true traits and with those that personality runs of the same seed predict.

    train_with: "truth", or "same": trained and chosen with the predicted ones, too. Raises as `conditioning` does.
    """
    check_heads([head], "--model", conditioned=True)
    check_settings(traits_from, "--traits-from", tuple(TRAITS_FROM))
    check_settings([train_with], "--train-with", ("truth", "same"))
    entries = [_baseline(study, runs)]
    for name in traits_from:
        if name == "oracle":
            published = TRUE_TRAITS if head == "ticn-ca" else {}
            entries.append(trained(study, runs, head, label=f"{TITLES[head]}, true traits", published=published))
        else:
            make = tested_with_predicted if train_with == "truth" else trained_with_predicted
            entries.append(make(study, runs, head, TRAITS_FROM[name], f"{TITLES[head]}, {in_words(name)}"))
    entries += controls(study, runs, [head])
    with_what = {
        "truth": "Trained with true traits; predicted ones in the test only.",
        "same": "Trained, chosen and tested with predicted traits; those of train come from a model that was trained on"
        " them and are better than those of test.",
    }[train_with]
    known = (
        f"valence of the baseline, with true traits, and {VALENCE_CCC['ticn-ca, predicted traits']} with predicted"
        " traits (abstract, which does not say of which setting)"
    )
    notes = (
        f"{with_what} Setting 1: of each utterance; 2: their mean over the conversation; 3: the conversation head over"
        " the whole conversation; causal 3: over what was heard so far, as a service can.",
        said.published(study.emotion.splits, known),
    )
    columns = _columns(study)
    predicted = [TRAITS_FROM[name] for name in traits_from if name != "oracle"]

    def prepare() -> None:
        for column in columns if predicted and train_with == "truth" else ():
            for seed in study.seeds:
                hear_with_predicted(study, runs, head, predicted, column, seed)

    title = f"Table VI: {TITLES[head]} with predicted traits"
    return EmotionTable("VI", title, study, runs, columns, tuple(entries), notes, prepare)


def noise(study: Study, runs: Runs, head: str, sigmas: Sequence[float], draws: int) -> EmotionTable:
    """Table VII: one head trained with true traits, tested with Gaussian noise on them.

    sigmas: standard deviations on the 1..7 scale. draws: of noise, one value per profile and trait each; the same for
    all runs. Raises as `conditioning` does.
    """
    check_heads([head], "--model", conditioned=True)
    if min(sigmas) < 0:
        raise ConfigError(f"--sigma: {min(sigmas):g} is below 0; give standard deviations on the 1..7 scale")
    columns = _columns(study)
    entries = [_baseline(study, runs)]
    entries += [_noisy(study, runs, head, sigma, draws) for sigma in sigmas]
    entries += controls(study, runs, [head])

    def prepare() -> None:
        for column in columns:
            for seed in study.seeds:
                conditions = {k: v for sigma in sigmas if sigma for k, v in _conditions(column, sigma, draws).items()}
                if conditions:
                    runs.under(study.ser(column.place, seed, head), column.test, conditions)

    notes = (
        f"Noise of sigma on the true traits of test, limited to 1..7: one value per profile and trait. Above 0, a"
        f" seed's CCC is the mean over {draws} draws, the same draws for every seed.",
        said.published(study.emotion.splits, "valence of the baseline and without noise (abstract)"),
    )
    title = f"Table VII: {TITLES[head]} tested with noise on the true traits"
    return EmotionTable("VII", title, study, runs, columns, tuple(entries), notes, prepare)


def _noisy(study: Study, runs: Runs, head: str, sigma: float, draws: int) -> Entry:
    def needs(place: Place, seed: int) -> list[RunConfig]:
        return [study.ser(place, seed, head)]

    def estimates(column: Column, seed: int) -> Draws:
        config = needs(column.place, seed)[0]
        if sigma:
            found = list(runs.under(config, column.test, _conditions(column, sigma, draws)).values())
        else:
            found = [runs.predictions(config, column.test)]
        return [np.array([getattr(row.predicted, column.place.dimension) for row in rows]) for rows in found]

    about = {"model": head, "traits": list(TRAITS), "trained_with": "truth", "tested_with": "noisy", "sigma": sigma}
    published = TRUE_TRAITS if not sigma and head == "ticn-ca" else {}
    return Entry(f"{TITLES[head]}, sigma {sigma:g}", about, needs, estimates, published=published)


def _conditions(column: Column, sigma: float, draws: int) -> dict[str, np.ndarray]:
    """(N, 5) noisy traits by name."""
    truth = true_traits(column.test)
    return {f"noise{sigma:g}-draw{draw}": add_noise(column.test, truth, sigma, draw) for draw in range(draws)}


def _baseline(study: Study, runs: Runs) -> Entry:
    return trained(study, runs, "baseline", published=BASELINE)


def _columns(study: Study) -> tuple[Column, ...]:
    return tuple(read_column(study, place, place.dimension) for place in study.places)


def in_words(name: str) -> str:
    """How a label calls one of TRAITS_FROM, other than "oracle"."""
    return {"causal3": "causal setting 3"}.get(name, f"setting {name[-1]}") + " traits"
