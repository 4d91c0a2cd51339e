"""The notes below every table of runs, and the fields of its JSON besides scores."""

from collections.abc import Sequence
from typing import Any

from kibun.training.corpora.manifest import Item, is_generated
from kibun.training.evaluation.paper_figures import PUBLISHED_SPLITS
from kibun.training.evaluation.report_table import STARS_NOTE
from kibun.training.experiments.study import Study

SYNTHETIC = (
    "Generated data: the figures show that the mechanism works on this world, not what is gained on IEMOCAP or on"
    " people."
)
STARS_AGAINST = (
    "Stars: better or worse than the {} by paired cluster bootstrap over speaker-conversations, seeds averaged;"
    f" {STARS_NOTE}; not corrected for the number of lines."
)
NONE_PUBLISHED = "No figures of the paper's table are at hand; none are shown."


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


def published(splits: str | None, known: str) -> str:
    """Which published figures are shown; `known`: those that are known for the paper's splits."""
    if splits in PUBLISHED_SPLITS:
        return f"Published: {known}. Other cells of the paper's table are not at hand."
    return f'No published figures are shown: they are of IEMOCAP with splits = "{PUBLISHED_SPLITS[0]}".'


def closing(study: Study, warnings: Sequence[str]) -> tuple[str, ...]:
    """The last notes of every table: warnings about its splits and about generated data."""
    return (*(f"Splits: {warning}." for warning in warnings), *((SYNTHETIC,) if is_synthetic(study) else ()))
