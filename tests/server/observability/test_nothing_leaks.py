"""A server that has seen everything, good and bad, at its most talkative: nothing of people is left anywhere.

What is looked through: all it and its worker wrote, its metrics, its traces, its command lines and its files. The same
look at a server that was made to leak must find every kind of secret, and one planted secret after the other.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kibun.v1 import speech_analysis_pb2 as pb
from kibun.v1.speech_analysis_pb2_grpc import SpeechAnalysisServiceStub as Stub
from tests.support import leaks
from tests.support.collector import collector
from tests.support.leaks import Secrets, hits
from tests.support.scraping import Scrape, fetch, scrape_until, site
from tests.support.serving import (
    RunningServer,
    Talk,
    chunks,
    config,
    connect,
    converse,
    encode,
    end_of_turn,
    finals,
    of_kind,
    serve,
    spoken,
    workers_of,
)

NAMES = {
    "conversation": "Conv-Kowalski-71",
    "participant": "Part-Jane-Roe-72",
    "turn": "Turn-Okonkwo-73",
    "next turn": "Turn-Nguyen-74",
    "refused id": "Nul-Lopez-75",
    "unknown conversation": "Gone-Haddad-76",
    "malformed message": "Mal-Ferrari-77",
    "metadata": "Meta-Novak-78",
    "method": "Method-Silva-79",
    "exception": leaks.EXCEPTION,
}
GOOD, BAD = "good-token-Zq81xK", "bad-token-Wv82yJ"
TRAITS = (1.234375, 2.345703125, 3.4562988281, 4.5671997070, 5.6789093017)
CRASH = 0.96875  # audio all this loud breaks the detector

# Debug output of asyncio, a detector that raises an exception full of secrets, a task of which nobody takes the
# exception, a warning.
PRELUDE = """
import asyncio, gc, warnings
from tests.support import leaks
leaks.watch_files()
from kibun.server import serving
make = serving.make_vad
async def lost(text):
    raise RuntimeError(text)
class Breaking:
    def __init__(self, vad): self.vad, self.frame_samples, self.reset = vad, vad.frame_samples, vad.reset
    def decide(self, frames):
        if frames.min() > 0.9:
            said = f"{leaks.EXCEPTION} said {frames.tobytes()!r}"
            warnings.warn(said)
            asyncio.get_running_loop().set_debug(True)
            asyncio.create_task(lost(said))
            asyncio.get_running_loop().call_later(0.05, gc.collect)
            raise RuntimeError(said)
        return self.vad.decide(frames)
serving.make_vad = lambda *arguments: Breaking(make(*arguments))
"""

# The same server, made to leak.
LEAKY = """
import logging
from kibun.server.api import gate
from kibun.server.observability import logs
from kibun.server.session import listener, outbox, session
logs.configure = lambda level, style: logging.basicConfig(level=10)
identify, take, get, init = (
    gate.Gate._identify, listener.Listener._take_audio, outbox.Outbox.get, session.Session.__init__
)
def recording_identify(self, call, metadata, context):
    logging.error("%s", metadata)
    return identify(self, call, metadata, context)
async def recording_take(self, payload):
    logging.error("%s", payload)
    await take(self, payload)
async def recording_get(self):
    event = await get(self)
    logging.error("%s", event)
    return event
def recording_init(self, request_id, options, *rest, **named):
    logging.error("%s", options)
    init(self, request_id, options, *rest, **named)
gate.Gate._identify, listener.Listener._take_audio = recording_identify, recording_take
outbox.Outbox.get, session.Session.__init__ = recording_get, recording_init
"""


@dataclass
class Run:
    """What a server left behind."""

    evidence: dict[str, bytes]
    secrets: Secrets
    written: set[str]  # files that were opened for writing
    left: list[Path]  # in the folder for temporary files
    open_files: set[str]  # while it ran


@contextlib.contextmanager
def running(folder: Path, prelude: str, *arguments: str) -> Iterator[tuple[RunningServer, Path, Path]]:
    """A server, its folder for temporary files, and the list of files that it wrote."""
    temporary, files, tokens = folder / "tmp", folder / "files", folder / "tokens"
    temporary.mkdir()
    tokens.write_text(f"acme {hashlib.sha256(GOOD.encode()).hexdigest()}\n")
    tempfile.gettempdir()  # this process keeps the one it has
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setenv(leaks.FILES, str(files))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        loader = ("--loader", "tests.support.leaks:load")
        options = ("--token-file", str(tokens), "--metrics-port", "0", "--log-level", "DEBUG", *loader)
        with serve(*options, *arguments, prelude=prelude) as server:
            yield server, temporary, files


# ---- traffic


def headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}", "x-caller": NAMES["metadata"]}


def named(**more: Any) -> pb.StreamingAnalyzeRequest:
    ids = {"conversation_id": NAMES["conversation"], "participant_id": NAMES["participant"], "turn_id": NAMES["turn"]}
    return config(**{**ids, **more})


def given() -> pb.BigFiveTraits:
    names = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
    return pb.BigFiveTraits(**dict(zip(names, TRAITS, strict=True)))


async def good_streams(stub: Stub, secrets: Secrets) -> None:
    audio = spoken(1.3, seed=5)
    pcm = encode(audio)
    secrets.audio.append(np.frombuffer(pcm, np.int16))
    requests = [named(given_personality=given(), features=pb.AnalysisFeatures(interim_results=True)), *chunks(pcm)]
    requests += [end_of_turn(NAMES["next turn"]), *chunks(pcm)]
    responses = await converse(stub, requests, metadata=headers(GOOD))
    assert len(finals(responses)) == 2
    other = spoken(0.9, seed=6).astype(np.float32)
    secrets.audio.append(other)
    request = named(turn_id="t3", encoding=pb.AUDIO_ENCODING_FLOAT32)
    metadata = tuple(headers(GOOD).items())
    recording = pb.AnalyzeRequest(config=request.streaming_config, audio_content=other.tobytes())
    answer = await stub.Analyze(recording, metadata=metadata)
    secrets.numbers = {"given traits": list(TRAITS), "valence": [leaks.VALENCE], "arousal": [], "traits": []}
    for utterance in [*of_kind(responses, "utterance_result"), *answer.utterances]:
        secrets.numbers["arousal"].append(utterance.emotion.arousal)
        secrets.numbers["traits"].append(utterance.personality.traits.openness)
        assert utterance.emotion.valence == pytest.approx(leaks.VALENCE)
    for name in ("conversation", "unknown conversation"):
        watching = pb.WatchConversationRequest(
            conversation_id=NAMES[name], include_past=True, require_existing_conversation=True
        )
        call = stub.WatchConversation(watching, metadata=metadata)
        with contextlib.suppress(grpc.aio.AioRpcError):
            assert (await call.read()).watch_started.past_response_count > 1
        call.cancel()
    for method, kind in (
        ("GetConversation", pb.GetConversationRequest),
        ("DeleteConversation", pb.DeleteConversationRequest),
    ):
        for name in ("conversation", "unknown conversation"):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await getattr(stub, method)(kind(conversation_id=NAMES[name]), metadata=metadata)


async def bad_streams(stub: Stub) -> None:
    """Each ends with an error, or is given up by its client."""
    wrong = NAMES["refused id"]
    requests = [
        [named(conversation_id=f"{wrong}\n")],
        [named(participant_id=f"{wrong}\0")],
        [named(turn_id=wrong * 700)],
        [named(model=wrong)],
        [named(rate=1)],
        [named(), pb.StreamingAnalyzeRequest(audio_content=b"RIFF" + bytes(3200))],
        [named(encoding=pb.AUDIO_ENCODING_FLOAT32), pb.StreamingAnalyzeRequest(audio_content=b"\xff" * 3200)],
        [named(given_personality=pb.BigFiveTraits(openness=9.1234567))],
        [named(), named()],
        [],
    ]
    for messages in requests:
        await fails(stub, messages, headers(GOOD))
    await fails(stub, [named()], headers(BAD))
    await fails(stub, [named()], {**headers(GOOD), "x-caller": NAMES["metadata"] * 1300})
    await fails(stub, [named()], {"traceparent": NAMES["metadata"], "tracestate": NAMES["metadata"]})
    async with Talk(stub, metadata=tuple(headers(GOOD).items())) as talk:
        await talk.send(named(turn_id="t4"), *chunks(encode(spoken(0.9))))
        await talk.until("stream_started")


async def faulty_models(stub: Stub) -> None:
    """The detector and the model raise with the audio in the text; the model gives NaN, and kills its process."""
    loud = np.full(16_000, CRASH, np.float32)
    await fails(stub, [config(encoding=pb.AUDIO_ENCODING_FLOAT32), *chunks(loud.tobytes())], headers(GOOD))
    for first in (0.125, 0.25, 0.5):
        speech = spoken(1.0)[6_400:].copy()
        speech[0] = first
        request = config(encoding=pb.AUDIO_ENCODING_FLOAT32, conversation_id=NAMES["conversation"], turn_id=f"t{first}")
        await fails(stub, [request, *chunks(encode(speech, "float32"), 256 * 1024)], headers(GOOD))


async def fails(stub: Stub, messages: list[Any], metadata: dict[str, str]) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        async with asyncio.timeout(20):
            await converse(stub, messages, metadata=metadata)


async def foreign_calls(server: RunningServer) -> None:
    """Bytes that are no message, and a method that there is not."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        for method, token in (("StreamingAnalyze", GOOD), (NAMES["method"], GOOD), ("Analyze", BAD)):
            call = channel.stream_stream(f"/kibun.v1.SpeechAnalysisService/{method}")
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in call(
                    iter([b"\xff" + NAMES["malformed message"].encode()]), metadata=tuple(headers(token).items())
                ):
                    pass


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def open_for_writing(pid: int) -> set[str]:
    """Files on disk."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            flags = re.search(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text())
            target = os.readlink(fd)
            in_memory = target.startswith(("/dev/", "/proc/")) or not target.startswith("/")
            if flags and int(flags[1], 8) & (os.O_WRONLY | os.O_RDWR) and not in_memory:
                found.add(target)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return asyncio.run(whole_run(tmp_path_factory.mktemp("silent")))


async def whole_run(folder: Path) -> Run:
    secrets = Secrets(names=dict(NAMES), tokens=[GOOD, BAD])
    evidence: dict[str, bytes] = {}
    with collector() as (traces, url):
        with running(folder, PRELUDE, "--log-format", "json", "--otlp-endpoint", url) as (server, temporary, files):
            async with connect(server) as stub:
                await good_streams(stub, secrets)
                await foreign_calls(server)
                await bad_streams(stub)
                await faulty_models(stub)
            restarted = await scrape_until(
                server, lambda s: s("kibun_worker_restarts_total") >= 1 and s("kibun_workers") == 1
            )
            evidence["metrics"] = restarted.text.encode()
            pids = [server.process.pid, *workers_of(server)]
            assert len(pids) == 2
            evidence |= {f"command line {pid}": command_line(pid) for pid in pids}
            open_files = set().union(*map(open_for_writing, pids))
            for page in ("/healthz", f"/{NAMES['method']}"):
                evidence[page] = (await asyncio.to_thread(fetch, site(server) + page))[1].encode()
            server.terminate()
            assert await asyncio.to_thread(server.wait, 30) == 0
            evidence["log"] = server.log.read_bytes()
            left = list(temporary.rglob("*"))
            written = set(files.read_text().splitlines())
        evidence["traces"] = traces.raw
    return Run(evidence, secrets, written, left, open_files)


# ---- what is left


def test_the_run_was_what_it_is_meant_to_be(run: Run) -> None:
    """Otherwise it would be no wonder that nothing was found."""
    log = run.evidence["log"].decode()
    for reason in (
        "INVALID_ID",
        "UNAUTHENTICATED",
        "MALFORMED_MESSAGE",
        "MODEL_FAILED",
        "MODEL_NONFINITE",
        "WORKER_FAILED",
        "INTERNAL",
        "CONVERSATION_NOT_FOUND",
        "METADATA_TOO_LARGE",
        "CONTAINER_HEADER",
        "NON_FINITE_AUDIO",
        "EMPTY_STREAM",
        "TRAITS_OUT_OF_RANGE",
    ):
        assert f'"reason": "{reason}"' in log, reason
    for event in ("a call failed", "a batch failed", "worker ended; starting another", "Task exception was never"):
        assert f'"event": "{event}' in log, event
    assert '"level": "DEBUG"' in log
    assert '"logger": "py.warnings"' in log
    assert '"code": "CANCELLED"' in log
    assert '"tenant": "acme"' in log
    assert b"StreamingAnalyze" in run.evidence["traces"]
    refused = Scrape(run.evidence["metrics"].decode())("kibun_refusals_total", reason="UNAUTHENTICATED")
    assert refused >= 3, "the metrics count the same calls"
    assert all(len(needles) > 1 for needles in run.secrets.needles().values())


def test_no_audio_no_score_no_name_no_token_is_left_anywhere(run: Run) -> None:
    assert hits(run.evidence, run.secrets) == []


def test_every_line_of_the_log_is_an_object_of_allowed_fields(run: Run) -> None:
    import json

    from kibun.server.observability.logs import FIELDS

    allowed = {"time", "level", "logger", "event", "at", "error", "caused_by", *FIELDS}
    lines = run.evidence["log"].decode().splitlines()
    assert {line for line in lines if not line.startswith("{")} == {"loading stub"}, "the stub model's own words"
    for line in lines:
        if line.startswith("{"):
            assert set(json.loads(line)) <= allowed, line


def test_no_file_is_written(run: Run) -> None:
    assert run.left == []
    names = {Path(path).name for path in run.written}
    assert [name for name in names if re.fullmatch(r"\.port\.\w+\.part", name)], "the watch works"
    assert all(re.fullmatch(r"\.port\.\w+\.part|null", name) for name in names), run.written
    assert {Path(path).name for path in run.open_files} == {"log", "files"}, "stderr, and the list of the watch"


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Secrets]:
    return asyncio.run(leaky_run(tmp_path_factory.mktemp("leaky")))


async def leaky_run(folder: Path) -> tuple[dict[str, bytes], Secrets]:
    secrets = Secrets(names=dict(NAMES), tokens=[GOOD, BAD])
    with running(folder, f"{PRELUDE}\n{LEAKY}") as (server, _, _):
        async with connect(server) as stub:
            await good_streams(stub, secrets)
            await fails(stub, [named()], headers(BAD))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        return {"log": server.log.read_bytes()}, secrets


def test_a_server_that_leaks_is_found_out(leaky: tuple[dict[str, bytes], Secrets]) -> None:
    """The control: without it, a scan that finds nothing would say nothing."""
    found = {kind for _, kind, _ in hits(*leaky)}
    names = {"conversation", "participant", "turn", "next turn", "metadata"}
    assert {"token", "audio", "given traits", "valence", "arousal", "traits", *names} <= found


def test_every_needle_is_found_where_it_is_planted(run: Run) -> None:
    needles = run.secrets.needles()
    assert set(needles) == {*NAMES, "token", "given traits", "valence", "arousal", "traits", "audio"}
    for kind, forms in needles.items():
        for form in forms[:60]:
            planted = {**run.evidence, "log": run.evidence["log"] + b"x" + form + b"y"}
            assert ("log", kind, form) in hits(planted, only(kind, form, run.secrets))


def only(kind: str, form: bytes, secrets: Secrets) -> Secrets:
    """Only that kind, so that the test takes no time."""
    if kind == "token":
        return Secrets(tokens=secrets.tokens)
    if kind == "audio":
        return Secrets(audio=[audio[: 40 * leaks.EVERY] for audio in secrets.audio])
    if kind in secrets.numbers:
        return Secrets(numbers={kind: secrets.numbers[kind]})
    return Secrets(names={kind: secrets.names[kind]})


@pytest.mark.parametrize("form", ["raw", "hex", "base64", "repr", "numbers"])
def test_audio_is_found_however_it_is_written(run: Run, form: str) -> None:
    """Not from the needles, but as a mistake might log it: a piece of it, anywhere."""
    import base64

    samples = run.secrets.audio[0][8_000:10_000]
    raw = samples.tobytes()
    written = {
        "raw": raw,
        "hex": raw.hex().encode(),
        "base64": base64.b64encode(b"x" + raw),
        "repr": repr(raw).encode(),
        "numbers": str(samples.tolist()).encode(),
    }[form]
    found = hits({"log": written}, Secrets(audio=run.secrets.audio[:1]))
    assert {kind for _, kind, _ in found} == {"audio"}
