"""Clients in other languages: the examples, run as people run them against a real server."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kibun.v1 import speech_analysis_pb2 as pb
from tests.support import ROOT
from tests.support.serving import RATE_HZ, RunningServer, chunks, config, connect, converse, encode, serve, sound

EXAMPLES = ROOT / "examples"
TOKEN = "acme-token"
SPEECH = sound(("silence", 0.2), ("speech", 0.9), ("silence", 0.7), ("speech", 0.5), ("silence", 0.1))
# npm's codes where there is no registry, it refuses, or the cache lacks a package; a wrong package.json has others.
NO_REGISTRY = (
    r"E(NOTFOUND|AI_AGAIN|CONNREFUSED|CONNRESET|TIMEDOUT|NETUNREACH|HOSTUNREACH|NOTCACHED|IDLETIMEOUT)"
    r"|E(401|403|407|429|5\d\d)\b"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"acme {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    with serve("--reflection", "--token-file", str(tokens)) as running:
        yield running


@dataclass
class Example:
    """A client as a command."""

    command: list[str]

    def __call__(self, *arguments: object, server: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        options = ["--server", server, *(["--token", token] if token else [])]
        command = [*self.command, *options, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module", params=["reflection", "node", pytest.param("cpp", marks=pytest.mark.slow)])
def example(request: pytest.FixtureRequest) -> Example:
    made: Example = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="module")
def reflection() -> Example:
    path = EXAMPLES / "reflection_client.py"
    program = f"import runpy, sys; sys.modules['kibun'] = None; runpy.run_path({str(path)!r}, run_name='__main__')"
    return Example([sys.executable, "-c", program])


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its packages, beside the contract as in a clone."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node 20 or later with npm: nodejs and npm of the system")
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "protos", root / "protos")
    shutil.copytree(EXAMPLES, root / "examples", ignore=shutil.ignore_patterns("node_modules", "build"))
    folder = root / "examples" / "node"
    command = [
        "npm",
        "install",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--prefer-offline",
        "--fetch-retries=0",
    ]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("needs a registry of npm packages that answers within two minutes")
    if done.returncode and re.search(NO_REGISTRY, done.stderr):
        pytest.skip("needs a registry of npm packages, or npm's cache: `npm install` in examples/node fills it")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def node(node_folder: Path) -> Example:
    return Example(["node", str(node_folder / "stream.js")])


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Example:
    found = all(map(shutil.which, ("cmake", "c++", "grpc_cpp_plugin", "pkg-config")))
    if not found or subprocess.run(["pkg-config", "--exists", "grpc++"], check=False).returncode:
        pytest.skip("needs gRPC for C++: apt install cmake g++ libgrpc++-dev pkg-config protobuf-compiler-grpc")
    build = tmp_path_factory.mktemp("build")
    for command in (["-S", str(EXAMPLES / "cpp"), "-B", str(build)], ["--build", str(build)]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Example([str(build / "stream")])


def wav(path: Path, audio: np.ndarray = SPEECH, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, audio, rate_hz, subtype=subtype)
    return path


async def told_by_generated_stubs(server: RunningServer) -> list[str]:
    """What an example prints of SPEECH, interims left out."""
    async with connect(server) as stub:
        requests = [config(), *chunks(encode(SPEECH))]
        replies = await converse(stub, requests, metadata={"authorization": f"Bearer {TOKEN}"})
    lines = ["synthetic model: tells you nothing about real people"]
    for result in (reply.utterance_result for reply in replies if reply.HasField("utterance_result")):
        span = " ".join(
            f"{offset.ToTimedelta().total_seconds():.2f}" for offset in (result.start_offset, result.end_offset)
        )
        lines.append(f"final {span} valence {result.emotion.valence:.2f} arousal {result.emotion.arousal:.2f}")
    return [*lines, f"turn {len(lines) - 1} utterances"]


def as_is(path: Path) -> Path:
    return wav(path)


def as_piped(path: Path) -> Path:
    """As programs write it that do not know yet how long it will be, with a chunk of odd size before the samples."""
    header, mark, samples = wav(path).read_bytes().partition(b"data")
    path.write_bytes(header + b"note\x03\x00\x00\x00abc\x00" + mark + b"\xff\xff\xff\xff" + samples[4:])
    return path


@pytest.mark.parametrize(("write", "options"), [(as_is, ["--live"]), (as_piped, [])])
async def test_it_tells_what_generated_stubs_tell(
    example: Example, server: RunningServer, tmp_path: Path, write: Callable[[Path], Path], options: list[str]
) -> None:
    done = example(write(tmp_path / "speech.wav"), *options, server=server.target)
    assert (done.returncode, done.stderr) == (0, "")
    finals = [line for line in done.stdout.splitlines() if not line.startswith("interim ")]
    assert finals == await told_by_generated_stubs(server)
    assert len(finals) == 4, "two utterances"


def test_an_error_has_its_reason_and_field(example: Example, server: RunningServer, tmp_path: Path) -> None:
    speech = wav(tmp_path / "speech.wav")
    for arguments, token, told in (
        (
            [wav(tmp_path / "slow.wav", rate_hz=4000)],
            TOKEN,
            r"SAMPLE_RATE_OUT_OF_RANGE \(audio_config.sample_rate_hertz\): ",
        ),
        ([speech, "--model", "nope"], TOKEN, r"UNKNOWN_MODEL: "),
        ([speech], "wrong", r"UNAUTHENTICATED: the token that came"),
        ([speech], "", r"UNAUTHENTICATED: this server requires a token and none came"),
    ):
        done = example(*arguments, server=server.target, token=token)
        assert done.returncode == 1
        assert re.match(told, done.stderr), done.stderr
        assert done.stdout == ""


def test_without_a_server_it_says_so(example: Example, tmp_path: Path) -> None:
    done = example(wav(tmp_path / "speech.wav"), server="127.0.0.1:1")
    assert done.returncode == 1
    assert re.match(r"UNAVAILABLE|gRPC code 14", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_not_mono_16_bit_pcm_is_refused(example: Example, server: RunningServer, tmp_path: Path) -> None:
    for path, told in (
        (wav(tmp_path / "stereo.wav", np.stack([SPEECH, SPEECH], 1)), "has to be mono, not 2 channels"),
        (wav(tmp_path / "deep.wav", subtype="PCM_24"), "has to hold 16-bit PCM"),
        (wav(tmp_path / "x.flac"), "is not a WAV file"),
        (tmp_path / "absent.wav", "absent.wav"),
    ):
        done = example(path, server=server.target)
        assert (done.returncode, done.stdout) == (1, "")
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_the_page_says_of_options_of_proto_loader(node_folder: Path) -> None:
    """docs/clients.md, the notes."""
    program = """
        import { loadSync } from "@grpc/proto-loader";
        const includeDirs = ["../../protos"];
        const load = (options) => loadSync("kibun/v1/speech_analysis.proto", { includeDirs, ...options });
        const request = load({})["kibun.v1.StreamingAnalyzeRequest"];
        const kept = load({ keepCase: true })["kibun.v1.StreamingAnalyzeRequest"];
        const answer = Buffer.from(process.argv[1], "base64");
        const reader = (options) => load({ keepCase: true, ...options })["kibun.v1.StreamingAnalyzeResponse"];
        const read = (options) => reader(options).deserialize(answer);
        console.log(JSON.stringify({
          ignored: request.serialize({ streaming_config: {} }).length,
          typo: kept.serialize({ streaming_config: { modell: "x" } }).length,
          bare: read({}),
          full: read({ longs: String, defaults: true, oneofs: true }),
        }));
    """
    answer = pb.StreamingAnalyzeResponse(sequence_number=7)
    answer.utterance_result.start_offset.seconds = 3
    command = ["node", "--input-type=module", "-e", program, base64.b64encode(answer.SerializeToString()).decode()]
    done = subprocess.run(command, cwd=node_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ignored"] == 0, "without keepCase a name of the .proto is ignored"
    assert told["typo"] == 2, "nor is a wrong one told with it"
    assert told["bare"] == {
        "sequence_number": {"low": 7, "high": 0, "unsigned": False},
        "utterance_result": {"start_offset": {"seconds": {"low": 3, "high": 0, "unsigned": False}}},
    }
    result = told["full"]["utterance_result"]
    assert told["full"]["streaming_response"] == "utterance_result"
    assert told["full"]["sequence_number"] == "7"
    assert result["start_offset"] == {"seconds": "3", "nanos": 0}
    assert (result["is_final"], result["emotion"], result["end_offset"]) == (False, None, None)
