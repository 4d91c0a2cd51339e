"""What people see of events: the drawing that grows on a terminal, and the lines of a pipe."""

import asyncio
import contextlib
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from rich.console import Console

from kibun.client import AsyncClient
from kibun.client.commands.growth import Growth
from kibun.client.commands.report import Display
from kibun.client.estimates import Emotion, EndReason, PersonalityEstimate, PersonalitySource, Traits
from kibun.client.events import PersonalityUpdate, StreamStarted, StreamWarning, UtteranceResult
from kibun.client.resources import ConversationState, ParticipantState, State
from kibun.client.server_process import ServerProcess
from tests.support import ROOT

DIALOGUE = ROOT / "client" / "kibun" / "client" / "demo" / "dialogue.flac"
KIBUN = [sys.executable, "-m", "kibun.client.main"]
CONTROL = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


def heard(number: int, valence: float | None, *, is_final: bool = True, eager: bool = False) -> UtteranceResult:
    return UtteranceResult(
        utterance_id=f"u{number}",
        turn_id="t",
        is_final=is_final,
        start_s=float(number),
        end_s=number + 0.8,
        analyzed_s=0.8,
        emotion=None if valence is None else Emotion(valence, 3.0),
        personality=None,
        condition=None,
        end_reason=EndReason.SILENCE,
        covers_speech_so_far=eager,
    )


def update(count: int, value: float, error: float | None, *, of_mean: float = 2.0) -> PersonalityUpdate:
    return PersonalityUpdate(participant_id="ann", personality=estimate(count, value, error, of_mean), revision=count)


def estimate(count: int, value: float, error: float | None, of_mean: float = 2.0) -> PersonalityEstimate:
    return PersonalityEstimate(
        traits=Traits(*[value] * 5),
        source=PersonalitySource.CONVERSATION,
        utterance_count=count,
        speech_s=0.8 * count,
        expected_error=None if error is None else Traits(*[error] * 5),
        expected_error_of_mean=None if error is None else Traits(*[of_mean] * 5),
    )


def drawn(growth: Growth, width: int = 80, encoding: str = "utf-8", most_lines: int | None = None) -> dict[str, str]:
    """The lines of the drawing, by their first word."""
    output = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=output, width=width, color_system=None)
    lines = [line.plain for line in growth.view(console.options, most_lines)]
    for line in lines:
        line.encode(encoding)
        console.print(line)
    return {line.split()[0]: line for line in lines if line.strip()}


def test_a_bar_per_utterance_behind_its_interims() -> None:
    growth = Growth()
    for event in (heard(0, 1, is_final=False), heard(0, 3, is_final=False), heard(0, 5), heard(1, None), heard(2, 1)):
        growth.on_event(event, "ann")
    assert drawn(growth)["valence"].split()[1:5] == ["▁▅█", "–", "▁", "1.00"]
    growth.on_event(heard(3, 4, is_final=False), "ann")
    assert drawn(growth)["valence"].split()[1:] == ["▁▅█", "–", "▁", "▆", "4.00", "so", "far"]
    assert "3 utterances" in drawn(growth)["ann"], "an interim is none yet"
    # The interim of the silence that ended the utterance has the final's estimates: one bar, not two.
    growth.on_event(heard(3, 4.4, is_final=False, eager=True), "ann")
    growth.on_event(heard(3, 4.4), "ann")
    growth.on_event(heard(3, 1), "ann")
    assert drawn(growth)["valence"].split()[1:] == ["▁▅█", "–", "▁", "▆▇", "4.40"], "a final never changes"
    assert drawn(growth, encoding="ascii")["valence"].split()[1:] == ["135", "-", "1", "44", "4.40"]


def test_expected_error_is_seen_to_shrink() -> None:
    growth = Growth()
    growth.on_event(update(1, 3.0, 1.5), "ann")
    first = drawn(growth)["openness"]
    assert first.endswith("3.0 ± 1.50")
    growth.on_event(update(2, 4.0, 0.5), "ann")
    line = drawn(growth)["openness"]
    assert line.endswith("4.0 ± 0.50, was 1.50")
    assert first.count("━") > 2 * line.count("━") > 0
    assert line.count("╌") > 0
    assert line.index("○") < line.index("●"), "where it was at first"
    ascii_line = drawn(growth, encoding="ascii")["openness"]
    assert ascii_line.endswith("4.0 +- 0.50, was 1.50")
    assert re.search(r"1\.+-+o-*=+O=+-+\.+7", ascii_line)
    growth.on_event(update(3, 4.0, 2.5), "ann")
    assert drawn(growth)["openness"].endswith("4.0 ± 2.50, a guess"), "no better than the mean"
    remark = "ann: openness, conscientiousness, extraversion, agreeableness, neuroticism: no better than guessing"
    assert drawn(growth)["ann:"].startswith(remark)


def test_traits_at_the_ends_of_their_scale_and_without_errors() -> None:
    for value, error in ((1.0, 1.5), (7.0, 1.5), (0.2, 0.1), (7.9, 9.0), (4.0, None)):
        growth = Growth()
        growth.on_event(update(1, value, error), "ann")
        line = drawn(growth)["openness"]
        assert len(line) <= 80
        assert line.count("●") == 1
        assert ("±" in line) == (error is not None)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_it_fits_its_width_and_leaves_out_the_oldest(width: int) -> None:
    growth = Growth("a banner")
    for number in range(300):
        for is_final in (False, False, True):
            growth.on_event(heard(number, 1 + number % 5, is_final=is_final), "ann")
        growth.on_event(update(number + 1, 4.0, 1 - number / 400), "ann")
        lines = drawn(growth, max(width, 80))
        assert all(len(line) <= max(width, 80) for line in lines.values())
    assert "‹" in lines["valence"]
    assert lines["valence"].split()[-2] == "█", "the latest"
    assert "300 utterances, 240 s of speech, latest 299.0–299.8 s" in lines["ann"]
    output = io.StringIO()
    Console(file=output, width=width).print(growth)
    assert max(map(len, output.getvalue().splitlines())) <= width


def test_on_a_small_screen_those_who_spoke_last_are_drawn() -> None:
    growth = Growth()
    for number, who in enumerate(("ann", "ben", "cem", "dan", "ann")):
        growth.on_event(heard(number, 2.0), who)
    for rows, expected in ((23, ["ann", "dan"]), (12, ["ann"]), (3, ["ann"]), (60, ["ann", "ben", "cem", "dan"])):
        console = Console(file=io.StringIO(), width=80)
        lines = [line.plain for line in growth.view(console.options, rows)]
        names = [line.split()[0] for line in lines if line and not line.startswith(" ")]
        assert names[:4] == ["ann", "ben", "cem", "dan"], "all are told of, in order"
        whole = [line.split()[0] for line in lines if line.split("  ")[0] in names[:4] and "latest" in line]
        assert whole == expected
        assert len(lines) <= max(rows, 15)


def test_what_the_server_knows_ends_it() -> None:
    growth = Growth()
    growth.on_event(heard(0, 2.0), "ann")
    growth.on_event(update(1, 4.0, 1.0), "ann")
    ann = ParticipantState("ann", estimate(9, 4.4, 0.7), Emotion(3.1, 2.9), Emotion(2, 3), 4, 9, 31.0)
    given = PersonalityEstimate(Traits(2, 6.5, 3, 7, 1), PersonalitySource.GIVEN, 0, 0.0, None)
    state = ConversationState(
        "c", State.ACTIVE, None, None, None, (ann, ParticipantState("ben", given, None, None, 1, 0, 0.0)), "m"
    )
    growth.know(state, concluded=False)
    assert drawn(growth)["ann"].startswith("ann  9 utterances, 31 s of speech, latest")
    assert drawn(growth)["valence"].endswith(" –"), "of ben nothing was heard"
    growth.know(state)
    lines = drawn(growth)
    assert lines["ann"].startswith("ann  4 turns, 9 utterances, 31 s of speech")
    assert lines["ben"] == "ben  1 turn, 0 utterances, 0 s of speech"
    assert lines["conscientiousness"].endswith(" 6.5 given")
    console = Console(file=io.StringIO(), width=80)
    whole = "\n".join(line.plain for line in growth.view(console.options))
    assert "2.00, mean 3.10" in whole
    assert "4.4 ± 0.70, was 1.00" in whole


def test_a_line_is_printed_when_its_utterance_is_complete() -> None:
    console = Console(file=(output := io.StringIO()), width=80)
    with Display(console) as display:

        def rows() -> list[list[str]]:
            return [line.split() for line in output.getvalue().splitlines() if " ann " in line or " ben " in line]

        display.on_event(heard(0, 2.5, is_final=False), "ann")
        display.on_event(heard(0, 2.5), "ann")
        display.on_event(heard(7, 1.5), "ben")
        assert rows() == [], "their traits may still come"
        display.on_event(update(1, 4.0, 1.0), "ann")
        assert rows() == [["0.0–0.8", "ann", "2.50", "3.00", *["4.0"] * 5, "1", "utt.,", "1", "s"]]
        display.on_event(heard(8, None), "ben")
        assert rows()[1] == ["7.0–7.8", "ben", "1.50", "3.00", *"––––––"]
        warning = StreamWarning(reason="MODEL_UNTRAINED", message="means nothing", metadata={})
        for _ in range(2):
            display.on_event(warning, "ann")
        assert output.getvalue().count("MODEL_UNTRAINED: means nothing") == 1
    assert rows()[2] == ["8.0–8.8", "ben", *"––––––––"]
    assert "\x1b" not in output.getvalue()


def test_a_model_of_generated_speech_is_told_of_before_its_first_estimate() -> None:
    console = Console(file=(output := io.StringIO()), width=80)
    with Display(console) as display:
        started = StreamStarted(
            request_id="",
            conversation_id="c",
            participant_id="ann",
            turn_id="t",
            model="m",
            conversation_created=True,
            prior_utterance_count=0,
            max_stream_s=1.0,
            idle_timeout_s=1.0,
            max_audio_content_bytes=0,
            synthetic_model=True,
        )
        display.on_event(started, "ann")
        display.on_event(heard(0, 2.5), "ann")
        display.on_event(update(1, 4.0, 1.0), "ann")
        said = output.getvalue()
        assert said.index("tells you nothing about real people") < said.index("2.50")


# -- the commands themselves


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with ServerProcess("stub", ["--loader", "tests.support.stub_model:load", "--vad", "webrtc"]) as server:
            yield server.target


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "x.wav"
    samples, rate_hz = soundfile.read(DIALOGUE, dtype="int16", frames=9 * 16_000)
    soundfile.write(path, samples, rate_hz)
    return path


def test_a_watch_into_a_pipe_prints_each_utterance_as_it_ends(target: str, wav: Path) -> None:
    """While the conversation goes on, not when it is over."""
    command = [*KIBUN, "watch", "piped", "--server", target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline()
        overdue = threading.Timer(60, process.kill)
        overdue.start()
        subprocess.run([*KIBUN, "stream", wav, "--conversation", "piped", "--server", target], check=True)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if " utt.," in line:
                break
        assert process.poll() is None
        assert " user " in lines[-1]
        asyncio.run(_complete(target, "piped"))
        rest = process.stdout.read()
        overdue.cancel()
        assert process.wait(20) == 0, process.stderr.read()
    assert "user  1 turn, " in rest


async def _complete(target: str, conversation_id: str) -> None:
    async with AsyncClient(target) as client:
        await client.conversation(conversation_id).complete()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
def test_on_a_terminal_the_drawing_grows_in_place(target: str, wav: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [*KIBUN, "stream", str(wav), "--realtime", "--interim", "--server", target]
    above, below = pty.openpty()
    fcntl.ioctl(below, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment |= {"TERM": "xterm-256color", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=below, stderr=below, stdin=subprocess.DEVNULL, env=environment) as process:
        os.close(below)
        written = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while select.select([above], [], [], 60)[0] and (data := os.read(above, 65536)):
                written += data
        assert process.wait(20) == 0
    os.close(above)
    screens = written.decode().replace("\r", "").split("\x1b[2K")
    text = CONTROL.sub("", written.decode()).replace("\r", "")
    assert len(screens) > 10, "drawn again and again"
    assert "so far" in text, "an interim, before its final"
    end = text[text.rindex("user  1 turn, ") :]
    assert "mean" in end
    assert "so far" not in end
    assert max(map(len, end.splitlines())) <= 80
