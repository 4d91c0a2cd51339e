"""Bundles that lack personality or emotion, on the real server: what it estimates, refuses and warns about."""

import asyncio
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from kibun.client import (
    AsyncClient,
    Client,
    Event,
    InvalidRequestError,
    PersonalityEstimate,
    PersonalitySource,
    StreamStarted,
    StreamWarning,
    Traits,
    UtteranceResult,
)
from kibun.client.options import Features, StreamConfig
from kibun.client.server_process import ServerProcess
from kibun.models.building.build import save_bundle
from kibun.models.bundle import KibunConfig, KibunModel
from kibun.models.packed_model import pack
from kibun.server.inference.backend import BackendError
from kibun.server.inference.worker import BundleModel
from kibun.v1 import speech_analysis_pb2 as pb
from tests.support import present, serving
from tests.support.commands import Kibun
from tests.support.tiny_hubert import HUBERT

GIVEN = Traits(2.0, 6.5, 3.0, 7.0, 1.0)
OTHER = Traits(6.0, 2.5, 5.0, 1.5, 6.0)
KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "plain-emotion": {
        "tasks": ["valence", "arousal"],
        "emotion_head": "regression",
        "emotion_rescaled_from": [0, 1],
    },
    "needy-emotion": {"tasks": ["valence", "arousal"], "emotion_head": "ticn-ca"},
    "only-personality": {"tasks": ["personality"]},
    "no-valence": {"tasks": ["personality", "arousal"]},
}


def make(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    config = KibunConfig(hubert=HUBERT, condition_ff=32, trained=True, bundle_name=name, **KINDS[name])
    model = KibunModel(config).train(False)
    with torch.no_grad():
        for emotion in model.config.emotions:  # far from limits and from each other
            model.get_parameter(f"emotion_heads.{emotion}.out.bias").fill_(3.0)
    save_bundle(model, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with a bundle of each kind."""
    folder = tmp_path_factory.mktemp("bundles")
    paths = [make(folder, name) for name in KINDS]
    more = [argument for path in paths[1:] for argument in ("--model", str(path))]
    with ServerProcess(str(paths[0]), more) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def speech() -> NDArray[np.float32]:
    return serving.spoken(1.2).astype(np.float32)


def analyse(client: Client, conversation: str, **options: Any) -> list[Event]:
    """All events of one turn."""
    with client.conversation(conversation).turn(encoding="float32", **options) as turn:
        turn.feed([speech()])
        return list(turn)


def warnings(events: Sequence[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, StreamWarning)]


def final(events: Sequence[Event]) -> UtteranceResult:
    [utterance] = [event for event in events if isinstance(event, UtteranceResult) and event.is_final]
    return utterance


def condition(events: Sequence[Event]) -> PersonalityEstimate:
    """What the emotion of the turn's utterance was conditioned on."""
    return present(final(events).condition)


def effective_config(events: Sequence[Event]) -> pb.StreamingAnalyzeConfig:
    started = events[0]
    assert isinstance(started, StreamStarted)
    return present(started.response).stream_started.effective_config


# ---- what each kind answers -----------------------------------------------------------------------------------


def test_the_service_describes_what_each_model_can_do(client: Client, server: ServerProcess) -> None:
    models = {model.name: model for model in client.service_info().models}
    can = {
        name: (m.supports_emotion, m.supports_personality, m.requires_given_personality) for name, m in models.items()
    }
    assert can == {
        "whole": (True, True, False),
        "plain-emotion": (True, False, False),
        "needy-emotion": (True, False, True),
        "only-personality": (False, True, False),
        "no-valence": (False, True, False),
    }
    assert models["whole"].notice == ""
    assert "rescaled linearly from 0..1 to 1..5" in models["plain-emotion"].notice
    assert "emotion needs given_personality" in models["needy-emotion"].notice
    assert models["only-personality"].notice == "estimates no emotion"
    assert "arousal alone" in models["no-valence"].notice
    assert "kibun: plain-emotion: estimates no personality; valence and arousal are rescaled" in server.stderr


def test_a_whole_model_triggers_no_warnings(client: Client) -> None:
    events = analyse(client, "whole")
    assert warnings(events) == []
    assert final(events).emotion is not None
    assert final(events).personality is not None
    assert condition(events).source is PersonalitySource.CONVERSATION


def test_a_model_without_personality_warns_so(client: Client) -> None:
    events = analyse(client, "plain", model="plain-emotion")
    assert warnings(events) == ["PERSONALITY_UNSUPPORTED"]
    assert isinstance(events[1], StreamWarning), "at the start, after StreamStarted"
    assert "model 'plain-emotion' estimates no personality" in events[1].message
    features = effective_config(events).features
    assert (features.disable_emotion, features.disable_personality) == (False, True)
    result = final(events)
    assert 1 <= present(result.emotion).valence <= 5
    assert result.personality is None
    assert result.condition is None
    [participant] = client.get_conversation("plain").participants
    assert participant.personality is None
    assert participant.mean_emotion is not None
    assert participant.utterance_count == 1


def test_a_request_without_personality_triggers_no_warning(client: Client) -> None:
    events = analyse(client, "plain-2", model="plain-emotion", features=Features(personality=False))
    assert warnings(events) == []


def test_given_traits_that_change_nothing_trigger_a_warning(client: Client) -> None:
    events = analyse(client, "plain-3", model="plain-emotion", given_personality=GIVEN)
    assert "GIVEN_PERSONALITY_UNUSED" in warnings(events)
    assert final(events).condition is None


@pytest.mark.parametrize("model", ["only-personality", "no-valence"])
def test_a_model_without_emotion_warns_so(client: Client, model: str) -> None:
    events = analyse(client, f"{model}-1", model=model)
    assert warnings(events) == ["EMOTION_UNSUPPORTED"]
    assert isinstance(events[1], StreamWarning)
    assert ("arousal alone" in events[1].message) == (model == "no-valence")
    assert effective_config(events).features.disable_emotion
    result = final(events)
    assert result.emotion is None
    assert result.personality is not None
    assert client.get_conversation(f"{model}-1").participants[0].mean_emotion is None


@pytest.mark.parametrize(
    ("model", "features", "field", "message"),
    [
        ("plain-emotion", Features(emotion=False), "features.disable_emotion", "estimates no personality, and emotion"),
        ("needy-emotion", Features(emotion=False), "features.disable_emotion", "estimates no personality, and emotion"),
        (
            "only-personality",
            Features(personality=False),
            "features.disable_personality",
            "estimates no emotion, and personality is disabled",
        ),
        ("no-valence", Features(personality=False), "features.disable_personality", "estimates arousal alone"),
        ("whole", Features(emotion=False, personality=False), "features", "both disabled"),
    ],
)
def test_a_request_that_leaves_nothing_to_estimate_is_refused(
    client: Client, model: str, features: Features, field: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        analyse(client, "refused", model=model, features=features)
    assert caught.value.reason == "NOTHING_TO_ANALYZE"
    assert list(caught.value.fields) == [field]
    assert message in str(caught.value)
    if model != "whole":
        assert "ask for a model that estimates" in str(caught.value)
        assert "whole" in str(caught.value)


def test_emotion_that_needs_traits_is_refused_without_them(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        analyse(client, "needy", model="needy-emotion")
    assert caught.value.reason == "GIVEN_PERSONALITY_REQUIRED"
    assert list(caught.value.fields) == ["given_personality"]
    assert "model 'needy-emotion' conditions emotion on the speaker's traits" in str(caught.value)
    # Nothing was left behind: the conversation may begin with another model.
    analyse(client, "needy", model="whole")


def test_one_request_carries_the_warnings_of_a_stream(client: Client) -> None:
    config = StreamConfig(encoding="float32", model="plain-emotion", given_personality=GIVEN)
    result = client.analyze(speech(), config)
    reasons = [warning.reason for warning in result.warnings]
    assert reasons == ["PERSONALITY_UNSUPPORTED", "GIVEN_PERSONALITY_UNUSED"]
    assert result.turn_result.emotion is not None
    assert result.turn_result.personality is None
    with pytest.raises(InvalidRequestError, match="GIVEN_PERSONALITY_REQUIRED"):
        client.analyze(speech(), StreamConfig(encoding="float32", model="needy-emotion"))


# ---- traits of a participant ----------------------------------------------------------------------------------


def test_given_traits_stay_with_the_participant_until_others_are_given(client: Client) -> None:
    first = analyse(client, "kept", model="needy-emotion", given_personality=GIVEN)
    assert condition(first).source is PersonalitySource.GIVEN
    assert condition(first).traits == GIVEN
    again = analyse(client, "kept", model="needy-emotion")
    assert condition(again).traits == GIVEN
    assert final(again).emotion == final(first).emotion
    assert Traits.from_proto(effective_config(again).given_personality) == GIVEN, "the client sees what is in use"
    replaced = analyse(client, "kept", model="needy-emotion", given_personality=OTHER)
    assert condition(replaced).traits == OTHER
    assert final(replaced).emotion != final(first).emotion
    assert condition(analyse(client, "kept", model="needy-emotion")).traits == OTHER
    [participant] = client.get_conversation("kept").participants
    assert participant.given_personality == OTHER
    personality = present(participant.personality)
    assert personality.source is PersonalitySource.GIVEN, "nothing is estimated from speech here"
    assert personality.traits == OTHER
    assert (personality.utterance_count, personality.expected_error) == (0, None)


def test_given_traits_are_one_participants_own(client: Client) -> None:
    analyse(client, "two", model="needy-emotion", given_personality=GIVEN, participant_id="a")
    with pytest.raises(InvalidRequestError, match="GIVEN_PERSONALITY_REQUIRED"):
        analyse(client, "two", model="needy-emotion", participant_id="b")
    analyse(client, "two", model="needy-emotion", given_personality=OTHER, participant_id="b")
    state = client.get_conversation("two")
    assert state.participant("a").given_personality == GIVEN
    assert state.participant("b").given_personality == OTHER


def test_given_traits_do_not_replace_estimates_from_speech(client: Client) -> None:
    heard = final(analyse(client, "heard-1"))
    given = analyse(client, "heard-2", given_personality=GIVEN)
    assert condition(given).source is PersonalitySource.GIVEN
    assert final(given).personality == heard.personality
    assert condition(analyse(client, "heard-2")).traits == GIVEN
    [participant] = client.get_conversation("heard-2").participants
    assert participant.given_personality == GIVEN
    assert present(participant.personality).source is PersonalitySource.CONVERSATION
    assert present(participant.personality).traits != GIVEN
    assert client.get_conversation("heard-1").participants[0].given_personality is None


def test_the_streams_of_one_participant_do_not_mix_up_their_traits(server: ServerProcess) -> None:
    """A stream goes on with the traits that it gave itself, whatever a later one gives."""

    async def run() -> tuple[list[Event], list[Event]]:
        async with AsyncClient(server.target) as client:
            conversation = client.conversation("at-once")
            options: dict[str, Any] = {"encoding": "float32", "model": "needy-emotion"}
            async with (
                conversation.turn("first", given_personality=GIVEN, **options) as first,
                conversation.turn("second", given_personality=OTHER, **options) as second,
            ):
                await first.push(speech())
                await second.push(speech())
                await asyncio.gather(first.result(), second.result())
                return [event async for event in first], [event async for event in second]

    first, second = asyncio.run(run())
    assert condition(first).traits == GIVEN
    assert condition(second).traits == OTHER


# ---- loading --------------------------------------------------------------------------------------------------


def test_a_bundle_of_one_dimension_is_not_served() -> None:
    config = KibunConfig(hubert=HUBERT, trained=True, bundle_name="half", tasks=["arousal"], emotion_head="baseline")
    with pytest.raises(BackendError) as caught:
        BundleModel(pack(KibunModel(config)), "cpu")
    assert caught.value.reason == "LOAD_FAILED"
    assert "half: estimates arousal alone" in str(caught.value)
    assert "kibun models build --valence RUN --arousal RUN" in str(caught.value)


# ---- commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("anna/one.wav", "anna/two.wav", "ben/three.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, speech(), 16_000)
    return tmp_path


CSV = "speaker,openness,conscientiousness,extraversion,agreeableness,neuroticism\n"


@pytest.mark.parametrize("model", ["plain-emotion", "only-personality"])
def test_stream_shows_what_is_missing_as_dashes(kibun: Kibun, server: ServerProcess, folder: Path, model: str) -> None:
    files = (folder / "anna" / "one.wav", folder / "anna" / "two.wav")
    assert kibun("stream", *files, "--server", server.target, "--model", model) == 0
    rows = [line.split() for line in kibun.out.splitlines() if " user " in line and "–" in line]
    assert len(rows) == 2
    dashes = [cell == "–" for cell in rows[0][2:]]
    if model == "plain-emotion":
        assert dashes == [False] * 2 + [True] * 6
        assert kibun.out.count("PERSONALITY_UNSUPPORTED") == 1, "once, and not for every turn"
    else:
        assert dashes[:2] == [True] * 2
        assert not any(dashes[2:7])
    summary = {line.strip().split("  ")[0]: line for line in kibun.out.splitlines()}
    assert ("mean" in summary["valence"]) == (model == "plain-emotion")
    assert ("–" in summary["openness"]) == (model == "plain-emotion")


def test_stream_takes_the_traits_of_its_participant(kibun: Kibun, server: ServerProcess, folder: Path) -> None:
    arguments = ["stream", folder / "ben" / "three.wav", "--server", server.target, "--model", "needy-emotion"]
    assert kibun(*arguments) == 1
    assert "GIVEN_PERSONALITY_REQUIRED" in kibun.err
    assert kibun(*arguments, "--traits", "2,6.5,3,7,1", "--json") == 0
    lines = [json.loads(line) for line in kibun.out.splitlines()]
    [condition] = [line["utterance_result"]["condition"] for line in lines if "utterance_result" in line]
    assert condition["source"] == "PERSONALITY_SOURCE_GIVEN"
    assert condition["traits"]["conscientiousness"] == 6.5
    assert kibun(*arguments, "--traits", "2,6.5,3,7,1") == 0
    assert "6.5 given" in kibun.out


def test_stream_takes_a_file_of_traits_for_a_dialogue(kibun: Kibun, server: ServerProcess, folder: Path) -> None:
    turns = [{"participant_id": name, "start_s": start, "end_s": start + 1.2} for name, start in (("a", 0), ("b", 1.2))]
    (folder / "turns.json").write_text(json.dumps(turns))
    (folder / "traits.csv").write_text(CSV + "a,2,6.5,3,7,1\nb,6,2.5,5,1.5,6\nc,4,4,4,4,4\n")
    arguments = ["stream", folder / "ben" / "three.wav", "--turns", folder / "turns.json", "--server", server.target]
    arguments += ["--model", "needy-emotion", "--json"]
    assert kibun(*arguments, "--traits", folder / "traits.csv") == 0
    assert "--traits names c, who does not speak here" in kibun.err
    participants = json.loads(kibun.out.splitlines()[-1])["conversation"]["participants"]
    assert {p["participant_id"]: p["given_personality"]["openness"] for p in participants} == {"a": 2.0, "b": 6.0}
    assert kibun(*arguments, "--traits", "2,6.5,3,7,1") == 2
    assert "give --traits a .csv or .jsonl file" in kibun.err


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_analyze_takes_traits_by_file_or_speaker(kibun: Kibun, server: ServerProcess, folder: Path, form: str) -> None:
    if form == "csv":
        content = CSV.replace("speaker", "Speaker,note") + "anna,x,2,6.5,3,7,1\nthree,y,6,2.5,5,1.5,6\n"
    else:
        names = CSV.strip().split(",")[1:]
        given = [
            {"speaker": "anna", **dict(zip(names, (2, 6.5, 3, 7, 1), strict=True))},
            {"file": "three.wav", **dict(zip(names, (6, 2.5, 5, 1.5, 6), strict=True))},
        ]
        content = "\n".join(map(json.dumps, given)) + "\n"
    (folder / f"traits.{form}").write_text(content)
    arguments = ["analyze", folder / "anna", folder / "ben", "--server", server.target, "--model", "needy-emotion"]
    assert kibun(*arguments, "--traits", folder / f"traits.{form}", "-f", "csv") == 0
    rows = list(csv.DictReader(kibun.out.splitlines()))
    assert [Path(row["file"]).name for row in rows] == ["one.wav", "two.wav", "three.wav"]
    assert {row["condition_source"] for row in rows} == {"given"}
    assert rows[0]["valence"] == rows[1]["valence"] != rows[2]["valence"], "the same audio, other traits"
    assert {row["openness"] for row in rows} == {""}
    assert kibun.err.count("PERSONALITY_UNSUPPORTED") == 1, "once, and not for every file"


def test_analyze_names_files_without_traits(kibun: Kibun, server: ServerProcess, folder: Path) -> None:
    (folder / "traits.csv").write_text(CSV + "anna,2,6.5,3,7,1\n")
    arguments = ["analyze", folder / "anna", folder / "ben", "--server", server.target, "--model", "needy-emotion"]
    assert kibun(*arguments, "--traits", folder / "traits.csv", "-f", "csv") == 1
    assert "has no traits for 1 of 3 files" in kibun.err
    [reason] = [line for line in kibun.err.splitlines() if "three.wav: " in line]
    assert "GIVEN_PERSONALITY_REQUIRED" in reason
    rows = list(csv.DictReader(kibun.out.splitlines()))
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"], "also of the file that has no traits"
    (folder / "traits.csv").write_text(CSV + "carla,2,6.5,3,7,1\n")
    assert kibun(*arguments, "--traits", folder / "traits.csv") == 2
    assert "none of its 1 rows is about one of the 3 files" in kibun.err


@pytest.mark.parametrize("model", ["plain-emotion", "only-personality"])
def test_analyze_prints_dashes_in_its_table(kibun: Kibun, server: ServerProcess, folder: Path, model: str) -> None:
    assert kibun("analyze", folder / "ben", "--server", server.target, "--model", model) == 0
    _name, summary = (line.split() for line in kibun.out.splitlines() if line.strip().startswith("three.wav"))
    emotion, traits = summary[-7:-5], summary[-5:]
    assert ([cell == "–" for cell in emotion], [cell == "–" for cell in traits]) == (
        ([False] * 2, [True] * 5) if model == "plain-emotion" else ([True] * 2, [False] * 5)
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", CSV + "a,2,6.5,3,7\n", "line 2: neuroticism must be a number 1 to 7 (TIPI scale), not None"),
        ("t.csv", CSV + "a,2,6.5,3,7,8\n", "line 2: neuroticism must be a number 1 to 7 (TIPI scale), not '8'"),
        ("t.csv", CSV + "a,2,nan,3,7,1\n", "line 2: conscientiousness must be"),
        ("t.csv", CSV + "a,2,6.5,3,7,1\na,2,6.5,3,7,1\n", "line 3: 'a' already has traits, from an earlier line"),
        (
            "t.csv",
            CSV + ",2,6.5,3,7,1\n",
            "line 2: the row does not name whose traits these are: participant or speaker",
        ),
        ("t.csv", "speaker,openness\na,2\n", "line 1: no column conscientiousness, extraversion"),
        ("t.csv", CSV, "holds no traits"),
        ("t.jsonl", "{\n", "line 1: invalid JSON"),
        ("t.jsonl", "\n[1]\n", "line 2: an object is expected"),
        ("t.jsonl", '{"speaker": "a", "openness": true}\n', "line 1: openness must be"),
        ("2,6.5,3,7", None, "five numbers 1 to 7 are expected, as in 4.5,5,3,6,2"),
        ("2,6.5,3,7,x", None, "neuroticism must be a number 1 to 7"),
        ("none.csv", None, "no such file"),
    ],
)
def test_traits_that_cannot_be_used_are_named(
    kibun: Kibun, server: ServerProcess, folder: Path, name: str, content: str | None, message: str
) -> None:
    path = folder / name
    if content is not None:
        path.write_text(content)
    traits = name if "," in name else path
    assert kibun("stream", folder / "ben" / "three.wav", "--server", server.target, "--traits", traits) == 2
    assert message in kibun.err
