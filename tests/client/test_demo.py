"""`kibun demo` as people run it: the bundled dialogue, the bundled model, a separate server."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from tests.support import ROOT

DEMO = ROOT / "client" / "kibun" / "client" / "demo"

# What differs from run to run: names, clock times, and how far the audio was when an event came. Speech events don't
# wait for results, so they may come before or after one; what comes in which order within each kind is fixed.
VOLATILE = {"request_id", "create_time", "update_time", "expire_time"}
ENVELOPE = {"sequence_number", "audio_received", "audio_processed"}
REMEDY = "after a change of model or dialogue: kibun demo --json > client/kibun/client/demo/expected.jsonl"
# Sums in another order, on another processor.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.CompletedProcess[str]]:
    """Both forms of the demo, at the same time."""
    command = [sys.executable, "-m", "kibun.client.main", "demo"]
    started = {
        name: subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "80"},
        )
        for name, options in {"json": ["--json"], "table": []}.items()
    }
    results = {}
    for name, process in started.items():
        out, err = process.communicate(timeout=110)
        results[name] = subprocess.CompletedProcess(command, process.returncode, out, err)
    return results


def lasting(value: object, *, top: bool = True) -> object:
    """`value` without what differs from run to run."""
    if isinstance(value, dict):
        skip = VOLATILE | ENVELOPE if top else VOLATILE
        return {key: lasting(item, top=False) for key, item in value.items() if key not in skip}
    if isinstance(value, list):
        return [lasting(item, top=False) for item in value]
    return value


def assert_close(found: object, expected: object, where: str) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert found.keys() == expected.keys(), where
        for key, item in expected.items():
            assert_close(found[key], item, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), where
        assert len(found) == len(expected), where
        for index, item in enumerate(expected):
            assert_close(found[index], item, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=TOLERANCE), where
    else:
        assert found == expected, where


def test_json_is_as_committed(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """The whole output, line by line."""
    result = runs["json"]
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    expected = [json.loads(line) for line in (DEMO / "expected.jsonl").read_text().splitlines()]
    assert len(found) == len(expected), REMEDY
    # Stable sorts: speech events first, everything else in its order.
    found.sort(key=lambda line: "speech_event" not in line)
    expected.sort(key=lambda line: "speech_event" not in line)
    for number, (one, other) in enumerate(zip(found, expected, strict=True), 1):
        assert_close(lasting(one), lasting(other), f"response {number} ({REMEDY})")


def test_json_keeps_the_promises_of_the_contract(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    lines = [json.loads(line) for line in runs["json"].stdout.splitlines()]
    turns = json.loads((DEMO / "dialogue.json").read_text())
    streams: list[list[dict[str, Any]]] = []
    for line in lines[:-1]:
        if "stream_started" in line:
            streams.append([])
        streams[-1].append(line)
    assert len(streams) == len(turns)
    for stream, turn in zip(streams, turns, strict=True):
        assert [int(line["sequence_number"]) for line in stream] == list(range(len(stream)))
        started = stream[0]["stream_started"]
        assert (started["turn_id"], started["participant_id"]) == (turn["turn_id"], turn["participant_id"])
        assert started["synthetic_model"] is True
        assert [name for line in stream[-2:] for name in ("turn_result", "stream_ended") if name in line] == [
            "turn_result",
            "stream_ended",
        ]
        ended = stream[-1]["stream_ended"]
        parts = (ended["speech_duration"], ended["non_speech_duration"], ended["dropped_duration"])
        assert sum(seconds(part) for part in parts) == pytest.approx(seconds(ended["audio_received"]), abs=1e-6)
        assert seconds(ended["audio_received"]) == pytest.approx(turn["end_s"] - turn["start_s"], abs=0.01)
    participants = lines[-1]["conversation"]["participants"]
    assert {p["participant_id"]: p["turn_count"] for p in participants} == Counter(
        turn["participant_id"] for turn in turns
    )
    assert len(participants) == 2


def test_arousal_follows_what_the_dialogue_was_made_with(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """The renderer's own arousal of each turn, against the estimate: they must rank alike."""
    turns = {turn["turn_id"]: turn for turn in json.loads((DEMO / "dialogue.json").read_text())}
    lines = [json.loads(line) for line in runs["json"].stdout.splitlines()]
    results = [line["turn_result"] for line in lines if "turn_result" in line]
    made = [turns[result["turn_id"]]["arousal"] for result in results]
    estimated = [result["emotion"]["arousal"] for result in results]
    assert spearman(made, estimated) > 0.7


def test_table_is_for_people(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    result = runs["table"]
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("synthetic model: tells you nothing about real people") == 2
    turns = json.loads((DEMO / "dialogue.json").read_text())
    rows = [line.split()[1] for line in result.stdout.splitlines() if "utt." in line]
    speakers = [row for index, row in enumerate(rows) if index == 0 or rows[index - 1] != row]
    assert speakers == [turn["participant_id"] for turn in turns], "every turn has its rows, in order"
    drawn = [line for line in result.stdout.splitlines() if " openness " in line]
    assert len(drawn) == 2, "the drawing of both, at the end"
    assert all(" ± " in line and ", was " in line for line in drawn), "the bundle knows its expected error"
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_server_is_gone_afterwards(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    port = int(runs["table"].stdout.split("demo-tiny at 127.0.0.1:")[1].split()[0])
    import socket

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.slow
def test_realtime_takes_as_long_as_the_dialogue() -> None:
    start = time.monotonic()
    command = [sys.executable, "-m", "kibun.client.main", "demo", "--json", "--realtime"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    last = json.loads((DEMO / "dialogue.json").read_text())[-1]["end_s"]
    assert last < time.monotonic() - start < last + 40


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def spearman(one: list[float], other: list[float]) -> float:
    import numpy as np

    ranks = np.array([np.argsort(np.argsort(values)) for values in (one, other)])
    return float(np.corrcoef(ranks)[0, 1])
