"""What a real server says of its models: what they learnt from, what their traits are worth, whose licence holds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kibun.client import AnalyzeResult, Client, PersonalityEstimate, Traits
from kibun.client.options import StreamConfig
from kibun.client.server_process import ServerProcess
from kibun.models.building.build import save_bundle
from kibun.models.bundle import KibunConfig, KibunModel
from kibun.models.types import TRAITS, Evidence
from tests.support import present, serving
from tests.support.commands import Kibun
from tests.support.tiny_hubert import HUBERT

CENTRE = (4.5, 3.5, 4.0, 5.0, 3.0)
EVIDENCE = (
    Evidence(1, (1.5, 1.0, 1.0, 1.0, 1.0), (1.25,) * 5, (0.0, 0.25, 0.5, 0.75, 1.0)),
    Evidence(2, (1.0,) * 5, (1.25,) * 5, (1.0,) * 5),
)
KINDS: dict[str, dict[str, Any]] = {
    "recorded": {"license": "CC-BY-4.0"},
    "over-generated": {"synthetic_parts": ["trunk"]},
    "generated-traits": {"synthetic_parts": ["trunk", "personality"]},
    "generated": {"synthetic": True, "license": "Apache-2.0 AND not stated"},
    "untrained": {"trained": False},
    "familiar": {"familiarity": True},
}
SYNTHETIC = {
    "recorded": False,
    "over-generated": False,
    "generated-traits": True,
    "generated": True,
    "untrained": False,
    "familiar": False,
}


def make(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    settings = {"trained": True, "condition_centre": CENTRE, **KINDS[name]}
    model = KibunModel(KibunConfig(hubert=HUBERT, condition_ff=32, bundle_name=name, **settings)).train(False)
    model.evidence = EVIDENCE
    with torch.no_grad():
        for emotion in model.config.emotions:  # far from limits
            model.get_parameter(f"emotion_heads.{emotion}.out.bias").fill_(3.0)
        if model.conversation_head.familiarity is not None:
            model.conversation_head.familiarity.reach.copy_(torch.tensor([0.0, 10.0]))
    save_bundle(model, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with a bundle of each kind."""
    folder = tmp_path_factory.mktemp("bundles")
    paths = [make(folder, name) for name in KINDS]
    more = [argument for path in paths[1:] for argument in ("--model", str(path))]
    with ServerProcess(str(paths[0]), [*more, "--allow-untrained"]) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def analyse(client: Client, conversation: str, model: str, **options: Any) -> AnalyzeResult:
    audio = serving.spoken(1.2).astype(np.float32)
    config = StreamConfig(conversation_id=conversation, encoding="float32", model=model, **options)
    return client.analyze(audio, config)


@pytest.mark.parametrize("name", KINDS)
def test_recordings_in_one_request_and_conversations_carry_the_mark(client: Client, name: str) -> None:
    result = analyse(client, f"mark-{name}", name)
    assert result.synthetic_model == SYNTHETIC[name]
    assert result.conversation.synthetic_model == SYNTHETIC[name]
    assert client.get_conversation(f"mark-{name}").synthetic_model == SYNTHETIC[name]
    assert client.complete_conversation(f"mark-{name}").synthetic_model == SYNTHETIC[name]


def test_the_service_says_what_its_models_learnt_from(client: Client) -> None:
    models = {model.name: model for model in client.service_info().models}
    assert {name: model.synthetic for name, model in models.items()} == SYNTHETIC
    assert [name for name, model in models.items() if model.untrained] == ["untrained"]
    assert {name: model.license for name, model in models.items() if model.license} == {
        "recorded": "CC-BY-4.0",
        "generated": "Apache-2.0 AND not stated",
    }
    assert {name: model.notice for name, model in models.items()} == {
        "recorded": "",
        "over-generated": "trained on recordings, over a trunk that first learnt from generated speech",
        "generated-traits": (
            "personality trained on generated speech, so tells you nothing about real people; valence and arousal"
            " trained on recordings, over a trunk that first learnt from generated speech"
        ),
        "generated": "trained on generated speech: it tells you nothing about real people",
        "untrained": "not trained: its estimates mean nothing",
        "familiar": "",
    }


def test_so_does_the_server_when_it_starts(server: ServerProcess) -> None:
    lines = server.stderr.splitlines()
    for said in (
        "recorded: licence of the weights: CC-BY-4.0",
        "generated: licence of the weights: Apache-2.0 AND not stated",
        "generated: trained on generated speech: it tells you nothing about real people",
        "over-generated: trained on recordings, over a trunk that first learnt from generated speech",
        "untrained: not trained: its estimates mean nothing",
    ):
        assert sum(said in line for line in lines) == 1, said


@pytest.mark.parametrize("name", ["recorded", "untrained"])
def test_streams_of_an_untrained_model_warn(client: Client, name: str) -> None:
    reasons = [warning.reason for warning in analyse(client, f"warn-{name}", name).warnings]
    assert reasons.count("MODEL_UNTRAINED") == (1 if name == "untrained" else 0)


def test_the_command_warns_too(kibun: Kibun, server: ServerProcess, tmp_path: Path) -> None:
    for name in ("one.wav", "two.wav"):
        soundfile.write(tmp_path / name, serving.spoken(1.2), 16_000)
    assert kibun("analyze", tmp_path, "--server", server.target, "--model", "untrained", "-f", "jsonl") == 0
    assert kibun.err.count("MODEL_UNTRAINED") == 1, "once, and not for every file"
    assert "its estimates mean nothing" in kibun.err
    assert [row["no_better_than_mean"] for row in kibun.lines] == ["openness", "openness"]
    assert kibun("stream", tmp_path / "one.wav", "--server", server.target, "--model", "untrained") == 0
    assert kibun.out.count("MODEL_UNTRAINED") == 1
    assert "user: openness: no better than guessing the mean for everyone" in " ".join(kibun.out.split())


def test_the_command_names_the_part_that_learnt_from_generated_speech(
    kibun: Kibun, server: ServerProcess, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "one.wav", serving.spoken(1.2), 16_000)
    for name, said in (("generated-traits", True), ("over-generated", False)):
        banner = f"{name}: personality trained on generated speech, so tells you nothing about real people"
        assert kibun("analyze", tmp_path, "--server", server.target, "--model", name, "-f", "jsonl") == 0
        assert (banner in " ".join(kibun.err.split())) == said
        assert kibun("stream", tmp_path / "one.wav", "--server", server.target, "--model", name) == 0
        assert (banner in " ".join(kibun.out.split())) == said
        assert "synthetic model" not in kibun.out + kibun.err


# ---- what traits are worth ------------------------------------------------------------------------------------


def test_traits_come_with_what_they_are_worth_and_count_as_much(client: Client) -> None:
    first = analyse(client, "worth", "recorded")
    [utterance] = first.utterances
    condition, heard = present(utterance.condition), present(first.turn_result.personality)
    for estimate in (condition, heard):
        assert present(estimate.expected_error).as_tuple() == EVIDENCE[0].error
        assert present(estimate.expected_error_of_mean).as_tuple() == EVIDENCE[0].error_of_mean
        assert estimate.no_better_than_mean == ("openness",)
    assert present(condition.condition_weight).as_tuple() == EVIDENCE[0].weight
    assert heard.condition_weight is None, "the condition of no estimate"
    weights, traits = np.array(EVIDENCE[0].weight), np.array(heard.traits.as_tuple())
    np.testing.assert_allclose(condition.traits.as_tuple(), CENTRE + weights * (traits - CENTRE), atol=1e-6)
    assert condition.traits.openness == CENTRE[TRAITS.index("openness")]
    alone: PersonalityEstimate = present(utterance.personality)
    assert alone.condition_weight is None, "of one utterance: not what emotion is conditioned on"

    [second] = analyse(client, "worth", "recorded").utterances
    later = present(second.condition)
    assert (later.utterance_count, present(later.condition_weight).as_tuple()) == (2, EVIDENCE[1].weight)
    assert later.no_better_than_mean == ()


def test_the_weight_is_the_one_used_and_the_same_alone_in_company_and_reconnected(server: ServerProcess) -> None:
    def two_visits(conversation: str) -> list[PersonalityEstimate]:
        found = []
        for _visit in range(2):  # the second has the history from the store
            with Client(server.target) as client:
                result = analyse(client, conversation, "familiar")
            [utterance] = result.utterances
            condition, heard = present(utterance.condition), present(result.turn_result.personality)
            weights, traits = present(condition.condition_weight).as_tuple(), np.array(heard.traits.as_tuple())
            np.testing.assert_allclose(condition.traits.as_tuple(), CENTRE + weights * (traits - CENTRE), atol=1e-6)
            found.append(condition)
        return found

    alone = two_visits("familiar-alone")
    shares = [
        np.divide(present(condition.condition_weight).as_tuple()[1:], row.weight[1:])
        for condition, row in zip(alone, EVIDENCE, strict=True)
    ]
    assert all(0 < share[0] < 1 and share == pytest.approx(share[0], abs=1e-6) for share in shares), "familiarity"
    with ThreadPoolExecutor() as pool:
        for among in pool.map(two_visits, [f"familiar-{number}" for number in range(4)]):
            assert among == alone


def test_given_traits_count_in_full(client: Client) -> None:
    known = Traits(2.0, 6.5, 3.0, 7.0, 1.0)
    [utterance] = analyse(client, "given", "recorded", given_personality=known).utterances
    condition = present(utterance.condition)
    assert (condition.traits, condition.condition_weight) == (known, None)
