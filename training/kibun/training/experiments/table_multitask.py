"""Figure 3: emotion and personality each estimated by its own model, and together by multi-task models.

A multi-task model estimates one emotion dimension and, as in the paper, one trait; or a set of traits.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.paper_figures import AVERAGE
from kibun.training.evaluation.predictions import Prediction, ccc_of, units_of
from kibun.training.evaluation.significance import compare_predictions
from kibun.training.experiments import notes
from kibun.training.experiments.emotion_table import read_fold, short
from kibun.training.experiments.run_store import RunStore
from kibun.training.experiments.scores import CommandOutput, Score, ScoreLine, ScoreTable, mean_score
from kibun.training.experiments.study import Study
from kibun.training.experiments.table_personality import LABELS
from kibun.training.runs.config import ConfigError, RunConfig
from kibun.training.runs.trait_source import FIELD_OF_SETTING

SINGLE, TOGETHER = "single task", "multi-task"


@dataclasses.dataclass(frozen=True)
class Multitask:
    """setting: of the traits, one of LABELS. trait_sets: those of the multi-task models; no trait is in two of them."""

    study: Study
    runs: RunStore
    setting: str
    trait_sets: tuple[tuple[str, ...], ...]
    test: tuple[Item, ...]
    warnings: tuple[str, ...]

    def plan(self) -> list[RunConfig]:
        """For each seed one run of each task alone, then of each dimension together with each set of traits."""
        return [config for seed in self.study.seeds for config in self._models(seed).values()]

    def evaluate(self) -> CommandOutput:
        """The table; `facts` hold the bars that `kibun plot multitask` draws."""
        lines = [
            self._line(dimension, dimension, traits)
            for dimension in self.study.dimensions
            for traits in self.trait_sets
        ]
        lines += [
            self._line(trait, dimension, traits)
            for dimension in self.study.dimensions
            for traits in self.trait_sets
            for trait in traits
        ]
        figures = [
            *self.study.dimensions,
            *(trait for trait in TRAITS if any(trait in some for some in self.trait_sets)),
        ]
        bars = [_mean(figure, [line for line in lines if line.about["figure"] == figure]) for figure in figures]
        of_traits = [line for line in bars if line.label in TRAITS]
        average = ScoreLine(
            f"traits, {AVERAGE}",
            {"figure": AVERAGE},
            {column: mean_score([line.scores[column] for line in of_traits]) for column in (SINGLE, TOGETHER)},
        )
        below = (
            f"{notes.test_size(self.test)}. {notes.spread(self.study)}",
            notes.STARS_AGAINST.format(SINGLE),
            f"Traits: {LABELS[self.setting]}. All models: mean pool, linear. A multi-task model estimates one emotion"
            " dimension and the traits named; rows without a second name are means over its models.",
            *notes.closing(self.study, self.warnings),
        )
        report = ScoreTable(
            "multitask",
            "Figure 3: single task and multi-task",
            "CCC",
            (SINGLE, TOGETHER),
            (*bars, average, *lines),
            below,
        )
        report = notes.beside_published(report, "Figure 3", [self.study.emotion.splits])
        facts = {**notes.facts(self.study), "setting": self.setting, **_bars(bars)}
        return CommandOutput("Figure 3", (report,), self.warnings, facts)

    def _models(self, seed: int) -> dict[tuple[str, ...], RunConfig]:
        """The runs of a seed by the task that they estimate alone, or by dimension and traits."""
        models: dict[tuple[str, ...], RunConfig] = {("traits",): self.study.pr(seed, self.study.emotion.splits)}
        for place in self.study.places:
            models[(place.dimension,)] = self.study.ser(place, seed, "baseline")
            models |= {(place.dimension, *traits): self.study.mtl(place, seed, traits) for traits in self.trait_sets}
        return models

    def _line(self, figure: str, dimension: str, traits: tuple[str, ...]) -> ScoreLine:
        """A figure by its own model, and by the multi-task model of this dimension and these traits."""
        alone, other = (("traits",), dimension) if figure in TRAITS else ((dimension,), short(traits))
        single, together = (self._found(model) for model in (alone, (dimension, *traits)))
        about = {"figure": figure, "dimension": dimension, "traits": list(traits)}
        scores = {SINGLE: self._score(figure, *single), TOGETHER: self._score(figure, *together, against=single[0])}
        return ScoreLine(f"{figure}, with {other}", about, scores)

    def _found(self, model: tuple[str, ...]) -> tuple[list[list[Prediction]], tuple[str, ...]]:
        """Each seed's predictions by a model, and the names of its runs."""
        configs = [self._models(seed)[model] for seed in self.study.seeds]
        return [self.runs.predictions(config, self.test) for config in configs], tuple(map(self.runs.name, configs))

    def _score(
        self,
        figure: str,
        found: Sequence[Sequence[Prediction]],
        names: tuple[str, ...],
        against: Sequence[Sequence[Prediction]] | None = None,
    ) -> Score:
        """CCC of each seed's predictions, compared with those of another model."""
        field = FIELD_OF_SETTING[self.setting] if figure in TRAITS else None
        values = tuple(ccc_of(units_of(rows, field), figure, field) for rows in found)
        comparison = None if against is None else compare_predictions(found, against, figure, field)
        return Score(values, comparison, runs=names)


def multitask(study: Study, runs: RunStore, setting: str, trait_sets: Sequence[tuple[str, ...]]) -> Multitask:
    """Figure 3 with the traits of this setting.

    Raises ConfigError where two sets share a trait; errors of the corpus as `read_fold` does.
    """
    if len(set(sum(trait_sets, ()))) < len(sum(trait_sets, ())):
        raise ConfigError("--traits: a trait is in two of the models; give each, or all, or each trait once")
    folds = [read_fold(study, place) for place in study.places]
    warnings = tuple(dict.fromkeys(warning for fold in folds for warning in fold.warnings))
    return Multitask(study, runs, setting, tuple(trait_sets), folds[0].test, warnings)


def _mean(figure: str, lines: Sequence[ScoreLine]) -> ScoreLine:
    """A figure's mean over its multi-task models, seed by seed, beside its own model."""
    together = mean_score([line.scores[TOGETHER] for line in lines])
    return ScoreLine(figure, {"figure": figure}, {SINGLE: lines[0].scores[SINGLE], TOGETHER: together})


def _bars(lines: Sequence[ScoreLine]) -> dict[str, Any]:
    """{"single": {figure: {"mean", "sd"}}, "multitask": …}, as `kibun plot multitask` reads it."""
    drawn: dict[str, Any] = {"single": {}, "multitask": {}}
    for line in lines:
        for kind, column in (("single", SINGLE), ("multitask", TOGETHER)):
            score = line.scores[column]
            drawn[kind][line.label] = {"mean": score.mean, "sd": score.sd}
    return drawn
