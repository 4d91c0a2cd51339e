"""What is said below every table of runs, and what its JSON carries besides figures."""

from collections.abc import Sequence
from typing import Any

from kibun.training.corpora.manifest import is_generated
from kibun.training.experiments.rows import PUBLISHED_FOR, Column
from kibun.training.experiments.study import Study

SYNTHETIC = (
    "Generated data: the figures show that the mechanism works on this world, not what is gained on IEMOCAP or on"
    " people."
)


def is_synthetic(study: Study) -> bool:
    """Whether the corpus is generated: by the settings, or by what the generator left beside the manifest."""
    return study.emotion.synthetic or is_generated(study.emotion.manifest)


def facts(study: Study) -> dict[str, Any]:
    """Fields of the JSON: seeds, manifest, synthetic."""
    return {"seeds": list(study.seeds), "manifest": str(study.emotion.manifest), "synthetic": is_synthetic(study)}


def spread(study: Study) -> str:
    """What the ± is."""
    if len(study.seeds) == 1:
        return f"One seed ({study.seeds[0]}): no spread is known."
    return f"Mean ± standard deviation of {len(study.seeds)} seeds ({', '.join(map(str, study.seeds))})."


def test_size(columns: Sequence[Column]) -> str:
    """How much was tested on."""
    column = columns[0]
    return f"Test: {len(column.test)} utterances of {len(set(column.clusters))} speaker-conversations."


def warnings(columns: Sequence[Column]) -> tuple[str, ...]:
    """What is to be said of the splits, once each."""
    return tuple(dict.fromkeys(warning for column in columns for warning in column.warnings))


def published(splits: str | None, known: str) -> str:
    """What is published beside the figures; `known` is what there is of it at the paper's splits."""
    if splits in PUBLISHED_FOR:
        return f"Published: {known}. Other cells of the paper's table are not at hand."
    return f'No published figures are shown: they are of IEMOCAP with splits = "{PUBLISHED_FOR[0]}".'


def closing(study: Study, found: Sequence[str]) -> tuple[str, ...]:
    """The notes that end every table: what its reader must be warned of."""
    return (*(f"Splits: {warning}." for warning in found), *((SYNTHETIC,) if is_synthetic(study) else ()))
