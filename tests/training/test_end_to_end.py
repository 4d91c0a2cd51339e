"""From a corpus on disk to a served estimate, each step by its command: prepare, train, build, serve, stream."""

import json
from pathlib import Path

import numpy as np
import pytest

from kibun.bench.support.speech_like import lay_out
from kibun.client import AsyncClient, PersonalityUpdate, TurnResult, UtteranceResult
from kibun.client.server_process import ServerProcess
from kibun.models.building.commands import app as models_app
from kibun.models.bundle import load_bundle
from kibun.training.commands import train_app
from tests.support import fake_iemocap
from tests.support.commands import invoke
from tests.support.tiny_corpus import make_hubert

RUN = """\
manifest = "manifest.jsonl"
splits = "paper"
[model]
start = "hubert"
condition_ff = 32
[training]
epochs = 1
batch = 8
conversation_steps = 10
head_learning_rate = 1e-3
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    corpus = fake_iemocap.make(folder, dialogues=fake_iemocap.ALL_SESSIONS, utterances_per_speaker=2)
    manifest = folder / "manifest.jsonl"
    labels = ("--tipi", corpus.tipi, "--ocean", corpus.ocean)
    invoke(train_app, "prepare", "iemocap", "--iemocap", corpus.root, *labels, "--out", manifest)
    assert len(manifest.read_text().splitlines()) == corpus.utterances
    make_hubert(folder / "hubert")
    (folder / "run.toml").write_text(RUN)
    common = ("--config", folder / "run.toml", "--json")
    figures = json.loads(invoke(train_app, "pr", *common, "--out", folder / "pr"))
    assert figures["utterances"] == {"train": 48, "dev": 8, "test": 8}
    assert any("share the speakers Ses01_F, Ses01_M" in warning for warning in figures["warnings"])
    for name in ("valence", "arousal"):
        invoke(train_app, "ser", *common, "--out", folder / name, "--set", f"dimension={name}")
    parts = [part for name in ("pr", "valence", "arousal") for part in (f"--{name}", folder / name)]
    invoke(models_app, "build", *parts, "--out", folder / "bundle", "--name", "whole")
    return folder / "bundle"


def test_the_bundle_has_the_parts_as_they_were_trained(bundle: Path) -> None:
    whole, pr = load_bundle(bundle), load_bundle(bundle.parent / "pr" / "bundle")
    assert whole.config.tasks == ("personality", "valence", "arousal")
    assert whole.evidence == pr.evidence
    assert whole.evidence is not None
    state = whole.state_dict()
    for name in ("pr", "valence", "arousal"):
        part = load_bundle(bundle.parent / name / "bundle")
        for key, value in part.state_dict().items():
            assert bool((state[key] == value).all()), f"{name}: {key}"
    assert "not a diagnosis" in (whole.card or "")


async def test_the_bundle_is_served(bundle: Path) -> None:
    audio = lay_out([("silence", 0.5), ("speech", 1.5), ("silence", 1.0), ("speech", 1.2), ("silence", 1.0)]).audio
    samples = (np.clip(audio, -1, 1) * 32767).astype(np.int16)
    with ServerProcess(str(bundle)) as server:
        async with AsyncClient(server.target) as client, client.conversation("c").turn() as turn:
            turn.feed(samples[at : at + 1600] for at in range(0, len(samples), 1600))
            events = [event async for event in turn]
    finals = [event for event in events if isinstance(event, UtteranceResult) and event.is_final]
    assert len(finals) == 2
    assert all(final.emotion is not None and 1 <= final.emotion.valence <= 5 for final in finals)
    estimates = [event.personality for event in events if isinstance(event, PersonalityUpdate)]
    assert [estimate.utterance_count for estimate in estimates if estimate] == [1, 2]
    [result] = [event for event in events if isinstance(event, TurnResult)]
    assert result.personality is not None
    assert all(1 <= value <= 7 for value in result.personality.traits.as_tuple())
    expected = load_bundle(bundle).evidence
    assert expected is not None
    # Eight profiles of the corpus' dev split, two utterances each: the estimate comes with the error after two.
    assert result.personality.expected_error is not None
    np.testing.assert_allclose(result.personality.expected_error.as_tuple(), expected[-1].error, atol=1e-5)
