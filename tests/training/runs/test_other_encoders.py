"""wav2vec 2.0 and WavLM in place of HuBERT: trained for each task on one frozen trunk, put together, packed, served."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kibun.models.building.commands import app as models_app
from kibun.models.bundle import Utterance, load_bundle
from kibun.models.packed_model import pack
from kibun.training.runs.run import train_run
from tests.support.commands import invoke
from tests.support.run_config import tiny_run
from tests.support.tiny_corpus import make_hubert
from tests.support.tiny_hubert import WAVLM, noise

LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
TRAINING = {"training.epochs": 1, "training.batch": 8, "training.conversation_steps": 5}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"model_type": "wav2vec2", **LARGE}, id="wav2vec2"),
        pytest.param(WAVLM, id="wavlm"),
        pytest.param({**WAVLM, **LARGE}, id="wavlm-large"),
    ],
)
def test_runs_of_all_tasks_make_a_bundle_that_is_served(world: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    start = make_hubert(tmp_path / "start", **settings)
    runs = {"pr": ("pr", "valence"), "valence": ("ser", "valence"), "arousal": ("ser", "arousal")}
    for name, (task, dimension) in runs.items():
        train_run(tiny_run(world, task, dimension, TRAINING | {"model.start": str(start)}), tmp_path / name)  # type: ignore[arg-type]
    parts = [part for name in runs for part in (f"--{name}", tmp_path / name)]
    invoke(models_app, "build", *parts, "--out", tmp_path / "whole", "--name", "whole")
    assert f"{settings['model_type']}, 2 layers shared, 2 per task" in invoke(models_app, "show", tmp_path / "whole")

    model = load_bundle(tmp_path / "whole")
    assert model.config.hubert_config.model_type == settings["model_type"]
    history = np.zeros((0, model.vector_size), np.float16)
    requests = [Utterance(noise(samples), history) for samples in (4_000, 16_000, 5_123)]
    plain, packed = model.analyze(requests), pack(model, torch.float32)
    for request, expected, answer in zip(requests, plain, packed.analyze(requests), strict=True):
        np.testing.assert_allclose(answer.numbers(), expected.numbers(), atol=2e-3)
        [alone] = packed.analyze([request])
        assert (alone.numbers(), alone.vector.tobytes()) == (answer.numbers(), answer.vector.tobytes())
