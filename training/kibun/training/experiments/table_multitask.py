"""Figure 3: emotion and personality each estimated by its own model, and together by a multi-task model."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.paper_figures import AVERAGE
from kibun.training.evaluation.predictions import Prediction, ccc_of, units_of
from kibun.training.evaluation.significance import compare_predictions
from kibun.training.experiments import notes
from kibun.training.experiments.emotion_table import read_fold
from kibun.training.experiments.run_store import RunStore
from kibun.training.experiments.scores import CommandOutput, Score, ScoreLine, ScoreTable, mean_score
from kibun.training.experiments.study import Study
from kibun.training.experiments.table_personality import LABELS
from kibun.training.runs.config import RunConfig
from kibun.training.runs.trait_source import FIELD_OF_SETTING

SINGLE = "single task"


@dataclasses.dataclass(frozen=True)
class Multitask:
    """setting: of the traits, one of LABELS. A multi-task model has one emotion dimension and the traits."""

    study: Study
    runs: RunStore
    setting: str
    test: tuple[Item, ...]
    warnings: tuple[str, ...]

    def plan(self) -> list[RunConfig]:
        """For each seed one run of each task alone, then of each dimension together with the traits."""
        return [config for seed in self.study.seeds for config in self._models(seed).values()]

    def evaluate(self) -> CommandOutput:
        """The table; `facts` hold the bars that `kibun plot multitask` draws."""
        by_seed = [self._models(seed) for seed in self.study.seeds]
        names = {model: tuple(self.runs.name(configs[model]) for configs in by_seed) for model in by_seed[0]}
        found = {
            model: [self.runs.predictions(configs[model], self.test) for configs in by_seed] for model in by_seed[0]
        }

        def line(figure: str, single: str, together: Iterable[str]) -> ScoreLine:
            scores = {SINGLE: self._score(figure, found[single], None, names[single])}
            for model in together:
                scores[model] = self._score(figure, found[model], found[single], names[model])
            return ScoreLine(figure, {"figure": figure}, scores)

        dimensions = self.study.dimensions
        together = [_with(dimension) for dimension in dimensions]
        emotions = [line(dimension, _alone(dimension), [_with(dimension)]) for dimension in dimensions]
        traits = [line(trait, _alone("traits"), together) for trait in TRAITS]
        columns = (SINGLE, *together)
        mean = {column: mean_score([one.scores[column] for one in traits]) for column in columns}
        average = ScoreLine(f"traits, {AVERAGE}", {"figure": AVERAGE}, mean)
        below = (
            f"{notes.test_size(self.test)}. {notes.spread(self.study)}",
            notes.STARS_AGAINST.format(SINGLE),
            f"Traits: {LABELS[self.setting]}. All models: mean pool, linear.",
            "No figures of the paper's Figure 3 are at hand; none are shown.",
            *notes.closing(self.study, self.warnings),
        )
        lines = (*emotions, *traits, average)
        report = ScoreTable("multitask", "Figure 3: single task and multi-task", "CCC", columns, lines, below)
        facts = {**notes.facts(self.study), "setting": self.setting, **_bars([*emotions, *traits])}
        return CommandOutput("Figure 3", (report,), self.warnings, facts)

    def _models(self, seed: int) -> dict[str, RunConfig]:
        """The runs of a seed by the task, or the tasks, that they estimate."""
        models = {_alone("traits"): self.study.pr(seed, self.study.emotion.splits)}
        for place in self.study.places:
            models[_alone(place.dimension)] = self.study.ser(place, seed, "baseline")
            models[_with(place.dimension)] = self.study.mtl(place, seed)
        return models

    def _score(
        self,
        figure: str,
        found: Sequence[Sequence[Prediction]],
        against: Sequence[Sequence[Prediction]] | None,
        names: tuple[str, ...],
    ) -> Score:
        """CCC of each seed's predictions, compared with those of another model."""
        field = FIELD_OF_SETTING[self.setting] if figure in TRAITS else None
        values = tuple(ccc_of(units_of(rows, field), figure, field) for rows in found)
        comparison = None if against is None else compare_predictions(found, against, figure, field)
        return Score(values, comparison, runs=names)


def multitask(study: Study, runs: RunStore, setting: str) -> Multitask:
    """Figure 3 with the traits of this setting; raises errors of the corpus as `read_fold` does."""
    folds = [read_fold(study, place) for place in study.places]
    warnings = tuple(dict.fromkeys(warning for fold in folds for warning in fold.warnings))
    return Multitask(study, runs, setting, folds[0].test, warnings)


def _bars(lines: Sequence[ScoreLine]) -> dict[str, Any]:
    """{"single": {figure: {"mean", "sd"}}, "multitask": …}, as `kibun plot multitask` reads it.

    A trait is estimated by the multi-task model of each dimension: its bar is their mean, seed by seed.
    """
    drawn: dict[str, Any] = {"single": {}, "multitask": {}}
    for line in lines:
        together = mean_score([score for column, score in line.scores.items() if column != SINGLE])
        for kind, score in (("single", line.scores[SINGLE]), ("multitask", together)):
            drawn[kind][line.label] = {"mean": score.mean, "sd": score.sd}
    return drawn


def _alone(task: str) -> str:
    return f"{SINGLE} {task}"


def _with(dimension: str) -> str:
    return f"with {dimension}"
