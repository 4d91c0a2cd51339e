"""The robot example: run as people run it against the real server and model, and its rules by themselves."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from kibun.client import AudioFile, Emotion, PersonalityEstimate, PersonalitySource, Traits
from kibun.client.server_process import ServerProcess
from tests.support import ROOT, present

EXAMPLE = ROOT / "examples" / "android_agent.py"
Json = dict[str, Any]
TURNS = json.loads((ROOT / "client" / "kibun" / "client" / "demo" / "dialogue.json").read_text())

# The example takes who speaks second for the robot.
USER, ROBOT = dict.fromkeys(turn["participant_id"] for turn in TURNS)


@pytest.fixture(scope="module")
def agent() -> ModuleType:
    spec = present(importlib.util.spec_from_file_location("android_agent", EXAMPLE))
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["android_agent"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def commands(demo_server: ServerProcess) -> list[Json]:
    """All commands to the robot in the dialogue, played faster than it was spoken."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), "--server", demo_server.target, "--speed", "5"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def named(commands: list[Json], name: str) -> list[Json]:
    return [command for command in commands if command["command"] == name]


def test_only_the_user_is_heard(commands: list[Json]) -> None:
    users = [turn["turn_id"] for turn in TURNS if turn["participant_id"] == USER]
    robots = [turn["turn_id"] for turn in TURNS if turn["participant_id"] == ROBOT]
    assert named(commands, "goodbye")[0]["heard"] == [USER], "the server knows no other speaker"
    assert list(dict.fromkeys(c["turn_id"] for c in named(commands, "expression"))) == users
    assert [c["turn_id"] for c in named(commands, "own_speech")] == robots


def test_faces_come_while_the_user_speaks_and_once_for_the_whole(commands: list[Json]) -> None:
    faces = named(commands, "expression")
    assert all(-1 <= face[axis] <= 1 for face in faces for axis in ("valence", "arousal"))
    for turn in TURNS:
        of_turn = [face for face in faces if face["turn_id"] == turn["turn_id"]]
        if turn["participant_id"] == ROBOT:
            continue
        assert of_turn[-1]["is_final"]
        assert any(not face["is_final"] for face in of_turn), "a face before the turn is over"
        assert all(turn["start_s"] <= face["t"] <= turn["end_s"] + 0.01 for face in of_turn)
    assert commands[0] == {
        "t": 0.0,
        "command": "notice",
        "text": "synthetic model: tells you nothing about real people",
    }


def test_the_face_is_livelier_in_livelier_turns(commands: list[Json]) -> None:
    made = {turn["turn_id"]: turn["arousal"] for turn in TURNS if turn["participant_id"] == USER}
    final = {face["turn_id"]: face["arousal"] for face in named(commands, "expression") if face["is_final"]}
    lively = [final[turn] for turn, arousal in made.items() if arousal > np.median(list(made.values()))]
    calm = [final[turn] for turn, arousal in made.items() if arousal <= np.median(list(made.values()))]
    assert np.mean(lively) > np.mean(calm) + 0.2


def test_style_comes_late_and_changes_slowly(commands: list[Json], agent: ModuleType) -> None:
    styles = present(named(commands, "speaking_style"))
    assert styles[0]["heard"]["utterance_count"] >= agent.MIN_UTTERANCES
    assert styles[0]["heard"]["speech_s"] >= agent.MIN_SPEECH_S
    assert len(styles) < len([turn for turn in TURNS if turn["participant_id"] == USER])
    for name, rule in agent.STYLE_RULES.items():
        values = [rule.neutral, *(style[name] for style in styles)]
        assert all(abs(value - rule.neutral) <= rule.swing + 1e-6 for value in values)
        steps = np.abs(np.diff(values))
        assert steps.max() <= agent.MAX_STEP * rule.swing + 2e-3


@pytest.mark.parametrize("extreme", [1.0, 7.0])
def test_style_is_bounded_for_any_traits(agent: ModuleType, extreme: float) -> None:
    behaviour = agent.Behaviour()
    traits = Traits(extreme, extreme, extreme, extreme, extreme)
    estimate = PersonalityEstimate(traits, PersonalitySource.CONVERSATION, 9, 60.0, None)
    history = [behaviour.speaking_style(estimate) for _ in range(20)]
    for name, rule in agent.STYLE_RULES.items():
        assert abs(history[-1][name] - rule.target(traits)) < 1e-3, "it gets there"
        assert abs(history[0][name] - rule.neutral) <= agent.MAX_STEP * rule.swing + 1e-9, "but not at once"
        assert abs(rule.target(traits) - rule.neutral) <= rule.swing + 1e-9


def test_an_extravert_is_answered_sooner_and_with_more(agent: ModuleType) -> None:
    def target(name: str, extraversion: float) -> float:
        return float(agent.STYLE_RULES[name].target(Traits(4, 4, extraversion, 4, 4)))

    assert target("utterance_amount", 6) > 1 > target("utterance_amount", 2)
    assert target("switching_pause_ms", 6) < 600 < target("switching_pause_ms", 2)


@pytest.mark.parametrize(("utterances", "speech_s"), [(2, 60.0), (9, 4.9)])
def test_too_little_evidence_changes_nothing(agent: ModuleType, utterances: int, speech_s: float) -> None:
    estimate = PersonalityEstimate(Traits(7, 7, 7, 7, 7), PersonalitySource.CONVERSATION, utterances, speech_s, None)
    assert agent.Behaviour().speaking_style(estimate) is None


def test_faces_are_not_too_many(agent: ModuleType) -> None:
    behaviour = agent.Behaviour()
    shown = [behaviour.expression(t / 10, Emotion(3, 3), is_final=False) is not None for t in range(20)]
    assert sum(shown) == 4
    assert behaviour.expression(1.95, Emotion(3, 3), is_final=True) is not None, "the final always shows"


def test_own_voice_is_cut_out_with_its_tail(agent: ModuleType, tmp_path: Path) -> None:
    samples = np.ones(3 * 8000, np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 8000)
    ears = agent.Ears(AudioFile(tmp_path / "x.wav"), [agent.Turn("t", "robot", 1.0, 1.5)])
    assert (ears.rate_hz, ears.encoding) == (8000, "linear16")
    heard = np.concatenate([ears.hear(start / 10, (start + 1) / 10) for start in range(30)])
    assert len(heard) == len(samples), "times stay what they are"
    assert not heard[8000:14400].any(), "0.3 s of the room's tail are cut out as well"
    assert heard[:8000].all()
    assert heard[14400:].all()
    assert ears.hear(0.0, 3.0)[:8000].all(), "the recording itself is left alone"


def test_wrong_robot_is_named() -> None:
    result = subprocess.run([sys.executable, str(EXAMPLE), "--robot", "hal"], capture_output=True, text=True)
    assert result.returncode == 2
    assert f"--robot must be one of at least two speakers: {USER}, {ROBOT}" in result.stderr
