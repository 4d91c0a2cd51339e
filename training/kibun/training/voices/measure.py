"""What a bundle estimates of single utterances, as served, and how well that ranks the emotions that were meant."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np

from kibun.models.bundle import KibunModel, Utterance
from kibun.models.types import EMOTIONS
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.ranking import Ranking, rank
from kibun.training.evaluation.report_table import Cell, Row, Table

Estimates = Mapping[str, Sequence[float]]  # by emotion dimension, of each utterance


def estimate(
    model: KibunModel, items: Sequence[Item], progress: Callable[[int], None] = lambda done: None
) -> dict[str, list[float]]:
    """Each dimension of every utterance, through `analyze`: as it is, as the first of its speaker, traits predicted."""
    model.train(False)
    nothing = np.zeros((0, model.vector_size), np.float16)
    found: dict[str, list[float]] = {name: [] for name in model.config.emotions}
    for done, item in enumerate(items, 1):
        audio = load_audio(item.path)
        audio = np.pad(audio, (0, max(0, model.min_samples - len(audio))))
        [answer] = model.analyze([Utterance(audio, nothing)])
        for name, values in found.items():
            values.append(cast(float, getattr(answer, name)))
        progress(done)
    return found


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one set of utterances, by emotion dimension.

    ranked: lacks a dimension for which the utterances' categories say nothing. means: mean and standard deviation of
    the estimates on 1..5, which move with corpus and microphone.
    """

    ranked: dict[str, Ranking]
    means: dict[str, list[float]]

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        ranked = {name: Ranking(**each) for name, each in content["ranked"].items()}
        return cls(ranked, content["means"])


def figures_of(items: Sequence[Item], estimates: Estimates) -> Figures:
    """How well the estimates of these utterances rank the emotions that were meant, and where they lie."""
    categories, speakers = [item.emotion for item in items], [item.speaker for item in items]
    ranked = {name: rank(values, categories, speakers, name) for name, values in estimates.items()}
    return Figures(
        {name: ranking for name, ranking in ranked.items() if ranking is not None},
        {name: [float(np.mean(values)), float(np.std(values))] for name, values in estimates.items()},
    )


def by_corpus(items: Sequence[Item]) -> dict[str, list[int]]:
    """Rows of each corpus, in the order in which they first come."""
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(item.corpus or item.path.parent.name, []).append(row)
    return rows


def table(title: str, figures: Mapping[str, Figures], notes: Sequence[str] = ()) -> Table:
    """Rows by name; of each dimension its area, that within speakers, and the mean of the estimates."""
    rows = []
    for label, each in figures.items():
        sizes = [(ranking.speakers, ranking.utterances) for ranking in each.ranked.values()]
        speakers, utterances = map(max, zip(*sizes, strict=True)) if sizes else (0, 0)
        cells = [Cell(f"{speakers} / {utterances}")]
        for name in EMOTIONS:
            ranking = each.ranked.get(name)
            cells += [_area(ranking), Cell(ranking.within if ranking is not None else None)]
            cells.append(Cell("{:.2f} ± {:.2f}".format(*each.means[name]) if name in each.means else None))
        rows.append(Row(label, tuple(cells)))
    columns = [column for name in EMOTIONS for column in (name, "within", "mean")]
    return Table(title, ("", "speakers / utterances", *columns), tuple(rows), (*notes, *NOTES), digits=3)


def _area(ranking: Ranking | None) -> Cell:
    if ranking is None:
        return Cell(None)
    if ranking.low is None or ranking.high is None:
        return Cell(ranking.auc)
    return Cell(ranking.auc, interval=(ranking.low, ranking.high))


NOTES = (
    "area under the ROC curve, 95 % interval over speakers: arousal of anger, fear, happiness and surprise above that"
    " of calm, neutral, sad and bored; valence of happiness above that of anger, fear, sadness and disgust",
    "within: the mean area within each speaker; mean: of the estimates, ± standard deviation",
)
