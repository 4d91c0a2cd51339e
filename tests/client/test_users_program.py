"""Programs as a user writes them, in docs/sdk.md and docs/files.md: they are typed for them, and they run."""

import asyncio
import os
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kibun.bench.support.speech_like import lay_out
from kibun.client import AsyncClient, Client
from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.processes import until
from tests.support.programs import of_the_documentation

PROGRAM, EARLY, WATCH, TAP, BASELINE = of_the_documentation("docs/sdk.md")

SPOKEN = (32767 * lay_out([("silence", 0.4), ("speech", 1.5), ("silence", 0.8)]).audio).astype("<i2").tobytes()


def test_it_is_typed_strictly_and_what_is_wrong_in_it_is_found(tmp_path: Path) -> None:
    wrong = PROGRAM.replace("timeout_s=10.0", 'timeout_s="10"').replace("print(event.start_s", "print(event.start")
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(wrong + "\nClient('h:1').conversation().turn(sample_rate_hz='16000')\n")
    # Without the settings of this repository.
    (tmp_path / "early.py").write_text(EARLY)
    (tmp_path / "watch.py").write_text(WATCH)
    (tmp_path / "baseline.py").write_text(BASELINE)
    (tmp_path / "tap.py").write_text(
        TAP.replace('"Framework"', "Any").replace("from kib", "from typing import Any\nfrom kib")
    )
    files = ["right.py", "wrong.py", "early.py", "watch.py", "baseline.py", "tap.py"]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 3, done.stdout + done.stderr
    assert all(line.startswith("wrong.py") for line in errors)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "program.py").write_text(PROGRAM)
    with ServerProcess("stub", ["--loader", "tests.support.stub_model:load"]) as server:
        command = [sys.executable, str(tmp_path / "program.py"), server.target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("client_end_of_turn\n", 0), done.stderr


def test_the_early_program_acts_on_an_interim_and_gets_the_final_of_the_same_utterance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a silence that is too short to end the utterance by itself."""
    program: dict[str, Any] = {}
    exec(EARLY, program)
    audio = lay_out([("silence", 0.4), ("speech", 1.2), ("silence", 0.4)]).audio
    pcm = (32767 * audio).astype("<i2").tobytes()

    def microphone() -> Iterator[bytes]:
        for at in range(0, len(pcm), 3200):
            yield pcm[at : at + 3200]
        turn_ends.wait(20.0)  # the microphone stays open, and no more comes of it

    turn_ends, acted = threading.Event(), list[Any]()

    def act(event: Any) -> None:
        acted.append(event)
        turn_ends.set()

    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    server = ServerProcess("stub", ["--loader", "tests.support.stub_model:load", "--vad", "webrtc"])
    with server, Client(server.target) as client:
        program["reply_at_once"](client, microphone(), lambda: True, act)
    early, final = acted
    assert (early.is_final, early.covers_speech_so_far, final.is_final) == (False, True, True)
    assert (early.utterance_id, early.emotion) == (final.utterance_id, final.emotion)


def test_the_watch_shows_what_was_said_before_and_ends_with_the_conversation(
    demo_server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    program: dict[str, Any] = {}
    exec(WATCH, program)
    with Client(demo_server.target) as client:
        conversation = client.conversation("table-4")
        with conversation.turn("t-1", "guest") as turn:
            turn.push(SPOKEN)
            turn.result()
        follower = threading.Thread(target=program["follow"], args=[client])
        follower.start()
        conversation.complete()
        follower.join(60.0)
        conversation.delete()
        assert not follower.is_alive()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("guest t-1 Emotion(valence=")
    assert last == "guest has finished"


async def test_the_tap_follows_a_framework(demo_server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    program: dict[str, Any] = {}
    exec(TAP, program)
    framework = SimpleNamespace()
    async with AsyncClient(demo_server.target) as client:
        following = asyncio.create_task(program["follow"](client, framework))
        await until(lambda: hasattr(framework, "on_agent_speaking"))
        framework.on_user_started()
        for begin in range(0, len(SPOKEN), 640):
            framework.on_frame(SPOKEN[begin : begin + 640], 16_000)
            await asyncio.sleep(0.001)
        framework.on_user_stopped()
        await asyncio.wait_for(following, 60)
        await client.conversation("table-4").delete()  # of which others watch a new one
    assert "Emotion(valence=" in capsys.readouterr().out


def test_recordings_become_a_table(demo_server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs the extra analyze")
    (program,) = of_the_documentation("docs/files.md")
    assert 'model="demo-tiny"' in program
    (tmp_path / "recordings").mkdir()
    with wave.open(str(tmp_path / "recordings" / "a.wav"), "wb") as recording:
        recording.setparams((1, 2, 16_000, 0, "NONE", ""))
        recording.writeframes(SPOKEN)
    program = program.replace('model="demo-tiny"', f'server="{demo_server.target}"')
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 1 recordings/a.wav ok" in done.stdout
    assert "Name: arousal" in done.stdout


def test_the_baseline_runs_and_is_none_at_first(tmp_path: Path) -> None:
    more = 'for _ in range(3):\n    relative = baseline.add("table-4/guest", Emotion(valence=3.0, arousal=2.4))\n'
    (tmp_path / "baseline.py").write_text(f"{BASELINE}{more}print(relative and relative.utterance_count)\n")
    done = subprocess.run([sys.executable, str(tmp_path / "baseline.py")], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr
