"""Table V: personality from speech by settings 1, 2, 3 and causal 3, and the error against the utterances heard."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.metrics import HEARD, ccc, rmse
from kibun.training.evaluation.predictions import Prediction, units_of
from kibun.training.experiments import notes as said
from kibun.training.experiments.run_store import Runs
from kibun.training.experiments.scores import Line, Report, Result, Score
from kibun.training.experiments.study import Study
from kibun.training.runs.config import RunConfig
from kibun.training.runs.trait_source import FIELD_OF_SETTING, true_traits

AVERAGE = "average"
COLUMNS = (*TRAITS, AVERAGE)
LABELS = {
    "utterance": "setting 1, utterance",
    "average": "setting 2, mean of utterances",
    "conversation": "setting 3, conversation",
    "causal": "causal setting 3, heard so far",
}
Figure = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


@dataclasses.dataclass(frozen=True)
class Personality:
    """settings: of LABELS. train, test: their utterances."""

    study: Study
    runs: Runs
    settings: tuple[str, ...]
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    warnings: tuple[str, ...]

    def plan(self) -> list[RunConfig]:
        """One run for each seed."""
        return [self.study.pr(seed, self.study.personality.splits) for seed in self.study.seeds]

    def evaluate(self) -> Result:
        """CCC and RMSE by setting; RMSE by utterances heard where causal setting 3 is asked for."""
        found = [self.runs.predictions(config, self.test) for config in self.plan()]
        profiles = len({item.conversation for item in self.test})
        notes = (
            f"Test: {len(self.test)} utterances of {profiles} speaker-conversations. {said.spread(self.study)}",
            "Settings 1 and causal 3 count every utterance, settings 2 and 3 every speaker-conversation once.",
        )
        closing = (
            "No figures of the paper's table are at hand; none are shown.",
            *said.closing(self.study, self.warnings),
        )
        agreement = self._lines(found, ccc)
        errors = [self._constant(), *self._lines(found, rmse)]
        constant = "train's mean: every profile gets the mean traits of train's utterances; a model should err less."
        reports = [
            Report("ccc", "Table V: traits from speech", "CCC", COLUMNS, tuple(agreement), (*notes, *closing)),
            Report("rmse", "Their error", "RMSE, scale 1 to 7", COLUMNS, tuple(errors), (constant, *closing[1:])),
        ]
        if "causal" in self.settings:
            reports.append(self._heard(found, closing[1:]))
        return Result("V", tuple(reports), self.warnings, said.facts(self.study))

    def _lines(self, found: Sequence[Sequence[Prediction]], figure: Figure) -> list[Line]:
        return [
            Line(LABELS[setting], {"setting": setting}, self._scores(found, FIELD_OF_SETTING[setting], figure))
            for setting in self.settings
        ]

    def _scores(self, found: Sequence[Sequence[Prediction]], field: str, figure: Figure) -> dict[str, Score]:
        names = tuple(self.runs.name(config) for config in self.plan())
        return _by_trait([traits_of(units_of(rows, field), field) for rows in found], figure, names)

    def _constant(self) -> Line:
        """The error of a guess that hears nothing, over test's utterances."""
        guess = true_traits(self.train).astype(np.float64).mean(axis=0)  # (5,)
        truth = true_traits(self.test).astype(np.float64)  # (N, 5)
        scores = _by_trait([(np.broadcast_to(guess, truth.shape), truth)], rmse, ())
        return Line("train's mean", {"setting": None}, scores)

    def _heard(self, found: Sequence[Sequence[Prediction]], notes: tuple[str, ...]) -> Report:
        """RMSE of causal setting 3 after 1, 2, 3, 5 … utterances, over the conversations that are as long."""
        lines = []
        for count in HEARD:
            rows = [[row for row in some if row.predicted.heard == count] for some in found]
            if rows[0]:
                names = tuple(self.runs.name(config) for config in self.plan())
                pairs = [traits_of(some, "causal_traits") for some in rows]
                about = {"heard": count, "conversations": len(rows[0])}
                label = f"{count} heard ({len(rows[0])} conversations)"
                lines.append(Line(label, about, _by_trait(pairs, rmse, names)))
        long = "Later lines rest on fewer conversations: those that are as long."
        return Report(
            "heard", "Error by utterances heard", "RMSE, causal setting 3", COLUMNS, tuple(lines), (long, *notes)
        )


def personality(study: Study, runs: Runs, settings: Sequence[str]) -> Personality:
    """Table V for these settings of LABELS. Raises ManifestError, ConfigError where traits or splits are missing."""
    from kibun.training.runs.run import read_corpus

    corpus = read_corpus(study.pr(study.seeds[0], study.personality.splits))
    train, test = tuple(corpus.items["train"]), tuple(corpus.items["test"])
    return Personality(study, runs, tuple(settings), train, test, corpus.warnings)


def traits_of(rows: Sequence[Prediction], field: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 5) predicted and true traits."""
    estimates = np.array([getattr(row.predicted, field) for row in rows], np.float64)
    return estimates, np.array([row.traits for row in rows], np.float64)


def _by_trait(
    seeds: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], figure: Figure, names: tuple[str, ...]
) -> dict[str, Score]:
    """The figure of each trait, and the mean of the five, for each seed's (N, 5) estimates and truth."""
    scores = {
        trait: Score(tuple(figure(estimates[:, k], truth[:, k]) for estimates, truth in seeds), runs=names)
        for k, trait in enumerate(TRAITS)
    }
    means = zip(*(scores[trait].values for trait in TRAITS), strict=True)
    return {**scores, AVERAGE: Score(tuple(statistics.fmean(mean) for mean in means), runs=names)}
