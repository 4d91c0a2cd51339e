"""Figure 3: emotion and personality each by a model of its own, and together by a multi-task model."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from kibun.models.types import TRAITS
from kibun.training.evaluation.predictions import Prediction, ccc_of, units_of
from kibun.training.evaluation.report_table import STARS_NOTE
from kibun.training.evaluation.significance import compare_predictions
from kibun.training.experiments import notes as said
from kibun.training.experiments.rows import Column, read_column
from kibun.training.experiments.run_store import Runs
from kibun.training.experiments.scores import Line, Report, Result, Score
from kibun.training.experiments.study import Study
from kibun.training.experiments.table_personality import AVERAGE, LABELS
from kibun.training.runs.config import RunConfig
from kibun.training.runs.trait_source import FIELD_OF_SETTING

SINGLE = "single task"


@dataclasses.dataclass(frozen=True)
class Multitask:
    """setting: of the traits, one of LABELS. A multi-task model has one emotion dimension and the traits."""

    study: Study
    runs: Runs
    setting: str
    columns: tuple[Column, ...]

    def plan(self) -> list[RunConfig]:
        """For each seed one run of each task alone, then of each dimension together with the traits."""
        return [config for seed in self.study.seeds for group in self._groups(seed).values() for config in group]

    def evaluate(self) -> Result:
        """The table; `facts` hold what `kibun plot multitask` draws."""
        single = {dimension: self._found(f"{SINGLE} {dimension}") for dimension in self.study.dimensions}
        traits = self._found(f"{SINGLE} traits")
        both = {dimension: self._found(_together(dimension)) for dimension in self.study.dimensions}
        lines = [
            Line(
                dimension,
                {"figure": dimension},
                {
                    SINGLE: self._score(dimension, f"{SINGLE} {dimension}", single[dimension]),
                    _together(dimension): self._score(
                        dimension, _together(dimension), both[dimension], single[dimension]
                    ),
                },
            )
            for dimension in self.study.dimensions
        ]
        for trait in TRAITS:
            scores = {SINGLE: self._score(trait, f"{SINGLE} traits", traits)}
            scores |= {
                _together(name): self._score(trait, _together(name), rows, traits) for name, rows in both.items()
            }
            lines.append(Line(trait, {"figure": trait}, scores))
        lines.append(_average(lines[-len(TRAITS) :]))
        warnings = said.warnings(self.columns)
        notes = (
            f"{said.test_size(self.columns)} {said.spread(self.study)}",
            "Stars: better or worse than the single task by paired cluster bootstrap over speaker-conversations, seeds"
            f" averaged; {STARS_NOTE}; not corrected for the number of lines.",
            f"Traits: {LABELS[self.setting]}. All models: mean pool, linear.",
            "No figures of the paper's Figure 3 are at hand; none are shown.",
            *said.closing(self.study, warnings),
        )
        columns = (SINGLE, *map(_together, self.study.dimensions))
        report = Report("multitask", "Figure 3: single task and multi-task", "CCC", columns, tuple(lines), notes)
        facts = {**said.facts(self.study), "setting": self.setting, **bars(lines[:-1], self.study.dimensions)}
        return Result("Figure 3", (report,), warnings, facts)

    def _groups(self, seed: int) -> dict[str, list[RunConfig]]:
        groups = {f"{SINGLE} traits": [self.study.pr(seed, self.study.emotion.splits)]}
        for place in self.study.places:
            groups[f"{SINGLE} {place.dimension}"] = [self.study.ser(place, seed, "baseline")]
            groups[_together(place.dimension)] = [self.study.mtl(place, seed)]
        return groups

    def _found(self, group: str) -> list[list[Prediction]]:
        """Predictions of each seed."""
        configs = [self._groups(seed)[group][0] for seed in self.study.seeds]
        return [self.runs.predictions(config, self.columns[0].test) for config in configs]

    def _score(
        self,
        figure: str,
        group: str,
        found: Sequence[Sequence[Prediction]],
        against: Sequence[Sequence[Prediction]] | None = None,
    ) -> Score:
        field = FIELD_OF_SETTING[self.setting] if figure in TRAITS else None
        values = tuple(ccc_of(units_of(rows, field), figure, field) for rows in found)
        comparison = None if against is None else compare_predictions(found, against, figure, field)
        names = tuple(self.runs.name(self._groups(seed)[group][0]) for seed in self.study.seeds)
        return Score(values, comparison, runs=names)


def multitask(study: Study, runs: Runs, setting: str) -> Multitask:
    """Figure 3 with the traits of this setting; errors of the corpus as `read_column` raises."""
    columns = tuple(read_column(study, place, place.dimension) for place in study.places)
    return Multitask(study, runs, setting, columns)


def bars(lines: Sequence[Line], dimensions: Sequence[str]) -> dict[str, Any]:
    """{"single": {figure: {"mean", "sd"}}, "multitask": …}, as `kibun plot multitask` reads it.

    A trait is estimated by the multi-task model of each dimension: its bar is their mean, seed by seed.
    """
    drawn: dict[str, Any] = {"single": {}, "multitask": {}}
    for line in lines:
        figure = line.about["figure"]
        together = [line.scores[_together(name)] for name in dimensions if _together(name) in line.scores]
        values = zip(*(score.values for score in together), strict=True)
        for kind, score in (
            ("single", line.scores[SINGLE]),
            ("multitask", Score(tuple(map(statistics.fmean, values)))),
        ):
            drawn[kind][figure] = {"mean": score.mean, "sd": score.sd}
    return drawn


def _average(lines: Sequence[Line]) -> Line:
    """The mean over the traits, seed by seed."""
    scores = {}
    for column in lines[0].scores:
        values = zip(*(line.scores[column].values for line in lines), strict=True)
        scores[column] = Score(tuple(map(statistics.fmean, values)), runs=lines[0].scores[column].runs)
    return Line(f"traits, {AVERAGE}", {"figure": AVERAGE}, scores)


def _together(dimension: str) -> str:
    return f"with {dimension}"
