"""Items of a corpus for tests of demo-tiny."""

from pathlib import Path

from kibun.models.types import Traits
from kibun.training.corpora.manifest import Item


def item(speaker: str, path: Path = Path("x"), traits: Traits = (4.0,) * 5) -> Item:
    return Item("x", path, speaker, speaker, "train", "", 2.5, 3.5, traits)
