"""`stream`, `analyze` and `doctor` against the real server (with a stand-in for the model), and every wrong input."""

import asyncio
import csv
import io
import json
import os
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.cells import cell_len

from kibun.client.commands import mic as mic_module
from kibun.client.recordings.formats import CsvRows
from kibun.client.recordings.rows import FileResult, FileStatus, row_without
from kibun.client.server_process import ServerProcess
from tests.support import ROOT
from tests.support.commands import Kibun

DEMO = ROOT / "client" / "kibun" / "client" / "demo"
STUB = ["--loader", "tests.support.stub_model:load", "--vad", "webrtc"]  # the dialogue's voices are generated


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Child processes find the stand-in model beside this file; tables are wide enough for whole sentences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("COLUMNS", "200")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def target(surroundings: None) -> Iterator[str]:
    with ServerProcess("stub", STUB) as server:
        yield server.target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two turns of the dialogue in every kind of file, and things that are none."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "below").mkdir()
    samples, rate_hz = soundfile.read(DEMO / "dialogue.flac", dtype="float32", frames=8 * 16000)
    soundfile.write(folder / "a.wav", samples, rate_hz)
    soundfile.write(folder / "below" / "b.flac", np.column_stack([samples, np.zeros_like(samples)]), rate_hz)
    soundfile.write(folder / "below" / "c.ogg", samples, rate_hz)
    soundfile.write(folder / "below" / "d.mp3", samples, rate_hz)
    return folder


# -- stream


@pytest.mark.parametrize("name", ["a.wav", "below/b.flac", "below/c.ogg", "below/d.mp3"])
def test_stream_every_kind_of_file(kibun: Kibun, target: str, folder: Path, name: str) -> None:
    assert kibun("stream", folder / name, "--server", target, "--json") == 0
    kinds = [next(key for key in line if key not in ENVELOPE) for line in kibun.lines]
    assert kinds[0] == "stream_started"
    assert kinds[-3:] == ["turn_result", "stream_ended", "conversation"]
    assert "utterance_result" in kinds
    assert ("of its 2 channels 2 is silent: their mean is sent" in kibun.err) == (name == "below/b.flac")


ENVELOPE = ("sequence_number", "audio_received", "audio_processed")


def test_stream_json_is_the_contract_and_nothing_else(kibun: Kibun, target: str, folder: Path) -> None:
    assert kibun("stream", folder / "a.wav", "--server", target, "--json", "--conversation", "c-7") == 0
    lines = kibun.lines
    assert [int(line["sequence_number"]) for line in lines[:-1]] == list(range(len(lines) - 1))
    assert lines[0]["stream_started"]["conversation_id"] == "c-7"
    assert lines[-1]["conversation"]["participants"][0]["participant_id"] == "user"
    # A conversation goes on in a later call.
    assert kibun("stream", folder / "a.wav", "--server", target, "--json", "--conversation", "c-7") == 0
    assert kibun.lines[0]["stream_started"]["conversation_created"] is False


def test_stream_turns_of_a_dialogue(kibun: Kibun, target: str) -> None:
    arguments: list[str | Path] = [
        "stream",
        DEMO / "dialogue.flac",
        "--turns",
        DEMO / "dialogue.json",
        "--server",
        target,
    ]
    assert kibun(*arguments, "--json") == 0
    turns = json.loads((DEMO / "dialogue.json").read_text())
    results = [line["turn_result"] for line in kibun.lines if "turn_result" in line]
    assert [result["turn_id"] for result in results] == [turn["turn_id"] for turn in turns]
    for result, turn in zip(results, turns, strict=True):
        assert float(result["start_offset"].rstrip("s")) == pytest.approx(turn["start_s"], abs=0.3)
    participants = kibun.lines[-1]["conversation"]["participants"]
    spoken = Counter(turn["participant_id"] for turn in turns)
    assert {p["participant_id"]: p["turn_count"] for p in participants} == spoken
    assert kibun(*arguments) == 0
    assert "synthetic model: tells you nothing about real people" in kibun.out
    assert all(participant["participant_id"] in kibun.out for participant in participants)


def test_stream_rttm_in_real_time_overlapping(kibun: Kibun, target: str, tmp_path: Path) -> None:
    """Turns that overlap are streamed at the same time, in real time."""
    rttm = tmp_path / "x.rttm"
    rttm.write_text(
        ";; a comment\nSPEAKER x 1 0.30 1.20 <NA> <NA> anna <NA> <NA>\nSPEAKER x 1 0.60 1.00 <NA> <NA> ben <NA> <NA>\n"
    )
    start = asyncio.run(_now())
    arguments: list[str | Path] = [
        "stream",
        DEMO / "dialogue.flac",
        "--turns",
        rttm,
        "--server",
        target,
        "--json",
        "--realtime",
    ]
    assert kibun(*arguments) == 0
    assert asyncio.run(_now()) - start > 1.5
    order = [
        line["stream_started"]["participant_id"] if "stream_started" in line else "end"
        for line in kibun.lines
        if "stream_started" in line or "stream_ended" in line
    ]
    assert order == ["anna", "ben", "end", "end"]


async def _now() -> float:
    return asyncio.get_running_loop().time()


def test_stream_one_channel(kibun: Kibun, target: str, folder: Path) -> None:
    assert kibun("stream", folder / "below" / "b.flac", "--channel", "2", "--server", target, "--json") == 0
    ended = next(line["stream_ended"] for line in kibun.lines if "stream_ended" in line)
    assert ended["speech_duration"] == "0s", "the second channel is silent"


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        ("{}", "json", "line 1: a list of turns is expected"),
        ('[\n {"participant_id": "a",\n "start_s": 0 "end_s": 1}]', "json", "line 3: invalid JSON"),
        ('[{"participant_id": "a", "start_s": 0, "end_s": 1}\n', "json", "line 2: invalid JSON: expected ','"),
        ("[\n\n 17]", "json", "line 3: a turn is an object"),
        ('[\n{"participant_id": "a", "start_s": 0}]', "json", "line 2: this turn has no end_s"),
        ('[{"participant_id": "a", "start_s": "0", "end_s": 1}]', "json", "start_s must be a number of seconds"),
        ('[{"participant_id": "a", "start_s": 2, "end_s": 1}]', "json", "must end after it starts"),
        ('[{"participant_id": "a", "start_s": 99, "end_s": 100}]', "json", "but the audio is 8.00 s long"),
        ('[{"participant_id": "a b", "start_s": 0, "end_s": 1}]', "json", "participant_id 'a b' is not a valid id"),
        (
            '[{"turn_id": "t", "participant_id": "a", "start_s": 0, "end_s": 1},'
            '{"turn_id": "t", "participant_id": "a", "start_s": 1, "end_s": 2}]',
            "json",
            "turn_id 't' is used twice",
        ),
        ("[]", "json", "holds no turns"),
        ("SPEAKER x 1 0.0 1.0 <NA>", "rttm", "line 1: 6 fields"),
        ("\nSPEAKER x 1 zero 1.0 <NA> <NA> a <NA> <NA>", "rttm", "line 2: start 'zero'"),
        ("x", "txt", "turns are read from .json, .rttm, .csv"),
    ],
)
def test_bad_turns_file_names_the_line(
    kibun: Kibun, folder: Path, tmp_path: Path, content: str, suffix: str, message: str
) -> None:
    path = tmp_path / f"turns.{suffix}"
    path.write_text(content)
    assert kibun("stream", folder / "a.wav", "--turns", path) == 2
    assert message in kibun.err
    assert str(path) in kibun.err
    assert kibun.out == ""


def test_wrong_sources_name_the_fix(kibun: Kibun, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("this is text")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.int16), 16000)
    soundfile.write(tmp_path / "slow.wav", np.zeros(4000, np.int16), 4000)
    a = folder / "a.wav"
    wrong: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "none.wav"], "none.wav does not exist"),
        ([folder], "is a folder: name a file in it, or use `kibun analyze"),
        ([tmp_path / "notes.wav"], "is not audio that can be read here (WAV, FLAC, Ogg, MP3,"),
        ([tmp_path / "empty.wav"], "holds no audio"),
        ([tmp_path / "slow.wav"], "4000 Hz, too low for the service, which takes 8000 or more"),
        ([a, "--channel", "2"], "has 1 channel(s), none numbered 2"),
        ([a, "--turns", tmp_path / "none.json"], "no such file"),
        ([a, a, "--turns", DEMO / "dialogue.json"], "name exactly one FILE"),
        ([a, "--server", "localhost"], "write HOST:PORT"),
        ([a, "--server", "http://localhost:1"], "is a URL: write HOST:PORT"),
        ([a, "--ca", tmp_path / "none.pem"], "give a PEM file that exists"),
        ([a, "--chunk-ms", "5"], "--chunk-ms"),
        (["mic", a], "mic cannot be combined"),
        (["-", "-"], "standard input can be read once only"),
        (["-", "--realtime"], "--turns and --realtime need a file, not a pipe"),
        (["-", "--encoding", "mulaw"], "need --rate HZ as well"),
        ([a, "--rate", "8000"], "name - as source"),
        ([], "Missing argument"),
    ]
    for arguments, message in wrong:
        assert kibun("stream", *arguments) == 2, arguments
        assert message in kibun.err, (arguments, kibun.err)


def test_unreachable_server(kibun: Kibun, folder: Path) -> None:
    assert kibun("stream", folder / "a.wav", "--server", "127.0.0.1:1") == 1
    assert "cannot reach 127.0.0.1:1: start a server there with `kibun serve`" in kibun.err
    assert "Traceback" not in kibun.err


def test_errors_of_the_server_are_shown(kibun: Kibun, target: str, folder: Path) -> None:
    assert kibun("stream", folder / "a.wav", "--server", target, "--conversation", "not valid!") == 1
    assert "conversation_id" in kibun.err
    assert kibun("stream", folder / "a.wav", "--server", target, "--model", "nonsense") == 1
    assert "stub" in kibun.err, "names the models that there are"


# -- the microphone


class FakeSounddevice(types.ModuleType):
    """Stands for PortAudio: a device that plays a recording into the callback as fast as it can."""

    class PortAudioError(Exception):
        pass

    def __init__(self, samples: np.ndarray, devices: list[tuple[str, int, int]], fails: bool = False) -> None:
        super().__init__("sounddevice")
        self.samples = samples
        self.devices = [
            {"name": name, "max_input_channels": inputs, "default_samplerate": float(rate)}
            for name, inputs, rate in devices
        ]
        self.default = types.SimpleNamespace(device=[1, 0])
        self.opened: dict[str, Any] = {}
        self.closed = False
        self.fails = fails

    def query_devices(self) -> list[dict[str, object]]:
        return self.devices

    def RawInputStream(self, **options: object) -> "FakeSounddevice":
        if self.fails:
            raise self.PortAudioError("Device unavailable")
        self.opened = options
        return self

    def start(self) -> None:
        size = self.opened["blocksize"]
        for begin in range(0, len(self.samples), size):
            block = self.samples[begin : begin + size]
            self.opened["callback"](memoryview(block.tobytes()), len(block), None, None)

    def stop(self) -> None:
        self.closed = True

    def close(self) -> None: ...


DEVICES = [("speakers", 0, 48000), ("built-in mic", 1, 44100), ("USB mic", 2, 192000)]


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> FakeSounddevice:
    samples, _ = soundfile.read(DEMO / "dialogue.flac", dtype="int16", frames=4 * 16000)
    fake = FakeSounddevice(np.repeat(samples, 3), DEVICES)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


@pytest.mark.parametrize(("source", "rate_hz"), [("mic", 44100), ("mic:2", 48000), ("mic:usb", 48000)])
def test_stream_from_a_microphone(
    kibun: Kibun, target: str, sounddevice: FakeSounddevice, monkeypatch: pytest.MonkeyPatch, source: str, rate_hz: int
) -> None:
    aenter = mic_module.Microphone.__aenter__

    async def record_and_stop(self: mic_module.Microphone) -> mic_module.Microphone:  # as Ctrl-C does
        await aenter(self)
        asyncio.get_running_loop().call_later(0.2, self.stop)
        return self

    monkeypatch.setattr(mic_module.Microphone, "__aenter__", record_and_stop)
    assert kibun("stream", source, "--server", target, "--json") == 0
    config = kibun.lines[0]["stream_started"]["effective_config"]["audio_config"]
    assert config["sample_rate_hertz"] == rate_hz == sounddevice.opened["samplerate"]
    ended = next(line["stream_ended"] for line in kibun.lines if "stream_ended" in line)
    assert float(ended["audio_received"].rstrip("s")) == pytest.approx(len(sounddevice.samples) / rate_hz, abs=0.01)
    assert sounddevice.closed
    assert "Ctrl-C ends the turn" in kibun.err


@pytest.mark.parametrize("source", ["mic:7", "mic:nonsense", "mic:mic", "mic:0"])
def test_wrong_microphone_lists_those_that_there_are(kibun: Kibun, sounddevice: FakeSounddevice, source: str) -> None:
    assert kibun("stream", source) == 2
    assert "mic:1  built-in mic (44100 Hz)" in kibun.err
    assert "mic:2  USB mic" in kibun.err
    assert "speakers" not in kibun.err


def test_troubles_of_the_microphone(
    kibun: Kibun, target: str, sounddevice: FakeSounddevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounddevice.fails = True
    assert kibun("stream", "mic", "--server", target) == 1
    assert "cannot record from built-in mic: Device unavailable: is it in use" in kibun.err
    sounddevice.devices = sounddevice.devices[:1]
    assert kibun("stream", "mic", "--server", target) == 1
    assert "no microphone was found: plug one in" in kibun.err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert kibun("stream", "mic", "--server", target) == 2
    assert "pip install -c constraints.txt -e '.[mic]'" in kibun.err


async def test_a_microphone_faster_than_the_network_drops_the_oldest_and_counts(sounddevice: FakeSounddevice) -> None:
    sounddevice.samples = np.arange(150 * 4410, dtype=np.int64).astype(np.int16)
    microphone = mic_module.Microphone("", 100)
    async with microphone:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        microphone.stop()
        chunks = [chunk async for chunk in microphone.chunks()]
    assert microphone.dropped_chunks + len(chunks) == 150
    assert microphone.dropped_chunks == 51
    assert chunks[-1] == sounddevice.samples[-4410:].tobytes()


# -- analyze


def test_analyze_formats_agree(kibun: Kibun, target: str, folder: Path, tmp_path: Path) -> None:
    assert kibun("analyze", folder, "--server", target, "-f", "jsonl") == 0
    rows = kibun.lines
    assert [Path(row["file"]).name for row in rows] == sorted(Path(row["file"]).name for row in rows)
    assert {Path(row["file"]).name for row in rows} == {"a.wav", "b.flac", "c.ogg", "d.mp3"}
    assert "synthetic model: tells you nothing about real people" in kibun.err
    assert kibun("analyze", folder, "--server", target, "-f", "csv", "-o", tmp_path / "x.csv") == 0
    assert kibun.out == ""
    with (tmp_path / "x.csv").open() as file:
        from_csv = list(csv.DictReader(file))
    assert len(from_csv) == len(rows)
    for one, other in zip(from_csv, rows, strict=True):
        assert list(one) == list(other)
        assert float(one["arousal"]) == pytest.approx(other["arousal"], abs=1e-4)
        assert float(one["start_s"]) == other["start_s"]
    assert kibun("analyze", folder, "--server", target) == 0
    assert all(name in kibun.out for name in ("a.wav", "below/b.flac", "heard"))
    first = rows[0]
    assert (first["utterance_count"], first["model"], first["synthetic_model"]) == (1, "stub", True)
    # After one utterance all that is known is that one; its vector is kept in 16 bits.
    assert first["openness"] == pytest.approx(first["utterance_openness"], abs=1e-3)
    assert first["openness_error"] is None


def test_analyze_keeps_its_conversations_to_itself(kibun: Kibun, target: str, folder: Path) -> None:
    """The same file twice, at the same time: both rows are the same, nothing is carried over."""
    assert kibun("analyze", folder / "a.wav", folder / "a.wav", "--server", target, "-f", "jsonl", "-j", "2") == 0
    half = len(kibun.lines) // 2
    for one, other in zip(kibun.lines[:half], kibun.lines[half:], strict=True):
        assert one["arousal"] == pytest.approx(other["arousal"], abs=1e-4)
        assert one["utterance_count"] == other["utterance_count"]


def test_one_bad_file_does_not_lose_the_rest(kibun: Kibun, target: str, folder: Path, tmp_path: Path) -> None:
    """Every file has a row, which says what became of it; none is named twice in a line."""
    bad, gone, m4a = tmp_path / "bad.wav", tmp_path / "gone.wav", tmp_path / "x.m4a"
    bad.write_text("this is text")
    m4a.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    cut = tmp_path / "cut.wav"
    cut.write_bytes((folder / "a.wav").read_bytes()[:128_000])
    damaged = tmp_path / "damaged.flac"
    damaged.write_bytes((DEMO / "dialogue.flac").read_bytes()[:100_000])
    quiet = tmp_path / "quiet.wav"
    soundfile.write(quiet, np.zeros(32000, np.int16), 16000)
    arguments = [bad, gone, m4a, folder / "a.wav", cut, damaged, quiet]
    for form in ("jsonl", "csv"):
        assert kibun("analyze", *arguments, "--server", target, "-f", form) == 1
        rows = kibun.lines if form == "jsonl" else list(csv.DictReader(kibun.out.splitlines()))
        found = {(Path(row["file"]).name, row["status"], row["reason"] or None) for row in rows}
        assert found == {
            ("bad.wav", "failed", "FORMAT_UNKNOWN"),
            ("gone.wav", "failed", "NO_SUCH_FILE"),
            ("x.m4a", "failed", "FORMAT_UNSUPPORTED"),
            ("a.wav", "ok", None),
            ("cut.wav", "incomplete", "FILE_INCOMPLETE"),
            ("damaged.flac", "incomplete", "FILE_INCOMPLETE"),
            ("quiet.wav", "no_speech", "NO_SPEECH"),
        }
        assert all(bool(row["utterance_id"]) == (row["status"] in ("ok", "incomplete")) for row in rows)
    assert "5 of 7 files failed or are not whole:" in kibun.err
    assert f"  {bad}: is not audio that can be read here" in kibun.err
    assert f"  {m4a}: is MP4 (m4a, mp4, mov), which is not read here: convert it, `ffmpeg -i" in kibun.err
    assert f"  {cut}: is cut off: 4.0 of 8.0 s are missing; the rest was analysed" in kibun.err
    assert kibun("analyze", *arguments, "--server", target) == 1
    for text in ("bad.wav (failed)", "cut.wav (incomplete)", "quiet.wav (no speech)"):
        assert text in kibun.out


def test_any_name_goes_into_any_output(
    kibun: Kibun, target: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [b"\xff\xe9.wav", "日本語.wav".encode(), b"e\xcc\x81.wav", b"new\nline.wav", b"-x.wav", b"[red]x[up].wav"]
    names += [b"\x1b[31m.wav", b"x" * 200 + b".wav", b"no suffix", b"dir.wav/in.wav"]
    (tmp_path / "dir.wav").mkdir()
    (tmp_path / "dir.wav" / "up").symlink_to("..")
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write((folder / "a.wav").read_bytes()[:60_000])
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(tmp_path / "fifo.wav")
    for other in ("notes.txt", "table.csv", "._a.wav"):
        (tmp_path / other).write_text("x")
    assert kibun("analyze", tmp_path, "--server", target, "-f", "jsonl") == 1
    files = {row["file"].removeprefix(f"{tmp_path}/") for row in kibun.lines}
    assert files == {name.decode("utf-8", "backslashreplace") for name in names} | {"loop.wav"}
    assert "ignored 4 files that hold no audio: 2 .wav, 1 ." in kibun.err
    assert kibun("analyze", tmp_path, "--server", target) == 1
    assert [line for line in kibun.out.splitlines() if cell_len(line) > 80] == []
    assert "\x1b" not in kibun.out
    assert "new\\nline.wav" in kibun.out
    assert "\\xff\\xe9.wav" in kibun.out


def test_a_narrow_terminal_loses_no_column(
    kibun: Kibun, target: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["analyze", folder / "a.wav", folder / "below"], ["stream", folder / "a.wav"]):
        printed = []
        for columns in ("80", "60"):
            monkeypatch.setenv("COLUMNS", columns)
            assert kibun(*arguments, "--server", target) == 0
            printed.append([word for word in kibun.out.split() if not re.search("[·▁-█]", word)])
        assert printed[0] == printed[1], "all but what is drawn, which is narrower"


def test_csv_holds_names_as_they_are_but_on_a_terminal_escapes() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    path, failed = Path("\x1b[31m\n.wav"), FileStatus("failed")
    result = FileResult(path, failed, [row_without(path, failed)])
    for output, name in ((io.StringIO(newline=""), "\x1b[31m\n.wav"), (Terminal(newline=""), "\\x1b[31m\\n.wav")):
        CsvRows(output).write(result)
        assert [read["file"] for read in csv.DictReader(io.StringIO(output.getvalue(), newline=""))] == [name]


def test_a_long_recording_has_a_summary_and_few_rows(kibun: Kibun, target: str, tmp_path: Path) -> None:
    samples, rate_hz = soundfile.read(DEMO / "dialogue.flac", dtype="int16")
    soundfile.write(tmp_path / "long.wav", np.concatenate([samples] * 8), rate_hz)
    assert kibun("analyze", tmp_path / "long.wav", "--server", target, "-f", "jsonl") == 0
    rows = kibun.lines
    assert len(rows) > 50
    assert kibun("analyze", tmp_path / "long.wav", "--server", target) == 0
    stretches = [line.split() for line in kibun.out.splitlines() if re.match(r" *\d+:\d\d–\d+:\d\d ", line)]
    assert 6 <= len(stretches) <= 12
    assert sum(int(stretch[-1]) for stretch in stretches) == len(rows)
    in_first = [row["valence"] for row in rows if row["start_s"] < 60]
    assert stretches[0][0] == "0:00–1:00"
    assert float(stretches[0][1]) == pytest.approx(np.mean(in_first), abs=0.06)
    assert f"{len(rows)} utterances: -f csv or -f jsonl has a row for each" in kibun.out
    assert len(kibun.out.splitlines()) < 60
    summary = next(line for line in kibun.out.splitlines() if line.strip().startswith("long.wav ")).split()
    assert summary[1] == str(len(rows))
    assert float(summary[2]) == pytest.approx(sum(row["end_s"] - row["start_s"] for row in rows), abs=1)
    assert float(summary[4]) == pytest.approx(np.mean([row["valence"] for row in rows]), abs=0.06)
    assert float(summary[6]) == pytest.approx(rows[-1]["openness"], abs=0.06)


def test_analyze_starts_its_own_server(kibun: Kibun, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kibun.client.commands.analyze as module

    class StubServer(ServerProcess):
        def __init__(self, model: str) -> None:
            started.append(self)
            super().__init__(model, STUB)

    started: list[StubServer] = []
    monkeypatch.setattr(module, "ServerProcess", StubServer)
    assert kibun("analyze", folder / "a.wav", "--model", "stub", "-f", "jsonl") == 0
    assert kibun.lines[0]["model"] == "stub"
    assert started[0]._process is not None
    assert started[0]._process.returncode == 0, "stopped in good order"


def test_wrong_analyze_names_the_fix(kibun: Kibun, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong: list[tuple[list[str | Path], int, str]] = [
        ([folder], 2, "--model demo-tiny to try the software (synthetic, tells you nothing about real people)"),
        ([tmp_path / "none"], 2, "no such file or folder"),
        ([tmp_path / "empty"], 2, "no audio in"),
        ([folder, "-f", "xls"], 2, "'table', 'jsonl', 'csv'"),
        ([folder, "--server", "nowhere"], 2, "write HOST:PORT"),
        ([folder, "--server", "127.0.0.1:1"], 1, "cannot reach 127.0.0.1:1"),
        ([folder, "--server", "127.0.0.1:1", "-o", tmp_path / "none" / "x"], 2, "name a file in a folder that exists"),
        ([folder, "-j", "0"], 2, "--jobs"),
        ([], 2, "Missing argument"),
    ]
    for arguments, code, message in wrong:
        assert kibun("analyze", *arguments) == code, arguments
        assert message in kibun.err, (arguments, kibun.err)
        assert kibun.out == ""


# -- doctor


def test_doctor(kibun: Kibun, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kibun.client.commands import doctor

    monkeypatch.setattr(doctor, "_TORCH", "print('2.0 cuda:0')")  # importing torch takes seconds
    monkeypatch.setattr(doctor, "_TRANSFORMERS", "print('5.0')")
    assert kibun("doctor", "--server", target, "--json") == 0
    findings = {finding["name"]: finding for finding in json.loads(kibun.out)["findings"]}
    assert findings["python"]["state"] == "ok"
    assert findings["package grpcio"]["required"] is True
    assert findings["torch"]["detail"] == "imports: 2.0 cuda:0"
    assert findings["transformers"]["detail"] == "imports: 5.0"
    assert "models: stub" in findings[f"server {target}"]["detail"]
    monkeypatch.setattr(doctor, "_TORCH", "import sys; sys.exit('no kernel image')")
    assert kibun("doctor", "--server", "127.0.0.1:1") == 1
    assert "does not import (no kernel image): reinstall it" in kibun.out
    assert "cannot reach 127.0.0.1:1" in kibun.out
    assert "Traceback" not in kibun.err
    monkeypatch.setattr(doctor, "_TORCH", "print('2.0 cuda:0')")
    monkeypatch.setattr(doctor, "_TRANSFORMERS", "raise OSError('torchaudio: undefined symbol')")
    assert kibun("doctor", "--server", target) == 1
    assert "pip uninstall torchaudio" in " ".join(kibun.out.split())


def test_doctor_without_what_it_looks_for(kibun: Kibun, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("kibun.client.installation.find_spec", blocked)
    kibun("doctor", "--server", target)
    for text in ("needed to serve: ", "needed for `kibun stream mic`: "):
        assert text in kibun.out


def test_doctor_names_the_microphones(
    kibun: Kibun, sounddevice: FakeSounddevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kibun.client.commands import doctor

    monkeypatch.setattr(doctor, "is_there", lambda name: not name.startswith(("torch", "transformers")))
    monkeypatch.setattr(doctor, "_bundles", lambda: [])
    assert kibun("doctor", "--json") == 0
    names = [finding["name"] for finding in json.loads(kibun.out)["findings"]]
    assert "microphone mic:1" in names
    assert "microphone mic:0" not in names
