"""Table V: personality from speech by settings 1, 2, 3 and causal 3, and its error by the number of utterances."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.metrics import ccc, rmse
from kibun.training.evaluation.paper_figures import AVERAGE
from kibun.training.evaluation.predictions import UTTERANCE_COUNTS, Prediction, pairs_of, units_of
from kibun.training.experiments import notes
from kibun.training.experiments.run_store import RunStore
from kibun.training.experiments.scores import CommandOutput, Score, ScoreLine, ScoreTable, mean_score
from kibun.training.experiments.study import Study
from kibun.training.runs.config import RunConfig
from kibun.training.runs.trait_source import FIELD_OF_SETTING, true_traits

COLUMNS = (*TRAITS, AVERAGE)
LABELS = {
    "utterance": "setting 1, utterance",
    "average": "setting 2, mean of utterances",
    "conversation": "setting 3, conversation",
    "causal": "causal setting 3, utterances so far",
}
Figure = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


@dataclasses.dataclass(frozen=True)
class PersonalityTable:
    """settings: keys of LABELS. train, test: their utterances. warnings: about the splits."""

    study: Study
    runs: RunStore
    settings: tuple[str, ...]
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    warnings: tuple[str, ...]

    def plan(self) -> list[RunConfig]:
        """One run for each seed."""
        return [self.study.pr(seed, self.study.personality.splits) for seed in self.study.seeds]

    def evaluate(self) -> CommandOutput:
        """CCC and RMSE by setting; RMSE by number of utterances where causal setting 3 is asked for."""
        found = [self.runs.predictions(config, self.test) for config in self.plan()]
        closing = notes.closing(self.study, self.warnings)
        below = (
            f"{notes.test_size(self.test)}. {notes.spread(self.study)}",
            "Settings 1 and causal 3 count every utterance, settings 2 and 3 every speaker-conversation once.",
            *closing,
        )
        agreement = self._lines(found, ccc)
        errors = (self._constant(), *self._lines(found, rmse))
        constant = "train's mean: every profile gets the mean traits of train's utterances; a model should err less."
        reports = [
            notes.beside_published(
                ScoreTable("ccc", "Table V: traits from speech", "CCC", COLUMNS, agreement, below),
                "V",
                [self.study.personality.splits],
            ),
            ScoreTable("rmse", "Their error", "RMSE, scale 1 to 7", COLUMNS, errors, (constant, *closing)),
        ]
        if "causal" in self.settings:
            reports.append(self._by_count(found, closing))
        return CommandOutput("V", tuple(reports), self.warnings, notes.facts(self.study))

    def _lines(self, found: Sequence[Sequence[Prediction]], figure: Figure) -> tuple[ScoreLine, ...]:
        """A line for each setting."""
        lines = []
        for setting in self.settings:
            field = FIELD_OF_SETTING[setting]
            units = [units_of(rows, field) for rows in found]
            lines.append(ScoreLine(LABELS[setting], {"setting": setting}, self._scores(units, field, figure)))
        return tuple(lines)

    def _scores(self, seeds: Sequence[Sequence[Prediction]], field: str, figure: Figure) -> dict[str, Score]:
        """The figure of each trait over each seed's predictions, and the mean of the five."""
        names = tuple(self.runs.name(config) for config in self.plan())
        return _with_average(
            {
                trait: Score(tuple(figure(*pairs_of(rows, trait, field)[:2]) for rows in seeds), runs=names)
                for trait in TRAITS
            }
        )

    def _constant(self) -> ScoreLine:
        """The error over test's utterances of always guessing the mean of train's."""
        guess = true_traits(self.train).astype(np.float64).mean(axis=0)  # (5,)
        truth = true_traits(self.test).astype(np.float64)  # (N, 5)
        errors = [rmse(np.full(len(truth), mean), truth[:, k]) for k, mean in enumerate(guess)]
        scores = {trait: Score((error,)) for trait, error in zip(TRAITS, errors, strict=True)}
        return ScoreLine("train's mean", {"setting": None}, _with_average(scores))

    def _by_count(self, found: Sequence[Sequence[Prediction]], closing: tuple[str, ...]) -> ScoreTable:
        """RMSE of causal setting 3 after 1, 2, 3, 5 … utterances, over the conversations that are as long."""
        lines = []
        for count in UTTERANCE_COUNTS:
            seeds = [[row for row in rows if row.predicted.heard == count] for rows in found]
            if seeds[0]:
                label = f"after {count} utterances ({len(seeds[0])} conversations)"
                about = {"heard": count, "conversations": len(seeds[0])}
                lines.append(ScoreLine(label, about, self._scores(seeds, "causal_traits", rmse)))
        long = "Later lines rest on fewer conversations: those that are as long."
        return ScoreTable(
            "heard", "Error by number of utterances", "RMSE, causal setting 3", COLUMNS, tuple(lines), (long, *closing)
        )


def personality(study: Study, runs: RunStore, settings: Sequence[str]) -> PersonalityTable:
    """Table V for these settings of LABELS. Raises ManifestError, ConfigError where traits or splits are missing."""
    from kibun.training.runs.run import read_corpus

    corpus = read_corpus(study.pr(study.seeds[0], study.personality.splits))
    train, test = tuple(corpus.items["train"]), tuple(corpus.items["test"])
    return PersonalityTable(study, runs, tuple(settings), train, test, corpus.warnings)


def _with_average(scores: dict[str, Score]) -> dict[str, Score]:
    return {**scores, AVERAGE: mean_score(list(scores.values()))}
