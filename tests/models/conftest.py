"""What the tests of bundles and of checkpoints share."""

from pathlib import Path

import pytest
import torch

from kibun.models._transformers import HubertConfig, HubertModel
from tests.support.bundle_files import write_json
from tests.support.tiny_hubert import HUBERT


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A HuBERT as its makers would publish it: model folder and preprocessor."""
    folder = tmp_path / "hubert"
    torch.manual_seed(7)
    HubertModel(HubertConfig(**HUBERT)).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {"do_normalize": False, "sampling_rate": 16_000})
    return folder
