"""The committed bundle voices-tiny: whole, licensed, and able to tell aroused from calm voices."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from kibun.models.building.commands import app as models_app
from kibun.models.bundle import KibunModel, Utterance, load_bundle, resolve_bundle
from kibun.models.files import verify
from kibun.training.evaluation.metrics import auc
from tests.support import ROOT
from tests.support.commands import invoke


@pytest.fixture(scope="module")
def voices_tiny() -> KibunModel:
    return load_bundle("voices-tiny")


def test_it_is_whole_small_and_under_a_licence_of_its_own(voices_tiny: KibunModel) -> None:
    folder = resolve_bundle("voices-tiny")
    assert folder == ROOT / "models" / "bundles" / "voices-tiny"
    verify(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    config = voices_tiny.config
    assert (config.trained, config.supports_personality, config.emotions) == (True, False, ("valence", "arousal"))
    assert config.license == "CC-BY-NC-SA-4.0"
    text = voices_tiny.license_text or ""
    for said in (
        "Attribution-NonCommercial-ShareAlike 4.0 International",
        "https://creativecommons.org/licenses/by-nc-sa/4.0/",
        "Livingstone",
        "https://doi.org/10.5281/zenodo.1188976",
        "https://github.com/amu-cai/nEMO",
    ):
        assert said in text, said
    card = voices_tiny.card or ""
    for said in ("ravdess, corpus not heard", "nemo, corpus not heard", "Acted emotion", "Absolute values move"):
        assert said in card, said
    assert "CC-BY-NC-SA-4.0" in invoke(models_app, "show", "voices-tiny")
    assert "voices-tiny" in (ROOT / "README.md").read_text()


def test_it_ranks_real_voices(voices_tiny: KibunModel, shared_data: Path) -> None:
    folder = shared_data / "emotion" / "ravdess" / "audio"
    if not folder.is_dir():
        pytest.skip("RAVDESS is not here")

    def arousal(emotion: int, actor: int) -> float:
        audio, _rate = soundfile.read(folder / f"03-01-0{emotion}-01-01-01-{actor:02}.flac", dtype="float32")
        [answer] = voices_tiny.analyze([Utterance(audio, np.zeros((0, 0), np.float16))])
        assert answer.arousal is not None
        return answer.arousal

    actors = range(1, 13)
    angry, calm = ([arousal(emotion, actor) for actor in actors] for emotion in (5, 2))
    assert auc(angry, calm) > 0.85
    assert sum(high > low for high, low in zip(angry, calm, strict=True)) >= 10
