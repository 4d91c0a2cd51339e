"""The results as tables, as JSON, and as the bars of a figure."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kibun.models.types import TRAITS
from kibun.training.evaluation.paper_figures import CELLS
from kibun.training.evaluation.plots import IntervalBar
from kibun.training.evaluation.report_table import STARS_NOTE, Cell, Row, Table
from kibun.training.experiments.labels.study import (
    ACOUSTICS,
    BOTH,
    CA,
    MODULATION,
    NONE,
    OWN_RIDGE,
    PRODUCTS,
    TRAITS_ONLY,
    LabelOptions,
    LabelResults,
    ModelRow,
    RowDifference,
    RowScore,
)
from kibun.training.experiments.labels.trait_sources import SHUFFLED, TRUE, label

FORMS = {"linear": "linear", "net": "small net"}
DESCRIBED = {
    ACOUSTICS: "acoustics",
    TRAITS_ONLY: "traits only",
    BOTH: "both (Concat)",
    PRODUCTS: "audio × traits",
    OWN_RIDGE: "audio × traits, own ridge",
    MODULATION: "modulation",
    CA: "CA over parts of the vector",
}


@dataclasses.dataclass(frozen=True)
class LabelReport:
    """facts: further fields of the JSON. warnings: about the labels and their splits."""

    results: LabelResults
    options: LabelOptions
    facts: Mapping[str, Any]
    warnings: tuple[str, ...]

    def tables(self) -> list[Table]:
        """For each emotion: models with true traits; predicted traits; differences. Then the predicted traits."""
        found = []
        for emotion in self.options.emotions:
            scores = {one.row: one for one in self.results.scores if one.emotion == emotion}
            found += [self._models(emotion, scores), self._predicted(emotion, scores)]
        return [*found, *self._differences(), self._qualities()]

    def _models(self, emotion: str, scores: Mapping[ModelRow, RowScore]) -> Table:
        rows = []
        for form, model in dict.fromkeys((row.form, row.model) for row in scores):
            mine = {row.traits: one for row, one in scores.items() if (row.form, row.model) == (form, model)}
            true, shuffled = mine.get(NONE) or mine[TRUE], mine.get(SHUFFLED)
            rows.append(Row(f"{FORMS[form]}: {DESCRIBED[model]}", (*_cells(true), *_cells(shuffled))))
        rows += _published(emotion, ("IV", "VIII"), 6)
        columns = (emotion, "true traits", "95 %", "pooled", "shuffled", "95 %", "pooled")
        return Table(f"{emotion}: true traits and their control, CCC", columns, tuple(rows), self._notes(), digits=3)

    def _predicted(self, emotion: str, scores: Mapping[ModelRow, RowScore]) -> Table:
        models = dict.fromkeys((r.form, r.model, r.trained_with == r.traits) for r in scores if _is_predicted(r))
        columns = [(f, m, s) for f, m, s in models]
        heads = [f"{FORMS[f]}, {m}" + ("" if same else ", trained with true") for f, m, same in columns]
        rows = []
        for source in (NONE, *self.results.qualities, TRUE):
            cells = []
            for form, model, same in columns:
                row = ModelRow(form, model, source, source if same else TRUE)
                row = ModelRow(form, ACOUSTICS, NONE, NONE) if source == NONE else row
                cells.append(_cells(scores.get(row))[0])
            rows.append(Row(NONE if source == NONE else label(source), tuple(cells)))
        rows += _published(emotion, ("VI",), len(heads))
        title = f"{emotion}: traits predicted from the same features, or noisy, CCC"
        note = "Trained with the same kind of traits as tested with, or, where it says so, with true ones."
        return Table(title, ("traits", *heads), tuple(rows), (note,), digits=3)

    def _differences(self) -> Iterator[Table]:
        by_pair: dict[tuple[str, str], list[RowDifference]] = {}
        for one in self.results.differences:
            by_pair.setdefault((one.first.form, difference_label(one)), []).append(one)
        rows = []
        for (form, name), found in by_pair.items():
            by_emotion = {one.emotion: one.comparison for one in found}
            cells = [
                Cell(c.difference, interval=(c.low, c.high), stars=c.stars)
                for c in (by_emotion[emotion] for emotion in self.options.emotions)
            ]
            rows.append(Row(f"{FORMS[form]}: {name}", tuple(cells)))
        note = (
            "95 % intervals and stars by paired cluster bootstrap over speaker-conversations, drawn within each fold;"
            f" {STARS_NOTE}; not corrected for the number of lines."
        )
        yield Table(
            "Differences of CCC, mean of folds", ("difference", *self.options.emotions), tuple(rows), (note,), 3
        )

    def _qualities(self) -> Table:
        rows = [
            Row(
                label(source),
                (
                    *(Cell(value) for value in quality.ccc),
                    Cell(statistics.fmean(quality.ccc)),
                    Cell(statistics.fmean(quality.rmse)),
                    Cell(statistics.fmean(quality.mean_rmse)),
                ),
            )
            for source, quality in self.results.qualities.items()
        ]
        note = (
            "RMSE on 1..7, mean of the five; the last column is the error of always guessing train's mean. Settings 1"
            " and causal 3 count utterances, others speaker-conversations."
        )
        columns = ("traits", *TRAITS, "mean CCC", "RMSE", "RMSE of the mean")
        return Table(
            "How well the traits themselves are predicted, CCC, mean of folds", columns, tuple(rows), (note,), 2
        )

    def _notes(self) -> tuple[str, ...]:
        folds, seeds = len(self.results.folds), len(self.options.seeds)
        spread = f", ± over {seeds} seeds where one is used" if seeds > 1 else ""
        return (
            f"Mean CCC over {folds} fold{'s' * (folds > 1)}{spread}, its 95 % interval by cluster bootstrap, and the"
            " CCC of all test utterances together.",
            "Shuffled: every speaker-conversation has another one's traits, in training and on test. It should score"
            " like acoustics, below it by what columns cost that mean nothing, or, without audio, nothing.",
            "Paper: HuBERT fine-tuned on IEMOCAP, with the paper's own splits; to set the scale, not to be met.",
            *self.results.left_out,
            "TICN is left out: it needs frames over time, and there is one vector for an utterance.",
            *(f"Warning: {warning}." for warning in self.warnings),
        )

    def plain(self) -> dict[str, Any]:
        """The object of --json; docs/experiments.md describes it."""
        return {
            "table": "labels",
            **self.facts,
            "seeds": list(self.options.seeds),
            "folds": [
                {"name": fold.name, "train": len(fold.train), "test": len(fold.test)} for fold in self.results.folds
            ],
            "rows": [_plain_row(one) for one in self.results.scores],
            "differences": [
                {
                    "emotion": one.emotion,
                    "name": difference_label(one),
                    "first": dataclasses.asdict(one.first),
                    "second": dataclasses.asdict(one.second),
                    "comparison": {**dataclasses.asdict(one.comparison), "stars": one.comparison.stars},
                }
                for one in self.results.differences
            ],
            "traits": {
                source: {
                    trait: {"ccc": quality.ccc[k], "rmse": quality.rmse[k], "mean_rmse": quality.mean_rmse[k]}
                    for k, trait in enumerate(TRAITS)
                }
                for source, quality in self.results.qualities.items()
            },
            "published": {emotion: published_cells(emotion, ("IV", "VI", "VIII")) for emotion in self.options.emotions},
            "left_out": list(self.results.left_out),
            "warnings": list(self.warnings),
        }

    def bars(self) -> dict[str, list[IntervalBar]]:
        """By emotion: every model with true traits, with shuffled ones, and both with predicted ones."""
        found: dict[str, list[IntervalBar]] = {}
        for one in self.results.scores:
            row = one.row
            if _is_predicted(row) and (row.model != BOTH or row.trained_with != row.traits):
                continue
            traits = {NONE: "no traits", TRUE: "true traits", SHUFFLED: "shuffled traits"}.get(
                row.traits, "predicted or noisy traits"
            )
            name = DESCRIBED[row.model] + (f": {label(row.traits)}" if _is_predicted(row) else "")
            interval = (one.against_nothing.low, one.against_nothing.high)
            bar = IntervalBar(f"{FORMS[row.form]}: {name}", traits, statistics.fmean(one.values), interval)
            found.setdefault(one.emotion, []).append(bar)
        return found


def _plain_row(one: RowScore) -> dict[str, Any]:
    return {
        "emotion": one.emotion,
        **dataclasses.asdict(one.row),
        "ccc": statistics.fmean(one.values),
        "sd": statistics.stdev(one.values) if len(one.values) > 1 else None,
        "values": list(one.values),
        "folds": list(one.folds),
        "pooled": one.pooled,
        "interval": [one.against_nothing.low, one.against_nothing.high],
    }


def _published(emotion: str, tables: Sequence[str], columns: int) -> list[Row]:
    """The paper's cells as lines of their own."""
    empty = (Cell(None),) * (columns - 1)
    return [Row(name, (Cell(value), *empty)) for name, value in published_cells(emotion, tables).items()]


def difference_label(one: RowDifference) -> str:
    """As printed, such as `both − traits only`."""
    return f"{_words(one.first)} − {_words(one.second)}"


def _words(row: ModelRow) -> str:
    if row.traits in (NONE, TRUE):
        return row.model
    trained = "" if row.traits == row.trained_with else ", trained with true"
    return f"{row.model} ({label(row.traits)}{trained})"


def _is_predicted(row: ModelRow) -> bool:
    return row.traits not in (NONE, TRUE, SHUFFLED)


def _cells(one: RowScore | None) -> tuple[Cell, Cell, Cell]:
    """Mean CCC, its interval, pooled."""
    if one is None:
        return Cell(None), Cell(None), Cell(None)
    low, high = one.against_nothing.low, one.against_nothing.high
    return Cell.of_seeds(one.values), Cell(f"{low:.3f} … {high:.3f}"), Cell(one.pooled)


def published_cells(emotion: str, tables: Sequence[str]) -> dict[str, float]:
    """Label and CCC of the paper's cells about this emotion that are at hand."""
    return {
        f"paper, Table {table}: {row}": value
        for table in tables
        for (row, column), value in CELLS[table].items()
        if column.split(",")[0] == emotion
    }
