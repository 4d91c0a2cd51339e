"""The notes below every table of runs, and the fields of its JSON besides scores."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from kibun.training.corpora.manifest import Item, is_generated
from kibun.training.evaluation.paper_figures import CELLS, PUBLISHED_SPLITS
from kibun.training.evaluation.report_table import STARS_NOTE
from kibun.training.experiments.scores import ScoreTable
from kibun.training.experiments.study import LOSO_SPLITS, Study

SYNTHETIC = (
    "Generated data: the figures show that the mechanism works on this world, not what is gained on IEMOCAP or on"
    " people."
)
STARS_AGAINST = (
    "Stars: better or worse than the {} by paired cluster bootstrap over speaker-conversations, seeds averaged;"
    f" {STARS_NOTE}; not corrected for the number of lines."
)


def is_synthetic(study: Study) -> bool:
    """Whether the corpus is generated: by the settings, or by a file that the generator left beside the manifest."""
    return study.emotion.synthetic or is_generated(study.emotion.manifest)


def facts(study: Study) -> dict[str, Any]:
    """Fields of the JSON: seeds, manifest, synthetic."""
    return {"seeds": list(study.seeds), "manifest": str(study.emotion.manifest), "synthetic": is_synthetic(study)}


def spread(study: Study) -> str:
    """What the ± means."""
    if len(study.seeds) == 1:
        return f"One seed ({study.seeds[0]}): no spread is known."
    return f"Mean ± standard deviation of {len(study.seeds)} seeds ({', '.join(map(str, study.seeds))})."


def test_size(items: Sequence[Item]) -> str:
    """The size of the test set, without a full stop."""
    return f"Test: {len(items)} utterances of {len({item.conversation for item in items})} speaker-conversations"


def beside_published(report: ScoreTable, table: str, splits: Sequence[str | None], prefix: str = "") -> ScoreTable:
    """A report with the paper's cells beside its scores, and a note on how many of them are at hand.

    table: a key of CELLS. splits: those that it was tested on; the paper's figures are shown beside the paper's alone.
    prefix: what the columns' names begin with in CELLS.
    """
    if not all(name in (LOSO_SPLITS if table == "VIII" else PUBLISHED_SPLITS) for name in splits):
        wanted = f"the splits {LOSO_SPLITS[0]} …" if table == "VIII" else f'splits = "{PUBLISHED_SPLITS[0]}"'
        note = f"No published figures are shown: they are of IEMOCAP with {wanted}."
        return dataclasses.replace(report, notes=(*report.notes, note))
    lines, count, shown = [], 0, 0
    for line in report.lines:
        scores = {}
        for column, score in line.scores.items():
            cell = CELLS[table].get((line.label, prefix + column))
            count, shown = count + 1, shown + (cell is not None)
            scores[column] = dataclasses.replace(score, published=cell)
        lines.append(dataclasses.replace(line, scores=scores))
    note = f"Published: {shown} of {count} cells are at hand (abstract); the others: published: not at hand."
    return dataclasses.replace(report, lines=tuple(lines), notes=(*report.notes, note))


def closing(study: Study, warnings: Sequence[str]) -> tuple[str, ...]:
    """The last notes of every table: warnings about its splits and about generated data."""
    return (*(f"Splits: {warning}." for warning in warnings), *((SYNTHETIC,) if is_synthetic(study) else ()))
