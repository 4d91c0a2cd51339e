"""What the tests of runs share."""

from pathlib import Path

import pytest

from tests.support.tiny_corpus import make_corpus, make_hubert


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus/ and hubert/."""
    folder = tmp_path_factory.mktemp("world")
    make_corpus(folder / "corpus")
    make_hubert(folder / "hubert", hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    return folder
