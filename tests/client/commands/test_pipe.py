"""`kibun stream -` and `kibun analyze -`: WAV and raw samples from a pipe, as other programs write them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.commands import Kibun

DIALOGUE = ROOT / "client" / "kibun" / "client" / "demo" / "dialogue.flac"
KIBUN = [sys.executable, "-m", "kibun.client.main"]


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with ServerProcess("stub", ["--loader", "tests.support.stub_model:load", "--vad", "webrtc"]) as server:
            yield server.target


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipe") / "x.wav"
    samples, rate_hz = soundfile.read(DIALOGUE, dtype="int16", frames=5 * 16_000)
    soundfile.write(path, samples, rate_hz)
    return path


class Piped:
    """`kibun stream - --json` with bytes as its standard input, in this process."""

    def __init__(self, kibun: Kibun, target: str) -> None:
        self._kibun = kibun
        self._target = target
        self.code = 0

    def __call__(self, data: bytes, *options: str) -> "Piped":
        with standard_input(data):
            self.code = self._kibun("stream", "-", "--json", "--server", self._target, *options)
        return self

    @property
    def err(self) -> str:
        return self._kibun.err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self._kibun.lines

    @property
    def received_s(self) -> float:
        return float(next(line["stream_ended"]["audio_received"] for line in self.lines if "stream_ended" in line)[:-1])


@contextlib.contextmanager
def standard_input(data: bytes) -> Iterator[None]:
    """A pipe in place of file 0, into which `data` is written."""
    read_end, write_end = os.pipe()
    saved = os.dup(0)
    os.dup2(read_end, 0)
    os.close(read_end)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        writer.join()


@pytest.fixture
def stream(kibun: Kibun, target: str) -> Piped:
    return Piped(kibun, target)


def unknown_length(wav: bytes, size: bytes) -> bytes:
    start = wav.index(b"data") + 8
    return wav[:4] + size + wav[8 : start - 4] + size + wav[start:]


def test_wav_of_known_and_unknown_length(stream: Piped, wav: Path) -> None:
    data = wav.read_bytes()
    for piped in (data, data + b"LIST\4\0\0\0INFO", *(unknown_length(data, size) for size in (bytes(4), b"\xff" * 4))):
        done = stream(piped)
        assert (done.code, done.received_s) == (0, 5.0), done.err
        assert any("utterance_result" in line for line in done.lines)
    done = stream(data[: len(data) // 2])
    assert done.code == 1
    assert "standard input is cut off: 2.5 of 5.0 s are missing; the rest was analysed" in done.err


def test_raw_samples(stream: Piped, wav: Path) -> None:
    samples, _ = soundfile.read(wav, dtype="float32")
    stereo = np.column_stack([samples, samples])
    done = stream(samples.astype("<f4").tobytes(), "--rate", "16000", "--encoding", "float32")
    assert (done.code, done.received_s) == (0, 5.0)
    done = stream((stereo * 32767).astype("<i2").tobytes(), "--rate", "16000", "--channels", "2")
    assert (done.code, done.received_s) == (0, 5.0)
    done = stream(bytes(range(256)) * 100, "--rate", "8000", "--encoding", "mulaw")
    assert (done.code, done.received_s) == (0, 3.2)
    config = done.lines[0]["stream_started"]["effective_config"]["audio_config"]
    assert config["sample_rate_hertz"] == 8000


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"])
def test_other_formats(stream: Piped, wav: Path, tmp_path: Path, kind: str) -> None:
    samples, rate_hz = soundfile.read(wav, dtype="int16")
    soundfile.write(tmp_path / "x", samples, rate_hz, format=kind)
    done = stream((tmp_path / "x").read_bytes())
    assert done.code == 0, done.err
    assert done.received_s == pytest.approx(5.0, abs=0.01)


def test_what_says_too_little_or_too_much(stream: Piped, wav: Path) -> None:
    mp4 = b"\0\0\0\x20ftypM4A " + bytes(500)
    cases: list[tuple[bytes, tuple[str, ...], str]] = [
        (b"", (), "standard input gave no audio"),
        (bytes(64_000), (), "has no header that says what the samples are: add --rate HZ"),
        (wav.read_bytes(), ("--rate", "16000"), "begins with a header, which says itself"),
        (mp4, (), "is MP4 (m4a, mp4, mov), which is not read here: put `ffmpeg -i - -f wav -` before it"),
    ]
    for data, options, text in cases:
        done = stream(data, *options)
        assert done.code == 2
        assert text in done.err
        assert "Traceback" not in done.err


def test_standard_input_that_cannot_be_read(kibun: Kibun, target: str) -> None:
    saved, written_only = os.dup(0), os.open(os.devnull, os.O_WRONLY)
    os.dup2(written_only, 0)
    try:
        assert kibun("stream", "-", "--server", target) == 2
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(written_only)
    assert kibun.err == "kibun: standard input cannot be read: Bad file descriptor [FILE_UNREADABLE]\n"


def test_floats_from_a_pipe_that_are_no_audio(stream: Piped) -> None:
    samples = np.zeros(16_000, "<f4")
    samples[8000] = np.nan
    assert stream(samples.tobytes(), "--rate", "16000", "--encoding", "float32").code == 1
    assert "standard input holds NaN or infinity near 0." in stream.err


def test_it_is_live_and_ctrl_c_ends_with_results(target: str, wav: Path) -> None:
    """Results come while the pipe is open; Ctrl-C then ends the turn in good order."""
    data = unknown_length(wav.read_bytes(), b"\xff" * 4) + bytes(32_000)  # a second of silence ends the utterance
    command = [*KIBUN, "stream", "-", "--json", "--server", target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data)
        process.stdin.flush()
        first = (json.loads(line) for line in process.stdout)
        assert any("utterance_result" in line for line in first), "with the pipe still open"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait(30) == 0
    assert any("turn_result" in line for line in rest)
    assert "conversation" in rest[-1]


def test_ctrl_c_ends_a_file_with_results_too(target: str, wav: Path) -> None:
    command = [*KIBUN, "stream", str(wav), str(wav), "--realtime", "--json", "--server", target]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = (json.loads(line) for line in process.stdout)
        assert any("stream_started" in line for line in lines)
        process.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait(30) == 130, "there was more to come"
    assert sum("stream_ended" in line for line in rest) == 1, "the second file was not begun"


def test_named_pipes_and_analyze(kibun: Kibun, target: str, wav: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "x.fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cp", str(wav), str(fifo)]), standard_input(wav.read_bytes()):
        assert kibun("analyze", "-", fifo, "-f", "jsonl", "--server", target) == 0
    assert {row["file"] for row in kibun.lines} == {"-", str(fifo)}
    assert {row["status"] for row in kibun.lines} == {"ok"}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("output", [["-f", "wav"], ["-f", "wav", "-c:a", "pcm_s24le", "-ac", "2"], ["-f", "s16le"]])
def test_ffmpeg(stream: Piped, wav: Path, output: list[str]) -> None:
    command = ["ffmpeg", "-loglevel", "error", "-i", str(wav), "-ar", "44100", *output, "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    done = stream(data, *(["--rate", "44100"] if "s16le" in output else []))
    assert done.code == 0, done.err
    assert done.received_s == pytest.approx(5.0, abs=0.01)


def test_stereo_from_a_pipe_names_channel(stream: Piped, wav: Path) -> None:
    samples, _ = soundfile.read(wav, dtype="int16")
    stereo = np.column_stack([samples, samples[::-1]]).astype("<i2").tobytes()
    done = stream(stereo, "--rate", "16000", "--channels", "2")
    assert "standard input: its 2 channels differ" in done.err
    assert "--channel 1 sends one alone" in done.err
    done = stream(stereo, "--rate", "16000", "--channels", "2", "--channel", "2")
    assert (done.code, "differ" in done.err) == (0, False)


@pytest.mark.slow
def test_without_docstrings_and_asserts(wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -OO`, as in some containers: the real server with a real model, and a client."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    with ServerProcess("demo-tiny", ready_timeout_s=280) as server:  # the first time, torch is compiled for it
        command = [*KIBUN, "stream", str(wav), "--json", "--server", server.target]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "utterance_result" in done.stdout
    help_text = subprocess.run([*KIBUN, "stream", "--help"], capture_output=True, text=True, check=True).stdout
    assert "Stream audio files or a microphone to a server." in help_text
